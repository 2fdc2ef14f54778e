"""Content: one id for the bytes of any file, small or huge.

A file of one chunk is named by that chunk (level 0). Any other is named by a *recipe*: an object that lists
(length, id). A level-1 recipe lists chunks and holes, a level-n recipe lists recipes of level n-1. Lists are
cut into segments at borders that the ids themselves decide, so that one changed chunk rewrites one segment a
level, wherever it lies, and equal files cut alike have equal ids.

::

    recipe object = level u8 | cutter u8 | total u64 | count u32 | count x (length u64, id 32 bytes)

Numbers are big-endian. A segment ends after an item (no hole) whose id ends in seven zero bits once it has 16
items, at 1,024 items, or with the list. A level with one segment in all is the top.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from crproto.errors import LocalProtocolError, RemoteProtocolError
from crproto.ids import HOLE, Buffer, recipe_id
from crproto.limits import RAW_OBJECT, RECIPE_DEPTH, RECIPE_ITEMS, SEGMENT_MAX, SEGMENT_MIN, SIZE

ITEM = struct.Struct(">Q32s")
HEADER = struct.Struct(">BBQI")
CHUNK = 0  # kinds of stored objects
RECIPE = 1
CUTTERS = 4  # known cutter numbers are below this; chunking.py names them

Load: TypeAlias = Callable[[bytes], Buffer]  # id of a recipe (or chunk, where said) -> its verified bytes

_BORDER = 0x7F
_EXPAND = 2  # old neighbours on each side that new_objects looks into, see there
_SEEN = 65_536  # ids that new_objects remembers to name none twice


class _Level:
    """The open segment of one level."""

    __slots__ = ("closed", "count", "items", "total")

    def __init__(self) -> None:
        self.items = bytearray()
        self.count = 0
        self.total = 0
        self.closed = 0


class RecipeBuilder:
    """Makes a file's content id from its chunks in order; memory holds the open segments only.

    Closed recipe objects wait for :meth:`take`. Neighbouring holes become one.
    """

    def __init__(self, cutter: int) -> None:
        self._cutter = cutter
        self._levels: list[_Level] = [_Level()]
        self._ready: list[tuple[bytes, bytes]] = []
        self._hole = 0
        self._only: bytes | None = None
        self._finished = False

    def add(self, length: int, content: bytes) -> None:
        """The next ``length`` bytes of the file are this chunk, or :data:`crproto.ids.HOLE`."""
        if length <= 0:
            raise LocalProtocolError("a chunk or hole has at least one byte")
        if content == HOLE:
            self._hole += length
            return
        if self._hole:
            self._push(0, self._hole, HOLE)
            self._hole = 0
        self._push(0, length, content)

    def _push(self, index: int, length: int, content: bytes) -> None:
        level = self._levels[index]
        level.items += ITEM.pack(length, content)
        level.total += length
        level.count += 1
        if level.count >= SEGMENT_MIN and (
            (not content[31] & _BORDER and content != HOLE) or level.count >= SEGMENT_MAX
        ):
            self._close(index)

    def _close(self, index: int) -> None:
        level = self._levels[index]
        data = HEADER.pack(index + 1, self._cutter, level.total, level.count) + level.items
        total = level.total
        level.items = bytearray()
        level.count = level.total = 0
        level.closed += 1
        name = recipe_id(data)
        self._ready.append((name, data))
        if index + 1 == len(self._levels):
            self._levels.append(_Level())
        self._push(index + 1, total, name)

    def take(self) -> list[tuple[bytes, bytes]]:
        """The recipe objects closed since the last call, as (id, bytes), children before parents."""
        ready, self._ready = self._ready, []
        return ready

    def finish(self) -> tuple[bytes, int]:
        """(content id, level) of the whole file; take() once more after it. An empty file has no content."""
        if self._finished:
            raise LocalProtocolError("this recipe was finished before")
        self._finished = True
        if self._hole:
            self._push(0, self._hole, HOLE)
        first = self._levels[0]
        if first.count == 1 and not first.closed and not self._hole:
            _, content = ITEM.unpack(first.items)
            return content, 0
        if not first.count and not first.closed:
            raise LocalProtocolError("an empty file has no content id")
        index = 0
        while True:
            if self._levels[index].count:
                self._close(index)
            above = self._levels[index + 1]
            if above.count == 1 and not above.closed:  # one segment in all on this level: the top
                _, content = ITEM.unpack(above.items)
                return content, index + 1
            index += 1


class Recipe(NamedTuple):
    """One recipe object, checked."""

    level: int
    cutter: int
    total: int  # bytes of the file's part that it describes
    items: memoryview

    def iter_items(self) -> Iterator[tuple[int, bytes]]:
        """(length, id) in order."""
        return ITEM.iter_unpack(self.items)


def parse_recipe(data: Buffer, level: int | None = None) -> Recipe:
    """The recipe in ``data``, every count and length checked; RemoteProtocolError when it is not one.

    ``level`` is what the parent or the entry says it must be: levels strictly fall, so that there are no
    cycles.
    """
    view = memoryview(data)
    if len(view) < HEADER.size + ITEM.size:
        raise RemoteProtocolError("a recipe ends early")
    found, cutter, total, count = HEADER.unpack_from(view)
    if not 1 <= found <= RECIPE_DEPTH or (level is not None and found != level):
        raise RemoteProtocolError(f"a recipe has level {found}" + (f" instead of {level}" if level else ""))
    if cutter >= CUTTERS:
        raise RemoteProtocolError(f"cutter {cutter} is unknown")
    if count > RECIPE_ITEMS or len(view) != HEADER.size + count * ITEM.size:
        raise RemoteProtocolError(f"a recipe of {count} items has {len(view)} bytes")
    items = view[HEADER.size :]
    added = 0
    for length, content in ITEM.iter_unpack(items):
        if not length or (content == HOLE and found > 1):
            raise RemoteProtocolError("an item of a recipe is empty or a hole among recipes")
        if length > RAW_OBJECT and found == 1 and content != HOLE:
            raise RemoteProtocolError(f"a recipe names a chunk of {length} bytes")
        added += length
    if added != total or total > SIZE:
        raise RemoteProtocolError(f"the items of a recipe have {added} bytes in all, its header says {total}")
    return Recipe(found, cutter, total, items)


def walk(
    content: bytes,
    level: int,
    load: Load,
    *,
    size: int | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, int, bytes]]:
    """(offset, length, id) of each chunk or hole of a file, in order.

    ``start`` and ``stop`` leave out chunks that lie wholly outside them, without loading their recipes.
    ``size`` is the file's size if known: it is checked, and saves loading the chunk of a level-0 content just
    to learn it. RemoteProtocolError when a recipe is malformed or does not have the length that names it.
    """
    if level == 0:
        yield 0, len(load(content)) if size is None else size, content
        return
    yield from _walk(content, level, load, size, 0, start, SIZE if stop is None else stop)


def _walk(
    content: bytes, level: int, load: Load, expected: int | None, offset: int, start: int, stop: int
) -> Iterator[tuple[int, int, bytes]]:
    recipe = parse_recipe(load(content), level)
    if expected is not None and recipe.total != expected:
        raise RemoteProtocolError(f"a recipe of {recipe.total} bytes stands where {expected} belong")
    for length, child in ITEM.iter_unpack(recipe.items):
        end = offset + length
        if end > start:
            if offset >= stop:
                return
            if level == 1:
                yield offset, length, child
            else:
                yield from _walk(child, level - 1, load, length, offset, start, stop)
        offset = end


def segments(content: bytes, level: int, load: Load) -> Iterator[bytes]:
    """Ids of the level-1 recipes of a file in order; none for a file of one chunk."""
    if level == 1:
        yield content
    elif level > 1:
        for _, child in parse_recipe(load(content), level).iter_items():
            yield from segments(child, level - 1, load)


def differing_items(old: bytes, new: bytes) -> tuple[tuple[int, int], ...]:
    """(offset, length) of what differs between two recipe objects of equal length, item by item: what a patch
    of the one carries."""
    out: list[tuple[int, int]] = []
    if old[: HEADER.size] != new[: HEADER.size]:
        out.append((0, HEADER.size))
    for at in range(HEADER.size, len(new), ITEM.size):
        if old[at : at + ITEM.size] == new[at : at + ITEM.size]:
            continue
        if out and sum(out[-1]) == at:
            out[-1] = (out[-1][0], out[-1][1] + ITEM.size)
        else:
            out.append((at, ITEM.size))
    return tuple(out)


def new_objects(
    old: tuple[bytes, int] | None, new: tuple[bytes, int], load: Load
) -> Iterator[tuple[bytes, int, int, int]]:
    """(id, CHUNK or RECIPE, raw length, offset in the file) of what ``new`` needs beyond ``old``.

    Never descends into segments that both share, so it costs O(change). Children come before their recipes,
    and chunks in the order of the file. It may also name an object that ``old`` holds somewhere else (far
    from its place, or inside a shared segment), and one id again after many others: a superset, never too
    little. A level-0 chunk's length is that of ``load(id)``, hence ``load`` serves such a chunk too.
    """
    if old == new:
        return
    content, level = new
    if level == 0:
        if old is None or content not in dict(_items_at(old, 0, load)):
            yield content, CHUNK, len(load(content)), 0
        return
    olds: list[bytes] = []
    old_level = 0
    if old is not None:
        old_content, old_level = old
        if old_level > level:
            olds = [name for name, _ in _items_at(old, level, load)]
            old_level = level
        else:
            olds = [old_content]
    yield from _Difference(load)._below(olds, old_level, [(0, content)], level, 0)


def _items_at(root: tuple[bytes, int], level: int, load: Load) -> list[tuple[bytes, int]]:
    """(id, length) of everything at one level under ``root``, which stands at or above it; length 0 for the
    root."""
    found = [(root[0], 0)]
    for at in range(root[1], level, -1):
        found = [
            (name, length)
            for parent, _ in found
            for length, name in parse_recipe(load(parent), at).iter_items()
        ]
    return found


class _Difference:
    """The walk of new_objects: what it has named, and the few old segments it keeps parsed."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._seen: set[bytes] = set()
        self._parsed: dict[bytes, list[bytes]] = {}

    def _first(self, name: bytes) -> bool:
        if name in self._seen:
            return False
        if len(self._seen) >= _SEEN:
            self._seen.clear()
        self._seen.add(name)
        return True

    def _children(self, name: bytes, level: int) -> list[bytes]:
        found = self._parsed.get(name)
        if found is None:
            while len(self._parsed) >= 16:
                del self._parsed[next(iter(self._parsed))]
            found = [child for _, child in parse_recipe(self._load(name), level).iter_items()]
            self._parsed[name] = found
        return found

    def _below(
        self, olds: list[bytes], old_level: int, news: list[tuple[int, bytes]], level: int, offset: int
    ) -> Iterator[tuple[bytes, int, int, int]]:
        """Compare two runs of nodes; ``olds`` stand at ``old_level`` <= ``level`` of ``news``.

        A new node that is none of the olds is compared with the old nodes at its place: as many after the
        last shared node as it is itself, and two to each side, none of which the new run shares.
        """
        place = {name: index for index, name in enumerate(olds)} if old_level == level else {}
        kept = {name for _, name in news}
        expected = 0
        for length, name in news:
            at = place.get(name)
            if at is not None:
                expected = at + 1
                offset += length
                continue
            if self._first(name):
                if level == 0:
                    if name != HOLE:
                        yield name, CHUNK, length, offset
                else:
                    yield from self._open(olds, old_level, expected, kept, (name, length), level, offset)
            expected += 1
            offset += length

    def _open(
        self,
        olds: list[bytes],
        old_level: int,
        expected: int,
        kept: set[bytes],
        node: tuple[bytes, int],
        level: int,
        offset: int,
    ) -> Iterator[tuple[bytes, int, int, int]]:
        name, length = node
        data = self._load(name)
        recipe = parse_recipe(data, level)
        if length and recipe.total != length:  # the top has no parent that says how long it is
            raise RemoteProtocolError(f"a recipe of {recipe.total} bytes stands where {length} belong")
        if old_level < level:  # the old file is not as deep: its top waits for its own level
            below, below_level = olds, old_level
        else:
            below_level = level - 1
            near = [
                old for old in olds[max(0, expected - _EXPAND) : expected + _EXPAND + 1] if old not in kept
            ]
            below = [child for old in near for child in self._children(old, level)]
        yield from self._below(below, below_level, list(recipe.iter_items()), level - 1, offset)
        yield name, RECIPE, len(data), offset
