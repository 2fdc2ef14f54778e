"""The only importer of msgpack: one pinned, canonical and bounded way to write values.

Canonical means: integers in their shortest form, text as str and bytes as bin, no extension types, no floats,
maps (only entries have one) with sorted keys. Two encoders that follow it write equal bytes for equal values,
which digests depend on.

Nesting is bounded by msgpack's own fixed stack here, and to the exact shape by whoever validates the value:
no message has a place for an arbitrary value.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgpack  # type: ignore[import-untyped, unused-ignore]

from crproto.errors import LocalProtocolError, RemoteProtocolError
from crproto.ids import Buffer
from crproto.limits import MESSAGE


def pack(value: Any) -> bytes:
    """The canonical bytes of None, bool, int, bytes, str, sequences of these, and maps with sorted str keys.

    The types are the caller's duty (checking each would cost more than packing). LocalProtocolError when a
    value cannot be written at all, such as an integer of more than 64 bits.
    """
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:  # UnicodeEncodeError is a ValueError
        raise LocalProtocolError(f"this value has no wire form: {error}") from None
    return packed


def _no_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code}")


def unpack(view: Buffer, *, max_len: int = MESSAGE) -> Any:
    """The value in ``view``, all of it; sequences become tuples.

    RemoteProtocolError for more than ``max_len`` bytes, anything malformed, trailing bytes, text that is not
    UTF-8, extension types, or deeper nesting than any encoder has reason for. No length inside the bytes is
    believed before that many bytes are really there, so nothing large is allocated for a small input.
    """
    size = len(view)
    if size > max_len:
        raise RemoteProtocolError(f"{size} bytes of msgpack where {max_len} are allowed", "limit")
    try:
        return msgpack.unpackb(
            view,
            use_list=False,
            raw=False,
            strict_map_key=True,
            ext_hook=_no_extension,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=size // 2,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, TypeError, OverflowError, RecursionError) as error:
        raise RemoteProtocolError(f"malformed msgpack: {error}") from None
