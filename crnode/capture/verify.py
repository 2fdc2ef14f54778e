"""Comparing a file's bytes with the entry that was captured of it, by BLAKE3, chunk after chunk.

The block hashes that capture compares by are a fast hint with a secret seed (rule 57); this is the proof."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from crnode.capture.roots import OpenRoots
from crnode.capture.rot import Stretch
from crnode.platform.files import open_beneath
from crproto import content
from crproto.entries import Entry
from crproto.ids import HOLE, chunk_id

Load = Callable[[bytes], bytes]


def open_file(roots: OpenRoots, path: bytes) -> int:
    """The file at an image path, for reading; nothing is followed. Raises OSError or KeyError."""
    root_fd, below = roots.resolve(path)
    return open_beneath(root_fd, below, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)


def spans(entry: Entry, load: Load, start: int = 0, stop: int | None = None) -> Iterator[Stretch]:
    """The chunks and holes of `entry` that do not end before `start` or begin at `stop` or later. Raises
    Missing, Damaged or RemoteProtocolError for a recipe that cannot be read."""
    if entry.content is None:
        return
    walk = content.walk(entry.content, entry.level, load, size=entry.size, start=start, stop=stop)
    for offset, length, name in walk:
        yield Stretch(offset, offset + length, name)


def gone(old: Entry, new: Entry, load: Load) -> Iterator[Stretch]:
    """The chunks of `old` that `new` has not, or has elsewhere. Raises as :func:`spans`."""
    others = spans(new, load)
    other = next(others, None)
    for one in spans(old, load):
        while other is not None and other.start < one.start:
            other = next(others, None)
        if other != one:
            yield one


def checked(fd: int, those: Iterable[Stretch]) -> Iterator[tuple[Stretch, bool]]:
    """Each of `those`, with whether the file has its bytes. Raises as :func:`spans`, OSError for the file."""
    for one in those:
        length = one.end - one.start
        if one.id == HOLE:
            same = not any(data.strip(b"\0") for data in _data(fd, one.start, length))
        else:
            data = read_all(fd, length, one.start)
            same = len(data) == length and chunk_id(data) == one.id
        yield one, same


def compared(fd: int, entry: Entry, load: Load, start: int = 0) -> Iterator[tuple[Stretch, bool]]:
    """Each chunk and hole of `entry` from offset `start` on, with whether the file has those bytes. Raises as
    :func:`checked`."""
    return checked(fd, spans(entry, load, start))


def _data(fd: int, offset: int, length: int) -> Iterator[bytes]:
    """What stands in the data ranges within a stretch that should be a hole."""
    end = offset + length
    at = offset
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
            stop = min(os.lseek(fd, at, os.SEEK_HOLE), end)
        except OSError:  # ENXIO: no data behind it
            return
        while at < stop:
            data = os.pread(fd, min(stop - at, 1 << 20), at)
            if not data:
                return
            yield data
            at += len(data)


def read_all(fd: int, length: int, at: int) -> bytes:
    """`length` bytes at `at`, fewer where the file ends."""
    data = os.pread(fd, length, at)
    while 0 < len(data) < length:
        more = os.pread(fd, length - len(data), at + len(data))
        if not more:
            break
        data += more
    return data
