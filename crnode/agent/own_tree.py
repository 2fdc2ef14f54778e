"""The folders of a set at its source, changed by a restore to their place: what is there, and what becomes of
it.

Everything runs in threads, one step at a time. A file is written beside its place, in a folder of ours, and
renamed into it; nothing is replaced or removed that is not what was kept before."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from crnode.capture.openers import FileId, FileSystems, Round
from crnode.capture.roots import OWN, RESTORING, OpenRoots
from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import open_beneath
from crnode.replicate.write import Policy, TreeWriter, fingerprint
from crnode.store.packs import is_full
from crnode.store.reader import Fingerprint
from crnode.store.store import Damaged, Missing, ObjectStore
from crnode.versions.in_place import Plan, Written
from crnode.versions.units import SQLITE_MAGIC, base_of, process_files
from crproto import content
from crproto.entries import DIRECTORY, FILE, Entry
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE, chunk_id
from crproto.paths import split

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Skipped(Exception):
    """A path that stays as it is; the text says why."""


class Planned(NamedTuple):
    """What is to be done, and what was there when that was decided."""

    plan: Plan
    again: tuple[Entry, ...]  # folders that are right, and whose times change as something in them does
    prints: Mapping[bytes, Fingerprint | None]
    several: set[bytes]  # paths that are one name of several
    now: Mapping[bytes, Entry]  # files that are written or removed, as they are
    sequence: int
    image: bytes


NOTHING = Planned(Plan((), (), (), ()), (), {}, set(), {}, 0, b"")


class OwnTree:
    """The set's own folders, as they are on the disk."""

    def __init__(self, roots: OpenRoots) -> None:
        self._roots = roots
        policy = Policy(privileged=False, root=False)
        self._looking = {
            label: TreeWriter(roots.resolve(label)[0], -1, lambda _: b"", policy) for label in roots.tops()
        }

    def close(self) -> None:
        for writer in self._looking.values():
            writer.close()
        self._roots.close()

    def holds(self, path: bytes, entry: Entry, print_: Fingerprint | None) -> bool:
        """Whether what is at `path` is what `entry` was captured from."""
        label = b"" if b"" in self._looking else path.partition(b"/")[0]
        writer = self._looking.get(label)
        if writer is None:
            return False
        info = writer.lstat(self._roots.resolve(path)[1])
        if info is None or entry.kind == DIRECTORY:
            return info is not None and stat.S_ISDIR(info.st_mode)
        return print_ is not None and _unchanged(fingerprint(info), print_, several=info.st_nlink > 1)


def in_use(roots: OpenRoots, planned: Planned) -> dict[bytes, bool]:
    """The databases that the plan changes and that somebody has open for writing, and whether each is a
    folder. Found are those of SQLite, by how they begin, and data directories, by the process that is noted
    there."""
    used: dict[bytes, bool] = {}
    opened: dict[FileId, bytes] = {}
    for path in {base_of(path) for path in planned.now}:
        if (file := _database(roots, path)) is not None:
            opened[file] = path
    if opened:
        looking = Round(FileSystems([roots.resolve(top)[0] for top in roots.tops()]))
        while not looking.step(1.0):
            pass
        used.update((opened[file], False) for file in opened.keys() & looking.found.keys())
    seen: set[bytes] = set()
    for path in planned.plan.paths():
        folder = split(path)[0]
        while folder not in seen:
            seen.add(folder)
            if any(_runs(roots, folder, noted) for noted in process_files(folder)):
                used[folder] = True
            folder = split(folder)[0]
    return used


def is_database(roots: OpenRoots, path: bytes) -> bool:
    """Whether the file there is a database of SQLite."""
    return _database(roots, path) is not None


def _database(roots: OpenRoots, path: bytes) -> FileId | None:
    if (fd := _open(roots, path, 0)) is None:
        return None
    try:
        if os.pread(fd, len(SQLITE_MAGIC), 0) != SQLITE_MAGIC:
            return None
        info = os.fstat(fd)
        return info.st_dev, info.st_ino
    except OSError:  # it cannot be read
        return None
    finally:
        os.close(fd)


def _runs(roots: OpenRoots, folder: bytes, noted: bytes) -> bool:
    """Whether the process runs in that folder whose number is the first line of the file `noted`. Another one
    may have got the number since."""
    if (fd := _open(roots, noted, 0)) is None:
        return False
    try:
        number = int(os.pread(fd, 20, 0).split(b"\n")[0])
        there = os.stat(f"/proc/{number}/cwd")
    except (ValueError, FileNotFoundError):
        return False
    except OSError:
        return True  # it is another user's, and cannot be looked at
    finally:
        os.close(fd)
    if (fd := _open(roots, folder, os.O_DIRECTORY)) is None:
        return False
    try:
        return os.path.samestat(os.fstat(fd), there)
    finally:
        os.close(fd)


def _open(roots: OpenRoots, path: bytes, kind: int) -> int | None:
    """A regular file of the set, or with O_DIRECTORY a folder; None where there is none."""
    with contextlib.suppress(OSError, KeyError):
        root, below = roots.resolve(path)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | kind
        fd = open_beneath(root, below or b".", flags, cross_devices=True)
        if kind or stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    return None


class Changes:
    """The work on the tree, in threads, one step at a time."""

    def __init__(self, uuid: str, roots: OpenRoots, store: ObjectStore, planned: Planned) -> None:
        self.written = 0
        self.removed = 0
        self.bytes = 0
        self.fetched = 0
        self.skipped: dict[bytes, str] = {}
        self.here: dict[bytes, tuple[bytes, int, int]] = {}  # chunk -> (path, offset, length) of the tree
        self._roots = roots
        self._store = store
        self.allocated: dict[bytes, int] = {}  # by path: what a file with holes takes on the disk
        self._done: set[bytes] = set()
        self._planned = planned
        self._writers: dict[bytes, TreeWriter] = {}
        self._place = f"{RESTORING}{uuid}"  # in crnode's own folder of each root, for temporaries
        self._moved = {
            e.content: e for p in planned.plan.removed if (e := planned.now.get(p)) is not None and e.content
        }
        self._open: tuple[bytes, int] | None = None

    def begin(self) -> None:
        """Make room for what comes: the folders, and nothing of another kind in their way."""
        self._clear()  # of one that was cut off
        if self._planned.plan:
            self._check_room()
            self._begin()

    def _begin(self) -> None:
        policy = Policy(privileged=True, root=os.geteuid() == 0)
        for label in self._roots.tops():
            root, _ = self._roots.resolve(label)
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.fsdecode(OWN), 0o700, dir_fd=root)
            own = _own(root)
            if own is None:
                raise CrnodeError(
                    "Nothing was restored: something is in the way of what is written first.",
                    f"'{os.fsdecode(OWN)}' in {self._place_of(label)} is not a folder of crnode's user.",
                    "Look at it, move it away, and repeat this.",
                    ExitCode.REFUSED,
                )
            try:
                os.mkdir(self._place, 0o700, dir_fd=own)
                temporary = os.open(self._place, _FOLDER, dir_fd=own)
            finally:
                os.close(own)
            self._writers[label] = TreeWriter(root, temporary, self._load, policy)
        for path in self._planned.plan.in_the_way:
            self._guarded(path, partial(self._remove, path))
        for entry in self._planned.plan.folders:
            self._guarded(entry.path, partial(self._folder, entry))

    def look(self, batch: Sequence[Written]) -> None:
        """Find out which chunks of the batch lie in the tree as it is: those need not be fetched."""
        self.here.clear()
        for entry, _ in batch:
            if entry.content is None:
                continue
            for old in (self._planned.now.get(entry.path), self._moved.get(entry.content)):
                if old is not None and old.content is not None:
                    self._note(old)

    def write(self, batch: Sequence[Written]) -> None:
        """Write what of the batch is not written yet. Raises Missing."""
        for written in batch:
            if written.entry.path not in self._done:
                self._guarded(written.entry.path, partial(self._write, written))

    def end(self) -> None:
        """Remove what the version has not, and give the folders their attributes and times."""
        if not self._planned.plan:
            return
        for path in self._planned.plan.removed:
            self._guarded(path, partial(self._remove, path))
        folders = {e.path: e for e in (*self._planned.again, *self._planned.plan.folders)}
        tops = {label: folders.pop(label) for label in self._roots.tops() if label in folders}
        for entry in sorted(folders.values(), key=lambda e: (-e.path.count(b"/"), e.path)):
            self._guarded(entry.path, partial(self._finish, entry))
        self._clear()
        for entry in tops.values():
            self._guarded(entry.path, partial(self._finish, entry))
        os.sync()

    def close(self) -> bool:
        """Whatever happened: nothing of ours stays in the tree. Returns whether there was something."""
        self._shut()
        for writer in self._writers.values():
            writer.close()
            os.close(writer.temporary_fd)
        cleared = self._clear()
        self._writers.clear()
        self._roots.close()
        return cleared

    def _clear(self) -> bool:
        cleared = False
        for label in self._roots.tops():
            root, _ = self._roots.resolve(label)
            before = os.fstat(root)
            own = _own(root)
            if own is None:
                continue
            try:
                os.stat(self._place, dir_fd=own, follow_symlinks=False)
                cleared = True
                shutil.rmtree(self._place, ignore_errors=True, dir_fd=own)
                os.rmdir(os.fsdecode(OWN), dir_fd=root)  # unless it has another use
                os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))
            except OSError:
                continue
            finally:
                os.close(own)
        return cleared

    def _place_of(self, label: bytes) -> str:
        return next(str(root.path) for root in self._roots.roots if root.label == label)

    def _check_room(self) -> None:
        """A file is written beside the one that it replaces, and what goes, goes last."""
        now = self._planned.now
        files = {w.entry.path: w.entry.size for w in self._planned.plan.written} | self.allocated
        grown = sum(max(0, size - (now[path].size if path in now else 0)) for path, size in files.items())
        need = grown + max(files.values(), default=0)
        for label in self._roots.tops():
            info = os.fstatvfs(self._roots.resolve(label)[0])
            if info.f_bavail * info.f_frsize < need:
                raise CrnodeError(
                    "Nothing was restored: there is no room at the place of the set.",
                    f"It needs {need >> 20} MiB and {info.f_bavail * info.f_frsize >> 20} MiB are free.",
                    "Make room, or restore to a new place with --to.",
                    ExitCode.FULL,
                )

    def _guarded(self, path: bytes, action: Callable[[], None]) -> None:
        """One path that cannot be changed stops nothing else; a full or failing disk does."""
        if path in self.skipped:
            return
        try:
            action()
        except Skipped as why:
            self.skipped[path] = str(why)
        except OSError as error:
            if is_full(error) or error.errno in (errno.EIO, errno.EROFS):
                raise
            self.skipped[path] = f"it cannot be changed: {os.strerror(error.errno or 0)}"

    def _at(self, path: bytes) -> tuple[TreeWriter, bytes]:
        if b"" in self._writers:
            return self._writers[b""], path
        label, _, below = path.partition(b"/")
        return self._writers[label], below

    def _check_kept(self, path: bytes) -> os.stat_result | None:
        """What is at `path` is what was kept before. Raises Skipped."""
        writer, below = self._at(path)
        info = writer.lstat(below)
        known = self._planned.prints.get(path)
        if info is None or stat.S_ISDIR(info.st_mode):
            return info
        if known is None:
            raise Skipped("something is there that the set does not cover")
        if not _unchanged(fingerprint(info), known, several=path in self._planned.several):
            raise Skipped("it was changed while the restore began")
        return info

    def _remove(self, path: bytes) -> None:
        info = self._check_kept(path)
        if info is None:
            return
        writer, below = self._at(path)
        try:
            writer.remove(below)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            raise Skipped("it holds something that stays") from error
        self.removed += 1

    def _folder(self, entry: Entry) -> None:
        writer, below = self._at(entry.path)
        if below:
            self._check_kept(entry.path)
            writer.directory(entry._replace(path=below))
        self.written += 1

    def _finish(self, entry: Entry) -> None:
        writer, below = self._at(entry.path)
        writer.finish_directory(entry._replace(path=below))

    def _write(self, written: Written) -> None:
        names = (written.entry.path, *written.others)
        for name in names:
            _expect(self._check_kept(name))
        writer, below = self._at(written.entry.path)
        others = tuple(self._at(other)[1] for other in written.others)
        make = writer.file if written.entry.kind == FILE else writer.symlink
        full = dict(zip((below, *others), names, strict=True))
        # A large file takes its time, in which somebody may have changed the one that it replaces.
        writer.before_rename = lambda path: _expect(self._check_kept(full[path]))
        try:
            make(written.entry._replace(path=below), others)
        finally:
            writer.before_rename = None
        self._done.add(written.entry.path)
        self.written += len(names)
        self.bytes += written.entry.size

    # -- contents

    def _note(self, old: Entry) -> None:
        """The chunks of a file that is in the tree and whose recipe we have."""
        assert old.content is not None
        if old.level == 0:
            self.here.setdefault(old.content, (old.path, 0, old.size))
            return
        with contextlib.suppress(Missing, Damaged, RemoteProtocolError):
            for offset, length, name in content.walk(old.content, old.level, self._store.get, size=old.size):
                if name != HOLE:
                    self.here.setdefault(name, (old.path, offset, length))

    def _load(self, name: bytes) -> bytes:
        """An object, from the tree where it lies there. Raises Missing, Damaged."""
        place = self.here.get(name)
        if place is None:
            return self._store.get(name)
        if self._open is None or self._open[0] != place[0]:
            self._shut()
            root, below = self._roots.resolve(place[0])
            try:
                fd = open_beneath(root, below, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                raise Missing(name) from error
            self._open = (place[0], fd)
        data = os.pread(self._open[1], place[2], place[1])
        if chunk_id(data) != name:
            raise Missing(name)
        return data

    def _shut(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None


def _expect(info: os.stat_result | None) -> None:
    if info is not None and stat.S_ISDIR(info.st_mode):
        raise Skipped("a folder that holds something that stays is in its place")


def _own(root: int) -> int | None:
    """Crnode's own folder in a root, open; None when there is none. One of another user, or a link that
    somebody put there, is not ours: what is written in it might end up anywhere."""
    try:
        fd = os.open(os.fsdecode(OWN), _FOLDER, dir_fd=root)
    except OSError:
        return None
    if os.fstat(fd).st_uid == os.geteuid():
        return fd
    os.close(fd)
    return None


def _unchanged(now: Fingerprint, known: Fingerprint, *, several: bool) -> bool:
    """The time of change of a file with several names moves with each name that comes or goes."""
    return now == known or (several and now[:4] == known[:4])


__all__ = ["NOTHING", "Changes", "OwnTree", "Planned"]
