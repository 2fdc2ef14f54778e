"""Looking at versions without restoring them: what a folder holds, what differs between two, where a name
was.

Everything is asked of SQLite in few statements, which run without the interpreter's lock: an agent that
answers such a question goes on replicating."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crnode.store.reader import Image, Reader, connect
from crproto.entries import DIRECTORY, Entry

_PATH = "CAST(CASE WHEN d.path=x'' THEN e.name ELSE d.path||x'2f'||e.name END AS BLOB)"
_WHAT = (
    "CASE WHEN b.kind IS NULL THEN 'added'"
    " WHEN b.kind!=e.kind THEN 'changed'"
    " WHEN e.kind=1 AND (b.content IS NOT e.content OR b.size!=e.size) THEN 'changed'"
    " WHEN e.kind=3 AND b.extra!=e.extra THEN 'changed'"
    " WHEN b.mode!=e.mode OR b.owner!=e.owner OR b.grp!=e.grp OR b.extra!=e.extra"
    " OR (e.kind=1 AND b.mtime_ns!=e.mtime_ns) THEN 'attributes' END"
)
MANY = 0.2  # rows that came between two images, to one of the later: above, the whole table is read through
KINDS = ("added", "changed", "attributes", "deleted", "renamed")
_BACKWARDS = {"added": "deleted", "deleted": "added"}


class Difference(NamedTuple):
    """One path that differs between two images. `attributes`: only mode, owner, time or the like do. Sizes
    in bytes, None where it is not there; `before` is the path that a renamed file had."""

    what: str  # one of KINDS
    path: bytes
    before: bytes | None
    size: int | None
    old_size: int | None


class Differences(NamedTuple):
    """`rows` are the first ones by path; `counts` has (paths, bytes) of all, by kind: the bytes that are
    there in the second image, or for what was deleted in the first."""

    rows: list[Difference]
    counts: dict[str, tuple[int, int]]


class Found(NamedTuple):
    """A path that was searched for: the kind and size it had last, and the images (places in the list that
    was given) of its first and last appearance."""

    path: bytes
    kind: int
    size: int
    first: int
    last: int


class Deleted(NamedTuple):
    """A path that is no more: what it was last, and the ordinals [born, died) of images that had it so."""

    path: bytes
    kind: int
    size: int
    born: int
    died: int


class Looker(Reader):
    """A reader that may have temporary tables of its own. One thread at a time; close it soon."""

    def __init__(self, path: Path) -> None:
        """Raises apsw.Error when the catalog cannot be read."""
        super().__init__(connect(path))

    def folder(self, path: bytes, ordinal: int, after: bytes, limit: int) -> list[Entry] | None:
        """Up to `limit` entries directly in the folder `path`, those with a name greater than `after`; for
        what is no folder its own entry; None when image `ordinal` has no such path."""
        top = self.entry(path, ordinal)
        if top is None and path:  # a set of several folders, or a group, has no entry for what holds them
            return None
        if top is not None and top.kind != DIRECTORY:
            return [top]
        return self.children(path, ordinal, after, limit)

    def search(self, text: bytes, images: Sequence[Image], limit: int) -> list[Found]:
        """Paths of any of `images` (oldest first) whose name contains `text`, or matches it where `*` or `?`
        are in it; the whole path is looked at where it has a slash. Letters of ASCII match in both cases."""
        subject = f"lower(CAST({_PATH if b'/' in text else 'e.name'} AS TEXT))"
        shell = b"*" in text or b"?" in text
        if shell:
            text = text.replace(b"[", b"[[]")
        wanted = "lower(CAST(?1 AS TEXT))"
        match = f"{subject} GLOB {wanted}" if shell else f"instr({subject},{wanted})"
        ordinals = [image.ordinal for image in images]
        if not ordinals:
            return []
        self._table("kept", "place INTEGER PRIMARY KEY, ordinal INTEGER UNIQUE")
        self._db.executemany("INSERT INTO kept VALUES (?,?)", list(enumerate(ordinals)))
        rows = self._db.execute(
            # With one max() alone the other columns are those of its row, which is the last one.
            "SELECT path,kind,size,first,max(last) FROM (SELECT path,kind,size,last,"
            "min(first) OVER (PARTITION BY path) AS first FROM"
            f" (SELECT {_PATH} AS path,e.kind AS kind,e.size AS size,"
            "(SELECT min(place) FROM kept WHERE ordinal>=e.born AND ordinal<e.died) AS first,"
            "(SELECT max(place) FROM kept WHERE ordinal>=e.born AND ordinal<e.died) AS last"
            f" FROM entry e JOIN dir d ON d.id=e.dir WHERE {match} AND e.name!=x'')"
            " WHERE first IS NOT NULL) GROUP BY path ORDER BY path LIMIT ?2",
            (text, limit),
        )
        return [Found(*row) for row in rows]

    def deleted(self, newest: int, below: bytes, limit: int) -> tuple[list[Deleted], int, int]:
        """(the first paths at and below `below`, in order, of which rows are left and which image `newest`
        has not; how many there are in all; bytes in them): files and links. What was renamed is among them,
        under the name that it had."""
        self._table("absent", "path BLOB, kind INTEGER, size INTEGER, born INTEGER, died INTEGER")
        self._db.execute(
            f"INSERT INTO absent SELECT {_PATH},e.kind,e.size,e.born,e.died FROM entry e"
            " JOIN dir d ON d.id=e.dir"
            f" WHERE e.died<=?1 AND e.died<4611686018427387904 AND e.kind!={DIRECTORY} AND NOT EXISTS"
            " (SELECT 1 FROM entry n WHERE n.dir=e.dir AND n.name=e.name AND n.born>e.born AND n.born<=?1)",
            (newest,),
        )
        if below:
            edge = "path=?1 OR (path>=?2 AND path<?3)"
            self._db.execute(f"DELETE FROM absent WHERE NOT ({edge})", (below, below + b"/", below + b"0"))
        rows: list[tuple[Any, ...]] = self._db.execute(
            f"SELECT * FROM absent ORDER BY path LIMIT {int(limit)}"
        ).fetchall()
        count, size = self._one("SELECT count(*),sum(size) FROM absent") or (0, 0)
        return [Deleted(*row) for row in rows], int(count), int(size or 0)

    def differences(self, first: int, second: int, below: bytes, limit: int) -> Differences:
        """What differs from image `first` to image `second`, at and below the path `below`; both are held.

        A file that is gone and one with the same content that came are one that was renamed. A folder of
        which only the time changed, because something in it did, is left out."""
        low, high = sorted((first, second))
        self._collect(low, high)
        known = "SELECT path FROM renamed"
        was = "SELECT before FROM renamed"
        everything = (
            "SELECT 'renamed' AS what,path,before,size,size AS old_size FROM renamed"
            f" UNION ALL SELECT what,path,NULL,size,old_size FROM came WHERE path NOT IN ({known})"
            f" UNION ALL SELECT 'deleted',path,NULL,NULL,size FROM gone WHERE path NOT IN ({was})"
        )
        inside = ""
        args: tuple[Any, ...] = ()
        if below:
            edge = "({0}=?1 OR ({0}>=?2 AND {0}<?3))"
            inside = f" WHERE {edge.format('path')} OR (before IS NOT NULL AND {edge.format('before')})"
            args = (below, below + b"/", below + b"0")
        sizes = "size,old_size" if first == low else "old_size,size"
        counts = {
            what: (int(paths), int(size or 0))
            for what, paths, size in self._db.execute(
                f"SELECT what,count(*),sum(coalesce({sizes})) FROM"
                f" (SELECT * FROM ({everything}){inside}) GROUP BY what",
                args,
            )
        }
        rows = [
            Difference(*row)
            for row in self._db.execute(
                f"SELECT * FROM ({everything}){inside} ORDER BY path LIMIT {int(limit)}", args
            )
        ]
        if first > second:
            rows = sorted(map(_backwards, rows), key=lambda row: row.path)
            counts = {_BACKWARDS.get(what, what): value for what, value in counts.items()}
        return Differences(rows, counts)

    def _collect(self, low: int, high: int) -> None:
        """Fill the tables came, gone and renamed."""
        for name in ("came", "gone", "renamed"):
            self._db.execute(f"DROP TABLE IF EXISTS temp.{name}")
        image = self.image_at(high)
        many = int((image.entries if image is not None else 0) * MANY)
        found = self._one(
            "SELECT count(*) FROM (SELECT 1 FROM entry WHERE born>?1 AND born<=?2 LIMIT ?3)",
            (low, high, many + 1),
        )
        if found is not None and found[0] > many:
            self._read_through(low, high)
        else:
            self._look_up(low, high)
        one = (
            "SELECT path,size,content,row_number() OVER (PARTITION BY content,size ORDER BY path) AS n"
            " FROM {} WHERE kind=1 AND content IS NOT NULL{}"
        )
        added = one.format("came", " AND what='added'")
        self._db.execute(
            "CREATE TEMP TABLE renamed AS SELECT c.path AS path,g.path AS before,c.size AS size"
            f" FROM ({added}) c JOIN ({one.format('gone', '')}) g"
            " ON g.content=c.content AND g.size=c.size AND g.n=c.n"
        )

    def _read_through(self, low: int, high: int) -> None:
        """Fill came and gone in one pass over the whole table, in its own order: what a path was and what it
        is stand beside each other there. A look-up costs as much as ten rows."""
        self._db.execute("DROP TABLE IF EXISTS temp.row")
        self._db.execute(
            "CREATE TEMP TABLE row AS SELECT dir,name,born>?1 AS new,kind,mode,owner,grp,mtime_ns,size,"
            "content,extra"
            " FROM entry WHERE (born<=?1 AND died>?1 AND died<=?2) OR (born>?1 AND born<=?2 AND died>?2)"
            " ORDER BY dir,name,born",
            (low, high),
        )
        beside = "LEFT JOIN row {0} ON {0}.rowid=e.rowid{1} AND {0}.dir=e.dir AND {0}.name=e.name"
        self._db.execute(
            f"CREATE TEMP TABLE came AS SELECT {_PATH} AS path,e.kind AS kind,e.size AS size,"
            f"e.content AS content,b.size AS old_size,{_WHAT} AS what FROM row e {beside.format('b', '-1')}"
            f" JOIN dir d ON d.id=e.dir WHERE e.new AND {_WHAT} IS NOT NULL"
        )
        self._db.execute(
            f"CREATE TEMP TABLE gone AS SELECT {_PATH} AS path,e.kind AS kind,e.size AS size,"
            f"e.content AS content FROM row e {beside.format('n', '+1')} JOIN dir d ON d.id=e.dir"
            " WHERE NOT e.new AND n.dir IS NULL"
        )
        self._db.execute("DROP TABLE temp.row")

    def _look_up(self, low: int, high: int) -> None:
        """Fill came and gone by looking each path up that changed."""
        self._db.execute(
            f"CREATE TEMP TABLE came AS SELECT {_PATH} AS path,e.kind AS kind,e.size AS size,"
            f"e.content AS content,b.size AS old_size,{_WHAT} AS what FROM entry e JOIN dir d ON d.id=e.dir"
            " LEFT JOIN entry b ON b.dir=e.dir AND b.name=e.name AND b.born<=?1 AND b.died>?1"
            f" WHERE e.born>?1 AND e.born<=?2 AND e.died>?2 AND {_WHAT} IS NOT NULL",
            (low, high),
        )
        self._db.execute(
            f"CREATE TEMP TABLE gone AS SELECT {_PATH} AS path,e.kind AS kind,e.size AS size,"
            "e.content AS content FROM entry e JOIN dir d ON d.id=e.dir"
            " WHERE e.died>?1 AND e.died<=?2 AND e.died<4611686018427387904 AND e.born<=?1"
            " AND NOT EXISTS (SELECT 1 FROM entry n WHERE n.dir=e.dir AND n.name=e.name"
            " AND n.born<=?2 AND n.died>?2)",
            (low, high),
        )

    def _table(self, name: str, columns: str) -> None:
        self._db.execute(f"DROP TABLE IF EXISTS temp.{name}")
        self._db.execute(f"CREATE TEMP TABLE {name} ({columns})")


def _backwards(row: Difference) -> Difference:
    what = _BACKWARDS.get(row.what, row.what)
    if row.before is not None:
        return Difference(what, row.before, row.path, row.old_size, row.size)
    return Difference(what, row.path, None, row.old_size, row.size)


def shown(entry: Entry, folder: bytes) -> bytes:
    """How an entry of a listing is called in it: its name in the folder."""
    return entry.path[len(folder) + 1 :] if folder and entry.path.startswith(folder + b"/") else entry.path


__all__ = ["KINDS", "Deleted", "Difference", "Differences", "Found", "Looker", "shown"]
