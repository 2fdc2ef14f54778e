"""Cutting files into chunks: a rolling hash for ordinary files, fixed pages for databases and disk images.

A cutter looks at a window and leaves the end of it uncut until it can be sure, so that a file read in windows
of any size gets the borders that one call over the whole would give. Its number is part of each recipe: other
borders are another number, for ever. recut.py cuts a changed file against its known chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import pyfastcdc

from crproto.errors import LocalProtocolError
from crproto.limits import KIB, MIB

CUTTER_NONE = 0  # small files: one chunk of up to 32 KiB
CUTTER_16K = 1  # FastCDC 2020, average 16 KiB: 4 to 64
CUTTER_64K = 2  # the same, average 64 KiB: 16 to 256
CUTTER_PAGES = 3  # fixed 16 KiB: a changed page dirties one chunk

SMALL = 32 * KIB  # bytes up to which a file is one chunk
LARGE = 512 * MIB  # bytes from which the larger average is used
LARGE_GROWN = 1024 * MIB  # a file that was cut small is cut large only from here on ...
LARGE_SHRUNK = 256 * MIB  # ... and one that was cut large stays so down to here: no flapping around one size
PAGE = 16 * KIB
READ = 8 * MIB  # bytes of a window of cut_stream

if pyfastcdc.FastCDC.__module__.startswith("pyfastcdc.py"):
    raise ImportError(
        "pyfastcdc runs on its pure-Python fallback, which is a hundred times too slow to be of use: "
        "install a wheel of pyfastcdc for this platform, or a C compiler and then "
        "`pip install --force-reinstall pyfastcdc`"
    )


class Cutter(Protocol):
    """Decides chunk borders from the bytes alone."""

    @property
    def number(self) -> int:
        """The CUTTER_ constant that recipes record."""

    @property
    def max_size(self) -> int:
        """Bytes of the largest chunk; any window of this many bytes yields at least one."""

    def lengths(self, buffer: memoryview, final: bool) -> Iterator[int]:
        """Lengths of the chunks from the start of ``buffer`` on, found one by one as they are asked for.

        Unless ``final`` (the window ends where the file ends) it stops when less than max_size bytes are
        left, because what follows could still move the border.
        """

    def cut(self, buffer: memoryview, final: bool) -> list[int]:
        """All of :meth:`lengths`."""


class GearCutter:
    """FastCDC's gear hash with its usual bounds: a quarter and four times the average."""

    def __init__(self, number: int, average: int) -> None:
        self.number = number
        self.max_size = average * 4
        self._cdc = pyfastcdc.FastCDC(average, min_size=average // 4, max_size=average * 4)

    def lengths(self, buffer: memoryview, final: bool) -> Iterator[int]:
        """See :class:`Cutter`."""
        # A border depends on nothing before the chunk's start and, with max_size bytes in sight, on nothing
        # beyond.
        last = len(buffer) if final else len(buffer) - self.max_size
        at = 0
        for chunk in self._cdc.cut_buf(buffer):
            if at > last:
                return
            length = chunk.length
            yield length
            at += length

    def cut(self, buffer: memoryview, final: bool) -> list[int]:
        """See :class:`Cutter`."""
        return list(self.lengths(buffer, final))


class FixedCutter:
    """Borders at multiples of one size."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.max_size = size

    def lengths(self, buffer: memoryview, final: bool) -> Iterator[int]:
        """See :class:`Cutter`."""
        return iter(self.cut(buffer, final))

    def cut(self, buffer: memoryview, final: bool) -> list[int]:
        """See :class:`Cutter`."""
        whole, rest = divmod(len(buffer), self.max_size)
        return [self.max_size] * whole + ([rest] if rest and final else [])


def make_cutter(number: int) -> Cutter:
    """A cutter of one's own (they are not made for two threads at once); LocalProtocolError for unknown
    numbers."""
    if number == CUTTER_16K:
        return GearCutter(number, 16 * KIB)
    if number == CUTTER_64K:
        return GearCutter(number, 64 * KIB)
    if number == CUTTER_PAGES:
        return FixedCutter(number, PAGE)
    if number == CUTTER_NONE:
        return FixedCutter(number, SMALL)
    raise LocalProtocolError(f"cutter {number} is unknown")


def choose_cutter(size: int, *, pages: bool, previous: int | None) -> int:
    """The cutter's number for a file of ``size`` bytes; ``pages`` when the template calls it a page file.

    ``previous`` is what the version before was cut with: near the border it stays, since another cutter is a
    new copy.
    """
    if pages:
        return CUTTER_PAGES
    if size <= SMALL:
        return CUTTER_NONE
    large = LARGE
    if previous == CUTTER_16K:
        large = LARGE_GROWN
    elif previous == CUTTER_64K:
        large = LARGE_SHRUNK
    return CUTTER_64K if size >= large else CUTTER_16K


def cut_stream(
    read: Callable[[int, int], memoryview], size: int, cutter: Cutter, *, window: int = READ
) -> Iterator[tuple[int, int, memoryview]]:
    """(offset, length, bytes) of each chunk of a file of ``size`` bytes, read in windows.

    ``read`` gets (offset, length) and returns these bytes; what it returned before need not stay valid, nor
    does a view once the next chunk is asked for. When ``read`` returns fewer bytes the file has ended early:
    what is there is cut as if it were all, and the caller sees the shorter total.
    """
    window = max(window, 2 * cutter.max_size)
    at = 0
    while at < size:
        wanted = min(window, size - at)
        view = read(at, wanted)
        short = len(view) < wanted
        start = 0
        for length in cutter.cut(view, short or at + wanted == size):
            end = start + length
            yield at + start, length, view[start:end]
            start = end
        at += start
        if short:
            return
