"""Careful file handling in one place: durable small files, paths that cannot leave their root, syncs.

`openat2(2)` with RESOLVE_BENEATH keeps every open of a user's path inside its root even while somebody swaps
directories for links under our feet (rules 56 and 64). Kernels without it (before 5.6) get the same promise
from
a walk that opens each component with O_NOFOLLOW.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import secrets
import stat
import struct
from collections.abc import Callable
from pathlib import Path

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS

_SYS_OPENAT2 = 437  # the same number on every architecture (kernel 5.6)
_libc = ctypes.CDLL(None, use_errno=True)
_openat2_works: bool | None = None


def make_private_dir(path: Path) -> None:
    """Create `path` (and parents) readable by its owner alone; an existing directory is tightened to 0700."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(path.stat().st_mode) != 0o700:
        path.chmod(0o700)


def fsync_dir(path: Path) -> None:
    """Make the names in directory `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` with `data` so that after a crash either the old or the new bytes are there, whole.

    Temporary file beside it, write, fsync, rename, fsync of the directory. Raises OSError; the temporary is
    removed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def open_beneath(root_fd: int, path: bytes, flags: int, mode: int = 0, *, cross_devices: bool = False) -> int:
    """Open `path` (relative to the directory `root_fd`) without following any link on the way, the last
    included.

    Raises OSError: ELOOP where a component is a link, EXDEV where the path would leave the root or, unless
    `cross_devices`, enter another mounted file system. See openat2(2).
    """
    global _openat2_works
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    resolve = _BENEATH if cross_devices else _BENEATH | RESOLVE_NO_XDEV
    if _openat2_works is not False:
        how = struct.pack("QQQ", flags, mode if flags & os.O_CREAT else 0, resolve)
        fd = int(_libc.syscall(_SYS_OPENAT2, root_fd, path or b".", how, ctypes.c_size_t(len(how))))
        if fd >= 0:
            _openat2_works = True
            return fd
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EPERM) or _openat2_works:
            raise OSError(code, os.strerror(code), os.fsdecode(path))
        _openat2_works = False
    return _open_by_walk(root_fd, path, flags, mode, cross_devices)


def _open_by_walk(root_fd: int, path: bytes, flags: int, mode: int, cross_devices: bool) -> int:
    parts = path.split(b"/") if path else []
    if any(part in (b"", b".", b"..") for part in parts):
        raise OSError(errno.EXDEV, "path leaves its root", os.fsdecode(path))
    device = os.fstat(root_fd).st_dev
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    try:
        for part in parts[:-1]:
            step = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = step
            if not cross_devices and os.fstat(here).st_dev != device:
                raise OSError(errno.EXDEV, "path enters another file system", os.fsdecode(path))
        return os.open(parts[-1] if parts else b".", flags, mode, dir_fd=here)
    finally:
        os.close(here)


def open_parent(root_fd: int, path: bytes) -> tuple[int, bytes]:
    """(descriptor of the directory that holds `path`, last component), opened beneath; the caller closes
    it."""
    head, _, name = path.rpartition(b"/")
    fd = open_beneath(root_fd, head, os.O_RDONLY | os.O_DIRECTORY, cross_devices=True)
    return fd, name


_renameat2 = getattr(_libc, "renameat2", None)
_RENAME_NOREPLACE = 1


def rename_new(name: str | bytes, to: str | bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
    """rename(2) that replaces nothing: FileExistsError where something has the name `to`. OSError with EINVAL
    where the file system cannot (renameat2(2))."""
    if _renameat2 is None:  # pragma: no cover - every supported libc has it
        raise OSError(errno.EINVAL, "renameat2 is not known here")
    if _renameat2(src_dir_fd, os.fsencode(name), dst_dir_fd, os.fsencode(to), _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        raise OSError(errno.EINVAL if code == errno.ENOSYS else code, os.strerror(code), os.fsdecode(to))


_syncfs: Callable[[int], int] | None = getattr(_libc, "syncfs", None)


def syncfs(fd: int) -> None:
    """Make everything written to the file system of `fd` durable (syncfs(2)). Raises OSError; never retried
    (rule 33)."""
    if _syncfs is None:  # pragma: no cover - every supported libc has it
        os.sync()
        return
    if _syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


_sync_file_range = getattr(_libc, "sync_file_range", None)
_SYNC_FILE_RANGE_WRITE = 2


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Have the disk begin with these bytes of a file, without waiting for it (sync_file_range(2)): a sync
    that follows has less to wait for. A hint, which says nothing of durability; where it is not known, or
    fails, nothing is lost but time."""
    if _sync_file_range is not None:
        _sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


_STATX_BTIME = 0x800
_statx = getattr(_libc, "statx", None)


def birth_ns(path: Path) -> int | None:
    """When `path` was created, in ns since 1970 (statx(2)); None where it is not there or its file system
    does not say. Beside the inode's number it tells a directory from a later one with the same number."""
    if _statx is None:  # pragma: no cover - every supported libc has it
        return None
    buffer = ctypes.create_string_buffer(256)
    at_fdcwd, at_symlink_nofollow = -100, 0x100
    if _statx(at_fdcwd, os.fsencode(path), at_symlink_nofollow, _STATX_BTIME, buffer) != 0:
        return None
    (mask,) = struct.unpack_from("=I", buffer, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, 80)
    return int(seconds) * 10**9 + int(nanoseconds) if mask & _STATX_BTIME else None


def boot_id() -> str:
    """The kernel's identity of this boot; another one after a restart of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def machine_id() -> str:
    """The identity of this installation (machine-id(5)), to notice a data directory that was copied
    elsewhere."""
    for place in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            text = Path(place).read_text().strip()
        except OSError:
            continue
        if text:
            return text
    return platform.node()


def free_bytes(path: Path) -> tuple[int, int]:
    """(bytes available to us, total bytes) of the file system that holds `path`."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize, info.f_blocks * info.f_frsize
