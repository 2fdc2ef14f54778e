"""Standing between capture and a rotting disk: what differs under an unchanged fingerprint is looked into
before it becomes an image (rule 58). The decision is rot.py's; here are its facts."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from io import FileIO
from itertools import takewhile
from typing import Any, NamedTuple

from blake3 import blake3

from crnode.capture.openers import has_writer
from crnode.capture.read import Taken, fingerprint_of
from crnode.capture.roots import OpenRoots
from crnode.capture.rot import Look, Stretch, Suspicions, Verdict, Verified, may_be_damage, ranges
from crnode.capture.verify import checked, gone, open_file, read_all, spans
from crnode.store.reader import Fingerprint, Reader
from crnode.store.store import Damaged, Missing
from crproto.entries import FILE, Entry
from crproto.errors import RemoteProtocolError

WAIT_SECONDS = 60.0  # between the two looks that make damage certain
VERIFIED = "verified"  # the catalog's key of the Verified
STRETCHES_MOST = 100  # that a look finds: more of the same are found when these are mended
LOOK_BYTES = 256 << 20  # read by a look in capture's thread: a difference not met by then is a change
EVENTS_MOST = 100_000


class Examination(NamedTuple):
    """A file that is open to be compared with the entry `old`; `look` has all but its bytes."""

    file: FileIO
    old: Entry
    look: Look


class RotGuard:
    """Looks into the files of one set.

    Args:
        load: reads a recipe of the source's own store.
        now_ns: wall clock.
        wait: seconds between the two looks.
        writers: whether any other process may write the open file; None when that cannot be known.
    """

    def __init__(
        self,
        load: Callable[[bytes], bytes],
        now_ns: Callable[[], int],
        wait: float = WAIT_SECONDS,
        writers: Callable[[int], bool | None] = has_writer,
    ) -> None:
        self.load = load
        self.now_ns = now_ns
        self.writers = writers
        self.suspicions = Suspicions(int(wait * 1e9))
        self._lock = threading.Lock()
        self._written: dict[bytes, None] = {}  # the oldest first
        self._told: list[str] = []

    # -- from the event loop

    def written(self, path: bytes) -> None:
        """The kernel reported a write to `path`: the next difference there is a change, whatever its times
        say (two writes within one tick of the kernel's clock have the same)."""
        with self._lock:
            self._written.pop(path, None)
            self._written[path] = None
            # Where nothing is captured for long, the oldest go. They are the least needed: what was read
            # again later than a minute after the write is known by its times.
            while len(self._written) > EVENTS_MOST:
                del self._written[next(iter(self._written))]

    def due(self) -> list[bytes]:
        """Paths whose second look is due."""
        return self.suspicions.due(self.now_ns())

    def tell(self) -> list[str]:
        """What was found since the last call, for the journal."""
        with self._lock:
            told, self._told = self._told, []
        return told

    # -- in the capture thread

    def take_event(self, path: bytes) -> bool:
        """Whether a write to `path` was reported since the last call: it is about to be read."""
        if not self._written:  # as in a first copy
            return False
        with self._lock:
            known = path in self._written
            self._written.pop(path, None)
        return known

    def keeps(
        self,
        roots: OpenRoots,
        catalog: Reader,
        ordinal: int,
        old: Entry,
        taken: Taken,
        load: Callable[[bytes], bytes],
        event: bool,
    ) -> str | None:
        """Whether the entry `old` of image `ordinal` has to stay, although its path was read with other
        content under the same fingerprint: None when it is captured as it is, else '' for now or the reason
        for good. `load` knows the recipes of `taken`, too."""
        path = old.path
        try:
            fd = open_file(roots, path)
        except (OSError, KeyError):
            return None
        try:
            look = self._facts(fd, catalog, ordinal, path, taken.fingerprint, event)
            if may_be_damage(look):
                seen = self._read(fd, gone(old, taken.entry, load), look, LOOK_BYTES)
            else:
                seen = look
        except OSError:
            return None
        finally:
            os.close(fd)
        stretches = self._judge(path, seen, passing=False)
        if stretches is None:
            return None
        if self.suspicions.verdict(path) is not Verdict.DAMAGE:
            return ""
        return f"{ranges(stretches)} were damaged on this disk; copies keep the good bytes"

    def _begin(self, roots: OpenRoots, catalog: Reader, ordinal: int, path: bytes) -> Examination | None:
        """Open a path to examine it; None when its fingerprint is another one than image `ordinal` has, or
        what is there cannot be damage."""
        old, print_ = catalog.entry(path, ordinal), catalog.fingerprint(path)
        if old is None or old.kind != FILE or print_ is None:
            return None
        with self._lock:
            event = path in self._written
        try:
            file = FileIO(open_file(roots, path))
            look = self._facts(file.fileno(), catalog, ordinal, path, print_, event)
            if may_be_damage(look) and fingerprint_of(os.fstat(file.fileno())) == print_:
                return Examination(file, old, look)
            file.close()
        except (OSError, KeyError):
            return None
        self.suspicions.clear(path)
        return None

    # -- a file that somebody else came upon

    async def examine(
        self,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
        roots: OpenRoots,
        catalog: Reader,
        ordinal: int,
        path: bytes,
        places: Sequence[int],
    ) -> tuple[Stretch, ...] | None:
        """The stretches of a path of image `ordinal` that are damaged or suspected to be, of those at offsets
        `places` if any are given. None when it has the entry's bytes, or cannot be damage. A suspicion may
        begin here, but the second look is capture's, which notes the damage in the catalog.

        `in_thread` lets capture's thread do something; the reading, which may be long, is another one's."""
        begun: Examination | None = await in_thread(lambda: self._begin(roots, catalog, ordinal, path))
        if begun is None:
            return None
        stop = threading.Event()
        try:
            look = await asyncio.to_thread(self._compare, begun, places, stop)
        finally:
            stop.set()
        judged: tuple[Stretch, ...] | None = await in_thread(lambda: self._judge(path, look, passing=True))
        return judged

    def _compare(self, begun: Examination, places: Sequence[int], stop: threading.Event) -> Look | None:
        """The look with its bytes; None when the file was changed meanwhile or cannot be read."""
        with begun.file:
            wanted = self._at(begun.old, places) if places else spans(begun.old, self.load)
            those = takewhile(lambda _: not stop.is_set(), wanted)
            return self._read(begun.file.fileno(), those, begun.look)

    def _at(self, old: Entry, places: Sequence[int]) -> Iterator[Stretch]:
        for place in places:
            yield from spans(old, self.load, place, place + 1)

    # -- the facts

    def _facts(
        self, fd: int, catalog: Reader, ordinal: int, path: bytes, print_: Fingerprint, event: bool
    ) -> Look:
        """All but the bytes."""
        key = catalog.key_of(path, ordinal)
        verified = Verified.decode(catalog.meta(VERIFIED))
        good = verified.since(path, key[0]) if key is not None else 0
        look = Look(print_, b"", (), False, event, self.now_ns(), good)
        # All of /proc is looked through only where the rest speaks for damage.
        return look._replace(written=self.writers(fd) if may_be_damage(look) else None)

    def _read(self, fd: int, those: Iterable[Stretch], look: Look, most: int = 0) -> Look | None:
        """`look` with the first of `those` chunks that the file has not, found among `most` bytes (0: no
        bound); None when it cannot be read, or was changed meanwhile."""
        stretches: list[Stretch] = []
        found = blake3()
        read = 0
        try:
            for one, same in checked(fd, those):
                read += one.end - one.start
                if not same:
                    stretches.append(one)
                    found.update(read_all(fd, one.end - one.start, one.start))
                if len(stretches) >= STRETCHES_MOST or (most and read >= most):
                    break
            if fingerprint_of(os.fstat(fd)) != look.print:
                return None
        except (Missing, Damaged, RemoteProtocolError, OSError):
            return None
        return look._replace(found=found.digest(), stretches=tuple(stretches))

    def _judge(self, path: bytes, look: Look | None, *, passing: bool) -> tuple[Stretch, ...] | None:
        if look is None:
            return None
        if may_be_damage(look) and not look.stretches:  # the same bytes, cut otherwise
            self.suspicions.clear(path)
            return None
        before = self.suspicions.verdict(path)
        if passing and before is not None:
            return look.stretches
        verdict = self.suspicions.meet(path, look)
        if verdict is Verdict.DAMAGE and before is not Verdict.DAMAGE:
            self._say(
                f"{os.fsdecode(path)!r}: {ranges(look.stretches)} changed on the disk while nobody wrote to"
                " the file: damage. New images keep the bytes from before; restore the file from a version,"
                " or write it anew if it is right as it is."
            )
        return None if verdict is Verdict.CHANGE else look.stretches

    def _say(self, text: str) -> None:
        with self._lock:
            self._told.append(text)
