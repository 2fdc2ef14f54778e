"""Who may write a file, without asking file systems that may be dead."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from crnode.capture.openers import FileSystems, Mount, Opened, Writer, mapped, parse_fdinfo, parse_mountinfo

FDINFO = (
    b"pos:\t0\nflags:\t0100002\nmnt_id:\t30\nino:\t1044\n"
    b"lock:\t1: POSIX  ADVISORY  WRITE 7 00:1b:1044 0 EOF\n"
)
MOUNTS = (
    b"22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    b"61 27 8:3 /home /srv/my\\040files rw,noatime shared:1 - ext4 /dev/sda3 rw\n"
    b"66 61 0:53 / /srv/nfs rw shared:9 - nfs4 nas:/x rw,vers=4.2\n"
)
MAPS = b"""\
7f0000000000-7f0000001000 rw-s 00000000 {0} 77                          /srv/one
7f0000001000-7f0000002000 r--s 00000000 {0} 78                          /srv/two
7f0000002000-7f0000003000 rw-p 00000000 {0} 79                          /srv/three
7f0000003000-7f0000004000 rw-s 00000000 00:35 77                        /srv/nfs/four
7f0000004000-7f0000005000 rw-s 00000000 00:01 77                        /memfd:x (deleted)
7f0000005000-7f0000006000 rw-p 00000000 00:00 0
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                         [stack]
"""


def test_what_proc_says_is_read() -> None:
    assert parse_fdinfo(FDINFO) == Opened(True, 30, 1044)
    assert parse_fdinfo(b"pos:\t0\nflags:\t0100001\nmnt_id:\t9\n") == Opened(True, 9, 0)  # an older kernel
    assert not parse_fdinfo(b"flags:\t0100000\nmnt_id:\t9\nino:\t3\n").writes
    assert not parse_fdinfo(b"flags:\t%o\nmnt_id:\t9\n" % (os.O_PATH | os.O_RDWR)).writes
    assert parse_mountinfo(MOUNTS) == {
        22: Mount(os.makedev(0, 21), b"proc"),
        61: Mount(os.makedev(8, 3), b"ext4"),
        66: Mount(os.makedev(0, 53), b"nfs4"),
    }


def test_mappings_are_known_by_their_text(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        ours = FileSystems([fd])
    finally:
        os.close(fd)
    (device,) = ours.devices
    here = tmp_path.stat().st_dev
    assert ours.devices[device] == {here}
    text = MAPS.replace(b"{0}", b"%02x:%02x" % (os.major(device), os.minor(device)))
    assert list(mapped(text, ours)) == [Writer((here, 77), b"/srv/one", True)]
    # Where stat names the file system otherwise, as on an overlay, the same inode elsewhere may be the file.
    ours.devices[device] = {here + 1}
    assert list(mapped(text, ours, 77)) == [Writer((here + 1, 77), b"/srv/one", True), None, None]


LIBC = ctypes.CDLL(None, use_errno=True)
_INIT, _OPEN = 26, 14


def _serve(fuse: int) -> None:
    """Answer until the file is open, and nothing more: from then on the mount is dead."""
    while True:
        request = os.read(fuse, 1 << 20)
        _, opcode, unique = struct.unpack_from("=IIQ", request)
        if opcode == _INIT:
            body = struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 1, 1, 4096, 1, 1, 0, 0)
        elif opcode == _OPEN:
            body = struct.pack("=QII", 1, 0, 0)
        else:
            body = b""
        os.write(fuse, struct.pack("=IiQ", 16 + len(body), 0 if body else -38, unique) + body)
        if opcode == _OPEN:
            return


@contextlib.contextmanager
def dead_file(place: Path) -> Iterator[None]:
    """At `place`, a file of a FUSE file system that stops answering once it is open."""
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("no FUSE here")
    place.touch()
    options = f"fd={fuse},rootmode=100000,user_id=0,group_id=0".encode()
    if LIBC.mount(b"fuse", bytes(place), b"fuse", 0, options):
        os.close(fuse)
        pytest.skip("nothing may be mounted here")
    server = threading.Thread(target=_serve, args=(fuse,), daemon=True)
    server.start()
    try:
        yield
    finally:
        os.close(fuse)  # ends the connection: whoever waits for it gets an error
        LIBC.umount2(bytes(place), 2)
        server.join(5)


LOOK = """
import os, sys
from crnode.capture.openers import FileSystems, Round, has_writer
fd = os.open(sys.argv[1], os.O_RDONLY)
has_writer(fd)
look = Round(FileSystems([fd]))
while not look.step(1.0):
    pass
print("through")
"""
HOLD = "import os, sys; fd = os.open(sys.argv[1], os.O_RDWR); print(flush=True); sys.stdin.read()"


@pytest.mark.timeout(60)
def test_a_dead_mount_holds_nothing_up(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    ours = tmp_path / "source" / "f"
    ours.touch()
    dead = tmp_path / "dead"
    hold = [sys.executable, "-c", HOLD, str(dead)]
    look = [sys.executable, "-c", LOOK, str(ours)]
    with contextlib.ExitStack() as stack:  # whoever hangs is waited for when the mount is gone
        mount = stack.enter_context(contextlib.ExitStack())
        mount.enter_context(dead_file(dead))
        holder = stack.enter_context(subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert holder.stdout is not None
        holder.stdout.readline()
        looker = stack.enter_context(subprocess.Popen(look, stdout=subprocess.PIPE))
        try:
            assert looker.communicate(timeout=10)[0] == b"through\n"
        finally:
            looker.kill()
            holder.kill()
            mount.close()
