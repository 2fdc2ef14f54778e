"""Reading one path of the source into an entry and the objects it needs. Runs in the capture thread.

Nothing is followed: the parent directory is opened beneath its root (openat2), the last component with
O_NOFOLLOW, and what was opened must be what lstat saw (rule 56). Content counts only when it is a state the
file really had: the fingerprint is equal before and after, and a file touched less than 50 ms ago is read
twice, or, if it is large, a little later (rule 52).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import NamedTuple

from crnode.capture.attributes import group_name, read_extra, user_name
from crnode.capture.earlier import AT_ONCE, Segmented, chunks_of
from crnode.capture.roots import RESTORING, OpenRoots, OwnPlaces
from crnode.platform.files import open_beneath
from crnode.store.reader import Fingerprint
from crnode.store.store import Damaged, Missing
from crproto import chunking, content, delta
from crproto.content import ITEM
from crproto.entries import DIRECTORY, FILE, NOTHING, SYMLINK, Entry, Extra, entry_from_wire
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE, chunk_id
from crproto.limits import PATCH_PARTS
from crproto.recut import BLOCK, OldChunk, block_hashes, recut

NAMED_MOST = 4096  # files of several names of which it is known what they had
SMALL = 32 << 10  # bytes up to which a file is one chunk
YOUNG_NS = 50_000_000  # a file that changed within this time is read twice
WAIT_BYTES = 64 << 20  # ... or, from this size on, not before it is over: a second reading takes longer
ATTEMPTS = 3
BUFFER_BYTES = 1 << 20  # that a file is read into, or more where more is asked for
_PATCH_MINIMUM = 4096  # chunks below this are not worth a patch
_PATCH_SHARE = 2  # a recipe travels as a patch that is smaller than half of it


class Patch(NamedTuple):
    """A chunk as a change of another one: what a target that holds `base` needs."""

    base: bytes
    ranges: tuple[tuple[int, int], ...]


Spill = Callable[[dict[bytes, bytes], dict[bytes, Patch]], None]
"""Takes chunks (id -> bytes) out of memory: to the source's own store, or to the targets, to which the
patches among them suffice."""


@dataclass
class Fresh:
    """What reading found that targets may not have."""

    chunks: dict[bytes, bytes] = field(default_factory=dict)  # bytes of new chunks, up to the budget
    patches: dict[bytes, Patch] = field(default_factory=dict)
    recipes: dict[bytes, bytes] = field(default_factory=dict)  # id -> bytes, children before parents
    blocks: dict[bytes, bytes] = field(default_factory=dict)  # segment id -> block hashes of its chunks
    held: int = 0  # bytes in `chunks`
    new_bytes: int = 0  # bytes of all chunks that are not in the version before

    def hold(self, name: bytes, data: bytes | memoryview, budget: int, spill: Spill | None) -> None:
        """Keep a new chunk in memory while the budget lasts; with `spill` what is held goes there then (a
        spooling set, rule 55, or what goes ahead)."""
        size = len(data)
        self.new_bytes += size
        if name in self.chunks:
            return
        if self.held + size > budget and spill is not None and self.chunks:
            self.hand_over(spill)
        if self.held + size <= budget or spill is not None:
            self.chunks[name] = bytes(data)
            self.held += size

    def hand_over(self, spill: Spill) -> None:
        """What is held goes to `spill`."""
        spill(self.chunks, self.patches)
        self.held -= sum(map(len, self.chunks.values()))
        self.chunks = {}


class Own(Enum):
    """What a directory is that crnode itself put into a source's tree."""

    WORKSPACE = "workspace"
    DESTINATION = "destination"


class Gone(Exception):
    """There is nothing at this path (any more)."""


class Unreadable(Exception):
    """Something is there that cannot be part of an image. `args[0]` is the reason, for the status."""


class Torn(Exception):
    """The file kept changing while it was read."""


class Taken(NamedTuple):
    """One captured path."""

    entry: Entry
    fingerprint: Fingerprint


Load = Callable[[bytes], bytes]
OldChunks = tuple[Sequence[OldChunk], int | None]  # of the version before, and its cutter


class PathReader:
    """Reads paths of one set. One thread at a time.

    Args:
        roots: the set's open roots.
        load: reads a recipe of the source's own store.
        blocks: block hashes of a segment, b'' when unknown.
        seed: the node's secret xxh3 seed (rule 57).
        pages: whether a path is a file of fixed pages.
        limit: largest logical file size in bytes that is taken.
        now_ns: wall clock, to tell young files.
        budget: how many bytes of new chunks may be kept in memory.
        own: recognises what crnode itself put into the tree.
        sleep: waits, in seconds.
    """

    def __init__(
        self,
        roots: OpenRoots,
        load: Load,
        blocks: Callable[[bytes], bytes],
        seed: int,
        pages: Callable[[bytes], bool],
        limit: int,
        now_ns: Callable[[], int],
        budget: int,
        own: OwnPlaces,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.own = own
        self._sleep = sleep
        self._destinations: set[bytes] = set()  # of this very set, met inside its own tree
        self.roots = roots
        self.load = load
        self.blocks = blocks
        self.seed = seed
        self.pages = pages
        self.limit = limit
        self.now_ns = now_ns
        self.budget = budget
        self.spill: Spill | None = None  # where new chunks go when there are `spill_bytes` of them
        self.spill_bytes = budget
        self._fetched: OldChunks | None = None  # of the file that is read now
        self.earlier = Fresh()
        # What files of several names had, of this round of capture: a large one is read once for all of them.
        self._named: dict[Fingerprint, tuple[bytes | None, int]] = {}
        self.mapped: set[bytes] = set()  # files whose bytes may change while their times do not: read twice
        self._devices: dict[int, int] = {}  # open root -> its file system
        self._parent: tuple[bytes, int] | None = None
        self._parent_info: os.stat_result | None = None

    def begin(self) -> None:
        """A round of capture begins."""
        self._named.clear()

    def close(self) -> None:
        """Forget the parent directory that is kept open between paths."""
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _open_parent(self, head: bytes, root_fd: int, below: bytes) -> int:
        if self._parent is not None and self._parent[0] == head:
            return self._parent[1]
        self.close()
        fd = open_beneath(root_fd, below, os.O_RDONLY | os.O_DIRECTORY)
        self._parent = (head, fd)
        self._parent_info = os.fstat(fd)
        return fd

    def stat(self, path: bytes) -> os.stat_result:
        """lstat beneath the root. Raises Gone."""
        try:
            root_fd, below = self.roots.resolve(path)
            if not below:
                return os.fstat(root_fd)
            head, _, name = below.rpartition(b"/")
            return os.lstat(name, dir_fd=self._open_parent(path[: len(path) - len(name)], root_fd, head))
        except OSError as error:
            raise _reason(error) from error

    def own_place(self, path: bytes) -> Own | None:
        """What of crnode's own the directory at `path` is, if anything. Raises Gone, Unreadable."""
        root_fd, below = self.roots.resolve(path)
        head, _, name = below.rpartition(b"/")
        if not name:
            return None
        try:
            parent = self._open_parent(path[: len(path) - len(name)], root_fd, head)
        except OSError as error:
            raise _reason(error) from error
        if self.own.workspace(parent, name):
            return Own.WORKSPACE
        if self.own.destination(parent, name):
            self._destinations.add(path)
            return Own.DESTINATION
        self._destinations.discard(path)
        return None

    def holds_restores(self, path: bytes) -> bool:
        """Whether the folder at `path`, which has crnode's own name, has nothing in it but what a restore to
        the set's place writes first. Raises Gone, Unreadable."""
        root_fd, below = self.roots.resolve(path)
        try:
            fd = open_beneath(root_fd, below, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise _reason(error) from error
        try:
            return all(name.startswith(RESTORING) for name in os.listdir(fd))
        except OSError as error:
            raise _reason(error) from error
        finally:
            os.close(fd)

    def workspace_above(self, path: bytes) -> bytes | None:
        """The workspace that `path` lies in. Its mark is written after the directory appears, so that what is
        in it may be met first. Raises Gone, Unreadable."""
        if b".crnode-" not in path:  # nearly always, and this is asked for every path
            return None
        parts = path.split(b"/")
        for depth, part in enumerate(parts[:-1], 1):
            above = b"/".join(parts[:depth])
            if part.startswith(b".crnode-") and self.own_place(above) is Own.WORKSPACE:
                return above
        return None

    def inside_destination(self, path: bytes) -> bool:
        """Whether `path` lies in a destination of this very set that was met before."""
        return any(path.startswith(place + b"/") for place in self._destinations)

    def take(
        self,
        path: bytes,
        old: Entry | None,
        fresh: Fresh,
        info: os.stat_result | None = None,
        path_checked: bool = False,
    ) -> Taken:
        """The entry at `path` as it is now; new objects go into `fresh`.

        `old` is the version before (any path that had the same inode will do): its recipe says what need not
        be
        cut again. `info` is what :meth:`stat` has just said of it, `path_checked` that an image can have such
        a path. Raises Gone, Unreadable or Torn.
        """
        self.earlier = fresh  # what this very capture found before is not in the store yet
        for attempt in range(ATTEMPTS):
            try:
                here = info if info is not None and not attempt else self.stat(path)
                taken = self._take(path, here, old, fresh, last=attempt == ATTEMPTS - 1)
                # What no peer would take must be in no image.
                entry_from_wire(taken.entry, path_checked=path_checked and path != b"")
                return taken
            except RemoteProtocolError as error:
                raise Unreadable(f"its metadata is beyond what can be replicated: {error}") from error
            except _Changed:
                continue
            except OSError as error:
                raise _reason(error) from error
        raise Torn(path)

    def _take(
        self, path: bytes, info: os.stat_result, old: Entry | None, fresh: Fresh, *, last: bool
    ) -> Taken:
        root_fd, below = self.roots.resolve(path)
        if info.st_dev != self._device(root_fd):
            raise Unreadable(
                "another file system is mounted here; name it as a path of its own to protect it"
            )
        if stat.S_ISREG(info.st_mode):
            return self._file(path, info, old, fresh, last=last)
        if stat.S_ISDIR(info.st_mode):
            fd = open_beneath(root_fd, below, os.O_RDONLY | os.O_DIRECTORY)
            try:
                info = os.fstat(fd)
                extra = read_extra(fd, info, None)
                with os.scandir(fd) as listing:  # where it cannot be listed, somebody has to know
                    next(listing, None)
            finally:
                os.close(fd)
            return Taken(_entry(path, DIRECTORY, info, 0, None, 0, extra), fingerprint_of(info))
        if stat.S_ISLNK(info.st_mode):
            head, _, name = below.rpartition(b"/")
            target = os.readlink(name, dir_fd=self._open_parent(path[: len(path) - len(name)], root_fd, head))
            if len(target) > 4095:
                raise Unreadable("the link's target is longer than 4095 bytes")
            extra = Extra(target, link=self._link(path, info))
            return Taken(_entry(path, SYMLINK, info, 0, None, 0, extra, mode=0o777), fingerprint_of(info))
        raise Unreadable(f"a {_kind(info.st_mode)} is not replicated")

    def _device(self, root_fd: int) -> int:
        """The file system of an open root, which is the same while it is open."""
        found = self._devices.get(root_fd)
        if found is None:
            found = self._devices[root_fd] = os.fstat(root_fd).st_dev
        return found

    def _link(self, path: bytes, info: os.stat_result) -> bytes | None:
        """The name of the group of hard links that an inode with several names is; within one set's path."""
        if info.st_nlink < 2:
            return None
        return self.roots.root_index(path).to_bytes(2, "big") + info.st_ino.to_bytes(8, "big")

    # -- regular files

    def _file(
        self, path: bytes, info: os.stat_result, old: Entry | None, fresh: Fresh, *, last: bool
    ) -> Taken:
        if info.st_size > self.limit:
            raise Unreadable(
                f"its size of {info.st_size} bytes is over the set's limit of {self.limit} bytes"
            )
        root_fd, below = self.roots.resolve(path)
        head, _, name = below.rpartition(b"/")
        parent = self._open_parent(path[: len(path) - len(name)], root_fd, head)
        if info.st_nlink > 1 and self._parent_info is not None and _planted(info, self._parent_info):
            raise Unreadable(
                "it is a hard link to a file of another owner, in a folder in which others than root may"
                " make links; make it a copy, or take their right to write from the folder"
            )
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=parent)
        try:
            before = self._settled(fd, path, partial(self._old_chunks, old, fresh))
            if not stat.S_ISREG(before.st_mode) or (before.st_dev, before.st_ino) != (
                info.st_dev,
                info.st_ino,
            ):
                raise _Swapped
            link = self._link(path, before)  # of the moment of the fingerprint: a name may have come since
            extra = read_extra(fd, before, link)
            young = self._age_ns(before) < YOUNG_NS or path in self.mapped
            named: tuple[bytes | None, int] = (None, 0)
            data: bytes | None = None
            trial: Fresh | None = None
            print_ = fingerprint_of(before)
            again = self._named.get(print_) if link is not None and not young else None
            if again is not None:
                named = again
            elif 0 < before.st_size <= SMALL and not _sparse(before):
                data = _small(fd, before.st_size, twice=young)
                named = chunk_id(data), 0
            elif before.st_size:
                if self.spill is not None and fresh.chunks and fresh.held > self._most // 2:
                    fresh.hand_over(self.spill)  # else what is left for this one makes small parts of it
                trial = Fresh(held=fresh.held)
                named = self._large(path, fd, before, old, trial, twice=young)
            if not _same(os.fstat(fd), before):
                raise _Changed
        except _Swapped:
            raise
        except _Changed:
            if not last:
                raise
            # It never settles: what was read is sent and marked, never called clean (rule 52).
            return self._fuzzy(path, fd, old, fresh)
        finally:
            self._fetched = None
            os.close(fd)
        if data is not None and named[0] is not None:
            fresh.hold(named[0], data, self._most, self.spill)
        elif trial is not None:
            _merge(fresh, trial)
            if link is not None and not young:
                if len(self._named) >= NAMED_MOST:
                    self._named.clear()
                self._named[print_] = named
        entry = _entry(path, FILE, before, before.st_size, named[0], named[1], extra)
        return Taken(entry, print_)

    @property
    def _most(self) -> int:
        """Bytes of new chunks that are kept in memory."""
        return self.budget if self.spill is None else self.spill_bytes

    def _age_ns(self, info: os.stat_result) -> int:
        return self.now_ns() - info.st_ctime_ns

    def _settled(self, fd: int, path: bytes, known: Callable[[], OldChunks]) -> os.stat_result:
        """What fstat(2) says of the file once it is old enough to be read once, if that is worth waiting
        for; what is `known` of it is fetched meanwhile. What is written meanwhile moves its times, and counts
        as written before it was read."""
        info = os.fstat(fd)
        if info.st_size < WAIT_BYTES or path in self.mapped:
            return info
        age = self._age_ns(info)
        if not 0 <= age < YOUNG_NS:
            return info
        self._fetched = known()
        left = YOUNG_NS - self._age_ns(info)
        if left > 0:
            self._sleep(min(left, YOUNG_NS) / 1e9)
        return os.fstat(fd)

    def _fuzzy(self, path: bytes, fd: int, old: Entry | None, fresh: Fresh) -> Taken:
        info = os.fstat(fd)
        link = self._link(path, info)
        size = info.st_size  # append-only growth is cut at the size first seen
        trial = Fresh(held=fresh.held)
        previous = self._old_chunks(old, fresh)[1]
        number = chunking.choose_cutter(size, pages=self.pages(path), previous=previous)
        builder = content.RecipeBuilder(number)
        sink = _Sink(trial, self._most, self.spill, builder)
        if _sparse(info):
            self._sparse_file(fd, size, number, sink)
        else:
            self._cut(fd, 0, size, number, sink)
        total = sink.total
        named: tuple[bytes | None, int] = sink.finish() if total else (None, 0)
        _merge(fresh, trial)
        entry = _entry(path, FILE, info, total, named[0], named[1], read_extra(fd, info, link, fuzzy=True))
        # A fingerprint that matches nothing: the next scan reads this file again.
        return Taken(entry, fingerprint_of(info)._replace(ctime_ns=0))

    def _large(
        self, path: bytes, fd: int, info: os.stat_result, old: Entry | None, fresh: Fresh, *, twice: bool
    ) -> tuple[bytes, int]:
        size = info.st_size
        known, previous = self._fetched or self._old_chunks(old, fresh)
        number = chunking.choose_cutter(size, pages=self.pages(path), previous=previous)
        builder = content.RecipeBuilder(number)
        sink = _Sink(fresh, self._most, self.spill, builder)
        if known and previous == number and old is not None and old.content is not None:
            load = self._loader(fresh)
            sink.before = dict(_segments_at(old.content, old.level, load)), load
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        if _sparse(info):
            self._sparse_file(fd, size, number, sink)
        elif known and previous == number:
            assert old is not None
            self._recut(fd, size, known, number, sink, old.size)
        else:
            self._cut(fd, 0, size, number, sink)
        if sink.total != size:
            raise _Changed
        named = sink.finish()
        if twice:
            self._same_again(fd, size, named, fresh)
        return named

    def _loader(self, fresh: Fresh) -> Load:
        """Recipes of this capture, which are in no store yet, and of those before."""

        def load(name: bytes) -> bytes:
            return fresh.recipes.get(name) or self.earlier.recipes.get(name) or self.load(name)

        return load

    def _old_chunks(self, old: Entry | None, fresh: Fresh) -> OldChunks:
        """(chunks of the version before with their block hashes, its cutter); ([], None) when they are not
        known: the file is then cut as if it were new."""
        if old is None or old.level == 0 or old.content is None:
            return [], None

        load = self._loader(fresh)

        def chunks(segment: bytes) -> list[OldChunk]:
            hashes = fresh.blocks.get(segment) or self.earlier.blocks.get(segment) or self.blocks(segment)
            return chunks_of(load(segment), hashes)

        def later(segment: bytes) -> list[OldChunk]:
            try:
                return chunks(segment)
            except (Missing, Damaged) as error:
                raise _Changed from error  # it was there a moment ago: the file is begun anew

        out: list[OldChunk] = []
        segments: list[tuple[bytes, int]] = []
        count = 0
        try:
            cutter = content.parse_recipe(load(old.content)).cutter
            for segment in _segments(old.content, old.level, load):
                if count <= AT_ONCE:
                    some = chunks(segment)
                    out += some
                    segments.append((segment, len(some)))
                else:
                    out.clear()
                    segments.append((segment, len(content.parse_recipe(load(segment), 1).items) // ITEM.size))
                count += segments[-1][1]
        except (Missing, Damaged):
            return [], None
        return (out if count <= AT_ONCE else Segmented(segments, later)), cutter

    def _recut(
        self, fd: int, size: int, known: Sequence[OldChunk], number: int, sink: _Sink, old_size: int
    ) -> None:
        read = _Buffer(fd).read
        for piece in recut(known, size, read, chunking.make_cutter(number), self.seed, old_size):
            sink.add(piece.length, piece.id, piece.hashes, piece.data)
            if piece.base is not None and piece.length >= _PATCH_MINIMUM:
                sink.fresh.patches[piece.id] = Patch(piece.base, piece.ranges)

    def _cut(self, fd: int, start: int, length: int, number: int, sink: _Sink) -> None:
        read = _Buffer(fd, start).read
        for _, size, view in chunking.cut_stream(read, length, chunking.make_cutter(number)):
            sink.add(size, chunk_id(view), block_hashes(view, self.seed), view)

    def _sparse_file(self, fd: int, size: int, number: int, sink: _Sink) -> None:
        for start, end in _data_ranges(fd, size):
            if start > sink.total:
                sink.add_hole(start - sink.total)
            self._cut(fd, start, end - start, number, sink)
            if sink.total != end:
                return
        if sink.total < size:
            sink.add_hole(size - sink.total)

    def _same_again(self, fd: int, size: int, named: tuple[bytes, int], fresh: Fresh) -> None:
        """Read a young file a second time and compare its blocks: two equal reads prove the state between
        them."""
        if named[1] == 0:
            if chunk_id(_pread(fd, size, 0)) != named[0]:
                raise _Changed
            return

        load = self._loader(fresh)
        at = 0
        for segment in _segments(named[0], named[1], load):
            known = fresh.blocks.get(segment) or self.earlier.blocks.get(segment) or self.blocks(segment)
            place = 0
            items = list(content.parse_recipe(load(segment)).iter_items())
            run: list[tuple[int, int, bytes]] = []
            for length, name in items:
                if name == HOLE:
                    at += length
                    continue
                end = place + 8 * -(-length // BLOCK)
                run.append((at, length, known[place:end]))
                place = end
                at += length
            for start, length, expected in run:
                if block_hashes(_pread(fd, length, start), self.seed) != expected:
                    raise _Changed


class _Changed(Exception):
    """The file is another one now, or changed while it was read."""


class _Swapped(_Changed):
    """What was opened is not what lstat saw: never captured, not even as fuzzy (rule 56)."""


class _Sink:
    """Takes the chunks of one file in order: recipe, block hashes of each segment, bytes within the
    budget."""

    def __init__(
        self, fresh: Fresh, budget: int, spill: Spill | None, builder: content.RecipeBuilder
    ) -> None:
        self.fresh = fresh
        self.budget = budget
        self.spill = spill
        self.builder = builder
        self.total = 0
        # Offset -> id of the level-1 recipes of the version before, and how to load them.
        self.before: tuple[dict[int, bytes], Load] | None = None
        self._hashes: list[bytes] = []
        self._recipe_at = 0

    def add(self, length: int, name: bytes, hashes: bytes, data: memoryview | None) -> None:
        self.total += length
        if data is not None:
            self.fresh.hold(name, data, self.budget, self.spill)
        self._item(length, name, hashes)

    def add_hole(self, length: int) -> None:
        self.total += length
        self._item(length, HOLE, b"")

    def _item(self, length: int, name: bytes, hashes: bytes) -> None:
        self._hashes.append(hashes)
        self.builder.add(length, name)
        self._drain()

    def _drain(self) -> None:
        for name, data in self.builder.take():
            self.fresh.recipes[name] = data
            recipe = content.parse_recipe(data)
            if recipe.level == 1:
                count = len(recipe.items) // content.ITEM.size
                self.fresh.blocks[name] = b"".join(self._hashes[:count])
                del self._hashes[:count]
                self._patch(name, data)
                self._recipe_at += recipe.total

    def _patch(self, name: bytes, data: bytes) -> None:
        """A segment that stands where one of the version before stood travels as what differs from it."""
        base = self.before[0].get(self._recipe_at) if self.before is not None else None
        if self.before is None or base is None or base == name:
            return
        old = self.before[1](base)
        if len(old) != len(data):
            return
        ranges = content.differing_items(old, data)
        if 0 < delta.patch_size(ranges) * _PATCH_SHARE < len(data) and len(ranges) <= PATCH_PARTS:
            self.fresh.patches[name] = Patch(base, ranges)

    def finish(self) -> tuple[bytes, int]:
        named = self.builder.finish()
        self._drain()
        return named


def _small(fd: int, size: int, *, twice: bool) -> bytes:
    """The bytes of a small file."""
    data = os.pread(fd, size + 1, 0)
    if len(data) != size or (twice and os.pread(fd, size + 1, 0) != data):
        raise _Changed
    return data


def _planted(file: os.stat_result, parent: os.stat_result) -> bool:
    """Whether somebody may have linked a file here that is not theirs, so that it would be read for them
    (rule 56). Where only root can make names nobody did. Group bits are the mask of an ACL, if there is
    one."""
    only_root = parent.st_uid == 0 and not parent.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return file.st_uid != parent.st_uid and not only_root


def _segments(name: bytes, level: int, load: Load) -> Iterator[bytes]:
    """The level-1 recipes under a content, in order."""
    if level == 1:
        yield name
        return
    for _, child in content.parse_recipe(load(name), level).iter_items():
        yield from _segments(child, level - 1, load)


def _segments_at(name: bytes, level: int, load: Load, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """(offset in the file, id) of the level-1 recipes under a content, without loading them."""
    if level == 1:
        yield at, name
        return
    for length, child in content.parse_recipe(load(name), level).iter_items():
        yield from _segments_at(child, level - 1, load, at)
        at += length


def _merge(fresh: Fresh, trial: Fresh) -> None:
    fresh.chunks.update(trial.chunks)
    fresh.patches.update(trial.patches)
    fresh.recipes.update(trial.recipes)
    fresh.blocks.update(trial.blocks)
    fresh.held = trial.held
    fresh.new_bytes += trial.new_bytes


class _Buffer:
    """Reads a file, from `start` on, into the same memory again and again: what a read gave is gone with the
    next one. New memory for each costs as much as the reading."""

    def __init__(self, fd: int, start: int = 0) -> None:
        self._fd = fd
        self._start = start
        self._memory = memoryview(bytearray(BUFFER_BYTES))

    def read(self, at: int, length: int) -> memoryview:
        """Shorter than asked for only where the file ends."""
        if len(self._memory) < length:
            self._memory = memoryview(bytearray(length))
        done = 0
        while done < length:
            some = os.preadv(self._fd, [self._memory[done:length]], self._start + at + done)
            if not some:
                break
            done += some
        return self._memory[:done]


def _pread(fd: int, length: int, at: int) -> bytes:
    data = os.pread(fd, length, at)
    while len(data) < length:
        more = os.pread(fd, length - len(data), at + len(data))
        if not more:
            break
        data += more
    return data


def _sparse(info: os.stat_result) -> bool:
    return info.st_blocks * 512 < info.st_size and info.st_size > 4096


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start >= size:
            return
        yield start, end
        at = end


fingerprint_of = Fingerprint.of


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether the fingerprints are equal."""
    return (
        one.st_ctime_ns == other.st_ctime_ns
        and one.st_mtime_ns == other.st_mtime_ns
        and one.st_size == other.st_size
        and one.st_ino == other.st_ino
        and one.st_dev == other.st_dev
    )


def _entry(
    path: bytes,
    kind: int,
    info: os.stat_result,
    size: int,
    named: bytes | None,
    level: int,
    extra: Extra,
    *,
    mode: int | None = None,
) -> Entry:
    return Entry(
        path,
        kind,
        stat.S_IMODE(info.st_mode) if mode is None else mode,
        user_name(info.st_uid),
        info.st_uid,
        group_name(info.st_gid),
        info.st_gid,
        info.st_mtime_ns,
        size,
        named,
        level,
        extra.encode() if extra is not NOTHING else b"",
    )


def _kind(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "socket"
    if stat.S_ISFIFO(mode):
        return "named pipe"
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        return "device"
    return "special file"


def _reason(error: OSError) -> Exception:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return Gone()
    if error.errno in (errno.EACCES, errno.EPERM):
        return Unreadable("the agent may not read it; run crnode as a user who may")
    if error.errno == errno.EXDEV:
        return Unreadable(
            "another file system is mounted on the way; name it as a path of its own to protect it"
        )
    return Unreadable(f"it cannot be read: {os.strerror(error.errno or 0)}")
