"""The files of a set that a process holds open for writing or has mapped so: they are looked at more often
than their events make us (rule 54). Runs in the capture thread.

A look through /proc happens at most each ten seconds, in steps of at most 20 ms, one a second. Measured on 2
shared cores: 3 ms for 76 processes with 700 descriptors, 110 ms for 423 with 7,000 of which 6,000 are files
of the set's device. A larger machine spreads it over as many seconds as it needs, and capture is never held
up; a child process would cost more than the look itself.

What is held open is looked at by stat each second, as recently changed files are. That is not enough for what
is mapped: the kernel moves a file's times at the first write to a clean page only, so while pages are dirty
(up to half a minute on a disk, for ever on tmpfs) a writer goes on unseen. Mapped files are therefore
compared by content, in turn, a bounded number of bytes each time; and once more after the last mapping is
gone, because what was written last had no event either."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable

from crnode.capture.openers import FileSystems, Round
from crnode.capture.read import fingerprint_of
from crnode.capture.roots import OpenRoots
from crnode.capture.verify import compared, open_file
from crnode.store.reader import Reader
from crnode.store.store import Damaged, Missing
from crproto.errors import RemoteProtocolError

LOOK_SECONDS = 10.0  # between the beginnings of two looks through /proc
STEP_SECONDS = 0.02
CONTENT_SECONDS = 5.0  # between two comparisons of content
CONTENT_BYTES = 64 << 20  # compared each time
FILES_MOST = 2000


class Restless:
    """See the module's text. `load` reads a recipe of the source's own store."""

    def __init__(self, load: Callable[[bytes], bytes]) -> None:
        self.load = load
        self.open: set[bytes] = set()  # image paths that somebody may write
        self.mapped: set[bytes] = set()  # those of them that are mapped
        self.seconds = 0.0  # that the last whole look through /proc took
        self._round: Round | None = None
        self._next_look = self._next_content = 0.0
        self._turns: OrderedDict[bytes, int] = OrderedDict()  # path -> offset from which it is compared next

    def step(self, roots: OpenRoots, catalog: Reader, now: float) -> None:
        """Go on looking through /proc, if it is time to. `now`: monotonic seconds."""
        if self._round is None:
            if now < self._next_look:
                return
            self._next_look = now + LOOK_SECONDS
            self._round = Round(FileSystems(roots.resolve(top)[0] for top in roots.tops()))
        if not self._round.step(STEP_SECONDS):
            return
        found, self.seconds, self._round = self._round.found, self._round.seconds, None
        self.open, mapped = set(), set()
        for (device, inode), writer in found.items():
            for path in catalog.with_inode(device, inode, limit=8):
                if len(self.open) < FILES_MOST:
                    self.open.add(path)
                    if writer.mapped:
                        mapped.add(path)
        for path in mapped | self.mapped:  # what is mapped no more has its last turn from the start
            if path not in self._turns or path not in mapped:
                self._turns[path] = 0
        self.mapped = mapped

    def changed(self, roots: OpenRoots, catalog: Reader, ordinal: int, now: float) -> list[bytes]:
        """Files that have other bytes than in image `ordinal`, though their times are those of their entry;
        as many as can be compared now."""
        if not self._turns or now < self._next_content:
            return []
        self._next_content = now + CONTENT_SECONDS
        left = CONTENT_BYTES
        out: list[bytes] = []
        for path in list(self._turns):
            offset, used, differs = self._compare(roots, catalog, ordinal, path, left)
            left -= used
            if differs:
                out.append(path)
            if offset is None and path not in self.mapped:
                del self._turns[path]
            else:
                self._turns[path] = offset or 0
                self._turns.move_to_end(path)  # the others come before it is its turn again
            if left <= 0:
                break
        return out

    def _compare(
        self, roots: OpenRoots, catalog: Reader, ordinal: int, path: bytes, most: int
    ) -> tuple[int | None, int, bool]:
        """(offset to go on from, None when the file is through; bytes read; whether something differs)"""
        entry = catalog.entry(path, ordinal)
        used = 0
        try:
            fd = open_file(roots, path)
        except (OSError, KeyError):
            return None, 0, False  # its end made an event
        try:
            if entry is None or fingerprint_of(os.fstat(fd)) != catalog.fingerprint(path):
                return None, 0, False  # capture has it already, or sees it by stat
            for one, same in compared(fd, entry, self.load, self._turns[path]):
                used += one.end - one.start
                if not same:
                    return None, used, True
                if used >= most and one.end < entry.size:
                    return one.end, used, False
        except (Missing, Damaged, RemoteProtocolError, OSError):
            return None, used, False
        finally:
            os.close(fd)
        return None, used, False
