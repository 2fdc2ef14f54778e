"""The object store of a node: packs, index and a small cache, under one directory.

Durable order (the commit protocol): objects are appended, one :meth:`ObjectStore.sync` makes them durable, then
the catalog names them, then somebody is told. The index follows lazily. Writing methods belong to the writer
thread; :meth:`get`, :meth:`has` and :meth:`missing` may be called from any thread.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lmdb

from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import atomic_write, boot_id, free_bytes
from crnode.store.index import Index
from crnode.store.packs import PACK_SIZE, Found, Gap, Lane, Location, Packs, Record, StoreFailed, is_full
from crproto import delta
from crproto.errors import RemoteProtocolError
from crproto.ids import chunk_id, recipe_id

CHUNK, RECIPE = 0, 1
INDEX_COMMIT_BYTES = 64 << 20  # appended bytes after which the index is committed
INDEX_COMMIT_SECONDS = 1.0
REHASH_AFTER_POWER_LOSS = 1 << 30  # bytes of the newest records that are read again after an unclean boot (rule 32)
CACHE_BYTES = 48 << 20  # objects just put: apply and a second target read them without touching a pack
BALLAST_BYTES = 256 << 20
BALLAST_SHARE = 0.01  # of the file system, whichever is smaller
FLOOR_BYTES = 2 << 30
FLOOR_SHARE = 0.05  # of the file system, whichever is smaller: below it no new images are taken (rule 34)


class Missing(Exception):
    """The store does not hold this object. `args[0]` is its id."""


class Damaged(Exception):
    """The store holds a record for this id whose bytes are not what the id names. `args[0]` is the id."""


def identify(kind: int, data: bytes | memoryview) -> bytes:
    """The id of an object of this kind."""
    return recipe_id(data) if kind == RECIPE else chunk_id(data)


def _sound(content: bytes, kind: int, codec: int, raw: int, stored: bytes) -> bool:
    try:
        data = delta.decode_object(codec, stored, raw, None)
    except RemoteProtocolError:
        return False
    return identify(kind, data) == content


@dataclass
class Recovery:
    """What opening the store found and did; the agent says it in the journal."""

    rebuilt: bool = False
    torn_bytes: int = 0
    damaged: list[Gap] = field(default_factory=list)
    rehashed_bytes: int = 0
    unclean_boot: bool = False


class RecentBytes:
    """The bytes of objects seen a moment ago, least recently used out first, bounded in bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._items: OrderedDict[bytes, bytes] = OrderedDict()

    def put(self, content: bytes, data: bytes | memoryview) -> None:
        if content in self._items or len(data) > self.limit:
            return
        self._items[content] = bytes(data)
        self.size += len(data)
        while self.size > self.limit:
            try:
                _, old = self._items.popitem(last=False)
            except KeyError:
                break
            self.size -= len(old)

    def get(self, content: bytes) -> bytes | None:
        return self._items.get(content)


class ObjectStore:
    """All objects of a node. Opening it recovers whatever the last process left behind."""

    def __init__(
        self,
        directory: Path,
        *,
        pack_size: int = PACK_SIZE,
        clock: Callable[[], float] = time.monotonic,
        ballast: int = BALLAST_BYTES,
    ) -> None:
        self.directory = directory
        self._clock = clock
        self._ballast_bytes = ballast
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.recovery = Recovery()
        self.packs = Packs(directory / "packs", pack_size)
        self.index = self._open_index()
        self.cache = RecentBytes(CACHE_BYTES)
        self.collection = self._read_collection()
        self.live_extra: set[bytes] | None = None  # ids that became live while a collection runs; None: none runs
        self.damaged: set[bytes] = set()
        self._appended_since_commit = 0
        self._ends: dict[int, int] = {}
        self._last_commit = clock()
        self._recover()
        self._hold_ballast()

    # -- opening

    def _open_index(self) -> Index:
        place = self.directory / "index"
        probe = self.directory / "opening"
        if probe.exists() and place.exists() and not self._index_opens_elsewhere(place):
            self._set_aside(place)
        probe.write_text(boot_id())
        try:
            index = Index(place)
            index.count()
            index.positions()
        except lmdb.Error:
            self._set_aside(place)
            index = Index(place)
        probe.unlink()
        return index

    @staticmethod
    def _index_opens_elsewhere(place: Path) -> bool:
        """Whether a child process can walk the index: a damaged LMDB file may end the process that maps it."""
        code = (
            "import sys; from pathlib import Path; from crnode.store.index import Index\n"
            "sum(1 for _ in Index(Path(sys.argv[1])).items())"
        )
        done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, check=False)
        return done.returncode == 0

    def _set_aside(self, place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)
        self.recovery.rebuilt = True

    def _recover(self) -> None:
        """Index the packs' tails, cut torn appends off, read recent records again after an unclean boot."""
        known = self.index.positions()
        numbers = self.packs.numbers()
        if numbers and not known:
            self.recovery.rebuilt = True
        gone = [pack for pack in known if pack not in set(numbers)]
        suspect = self._rehash_from(numbers)
        ends: dict[int, int] = {}
        for pack in numbers:
            indexed = known.get(pack, 0)
            start = min(indexed, suspect.get(pack, indexed))
            for met in self.packs.scan(pack, start, _sound):
                if isinstance(met, Found):
                    if met.location.offset >= indexed:
                        self.index.put(met.id, met.location)
                    elif met.location.offset >= suspect.get(pack, indexed):
                        self.recovery.rehashed_bytes += met.location.size
                elif met.at_end and met.start >= indexed:
                    self.packs.truncate(pack, met.start)
                    self.recovery.torn_bytes += met.end - met.start
                else:
                    self.recovery.damaged.append(met)
            ends[pack] = self.packs.size(pack)
            if len(self.index.pending) > 200_000:
                self.index.commit({pack: ends[pack]})
        self.index.commit(ends, gone=gone)
        if self.recovery.damaged:
            self._note_damage()
        # Packs are only resumed when their end is a record border that this process verified.
        usable = [p for p in numbers if ends[p] < self.packs.pack_size // 2 and not self._gap_at_end(p)]
        for lane, pack in zip((Lane.SMALL, Lane.BULK), usable[-2:], strict=False):
            self.packs.resume(lane, pack)

    def _gap_at_end(self, pack: int) -> bool:
        return any(gap.pack == pack and gap.at_end for gap in self.recovery.damaged)

    def _note_damage(self) -> None:
        gaps = self.recovery.damaged
        for content, where in self.index.items():
            if any(g.pack == where.pack and g.start <= where.offset < g.end for g in gaps):
                self.damaged.add(content)

    def _rehash_from(self, numbers: list[int]) -> dict[int, int]:
        """Pack -> offset from which records are read again: nothing after a clean end, else at least the newest
        gigabyte, because the disk may have lost pages that it called durable (rule 32)."""
        mark = self.directory / "clean"
        with contextlib.suppress(FileNotFoundError):
            if mark.read_text() != "":
                mark.unlink()
                return {}
        boot = self.directory / "boot"
        before = boot.read_text() if boot.exists() else None
        atomic_write(boot, boot_id().encode())
        if before is None or before == boot_id():
            return {}  # the same boot: the page cache survived the process
        self.recovery.unclean_boot = True
        left = REHASH_AFTER_POWER_LOSS
        out: dict[int, int] = {}
        for pack in reversed(numbers):
            if left <= 0:
                break
            out[pack] = 0  # whole packs: their first record is the only border known without the index
            left -= self.packs.size(pack)
        return out

    def _read_collection(self) -> int:
        try:
            return int((self.directory / "collection").read_text())
        except FileNotFoundError:
            return 1

    def next_collection(self) -> int:
        """Raise the collection number; what is put from now on is born in it and lives through it."""
        self.collection += 1
        atomic_write(self.directory / "collection", str(self.collection).encode())
        return self.collection

    # -- room

    def floor(self) -> int:
        """Free bytes below which no new image is taken."""
        return min(FLOOR_BYTES, int(free_bytes(self.directory)[1] * FLOOR_SHARE))

    def check_room(self, coming: int = 0) -> None:
        """Raises CrnodeError (FULL) when `coming` more bytes would leave less than the floor."""
        free, _ = free_bytes(self.directory)
        floor = self.floor()
        if free - coming < floor:
            raise CrnodeError(
                f"The file system of {self.directory} is nearly full.",
                f"{free >> 20} MiB are free and {floor >> 20} MiB must stay free.",
                "Free some space or remove a set; what was acknowledged is safe and work goes on by itself.",
                ExitCode.FULL,
            )

    def _ballast_size(self) -> int:
        return min(self._ballast_bytes, int(free_bytes(self.directory)[1] * BALLAST_SHARE))

    def _hold_ballast(self) -> None:
        """Reserve a file that can be given up so that pruning has room on a full disk."""
        place = self.directory / "ballast"
        size = self._ballast_size()
        if place.exists() or size == 0 or free_bytes(self.directory)[0] < self.floor() + 2 * size:
            return
        with contextlib.suppress(OSError):
            fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError:
                place.unlink(missing_ok=True)
            finally:
                os.close(fd)

    def drop_ballast(self) -> bool:
        """Give the reserve up for a collection on a full disk; True when there was one."""
        try:
            (self.directory / "ballast").unlink()
        except FileNotFoundError:
            return False
        return True

    # -- writing (writer thread)

    def put(self, records: Sequence[Record], lane: Lane, *, cache: bool = True) -> int:
        """Append the objects not held yet; returns the bytes appended. Their ids must have been verified.

        Durable after :meth:`sync`. Raises CrnodeError (FULL) or StoreFailed.
        """
        fresh: list[Record] = []
        seen: set[bytes] = set()
        for record in records:
            if record.id not in seen and (record.id in self.damaged or self.index.get(record.id) is None):
                fresh.append(record)
                seen.add(record.id)
        if not fresh:
            return 0
        places = self.packs.append(lane, fresh, self.collection)
        size = 0
        for record, where in zip(fresh, places, strict=True):
            self.index.put(record.id, where)
            self.damaged.discard(record.id)
            size += where.size
            end = where.offset + where.size
            self._ends[where.pack] = max(self._ends.get(where.pack, 0), end)
            if cache and record.codec == delta.RAW:
                self.cache.put(record.id, record.stored)
        self._appended_since_commit += size
        return size

    def sync(self) -> None:
        """Make everything put so far durable. Raises StoreFailed: the process must end (rule 33)."""
        self.packs.sync()

    def mark_live(self, ids: Sequence[bytes]) -> None:
        """Ids that were named, answered as held, or offered: a collection that runs now must keep them."""
        if self.live_extra is not None:
            self.live_extra.update(ids)

    def tick(self, *, force: bool = False) -> None:
        """Commit the index when enough has gathered. The packs are synced first, so that the index never names
        bytes that a power loss could take while its own position says they were indexed."""
        due = (
            force
            or self._appended_since_commit >= INDEX_COMMIT_BYTES
            or (self.index.pending and self._clock() - self._last_commit >= INDEX_COMMIT_SECONDS)
        )
        if not due:
            return
        if self.index.pending:
            self.packs.sync()
            try:
                self.index.commit(self._ends)
            except lmdb.Error as error:
                if free_bytes(self.directory)[0] > self.floor():
                    raise StoreFailed(f"index commit failed: {error}") from error
                # A full disk shows here as EIO (rule 34). Nothing is lost: the packs hold it, `pending` goes on.
            else:
                self._ends = {}
                self._appended_since_commit = 0
        self._last_commit = self._clock()

    # -- reading (any thread)

    def locate(self, content: bytes) -> Location | None:
        return self.index.get(content)

    def has(self, content: bytes) -> bool:
        return content not in self.damaged and self.index.get(content) is not None

    def missing(self, ids: list[bytes]) -> list[bytes]:
        """Those of `ids` that a reader could not get."""
        if self.damaged:
            bad = [i for i in ids if i in self.damaged]
            return bad + self.index.missing([i for i in ids if i not in self.damaged])
        return self.index.missing(ids)

    def get(self, content: bytes) -> bytes:
        """The object's bytes, verified against its id. Raises Missing or Damaged (remembered for healing)."""
        data = self.cache.get(content)
        if data is not None:
            return data
        for _ in range(3):  # a collection may move the record between the look-up and the read
            where = self.index.get(content)
            if where is None:
                raise Missing(content)
            try:
                stored = self.packs.read(where)
            except FileNotFoundError:
                continue
            except (ValueError, OSError):
                self.damaged.add(content)
                raise Damaged(content) from None
            try:
                data = delta.decode_object(where.codec, stored, where.raw, None)
            except RemoteProtocolError:
                data = b""
            if identify(where.kind, data) != content:
                self.damaged.add(content)
                raise Damaged(content)
            return data
        raise Missing(content)

    def load(self, content: bytes) -> bytes:
        """:meth:`get` under the name that crproto's recipe walks expect."""
        return self.get(content)

    def verify(self, pack: int) -> Iterator[Found | Gap]:
        """Read a whole pack and check every record (scrub)."""
        return self.packs.scan(pack, 0, _sound)

    # -- closing

    def close(self, *, clean: bool = True) -> None:
        """Commit and close; `clean` leaves the mark that spares the next start reading recent records again."""
        if clean:
            self.packs.sync()
            self.tick(force=True)
        self.packs.close()
        self.index.close()
        if clean and not self.index.pending:
            atomic_write(self.directory / "clean", boot_id().encode())


def refuse_second_process(error: OSError, place: Path) -> CrnodeError:
    """The sentence for a data directory that another agent holds."""
    return CrnodeError(
        f"Another crnode agent is running on {place}.",
        f"Its lock is held ({error.strerror}).",
        "Stop that agent first, or give this one its own --data directory.",
        ExitCode.REFUSED,
    )


__all__ = [
    "CHUNK",
    "RECIPE",
    "Damaged",
    "Missing",
    "ObjectStore",
    "RecentBytes",
    "Recovery",
    "identify",
    "is_full",
    "refuse_second_process",
]
