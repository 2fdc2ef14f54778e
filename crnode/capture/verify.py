"""Comparing a file's bytes with the entry that was captured of it, by BLAKE3, chunk after chunk.

The block hashes that capture compares by are a fast hint with a secret seed (rule 57); this is the proof."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

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


def compared(fd: int, entry: Entry, load: Load, start: int = 0) -> Iterator[tuple[Stretch, bool]]:
    """Each chunk and hole of `entry` from offset `start` on, with whether the file has those bytes.

    Raises Missing, Damaged or RemoteProtocolError for a recipe that cannot be read, OSError for the file."""
    if entry.content is None:
        return
    walk = content.walk(entry.content, entry.level, load, size=entry.size, start=start)
    for offset, length, name in walk:
        if name == HOLE:
            same = not any(data.strip(b"\0") for data in _data(fd, offset, length))
        else:
            data = read_all(fd, length, offset)
            same = len(data) == length and chunk_id(data) == name
        yield Stretch(offset, offset + length, name), same


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


def differing(fd: int, entry: Entry, load: Load) -> tuple[Stretch, ...]:
    """The chunks of `entry` that the file has not (any more). Raises as :func:`compared`."""
    return tuple(stretch for stretch, same in compared(fd, entry, load) if not same)
