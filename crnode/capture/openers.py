"""Who has files open for writing, or mapped so, as /proc tells it: only they change bytes unseen (rule 54).

What other users' processes have open is hidden from an agent that is not root; then the answer is "unknown"
and never "nobody". A mapping names its file by device and inode of the file system, which on btrfs and on
overlays are not those of stat(2): there mappings alone are missed, but whoever maps a file for writing has
opened it so, and nearly all keep it open."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

_ANY_WRITE = os.O_WRONLY | os.O_RDWR

FileId = tuple[int, int]  # st_dev, st_ino


class Writer(NamedTuple):
    """A file that some process may write: its identity, its path as the kernel names it (None: unknown), and
    whether it is mapped, so that writes move no time."""

    file: FileId
    path: bytes | None
    mapped: bool


def processes() -> list[bytes]:
    """The numbers of all processes but this one."""
    own = b"%d" % os.getpid()
    return [name for name in os.listdir(b"/proc") if name.isdigit() and name != own]


NOTHING = Writer((0, 0), None, False)
"""Comes now and then while a process with many descriptors is looked at, so that who looks can pause."""
_PAUSE = 200  # descriptors


def writers_of(process: bytes, devices: set[int] | None = None) -> Iterator[Writer | None]:
    """What one process may write (on these devices only); None when it may not be looked at. One that has
    ended has nothing."""
    place = b"/proc/" + process
    try:
        names = os.listdir(place + b"/fd")
    except PermissionError:
        yield None
        return
    except OSError:
        return
    for number, name in enumerate(names, 1):
        if number % _PAUSE == 0:
            yield NOTHING
        try:
            info = os.stat(place + b"/fd/" + name)
            if not stat.S_ISREG(info.st_mode) or (devices is not None and info.st_dev not in devices):
                continue
            if not _writes(place + b"/fdinfo/" + name):
                continue
            yield Writer((info.st_dev, info.st_ino), _link(place + b"/fd/" + name), False)
        except OSError:
            continue
    yield from _mapped(place + b"/maps")


def _writes(fdinfo: bytes) -> bool:
    with open(fdinfo, "rb") as file:
        for line in file:
            if line.startswith(b"flags:"):
                return bool(int(line.split()[1], 8) & _ANY_WRITE)
    return False


def _link(path: bytes) -> bytes | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _mapped(maps: bytes) -> Iterator[Writer | None]:
    try:
        with open(maps, "rb") as file:
            text = file.read()
    except PermissionError:
        yield None
        return
    except OSError:
        return
    for line in text.splitlines():
        parts = line.split(None, 5)  # range, rights, offset, device, inode, path
        if len(parts) == 6 and parts[1][1:2] == b"w" and parts[1][3:4] == b"s" and parts[5][:1] == b"/":
            major, _, minor = parts[3].partition(b":")
            device = os.makedev(int(major, 16), int(minor, 16))
            yield Writer((device, int(parts[4])), parts[5], True)


def has_writer(file: FileId) -> bool | None:
    """Whether any process may write the file; None when none was found and not all could be looked at."""
    hidden = False
    try:
        for process in processes():
            for writer in writers_of(process):
                if writer is None:
                    hidden = True
                elif writer.file == file:
                    return True
    except OSError:
        return None  # no /proc here
    return None if hidden else False


class Round:
    """A look through /proc in small steps, so that it never holds its thread for long."""

    def __init__(self, devices: set[int]) -> None:
        self.devices = devices
        self.found: dict[FileId, Writer] = {}
        self.seconds = 0.0  # that the whole round took
        self._left: list[bytes] | None = None
        self._here: Iterator[Writer | None] = iter(())  # what is left of the process that is looked at

    def step(self, seconds: float) -> bool:
        """Go on for about so long; True when the round is complete."""
        begun = time.monotonic()
        try:
            if self._left is None:
                self._left = processes()
            done = False
            while not done and time.monotonic() - begun < seconds:
                done = self._next()
        except OSError:
            done = True  # no /proc here
        self.seconds += time.monotonic() - begun
        return done

    def _next(self) -> bool:
        """Look at one thing more; True when nothing is left."""
        assert self._left is not None
        try:
            writer = next(self._here)
        except StopIteration:
            if not self._left:
                return True
            self._here = writers_of(self._left.pop(), self.devices)
            return False
        if writer is not None and writer.file[0] in self.devices:
            known = self.found.get(writer.file)
            if known is None or (writer.mapped and not known.mapped):
                self.found[writer.file] = writer
        return False
