"""The index: content id -> place in the packs, in LMDB, committed lazily.

It holds nothing that the packs do not say, so a lost or damaged index costs a scan and no data. Entries appended
since the last commit live in `pending`; the position up to which each pack is indexed is committed in the same
transaction, and on open the packs' tails behind it are read again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import lmdb

from crnode.store.packs import Location

_VALUE = struct.Struct(">IQIIBBI")
_POSITION = struct.Struct(">Q")
# Address space, not memory: room for 500 million objects. It is never raised while open, because LMDB allows that
# only without any reader in the process; a larger index gets a larger map when it is opened next.
_MAP_SIZE = 64 << 30


class Index:
    """Maps 32-byte content ids to :class:`Location`. One writing thread; any thread may look up."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        size = _MAP_SIZE
        data = directory / "data.mdb"
        while data.exists() and size < data.stat().st_size * 2:
            size *= 2
        self._env = lmdb.open(
            str(directory), map_size=size, max_dbs=2, readahead=False, max_readers=256, mode=0o600
        )
        self._objects = self._env.open_db(b"objects")
        self._positions = self._env.open_db(b"positions")
        self._env.reader_check()
        self.pending: dict[bytes, Location] = {}

    def get(self, content: bytes) -> Location | None:
        """Where the object lies, or None."""
        where = self.pending.get(content)
        if where is not None:
            return where
        with self._env.begin(db=self._objects) as txn:
            value = txn.get(content)
        return Location(*_order(_VALUE.unpack(value))) if value is not None else None

    def missing(self, ids: list[bytes]) -> list[bytes]:
        """Those of `ids` that are not indexed, in one read transaction."""
        with self._env.begin(db=self._objects) as txn:
            return [i for i in ids if i not in self.pending and txn.get(i) is None]

    def put(self, content: bytes, where: Location) -> None:
        self.pending[content] = where

    def commit(self, positions: dict[int, int], removed: list[bytes] | None = None, gone: list[int] | None = None) -> None:
        """Write what is pending, remove `removed` ids and the positions of `gone` packs, in one transaction."""
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
        # A reader that misses `pending` from here on begins its transaction after this commit and finds the id there.
        for key, where in batch.items():
            if self.pending.get(key) is where:
                del self.pending[key]

    def positions(self) -> dict[int, int]:
        """Pack number -> offset in bytes up to which its records are in the index."""
        with self._env.begin(db=self._positions) as txn:
            return {int(bytes(k)): _POSITION.unpack(v)[0] for k, v in txn.cursor()}

    def items(self) -> Iterator[tuple[bytes, Location]]:
        """All committed entries in key order. Holds a read transaction: for children and short stores only."""
        with self._env.begin(db=self._objects) as txn:
            for key, value in txn.cursor():
                yield bytes(key), Location(*_order(_VALUE.unpack(value)))

    def count(self) -> int:
        with self._env.begin(db=self._objects) as txn:
            return int(txn.stat(self._objects)["entries"])

    def close(self) -> None:
        self._env.close()


def _pack(where: Location) -> bytes:
    return _VALUE.pack(where.pack, where.offset, where.stored, where.raw, where.kind, where.codec, where.born)


def _order(values: tuple[int, ...]) -> tuple[int, int, int, int, int, int, int]:
    pack, offset, stored, raw, kind, codec, born = values
    return pack, offset, stored, raw, kind, codec, born
