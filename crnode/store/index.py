"""The index: content id -> place in the packs, in LMDB, committed lazily.

It holds nothing that the packs do not say, so a lost or damaged index costs a scan and no data. Entries
appended since the last commit live in `pending`; the position up to which each pack is indexed is committed
in the same transaction, and on open the packs' tails behind it are read again."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import lmdb

from crnode.store.packs import Location

VALUE = struct.Struct(">IQIIBBI")
_POSITION = struct.Struct(">Q")
# Address space, not memory: room for 500 million objects. It is never raised while open, because LMDB allows
# that only without any reader in the process; a larger index gets a larger map when it is opened next.
_MAP_SIZE = 64 << 30


class Index:
    """Maps 32-byte content ids to :class:`Location`. One writing thread; any thread may look up."""

    def __init__(self, directory: Path, *, readonly: bool = False) -> None:
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
        with self._env.begin(db=self._objects) as txn:
            value = txn.get(content)
        return unpack(value) if value is not None else None

    def missing(self, ids: list[bytes]) -> list[bytes]:
        """Those of `ids` that are not indexed, in one read transaction."""
        # `pending` first, as in get(): what leaves it was committed before, and a transaction begun now sees
        # it.
        unknown = [i for i in ids if i not in self.pending]
        if not unknown:
            return []
        with self._env.begin(db=self._objects) as txn:
            return [i for i in unknown if txn.get(i) is None]

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
        with self._env.begin(db=self._objects) as txn:
            cursor = txn.cursor()
            if after is None:
                there = cursor.first()
            else:
                there = cursor.set_range(after) and (cursor.key() != after or cursor.next())
            return [(k, v) for (k, v), _ in zip(cursor, range(limit))] if there else []  # noqa: B905

    def reader_check(self) -> int:
        """Free the slots of readers that died, which would pin old pages for ever (rule 35)."""
        return int(self._env.reader_check())

    def walk(self) -> int:
        """Read everything there is, so that a damaged file shows; returns the number of entries."""
        with self._env.begin() as txn:
            for _ in txn.cursor(db=self._positions):
                pass
            return sum(len(v) == VALUE.size for _, v in txn.cursor(db=self._objects))

    def positions(self) -> dict[int, int]:
        """Pack number -> offset in bytes up to which its records are in the index."""
        with self._env.begin(db=self._positions) as txn:
            return {int(bytes(k)): _POSITION.unpack(v)[0] for k, v in txn.cursor()}

    def items(self) -> Iterator[tuple[bytes, Location]]:
        """All committed entries in key order. Holds a read transaction: for short stores only."""
        with self._env.begin(db=self._objects) as txn:
            for key, value in txn.cursor():
                yield bytes(key), unpack(value)

    def count(self) -> int:
        with self._env.begin(db=self._objects) as txn:
            return int(txn.stat(self._objects)["entries"])

    def close(self) -> None:
        self._env.close()


def _pack(where: Location) -> bytes:
    return VALUE.pack(where.pack, where.offset, where.stored, where.raw, where.kind, where.codec, where.born)


def unpack(value: bytes) -> Location:
    """A location as :meth:`Index.page` returns it."""
    return Location._make(VALUE.unpack(value))
