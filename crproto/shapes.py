"""What messages are made of: the base of their classes, and checks of single fields.

A check takes a value off the wire and returns it, or raises RemoteProtocolError.

``type(x) is`` instead of isinstance: True is no integer here, and msgpack makes plain types only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, TypeAlias

from crproto.content import CHUNK, RECIPE
from crproto.delta import CODECS, PATCH, RAW
from crproto.errors import RemoteProtocolError
from crproto.ids import is_name
from crproto.limits import ID, IDS_PER_FRAME, OBJECTS_PER_FRAME, RAW_OBJECT, U64
from crproto.paths import check_path

Check: TypeAlias = Callable[[Any], Any]


def _refuse(value: Any, wanted: str) -> RemoteProtocolError:
    shown = f"{len(value)} bytes" if type(value) is bytes else type(value).__name__
    return RemoteProtocolError(f"{wanted} expected, not {shown}")


def integer(low: int = 0, high: int = U64) -> Check:
    """An integer from ``low`` to ``high``."""

    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _refuse(value, f"an integer from {low} to {high}")
        return value

    return check


def boolean(value: Any) -> bool:
    """True or False, not 1 or 0."""
    if type(value) is not bool:
        raise _refuse(value, "a boolean")
    return value


def exactly(*lengths: int) -> Check:
    """Bytes of one of these lengths."""
    wanted = " or ".join(map(str, lengths)) + " bytes"

    def check(value: Any) -> bytes:
        if type(value) is not bytes or len(value) not in lengths:
            raise _refuse(value, wanted)
        return value

    return check


def up_to(length: int) -> Check:
    """Bytes, at most so many."""

    def check(value: Any) -> bytes:
        if type(value) is not bytes or len(value) > length:
            raise _refuse(value, f"at most {length} bytes")
        return value

    return check


def text(length: int) -> Check:
    """Text of at most so many characters."""

    def check(value: Any) -> str:
        if type(value) is not str or len(value) > length:
            raise _refuse(value, f"text of at most {length} characters")
        return value

    return check


def name(value: Any) -> str:
    """The name of a node or set."""
    if type(value) is not str or not is_name(value):
        raise _refuse(value, "a name")
    return value


def name_or_empty(value: Any) -> str:
    """A name, or '' for somebody who has none yet."""
    return "" if value == "" and type(value) is str else name(value)


def path(value: Any) -> bytes:
    """A path inside a set, b'' for its root."""
    if type(value) is not bytes:
        raise _refuse(value, "a path")
    check_path(value, root=True)
    return value


def several(check: Check, most: int) -> Check:
    """A sequence of at most ``most`` values that each pass ``check``."""

    def checked(values: Any) -> tuple[Any, ...]:
        if type(values) is not tuple or len(values) > most:
            raise _refuse(values, f"a list of at most {most}")
        return tuple([check(value) for value in values])

    return checked


def record(*checks: Check) -> Check:
    """A sequence with one value for each check."""

    def checked(values: Any) -> tuple[Any, ...]:
        if type(values) is not tuple or len(values) != len(checks):
            raise _refuse(values, f"a list of {len(checks)}")
        return tuple([check(value) for check, value in zip(checks, values, strict=True)])

    return checked


def object_records(values: Any) -> tuple[tuple[bytes, int, int, int, int, bytes], ...]:
    """Objects' table of contents; in one loop because there are hundreds a frame."""
    if type(values) is not tuple or len(values) > OBJECTS_PER_FRAME:
        raise RemoteProtocolError("the table of objects is malformed or too long", "limit")
    for item in values:
        if type(item) is not tuple or len(item) != 6:
            raise RemoteProtocolError("an object's record is malformed")
        name, kind, encoding, raw, stored, base = item
        if (
            type(name) is not bytes
            or len(name) != ID
            or type(kind) is not int
            or type(encoding) is not int
            or type(raw) is not int
            or type(stored) is not int
            or type(base) is not bytes
            or (kind != CHUNK and kind != RECIPE)
            or encoding not in CODECS
            or not 0 < raw <= RAW_OBJECT
            or not 0 < stored <= RAW_OBJECT
            or (stored != raw and encoding == RAW)
            or len(base) != (ID if encoding == PATCH else 0)
        ):
            raise RemoteProtocolError("an object's record is out of bounds or contradicts itself")
    return values


uint = integer()
id32 = exactly(ID)
id_or_none = exactly(0, ID)
uuid = exactly(16)
uuid_or_none = exactly(0, 16)


class Message:
    """What all have in common."""

    __slots__ = ()
    TYPE: ClassVar[int]
    SHAPE: ClassVar[tuple[Check, ...]]
    BULK: ClassVar[bool] = False  # its frames are charged against the receiver's credit
    LOOSE: ClassVar[bool] = False  # a later version may append fields (Hello only)

    def to_wire(self) -> list[Any]:
        """``[TYPE, field, ...]``"""
        fields: tuple[str, ...] = self.__slots__
        return [self.TYPE, *[getattr(self, field) for field in fields]]

    @classmethod
    def from_wire(cls, values: Sequence[Any], payload_length: int) -> Self:
        """The message in ``values`` (with the type first); RemoteProtocolError unless every rule holds."""
        shape = cls.SHAPE
        if len(values) != len(shape) + 1 and not (cls.LOOSE and len(values) > len(shape)):
            raise RemoteProtocolError(f"{cls.__name__} has {len(values) - 1} fields instead of {len(shape)}")
        try:
            made = cls(*[check(value) for check, value in zip(shape, values[1:], strict=not cls.LOOSE)])
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{cls.__name__}: {error}", error.code) from None
        made.check(payload_length)
        return made

    def check(self, payload_length: int) -> None:
        """Field against field and against the payload's length in bytes. By default there is no payload."""
        if payload_length:
            raise RemoteProtocolError(f"{type(self).__name__} has a payload of {payload_length} bytes")


class WithIds(Message):
    """Its payload is a list of 32-byte ids."""

    __slots__ = ()

    def check(self, payload_length: int) -> None:
        """Whole ids only, and not too many."""
        if payload_length % ID or payload_length > ID * IDS_PER_FRAME:
            raise RemoteProtocolError(f"{type(self).__name__} has {payload_length} bytes of ids", "limit")
