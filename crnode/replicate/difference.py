"""What a target lacks: the difference of two images of a source, in batches, and the bytes of its objects.

Walking runs in a thread of the push; memory is bounded by a batch. A source keeps no second copy of its
data: chunks
come from what capture still holds in memory, from the spool (its own store), or from the source file at the
recorded
offset, verified; bytes that no longer match mean that a newer image is on its way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from crnode.capture.read import Fresh
from crnode.capture.roots import OpenRoots
from crnode.platform.files import open_beneath
from crnode.store.reader import Reader
from crnode.store.store import CHUNK, RECIPE, Damaged, Missing, ObjectStore
from crproto import content, delta
from crproto.entries import Entry
from crproto.ids import HOLE, chunk_id

BATCH_ENTRIES = 500
BATCH_OBJECTS = 2000
BATCH_WEIGHT = 400 << 10
BATCH_BYTES = 4 << 20  # raw bytes of the objects of one batch
MINIMUM_TO_COMPRESS = 512


class Abandoned(Exception):
    """The source's bytes are not those of the image any more; push a newer one. `args[0]` is the path."""


class Wanted(NamedTuple):
    """An object that the target may lack: where its bytes are in the source."""

    id: bytes
    kind: int
    length: int
    path: bytes
    offset: int


@dataclass
class Part:
    """One batch: objects first, then the entries that need them."""

    objects: list[Wanted] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    removed: list[bytes] = field(default_factory=list)
    bytes: int = 0  # of the objects
    weight: int = 0  # bytes of the entries, about: one Entries message has to hold them

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.weight += 128 + len(entry.path) + len(entry.extra)

    def full(self) -> bool:
        return (
            len(self.objects) >= BATCH_OBJECTS
            or self.bytes >= BATCH_BYTES
            or len(self.entries) >= BATCH_ENTRIES
            or self.weight >= BATCH_WEIGHT
        )


def removals(paths: Sequence[bytes]) -> Iterator[list[bytes]]:
    """`paths` in groups that one Entries message holds."""
    group: list[bytes] = []
    weight = 0
    for path in paths:
        group.append(path)
        weight += len(path) + 4
        if weight >= BATCH_WEIGHT or len(group) >= 4000:
            yield group
            group, weight = [], 0
    if group:
        yield group


def from_catalog(
    reader: Reader, load: Callable[[bytes], bytes], base: int, to: int, resume: bytes | None
) -> Iterator[Part]:
    """The difference between the images with ordinals `base` (0: nothing) and `to`.

    `resume` is the path of the last entry that the target staged already.
    """
    removed = list(reader.went(base, to)) if base and resume is None else []
    for group in removals(removed):
        yield Part(removed=group)
    after = reader.key_of(resume, to) if resume is not None else None
    part = Part()
    while page := reader.came(base, to, after, BATCH_ENTRIES):
        for _, entry in page:
            old = reader.entry(entry.path, base) if base else None
            for wanted in objects_of(entry, old, load):
                part.objects.append(wanted)
                part.bytes += wanted.length
                if part.full():
                    yield part
                    part = Part()
            part.add(entry)
            if part.full():
                yield part
                part = Part()
        after = page[-1][0]
    if part.objects or part.entries:
        yield part


def objects_of(entry: Entry, old: Entry | None, load: Callable[[bytes], bytes]) -> Iterator[Wanted]:
    """The objects that `entry` needs beyond those of `old`, children before parents."""
    if entry.content is None:
        return
    if entry.level == 0:
        if old is None or old.content != entry.content:
            yield Wanted(entry.content, CHUNK, entry.size, entry.path, 0)
        return
    known = (
        (old.content, old.level) if old is not None and old.content is not None and old.level > 0 else None
    )
    new = (entry.content, entry.level)
    try:
        for name, kind, length, offset in content.new_objects(known, new, load):
            if name != HOLE:
                yield Wanted(name, kind, length, entry.path, offset)
        return
    except (Missing, Damaged) as error:
        if known is None:
            raise Abandoned(entry.path) from error
    try:  # without the recipe of the version before everything counts as new
        for name, kind, length, offset in content.new_objects(None, new, load):
            if name != HOLE:
                yield Wanted(name, kind, length, entry.path, offset)
    except (Missing, Damaged) as error:
        raise Abandoned(entry.path) from error


def from_memory(
    changed: Sequence[Entry],
    removed: Sequence[bytes],
    fresh: Fresh,
    old: Callable[[bytes], Entry | None],
    load: Callable[[bytes], bytes],
) -> Iterator[Part]:
    """The same for an image that capture has just made."""
    for group in removals(removed):
        yield Part(removed=group)
    part = Part()

    def loaded(name: bytes) -> bytes:
        return fresh.recipes.get(name) or load(name)

    for entry in changed:
        for wanted in objects_of(entry, old(entry.path), loaded):
            part.objects.append(wanted)
            part.bytes += wanted.length
            if part.full():
                yield part
                part = Part()
        part.add(entry)
        if part.full():
            yield part
            part = Part()
    if part.objects or part.entries:
        yield part


def from_fresh(fresh: Fresh) -> Iterator[Part]:
    """What capture has just read of an image that is not made yet: objects alone, all of them in memory."""
    part = Part()
    for kind, found in ((CHUNK, fresh.chunks), (RECIPE, fresh.recipes)):
        for name, data in list(found.items()):
            part.objects.append(Wanted(name, kind, len(data), b"", 0))
            part.bytes += len(data)
            if part.full():
                yield part
                part = Part()
    if part.objects:
        yield part


class ObjectReader:
    """Bytes of a source's objects. One thread at a time."""

    def __init__(
        self, store: ObjectStore, roots: Callable[[], OpenRoots | None], fresh: Fresh | None
    ) -> None:
        self.store = store
        self.roots = roots
        self.fresh = fresh
        self._open: tuple[bytes, int] | None = None

    def close(self) -> None:
        """Forget the file that is kept open between objects."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def read(
        self, wanted: Sequence[Wanted], *, compress: bool, patches: bool
    ) -> tuple[list[tuple[bytes, int, int, int, int, bytes]], list[bytes]]:
        """(records, stored bytes) of an Objects message. Raises Abandoned."""
        records: list[tuple[bytes, int, int, int, int, bytes]] = []
        parts: list[bytes] = []
        for item in wanted:
            data = self.bytes_of(item)
            patch = self.fresh.patches.get(item.id) if patches and self.fresh is not None else None
            if patch is not None:
                stored = delta.encode_patch(patch.ranges, data)
                records.append((item.id, item.kind, delta.PATCH, len(data), len(stored), patch.base))
            else:
                stored, codec = data, delta.RAW
                if compress and len(data) >= MINIMUM_TO_COMPRESS:
                    packed = delta.compress(data)
                    if len(packed) * 10 < len(data) * 9:
                        stored, codec = packed, delta.ZSTD
                records.append((item.id, item.kind, codec, len(data), len(stored), b""))
            parts.append(stored)
        return records, parts

    def held(self, name: bytes) -> bytes | None:
        """What capture holds in memory."""
        if self.fresh is None:
            return None
        return self.fresh.chunks.get(name) or self.fresh.recipes.get(name)

    def bytes_of(self, item: Wanted) -> bytes:
        """The object's verified bytes."""
        data = self.held(item.id)
        if data is not None:
            return data
        if item.kind == RECIPE or self.store.has(item.id):
            try:
                return self.store.get(item.id)
            except (Missing, Damaged) as error:
                if item.kind == RECIPE:
                    raise Abandoned(item.path) from error
        data = self._from_file(item)
        if chunk_id(data) != item.id:
            raise Abandoned(item.path)
        return data

    def _from_file(self, item: Wanted) -> bytes:
        if self._open is None or self._open[0] != item.path:
            self.close()
            roots = self.roots()
            if roots is None:
                raise Abandoned(item.path)
            try:
                fd = _opened(roots, item.path)
            except (OSError, KeyError) as error:
                raise Abandoned(item.path) from error
            self._open = (item.path, fd)
        try:
            data = os.pread(self._open[1], item.length, item.offset)
            while 0 < len(data) < item.length:
                more = os.pread(self._open[1], item.length - len(data), item.offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise Abandoned(item.path) from error
        return data


def _opened(roots: OpenRoots, path: bytes) -> int:
    """The file at `path`, by its folder, as capture opens it: what that took can be read here. A path of
    4,096 bytes is too long for the system, and a file may be mounted over another one."""
    root_fd, below = roots.resolve(path)
    head, _, name = below.rpartition(b"/")
    parent = open_beneath(root_fd, head, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=parent)
    finally:
        os.close(parent)
