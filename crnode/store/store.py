"""The object store of a node: packs, index and a small cache, under one directory.

Durable order (the commit protocol): objects are appended, one :meth:`ObjectStore.sync` makes them durable,
then the catalog names them, then somebody is told. The index follows lazily. Writing methods belong to the
writer thread; :meth:`get`, :meth:`has` and :meth:`missing` may be called from any thread."""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
import struct
import subprocess
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import lmdb

from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import atomic_write, boot_id, free_bytes, fsync_dir
from crnode.platform.python import python
from crnode.store.fetch import (
    CHUNK,
    RECIPE,
    Damaged,
    Missing,
    StoreReader,
    fetch,
    fetch_unverified,
    identify,
    sound,
)
from crnode.store.index import UNHARMED, Index, IndexDamaged, seal, unpack
from crnode.store.packs import (
    HEADER_LENGTH,
    PACK_SIZE,
    Found,
    Gap,
    Lane,
    Location,
    Packs,
    Record,
    StoreFailed,
    full_error,
    is_full,
)
from crnode.store.room import BALLAST_BYTES, Room
from crproto import delta
from crproto.content import parse_recipe
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE

_ID_BYTES = 16
_INDEX_DAMAGED = "index-damaged"  # a file that says so, until the index was made again
_MARK = struct.Struct(">IQ")  # a pack that may still grow, and its end in bytes
INDEX_COMMIT_BYTES = 64 << 20  # appended bytes after which the index is committed
INDEX_COMMIT_SECONDS = 1.0
READER_CHECK_SECONDS = 60.0
REHASH_AFTER_POWER_LOSS = (
    1 << 30
)  # bytes of the newest records that are read again after an unclean boot (rule 32)
T = TypeVar("T")
SCRATCH_BYTES = 512 << 10  # for what a patch is applied to: no chunk that we cut is larger
CACHE_BYTES = 48 << 20  # objects just put: apply and a second target read them without touching a pack


@contextlib.contextmanager
def _unless_full() -> Iterator[None]:
    """For small files that spare work and are no promise: a full disk does without them."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise


@dataclass
class Recovery:
    """What opening the store found and did; the agent says it in the journal."""

    rebuilt: bool = False
    torn_bytes: int = 0
    lost_packs: list[int] = field(default_factory=list)  # indexed, and not there any more
    damaged: list[Gap] = field(default_factory=list)
    rehashed_bytes: int = 0
    unclean_boot: bool = False


class RecentBytes:
    """The bytes of objects put a moment ago, oldest out first, bounded in bytes."""

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
        quota: int = 0,
        catalogs: Path | None = None,
    ) -> None:
        self.directory = directory
        self._clock = clock
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.recovery = Recovery()
        self.packs = Packs(directory / "packs", pack_size)
        self.room = Room(
            directory, lambda: self.packs.used, clock, quota=quota, catalogs=catalogs, ballast=ballast
        )
        self.index = self._open_index()
        self.cache = RecentBytes(CACHE_BYTES)
        self._scratch = bytearray(HEADER_LENGTH + SCRATCH_BYTES)
        self.collection = self._read_collection()
        self.live_extra: set[bytes] | None = (
            None  # ids that became live while a collection runs; None: none runs
        )
        self._unexpanded: deque[bytes] = deque()  # of these, recipes' children became live as well
        self.damaged: set[bytes] = set()
        self._in_doubt = False  # objects were lost, and not every catalog knows yet whether it needs them
        self.doubts = 0  # how often that was so
        self._appended_since_commit = 0
        self._ends: dict[int, int] = {}
        self._last_commit = self._last_check = clock()
        self._recover()
        self.id = self._read_id()
        self.hold_ballast()

    # -- opening

    def _open_index(self) -> Index:
        """The index; one that cannot be read is set aside, which costs a scan of the packs and no data.

        After any end that was not clean a child process walks it first: a damaged LMDB file may end the
        process that maps it, and would end each next one as well."""
        place, marker = self.directory / "index", self.directory / _INDEX_DAMAGED
        mark = _text(self.directory / "clean")
        if not (place / "data.mdb").exists():
            pass
        elif marker.exists():
            self._set_aside(place)
        elif mark is None or (self.directory / "opening").exists():
            if not self._index_opens_elsewhere(place):
                self._set_aside(place)
        elif (sealed := mark.partition("\n")[2]) and sealed != seal(place):
            # It is not the file that was closed, and what damage made of it may end whoever maps it.
            self._set_aside(place)
        probe = self.directory / "opening"
        with _unless_full():
            probe.write_text(boot_id())
        try:
            index = Index(place, on_damage=self._note_index)
            index.count()
            index.positions()
        except (lmdb.Error, IndexDamaged):
            self._set_aside(place)
            index = Index(place, on_damage=self._note_index)
        probe.unlink(missing_ok=True)
        return index

    @staticmethod
    def _index_opens_elsewhere(place: Path) -> bool:
        code = (
            "import sys; from pathlib import Path; from crnode.store.index import Index\n"
            "index = Index(Path(sys.argv[1])); assert index.walk() == index.count(); index.positions()\n"
            "index.probe()"
        )
        done = subprocess.run(python("-c", code, str(place)), capture_output=True, check=False)
        return done.returncode == 0

    def _note_index(self, error: Exception) -> None:
        """The index cannot be used: the next start makes it again, whatever becomes of this process."""
        with contextlib.suppress(OSError):  # without it that start comes to the same by itself
            atomic_write(self.directory / _INDEX_DAMAGED, str(error).encode())

    def commit_failed(self, error: lmdb.Error) -> None:
        """A commit of the index failed. Returns when a full disk is why, which shows as EIO (rule 34); raises
        StoreFailed otherwise, and the next start makes the index again unless nothing is wrong with it."""
        if isinstance(error, UNHARMED):
            raise StoreFailed(f"index commit failed: {error}") from error
        damaged = isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.BadTxnError)
        if damaged or free_bytes(self.directory)[0] > self.floor():
            self._note_index(error)
            raise IndexDamaged(
                f"the index of the store is damaged (commit failed: {error}); the next start makes it again"
            ) from error

    def _set_aside(self, place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)
        self.recovery.rebuilt = True

    def _recover(self) -> None:
        """Bring index and packs together. An index that turns out to be damaged is made again from the packs:
        it never keeps a store from opening."""
        suspect = self._rehash_from(self.packs.numbers())
        try:
            self._read_tails(suspect)
        except (IndexDamaged, lmdb.Error):
            self.index.close()
            found = self.recovery
            self.recovery = Recovery(torn_bytes=found.torn_bytes, unclean_boot=found.unclean_boot)
            self.damaged.clear()
            self._ends.clear()
            self._set_aside(self.directory / "index")
            self.index = Index(self.directory / "index", on_damage=self._note_index)
            self._read_tails(suspect)
        (self.directory / _INDEX_DAMAGED).unlink(missing_ok=True)

    def _read_tails(self, suspect: dict[int, int]) -> None:
        """Index the packs' tails, cut torn appends off, read recent records again after an unclean boot."""
        known = self.index.positions()
        numbers = self.packs.numbers()
        if numbers and not known:
            self.recovery.rebuilt = True
        gone = [pack for pack in known if pack not in set(numbers)]
        if gone or self.recovery.rebuilt:
            self._doubt()
        if gone:
            self._forget_lost(gone)
        ends: dict[int, int] = {}
        for pack in numbers:
            indexed = known.get(pack, 0)
            if self.packs.size(pack) < indexed:  # the disk lost what it had called durable
                self._damaged(Gap(pack, self.packs.size(pack), indexed, True))
            for met in self.packs.scan(pack, min(indexed, suspect.get(pack, indexed)), sound):
                if isinstance(met, Found):
                    if met.location.offset >= indexed:
                        self.index.put(met.id, met.location)
                    else:
                        self.recovery.rehashed_bytes += met.location.size
                elif met.at_end and met.start >= indexed:
                    self.packs.truncate(pack, met.start)
                    self.recovery.torn_bytes += met.end - met.start
                else:
                    self._damaged(met)
            ends[pack] = self.packs.size(pack)
            if ends[pack] != indexed:
                # What the last process appended and never synced counts as held from here on: it has to be
                # durable.
                self.packs.make_durable(pack)
            if len(self.index.pending) > 200_000:
                self._commit_index({pack: ends[pack]})
        self._commit_index(ends)
        if self.recovery.damaged:
            self._note_damage()
        # Packs are only resumed when their end is a record border that this process verified.
        usable = [p for p in numbers if ends[p] < self.packs.pack_size // 2 and not self._gap_at_end(p)]
        for lane, pack in zip((Lane.SMALL, Lane.BULK), usable[-2:], strict=False):
            self.packs.resume(lane, pack)
        with _unless_full():  # then the next start reads recent records again: slower, and as safe
            atomic_write(self.directory / "boot", boot_id().encode())

    def _damaged(self, gap: Gap) -> None:
        self._doubt()
        self.recovery.damaged.append(gap)

    def _doubt(self) -> None:
        """Something is gone: be another store from now on, so that every catalog is looked up, at this start
        or at a later one if this is cut off (rule 32). Before the index forgets what it was."""
        place = self.directory / "id"
        if place.exists():
            place.unlink()
            fsync_dir(self.directory)

    def note_lost(self, ids: Iterable[bytes]) -> None:
        """These objects are damaged: they leave the index, for later starts too. Until every catalog knows
        what it lacks (:meth:`settle_doubt`) a later start takes this for another store, and asks."""
        self._doubt()
        self._in_doubt = True
        self.doubts += 1
        lost = list(ids)
        self.damaged.update(lost)
        try:
            self.index.remove(lost)
        except lmdb.Error as error:
            self.commit_failed(error)
            # A full disk: they count as missing meanwhile, and are met again.

    @property
    def in_doubt(self) -> bool:
        """Whether objects were lost that some catalog may need without knowing it."""
        return self._in_doubt

    def settle_doubt(self, doubts: int) -> None:
        """Everything was looked up after the doubt with this number came up: unless another one followed,
        this is again the store that it was."""
        if self._in_doubt and doubts == self.doubts:
            with _unless_full():
                atomic_write(self.directory / "id", self.id.hex().encode())
                self._in_doubt = False

    def _commit_index(self, ends: dict[int, int]) -> None:
        """Commit while opening. A full disk shows as EIO here (rule 34): the reserve is given up for it, and
        when that is not enough, what was found stays in memory and is committed when there is room."""
        for last in (False, True):
            try:
                self.index.commit(ends)
                return
            except lmdb.Error as error:
                self.commit_failed(error)
                if not last and not self.drop_ballast():
                    break
        self._ends.update(ends)

    def _gap_at_end(self, pack: int) -> bool:
        return any(gap.pack == pack and gap.at_end for gap in self.recovery.damaged)

    def _forget_lost(self, gone: list[int]) -> None:
        """Packs vanished under us: what they held is missing from now on, and not answered as held."""
        packs = set(gone)
        after: bytes | None = None
        while page := self.index.page(after, 10_000):
            after = page[-1][0]
            lost = [key for key, value in page if unpack(value).pack in packs]
            if lost:
                self.recovery.lost_packs = gone
                self.index.remove(lost)
        self.index.commit({}, gone=gone)

    def _note_damage(self) -> None:
        gaps: dict[int, list[Gap]] = {}
        for gap in self.recovery.damaged:
            gaps.setdefault(gap.pack, []).append(gap)
        for content, where in self.index.items():
            # A record that a gap begins in the middle of is half a record.
            end = where.offset + where.size
            if any(where.offset < gap.end and gap.start < end for gap in gaps.get(where.pack, ())):
                self.damaged.add(content)
        self.index.remove(list(self.damaged))  # for the next start too: these records are worth nothing
        self.index.commit({})

    def _rehash_from(self, numbers: list[int]) -> dict[int, int]:
        """Pack -> offset from which records are read again: nothing after a clean end, else at least the
        newest gigabyte, because the disk may have lost pages that it called durable (rule 32)."""
        mark = self.directory / "clean"
        if mark.exists():
            clean = bool(_text(mark))
            mark.unlink()
            fsync_dir(
                self.directory
            )  # or a power loss brings the mark back to a store that was written since
            if clean:
                return {}
        boot = self.directory / "boot"
        before = _text(boot)  # missing: the agent says that the disk failed
        if before == boot_id() or not numbers:
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

    def _read_id(self) -> bytes:
        """What tells this store from any other, and from the one that lay here before it was lost."""
        place = self.directory / "id"
        try:
            name = bytes.fromhex(place.read_text())
            if len(name) == _ID_BYTES:
                return name
        except (FileNotFoundError, ValueError):
            pass  # a new store, or one whose past is not known: every catalog is looked up (rule 32)
        name = secrets.token_bytes(_ID_BYTES)
        with _unless_full():  # then the next start draws another one, and everything is looked up again
            atomic_write(place, name.hex().encode())
        return name

    # -- whether store and catalogs belong together (rule 32)

    def mark(self) -> bytes:
        """Where the store stands: a catalog notes it with each commit. Take it when the packs are synced."""
        ends = sorted((pack, end) for _, pack, end in self.packs.open_lanes())
        if not ends and (numbers := self.packs.numbers()):
            ends = [(numbers[-1], self.packs.size(numbers[-1]))]
        return self.id + b"".join(_MARK.pack(pack, end) for pack, end in ends)

    def holds(self, mark: bytes) -> bool:
        """Whether this is the store that `mark` was taken from, or a later state of it. False when in doubt:
        that costs looking everything up once."""
        if mark[:_ID_BYTES] != self.id:
            return False
        newest = max(self.packs.numbers(), default=0)
        for pack, end in _MARK.iter_unpack(mark[_ID_BYTES:]):
            try:
                if self.packs.size(pack) < end:
                    return False
            except FileNotFoundError:  # collected, if it is an older one: a lost one changed the id
                if pack > newest:
                    return False
        return True

    def _read_collection(self) -> int:
        try:
            return int((self.directory / "collection").read_text())
        except (FileNotFoundError, ValueError):
            return 1  # too small a number keeps garbage, never the reverse

    def next_collection(self) -> int:
        """Raise the collection number; what is put from now on is born in it and lives through it."""
        atomic_write(self.directory / "collection", str(self.collection + 1).encode())
        self.collection += 1
        return self.collection

    # -- collection (writer thread); collect.py does the rest

    def begin_collection(self) -> int:
        """From here on what becomes live is noted. Returns c: what is born later than c lives through it."""
        if self.live_extra is not None:
            raise RuntimeError("a collection runs already")
        before = self.collection
        self.next_collection()
        self.live_extra = set()
        self._unexpanded.clear()
        return before

    def end_collection(self) -> None:
        self.live_extra = None
        self._unexpanded.clear()

    def flush_index(self) -> None:
        """Commit the index now. Raises CrnodeError (FULL) when there is no room to."""
        self.tick(force=True)
        if self.index.pending:
            raise full_error(self.directory, OSError(errno.ENOSPC, ""))

    def expand_live(self, until: float) -> bool:
        """Mark the children of recipes that became live; False when `until` (monotonic) came first."""
        assert self.live_extra is not None
        while self._unexpanded:
            if time.monotonic() >= until:
                return False
            name = self._unexpanded.popleft()
            where = self.index.get(name)
            if where is None or where.kind != RECIPE:
                continue
            try:
                recipe = parse_recipe(self.get(name))
            except (Missing, Damaged, RemoteProtocolError):
                continue  # the commit that names it asks for it again
            self.mark_live([child for _, child in recipe.iter_items() if child != HOLE])
        return True

    def forget_pack(self, pack: int) -> None:
        """Commit that `pack` is no part of the store any more. None of its records may be in the index."""
        self.flush_index()
        self._ends.pop(pack, None)
        self.index.commit({}, gone=[pack])

    def move(self, records: Sequence[Record]) -> int:
        """Append records that are held elsewhere, make them durable and point the index to them: copying
        forward."""
        places = self.packs.append(Lane.BULK, records, self.collection)
        self.packs.sync()
        size = 0
        for record, where in zip(records, places, strict=True):
            self._note(record.id, where)
            size += where.size
        return size

    def _note(self, content: bytes, where: Location) -> None:
        self.index.put(content, where)
        self._ends[where.pack] = max(self._ends.get(where.pack, 0), where.offset + where.size)
        self._appended_since_commit += where.size

    # -- room (see room.py)

    def floor(self) -> int:
        """Free bytes below which no new image is taken."""
        return self.room.floor()

    def check_room(self, coming: int = 0) -> None:
        """Raises CrnodeError (FULL) when there is no room for `coming` more bytes."""
        self.room.check(coming)

    def hold_ballast(self) -> None:
        """Reserve a file that can be given up so that pruning has room on a full disk."""
        self.room.hold_ballast()

    def drop_ballast(self) -> bool:
        """Give the reserve up for a collection on a full disk; True when there was one."""
        return self.room.drop_ballast()

    # -- writing (writer thread)

    def put(self, records: Sequence[Record], lane: Lane, *, cache: bool = True) -> int:
        """Append the objects not held yet; returns the bytes appended. Their ids must have been verified.

        Durable after :meth:`sync`. Raises CrnodeError (FULL) or StoreFailed.
        """
        fresh: list[Record] = []
        held: list[bytes] = []
        seen: set[bytes] = set()
        for record in records:
            if record.id in seen:
                continue
            seen.add(record.id)
            if record.id in self.damaged or self.index.get(record.id) is None:
                fresh.append(record)
            else:
                held.append(record.id)
        self.mark_live(held)
        if not fresh:
            return 0
        places = self.packs.append(lane, fresh, self.collection)
        size = 0
        for record, where in zip(fresh, places, strict=True):
            self._note(record.id, where)
            self.damaged.discard(record.id)
            size += where.size
            if cache and record.codec == delta.RAW:
                self.cache.put(record.id, record.stored)
        if self.live_extra is not None:
            self._unexpanded.extend(r.id for r in fresh if r.kind == RECIPE)
        return size

    def sync(self) -> None:
        """Make everything put so far durable. Raises StoreFailed: the process must end (rule 33)."""
        self.packs.sync()

    def mark_live(self, ids: Sequence[bytes]) -> None:
        """Ids that were named, answered as held, or offered: a collection that runs now must keep them."""
        if self.live_extra is None:
            return
        for name in ids:
            if name in self.live_extra:
                continue
            where = self.index.get(name)
            if where is None:
                continue  # it is not held; when it comes it is born late enough
            if where.born < self.collection:
                self.live_extra.add(name)
            elif where.kind == CHUNK:
                continue  # born after the mark began: lives by that alone, and would only fill memory
            self._unexpanded.append(name)

    def check_there(self) -> None:
        """Raises StoreFailed when the directory was removed under us: nothing more is durable in it."""
        if not (self.directory / "packs").is_dir():
            raise StoreFailed(f"{self.directory} was removed while it was in use")

    def tick(self, *, force: bool = False) -> None:
        """Commit the index when enough has gathered. The packs are synced first, so that the index never
        names bytes that a power loss could take while its own position says they were indexed."""
        if self._clock() - self._last_check >= READER_CHECK_SECONDS:
            self._last_check = self._clock()
            self.index.reader_check()
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
                self.commit_failed(error)
                # A full disk. Nothing is lost: the packs hold it, `pending` goes on.
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
        return self._fetched(content, lambda: fetch(self.index, self.packs, content))

    def base(self, content: bytes) -> bytes | memoryview:
        """The object's bytes for a patch whose result is verified: that proves them, too. Where it does not,
        :meth:`get` says whose fault it is. They are there until the next call. In the writer thread. Raises
        Missing or Damaged."""
        data = self.cache.get(content)
        if data is not None:
            return data
        return self._fetched(
            content, lambda: fetch_unverified(self.index, self.packs, content, self._scratch)[0]
        )

    def _fetched(self, content: bytes, read: Callable[[], T]) -> T:
        for last in (False, True):
            try:
                return read()
            except Damaged:
                self.damaged.add(content)
                raise
            except Missing:
                if self.index.get(content) is None:
                    raise
                if last:  # its pack vanished under us: it counts as missing
                    self.damaged.add(content)
                    raise
        raise AssertionError("unreachable")

    def load(self, content: bytes) -> bytes:
        """:meth:`get` under the name that crproto's recipe walks expect."""
        return self.get(content)

    def verify(self, pack: int) -> Iterator[Found | Gap]:
        """Read a whole pack and check every record (scrub)."""
        return self.packs.scan(pack, 0, sound)

    # -- closing

    def close(self, *, clean: bool = True) -> None:
        """Commit and close; `clean` leaves the mark that spares the next start a second reading."""
        if clean:
            self.packs.sync()
            self.tick(force=True)
        self.packs.close()
        self.index.close()
        if clean and not self.index.pending:
            with _unless_full():
                text = f"{boot_id()}\n{seal(self.directory / 'index')}"
                atomic_write(self.directory / "clean", text.encode())


def _text(place: Path) -> str | None:
    """What one of the store's small files says; None when it is missing, or rotten and no text any more."""
    try:
        return place.read_text("ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        return None


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
    "StoreReader",
    "fetch",
    "identify",
    "is_full",
    "refuse_second_process",
    "sound",
]
