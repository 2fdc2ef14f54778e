"""How many bytes one session of a peer may stage here before an image of it is committed (rule 86). Pure."""

from __future__ import annotations

SHARE = 4  # of the free space: a quarter
LEFT = 8  # of the free space: the eighth that an image leaves, so that smaller ones have room
SHARE_RECIPES = 64  # of the content: what its recipes take at most
SMALL = 8 << 20  # bytes that are granted in any case: one small image's; the floor of the store bounds it too


SPARED_MOST = 7 * 86400.0  # since the first of it: nobody holds off collections of others' garbage for ever
SPARED_SECONDS = 3600.0  # after the last of it came what is staged is spared, also when the line broke
PER_ENTRY = 1024  # bytes that an entry and its recipes take beside its content, generously


def most_needed(total_bytes: int, entries: int) -> int:
    """Bytes that an image of this size takes when all of it is new."""
    return total_bytes + total_bytes // SHARE_RECIPES + entries * PER_ENTRY


class Staged:
    """Counts what a session has put into the store and not committed.

    The bound is a quarter of what was free when the counting began, or what the image can need at most by its
    own header, whichever is more: else neither a first copy of more than a quarter of a disk could arrive,
    nor a file of that size that is written anew each night. What the header says is checked when the image
    is committed. The floor bounds it as it bounds all: a peer that lies fills no disk. And an eighth of what
    was free is left, so that smaller images that come next have room.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._ahead = 0  # of them, what came ahead of the image
        self._allowed = self._most = 0

    def take(self, coming: int, free: int, needed: int | None) -> str:
        """Count `coming` bytes, with `free` bytes free now, for an image that needs `needed` at most, or
        (None) ahead of one; '' when they may be taken, else why not, and nothing is counted.

        What came ahead and was written anew meanwhile is no part of the image: each has its own bound."""
        if not self.bytes:
            self._allowed = max(free // SHARE, SMALL)
            self._most = max(free - free // LEFT, SMALL)
        allowed = max(self._allowed, min(needed or 0, self._most))
        taken = self._ahead if needed is None else self.bytes - self._ahead
        if taken + coming > allowed or self.bytes + coming > self._most:
            return (
                f"This session has staged {self.bytes >> 20} MiB of an image that is not complete, and at"
                f" most {allowed >> 20} MiB are granted to it: a quarter of the free space, or what"
                " the image says to have as long as an eighth is left. Make room at the target."
            )
        self.bytes += coming
        if needed is None:
            self._ahead += coming
        return ""

    def over(self) -> None:
        """The image was committed, or refused: what is left of it is garbage that the next collection takes,
        because nothing that collection looks at names it."""
        self.bytes = self._ahead = 0


class InFlight:
    """When a set's source began to stage here what no image names yet. A large file is named by the very last
    message of its image: until then nothing that a collection looks at leads to its content."""

    def __init__(self) -> None:
        self._since: int | None = None
        self._first = self._last = 0.0

    def came(self, collection: int, now: float) -> None:
        """Something was staged, born in the collection with this number, at `now` (monotonic seconds)."""
        if self.born(now) is None:
            self._since, self._first = collection, now
        self._last = now

    def over(self) -> None:
        """The image was committed, or refused."""
        self._since = None

    def born(self, now: float) -> int | None:
        """The collection in which the oldest of it was born; None when there is nothing to spare."""
        spared = now - self._last < SPARED_SECONDS and now - self._first < SPARED_MOST
        return self._since if spared else None
