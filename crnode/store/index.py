"""The index: content id -> place in the packs, in LMDB, committed lazily.

It holds nothing that the packs do not say, so a lost or damaged index costs a scan and no data. Entries
appended since the last commit live in `pending`; the position up to which each pack is indexed is committed
in the same transaction, and on open the packs' tails behind it are read again.

Look-ups raise :class:`IndexDamaged` when LMDB cannot read its own file; writes raise lmdb.Error, because
there a full disk looks the same (rule 34) and only the store can tell."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
from blake3 import blake3

from crnode.store.packs import Location, StoreFailed

VALUE = struct.Struct(">IQIIBBI")
_POSITION = struct.Struct(">Q")
# Address space, not memory: room for 500 million objects. It is never raised while open, because LMDB allows
# that only without any reader in the process; a larger index gets a larger map when it is opened next.
_MAP_SIZE = 64 << 30
_SEAL_BYTES = 256 << 20  # a larger file is told from the one that was closed by its size alone: reading costs
_PROBES = 64
UNHARMED = (
    lmdb.MapFullError,
    lmdb.MapResizedError,
    lmdb.ReadersFullError,
    lmdb.DbsFullError,
    lmdb.TlsFullError,
    lmdb.TxnFullError,
    lmdb.LockError,
    lmdb.MemoryError,
    lmdb.BadValsizeError,  # a key that can be none
)
"""What LMDB may say although its file is sound."""


class IndexDamaged(StoreFailed):
    """LMDB cannot use its file. The process ends, and the next start makes the index again from the packs."""


def seal(directory: Path) -> str:
    """What tells the file of a closed index from what damage makes of it: its size and, unless it is large, a
    hash of it. '' when there is none. Reads without a map, so that no damage can end the process."""
    digest = blake3()
    try:
        with open(directory / "data.mdb", "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            while size <= _SEAL_BYTES and (data := file.read(1 << 20)):
                digest.update(data)
    except FileNotFoundError:
        return ""
    return f"{size} {digest.hexdigest() if size <= _SEAL_BYTES else '-'}"


class Index:
    """Maps 32-byte content ids to :class:`Location`. One writing thread; any thread may look up."""

    def __init__(
        self,
        directory: Path,
        *,
        readonly: bool = False,
        on_damage: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self._on_damage = on_damage
        self._closed = False
        if not readonly:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        size = _MAP_SIZE
        data = directory / "data.mdb"
        while data.exists() and size < data.stat().st_size * 2:
            size *= 2
        self._env = lmdb.open(
            str(directory), map_size=size, max_dbs=2, readahead=False, max_readers=256, mode=0o600,
            readonly=readonly,
        )  # fmt: skip
        try:
            self._objects = self._env.open_db(b"objects", create=not readonly)
            self._positions = self._env.open_db(b"positions", create=not readonly)
            if not readonly:
                self._env.reader_check()
        except BaseException:
            self._env.close()
            raise
        self.pending: dict[bytes, Location] = {}

    def get(self, content: bytes) -> Location | None:
        """Where the object lies, or None."""
        where = self.pending.get(content)
        if where is not None:
            return where
        try:
            with self._env.begin(db=self._objects) as txn:
                value = txn.get(content)
            return unpack(value) if value is not None else None
        except (lmdb.Error, struct.error) as error:
            raise self._unreadable(error) from error

    def missing(self, ids: list[bytes]) -> list[bytes]:
        """Those of `ids` that are not indexed, in one read transaction."""
        # `pending` first, as in get(): what leaves it was committed before, and a transaction begun now sees
        # it.
        unknown = [i for i in ids if i not in self.pending]
        if not unknown:
            return []
        try:
            with self._env.begin(db=self._objects) as txn:
                return [i for i in unknown if txn.get(i) is None]
        except lmdb.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> Exception:
        """What to raise for `error`; damage is told to whoever sees to it that the next start knows."""
        if isinstance(error, UNHARMED) or self._closed:  # a thread that outlives the store says nothing of it
            return StoreFailed(f"the index of the object store cannot be read: {error}")
        self._on_damage(error)
        return IndexDamaged(f"the index of the store is damaged ({error}); the next start makes it again")

    def put(self, content: bytes, where: Location) -> None:
        self.pending[content] = where

    def commit(
        self, positions: dict[int, int], removed: list[bytes] | None = None, gone: list[int] | None = None
    ) -> None:
        """Write what is pending, remove `removed` ids and positions of `gone` packs, in one transaction."""
        batch = dict(self.pending)
        with self._env.begin(write=True) as txn:
            for key in removed or ():
                txn.delete(key, db=self._objects)
            for key, where in batch.items():
                txn.put(key, _pack(where), db=self._objects)
            for pack, end in positions.items():
                txn.put(b"%08d" % pack, _POSITION.pack(end), db=self._positions)
            for pack in gone or ():
                txn.delete(b"%08d" % pack, db=self._positions)
        # A reader that misses `pending` from here on begins its transaction after this commit and finds the
        # id there.
        for key, where in batch.items():
            if self.pending.get(key) is where:
                del self.pending[key]

    def remove(self, ids: list[bytes]) -> None:
        """Forget `ids` for good, and nothing else: small enough a transaction for a full disk."""
        with self._env.begin(write=True, db=self._objects) as txn:
            for key in ids:
                txn.delete(key)
        for key in ids:
            self.pending.pop(key, None)

    def page(self, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` committed (id, packed location) behind id `after`, in order; a short transaction."""
        try:
            with self._env.begin(db=self._objects) as txn:
                cursor = txn.cursor()
                if after is None:
                    there = cursor.first()
                else:
                    there = cursor.set_range(after) and (cursor.key() != after or cursor.next())
                return [(k, v) for (k, v), _ in zip(cursor, range(limit))] if there else []  # noqa: B905
        except lmdb.Error as error:
            raise self._unreadable(error) from error

    def reader_check(self) -> int:
        """Free the slots of readers that died, which would pin old pages for ever (rule 35)."""
        return int(self._env.reader_check())

    def walk(self) -> int:
        """Read everything there is, so that a damaged file shows; returns the number of entries."""
        with self._env.begin() as txn:
            for _ in txn.cursor(db=self._positions):
                pass
            count, before = 0, b""
            for key, value in txn.cursor(db=self._objects):
                count += len(value) == VALUE.size and key > before  # what is out of order is not found again
                before = key
            return count

    def probe(self) -> None:
        """Write a little and take it back: that reads the list of free pages, which no look-up does. For a
        child process, because a damaged list may end whoever reads it."""
        txn = self._env.begin(write=True, db=self._objects)
        try:
            for _ in range(_PROBES):
                txn.put(secrets.token_bytes(32), bytes(VALUE.size))
        finally:
            txn.abort()

    def positions(self) -> dict[int, int]:
        """Pack number -> offset in bytes up to which its records are in the index."""
        try:
            with self._env.begin(db=self._positions) as txn:
                return {int(bytes(k)): _POSITION.unpack(v)[0] for k, v in txn.cursor()}
        except (lmdb.Error, struct.error, ValueError) as error:
            raise self._unreadable(error) from error

    def items(self) -> Iterator[tuple[bytes, Location]]:
        """All committed entries in key order. Holds a read transaction: for short stores only."""
        try:
            with self._env.begin(db=self._objects) as txn:
                for key, value in txn.cursor():
                    yield bytes(key), unpack(value)
        except (lmdb.Error, struct.error) as error:
            raise self._unreadable(error) from error

    def count(self) -> int:
        try:
            with self._env.begin(db=self._objects) as txn:
                return int(txn.stat(self._objects)["entries"])
        except lmdb.Error as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        self._closed = True
        self._env.close()


def _pack(where: Location) -> bytes:
    return VALUE.pack(where.pack, where.offset, where.stored, where.raw, where.kind, where.codec, where.born)


def unpack(value: bytes) -> Location:
    """A location as :meth:`Index.page` returns it."""
    return Location._make(VALUE.unpack(value))
