"""Standing between capture and a rotting disk: what differs under an unchanged fingerprint is looked into
before it becomes an image (rule 58). The decision is rot.py's; here are its facts."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from blake3 import blake3

from crnode.capture.openers import has_writer
from crnode.capture.read import fingerprint_of
from crnode.capture.roots import OpenRoots
from crnode.capture.rot import Look, Stretch, Suspicions, Verdict, ranges
from crnode.capture.verify import differing, open_file, read_all
from crnode.store.reader import Fingerprint, Reader
from crnode.store.store import Damaged, Missing
from crproto.entries import FILE, Entry
from crproto.errors import RemoteProtocolError

WAIT_SECONDS = 60.0  # between the two looks that make damage certain


class RotGuard:
    """Looks into the files of one set.

    Args:
        load: reads a recipe of the source's own store.
        now_ns: wall clock.
        wait: seconds between the two looks.
    """

    def __init__(
        self,
        load: Callable[[bytes], bytes],
        now_ns: Callable[[], int],
        wait: float = WAIT_SECONDS,
    ) -> None:
        self.load = load
        self.now_ns = now_ns
        self.suspicions = Suspicions(int(wait * 1e9))
        self._lock = threading.Lock()
        self._written: set[bytes] = set()
        self._told: list[str] = []

    # -- from the event loop

    def written(self, path: bytes) -> None:
        """The kernel reported a write to `path`: the next difference there is a change, whatever its times
        say (two writes within one tick of the kernel's clock have the same)."""
        with self._lock:
            self._written.add(path)

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
        with self._lock:
            known = path in self._written
            self._written.discard(path)
        return known

    def keeps(
        self, roots: OpenRoots, path: bytes, old: Entry, print_: Fingerprint, event: bool
    ) -> str | None:
        """Whether the old entry has to stay, although `path` was read with other content under the same
        fingerprint: None when it is captured as it is, else '' for now or the reason for good."""
        stretches = self.look(roots, path, old, print_, event)
        if stretches is None:
            return None
        if self.suspicions.verdict(path) is not Verdict.DAMAGE:
            return ""
        return f"{ranges(stretches)} were damaged on this disk; copies keep the good bytes"

    def look(
        self,
        roots: OpenRoots,
        path: bytes,
        old: Entry,
        print_: Fingerprint,
        event: bool,
        *,
        passing: bool = False,
    ) -> tuple[Stretch, ...] | None:
        """Compare the file with its entry and judge: the damaged or suspected stretches, None when it has the
        entry's bytes, is written, or cannot be compared. `passing`: a suspicion may begin here, but the
        second look is capture's, which notes the damage in the catalog."""
        try:
            fd = open_file(roots, path)
        except (OSError, KeyError):
            return None
        try:
            if fingerprint_of(os.fstat(fd)) != print_:
                return None
            stretches = differing(fd, old, self.load)
            found = blake3()
            for one in stretches[:10_000]:
                found.update(read_all(fd, one.end - one.start, one.start))
            if fingerprint_of(os.fstat(fd)) != print_:
                return None
        except (Missing, Damaged, RemoteProtocolError, OSError):
            return None
        finally:
            os.close(fd)
        if not stretches:  # the same bytes, cut otherwise
            self.suspicions.clear(path)
            return None
        writer = has_writer((print_.dev, print_.ino))
        before = self.suspicions.verdict(path)
        if passing and before is not None and not (writer or event):
            return stretches
        look = Look(print_, found.digest(), stretches, writer, event, self.now_ns())
        verdict = self.suspicions.meet(path, look)
        if verdict is Verdict.DAMAGE and before is not Verdict.DAMAGE:
            unsure = "" if writer is False else ", as far as may be looked at"
            self._say(
                f"{os.fsdecode(path)!r}: {ranges(stretches)} changed on the disk while nobody wrote to the"
                f" file{unsure}: damage. New images keep the bytes from before; restore the file from a"
                " version, or write it anew if it is right as it is."
            )
        return None if verdict is Verdict.CHANGE else stretches

    def _say(self, text: str) -> None:
        with self._lock:
            self._told.append(text)

    def examine(
        self, roots: OpenRoots, catalog: Reader, ordinal: int, path: bytes
    ) -> tuple[Stretch, ...] | None:
        """:meth:`look` at a path as image `ordinal` has it; None too when its fingerprint is another one."""
        old, print_ = catalog.entry(path, ordinal), catalog.fingerprint(path)
        if old is None or old.kind != FILE or print_ is None:
            return None
        with self._lock:
            event = path in self._written
        return self.look(roots, path, old, print_, event, passing=True)
