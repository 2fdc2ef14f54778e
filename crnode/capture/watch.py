"""Watching trees through inotify(7).

Our own reader of the kernel's events, because overflow, ignored watches and the order of events decide what
is captured, and the libraries that hide them lose changes. Directories are kept as a tree of nodes, so that a
renamed directory moves with everything below it in O(1).

What inotify cannot do is answered here too: a directory that appears is reported as a tree to scan, since
files are made in it before its watch exists; an overflow or a lost watch makes its owner scan; when the
system's limit of watches is reached, :class:`WatchLimit` says which sysctl to raise and the owner falls back
to scanning.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from crnode.capture.settle import Change

IN_MODIFY = 0x002
IN_ATTRIB = 0x004
IN_CLOSE_WRITE = 0x008
IN_MOVED_FROM = 0x040
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x01000000
IN_EXCL_UNLINK = 0x04000000
IN_ISDIR = 0x40000000
_MASK = (
    IN_MODIFY
    | IN_ATTRIB
    | IN_CLOSE_WRITE
    | IN_MOVED_FROM
    | IN_MOVED_TO
    | IN_CREATE
    | IN_DELETE
    | IN_DELETE_SELF
    | IN_MOVE_SELF
    | IN_ONLYDIR
    | IN_EXCL_UNLINK
)
_EVENT = struct.Struct("iIII")
_BUFFER = 256 << 10

_libc = ctypes.CDLL(None, use_errno=True)

WATCH_SYSCTL = "fs.inotify.max_user_watches"


class WatchLimit(Exception):
    """The kernel's limit of watches (or of instances) is reached; the set is scanned instead."""


class _Node:
    __slots__ = ("children", "name", "parent", "wd")

    def __init__(self, wd: int, parent: _Node | None, name: bytes) -> None:
        self.wd = wd
        self.parent = parent
        self.name = name
        self.children: dict[bytes, _Node] = {}

    def path(self) -> bytes:
        parts: list[bytes] = []
        node: _Node | None = self
        while node is not None and node.parent is not None:
            parts.append(node.name)
            node = node.parent
        if node is not None and node.name:
            parts.append(node.name)
        return b"/".join(reversed(parts))


class Watcher:
    """One inotify instance with all directories of a set, and a private directory for cookies.

    Args:
        cookie_dir: a directory of ours, not part of any set; creating a file in it and meeting its event
        proves that
            every event before it was read (rule 53).
        changed: called with (image path, change) for each event.
        lost: called with a reason when events were lost and the set must be scanned.
    """

    def __init__(
        self, cookie_dir: Path, changed: Callable[[bytes, Change], None], lost: Callable[[str], None]
    ) -> None:
        self._changed = changed
        self._lost = lost
        self._cookie_dir = cookie_dir
        self._cookies: dict[bytes, Callable[[], None]] = {}
        self._cookie_number = 0
        self._nodes: dict[int, _Node] = {}
        self._tops: dict[bytes, _Node] = {}
        self._moved: dict[int, _Node] = {}
        # Watches are added in the capture thread while the loop reads events: an event must find its node.
        self._lock = threading.Lock()
        cookie_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self.fd < 0:
            code = ctypes.get_errno()
            if code in (errno.EMFILE, errno.ENFILE):
                raise WatchLimit("fs.inotify.max_user_instances")
            raise OSError(code, os.strerror(code))
        try:
            self._cookie_wd = self._add(bytes(cookie_dir), IN_CREATE | IN_ONLYDIR)
        except BaseException:
            os.close(self.fd)
            raise

    def _add(self, path: bytes, mask: int) -> int:
        wd = int(_libc.inotify_add_watch(self.fd, path, ctypes.c_uint32(mask)))
        if wd < 0:
            code = ctypes.get_errno()
            if code == errno.ENOSPC:
                raise WatchLimit(WATCH_SYSCTL)
            raise OSError(code, os.strerror(code), os.fsdecode(path))
        return wd

    # -- watches

    def watch(self, path: bytes, fd: int) -> None:
        """Watch the open directory `fd`, which has the image path `path`; its parent must be watched already
        unless it is a root. Raises WatchLimit, or OSError when the directory is gone."""
        with self._lock:
            self._watch(path, self._add(b"/proc/self/fd/%d" % fd, _MASK))

    def _watch(self, path: bytes, wd: int) -> None:
        node = self._nodes.get(wd)
        if node is not None and node.path() == path:
            return
        if node is not None:
            self._unlink(node)
        head, _, name = path.rpartition(b"/")
        parent = self._find(head) if path not in self._tops and (head or b"" in self._tops) and path else None
        if parent is None and path and (b"/" in path or b"" in self._tops):
            # Its parent went away meanwhile, which somebody is told of: this one is no root.
            _libc.inotify_rm_watch(self.fd, wd)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path))
        if parent is None:
            node = _Node(wd, None, path)
            self._tops[path] = node
        else:
            stale = parent.children.get(name)
            if stale is not None and stale.wd != wd:
                self._forget(stale, remove=True)
            node = _Node(wd, parent, name)
            parent.children[name] = node
        self._nodes[wd] = node

    def _find(self, path: bytes) -> _Node | None:
        if path in self._tops:
            return self._tops[path]
        if b"" in self._tops:
            node: _Node | None = self._tops[b""]
            parts = path.split(b"/")
        else:
            top, *parts = path.split(b"/")
            node = self._tops.get(top)
        for part in parts:
            if node is None:
                return None
            node = node.children.get(part)
        return node

    def count(self) -> int:
        """Directories watched."""
        return len(self._nodes)

    def _unlink(self, node: _Node) -> None:
        if node.parent is not None and node.parent.children.get(node.name) is node:
            del node.parent.children[node.name]

    def _forget(self, node: _Node, *, remove: bool) -> None:
        """Drop a directory and everything below it."""
        self._unlink(node)
        stack = [node]
        while stack:
            here = stack.pop()
            stack.extend(here.children.values())
            if self._nodes.get(here.wd) is here:
                del self._nodes[here.wd]
                if remove:
                    _libc.inotify_rm_watch(self.fd, here.wd)

    # -- events

    def read(self) -> None:
        """Read and report everything that is queued. Called when the descriptor is readable."""
        self._expire_moves()
        for _ in range(64):  # bounded, so that an endless writer cannot hold the loop
            try:
                data = os.read(self.fd, _BUFFER)
            except BlockingIOError:
                return
            at = 0
            with self._lock:
                while at < len(data):
                    wd, mask, cookie, length = _EVENT.unpack_from(data, at)
                    at += _EVENT.size
                    name = data[at : at + length].rstrip(b"\0")
                    at += length
                    self._event(wd, mask, cookie, name)

    def _expire_moves(self) -> None:
        """Directories that were moved away and did not arrive in the batch after: they left the set."""
        for node in list(self._moved.values()):
            self._forget(node, remove=True)
        self._moved.clear()

    def _event(self, wd: int, mask: int, cookie: int, name: bytes) -> None:
        if mask & IN_Q_OVERFLOW:
            self._lost("the kernel's event queue overflowed")
            return
        if wd == self._cookie_wd:
            done = self._cookies.pop(name, None)
            if done is not None:
                done()
            return
        node = self._nodes.get(wd)
        if node is None:
            return
        if mask & IN_IGNORED:
            if node.parent is None:
                self._lost("the watch on the root was lost")
            self._forget(node, remove=False)
            return
        directory = node.path()
        if mask & (IN_DELETE_SELF | IN_MOVE_SELF):
            if node.parent is None:
                self._lost("the root was removed or renamed")
            return
        if not name:
            self._changed(directory, Change.DONE)  # attributes of the directory itself
            return
        path = directory + b"/" + name if directory else name
        if mask & IN_ISDIR:
            self._directory_event(node, path, mask, cookie, name)
        elif mask & (IN_CREATE | IN_MODIFY):
            self._changed(path, Change.WRITTEN)
        else:
            self._changed(path, Change.DONE)
        if mask & (IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO):
            self._changed(directory, Change.DONE)  # its times changed

    def _directory_event(self, node: _Node, path: bytes, mask: int, cookie: int, name: bytes) -> None:
        if mask & IN_MOVED_FROM:
            child = node.children.get(name)
            if child is not None:
                self._unlink(child)
                self._moved[cookie] = child
            self._changed(path, Change.DONE)
        elif mask & IN_MOVED_TO:
            moved = self._moved.pop(cookie, None)
            stale = node.children.get(name)
            if stale is not None:
                self._forget(stale, remove=True)
            if moved is not None:
                moved.parent, moved.name = node, name
                node.children[name] = moved
            self._changed(path, Change.TREE)
        elif mask & IN_CREATE:
            self._changed(path, Change.TREE)
        elif mask & IN_DELETE:
            child = node.children.get(name)
            if child is not None:
                self._forget(child, remove=False)
            self._changed(path, Change.DONE)
        else:
            self._changed(path, Change.DONE)

    # -- cookies

    def cookie(self, done: Callable[[], None]) -> None:
        """Call `done` once every event up to now has been reported. Raises OSError when no cookie can be
        made."""
        self._cookie_number += 1
        name = b"%d-%d" % (os.getpid(), self._cookie_number)
        self._cookies[name] = done
        place = os.path.join(bytes(self._cookie_dir), name)
        try:
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            os.unlink(place)
        except OSError:
            self._cookies.pop(name, None)
            raise

    def close(self) -> None:
        """Drop all watches."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
