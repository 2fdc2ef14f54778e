"""Reading a catalog: images, entries as any image has them, fingerprints, cursors, the live tree's row.

A reader is a read-only connection of its own, for one thread at a time, and ends within seconds (rules 35 and
36). Always ask with an ordinal, never with "died = open": rows of an image in the making are there
already."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias
from urllib.parse import quote

import apsw

from crproto.entries import DIRECTORY, Entry, LtHash
from crproto.paths import join, split

OPEN = 1 << 62
CLEAN, ROLLING, FUZZY, DIVERGED, CRASH = 1, 2, 4, 8, 16  # image flags
NO_IMAGE = bytes(32)
STAGING, COMPLETE = 0, 1
UNTESTED, GOOD, SUSPECT, BAD = 0, 1, 2, 3  # verdicts
_UNLIKE = (
    "NOT EXISTS (SELECT 1 FROM seen s WHERE s.dir=e.dir AND s.name=e.name AND s.dev=? AND s.ino=?"
    " AND s.size=? AND s.mtime_ns=? AND s.ctime_ns=?)"
)
VERDICTS = ("untested", "good", "suspect", "bad")
SPOOL_GIVEN_UP = "spool-given-up"  # meta key of a source: nothing of its chunks has to be kept (rule 40)
KEY_PAGE = 1000  # names of a folder that are read in one go
BUSY_MS = 250  # for a lock of another program, where the writer thread, and so every set, waits with it
MINIMUM_SQLITE = (3, 51, 3)  # older ones have the WAL-reset bug (rule 36)


_Bytes: TypeAlias = bytes  # inside classes that have a field of that name


class Image(NamedTuple):
    """One image's row. Times in ns since 1970; `bytes` sums file sizes; `flags` are CLEAN, ROLLING …"""

    ordinal: int
    id: bytes | None
    parent: bytes
    incarnation: bytes
    epoch: int
    sequence: int
    at_ns: int
    received_ns: int
    digest: bytes
    entries: int
    bytes: int
    flags: int
    state: int
    pinned: int
    name: str | None
    why: str | None
    verdict: int
    evidence: str | None
    manifest: _Bytes | None


def signed(number: int) -> int:
    """The same 64 bits as a signed number."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


class Fingerprint(NamedTuple):
    """What stat(2) said of the file that an entry came from: the answer to "is it still that file?"."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> Fingerprint:
        """That of what stat(2) said. Numbers are kept as SQLite can: an inode of 2^63 or more, as file
        systems that hash a name into it have, wraps around."""
        return cls(
            info.st_dev, signed(info.st_ino), info.st_size, signed(info.st_mtime_ns), signed(info.st_ctime_ns)
        )


class Live(NamedTuple):
    """The live tree: it shows image ordinal `at`, moves to `target`, and `synced` is durable on its disk."""

    at: int
    target: int
    synced: int
    state: str
    boot: str


class Cursor(NamedTuple):
    """The newest image that a target acknowledged."""

    target: str
    image: bytes
    ordinal: int
    at_ns: int


IMAGE = (
    "ordinal,id,parent,incarnation,epoch,sequence,at_ns,received_ns,digest,entries,bytes,flags,state,"
    "pinned,name,why,verdict,evidence,manifest"
)
ENTRY = "e.kind,e.mode,o.name,o.number,g.name,g.number,e.mtime_ns,e.size,e.content,e.level,e.extra"
NAMES = "JOIN principal o ON o.id=e.owner JOIN principal g ON g.id=e.grp"


class Totals(NamedTuple):
    """What an image digest is made of: number of entries, sum of file sizes in bytes, the LtHash state."""

    entries: int
    bytes: int
    lthash: LtHash


class Reader:
    """A read-only view on a catalog: one connection, to be used by one thread at a time and closed soon."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._db = connection
        # Without it SQLite prepares every join anew for each set of parameters (it might choose another plan,
        # with statistics that we do not keep): 33 instead of 3.8 us for an entry.
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _one(self, sql: str, args: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._db.execute(sql, args).fetchone()
        return row

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """All reads inside see one state of the catalog."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    # -- images

    def newest(self) -> Image | None:
        """The newest complete image."""
        row = self._one(f"SELECT {IMAGE} FROM image WHERE state=1 ORDER BY ordinal DESC LIMIT 1")
        return Image(*row) if row else None

    def staging(self) -> Image | None:
        """The image that is being staged, if any."""
        row = self._one(f"SELECT {IMAGE} FROM image WHERE state=0 ORDER BY ordinal DESC LIMIT 1")
        return Image(*row) if row else None

    def image(self, image_id: bytes) -> Image | None:
        row = self._one(f"SELECT {IMAGE} FROM image WHERE id=? AND state=1", (image_id,))
        return Image(*row) if row else None

    def image_at(self, ordinal: int) -> Image | None:
        row = self._one(f"SELECT {IMAGE} FROM image WHERE ordinal=?", (ordinal,))
        return Image(*row) if row else None

    def before(self, ordinal: int, least: int) -> int:
        """The ordinal of the complete image before `ordinal`; `least` where none is from there on."""
        row = self._one(
            "SELECT max(ordinal) FROM image WHERE state=1 AND ordinal>? AND ordinal<?", (least, ordinal)
        )
        return int(row[0]) if row and row[0] is not None else least

    def images(self) -> list[Image]:
        """All complete images, oldest first."""
        return [
            Image(*r) for r in self._db.execute(f"SELECT {IMAGE} FROM image WHERE state=1 ORDER BY ordinal")
        ]

    def readable_images(self) -> tuple[list[Image], bool]:
        """(the complete images whose rows can be read, oldest first; whether these are all of them): for a
        catalog that is damaged. It is read from both ends."""
        found: dict[int, Image] = {}
        whole = True
        for order in ("", " DESC"):
            try:
                for row in self._db.execute(f"SELECT {_IMAGE_RAW} FROM image ORDER BY ordinal{order}"):
                    image = _sound_image(row)
                    if image is None:
                        whole = False
                    elif image.state == COMPLETE and image.id is not None:
                        found[image.ordinal] = image
            except apsw.Error:
                whole = False
        # One bit in the head of a page makes it end before its last row: the index beside it has that still.
        with contextlib.suppress(apsw.Error):
            there = {image.id for image in found.values()}
            indexed = self._db.execute("SELECT id FROM main.image INDEXED BY image_id WHERE state=1")
            whole = all(name in there for (name,) in indexed) and whole
        return [found[ordinal] for ordinal in sorted(found)], whole

    def cursors(self) -> list[Cursor]:
        return [Cursor(*r) for r in self._db.execute("SELECT target,image,ordinal,at_ns FROM cursor")]

    def cursor(self, target: str) -> Cursor | None:
        row = self._one("SELECT target,image,ordinal,at_ns FROM cursor WHERE target=?", (target,))
        return Cursor(*row) if row else None

    def live(self) -> Live | None:
        row = self._one("SELECT at,target,synced,state,boot FROM live WHERE one=1")
        return Live(*row) if row else None

    def unapplied(self, limit: int = 100) -> list[tuple[bytes, str]]:
        """Paths that the live tree cannot hold, with the reason of each (rule 68)."""
        return list(self._db.execute("SELECT path,reason FROM unapplied ORDER BY path LIMIT ?", (limit,)))

    def unapplied_count(self) -> int:
        row = self._one("SELECT count(*) FROM unapplied")
        return int(row[0]) if row else 0

    def lost(self, limit: int = 100) -> list[tuple[bytes, str]]:
        """Paths that the source cannot take (sockets, devices, unreadable files), with the reason of each."""
        return list(self._db.execute("SELECT path,reason FROM lost ORDER BY path LIMIT ?", (limit,)))

    def deferred(self) -> list[bytes]:
        """Deletions that the live tree has not followed yet, because the image that made them was rolling."""
        return [r[0] for r in self._db.execute("SELECT path FROM deferred")]

    def touched(self, path: bytes) -> bool:
        """Whether `path` may hold something else than the image shown has: a move that was given up wrote
        it, or the last one could not."""
        return self._one("SELECT 1 FROM touched WHERE path=?", (path,)) is not None

    def any_touched(self) -> bool:
        """Whether any path is."""
        return self._one("SELECT 1 FROM touched LIMIT 1") is not None

    def touched_gone(self, ordinal: int) -> list[bytes]:
        """Those of the touched paths that image `ordinal` has not."""
        paths = [r[0] for r in self._db.execute("SELECT path FROM touched")]
        return [path for path in paths if self.entry(path, ordinal) is None]

    def touched_stays(self, base: int, ordinal: int) -> list[Entry]:
        """The entries of image `ordinal` at touched paths that image `base` has, too: names of files, of
        which other names came."""
        found = []
        for (path,) in _rows(self._db.execute("SELECT path FROM touched").fetchall()):
            key, entry = self.key_of(path, ordinal), self.entry(path, ordinal)
            if key is not None and key[0] <= base and entry is not None and entry.kind != DIRECTORY:
                found.append(entry)
        return found

    def meta(self, key: str) -> bytes | None:
        row = self._one("SELECT value FROM meta WHERE key=?", (key,))
        return row[0] if row else None

    # -- entries

    def ever_had(self, directory: bytes) -> bool:
        """Whether any image, also one in the making, had anything directly in `directory`, as far as is still
        known. One look-up, however much of its past is kept."""
        found = self._one(
            "SELECT 1 FROM entry WHERE dir=(SELECT id FROM dir WHERE path=?) LIMIT 1", (directory,)
        )
        return found is not None

    def dir_id(self, path: bytes) -> int | None:
        row = self._one("SELECT id FROM dir WHERE path=?", (path,))
        return int(row[0]) if row else None

    def entry(self, path: bytes, ordinal: int) -> Entry | None:
        """The entry at `path` as image `ordinal` has it."""
        head, name = split(path)
        row = self._one(
            f"SELECT {ENTRY} FROM entry e {NAMES} WHERE e.dir=(SELECT id FROM dir WHERE path=?)"
            " AND e.name=? AND e.born<=? AND e.died>?",
            (head, name, ordinal, ordinal),
        )
        return entry_of(path, row) if row else None

    def children(
        self, directory: bytes, ordinal: int, after: bytes = b"", limit: int = -1
    ) -> list[Entry]:
        """The entries directly in `directory`, by name: those with a name greater than `after`, at most
        `limit` (-1: all)."""
        rows = self._db.execute(
            f"SELECT e.name,{ENTRY} FROM entry e {NAMES} WHERE e.dir=(SELECT id FROM dir WHERE path=?)"
            " AND e.name>? AND e.born<=? AND e.died>? ORDER BY e.name LIMIT ?",
            (directory, after, ordinal, ordinal, limit),
        )
        return [entry_of(join(directory, r[0]), r[1:]) for r in rows]

    def names(self, directory: bytes, ordinal: int) -> dict[bytes, tuple[int, Fingerprint | None]]:
        """name -> (kind, fingerprint) of what is in `directory`: a scan compares it with the disk."""
        rows = self._db.execute(
            "SELECT e.name,e.kind,s.dev,s.ino,s.size,s.mtime_ns,s.ctime_ns FROM entry e"
            " LEFT JOIN seen s ON s.dir=e.dir AND s.name=e.name"
            " WHERE e.dir=(SELECT id FROM dir WHERE path=?) AND e.born<=? AND e.died>? AND e.name!=x''",
            (directory, ordinal, ordinal),
        )
        return {r[0]: (r[1], Fingerprint(*r[2:]) if r[2] is not None else None) for r in rows}

    def fingerprint(self, path: bytes) -> Fingerprint | None:
        head, name = split(path)
        row = self._one(
            "SELECT dev,ino,size,mtime_ns,ctime_ns FROM seen"
            " WHERE dir=(SELECT id FROM dir WHERE path=?) AND name=?",
            (head, name),
        )
        return Fingerprint(*row) if row else None

    def with_inode(
        self, dev: int, ino: int, limit: int = 1000, unlike: Fingerprint | None = None
    ) -> list[bytes]:
        """Paths whose recorded fingerprint has this inode: other names of a file, or its name before a
        rename. Without those where it is `unlike`."""
        rows = self._db.execute(
            "SELECT d.path,s.name FROM seen s JOIN dir d ON d.id=s.dir WHERE s.ino=? AND s.dev=?"
            " AND (? IS NULL OR s.size!=? OR s.mtime_ns!=? OR s.ctime_ns!=?) LIMIT ?",
            (signed(ino), dev, *((None,) * 4 if unlike is None else (1, *unlike[2:])), limit),
        )
        return [join(row[0], row[1]) for row in _rows(rows)]

    def subtree(self, path: bytes, ordinal: int) -> Iterator[Entry]:
        """`path` and everything below it, directory by directory."""
        top = self.entry(path, ordinal)
        if top is not None:
            yield top
        low, high = (path + b"/", path + b"0") if path else (b"", None)  # b'0' is the byte after b'/'
        dirs = self._db.execute(
            "SELECT id,path FROM dir WHERE path=?1 OR (path>=?2 AND (?3 IS NULL OR path<?3)) ORDER BY path",
            (path, low, high),
        ).fetchall()
        for number, directory in _rows(dirs):
            rows = self._db.execute(
                f"SELECT e.name,{ENTRY} FROM entry e {NAMES} WHERE e.dir=? AND e.born<=? AND e.died>?"
                " AND e.name!=x'' ORDER BY e.name",
                (number, ordinal, ordinal),
            ).fetchall()
            for row in _rows(rows):
                yield entry_of(join(directory, row[0]), row[1:])

    def came(
        self, base: int, to: int, after: tuple[int, int, bytes] | None = None, limit: int = 1000
    ) -> list[tuple[tuple[int, int, bytes], Entry]]:
        """Entries of image `to` that image `base` has not, a page at a time, each with the key to go on
        after."""
        born, directory, name = after or (base, OPEN, b"")
        rows = self._db.execute(
            f"SELECT e.born,e.dir,d.path,e.name,{ENTRY} FROM entry e {NAMES} JOIN dir d ON d.id=e.dir"
            " WHERE (e.born,e.dir,e.name)>(?,?,?) AND e.born<=? AND e.died>?"
            " ORDER BY e.born,e.dir,e.name LIMIT ?",
            (born, directory, name, to, to, limit),
        )
        return [((r[0], r[1], r[3]), entry_of(join(r[2], r[3]), r[4:])) for r in rows]

    def moves(
        self, base: int, to: int, after: tuple[int, int, bytes] | None = None, limit: int = 1000
    ) -> list[tuple[tuple[int, int, bytes], Entry, Entry | None, Fingerprint | None]]:
        """:meth:`came`, each with the entry that image `base` has there and the recorded fingerprint."""
        born, directory, name = after or (base, OPEN, b"")
        rows = self._db.execute(
            f"SELECT e.born,e.dir,d.path,e.name,{ENTRY},"
            " b.kind,b.mode,b.mtime_ns,b.size,b.content,b.level,b.extra,"
            " s.dev,s.ino,s.size,s.mtime_ns,s.ctime_ns"
            f" FROM entry e {NAMES} JOIN dir d ON d.id=e.dir"
            " LEFT JOIN entry b ON b.dir=e.dir AND b.name=e.name AND b.born<=?1 AND b.died>?1"
            " LEFT JOIN seen s ON s.dir=e.dir AND s.name=e.name"
            " WHERE (e.born,e.dir,e.name)>(?2,?3,?4) AND e.born<=?5 AND e.died>?5"
            " ORDER BY e.born,e.dir,e.name LIMIT ?6",
            (base, born, directory, name, to, limit),
        )
        out = []
        for r in rows:
            path = join(r[2], r[3])
            entry = entry_of(path, r[4:15])
            old = None
            if r[15] is not None:
                # Owners are those of the new entry: nothing that is decided from the old one looks at them.
                old = entry._replace(
                    kind=r[15],
                    mode=r[16],
                    mtime_ns=r[17],
                    size=r[18],
                    content=r[19],
                    level=r[20],
                    extra=r[21],
                )
            print_ = Fingerprint(*r[22:27]) if r[22] is not None else None
            out.append(((r[0], r[1], r[3]), entry, old, print_))
        return out

    def key_of(self, path: bytes, ordinal: int) -> tuple[int, int, bytes] | None:
        """The key of :meth:`came` for the entry at `path`."""
        head, name = split(path)
        row = self._one(
            "SELECT born,dir,name FROM entry WHERE dir=(SELECT id FROM dir WHERE path=?) AND name=?"
            " AND born<=? AND died>?",
            (head, name, ordinal, ordinal),
        )
        return (row[0], row[1], row[2]) if row else None

    def went(self, base: int, to: int) -> Iterator[bytes]:
        """Paths that image `base` has and image `to` has not.

        `base` must be a retained image (or a root of pruning): rows that ended before it may be gone.
        """
        rows = self._db.execute(
            "SELECT d.path,e.name FROM entry e JOIN dir d ON d.id=e.dir"
            " WHERE e.died>? AND e.died<=? AND e.died<4611686018427387904 AND e.born<=?"
            " AND NOT EXISTS (SELECT 1 FROM entry n WHERE n.dir=e.dir AND n.name=e.name"
            " AND n.born<=? AND n.died>?)"
            " ORDER BY d.path,e.name",
            (base, to, base, to, to),
        )
        for row in _rows(rows):
            yield join(row[0], row[1])

    def folders_touched(self, base: int, to: int) -> list[bytes]:
        """Every path that had something below it in any image and of which, from image `base` to image `to`,
        something directly in it or the path itself came or went: what may be no folder any more."""
        child = "CAST(CASE WHEN p.path=x'' THEN e.name ELSE p.path||x'2f'||e.name END AS BLOB)"
        rows = self._db.execute(
            "SELECT path FROM dir WHERE id IN"
            " (SELECT dir FROM entry WHERE born>?1 AND born<=?2 AND died>?2)"
            f" UNION SELECT c.path FROM entry e JOIN dir p ON p.id=e.dir JOIN dir c ON c.path={child}"
            " WHERE e.born>?1 AND e.born<=?2 AND e.died>?2 AND e.kind!=2"
            f" UNION SELECT c.path FROM entry e JOIN dir p ON p.id=e.dir JOIN dir c ON c.path={child}"
            " WHERE e.died>?1 AND e.died<=?2 AND e.died<4611686018427387904 AND e.born<=?1",
            (base, to),
        )
        return [row[0] for row in _rows(rows)]

    def link_members(
        self, link: bytes, kind: int, ordinal: int, unlike: Fingerprint | None = None
    ) -> list[bytes]:
        """Paths of a hard link group, of files or of symbolic links: inode numbers come again. Without those
        whose recorded fingerprint is `unlike`."""
        seen, values = "", tuple[object, ...]()
        if unlike is not None:
            seen, values = f" AND {_UNLIKE}", unlike
        rows = self._db.execute(
            "SELECT d.path,e.name FROM entry e JOIN dir d ON d.id=e.dir"
            f" WHERE e.link=? AND e.kind=? AND e.born<=? AND e.died>?{seen}"
            " ORDER BY d.path,e.name",
            (link, kind, ordinal, ordinal, *values),
        )
        return [join(row[0], row[1]) for row in _rows(rows)]

    def link_entries(self, link: bytes, kind: int, ordinal: int) -> Iterator[Entry]:
        """The entries of a hard link group, by path."""
        rows = self._db.execute(
            f"SELECT d.path,e.name,{ENTRY} FROM entry e {NAMES} JOIN dir d ON d.id=e.dir"
            " WHERE e.link=? AND e.kind=? AND e.born<=? AND e.died>?"
            " ORDER BY d.path,e.name",
            (link, kind, ordinal, ordinal),
        )
        for row in _rows(rows):
            yield entry_of(join(row[0], row[1]), row[2:])

    def in_key_order(
        self, ordinal: int, low: tuple[bytes, bytes], high: tuple[bytes, bytes] | None
    ) -> Iterator[Entry]:
        """Entries with low <= (directory, name) < high in that order, in which two nodes compare."""
        dirs = self._db.execute(
            "SELECT id,path FROM dir WHERE path>=? AND (?2 IS NULL OR path<=?2) ORDER BY path",
            (low[0], high[0] if high else None),
        ).fetchall()
        for number, directory in _rows(dirs):
            # Only names of the range, and some at a time: a folder of a million has thousands of ranges.
            first = low[1] if directory == low[0] else b""
            end = high[1] if high is not None and directory == high[0] else None
            below = "" if end is None else " AND e.name<?5"
            while True:
                rows = self._db.execute(
                    f"SELECT e.name,{ENTRY} FROM entry e {NAMES}"
                    f" WHERE e.dir=?1 AND e.name>=?2 AND e.born<=?3 AND e.died>?3{below}"
                    " ORDER BY e.name LIMIT ?4",
                    (number, first, ordinal, KEY_PAGE, *(() if end is None else (end,))),
                ).fetchall()
                for row in _rows(rows):
                    yield entry_of(join(directory, row[0]), row[1:])
                if len(rows) < KEY_PAGE:
                    break
                first = bytes(rows[-1][0]) + b"\0"  # type: ignore[arg-type]

    def history(self, path: bytes) -> list[tuple[int, int, Entry]]:
        """(born, died, entry) of every row of `path`, oldest first."""
        head, name = split(path)
        rows = self._db.execute(
            f"SELECT e.born,e.died,{ENTRY} FROM entry e {NAMES}"
            " WHERE e.dir=(SELECT id FROM dir WHERE path=?) AND e.name=? ORDER BY e.born",
            (head, name),
        )
        return [(r[0], r[1], entry_of(path, r[2:])) for r in rows]

    def contents(self) -> Iterator[tuple[bytes, int]]:
        """Every (content id, level) that any row names, some more than once: the roots of collection."""
        yield from self._db.execute("SELECT content,level FROM entry WHERE content IS NOT NULL")
        for (manifest,) in self._db.execute("SELECT manifest FROM image WHERE manifest IS NOT NULL"):
            yield manifest[:32], manifest[32]

    def content_rows(
        self, after: tuple[int, bytes, int] | None, limit: int
    ) -> list[tuple[tuple[int, bytes, int], tuple[bytes, int, int, bytes, int]]]:
        """A page of all rows with content, of every image: (key to go on after, (path, born, died, content,
        level))."""
        rows = self._db.execute(
            "SELECT e.dir,e.name,e.born,d.path,e.died,e.content,e.level FROM entry e JOIN dir d ON d.id=e.dir"
            " WHERE (e.dir,e.name,e.born)>(?,?,?) AND e.content IS NOT NULL"
            " ORDER BY e.dir,e.name,e.born LIMIT ?",
            (*(after or (0, b"", 0)), limit),
        )
        return [((r[0], r[1], r[2]), (join(r[3], r[1]), r[2], r[4], r[5], r[6])) for r in rows]

    def walk(
        self, ordinal: int, page: int = 1000, after: tuple[bytes, bytes] | None = None
    ) -> Iterator[Entry]:
        """All entries of image `ordinal` by (directory, name), or those behind `after`: an order that every
        node shares. Short reads, so that neither memory nor the WAL is held up by a large image; the image
        must not be pruned meanwhile."""
        path, first = (after[0], after[1] + b"\0") if after is not None else (b"", b"")
        while True:
            found = self._db.execute(
                "SELECT id,path FROM dir WHERE path>=? ORDER BY path LIMIT ?", (path, page)
            )
            dirs = list(_rows(found))
            for number, directory in dirs:
                name = first if after is not None and directory == after[0] else b""
                while True:
                    found = self._db.execute(
                        f"SELECT e.name,{ENTRY} FROM entry e {NAMES} WHERE e.dir=? AND e.name>=?"
                        " AND e.born<=? AND e.died>? ORDER BY e.name LIMIT ?",
                        (number, name, ordinal, ordinal, page),
                    )
                    rows = list(_rows(found))
                    for row in rows:
                        yield entry_of(join(directory, row[0]), row[1:])
                    if len(rows) < page:
                        break
                    name = rows[-1][0] + b"\0"  # the next possible name
            if len(dirs) < page:
                return
            path = dirs[-1][1] + b"\0"

    def rows(
        self, after: tuple[int, bytes, int] | None = None, limit: int = 1000
    ) -> list[tuple[tuple[int, bytes, int], int, int, Entry]]:
        """Every row of every image, a page at a time: the key to go on after, born, died, the entry."""
        found = self._db.execute(
            f"SELECT e.dir,e.name,e.born,e.died,d.path,{ENTRY} FROM entry e {NAMES} JOIN dir d ON d.id=e.dir"
            " WHERE (e.dir,e.name,e.born)>(?,?,?) ORDER BY e.dir,e.name,e.born LIMIT ?",
            (*(after or (-1, b"", 0)), limit),
        )
        return [((r[0], r[1], r[2]), r[2], r[3], entry_of(join(r[4], r[1]), r[5:])) for r in _rows(found)]

    def files(self, ordinal: int) -> Iterator[Entry]:
        """All entries with content in image `ordinal`, in storage order."""
        rows = self._db.execute(
            f"SELECT d.path,e.name,{ENTRY} FROM entry e {NAMES} JOIN dir d ON d.id=e.dir"
            " WHERE e.born<=? AND e.died>? AND e.content IS NOT NULL",
            (ordinal, ordinal),
        )
        for row in rows:
            yield entry_of(join(row[0], row[1]), row[2:])

    def blocks(self, segment: bytes) -> bytes:
        """Seeded xxh3 of each 4 KiB of each chunk of a recipe segment; b'' when unknown (then it is cut
        anew)."""
        row = self._one("SELECT hashes FROM block WHERE segment=?", (segment,))
        return row[0] if row else b""

    def segments(self) -> list[bytes]:
        """Ids of all recipe segments whose block hashes are kept."""
        return [r[0] for r in self._db.execute("SELECT segment FROM block")]

    def quick_check(self) -> str:
        """SQLite's own check; 'ok' or what is wrong."""
        row = self._one("PRAGMA quick_check(1)")
        return str(row[0]) if row else "no answer"

    def is_blank(self) -> bool:
        """Whether nothing was ever written to it. The number of its schema alone does not say so: a flipped
        bit makes it 0."""
        row = self._one("PRAGMA user_version")
        return row == (0,) and self._one("SELECT 1 FROM sqlite_schema") is None

    def totals(self) -> Totals:
        """Entries, bytes and LtHash state of the newest complete image."""
        return _totals(self.meta("totals"))

    def staged_totals(self) -> Totals | None:
        """The same of the image that is being staged."""
        value = self.meta("staged")
        return _totals(value) if value is not None else None


_TEXTS = ("name", "why", "evidence")
# Text as bytes: SQLite gives out what damage made of it, which need be no text any more.
_IMAGE_RAW = ",".join(f"CAST({field} AS BLOB)" if field in _TEXTS else field for field in Image._fields)
_LENGTHS = {"id": 32, "parent": 32, "incarnation": 16, "digest": 32, "manifest": 33}
_NULLABLE = frozenset(("id", "manifest", *_TEXTS))


def _sound_image(row: tuple[Any, ...]) -> Image | None:
    """The image of a row of _IMAGE_RAW; None where a value is of a kind that was never written: a flipped
    bit in the header of a row makes NULL or a float of a number."""
    values = dict(zip(Image._fields, row, strict=True))
    for field, value in values.items():
        if value is None and field in _NULLABLE:
            continue
        if field in _TEXTS:
            values[field] = value.decode("utf-8", "replace")
        elif field in _LENGTHS:
            if not isinstance(value, bytes) or len(value) != _LENGTHS[field]:
                return None
        elif not isinstance(value, int):
            return None
    return Image(**values)


def _rows(cursor: Iterable[Any]) -> Iterable[tuple[Any, ...]]:
    return cursor


def _totals(value: bytes | None) -> Totals:
    if value is None:
        return Totals(0, 0, LtHash())
    return Totals(
        int.from_bytes(value[:8], "big"), int.from_bytes(value[8:24], "big"), LtHash.from_bytes(value[24:])
    )


def totals_bytes(totals: Totals) -> bytes:
    """How totals are kept in the catalog's meta table."""
    return totals.entries.to_bytes(8, "big") + totals.bytes.to_bytes(16, "big") + totals.lthash.to_bytes()


def entry_of(path: bytes, row: tuple[Any, ...]) -> Entry:
    """The entry of a row of ENTRY."""
    kind, mode, owner, owner_id, group, group_id, mtime_ns, size, content, level, extra = row
    return Entry(path, kind, mode, owner, owner_id, group, group_id, mtime_ns, size, content, level, extra)


def connect(path: Path, busy_ms: int = 2000) -> apsw.Connection:
    """A connection that changes nothing in the catalog, also for other processes, and waits `busy_ms` for a
    lock. Raises apsw.Error when it cannot be read."""
    db = apsw.Connection(
        f"file:{quote(str(path))}?mode=ro", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    )
    db.set_busy_timeout(busy_ms)
    db.execute("PRAGMA mmap_size=0")
    return db


def open_reader(path: Path, busy_ms: int = 2000) -> Reader:
    """A reader of a catalog, also for other processes. Raises apsw.Error when it cannot be read."""
    db = connect(path, busy_ms)
    db.execute("PRAGMA query_only=1")
    return Reader(db)
