"""Entries: what an image says about one path, their canonical bytes, and the digest of an image.

The digest is homomorphic (LtHash16): 1,024 lanes of 16 bits, to which each entry's 2,048-byte BLAKE3 output
is added lane by lane, modulo 2**16. It does not depend on order, one changed entry changes it in O(1), and
collisions are as hard as a lattice problem, where a plain sum would fall to Wagner's attack. A path must
occur once in an image: an element added 65,536 times vanishes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from blake3 import blake3

from crproto import codec
from crproto.errors import LocalProtocolError, RemoteProtocolError
from crproto.ids import HOLE, Buffer
from crproto.limits import (
    ACL_ENTRIES,
    EXTRA,
    I64_MAX,
    I64_MIN,
    ID,
    LINK,
    OWNER,
    PATH,
    RAW_OBJECT,
    RECIPE_DEPTH,
    SIZE,
    U32,
    U64,
    XATTR_NAME,
    XATTR_VALUE,
    XATTRS,
)
from crproto.paths import check_path

FILE = 1
DIRECTORY = 2
SYMLINK = 3
KINDS = (FILE, DIRECTORY, SYMLINK)

Acl: TypeAlias = tuple[
    tuple[int, int, str, int], ...
]  # (tag, permissions, name, number) as POSIX.1e numbers them


class Entry(NamedTuple):
    """One path of an image. Its wire form is these twelve values in this order."""

    path: bytes  # relative; b'' is the set's root directory
    kind: int  # FILE, DIRECTORY or SYMLINK
    mode: int  # permission bits with setuid, setgid and sticky: 0 to 0o7777
    owner: str  # name; '' when the source knows only the number
    owner_id: int
    group: str
    group_id: int
    mtime_ns: int  # nanoseconds since 1970, signed
    size: int  # bytes; 0 for a directory or symlink
    content: (
        bytes | None
    )  # id of a chunk (level 0) or recipe (level > 0); None exactly for empty files and no files
    level: int
    extra: bytes  # Extra.encode(), b'' when there is nothing


@dataclass(frozen=True, slots=True)
class Extra:
    """What few entries have. ``link`` names a hard link group, ``fuzzy`` a file that never stood still."""

    target: bytes | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    acl: Acl | None = None
    default_acl: Acl | None = None
    link: bytes | None = None
    fuzzy: bool = False

    def encode(self) -> bytes:
        """Canonical bytes: a map of what is there, keys in order; b'' when nothing is."""
        found: dict[str, Any] = {}
        if self.acl is not None:
            found["acl"] = sorted(self.acl)
        if self.default_acl is not None:
            found["default_acl"] = sorted(self.default_acl)
        if self.fuzzy:
            found["fuzzy"] = True
        if self.link is not None:
            found["link"] = self.link
        if self.target is not None:
            found["target"] = self.target
        if self.xattrs:
            found["xattrs"] = sorted(self.xattrs)
        return codec.pack(found) if found else b""

    @classmethod
    def decode(cls, data: bytes) -> Extra:
        """The inverse of :meth:`encode`; RemoteProtocolError for anything :meth:`encode` would not write."""
        if not data:
            return NOTHING
        found = codec.unpack(data, max_len=EXTRA)
        if type(found) is not dict or not found or not found.keys() <= _EXTRA_KEYS:
            raise RemoteProtocolError("the extra part of an entry is no map of known keys")
        target = found.get("target")
        if target is not None and not (
            type(target) is bytes and 0 < len(target) <= PATH and b"\0" not in target
        ):
            raise RemoteProtocolError("the target of a symbolic link is malformed")
        link = found.get("link")
        if link is not None and not (type(link) is bytes and len(link) == LINK):
            raise RemoteProtocolError("the id of a hard link group is malformed")
        extra = cls(
            target,
            _check_xattrs(found.get("xattrs", ())),
            _check_acl(found.get("acl")),
            _check_acl(found.get("default_acl")),
            link,
            "fuzzy" in found,
        )
        # Re-encoding is the whole test for canonical form: order, duplicates, shortest integers, explicit
        # nulls.
        if extra.encode() != data:
            raise RemoteProtocolError("the extra part of an entry is not in canonical form")
        return extra


_EXTRA_KEYS = frozenset(("acl", "default_acl", "fuzzy", "link", "target", "xattrs"))
NOTHING = Extra()  # what most entries have


def _check_xattrs(value: Any) -> tuple[tuple[bytes, bytes], ...]:
    if type(value) is not tuple or len(value) > XATTRS:
        raise RemoteProtocolError("the extended attributes of an entry are malformed")
    previous = b""
    for pair in value:
        if type(pair) is not tuple or len(pair) != 2:
            raise RemoteProtocolError("an extended attribute is malformed")
        name, content = pair
        if type(name) is not bytes or type(content) is not bytes:
            raise RemoteProtocolError("an extended attribute is malformed")
        if not previous < name or len(name) > XATTR_NAME or len(content) > XATTR_VALUE or b"\0" in name:
            raise RemoteProtocolError("an extended attribute is out of order or too long")
        previous = name
    return value


def _check_acl(value: Any) -> Acl | None:
    if value is None:
        return None
    if type(value) is not tuple or len(value) > ACL_ENTRIES:
        raise RemoteProtocolError("an access control list is malformed")
    for item in value:
        if type(item) is not tuple or len(item) != 4:
            raise RemoteProtocolError("a line of an access control list is malformed")
        tag, permissions, name, number = item
        if (
            type(tag) is not int
            or type(permissions) is not int
            or type(name) is not str
            or type(number) is not int
        ):
            raise RemoteProtocolError("a line of an access control list is malformed")
        if not (0 <= tag <= 0xFF and 0 <= permissions <= 7 and len(name) <= OWNER and 0 <= number <= U32):
            raise RemoteProtocolError("a line of an access control list is out of bounds")
    return value


def link_of(entry: Entry) -> bytes | None:
    """The hard link group that a file or symbolic link belongs to, None for what has one name only."""
    return Extra.decode(entry.extra).link if entry.extra and entry.kind != DIRECTORY else None


def entry_to_wire(entry: Entry) -> Entry:
    """The wire form of an entry: the tuple itself, which msgpack writes as an array."""
    return entry


def entry_from_wire(wire: Sequence[Any], *, path_checked: bool = False) -> Entry:
    """The entry in ``wire``, every field checked on its own and against the others; else
    RemoteProtocolError. `path_checked`: the caller knows that :func:`crproto.paths.problem` has none."""
    if not isinstance(wire, tuple | list) or len(wire) != 12:
        raise RemoteProtocolError("an entry is an array of 12 fields")
    path, kind, mode, owner, owner_id, group, group_id, mtime_ns, size, content, level, extra = wire
    if (
        type(path) is not bytes
        or type(kind) is not int
        or type(mode) is not int
        or type(owner) is not str
        or type(owner_id) is not int
        or type(group) is not str
        or type(group_id) is not int
        or type(mtime_ns) is not int
        or type(size) is not int
        or type(level) is not int
        or type(extra) is not bytes
    ):
        raise RemoteProtocolError("a field of an entry has the wrong type")
    if not path_checked:
        check_path(path, root=kind == DIRECTORY)
    if not (
        0 <= mode <= 0o7777
        and 0 <= owner_id <= U32
        and 0 <= group_id <= U32
        and I64_MIN <= mtime_ns <= I64_MAX
        and len(owner) <= OWNER
        and len(group) <= OWNER
        and "\0" not in owner
        and "\0" not in group
    ):
        raise RemoteProtocolError(f"mode, owner or time of {path[:200]!r} is out of bounds")
    if kind == FILE:
        if content is None:
            if size or level:
                raise RemoteProtocolError(f"the file {path[:200]!r} has a size but no content")
        elif (
            type(content) is not bytes
            or len(content) != ID
            or content == HOLE
            or not 0 < size <= SIZE
            or not 0 <= level <= RECIPE_DEPTH
            or (level == 0 and size > RAW_OBJECT)
        ):
            raise RemoteProtocolError(
                f"size, content and level of the file {path[:200]!r} do not fit each other"
            )
        if extra:
            found = Extra.decode(extra)
            if found.target is not None or found.default_acl is not None:
                raise RemoteProtocolError(f"the file {path[:200]!r} has what only links and directories have")
    else:
        if kind != DIRECTORY and kind != SYMLINK:
            raise RemoteProtocolError(f"entry kind {kind} is unknown")
        if size or level or content is not None:
            raise RemoteProtocolError(f"{path[:200]!r} is no file and yet has content")
        found = Extra.decode(extra)
        if (found.target is None) == (kind == SYMLINK):
            raise RemoteProtocolError(
                f"{path[:200]!r}: a target belongs to symbolic links, and to each of them"
            )
        # The two kinds exclude each other's: a directory has no hard links, a symbolic link no default ACL.
        if found.fuzzy or (found.link if kind == DIRECTORY else found.default_acl) is not None:
            raise RemoteProtocolError(f"{path[:200]!r} has what only files or directories have")
    # Not Entry._make: the length is known to be right, and this is half its time.
    return tuple.__new__(Entry, wire)


def entry_bytes(entry: Entry) -> bytes:
    """The canonical bytes of an entry, which its digest is taken of."""
    return codec.pack(entry)


_KEY = blake3(
    b"crnode entry v1"
).digest()  # keeps entry hashes apart from every content id, at no cost per entry


def entry_digest(data: Buffer) -> bytes:
    """32 bytes that name the canonical bytes of one entry; the first 32 of its LtHash element."""
    return blake3(data, key=_KEY).digest()


def range_digest(digests: Iterable[bytes]) -> tuple[int, bytes]:
    """(count, digest) of a run of entries in path order, from their :func:`entry_digest`: what Compared
    carries."""
    joined = b"".join(digests)
    return len(joined) // ID, blake3(joined, key=_KEY).digest()


_LANES = 1024
_STATE = _LANES * 2
_FROM = int.from_bytes
_EVEN = _FROM(
    b"\xff\xff\0\0" * (_LANES // 2), "little"
)  # the lanes 0, 2, 4, ... with 16 bits of room above each
_FOLD = 60_000  # additions before those 16 bits of room could overflow (65,536), with a margin


class LtHash:
    """The homomorphic hash of a set of entries.

    Kept as plain sums of whole elements (``all``) and of their even lanes alone (``even``), which is one mask
    and two additions an element; the odd lanes are what is left of ``all``. Every 60,000 elements, and for
    output, the sums are folded back to 16 bits a lane.
    """

    __slots__ = ("_added", "_added_even", "_removed", "_removed_even", "_room")

    def __init__(self) -> None:
        self._added = self._added_even = self._removed = self._removed_even = 0
        self._room = _FOLD

    def add(self, data: Buffer) -> None:
        """Take in one entry, given as :func:`entry_bytes`."""
        element = _FROM(blake3(data, key=_KEY).digest(2048), "little")
        self._added += element
        self._added_even += element & _EVEN
        self._room -= 1
        if not self._room:
            self._fold()

    def remove(self, data: Buffer) -> None:
        """Take out one entry that was taken in before."""
        element = _FROM(blake3(data, key=_KEY).digest(2048), "little")
        self._removed += element
        self._removed_even += element & _EVEN
        self._room -= 1
        if not self._room:
            self._fold()

    def update(self, added: Iterable[Buffer], removed: Iterable[Buffer] = ()) -> None:
        """Many entries at once."""
        for data in added:
            self.add(data)
        for data in removed:
            self.remove(data)

    def merge(self, other: LtHash) -> None:
        """Take in all that `other` is the hash of (and take out what it took out)."""
        other._fold()
        self._added += other._added
        self._added_even += other._added_even
        self._room -= 1
        if not self._room:
            self._fold()

    def _fold(self) -> None:
        even = _minus(self._added_even, self._removed_even)
        odd = _minus((self._added - self._added_even) >> 16, (self._removed - self._removed_even) >> 16)
        self._added_even = even
        self._added = even | odd << 16
        self._removed = self._removed_even = 0
        self._room = _FOLD

    def copy(self) -> LtHash:
        """An independent one with the same state."""
        self._fold()
        other = LtHash()
        other._added, other._added_even = self._added, self._added_even
        return other

    def to_bytes(self) -> bytes:
        """2,048 bytes: lane 0 first, each lane little-endian."""
        self._fold()
        return self._added.to_bytes(_STATE, "little")

    @classmethod
    def from_bytes(cls, state: Buffer) -> LtHash:
        """The inverse of :meth:`to_bytes`."""
        if len(state) != _STATE:
            raise LocalProtocolError(f"an LtHash state has {_STATE} bytes, not {len(state)}")
        new = cls()
        new._added = _FROM(state, "little")
        new._added_even = new._added & _EVEN
        return new

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LtHash):
            return NotImplemented
        return self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]


_BIAS = _FROM(
    b"\0\0\1\0" * (_LANES // 2), "little"
)  # 2**16 in each 32-bit place: no lane can borrow from the next


def _minus(added: int, removed: int) -> int:
    """Lane-wise difference modulo 2**16 of two sums whose lanes stand 32 bits apart."""
    return ((added & _EVEN) + _BIAS - (removed & _EVEN)) & _EVEN


_HEAD = struct.Struct(">16sQQ")
_IMAGE = b"crnode image v1"


def image_digest(set_uuid: bytes, count: int, total_bytes: int, lthash: LtHash) -> bytes:
    """32 bytes that say what an image holds: equal digests, equal entries. ``total_bytes`` sums the files'
    sizes."""
    if len(set_uuid) != 16 or not 0 <= count <= U64 or not 0 <= total_bytes <= U64:
        raise LocalProtocolError("an image digest needs a 16-byte set uuid and 64-bit counts")
    return blake3(_IMAGE + _HEAD.pack(set_uuid, count, total_bytes) + lthash.to_bytes()).digest()
