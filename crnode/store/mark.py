"""Marking: which objects of the store any image reaches. Runs in child processes.

The roots are the contents of every row of every catalog, read in one short snapshot each, and the manifests;
recipes lead to their children. What was met goes into a bit filter, 8 to 16 bits an id: a false positive
keeps garbage for one round (another round asks other bits), and a false negative cannot be. Which recipes
were walked already is kept exactly, because a wrong "yes" there would lose everything below."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from crnode.store.reader import SPOOL_GIVEN_UP, Image, Reader, open_reader
from crnode.store.store import Damaged, Missing
from crproto import codec
from crproto.content import ITEM, parse_recipe, walk
from crproto.entries import Entry, entry_from_wire
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE

Load = Callable[[bytes], bytes]
MANIFEST_MAGIC = b"CRm1"
_ENTRY_LENGTH = struct.Struct(">I")
_ENTRY_LIMIT = 1 << 20
_SLICES = ("<QQQ8x", "<8xQQQ", "<QQ8xQ", "<Q8xQQ")  # three of an id's four words, others each round


class Filter:
    """A set of ids that may say yes for one that is not in it, seldom, and never no for one that is.

    `ids`: how many there will be at most. `turn`: number of the collection; another turn errs on other ids.
    """

    def __init__(self, ids: int, turn: int) -> None:
        bits = 1 << max(16, (8 * ids - 1).bit_length())
        self.table = bytearray(bits // 8)
        self._mask = bits - 1
        self._words = struct.Struct(_SLICES[turn % len(_SLICES)]).unpack

    def add(self, name: bytes) -> None:
        one, two, three = self._words(name)
        table, mask = self.table, self._mask
        one &= mask
        table[one >> 3] |= 1 << (one & 7)
        two &= mask
        table[two >> 3] |= 1 << (two & 7)
        three &= mask
        table[three >> 3] |= 1 << (three & 7)

    def __contains__(self, name: bytes) -> bool:
        one, two, three = self._words(name)
        table, mask = self.table, self._mask
        one &= mask
        if not table[one >> 3] >> (one & 7) & 1:
            return False
        two &= mask
        if not table[two >> 3] >> (two & 7) & 1:
            return False
        three &= mask
        return bool(table[three >> 3] >> (three & 7) & 1)


class Hole(NamedTuple):
    """A recipe that could not be read: why, its level, whether its chunks matter, and whose it is."""

    why: str
    level: int
    chunks: bool
    owner: str


@dataclass
class Roots:
    """What one catalog names, or a hole where it cannot be read."""

    path: str
    chunks: bool = True  # False: a source that spools nothing has recipes alone in its store
    recipes: set[tuple[bytes, int]] = field(default_factory=set)
    manifests: set[tuple[bytes, int]] = field(default_factory=set)
    unreadable: str = ""


class Marker:
    """Walks from roots to everything below, and calls `mark` with each id that is reached."""

    def __init__(self, load: Load, mark: Callable[[bytes], None]) -> None:
        self.load = load
        self.mark = mark
        self.walked: set[bytes] = set()
        self.holes: dict[bytes, Hole] = {}
        self._shallow: set[bytes] = set()  # recipes walked without their chunks

    def recipe(
        self, content: bytes, level: int, *, chunks: bool = True, owner: str = "", holes: bool = True
    ) -> None:
        """Mark a recipe and what it reaches; what cannot be read on the way is noted as a hole, unless
        `holes` says that nothing depends on it."""
        todo = [(content, level)]
        mark = self.mark
        while todo:
            name, at = todo.pop()
            if name in self.walked or (not chunks and name in self._shallow):
                continue
            mark(name)
            try:
                recipe = parse_recipe(self.load(name), at)
            except (Missing, Damaged, RemoteProtocolError) as error:
                if holes:
                    why = "missing" if isinstance(error, Missing) else "damaged"
                    self.holes[name] = Hole(why, at, chunks, owner)
                continue
            self.holes.pop(name, None)
            (self.walked if chunks else self._shallow).add(name)
            if at > 1:
                todo += [(child, at - 1) for _, child in ITEM.iter_unpack(recipe.items)]
            elif chunks:
                for _, child in ITEM.iter_unpack(recipe.items):
                    if child != HOLE:
                        mark(child)

    def again(self) -> None:
        """Try the holes once more."""
        holes, self.holes = self.holes, {}
        for name, hole in holes.items():
            self.recipe(name, hole.level, chunks=hole.chunks, owner=hole.owner)

    def reached(self, segment: bytes) -> bool:
        """Whether a recipe segment was met, exactly."""
        return segment in self.walked or segment in self._shallow


def roots(path: str, *, source: bool, targets: Iterable[str], plain: Callable[[bytes], None]) -> Roots:
    """The roots of the catalog at `path`, in one snapshot; chunks that rows name go to `plain` as they come.

    `source`: this node is the set's source, so that its chunks are in the store only while a target waits for
    them; `targets` are the nodes that should have a cursor."""
    out = Roots(path)
    try:
        with open_reader(Path(path)) as reader, reader.snapshot():
            out.chunks = not source or spools(reader, targets)
            for content, level in reader.contents():
                if level:
                    out.recipes.add((content, level))
                elif out.chunks:
                    plain(content)
            for image in reader.images():
                if image.manifest is not None:
                    out.manifests.add((image.manifest[:32], image.manifest[32]))
    except (apsw.Error, ValueError, TypeError, struct.error) as error:  # values that damage made of others
        out.unreadable = f"{type(error).__name__}: {error}"
    return out


def spools(reader: Reader, targets: Iterable[str]) -> bool:
    """Whether a source's store may hold chunks that its rows need: while a target waits for an image."""
    if reader.meta(SPOOL_GIVEN_UP) is not None:
        return any(map(_kept, reader.images()))
    newest = reader.newest()
    if newest is None or reader.staging() is not None:
        return True
    cursors = {cursor.target: cursor.ordinal for cursor in reader.cursors()}
    behind = any(ordinal < newest.ordinal for ordinal in cursors.values())
    return behind or any(name not in cursors for name in targets) or any(map(_kept, reader.images()))


def _kept(image: Image) -> bool:
    """Versions from a time when this node was a target: a source itself keeps none."""
    return bool(image.pinned) or image.manifest is not None


def manifest_entries(content: bytes, level: int, load: Load) -> Iterator[Entry]:
    """The entries of a manifest (see manifest.py) in its order. Raises Missing, Damaged or
    RemoteProtocolError."""
    data = bytearray()
    begun = False
    for _, _, name in walk(content, level, load):
        data += load(name)
        at = 0
        if not begun:
            if data[:4] != MANIFEST_MAGIC:
                raise RemoteProtocolError("this is no manifest")
            begun, at = True, 4
        while len(data) - at >= _ENTRY_LENGTH.size:
            (length,) = _ENTRY_LENGTH.unpack_from(data, at)
            if length > _ENTRY_LIMIT:
                raise RemoteProtocolError("an entry of a manifest is too long")
            end = at + _ENTRY_LENGTH.size + length
            if end > len(data):
                break
            wire: Any = codec.unpack(bytes(data[at + _ENTRY_LENGTH.size : end]))
            yield entry_from_wire(wire)
            at = end
        del data[:at]
    if data or not begun:
        raise RemoteProtocolError("a manifest ends inside an entry")


def manifest_part(data: bytes) -> bytes:
    """An entry's canonical bytes as they stand in a manifest."""
    return _ENTRY_LENGTH.pack(len(data)) + data
