"""Metadata of a file as an entry carries it: owner and group by name, ACLs by name, xattrs, link target."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import struct
from functools import lru_cache

from crproto.entries import NOTHING, Extra
from crproto.errors import RemoteProtocolError
from crproto.limits import I64_MAX, I64_MIN

ACL_ACCESS = "system.posix_acl_access"
ACL_DEFAULT = "system.posix_acl_default"
_ACL_HEAD = struct.Struct("<I")
_ACL_ITEM = struct.Struct("<HHI")
_ACL_VERSION = 2
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_NO_ID = 0xFFFFFFFF

Acl = tuple[tuple[int, int, str, int], ...]

_NOT_SUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENODATA)


def _if_text(name: str) -> str:
    """A name, or '' where it is not UTF-8: the number says enough then."""
    return name if name.isprintable() else ""


@lru_cache(maxsize=4096)
def user_name(number: int) -> str:
    """The user's name, or '' where this machine has none for the number."""
    try:
        return _if_text(pwd.getpwuid(number).pw_name)
    except KeyError:
        return ""


@lru_cache(maxsize=4096)
def group_name(number: int) -> str:
    """The group's name, or '' where this machine has none for the number."""
    try:
        return _if_text(grp.getgrgid(number).gr_name)
    except KeyError:
        return ""


@lru_cache(maxsize=4096)
def user_number(name: str, number: int) -> int:
    """This machine's number for the user `name`; `number` where the name is unknown here."""
    if name:
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            return number
    return number


@lru_cache(maxsize=4096)
def group_number(name: str, number: int) -> int:
    """This machine's number for the group `name`; `number` where the name is unknown here."""
    if name:
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            return number
    return number


def forget_names() -> None:
    """Look users and groups up afresh (they may have been added meanwhile)."""
    for cache in (user_name, group_name, user_number, group_number):
        cache.cache_clear()


def acl_from_bytes(data: bytes) -> Acl:
    """The ACL of the kernel's xattr form (posix_acl_xattr.h), with names. Raises ValueError when it is
    none."""
    if len(data) < 4 or _ACL_HEAD.unpack_from(data)[0] != _ACL_VERSION or (len(data) - 4) % 8:
        raise ValueError("not a POSIX ACL of version 2")
    out: list[tuple[int, int, str, int]] = []
    for tag, perm, number in _ACL_ITEM.iter_unpack(data[4:]):
        if tag == _ACL_USER:
            out.append((tag, perm, user_name(number), number))
        elif tag == _ACL_GROUP:
            out.append((tag, perm, group_name(number), number))
        else:
            out.append((tag, perm, "", 0))
    return tuple(out)


def acl_to_bytes(acl: Acl) -> bytes:
    """The kernel's form of `acl`, with this machine's numbers for the names."""
    items = []
    for tag, perm, name, number in acl:
        if tag == _ACL_USER:
            number = user_number(name, number)
        elif tag == _ACL_GROUP:
            number = group_number(name, number)
        else:
            number = _NO_ID
        items.append((tag, number, perm))
    items.sort()  # the kernel demands ascending tags, and numbers within them
    return _ACL_HEAD.pack(_ACL_VERSION) + b"".join(_ACL_ITEM.pack(t, p, n) for t, n, p in items)


def read_extra(fd: int, info: os.stat_result, link: bytes | None, *, fuzzy: bool = False) -> Extra:
    """xattrs and ACLs of the open file or directory `fd`. Raises OSError only for a disk that cannot read,
    RemoteProtocolError for a time that no entry can carry: here it can still be said that it is the time."""
    if not I64_MIN <= info.st_mtime_ns <= I64_MAX:
        raise RemoteProtocolError("its time of last change is not in the years 1677 to 2262")
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        names = []
    if not names and link is None and not fuzzy:
        return NOTHING
    xattrs: list[tuple[bytes, bytes]] = []
    acl: Acl | None = None
    default: Acl | None = None
    for name in names:
        try:
            value = os.getxattr(fd, name)
        except OSError as error:
            if error.errno in _NOT_SUPPORTED:
                continue
            raise
        if name == ACL_ACCESS:
            acl = acl_from_bytes(value)
        elif name == ACL_DEFAULT:
            default = acl_from_bytes(value)
        elif not name.startswith("system."):
            xattrs.append((os.fsencode(name), value))
    xattrs.sort()
    return Extra(
        target=None,
        xattrs=tuple(xattrs),
        acl=acl,
        default_acl=default if stat.S_ISDIR(info.st_mode) else None,
        link=link,
        fuzzy=fuzzy,
    )
