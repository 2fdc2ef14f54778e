"""The chunks that a file had in the version before, for cutting it again."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import overload

from crproto import content
from crproto.ids import HOLE
from crproto.recut import BLOCK, OldChunk

AT_ONCE = 200_000  # chunks that are simply a list: 12 GiB of an average file
LOADED = 32  # segments held of a larger one: more than recut looks ahead


def chunks_of(recipe: bytes, hashes: bytes) -> list[OldChunk]:
    """Those of one segment. `recipe` is of level 1, `hashes` its chunks' block hashes one behind the other.
    RemoteProtocolError when it is no recipe."""
    out, at = [], 0
    for length, name in content.parse_recipe(recipe, 1).iter_items():
        end = at if name == HOLE else at + 8 * -(-length // BLOCK)
        out.append(OldChunk(length, name, hashes[at:end]))
        at = end
    return out


class Segmented(Sequence[OldChunk]):
    """All chunks of a file, a segment of it in memory at a time: a disk of a machine has millions.

    Args:
        segments: the ids of its level-1 recipes in order, with how many chunks each has.
        load: the chunks of one. What it raises comes out of an access.
    """

    def __init__(
        self, segments: Iterable[tuple[bytes, int]], load: Callable[[bytes], list[OldChunk]]
    ) -> None:
        known = list(segments)
        self._names = [name for name, _ in known]
        self._ends = list(accumulate(count for _, count in known))
        self._load = load
        self._loaded: OrderedDict[int, list[OldChunk]] = OrderedDict()
        self._last: tuple[int, list[OldChunk]] = (0, [])  # the first index of the segment used last, and it

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> OldChunk: ...

    @overload
    def __getitem__(self, place: slice) -> list[OldChunk]: ...

    def __getitem__(self, place: int | slice) -> OldChunk | list[OldChunk]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        start, chunks = self._last
        if not start <= place < start + len(chunks):
            if not 0 <= place < len(self):
                raise IndexError(place)
            start, chunks = self._last = self._segment(bisect_right(self._ends, place))
        return chunks[place - start]

    def _segment(self, number: int) -> tuple[int, list[OldChunk]]:
        chunks = self._loaded.pop(number, None)
        if chunks is None:
            chunks = self._load(self._names[number])
            if len(self._loaded) >= LOADED:
                self._loaded.popitem(last=False)
        self._loaded[number] = chunks
        return (self._ends[number - 1] if number else 0), chunks


__all__ = ["AT_ONCE", "Segmented", "chunks_of"]
