"""Cutting a changed file again against its known chunks, without having its old bytes.

What is known of the old version is, for each chunk, its length, its id, and a seeded xxh3-64 of each 4 KiB
*counted from the chunk's own start*. Counting from the chunk's start makes the hashes travel with the chunk:
after an insertion every later chunk is checked at its shifted place with the hashes it always had, and a
file's hashes are those of its chunks in every version.

Three modes. *Verifying*: chunk after chunk is read and its blocks compared; equal blocks prove (as far as a
secret 64-bit hash proves) that the chunk stands where it stood. *In place*: of the first chunk that differs
the last block still stands where it stood, or the first or last block of the next one does: then nothing is
shifted, the old borders are kept, and the chunk is a patch of the old one. *Cutting*: else the rolling hash
cuts new chunks from its start on, until one ends on an old border or has the id of a later old chunk (an
insertion or deletion: from there on everything is shifted). Then verifying goes on. So a change costs one
pass of xxh3 and cutting of little more than the stretch that differs, and a changed page is one patch,
whatever the rolling hash would say of the borders around it.

An old border comes first because a page that became a copy of a later one is no insertion; and an id that the
old file has more than once is no landmark, because a stretch of zeros proves nothing about what follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import xxhash

from crproto.chunking import Cutter
from crproto.ids import HOLE, Buffer, chunk_id
from crproto.limits import PATCH_PARTS

BLOCK = 4096
_WINDOW = 1 << 20  # bytes verified with one read
_PATCH_SHARE = 4  # a patch is offered when it is smaller than 3/4 of the chunk
_AHEAD = (
    8192  # old chunks ahead among which landmarks are looked for: 128 MiB of an average file; bounds memory
)

Reader = Callable[[int, int], memoryview]
"""(offset, length) -> bytes; shorter than asked for only when the file ended there (it shrank meanwhile)."""


class OldChunk(NamedTuple):
    """A chunk of the version before: length in bytes, id, 8 bytes of xxh3 for each 4 KiB of it (b'' =
    unknown)."""

    length: int
    id: bytes
    hashes: bytes


class Piece(NamedTuple):
    """A chunk of the new version.

    `data` is None for a chunk that the old version had, here or elsewhere; else a view that is valid until
    the next piece is taken. `base`, `ranges`: the chunk equals `base` outside the (offset, length) ranges,
    which cover what it grew by.
    """

    offset: int
    length: int
    id: bytes
    hashes: bytes
    data: memoryview | None
    base: bytes | None = None
    ranges: tuple[tuple[int, int], ...] = ()


_SLICES = [slice(at, at + BLOCK) for at in range(0, 64 * BLOCK, BLOCK)]


def block_hashes(data: Buffer, seed: int) -> bytes:
    """Seeded xxh3-64 of each 4 KiB of `data`, 8 bytes each, big-endian; the last block may be short."""
    view = memoryview(data)
    count = -(-len(view) // BLOCK)
    slices = _SLICES if count <= 64 else [slice(at, at + BLOCK) for at in range(0, len(view), BLOCK)]
    # Nested maps: the loop over blocks runs in C, which halves the time of a window.
    return b"".join(map(xxhash.xxh3_64_digest, map(view.__getitem__, slices[:count]), repeat(seed)))


def recut(
    old: Sequence[OldChunk], size: int, read: Reader, cutter: Cutter, seed: int, old_size: int | None = None
) -> Iterator[Piece]:
    """The chunks of a file of `size` bytes whose version before had the chunks `old`, which are `old_size`
    bytes.

    The pieces cover the file without gap or overlap, in order; where `read` comes back short the cover ends
    early (the caller sees that the file changed under it and reads again). What `read` returned is not used
    any more once it is called again.
    """
    walk = _Walk(old, size, read, cutter, seed)
    # The old end was no content-defined border: a file that grew is cut from its last chunk on.
    before = old_size if old_size is not None else sum(chunk.length for chunk in old)
    stop = len(old) - 1 if size > before else len(old)
    while walk.at < size and not walk.short:
        yield from walk.verify(stop)
        if walk.at < size and (piece := walk.in_place(stop)) is not None:
            yield piece
        elif walk.at < size:
            yield from walk.cut()


class _Window:
    """What was read last. Asked for a part of that again, it is not read again: where many pages changed,
    each change would have the rest of its window read anew."""

    def __init__(self, read: Reader) -> None:
        self._read = read
        self._at = 0
        self._view = memoryview(b"")

    def __call__(self, at: int, length: int) -> memoryview:
        start = at - self._at
        if start < 0 or start + length > len(self._view):
            self._view, self._at, start = self._read(at, length), at, 0
        return self._view[start : start + length]

    def left(self, at: int) -> int:
        """Bytes from `at` on that need not be read."""
        return self._at + len(self._view) - at if at >= self._at else 0


class _Walk:
    """Where recut is: the same place in the new and in the old file."""

    def __init__(self, old: Sequence[OldChunk], size: int, read: Reader, cutter: Cutter, seed: int) -> None:
        self.old = old
        self.size = size
        self.read = _Window(read)
        self.cutter = cutter
        self.seed = seed
        self.at = 0  # offset in the new file
        self.index = 0  # the old chunk that is next ...
        self.old_at = 0  # ... and its offset in the old file
        self.shift = 0  # new offset minus old offset of what stands unchanged
        self.short = False
        self._known: dict[bytes, int] = {}  # id -> its first place in the old file, as far as indexed
        self._twice: set[bytes] = set()
        self._indexed = 0

    def verify(self, stop: int) -> Iterator[Piece]:
        """Unchanged chunks from `index` on; ends at the first that differs, at old chunk `stop`, or at the
        end."""
        digest, seed, seeds = xxhash.xxh3_64_digest, self.seed, repeat(self.seed)
        while self.index < stop:
            last, wanted = self.index, 0
            left = self.read.left(self.at)
            most = left if left >= self.old[self.index].length else _WINDOW
            while last < stop and (not wanted or wanted + self.old[last].length <= most):
                wanted += self.old[last].length
                last += 1
            if self.old[self.index].id == HOLE:
                return
            view = self.read(self.at, min(wanted, self.size - self.at))
            within = 0
            for length, name, hashes in self.old[self.index : last]:
                end = within + length
                if end > len(view):
                    return
                part = view[within:end]
                if length <= BLOCK:
                    found = digest(part, seed)
                elif length <= 64 * BLOCK:
                    found = b"".join(
                        map(digest, map(part.__getitem__, _SLICES[: -(-length // BLOCK)]), seeds)
                    )
                else:
                    found = block_hashes(part, seed)
                if found != hashes:  # unknown hashes and holes are b''
                    return
                within = end
                at = self.at
                self.at = at + length
                self.old_at += length
                self.index += 1
                yield Piece(at, length, name, hashes, None)

    def in_place(self, stop: int) -> Piece | None:
        """The chunk that differs, with the borders that it had, if what follows the change is not shifted."""
        if self.index >= stop or self.old_at + self.shift != self.at:
            return None
        here = self.old[self.index]
        after = self.old[self.index + 1] if self.index + 1 < len(self.old) else None
        if after is not None and not after.hashes:
            after = None  # a hole, of any length: it says nothing, and what is there now is not read for it
        if not here.hashes or self.at + here.length > self.size:
            return None
        wanted = min(here.length + (after.length if after is not None else 0), self.size - self.at)
        view = self.read(self.at, wanted)
        if len(view) < wanted:
            return None  # it shrank meanwhile: cutting finds the end
        stands = self.at + here.length == self.size or self._block(here, -1, view)
        if not stands and after is not None:
            rest = view[here.length :]
            stands = self._block(after, 0, rest) or self._block(after, -1, rest)
        if not stands:
            return None
        piece = self._piece(view[: here.length])
        self.at += here.length
        self.old_at += here.length
        self.index += 1
        return piece

    def _block(self, chunk: OldChunk, number: int, view: memoryview) -> bool:
        """Whether the first (0) or last (-1) block of an old chunk is in `view`, which begins as it did."""
        start = 0 if number == 0 else (chunk.length - 1) // BLOCK * BLOCK
        end = min(start + BLOCK, chunk.length)
        wanted = chunk.hashes[:8] if number == 0 else chunk.hashes[-8:]
        return end <= len(view) and xxhash.xxh3_64_digest(view[start:end], self.seed) == wanted

    def cut(self) -> Iterator[Piece]:
        """New chunks from `at` on until the old ones fit again."""
        # An edit in place ends within a chunk or two: a small first window, then larger ones.
        window = 2 * self.cutter.max_size
        while self.at < self.size:
            wanted = min(window, self.size - self.at)
            view = self.read(self.at, wanted)
            self.short = len(view) < wanted
            within = 0
            for length in self.cutter.lengths(view, self.short or self.at + wanted >= self.size):
                data = view[within : within + length]
                within += length
                piece = self._piece(data)
                self.at += length
                known = self._known.get(piece.id, -1)
                fits = self._pass_over()
                if not fits and known >= self.index and piece.id not in self._twice:
                    self._jump(known + 1)
                    fits = True
                yield piece
                if fits:
                    return
            if self.short:
                return
            window = min(window * 2, 16 * self.cutter.max_size)

    def _piece(self, data: memoryview) -> Piece:
        """What is said of a newly cut chunk at `at`."""
        self._look_ahead()
        name = chunk_id(data)
        length = len(data)
        known = self._known.get(name)
        if known is not None and self.old[known].length == length and self.old[known].hashes:
            return Piece(self.at, length, name, self.old[known].hashes, None)
        hashes = block_hashes(data, self.seed)
        if known is not None:
            return Piece(self.at, length, name, hashes, None)
        if self.index < len(self.old) and self.old_at + self.shift == self.at:
            base = self.old[self.index]
            if base.hashes:
                ranges = _ranges(base, hashes, length)
                changed = sum([part for _, part in ranges])
                if changed * _PATCH_SHARE < length * (_PATCH_SHARE - 1) and len(ranges) <= PATCH_PARTS:
                    return Piece(self.at, length, name, hashes, data, base.id, ranges)
        return Piece(self.at, length, name, hashes, data)

    def _pass_over(self) -> bool:
        """Pass over the old chunks that the new one replaced; True when it ended where an old one did."""
        wanted = self.at - self.shift
        while self.index < len(self.old) and self.old_at < wanted:
            self.old_at += self.old[self.index].length
            self.index += 1
        return self.old_at == wanted and self.index < len(self.old)

    def _jump(self, index: int) -> None:
        """The chunk just passed is the old one before `index`: the shift is what lies between the two
        places."""
        while self.index < index:
            self.old_at += self.old[self.index].length
            self.index += 1
        self.shift = self.at - self.old_at

    def _look_ahead(self) -> None:
        """Index the old chunks up to some way ahead."""
        end = min(len(self.old), self.index + _AHEAD)
        if self._indexed >= end or (end < len(self.old) and end - self._indexed < _AHEAD // 4):
            return
        start = max(self._indexed, self.index - _AHEAD)
        if len(self._known) > 4 * _AHEAD:  # far behind: forget, so that memory does not grow with the file
            self._known.clear()
            self._twice.clear()
            start = max(0, self.index - _AHEAD)
        for place in range(start, end):
            name = self.old[place].id
            if self._known.setdefault(name, place) != place:
                self._twice.add(name)
        self._known.pop(HOLE, None)
        self._indexed = end


def _ranges(base: OldChunk, hashes: bytes, length: int) -> tuple[tuple[int, int], ...]:
    """What differs, as (offset, length): blocks whose hash differs, joined, and everything past the base's
    end."""
    out: list[tuple[int, int]] = []
    for at in range(0, length, BLOCK):
        where = at // BLOCK * 8
        size = min(BLOCK, length - at)
        # A block that was short in the base, or is short now, has another hash and is sent whole.
        if at + size <= base.length and base.hashes[where : where + 8] == hashes[where : where + 8]:
            continue
        if out and out[-1][0] + out[-1][1] == at:
            out[-1] = (out[-1][0], out[-1][1] + size)
        else:
            out.append((at, size))
    return tuple(out)
