"""Paths as they travel: relative bytes with '/' between components. The only place that decides what is
refused."""

from __future__ import annotations

from crproto.errors import RemoteProtocolError
from crproto.limits import COMPONENT, DEPTH, PATH

RESERVED = b".crnode"  # our own directory inside every destination: never part of a set


def problem(path: bytes, *, root: bool = False) -> str:
    """Why ``path`` is refused, as the end of a sentence, or '' when it is good.

    The set's root directory itself is b'', which is good only with ``root``.
    """
    if not path:
        return "" if root else "is empty"
    if len(path) > PATH:
        return f"is longer than {PATH} bytes"
    # One string with a slash at both ends makes each rule about components one substring search.
    framed = b"/%b/" % path
    if b"//" in framed:
        return "is absolute or has an empty component"
    if b"/./" in framed or b"/../" in framed:
        return "has a component '.' or '..'"
    if b"\0" in framed:
        return "contains a NUL byte"
    if b"/.crnode/" in framed:
        return "has the reserved component '.crnode'"
    if len(path) > COMPONENT and max(map(len, path.split(b"/"))) > COMPONENT:
        return f"has a component longer than {COMPONENT} bytes"
    if path.count(b"/") >= DEPTH:
        return f"has more than {DEPTH} components"
    return ""


def check_path(path: bytes, *, root: bool = False) -> None:
    """RemoteProtocolError when :func:`problem` finds one."""
    why = problem(path, root=root)
    if why:
        raise RemoteProtocolError(f"the path {path[:200]!r} {why}")


def split(path: bytes) -> tuple[bytes, bytes]:
    """(directory, name); the directory of a top-level name is b'', and the root itself is (b'', b'')."""
    directory, _, name = path.rpartition(b"/")
    return directory, name


def join(directory: bytes, name: bytes) -> bytes:
    """The inverse of :func:`split`."""
    return b"%b/%b" % (directory, name) if directory else name
