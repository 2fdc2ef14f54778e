"""Who has files open for writing, or mapped so, as /proc tells it: only they change bytes unseen (rule 54).

What other users' processes have open is hidden from an agent that is not root, and other processes are from
one in a container; then the answer is "unknown" and never "nobody".

No descriptor is asked anything before its mount is known to be of the file systems that are looked for: a
dead NFS or FUSE mount answers stat(2) never. Mounts and mappings name a file system by a device that on btrfs
and on overlays is not that of stat(2); on overlays the inode of a mapping is another one, too, so there
mappings alone are missed, but whoever maps a file for writing has opened it so, and nearly all keep it
open."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_ANY_WRITE = os.O_WRONLY | os.O_RDWR
_LOCAL = {b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"f2fs", b"zfs", b"bcachefs"}
"""Kinds of file systems that this machine alone writes, and that have what is mapped written back."""
_BACK_SECONDS = 50.0  # what is written through a mapping has to be on its way to the disk by then
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # its inode: a constant of the kernel (PROC_PID_INIT_INO)

FileId = tuple[int, int]  # st_dev, st_ino


class Writer(NamedTuple):
    """A file that some process may write: its identity, its path as the kernel names it (None: unknown), and
    whether it is mapped, so that writes move no time."""

    file: FileId
    path: bytes | None
    mapped: bool


class Opened(NamedTuple):
    """What /proc/PID/fdinfo says of a descriptor; `inode` is 0 where the kernel does not say it."""

    writes: bool
    mount: int
    inode: int


def parse_fdinfo(text: bytes) -> Opened:
    """Read the text of /proc/PID/fdinfo/N."""
    fields = dict(line.split(b":", 1) for line in text.splitlines() if b":" in line)
    flags = int(fields.get(b"flags", b"0"), 8)
    writes = bool(flags & _ANY_WRITE) and not flags & os.O_PATH
    return Opened(writes, int(fields.get(b"mnt_id", b"-1")), int(fields.get(b"ino", b"0")))


class Mount(NamedTuple):
    """A line of /proc/PID/mountinfo."""

    device: int
    kind: bytes


def parse_mountinfo(text: bytes) -> dict[int, Mount]:
    """Mount id -> mount, of the text of /proc/PID/mountinfo."""
    out: dict[int, Mount] = {}
    for line in text.splitlines():
        number, _, device = line.split(None, 3)[:3]
        major, _, minor = device.partition(b":")
        kind = line.partition(b" - ")[2].split(b" ", 1)[0]
        out[int(number)] = Mount(os.makedev(int(major), int(minor)), kind)
    return out


def _read(path: bytes) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


class FileSystems:
    """The file systems of these open files or directories, as stat(2) and as /proc name them."""

    def __init__(self, fds: Iterable[int]) -> None:
        self.devices: dict[int, set[int]] = {}  # device in mountinfo and maps -> st_dev of ours there
        self.local = False  # whether all of them are known to be of the kinds of a local disk
        self._mounts: dict[int, bool] = {}  # mount id -> whether it is of ours
        self._listed = b""  # the process whose mounts were read last
        with contextlib.suppress(OSError):  # no /proc here: nothing is found
            mounts = parse_mountinfo(_read(b"/proc/self/mountinfo"))
            kinds = set()
            for fd in fds:
                number = parse_fdinfo(_read(b"/proc/self/fdinfo/%d" % fd)).mount
                device = os.fstat(fd).st_dev
                mount = mounts.get(number, Mount(device, b""))
                self.devices.setdefault(mount.device, set()).add(device)
                self._mounts[number] = True
                kinds.add(mount.kind)
            self._learn(mounts)
            self.local = kinds <= _LOCAL

    @property
    def two_names(self) -> bool:
        """Whether a mapping of a file of ours may be under a device and inode that are not stat's."""
        return any(ours != {device} for device, ours in self.devices.items())

    def _learn(self, mounts: dict[int, Mount]) -> None:
        for number, mount in mounts.items():
            self._mounts.setdefault(number, mount.device in self.devices)

    def has(self, mount: int, place: bytes) -> bool | None:
        """Whether `mount`, of the process at `place` in /proc, is of these file systems; None where it is no
        mount that a process sees: of memory files, or one that was detached."""
        if mount not in self._mounts and self._listed != place:
            self._listed = place
            with contextlib.suppress(OSError):
                self._learn(parse_mountinfo(_read(place + b"/mountinfo")))
        return self._mounts.get(mount)


def sees_all() -> bool:
    """Whether /proc shows us all processes, and all of them may be looked at."""
    try:
        first = os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
        return os.geteuid() == 0 and first and os.path.exists("/proc/1")  # hidepid= hides init, too
    except OSError:
        return False


def written_back_soon() -> bool:
    """Whether the kernel is set to write back what is mapped and dirty within about half a minute."""
    try:
        expire = int(_read(b"/proc/sys/vm/dirty_expire_centisecs"))
        interval = int(_read(b"/proc/sys/vm/dirty_writeback_centisecs"))
    except OSError:
        return False
    return interval > 0 and (expire + interval) / 100 <= _BACK_SECONDS


def processes() -> list[bytes]:
    """The numbers of all processes but this one."""
    own = b"%d" % os.getpid()
    return [name for name in os.listdir(b"/proc") if name.isdigit() and name != own]


NOTHING = Writer((0, 0), None, False)
"""Comes now and then while a process with many descriptors is looked at, so that who looks can pause."""
_PAUSE = 200  # descriptors


def writers_of(process: bytes, ours: FileSystems, inode: int = 0) -> Iterator[Writer | None]:
    """What one process may write on `ours`; None when it may not be looked at, or has something whose
    identity stays unknown and that may be `inode`. One that has ended has nothing."""
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
            opened = parse_fdinfo(_read(place + b"/fdinfo/" + name))
            path = os.readlink(place + b"/fd/" + name) if opened.writes else b""
            if not path.startswith(b"/"):
                continue  # sockets, pipes
            known = ours.has(opened.mount, place)
            if not known:
                if known is None and inode and opened.inode == inode:
                    yield None
                continue
            info = os.stat(place + b"/fd/" + name)
            if stat.S_ISREG(info.st_mode):
                yield Writer((info.st_dev, info.st_ino), path, False)
        except PermissionError:  # it may be listed and not be read: of a process in another domain
            yield None
            return
        except OSError:
            continue
    try:
        maps = _read(place + b"/maps")
    except PermissionError:
        yield None
        return
    except OSError:
        return
    yield from mapped(maps, ours, inode)


def mapped(maps: bytes, ours: FileSystems, inode: int = 0) -> Iterator[Writer | None]:
    """What the text of /proc/PID/maps says is mapped for writing; None as of :func:`writers_of`."""
    for line in maps.splitlines():
        parts = line.split(None, 5)  # range, rights, offset, device, inode, path
        if len(parts) < 6 or parts[1][1:2] != b"w" or parts[1][3:4] != b"s" or parts[5][:1] != b"/":
            continue
        major, _, minor = parts[3].partition(b":")
        device = os.makedev(int(major, 16), int(minor, 16))
        for each in ours.devices.get(device, ()):
            yield Writer((each, int(parts[4])), parts[5], True)
        if device not in ours.devices and inode == int(parts[4]) and ours.two_names:
            yield None


def has_writer(fd: int) -> bool | None:
    """Whether any process but this one may write the open file, or has within a minute written what is not
    on its way to the disk yet; None when no writer was found and that is not certain: not all processes
    could be looked at, other machines may write there, or what was mapped may stay dirty for long."""
    info = os.fstat(fd)
    file = (info.st_dev, info.st_ino)
    ours = FileSystems([fd])
    hidden = not (ours.local and sees_all() and written_back_soon())
    try:
        for process in processes():
            for writer in writers_of(process, ours, info.st_ino):
                if writer is None:
                    hidden = True
                elif writer.file == file:
                    return True
    except OSError:
        return None  # no /proc here
    return None if hidden else False


class Round:
    """A look through /proc in small steps, so that it never holds its thread for long."""

    def __init__(self, ours: FileSystems) -> None:
        self.ours = ours
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
            self._here = writers_of(self._left.pop(), self.ours)
            return False
        if writer is not None and writer is not NOTHING:
            known = self.found.get(writer.file)
            if known is None or (writer.mapped and not known.mapped):
                self.found[writer.file] = writer
        return False
