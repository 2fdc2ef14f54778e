"""What belongs together and is brought back as one: a database, and what it has not put into its file yet
(rule 69). Pure.

SQLite keeps that in files beside the database (https://www.sqlite.org/tempfiles.html); PostgreSQL and
MySQL/MariaDB in the rest of their data directories. A file of one time beside those of another is a database
that is damaged, or silently other than it ever was.
"""

from __future__ import annotations

from collections.abc import Callable

from crproto.paths import join, split

SQLITE_MAGIC = b"SQLite format 3\0"
_SIDES = (b"-wal", b"-journal", b"-shm")
_DATA_DIRECTORIES = (
    ((b"PG_VERSION", b"global"), b"postmaster.pid"),  # PostgreSQL, "Database File Layout"
    ((b"ibdata1", b"mysql"), b""),  # MySQL and MariaDB, "The InnoDB System Tablespace"
)


def sides_of(path: bytes) -> tuple[bytes, ...]:
    """The other files that a database at `path`, or beside it, may consist of."""
    base = base_of(path)
    return tuple(one for one in (base, *(base + side for side in _SIDES)) if one != path)


def base_of(path: bytes) -> bytes:
    """The database to which a file belongs, by its name; itself where its name does not say so."""
    for side in _SIDES:
        if path.endswith(side) and split(path)[1] != side:
            return path[: -len(side)]
    return path


def data_directory_above(path: bytes, has: Callable[[bytes], bool]) -> bytes | None:
    """The outermost folder above `path` that is a database server's data directory; None when none is. `has`:
    whether there is something at a path."""
    at = 0
    while True:
        folder = path[:at].rstrip(b"/")
        if folder != path and any(all(has(join(folder, n)) for n in names) for names, _ in _DATA_DIRECTORIES):
            return folder
        if at == len(path):
            return None
        at = path.find(b"/", at + 1)
        at = len(path) if at < 0 else at


def process_files(folder: bytes) -> tuple[bytes, ...]:
    """Where a server says in its data directory which process it is."""
    return tuple(join(folder, name) for _, name in _DATA_DIRECTORIES if name)


__all__ = ["SQLITE_MAGIC", "base_of", "data_directory_above", "process_files", "sides_of"]
