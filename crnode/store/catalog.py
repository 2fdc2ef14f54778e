"""Writing the catalog of one set: which entries every image has, who acknowledged what, what the live tree
shows.

Writing methods run inside a transaction of the one writing connection, in the writer thread. Other threads
read through :meth:`Catalog.reader` (reader.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

import apsw

from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import fsync_dir
from crnode.store.damaged import changed_table, gives_id, is_schema
from crnode.store.packs import StoreFailed
from crnode.store.reader import (
    BUSY_MS,
    COMPLETE,
    ENTRY,
    IMAGE,
    NAMES,
    OPEN,
    STAGING,
    Fingerprint,
    Image,
    Live,
    Reader,
    Totals,
    entry_of,
    open_reader,
    totals_bytes,
)
from crproto.entries import DIRECTORY, Entry, entry_bytes, image_digest, link_of
from crproto.paths import split

FOLDERS_LOOKED_AT = 20  # by each pruning
SCHEMA_VERSION = 1  # another one comes with another text of the schema: a flipped bit of it alone is damage


class Catalog(Reader):
    """The writing side; see the module's text. Opening raises CatalogDamaged only for what is damage, else
    CrnodeError."""

    def __init__(self, path: Path, set_uuid: bytes) -> None:
        self.path = path
        self.set_uuid = set_uuid
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fsync_dir(path.parent.parent)
        try:
            super().__init__(apsw.Connection(str(path)))
        except apsw.Error as error:
            raise _unusable(path, error) from error
        self._principals: dict[tuple[str, int], int] = {}
        self._dirs: dict[bytes, int] = {}
        self._walked = 0  # id of the folder up to which it was looked whether they are used
        self.suspect = False  # the store may not be the one that the rows were written with (rule 32)
        self.looked_up = False  # since then every id was looked up, and what is lacking is known
        self.lacking: set[bytes] = set()  # paths of the newest image whose content is not all here
        self.pruned_rows = 0  # since it was opened: a hint that there is something to collect
        db = self._db
        try:
            db.set_busy_timeout(BUSY_MS)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA wal_autocheckpoint=0")
            db.execute("PRAGMA foreign_keys=OFF")
            db.execute("PRAGMA mmap_size=0")
            version = self._one("PRAGMA user_version")
            assert version is not None
            if version[0] == 0:
                self._create()
            elif ((version[0] ^ SCHEMA_VERSION) & 0xFFFFFFFF).bit_count() == 1 and is_schema(db):
                raise CatalogDamaged(path, f"it says to have schema {version[0]}, and has {SCHEMA_VERSION}")
            elif version[0] > SCHEMA_VERSION:
                raise CrnodeError(
                    f"{path} was written by a newer crnode"
                    f" (schema {version[0]}, this one knows {SCHEMA_VERSION}).",
                    "A newer format is refused, never guessed.",
                    "Install that newer crnode again, or restore the copy it kept before the change.",
                    ExitCode.REFUSED,
                )
            elif (table := changed_table(db)) is not None:
                raise CatalogDamaged(path, f"its table {table} has other columns than were written")
            self._inode = path.stat().st_ino
            held = self.meta("set")
            if not isinstance(held, bytes) or len(held) != len(set_uuid):
                raise CatalogDamaged(path, "it does not say which set it belongs to")
            if held != set_uuid and any(gives_id(set_uuid, image) for image in self.readable_images()[0]):
                raise CatalogDamaged(path, "it says to belong to another set, and its versions do not")
            if held != set_uuid:
                raise CrnodeError(
                    f"{path} belongs to another set ({held.hex()}).",
                    "File names and contents of the data directory do not fit together.",
                    "Move that file away; the set is copied again from its source.",
                    ExitCode.REFUSED,
                )
        except apsw.Error as error:
            self._db.close()
            raise _unusable(path, error) from error
        except BaseException:
            self._db.close()
            raise

    def _create(self) -> None:
        text = resources.files("crnode.store").joinpath("schema.sql").read_text()
        with self.transaction():
            self._db.execute(text)
            self._db.execute("INSERT INTO meta VALUES ('set', ?)", (self.set_uuid,))
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def reader(self) -> Reader:
        """A read-only connection for another thread."""
        return open_reader(self.path)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One durable transaction; rolled back whole when the body raises.

        Raises CrnodeError (FULL) for a full disk, CatalogOutOfReach while another program has it locked,
        CatalogDamaged for anything else that SQLite reports.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except (apsw.BusyError, apsw.LockedError) as error:  # another program writes to it
            raise out_of_reach(self.path, error) from error
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            self._dirs.clear()
            self._principals.clear()
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, apsw.FullError):
                raise out_of_reach(self.path, error) from error
            if isinstance(error, apsw.Error):
                raise CatalogDamaged(self.path, f"{type(error).__name__}: {error}") from error
            raise

    def check_there(self) -> None:
        """Raises StoreFailed when the file was removed or replaced under us: what is committed from then on
        would be durable nowhere."""
        try:
            there = self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            there = False
        if not there:
            raise StoreFailed(f"{self.path} was removed or replaced while it was in use")

    def checkpoint(self) -> None:
        """Move the WAL into the main file as far as no reader holds it back and there is room."""
        with contextlib.suppress(apsw.BusyError, apsw.LockedError, apsw.FullError):
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def set_meta(self, key: str, value: bytes | None) -> None:
        if value is None:
            self._db.execute("DELETE FROM meta WHERE key=?", (key,))
        else:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (key, value))

    def note_store(self, mark: bytes) -> None:
        """Note where the store stood when this transaction's objects were durable in it. Not while the two
        are not known to belong together: the next start has to ask again."""
        if not self.suspect:
            self.set_meta("store", mark)

    # -- names

    def _dir(self, path: bytes) -> int:
        number = self._dirs.get(path)
        if number is None:
            found = self.dir_id(path)
            if found is None:
                self._db.execute("INSERT INTO dir (path) VALUES (?)", (path,))
                found = self._db.last_insert_rowid()
            number = found
            if len(self._dirs) > 50_000:
                self._dirs.clear()
            self._dirs[path] = number
        return number

    def _principal(self, name: str, number: int) -> int:
        key = (name, number)
        known = self._principals.get(key)
        if known is None:
            row = self._one("SELECT id FROM principal WHERE name=? AND number=?", key)
            if row is None:
                self._db.execute("INSERT INTO principal (name,number) VALUES (?,?)", key)
                known = self._db.last_insert_rowid()
            else:
                known = int(row[0])
            self._principals[key] = known
        return known

    # -- an image in the making

    def next_ordinal(self) -> int:
        row = self._one("SELECT max(ordinal) FROM image")
        return int(row[0] or 0) + 1 if row else 1

    def begin(self, image: Image, totals: Totals | None = None) -> None:
        """Record image `image.ordinal` as staging; its rows follow through :meth:`change`."""
        self._db.execute(
            f"INSERT OR REPLACE INTO image ({IMAGE}) VALUES ({','.join('?' * 19)})",
            image._replace(state=STAGING),
        )
        self.save_staged(totals or self.totals())

    def save_staged(self, totals: Totals) -> None:
        self.set_meta("staged", totals_bytes(totals))

    def change(
        self, ordinal: int, totals: Totals, changed: Iterable[Entry], removed: Iterable[bytes] = ()
    ) -> Totals:
        """Make image `ordinal` have the entries `changed` and not the paths `removed`; returns the new
        totals.

        Idempotent: repeating a change of the same ordinal leaves the same rows and totals.
        """
        count, size, lthash = (
            totals.entries,
            totals.bytes,
            totals.lthash.copy(),
        )  # a rollback must leave `totals`
        for path in removed:
            old = self._close_row(path, ordinal)
            if old is not None:
                count -= 1
                size -= old.size
                lthash.remove(entry_bytes(old))
        had: dict[bytes, bool] = {}  # directory -> whether there may be rows in it that end here
        new: set[bytes] = set()  # paths in directories that had none
        for entry in changed:
            path = entry.path
            head = split(path)[0]
            if head not in had:
                had[head] = self.ever_had(head)
            old = self._close_row(path, ordinal) if had[head] or path in new else None
            if not had[head]:
                new.add(path)
            if old is not None:
                count -= 1
                size -= old.size
                lthash.remove(entry_bytes(old))
            self._insert(entry, ordinal, OPEN)
            if entry.kind == DIRECTORY:
                self._dir(entry.path)
            count += 1
            size += entry.size
            lthash.add(entry_bytes(entry))
        return Totals(count, size, lthash)

    def _insert(self, entry: Entry, born: int, died: int) -> None:
        head, name = split(entry.path)
        self._db.execute(
            "INSERT INTO entry VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                self._dir(head), name, born, died, entry.kind, entry.mode,
                self._principal(entry.owner, entry.owner_id), self._principal(entry.group, entry.group_id),
                entry.mtime_ns, entry.size, entry.content, entry.level, link_of(entry), entry.extra,
            ),
        )  # fmt: skip

    def keep_ended(self, entry: Entry, ordinal: int) -> None:
        """Keep what a path was last, of which image `ordinal` (0: none) has nothing any more: a row that ends
        where it begins, so that no image has it."""
        head, name = split(entry.path)
        key = (self._dir(head), name, ordinal)
        self._db.execute("DELETE FROM entry WHERE dir=? AND name=? AND born=?", key)
        self._insert(entry, ordinal, ordinal)

    def _close_row(self, path: bytes, ordinal: int) -> Entry | None:
        head, name = split(path)
        number = self._dir(head)
        row = self._one(
            f"SELECT e.born,{ENTRY} FROM entry e {NAMES}"
            " WHERE e.dir=? AND e.name=? AND e.born<=? AND e.died>?",
            (number, name, ordinal, ordinal),
        )
        if row is None:
            return None
        if row[0] == ordinal:
            self._db.execute("DELETE FROM entry WHERE dir=? AND name=? AND born=?", (number, name, ordinal))
        else:
            self._db.execute(
                "UPDATE entry SET died=? WHERE dir=? AND name=? AND born=?", (ordinal, number, name, row[0])
            )
        return entry_of(path, row[1:])

    def digest(self, totals: Totals) -> bytes:
        """The image digest of these totals."""
        return image_digest(self.set_uuid, totals.entries, totals.bytes, totals.lthash)

    def complete(self, image: Image, totals: Totals) -> None:
        """The atomic switch: image `image.ordinal` counts from this transaction's commit on."""
        self._db.execute(
            f"INSERT OR REPLACE INTO image ({IMAGE}) VALUES ({','.join('?' * 19)})",
            image._replace(state=COMPLETE),
        )
        self.set_meta("totals", totals_bytes(totals))
        self.set_meta("staged", None)

    def undo(self, ordinal: int) -> None:
        """Drop everything staged under `ordinal`."""
        self._db.execute("DELETE FROM entry WHERE born=?", (ordinal,))
        # The last condition adds nothing but the index of the rows that ended: without it all are read.
        self._db.execute(f"UPDATE entry SET died=? WHERE died=? AND died<{OPEN}", (OPEN, ordinal))
        self._db.execute("DELETE FROM image WHERE ordinal=? AND state=0", (ordinal,))
        self.set_meta("staged", None)
        self.set_meta("resume", None)  # another image may be the next one that is staged

    # -- fingerprints, blocks, problems

    def see(self, path: bytes, print_: Fingerprint | None) -> None:
        """Record (or forget) the fingerprint of the file at `path`."""
        head, name = split(path)
        if print_ is None:
            self._db.execute("DELETE FROM seen WHERE dir=? AND name=?", (self._dir(head), name))
        else:
            self._db.execute(
                "INSERT OR REPLACE INTO seen VALUES (?,?,?,?,?,?,?)", (self._dir(head), name, *print_)
            )

    def save_blocks(self, segments: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep the block hashes of new recipe segments: (segment id, hashes of its chunks one behind the
        other)."""
        self._db.executemany("INSERT OR IGNORE INTO block VALUES (?,?)", segments)

    def drop_blocks(self, segments: Iterable[bytes]) -> None:
        """Forget the block hashes of segments that no entry reaches any more."""
        self._db.executemany("DELETE FROM block WHERE segment=?", [(s,) for s in segments])

    def set_problem(self, table: str, path: bytes, reason: str | None, at_ns: int = 0) -> None:
        """Note (or clear) why `path` is not applied (`unapplied`) or not captured (`lost`)."""
        if table not in ("unapplied", "lost"):
            raise ValueError(table)
        if reason is not None:  # it may name what is not UTF-8
            reason = reason.encode("utf-8", "replace").decode()
        if reason is None:
            self._db.execute(f"DELETE FROM {table} WHERE path=?", (path,))
        elif table == "lost":
            self._db.execute("INSERT OR REPLACE INTO lost VALUES (?,?,?)", (path, reason, at_ns))
        else:
            self._db.execute("INSERT OR REPLACE INTO unapplied VALUES (?,?)", (path, reason))

    def note_members(self, ordinal: int, said: bytes) -> None:
        """Keep what image `ordinal` of a group was made of as long as that image is kept."""
        self._db.execute(
            "DELETE FROM meta WHERE key LIKE 'members/%'"
            " AND CAST(substr(key,9) AS INTEGER) NOT IN (SELECT ordinal FROM image)"
        )
        self.set_meta(f"members/{ordinal}", said)

    # -- cursors, live tree, pruning

    def set_cursor(self, target: str, image: bytes, ordinal: int, at_ns: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO cursor VALUES (?,?,?,?)", (target, image, ordinal, at_ns))

    def drop_cursor(self, target: str) -> None:
        self._db.execute("DELETE FROM cursor WHERE target=?", (target,))

    def set_live(self, live: Live) -> None:
        self._db.execute("INSERT OR REPLACE INTO live VALUES (1,?,?,?,?,?)", tuple(live))

    def note_synced(self, ordinal: int) -> None:
        """The live tree at image `ordinal` is durable (rule 61), unless nothing is known of it any more."""
        with self.transaction():
            live = self.live()
            if live is not None and live.synced < ordinal <= live.at:
                self.set_live(live._replace(synced=ordinal))

    def note_touched(self, at: int, wanted: int) -> None:
        """Remember the paths in which image `wanted` differs from image `at`, and all names of the files that
        such a path is a name of: a move to it that is given up may have written them."""
        path = "CAST(CASE WHEN d.path=x'' THEN e.name ELSE d.path||x'2f'||e.name END AS BLOB)"
        groups = "SELECT link FROM entry WHERE born>?1 AND born<=?2 AND died>?2 AND link IS NOT NULL"
        for those in ("e.born>?1", f"e.born<=?1 AND e.link IN ({groups})"):
            self._db.execute(
                f"INSERT OR IGNORE INTO touched SELECT {path} FROM entry e JOIN dir d ON d.id=e.dir"
                f" WHERE {those} AND e.born<=?2 AND e.died>?2",
                (at, wanted),
            )

    def keep_touched(self, paths: Iterable[bytes]) -> None:
        """These paths could not be written: what is there is not what the image shown has."""
        self._db.executemany("INSERT OR IGNORE INTO touched VALUES (?)", ((path,) for path in paths))

    def forget_touched(self, paths: Iterable[bytes] | None = None) -> None:
        """These paths, or all of them, are what the image shown has."""
        if paths is None:
            self._db.execute("DELETE FROM touched")
        else:
            self._db.executemany("DELETE FROM touched WHERE path=?", ((path,) for path in paths))

    def forget_tree(self, boot: str) -> None:
        """Nothing is known of the live tree any more: it is written as if nothing had been applied."""
        for table in ("seen", "unapplied", "deferred"):
            self._db.execute(f"DELETE FROM {table}")
        self.forget_touched()
        newest = self.newest()
        if newest is not None:
            self.set_live(Live(0, newest.ordinal, 0, "moving", boot))

    def set_deferred(self, paths: Iterable[bytes]) -> None:
        """Replace the deletions that wait for a later image to confirm them (rule 53)."""
        self._db.execute("DELETE FROM deferred")
        self._db.executemany("INSERT OR IGNORE INTO deferred VALUES (?)", [(p,) for p in paths])

    def set_pin(self, ordinal: int, name: str | None, why: str) -> None:
        """Keep an image whatever retention says."""
        self._db.execute("UPDATE image SET pinned=1, name=?, why=? WHERE ordinal=?", (name, why, ordinal))

    def unpin(self, ordinal: int) -> None:
        """Let retention decide again; the image has no name any more."""
        self._db.execute("UPDATE image SET pinned=0, name=NULL, why=NULL WHERE ordinal=?", (ordinal,))

    def set_verdict(self, ordinal: int, verdict: int, evidence: str | None) -> None:
        """Say what is known of a version: UNTESTED, GOOD, SUSPECT or BAD, and from what."""
        self._db.execute(
            "UPDATE image SET verdict=?, evidence=? WHERE ordinal=?", (verdict, evidence, ordinal)
        )

    def set_manifest(self, ordinal: int, content: bytes, level: int) -> None:
        """Remember where the image's manifest lies in the object store (rule 31)."""
        self._db.execute("UPDATE image SET manifest=? WHERE ordinal=?", (content + bytes([level]), ordinal))

    def clear_manifest(self, content: bytes) -> None:
        """Forget a manifest that is damaged and nowhere else: another one is written."""
        self._db.execute("UPDATE image SET manifest=NULL WHERE substr(manifest,1,32)=?", (content,))

    def prune(self, keep: set[int], limit: int, *, spare_deleted: bool = False) -> int:
        """Drop images that are not in `keep`, oldest first, and at most about `limit` rows that no kept image
        has; returns the rows deleted. `keep` must hold every root: newest, cursors, live tree, pins,
        versions.

        `spare_deleted` keeps the last row of each path that no longer exists (archives, rule 49).
        """
        complete = [
            r[0] for r in self._db.execute("SELECT ordinal FROM image WHERE state=1 ORDER BY ordinal")
        ]
        if not complete:
            return 0
        kept = sorted((keep & set(complete)) | {complete[-1]})
        drop = sorted(set(complete) - set(kept))
        # An image whose row is there has all its entries: the image goes first, in the same transaction.
        self._db.executemany("DELETE FROM image WHERE ordinal=?", [(ordinal,) for ordinal in drop])
        unfinished = self.meta("pruning") is not None
        newest = complete[-1] if spare_deleted else None
        removed = 0
        for low, high in zip([-1, *kept], kept, strict=False):  # see keep_ended for rows of ordinal 0
            going = [ordinal for ordinal in drop if low < ordinal < high]
            if unfinished or going:
                # Rows that ended before the first of them went with those that were dropped before: where a
                # target is away, all that it lacks would be looked through at each commit. An archive's may
                # have been spared then.
                since = low if unfinished or newest is not None else going[0]
                removed += self._prune_between(low, high, since, newest, limit - removed)
                if removed >= limit:
                    break
        left = removed >= limit
        if left != unfinished:
            self.set_meta("pruning", b"1" if left else None)
        self.pruned_rows += removed
        self._forget_folders()
        return removed

    def _forget_folders(self) -> None:
        """Of the next few folders drop those of which no row is left: names that are never used again would
        be walked over for ever."""
        rows = self._db.execute(
            "SELECT id,path,EXISTS (SELECT 1 FROM entry e WHERE e.dir=dir.id)"
            " OR EXISTS (SELECT 1 FROM seen s WHERE s.dir=dir.id) FROM dir WHERE id>? ORDER BY id LIMIT ?",
            (self._walked, FOLDERS_LOOKED_AT),
        ).fetchall()
        self._walked = int(rows[-1][0]) if len(rows) == FOLDERS_LOOKED_AT else 0  # type: ignore[arg-type]
        for number, path, is_used in rows:
            if not is_used:
                self._db.execute("DELETE FROM dir WHERE id=?", (number,))
                self._dirs.pop(path, None)  # type: ignore[arg-type]

    def _prune_between(self, low: int, high: int, since: int, newest: int | None, limit: int) -> int:
        """Delete rows that live only strictly between the kept neighbours, born > low and died <= high, of
        those that ended after `since`.

        With `newest`, only those whose path came back by then: an image that is still staged may be undone.
        """
        spare = (
            " AND EXISTS (SELECT 1 FROM entry n WHERE n.dir=entry.dir AND n.name=entry.name"
            f" AND n.born>=entry.died AND n.born>entry.born AND n.born<={newest:d})"
            if newest is not None
            else ""
        )
        self._db.execute(
            "DELETE FROM entry WHERE (dir,name,born) IN (SELECT dir,name,born FROM entry"
            f" WHERE died>? AND died<=? AND died<4611686018427387904 AND born>?{spare} LIMIT ?)",
            (since, high, low, max(limit, 1)),
        )
        return int(self._db.changes())

    def put_away(self) -> None:
        """Write everything into the main file and close, so that the file alone is the catalog."""
        self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self.close()


class CatalogDamaged(Exception):
    """SQLite cannot use the file. `args` are the path and what it said; the set's catalog is rebuilt."""

    def __str__(self) -> str:
        return str(self.args[-1])  # journals name the file themselves


class CatalogOutOfReach(CrnodeError):
    """The file cannot be used at present, and nothing says that it is damaged: it is tried again."""


_BESIDE_IT = (
    apsw.AuthError, apsw.BusyError, apsw.CantOpenError, apsw.FullError, apsw.InterruptError, apsw.IOError,
    apsw.LockedError, apsw.NoLFSError, apsw.NoMemError, apsw.PermissionsError, apsw.ReadOnlyError,
)  # fmt: skip
"""What SQLite says of a lock of somebody else, the disk, permissions: not of what is in the file."""


def out_of_reach(path: Path, error: Exception) -> CrnodeError:
    """What a person is told of a catalog that cannot be used now, though it may be whole. A full disk has the
    code FULL."""
    if isinstance(error, apsw.FullError):
        return CrnodeError(
            f"No room left for the catalog {path}.",
            "SQLite said: database or disk is full.",
            "Free some space; nothing was lost and work goes on by itself.",
            ExitCode.FULL,
        )
    return CatalogOutOfReach(
        f"The catalog {path} cannot be used now.",
        f"SQLite said: {error}.",
        "It is tried again by itself; look whether another program has it open, and at its disk.",
    )


def _unusable(path: Path, error: apsw.Error) -> Exception:
    """Why a catalog could not be opened: what is in the file, or what is around it."""
    if lies_beside(error):
        return out_of_reach(path, error)
    return CatalogDamaged(path, str(error))


def lies_beside(error: BaseException) -> bool:
    """Whether `error` says nothing of what is in a catalog's file. Whatever else SQLite says of one that is
    opened does: where the page of its schema is damaged, we seem to have asked for something wrong."""
    cause = error.__cause__ if isinstance(error, CatalogDamaged) else error
    return isinstance(cause, _BESIDE_IT)


def is_damage(error: BaseException) -> bool:
    """Whether `error` says that SQLite cannot use a catalog's file: not that the disk is full or failed, nor
    that we asked for something wrong."""
    cause = error.__cause__ if isinstance(error, CatalogDamaged) else error
    return isinstance(cause, apsw.CorruptError | apsw.NotADBError)


def is_blank(path: Path) -> bool:
    """Whether there is no catalog in the file `path`, or no file: opening it would begin a new one. False
    when it cannot be read: that is damage, or a lock of somebody else."""
    try:
        if path.stat().st_size == 0:
            return True
        with open_reader(path, BUSY_MS) as reader:
            return reader.is_blank()
    except FileNotFoundError:
        return True
    except apsw.Error:
        return False
