"""Temporaries made ahead: while the live thread gives one new file after the other its name, a second thread
writes the next ones. Creating and filling a file is most of what it costs, and is done in the kernel, without
Python's lock.

Nothing of it is seen before it is named, and naming stays with the live thread, path by path and in order,
with every look that goes before it. What cannot be made ahead is simply not there: the live thread then makes
it, and meets the reason itself."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from crnode.replicate.write import Finished, TreeWriter
from crproto.entries import Entry

FEW = 32  # files for which no thread is started
PORTION = 16  # files handed over at a time: a hop costs as much as half a file
LARGEST = 64 << 10  # bytes of a file that is made ahead: a page of a thousand holds 64 MB of the disk at most


@dataclass
class _Portion:
    """Files that are made together; `made` has those of them that could be, by path."""

    entries: Sequence[Entry]
    made: Future[dict[bytes, Finished]] = field(default_factory=Future)


class Ahead:
    """See the module's text. Used by one thread.

    Args:
        writer: makes the temporaries.
    """

    def __init__(self, writer: TreeWriter) -> None:
        self._writer = writer
        self._thread: ThreadPoolExecutor | None = None
        self._planned: list[_Portion] = []
        self._of: dict[bytes, _Portion] = {}
        self._last = 0  # as many of the planned portions are the other thread's to make
        self._given_up = False

    def plan(self, entries: Sequence[Entry]) -> None:
        """These files are written next, whole and each under one name. What was planned before is dropped."""
        self._drop()
        if len(entries) < FEW or self._given_up:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "ahead")
        for at in range(0, len(entries), PORTION):
            portion = _Portion(entries[at : at + PORTION])
            try:
                portion.made = self._thread.submit(self._make, portion.entries)
            except RuntimeError:  # no thread can be started: the live thread makes all of it
                self._given_up = True
                break
            self._planned.append(portion)
            self._of.update((entry.path, portion) for entry in portion.entries)
        self._last = len(self._planned)

    def take(self, path: bytes) -> Finished | None:
        """The finished temporary of `path`, whose owner the caller is now; None where there is none."""
        portion = self._of.pop(path, None)
        if portion is None:
            return None
        while not portion.made.done() and self._help():
            continue
        return portion.made.result().pop(path, None)

    def _help(self) -> bool:
        """Rather than wait for the other thread make what it would come to last; False when it has begun with
        all there is."""
        if not self._last:
            return False
        portion = self._planned[self._last - 1]
        if not portion.made.cancel():
            return False
        self._last -= 1
        made: Future[dict[bytes, Finished]] = Future()
        made.set_result(self._make(portion.entries))
        portion.made = made
        return True

    def give_up(self) -> bool:
        """The disk is full: drop what was made ahead, and make no more; whether anything was dropped."""
        self._given_up = True
        return self._drop()

    def close(self) -> None:
        """Drop what nobody took."""
        try:
            self._drop()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None

    def _drop(self) -> bool:
        dropped = False
        planned, self._planned, self._last = self._planned, [], 0
        self._of.clear()
        for portion in planned:
            portion.made.cancel()
        for portion in planned:
            if portion.made.cancelled():
                continue
            for finished in portion.made.result().values():
                self._writer.discard(finished.temporary)
                dropped = True
        return dropped

    def _make(self, entries: Sequence[Entry]) -> dict[bytes, Finished]:
        made: dict[bytes, Finished] = {}
        for entry in entries:
            try:
                made[entry.path] = self._writer.make(entry)
            except Exception:  # noqa: BLE001 - whatever it is, the live thread meets it itself
                break  # the live thread meets it itself; what follows would meet it too, most likely
        return made
