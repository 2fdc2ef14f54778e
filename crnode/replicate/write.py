"""Writing entries as native files: content, owner, mode, ACL, xattrs, times, in that order (rule 66).

Used for live trees and for restores. Nothing outside the root is ever touched: parents are opened beneath it,
and a new file is written as a temporary on the same file system and renamed into its place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from crnode.capture.attributes import (
    ACL_ACCESS,
    ACL_DEFAULT,
    acl_to_bytes,
    group_number,
    user_number,
)
from crnode.platform.files import open_beneath, rename_new, start_writeback
from crnode.store.reader import Fingerprint
from crproto import content
from crproto.entries import DIRECTORY, Entry, Extra
from crproto.ids import HOLE

NOBODY = 65534
_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NOT_HELD = (*_UNSUPPORTED, errno.EPERM, errno.EINVAL)  # owners and modes, on exFAT or a share of the network
_NO_LINKS = (*_UNSUPPORTED, errno.EPERM, errno.EMLINK)
_NO_OWNER = "its owner cannot be stored here"
_APART = "its other names are files of their own here"
FICLONE = 0x40049409  # ioctl_ficlone(2): _IOW(0x94, 9, int)
MIX_BYTES = 1 << 16
WRITE_BACK_BYTES = 8 << 20  # of a whole file that the disk begins with while the rest is written
LOADED = 16 << 20  # bytes of a change in place that are read before the first is written
ALONE = 4 << 20  # bytes of a file for which no second thread is started
BATCH, BATCH_MOST, DEPTH = 1 << 20, 64, 4  # bytes and chunks handed over at a time, and how many times ahead
_PRIVILEGED = (b"security.", b"trusted.")

Load = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Policy:
    """How far a tree may carry privileges (rule 66).

    `privileged`: set-id bits, `security.*` and `trusted.*` attributes and files of uid 0 are applied as they
    are.
    `root`: we may change owners at all.
    """

    privileged: bool
    root: bool


class Outcome(NamedTuple):
    """What writing one path left: its fingerprint, and what could not be represented ('' = everything)."""

    fingerprint: Fingerprint
    note: str


class Finished(NamedTuple):
    """A file that is written and has no name in the tree yet: its temporary, and what could not be
    represented."""

    temporary: str
    note: str


class NotInPlace(Exception):
    """The change cannot be made in place (a hole appeared): write the file whole."""


class CannotTell(Exception):
    """The file system has no rename that replaces nothing."""


class TreeWriter:
    """Writes below one root. One thread at a time, but for :meth:`make`.

    Args:
        root_fd: the open root directory.
        temporary_fd: an open directory on the same file system for temporaries, ours alone.
        load: object id -> verified bytes.
        write_back: the disk begins with a large file while it is written: a sync follows at once.
        lesser: what the file system cannot hold, owners, modes and hard links, is left out and told in the
            outcome's note. Else it is an OSError.
    """

    def __init__(
        self,
        root_fd: int,
        temporary_fd: int,
        load: Load,
        policy: Policy,
        *,
        write_back: bool = False,
        lesser: bool = False,
    ) -> None:
        self.root_fd = root_fd
        self.temporary_fd = temporary_fd
        self.load = load
        self._write_back = write_back
        self._lesser = lesser
        self.policy = policy
        self.before_rename: Callable[[bytes], None] | None = None  # asked with the path, last of all
        self.share: Callable[[Entry], int | None] | None = None  # an open file with the content of that entry
        self.shared = 0  # files that share their blocks with another
        self._parent: tuple[bytes, int] | None = None
        self._mode: int | None = None  # what the parent's was before it was made writable

    def close(self) -> None:
        """Forget the parent directory that is kept open between paths."""
        if self._parent is not None:
            fd, mode = self._parent[1], self._mode
            self._parent = self._mode = None
            try:
                if mode is not None:
                    os.fchmod(fd, mode)
            finally:
                os.close(fd)

    def changing(self, path: bytes) -> tuple[int, bytes]:
        """:meth:`parent` of what is made, replaced or removed at `path`. Who is not root is kept out by the
        mode of a folder of its own, and may lift that for the moment."""
        fd, name = self.parent(path)
        if not self.policy.root and self._mode is None and path:
            info = os.fstat(fd)
            if info.st_uid == os.geteuid() and info.st_mode & 0o300 != 0o300:
                os.fchmod(fd, stat.S_IMODE(info.st_mode) | 0o300)
                self._mode = stat.S_IMODE(info.st_mode)
        return fd, name

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """(open directory that holds `path`, last component); missing directories are made, private for
        now."""
        head, _, name = path.rpartition(b"/")
        if self._parent is not None and self._parent[0] == head:
            return self._parent[1], name
        self.close()
        try:
            fd = open_beneath(self.root_fd, head, os.O_RDONLY | os.O_DIRECTORY, cross_devices=True)
        except FileNotFoundError:
            above, last = self.changing(head)
            os.mkdir(last, 0o700, dir_fd=above)
            self.close()
            fd = open_beneath(self.root_fd, head, os.O_RDONLY | os.O_DIRECTORY, cross_devices=True)
        self._parent = (head, fd)
        return fd, name

    def lstat(self, path: bytes) -> os.stat_result | None:
        """What is at `path`, or None."""
        try:
            if not path:
                return os.fstat(self.root_fd)
            head, _, name = path.rpartition(b"/")
            if self._parent is None or self._parent[0] != head:
                self.close()
                fd = open_beneath(self.root_fd, head, os.O_RDONLY | os.O_DIRECTORY, cross_devices=True)
                self._parent = (head, fd)
            return os.lstat(name, dir_fd=self._parent[1])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise

    def target(self, path: bytes) -> bytes:
        """What the symbolic link at `path` says. Raises OSError."""
        parent, name = self.parent(path)
        return os.readlink(name, dir_fd=parent)

    # -- kinds

    def directory(self, entry: Entry) -> None:
        """Make the directory (its attributes come at the end, by :meth:`finish_directory`)."""
        if not entry.path:
            return
        parent, name = self.changing(entry.path)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            info = os.lstat(name, dir_fd=parent)
            if not stat.S_ISDIR(info.st_mode):
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)

    def finish_directory(self, entry: Entry) -> Outcome:
        """Owner, mode, attributes and times of a directory, once nothing in it moves any more."""
        if self._parent is not None and self._parent[0] == entry.path:
            self.close()
        fd = open_beneath(self.root_fd, entry.path, os.O_RDONLY | os.O_DIRECTORY, cross_devices=True)
        try:
            note = self._attributes(fd, entry)
            return Outcome(fingerprint(os.fstat(fd)), note)
        finally:
            os.close(fd)

    def symlink(self, entry: Entry, others: tuple[bytes, ...] = ()) -> list[tuple[bytes, Outcome]]:
        """Make the symbolic link, and the `others` paths as hard links to it; replaces what is there."""
        target = Extra.decode(entry.extra).target
        if target is None:
            raise OSError(errno.EINVAL, "a link without a target")


        def make() -> Finished:
            temporary = _temporary_name()
            os.symlink(target, temporary, dir_fd=self.temporary_fd)
            try:
                note = self._own_link(temporary, entry)
                os.utime(
                    temporary,
                    ns=(entry.mtime_ns, entry.mtime_ns),
                    dir_fd=self.temporary_fd,
                    follow_symlinks=False,
                )
            except BaseException:
                self.discard(temporary)
                raise
            return Finished(temporary, note)

        temporary, note = make()
        try:
            return self._names(temporary, entry.path, others, note, make)
        except BaseException:
            self.discard(temporary)
            raise

    def file(
        self, entry: Entry, others: tuple[bytes, ...] = (), finished: Finished | None = None
    ) -> list[tuple[bytes, Outcome]]:
        """Write a file whole, and the `others` paths as hard links to it (rule 65); replaces what is there.
        `finished` is what :meth:`make` made of it already, and the caller's no more."""
        temporary, note = finished if finished is not None else self.make(entry)
        try:
            return self._names(temporary, entry.path, others, note, partial(self.make, entry))
        except BaseException:
            self.discard(temporary)
            raise

    def new_file(self, entry: Entry, finished: Finished | None = None) -> Outcome:
        """Write a file at a path where nothing is. Raises FileExistsError where something is by now,
        CannotTell where the file system cannot know that in the same step."""
        temporary, note = finished if finished is not None else self.make(entry)
        try:
            parent, name = self.changing(entry.path)
            try:
                rename_new(temporary, name, src_dir_fd=self.temporary_fd, dst_dir_fd=parent)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    raise CannotTell from error
                raise
            return Outcome(fingerprint(os.lstat(name, dir_fd=parent)), note)
        except BaseException:
            self.discard(temporary)
            raise

    def make(self, entry: Entry) -> Finished:
        """Write a file as a temporary. Looks at nothing below the root, and may run in any thread."""
        temporary = _temporary_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(temporary, flags, 0o600, dir_fd=self.temporary_fd)
        try:
            try:
                self._content(fd, entry)
                note = self._attributes(fd, entry, new=True)
            finally:
                os.close(fd)
        except BaseException:
            self.discard(temporary)
            raise
        return Finished(temporary, note)

    def _names(
        self,
        temporary: str,
        path: bytes,
        others: tuple[bytes, ...],
        note: str,
        again: Callable[[], Finished],
    ) -> list[tuple[bytes, Outcome]]:
        """Give a finished temporary its name and its further ones. Where the file system has no hard links,
        or not so many of one file, another one is made `again` for the rest."""
        names: list[str] = []
        linked = temporary
        try:
            for _ in others:
                name = _temporary_name()
                try:
                    os.link(
                        linked,
                        name,
                        src_dir_fd=self.temporary_fd,
                        dst_dir_fd=self.temporary_fd,
                        follow_symlinks=False,
                    )
                except OSError as error:
                    if error.errno not in _NO_LINKS or not self._lesser:
                        raise
                    name = linked = again().temporary
                    if _APART not in note:
                        note = "; ".join(filter(None, (note, _APART)))
                names.append(name)
            done = [(path, self._move(temporary, path, note))]
            for other, name in zip(others, names, strict=True):
                done.append((other, self._move(name, other, note)))
        except BaseException:
            for name in names:  # each of them would keep the whole file
                self.discard(name)
            raise
        # Each rename and link changed the inode's ctime: the last one counts for all names of it.
        last = {outcome.fingerprint[:2]: outcome.fingerprint for _, outcome in done}
        return [(p, outcome._replace(fingerprint=last[outcome.fingerprint[:2]])) for p, outcome in done]

    def _content(self, fd: int, entry: Entry) -> None:
        if entry.content is None or (self.share is not None and self._shared(fd, entry)):
            return
        if entry.level == 0:
            _write_all(fd, self.load(entry.content), 0)
            return
        holes, begun = False, 0
        pieces = content.walk(entry.content, entry.level, self.load, size=entry.size)
        with contextlib.closing(loaded(pieces, self.load)) as chunks:
            for offset, data in chunks:
                if data is None:
                    holes = True
                else:
                    _write_all(fd, data, offset)
                    if self._write_back and offset + len(data) - begun >= WRITE_BACK_BYTES:
                        start_writeback(fd, begun, offset + len(data) - begun)
                        begun = offset + len(data)
        if holes:
            os.ftruncate(fd, entry.size)

    def _shared(self, fd: int, entry: Entry) -> bool:
        """Let the file share its blocks with one that has the same content, where the file system can
        (ioctl_ficlone(2))."""
        assert self.share is not None
        source = self.share(entry)
        if source is None:
            return False
        try:
            fcntl.ioctl(fd, FICLONE, source)
        except OSError:
            self.share = None  # it cannot, here: nor for the next one
            return False
        finally:
            os.close(source)
        self.shared += 1
        return True

    def patch(self, entry: Entry, old: Entry, left: Callable[[Fingerprint], None]) -> Outcome:
        """Change a file in place from `old` to `entry`: only chunks that differ are written.

        Only for a file that is known to hold `old`, or a mixture of both; while it runs the file is a mixture
        (rule 62). The first :data:`LOADED` bytes are read before any is written: a change up to that size
        whose content is missing or damaged leaves the file as it was.

        Args:
            left: told what the file is when it is left as a mixture, before the reason is raised.

        Raises:
            NotInPlace: a hole appeared.
        """
        assert entry.content is not None and old.content is not None
        pieces = differing((old.content, old.level), (entry.content, entry.level), self.load)
        with contextlib.closing(loaded(pieces, self.load)) as chunks:
            return self._patch(entry, _no_holes(chunks), left)

    def _patch(
        self, entry: Entry, changes: Iterator[tuple[int, bytes]], left: Callable[[Fingerprint], None]
    ) -> Outcome:
        first: list[tuple[int, bytes]] = []
        size = 0
        for offset, data in changes:
            first.append((offset, data))
            size += len(data)
            if size > LOADED:
                break
        parent, name = self.parent(entry.path)
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            try:
                for offset, data in first:
                    _write_all(fd, data, offset)
                first.clear()
                for offset, data in changes:
                    _write_all(fd, data, offset)
                os.ftruncate(fd, entry.size)
                note = self._attributes(fd, entry)
            except Exception:
                left(fingerprint(os.fstat(fd)))
                raise
            return Outcome(fingerprint(os.fstat(fd)), note)
        finally:
            os.close(fd)

    def mixes(self, path: bytes, versions: Sequence[tuple[bytes, int]], load: Load) -> bool:
        """Whether each byte of the file is what one of the versions (content id, level) has at its place."""
        parent, name = self.parent(path)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        try:
            streams = [_Stream(version, load) for version in versions]
            at = 0
            while data := os.pread(fd, MIX_BYTES, at):
                if not _made_of(data, [stream.take(len(data)) for stream in streams]):
                    return False
                at += len(data)
            return True
        finally:
            os.close(fd)

    def attributes_only(self, entry: Entry) -> Outcome:
        """Apply metadata to a file whose content is right already."""
        parent, name = self.parent(entry.path)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        try:
            note = self._attributes(fd, entry)
            return Outcome(fingerprint(os.fstat(fd)), note)
        finally:
            os.close(fd)

    def remove(self, path: bytes) -> None:
        """Remove a file, link or empty directory; nothing there is fine. Raises OSError (ENOTEMPTY …)."""
        info = self.lstat(path)
        if info is None:
            return
        parent, name = self.changing(path)
        if stat.S_ISDIR(info.st_mode):
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)

    # -- parts

    def _move(self, temporary: str, path: bytes, note: str) -> Outcome:
        if self.before_rename is not None:
            self.before_rename(path)
        parent, name = self.changing(path)
        try:
            os.rename(temporary, name, src_dir_fd=self.temporary_fd, dst_dir_fd=parent)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=parent)
            os.rename(temporary, name, src_dir_fd=self.temporary_fd, dst_dir_fd=parent)
        return Outcome(fingerprint(os.lstat(name, dir_fd=parent)), note)

    def discard(self, temporary: str) -> None:
        """Remove a temporary that gets no name; nothing there is fine."""
        try:
            os.unlink(temporary, dir_fd=self.temporary_fd)
        except FileNotFoundError:
            return

    def _owner(self, entry: Entry) -> tuple[int, int]:
        uid = user_number(entry.owner, entry.owner_id)
        gid = group_number(entry.group, entry.group_id)
        if not self.policy.privileged:
            uid = uid or NOBODY
            gid = gid or NOBODY
        return uid, gid

    def _own_link(self, name: str, entry: Entry) -> str:
        uid, gid = self._owner(entry)
        if not self.policy.root:
            return ""
        try:
            os.chown(name, uid, gid, dir_fd=self.temporary_fd, follow_symlinks=False)
        except OSError as error:
            info = os.lstat(name, dir_fd=self.temporary_fd)
            if error.errno not in _NOT_HELD or not self._may_be_of(info.st_uid):
                raise
            return _NO_OWNER
        return ""

    def _may_be_of(self, uid: int) -> bool:
        """Whether a file may stay with user `uid` where its owner cannot be given to it: on exFAT, or a share
        of the network. Root's are believed by others, so that only a set that is privileged has any (rule
        66)."""
        return self._lesser and (uid != 0 or self.policy.privileged)

    def _attributes(self, fd: int, entry: Entry, *, new: bool = False) -> str:
        """Owner, mode, ACLs, xattrs, times of an open file; returns what this file system cannot hold.

        `new`: we have just created it, so it has our own ids and no attributes that would have to go.
        """
        notes: list[str] = []
        if self.policy.root:
            owner = self._owner(entry)
            if owner != ((os.geteuid(), os.getegid()) if new else _ids(fd)):
                try:
                    os.fchown(fd, *owner)
                except OSError as error:
                    if error.errno not in _NOT_HELD or not self._may_be_of(os.fstat(fd).st_uid):
                        raise
                    notes.append(_NO_OWNER)
        mode = entry.mode
        if notes:
            mode &= 0o1777  # set-id bits would be another one's
        if not self.policy.privileged:
            mode &= 0o3777 if entry.kind == DIRECTORY else 0o1777
        extra = Extra.decode(entry.extra) if entry.extra else None
        if extra is not None or not new:
            self._acls(fd, entry, extra, notes)
        try:
            os.fchmod(fd, mode)
        except OSError as error:
            if error.errno not in _NOT_HELD or not (self._lesser and self.policy.root):
                raise
            notes.append("its mode cannot be stored here")
        if extra is not None or not new:
            self._xattrs(fd, extra, notes)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        return "; ".join(notes)

    def _acls(self, fd: int, entry: Entry, extra: Extra | None, notes: list[str]) -> None:
        wanted = {ACL_ACCESS: extra.acl if extra else None}
        if entry.kind == DIRECTORY:
            wanted[ACL_DEFAULT] = extra.default_acl if extra else None
        for name, acl in wanted.items():
            try:
                if acl is not None:
                    os.setxattr(fd, name, acl_to_bytes(acl))
                else:
                    os.removexattr(fd, name)
            except OSError as error:
                if error.errno == errno.ENODATA or (acl is None and error.errno in _UNSUPPORTED):
                    continue
                if error.errno not in (*_UNSUPPORTED, errno.EPERM):
                    raise
                notes.append("its ACL cannot be stored here")

    def _xattrs(self, fd: int, extra: Extra | None, notes: list[str]) -> None:
        wanted = dict(extra.xattrs) if extra else {}
        if not self.policy.privileged:
            wanted = {k: v for k, v in wanted.items() if not k.startswith(_PRIVILEGED)}
        try:
            present = {os.fsencode(n) for n in os.listxattr(fd) if not n.startswith("system.")}
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            present = set()
        for name in present - wanted.keys():
            if name.startswith(_PRIVILEGED) and not self.policy.privileged:
                continue  # the system's own label on our file, not ours to take away
            _try(partial(os.removexattr, fd, name), notes, name)
        for name, value in wanted.items():
            if name in present and os.getxattr(fd, name) == value:
                continue
            _try(partial(os.setxattr, fd, name, value), notes, name)


def _ids(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_uid, info.st_gid


def _try(action: Callable[[], None], notes: list[str], name: bytes) -> None:
    try:
        action()
    except OSError as error:
        if error.errno not in (*_UNSUPPORTED, errno.EPERM, errno.E2BIG, errno.ENOSPC):
            raise
        notes.append(f"attribute {os.fsdecode(name)} cannot be stored here")


def fingerprint(info: os.stat_result) -> Fingerprint:
    """The fingerprint of what stat(2) said."""
    return Fingerprint.of(info)


def loaded(
    pieces: Iterable[tuple[int, int, bytes]], load: Load
) -> Generator[tuple[int, bytes | None], None, None]:
    """(offset, bytes) of (offset, length, id) of chunks, in order; None instead of the bytes of a hole that
    is not empty. Of more than :data:`ALONE` bytes those to come are read and verified by a second thread:
    both that and writing them happen in the kernel or without Python's lock. Raises what `load` raises, in
    order. Close it when it is not used up."""
    source = iter(pieces)
    size = 0
    for offset, length, name in source:
        if name != HOLE:
            size += length
            yield offset, load(name)
        elif length:
            yield offset, None
        if size > ALONE:
            break
    else:
        return
    with ThreadPoolExecutor(1, "load") as thread:
        waiting: deque[tuple[list[int], Future[list[bytes | None]]]] = deque()
        try:
            while (batch := _batch(source)) or waiting:
                if batch:
                    waiting.append(([at for at, _ in batch], _submit(thread, [n for _, n in batch], load)))
                if len(waiting) > DEPTH or not batch:
                    offsets, done = waiting.popleft()
                    yield from zip(offsets, done.result(), strict=True)
        finally:
            for _, done in waiting:
                done.cancel()


def _batch(source: Iterator[tuple[int, int, bytes]]) -> list[tuple[int, bytes]]:
    """The next (offset, id) of about a megabyte."""
    out, size = [], 0
    for offset, length, name in source:
        if name == HOLE and not length:
            continue
        out.append((offset, name))
        size += length if name != HOLE else 0
        if size >= BATCH or len(out) >= BATCH_MOST:
            break
    return out


def _submit(thread: ThreadPoolExecutor, names: list[bytes], load: Load) -> Future[list[bytes | None]]:
    try:
        return thread.submit(_load_all, names, load)
    except RuntimeError:  # no further thread can be started: then this one reads
        done: Future[list[bytes | None]] = Future()
        done.set_result(_load_all(names, load))
        return done


def _load_all(names: list[bytes], load: Load) -> list[bytes | None]:
    return [None if name == HOLE else load(name) for name in names]


def _no_holes(chunks: Iterable[tuple[int, bytes | None]]) -> Iterator[tuple[int, bytes]]:
    for offset, data in chunks:
        if data is None:
            raise NotInPlace
        yield offset, data


def differing(old: tuple[bytes, int], new: tuple[bytes, int], load: Load) -> Iterator[tuple[int, int, bytes]]:
    """(offset, length, id) of the chunks of `new` that `old` has not at the same offset. O(change) in reads:
    segments that both have at the same place are not opened. Holes are reported like chunks, with the id
    HOLE."""
    if old[1] == 0 or new[1] == 0:
        yield from content.walk(new[0], new[1], load)
        return
    known = dict(_segments(old, load))
    for offset, (name, length) in _segments(new, load):
        if known.get(offset, (b"", 0))[0] == name:
            continue
        before = {
            at: chunk
            for at, _, chunk in content.walk(old[0], old[1], load, start=offset, stop=offset + length)
        }
        at = offset
        for size, chunk in content.parse_recipe(load(name), 1).iter_items():
            if before.get(at) != chunk:
                yield at, size, chunk
            at += size


def _segments(
    top: tuple[bytes, int], load: Load, offset: int = 0, length: int = 0
) -> Iterator[tuple[int, tuple[bytes, int]]]:
    name, level = top
    if level == 1:
        yield offset, (name, length or content.parse_recipe(load(name), 1).total)
        return
    for size, child in content.parse_recipe(load(name), level).iter_items():
        yield from _segments((child, level - 1), load, offset, size)
        offset += size


class _Stream:
    """The bytes of a version, in order."""

    def __init__(self, version: tuple[bytes, int], load: Load) -> None:
        self._pieces = self._read(version, load)
        self._left = b""

    def _read(self, version: tuple[bytes, int], load: Load) -> Iterator[bytes]:
        for _, length, name in content.walk(*version, load):
            if name != HOLE:
                yield load(name)
                continue
            while length > 0:
                yield bytes(min(length, MIX_BYTES))
                length -= MIX_BYTES

    def take(self, count: int) -> bytes:
        """The next bytes, fewer at the end."""
        while len(self._left) < count and (piece := next(self._pieces, None)) is not None:
            self._left += piece
        taken, self._left = self._left[:count], self._left[count:]
        return taken


def _made_of(data: bytes, versions: list[bytes]) -> bool:
    """Whether each byte of `data` is in one of the versions at the same place."""
    if data in versions:
        return True
    half = len(data) // 2
    return half > 0 and all(
        _made_of(data[part], [version[part] for version in versions])
        for part in (slice(None, half), slice(half, None))
    )


def _write_all(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view = view[count:]
        at += count


def _temporary_name() -> str:
    return f"{secrets.token_hex(8)}.tmp"
