"""The source's paths of a set, and how image paths map onto them.

A set with one path has its contents at the top of the image. A set with several has each below a label: the
path's last component, made unique. A root is held open by descriptor and remembered by identity (file system
id and inode), so that an unmounted or replaced source is noticed before an empty image is made of it (rule
59).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pathspec

OWN = b".crnode"  # never part of a set (rule 67)
RESTORING = "restore-"  # how a folder in it is called that a restore to the set's place writes into
_BESIDE = b".crnode-"


@dataclass(frozen=True)
class Root:
    """One source path: `label` is b'' in a set with one path."""

    label: bytes
    path: Path


def labels(paths: list[str]) -> list[Root]:
    """The roots of a set's paths, with labels that are unique and stable for a given list."""
    if len(paths) == 1:
        return [Root(b"", Path(paths[0]))]
    roots: list[Root] = []
    used: set[bytes] = set()
    for text in paths:
        path = Path(text)
        label = os.fsencode(path.name) or b"root"
        wanted, count = label, 2
        while label in used:
            label = wanted + b"-%d" % count
            count += 1
        used.add(label)
        roots.append(Root(label, path))
    return roots


def identity(fd: int) -> str:
    """File system id and inode of an open root directory: stable over restarts, another one when
    unmounted."""
    return f"{os.fstatvfs(fd).f_fsid:x}:{os.fstat(fd).st_ino}"


class OpenRoots:
    """The roots of a set, open. Image path -> (root descriptor, path below it)."""

    def __init__(self, roots: list[Root]) -> None:
        self.roots = roots
        self._fds: dict[bytes, int] = {}
        try:
            for root in roots:
                self._fds[root.label] = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def resolve(self, path: bytes) -> tuple[int, bytes]:
        """(root descriptor, path relative to it). Raises KeyError for a path of no root."""
        if b"" in self._fds:
            return self._fds[b""], path
        label, _, rest = path.partition(b"/")
        return self._fds[label], rest

    def tops(self) -> list[bytes]:
        """The image paths of the roots themselves."""
        return list(self._fds)

    def device(self, path: bytes) -> int:
        return os.fstat(self.resolve(path)[0]).st_dev

    def root_index(self, path: bytes) -> int:
        """Number of the root that `path` lies in: inode numbers are unique within a root only."""
        if b"" in self._fds:
            return 0
        return list(self._fds).index(path.partition(b"/")[0])

    def identities(self) -> dict[bytes, str]:
        return {label: identity(fd) for label, fd in self._fds.items()}

    def gone(self) -> bool:
        """True when a root's path no longer leads to the directory that is open (replaced, unmounted,
        removed)."""
        for root in self.roots:
            try:
                here = os.stat(root.path)
            except OSError:
                return True
            held = os.fstat(self._fds[root.label])
            if (here.st_dev, here.st_ino) != (held.st_dev, held.st_ino):
                return True
        return False


class OwnPlaces:
    """Recognises what crnode itself put into a source's tree: workspaces beside destinations, and the
    destinations of the very set that is captured, as where two nodes share a machine. A copy would be copied
    again, one level deeper each time (rule 64). `set_uuid` is '' where no set's source is looked at."""

    def __init__(self, set_uuid: str) -> None:
        self._uuid = set_uuid

    def workspace(self, parent_fd: int, name: bytes) -> bool:
        """Whether the directory `name` in `parent_fd` is the workspace of some destination."""
        return name.startswith(_BESIDE) and "set" in self._mark(parent_fd, name + b"/set")

    def destination(self, parent_fd: int, name: bytes) -> bool:
        """Whether the directory `name` in `parent_fd` is a destination of this set."""
        if not self._uuid:
            return False
        for path in (_BESIDE + name + b"/set", name + b"/" + OWN + b"/set"):
            mark = self._mark(parent_fd, path)
            if mark.get("set") == self._uuid and mark.get("inode") == _inode(parent_fd, name):
                return True
        return False

    @staticmethod
    def _mark(parent_fd: int, path: bytes) -> dict[str, Any]:
        """What a mark says, {} when there is none. One that another user made is none: whoever may write in a
        shared folder must not take others' folders out of the set; nor is a copy, whose inode is another."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent_fd)
        except OSError:
            return {}
        try:
            if os.fstat(fd).st_uid not in (0, os.geteuid()):
                return {}
            held = json.loads(os.read(fd, 4096))
            return held if isinstance(held, dict) else {}
        except (OSError, ValueError):
            return {}
        finally:
            os.close(fd)


def _inode(parent_fd: int, name: bytes) -> int:
    try:
        return os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_ino
    except OSError:
        return -1


class Selection:
    """Which paths of the tree belong to the set: gitignore meaning, as `pathspec` reads it.

    Without `include` everything belongs; `exclude` wins; directories belong unless excluded, so that what is
    inside can be reached. Raises ValueError for a pattern that cannot be read.
    """

    def __init__(self, include: list[str], exclude: list[str], pages: list[str] | None = None) -> None:
        self._include = pathspec.GitIgnoreSpec.from_lines(include) if include else None
        self._exclude = pathspec.GitIgnoreSpec.from_lines(exclude) if exclude else None
        self._pages = pathspec.GitIgnoreSpec.from_lines(pages) if pages else None

    def takes(self, path: bytes, is_dir: bool) -> bool:
        if OWN in path and b"/.crnode/" in b"/%b/" % path:
            return False
        if self._include is None and self._exclude is None:
            return True
        text = os.fsdecode(path) + ("/" if is_dir else "")
        if self._exclude is not None and self._exclude.match_file(text):
            return False
        return is_dir or self._include is None or self._include.match_file(text)

    def pages(self, path: bytes) -> bool:
        """Whether the file is one of fixed pages (a database, a disk image)."""
        return self._pages is not None and self._pages.match_file(os.fsdecode(path))
