"""Where a restore writes before its result appears: a folder of ours beside the destination.

It has the same name for the same destination, so that a restore that was cut off is found by the next one.
Asked for the same version again, that one goes on with it: files that are there whole are not written again.
Everything is read back in the end anyway, so what is found there is never trusted. For anything else it is
begun anew.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from pathlib import Path

from crproto.entries import FILE, Entry

NAME = ".crnode-restore-"


class Staging:
    """The folder of one restore. `what` says of which version and path it is.

    Attributes:
        resumed: something of the same restore was there already.
    """

    def __init__(self, to: Path, what: bytes) -> None:
        mark = hashlib.blake2b(os.fsencode(to), digest_size=6).hexdigest()
        self.path = to.parent / f"{NAME}{mark}"
        self.resumed = False
        self._opened = False
        self._what = what

    @property
    def tree(self) -> Path:
        """What becomes the destination."""
        return self.path / "tree"

    def open(self) -> None:
        """Make the folder, or find it. Raises OSError."""
        self._open()
        self._opened = True

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            if not self._is_ours():  # somebody else's, and where others may write a trap
                self.path = self.path.with_name(f"{NAME}{secrets.token_hex(6)}")
                self.path.mkdir(mode=0o700)
            elif self._is_of_this():
                self.resumed = True
                shutil.rmtree(self.path / "tmp", ignore_errors=True)
                (self.path / "tmp").mkdir(mode=0o700)
                return
            else:
                shutil.rmtree(self.path)
                self.path.mkdir(mode=0o700)
        self.tree.mkdir()
        (self.path / "tmp").mkdir(mode=0o700)
        (self.path / "what").write_bytes(self._what)

    def _is_ours(self) -> bool:
        info = self.path.lstat()
        return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o077

    def _is_of_this(self) -> bool:
        try:
            return (self.path / "what").read_bytes() == self._what and self.tree.is_dir()
        except OSError:
            return False

    def has(self, entry: Entry, where: bytes, names: int) -> bool:
        """Whether the file at `where` of the tree looks like `entry`, under as many names: it got its time
        and its name last."""
        if not self.resumed or entry.kind != FILE:
            return False
        try:
            info = os.lstat(os.path.join(os.fsencode(self.tree), where))
        except OSError:
            return False
        found = (stat.S_ISREG(info.st_mode), info.st_size, info.st_mtime_ns, info.st_nlink)
        return found == (True, entry.size, entry.mtime_ns, names)

    def close(self, keep: bool) -> None:
        """The restore is over. `keep`: it may be repeated, and what was written is worth it. What was never
        opened is not touched: an earlier attempt may have left it, or somebody else."""
        if self._opened and not (keep and self.tree.is_dir() and any(self.tree.iterdir())):
            shutil.rmtree(self.path, ignore_errors=True)
