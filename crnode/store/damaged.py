"""Reading a catalog that is damaged: as far as it goes, and whatever its values have become."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

import apsw

from crnode.store.reader import BUSY_MS, Reader, connect
from crnode.store.store import Damaged, Missing
from crproto.errors import ProtocolError

UNREADABLE = (
    Missing, Damaged, ProtocolError, apsw.Error, ValueError, TypeError, AttributeError, OverflowError,
)  # fmt: skip
"""What reading a damaged manifest or catalog may raise, whose values can be of any kind."""


def connect_damaged(path: Path) -> apsw.Connection:
    """A connection that changes nothing, and that knows columns by their places: a flipped bit in the page of
    the schema makes another name of one. All that is read by it is of one moment, so that a lock of somebody
    else shows here or not at all. Raises apsw.Error."""
    db = connect(path, BUSY_MS)
    try:
        db.execute("BEGIN")
        db.execute("PRAGMA schema_version").fetchall()  # of the header: nothing else need be whole
        for table, columns in _tables():
            db.execute(f"CREATE TEMP VIEW {table} ({columns}) AS SELECT * FROM main.{table}")
        db.execute("PRAGMA query_only=1")
    except apsw.Error:
        db.close()
        raise
    return db


def open_damaged(path: Path) -> Reader:
    """A reader of such a catalog. Raises apsw.Error when nothing of it can be read."""
    return Reader(connect_damaged(path))


def changed_table(db: apsw.Connection) -> str | None:
    """A table whose columns are not those of the schema, None when there is none: a statement that names one
    would fail one day, while all goes on."""
    return next((table for table, columns in _tables() if _columns(db, table) != columns), None)


def _columns(db: apsw.Connection, table: str) -> str:
    # As bytes: what damage made of a name need be no text any more.
    rows = db.execute("SELECT CAST(name AS BLOB) FROM pragma_table_info(?) ORDER BY cid", (table,))
    return b",".join(row[0] for row in rows).decode("utf-8", "replace")


@cache
def _tables() -> list[tuple[str, str]]:
    """(table, its columns) of the schema."""
    db = apsw.Connection(":memory:")
    db.execute(resources.files("crnode.store").joinpath("schema.sql").read_text())
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type='table'")]
    found = [(table, _columns(db, table)) for table in tables]
    db.close()
    return found
