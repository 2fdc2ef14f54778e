"""When a changed path is ready to be captured. Pure: time comes in as an argument, in ns.

A path is ready when it was closed after writing, or quiet for a while (20 ms); a path that is written without
pause is taken at least once in a longer while (1 s). Deletions, renames and changed attributes are ready at
once.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import IntEnum


class Change(IntEnum):
    """What the watcher saw, in rising order of how much of the path has to be looked at."""

    WRITTEN = 1  # bytes changed, or a file appeared; more may follow
    DONE = 2  # closed after writing, deleted, renamed, attributes changed
    TREE = 3  # a directory appeared or cannot be trusted: it is scanned with everything below


class Settle:
    """Collects changes and says which paths are ready.

    Args:
        quiet_ns: a written path is ready after this long without another write.
        longest_ns: a path written without pause is ready this long after its first write.
    """

    def __init__(self, quiet_ns: int, longest_ns: int) -> None:
        self.quiet_ns = quiet_ns
        self.longest_ns = longest_ns
        self._waiting: OrderedDict[bytes, tuple[int, int]] = (
            OrderedDict()
        )  # path -> (first, last), oldest last first
        self._first: OrderedDict[bytes, int] = OrderedDict()  # path -> first, oldest first
        self._ready: dict[bytes, bool] = {}  # path -> whether it is a tree

    def note(self, path: bytes, change: Change, now: int) -> None:
        """A change of `path` was seen at `now`."""
        if change is Change.WRITTEN:
            first = self._first.setdefault(path, now)
            self._waiting[path] = (first, now)
            self._waiting.move_to_end(path)
            return
        self._drop(path)
        self._ready[path] = self._ready.get(path, False) or change is Change.TREE

    def _drop(self, path: bytes) -> None:
        if self._waiting.pop(path, None) is not None:
            del self._first[path]

    def take(self, now: int) -> dict[bytes, bool]:
        """The paths that are ready at `now`, each with whether it is a whole tree; they are forgotten
        here."""
        while self._waiting:
            path, (_, last) = next(iter(self._waiting.items()))
            if last + self.quiet_ns > now:
                break
            self._drop(path)
            self._ready.setdefault(path, False)
        while self._first:
            path, first = next(iter(self._first.items()))
            if first + self.longest_ns > now:
                break
            self._drop(path)
            self._ready.setdefault(path, False)
        ready, self._ready = self._ready, {}
        return ready

    def due(self) -> int | None:
        """The time at which something will be ready (0: now), or None when nothing waits."""
        if self._ready:
            return 0
        times = []
        if self._waiting:
            times.append(next(iter(self._waiting.values()))[1] + self.quiet_ns)
        if self._first:
            times.append(next(iter(self._first.values())) + self.longest_ns)
        return min(times) if times else None

    def noted(self) -> list[bytes]:
        """Every path that changed and was not taken yet, ready or not."""
        return [*self._ready, *self._waiting]

    def waiting(self) -> int:
        """Paths that changed and are not ready yet."""
        return len(self._waiting)
