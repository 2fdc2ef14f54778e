"""How much a node may write: the floor of free space, its own quota, and the reserve for a full disk.

The floor protects whoever else uses the file system (rules 34 and 40); the quota bounds what crnode itself
takes. Both are checked before each write, so what they cost is at most one statvfs(2): bytes of packs are a
running total, and the few catalogs are looked at every other second."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import free_bytes

FLOOR_BYTES = 2 << 30
FLOOR_SHARE = 0.05  # of the file system, whichever is more: below it no new images are taken (rule 34) ...
FLOOR_CAP_SHARE = 0.10  # ... but never more than this share, or a small disk could not be used at all
BALLAST_BYTES = 256 << 20
BALLAST_SHARE = 0.01  # of the file system, whichever is smaller
CATALOGS_SECONDS = 2.0
SPACE_SECONDS = 0.1  # so long is known what was free, as long as there is much more than the floor:
SPACE_MARGIN = 1 << 30  # ... what others write in that time


def floor_of(total: int) -> int:
    """Free bytes below which no new image is taken, on a file system of `total` bytes."""
    return min(max(FLOOR_BYTES, int(total * FLOOR_SHARE)), int(total * FLOOR_CAP_SHARE))


class Room:
    """Watches over the room of one store.

    Args:
        directory: the store's.
        packs: bytes of all packs now.
        quota: bytes that packs and catalogs may take together, 0 for no bound.
        catalogs: the directory of the node's catalogs, if any.
    """

    def __init__(
        self,
        directory: Path,
        packs: Callable[[], int],
        clock: Callable[[], float],
        *,
        quota: int = 0,
        catalogs: Path | None = None,
        ballast: int = BALLAST_BYTES,
    ) -> None:
        self.directory = directory
        self.quota = quota
        self._packs = packs
        self._clock = clock
        self._catalogs = catalogs
        self._ballast_bytes = ballast
        self._catalog_bytes = 0
        self._looked: float | None = None
        self._space: tuple[float, int, int, int] | None = None  # when, bytes free, of all, and of packs then
        self._refused = 0  # bytes that there was no room for when they were asked for last

    def floor(self) -> int:
        """Free bytes below which no new image is taken."""
        return floor_of(free_bytes(self.directory)[1])

    def free(self) -> int:
        """Bytes that may be written before the floor is reached, or the quota."""
        free, total = self._look(0)
        free -= floor_of(total)
        return max(min(free, self.quota - self.used()) if self.quota else free, 0)

    def used(self) -> int:
        """Bytes of packs and catalogs; what a source spools is in the packs."""
        if self._catalogs is not None and (
            self._looked is None or self._clock() - self._looked >= CATALOGS_SECONDS
        ):
            self._looked = self._clock()
            size = 0
            with contextlib.suppress(FileNotFoundError), os.scandir(self._catalogs) as listing:
                for item in listing:
                    with contextlib.suppress(FileNotFoundError):
                        size += item.stat(follow_symlinks=False).st_size
            self._catalog_bytes = size
        return self._packs() + self._catalog_bytes

    def over_quota(self) -> bool:
        """Whether the node's own quota stands against what was refused last."""
        return self._exceeds(self._refused)

    def _exceeds(self, coming: int) -> bool:
        return bool(self.quota) and self.used() + coming > self.quota

    def check(self, coming: int = 0) -> None:
        """Raises CrnodeError (FULL) when `coming` more bytes would leave less than the floor, or exceed the
        quota."""
        refused, self._refused = self._refused, max(coming, self._refused)
        self._check(coming)
        self._refused = 0 if coming >= refused else refused

    def check_last(self) -> None:
        """Raises as :meth:`check` would for what was refused last: a store that has room for nothing more
        than nothing is full."""
        self._check(self._refused)

    def forget_refused(self) -> None:
        """Room was made, as much as there is: what was refused is not known to be wanted any more."""
        self._refused = 0

    def _look(self, coming: int) -> tuple[int, int]:
        """Bytes (free, of all) of the file system. statvfs(2) may count for 0.1 ms where much is being
        written."""
        now, packs = self._clock(), self._packs()
        if self._space is not None:
            at, free, total, before = self._space
            free -= max(packs - before, 0)
            if 0 <= now - at < SPACE_SECONDS and free - coming >= floor_of(total) + SPACE_MARGIN:
                return free, total
        free, total = free_bytes(self.directory)
        self._space = now, free, total, packs
        return free, total

    def _check(self, coming: int) -> None:
        free, total = self._look(coming)
        floor = floor_of(total)
        if free - coming < floor:
            raise CrnodeError(
                f"The file system of {self.directory} is nearly full.",
                f"{free >> 20} MiB are free and {floor >> 20} MiB must stay free.",
                "Free some space or remove a set; what was acknowledged is safe and work goes on by itself.",
                ExitCode.FULL,
            )
        if self._exceeds(coming):
            raise CrnodeError(
                "The quota of this node is used up: it is full.",
                f"Its packs and catalogs have {self.used() >> 20} MiB of the {self.quota >> 20} MiB that"
                " 'quota' in node.json allows.",
                "Raise it there and restart the agent, or remove a set; what was acknowledged is safe.",
                ExitCode.FULL,
            )

    # -- the reserve

    def _ballast_size(self) -> int:
        return min(self._ballast_bytes, int(free_bytes(self.directory)[1] * BALLAST_SHARE))

    def hold_ballast(self) -> None:
        """Reserve a file that can be given up so that pruning has room on a full disk."""
        place = self.directory / "ballast"
        size = self._ballast_size()
        if place.exists() or size == 0 or free_bytes(self.directory)[0] < self.floor() + 2 * size:
            return
        with contextlib.suppress(OSError):
            fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError:
                place.unlink(missing_ok=True)
            finally:
                os.close(fd)

    def drop_ballast(self) -> bool:
        """Give the reserve up for a collection on a full disk; True when there was one."""
        try:
            (self.directory / "ballast").unlink()
        except FileNotFoundError:
            return False
        return True
