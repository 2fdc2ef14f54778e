"""How many bytes one session of a peer may stage here before an image of it is committed (rule 86). Pure."""

from __future__ import annotations

SHARE = 4  # of the free space: a quarter
SMALL = 8 << 20  # bytes that are granted in any case: one small image's; the floor of the store bounds it too


class Staged:
    """Counts what a session has put into the store and not committed.

    The bound is a quarter of what was free when the counting began. An image that says that the set has grown
    may stage as much as it grew by: else no first copy of more than a quarter of a disk could ever arrive.
    What it says is checked when it is committed, and the floor of free space bounds it as it bounds all.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._allowed = 0

    def take(self, coming: int, free: int, grown: int) -> str:
        """Count `coming` bytes, with `free` bytes free now, for an image by which the set grows by `grown`;
        '' when they may be taken, else why not, and nothing is counted."""
        if not self.bytes:
            self._allowed = max(free // SHARE, SMALL)
        allowed = max(self._allowed, grown)
        if self.bytes + coming > allowed:
            return (
                f"This session has staged {self.bytes >> 20} MiB of an image that is not complete, and at"
                f" most {allowed >> 20} MiB are granted to it: a quarter of the free space. Make room at the"
                " target."
            )
        self.bytes += coming
        return ""

    def over(self) -> None:
        """The image was committed, or refused: what is left of it is garbage that the next collection takes,
        because nothing that collection looks at names it."""
        self.bytes = 0
