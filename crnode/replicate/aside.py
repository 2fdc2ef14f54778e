"""Where a live tree keeps what was in its way: files that somebody changed or put there.

Everything lies below a folder that is named for the time, with the path that it had. A folder is made for it,
never one that was found, and what was set aside is never gone into: it may be a link to anywhere, or a
directory that its owner still has open. Where a path would be inside of what was set aside, or replace it,
another folder begins (rule 63).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from crnode.platform.files import make_private_dir

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Aside:
    """Keeps things aside below `place`, in folders named by `name` (a time, for people)."""

    def __init__(self, place: Path, name: Callable[[], str]) -> None:
        self.place = place
        self.name = name
        self._time = ""
        self._number = 0  # of the folders of this time
        self._folder: str | None = None
        self._held: set[bytes] = set()  # paths that were set aside in it

    def keep(self, parent: int, name: bytes, path: bytes) -> None:
        """Move `name` of the open directory `parent` aside, which is `path` of the live tree. Raises
        OSError."""
        make_private_dir(self.place)
        time = self.name()
        if time != self._time:
            self._time, self._number, self._folder = time, 0, None
        top = os.open(self.place, _DIRECTORY)
        try:
            while not self._kept(top, parent, name, path):
                self._begin(top)
        finally:
            os.close(top)

    def _begin(self, top: int) -> None:
        """Make a new folder: one that is there already is not ours to go on with, whoever made it."""
        while True:
            self._number += 1
            folder = self._time if self._number == 1 else f"{self._time} {self._number}"
            try:
                os.mkdir(folder, 0o700, dir_fd=top)
            except FileExistsError:
                continue
            self._folder, self._held = folder, set()
            return

    def _forget(self, top: int, above: list[bytes]) -> None:
        """Remove folders that nothing came into: what cannot be moved is tried again with each image."""
        assert self._folder is not None
        ways = [os.fsencode(self._folder), *above]
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            while ways:
                os.rmdir(b"/".join(ways), dir_fd=top)
                ways.pop()

    def _kept(self, top: int, parent: int, name: bytes, path: bytes) -> bool:
        """Move it into the present folder; False when a new one has to begin."""
        *above, last = path.split(b"/")
        ways = [b"/".join(above[:count]) for count in range(1, len(above) + 1)]
        if self._folder is None or not self._held.isdisjoint((*ways, path)):
            return False
        try:
            here = os.open(self._folder, _DIRECTORY, dir_fd=top)
        except FileNotFoundError:  # somebody tidied up
            return False
        try:
            for part in above:
                try:
                    os.mkdir(part, 0o700, dir_fd=here)
                except FileExistsError:
                    pass
                below = os.open(part, _DIRECTORY, dir_fd=here)
                os.close(here)
                here = below
            try:
                os.lstat(last, dir_fd=here)
                return False  # the way to something else that was set aside
            except FileNotFoundError:
                try:
                    os.rename(name, last, src_dir_fd=parent, dst_dir_fd=here)
                except OSError:
                    self._forget(top, above)
                    raise
        finally:
            os.close(here)
        self._held.add(path)
        return True
