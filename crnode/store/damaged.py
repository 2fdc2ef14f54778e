"""Reading a catalog that is damaged: as far as it goes, and whatever its values have become."""

from __future__ import annotations

import contextlib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import apsw

from crnode.store.reader import BUSY_MS, Image, Reader, connect
from crnode.store.store import Damaged, Missing
from crproto.errors import ProtocolError
from crproto.ids import image_id

UNREADABLE = (
    Missing, Damaged, ProtocolError, apsw.Error, ValueError, TypeError, AttributeError, OverflowError,
)  # fmt: skip
"""What reading a damaged manifest or catalog may raise, whose values can be of any kind."""


# As bytes: what damage made of a text need be none any more.
_SCHEMA = "SELECT CAST(name AS BLOB),CAST(sql AS BLOB) FROM sqlite_schema ORDER BY rowid"


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


def is_schema(db: apsw.Connection) -> bool:
    """Whether a catalog has the schema of this crnode to the letter, and nothing else: no newer one wrote it,
    whatever its number says."""
    return bool(db.execute(_SCHEMA).fetchall() == _own_schema())


def gives_id(set_uuid: bytes, image: Image) -> bool:
    """Whether the header of an image gives its id, with this set: both are what they were."""
    try:
        named = image_id(
            image.parent, set_uuid, image.incarnation, image.epoch, image.sequence, image.at_ns, image.digest
        )
    except UNREADABLE:  # a number that no image has
        return False
    return named == image.id


def _columns(db: apsw.Connection, table: str) -> str:
    # As bytes: what damage made of a name need be no text any more.
    rows = db.execute("SELECT CAST(name AS BLOB) FROM pragma_table_info(?) ORDER BY cid", (table,))
    return b",".join(row[0] for row in rows).decode("utf-8", "replace")


def _fresh() -> apsw.Connection:
    db = apsw.Connection(":memory:")
    db.execute(resources.files("crnode.store").joinpath("schema.sql").read_text())
    return db


@cache
def _own_schema() -> list[tuple[Any, ...]]:
    with contextlib.closing(_fresh()) as db:
        return db.execute(_SCHEMA).fetchall()


@cache
def _tables() -> list[tuple[str, str]]:
    """(table, its columns) of the schema."""
    db = _fresh()
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type='table'")]
    found = [(table, _columns(db, table)) for table in tables]
    db.close()
    return found
