"""Which images of a set stay versions. Pure: images in, the kept ones with the reason of each out.

The default ladder keeps at most 64 besides pins: the 16 newest points that were followed by quiet or are a
minute
apart, then one an hour for 24 hours, one a day for 14 days, one a week for 10 weeks. Ages count from the
newest image,
never from a clock, so that a clock that jumps prunes nothing (rule 84).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

SECOND = 10**9
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY
MOST = 64


class Candidate(NamedTuple):
    """An image as retention sees it; time in ns; `whole` is False for a rolling or fuzzy one."""

    ordinal: int
    at_ns: int
    pinned: bool
    whole: bool


@dataclass(frozen=True)
class Ladder:
    """How many versions of each rung; the defaults add up to 64."""

    newest: int = 16
    hourly: int = 24
    daily: int = 14
    weekly: int = 10
    apart_ns: int = MINUTE
    quiet_ns: int = SECOND


def retain(images: Sequence[Candidate], ladder: Ladder = Ladder()) -> dict[int, str]:
    """ordinal -> why it is kept, for `images` in ascending order of their line.

    The newest image and pinned ones are always in it; without them there are at most 64.
    """
    if not images:
        return {}
    kept: dict[int, str] = {images[-1].ordinal: "newest"}
    _newest_points(images, ladder, kept)
    newest_at = images[-1].at_ns
    for size, count, word in (
        (HOUR, ladder.hourly, "hourly"),
        (DAY, ladder.daily, "daily"),
        (WEEK, ladder.weekly, "weekly"),
    ):
        _one_each(images, newest_at, size, count, word, kept)
    chosen = [i.ordinal for i in reversed(images) if i.ordinal in kept]
    kept = {ordinal: kept[ordinal] for ordinal in chosen[:MOST]}
    for image in images:
        if image.pinned:
            kept[image.ordinal] = "pinned"
    return kept


def _newest_points(images: Sequence[Candidate], ladder: Ladder, kept: dict[int, str]) -> None:
    """Walk back from the newest: a point counts when quiet followed it, or a minute lies before the next
    kept one."""
    count = len(kept)
    last_kept = images[-1].at_ns
    for image, following in zip(images[-2::-1], images[:0:-1], strict=True):
        if count >= ladder.newest:
            return
        quiet = following.at_ns - image.at_ns >= ladder.quiet_ns
        if quiet or last_kept - image.at_ns >= ladder.apart_ns:
            kept.setdefault(image.ordinal, "recent")
            last_kept = image.at_ns
            count += 1


def _one_each(
    images: Sequence[Candidate], newest_at: int, size: int, count: int, word: str, kept: dict[int, str]
) -> None:
    """The newest whole image (else the newest) of each of `count` periods of `size` ns back from the newest
    one."""
    best: dict[int, Candidate] = {}
    for image in images:
        period = (newest_at - image.at_ns) // size
        if 0 <= period < count:
            held = best.get(period)
            if held is None or image.whole or not held.whole:
                best[period] = image
    for image in best.values():
        kept.setdefault(image.ordinal, word)
