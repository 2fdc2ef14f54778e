"""Which images of a set stay versions. Pure: images in, the kept ones with the reason of each out.

The default ladder keeps at most 64 besides pins: the 16 newest points that were followed by quiet or are the
last of their minute, then one an hour for 24 hours, one a day for 14 days, one a week for 10 weeks. Places
that these leave empty (a young set has no weeks yet) go to the last point of each minute, the latest first: a
log that is appended each second fills the 16 newest within as many seconds.

Minutes, hours, days and weeks are cut at fixed borders (of UTC): were they counted back from the newest
image, they would slide with it, and what was thinned a minute ago would never grow old enough for the next
rung. Only periods that hold an image count, the latest first. Times are those of the images, never of a
clock, so that a clock that jumps prunes nothing (rule 84).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crnode.store.reader import BAD, FUZZY, GOOD, ROLLING, UNTESTED, Image

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
    verdict: int = UNTESTED


def candidates(images: Iterable[Image]) -> list[Candidate]:
    """Images of a catalog as retention sees them."""
    return [
        Candidate(i.ordinal, i.at_ns, bool(i.pinned), not i.flags & (ROLLING | FUZZY), i.verdict)
        for i in images
    ]


@dataclass(frozen=True)
class Ladder:
    """How many versions of each rung; the defaults add up to 64."""

    newest: int = 16
    hourly: int = 24
    daily: int = 14
    weekly: int = 10
    most: int = MOST  # what the rungs leave of it is filled with one a minute
    apart_ns: int = MINUTE
    quiet_ns: int = SECOND


def retain(images: Sequence[Candidate], ladder: Ladder = Ladder()) -> dict[int, str]:
    """ordinal -> why it is kept, for `images` in ascending order of their line.

    The newest image, pinned ones, the newest that was proved good and the first bad one after it are always
    in it; without them there are at most 64. What it keeps, it
    keeps again as long as nothing new comes: quiet is judged between neighbours, so it thins until nothing
    goes.
    """
    left = list(images)
    while True:
        kept = _once(left, ladder)
        if len(kept) == len(left):
            return kept
        left = [image for image in left if image.ordinal in kept]


def _once(images: Sequence[Candidate], ladder: Ladder) -> dict[int, str]:
    if not images:
        return {}
    kept: dict[int, str] = {images[-1].ordinal: "newest"}
    _newest_points(images, ladder, kept)
    for size, count, word in (
        (HOUR, ladder.hourly, "hourly"),
        (DAY, ladder.daily, "daily"),
        (WEEK, ladder.weekly, "weekly"),
    ):
        for image in _one_each(images, size, count):
            kept.setdefault(image.ordinal, word)
    for image in _one_each(images, MINUTE, ladder.most):
        if len(kept) >= ladder.most:
            break
        kept.setdefault(image.ordinal, "minutely")
    chosen = [i.ordinal for i in reversed(images) if i.ordinal in kept]
    kept = {ordinal: kept[ordinal] for ordinal in chosen[:MOST]}
    kept |= {image.ordinal: why for image, why in _proven(images) if image.ordinal not in kept}
    kept |= {image.ordinal: "pinned" for image in images if image.pinned}
    return kept


def _proven(images: Sequence[Candidate]) -> Iterable[tuple[Candidate, str]]:
    """The newest version that was proved good, and the first one after it that was found bad: what to go back
    to, and where it began (rule 81)."""
    good = next((at for at in range(len(images) - 1, -1, -1) if images[at].verdict == GOOD), None)
    if good is not None:
        yield images[good], "newest good"
        bad = next((image for image in images[good + 1 :] if image.verdict == BAD), None)
        if bad is not None:
            yield bad, "first bad"


def _newest_points(images: Sequence[Candidate], ladder: Ladder, kept: dict[int, str]) -> None:
    """Walk back from the newest: a point counts when quiet followed it, or when it is the last of its
    minute."""
    count = len(kept)
    for image, following in zip(images[-2::-1], images[:0:-1], strict=True):
        if count >= ladder.newest:
            return
        quiet = following.at_ns - image.at_ns >= ladder.quiet_ns
        if quiet or image.at_ns // ladder.apart_ns != following.at_ns // ladder.apart_ns:
            kept.setdefault(image.ordinal, "recent")
            count += 1


def _one_each(images: Sequence[Candidate], size: int, count: int) -> Iterable[Candidate]:
    """The newest whole image (else the newest) of each of the `count` latest periods of `size` ns that hold
    one."""
    best: dict[int, Candidate] = {}
    for image in reversed(images):
        period = image.at_ns // size
        held = best.get(period)
        if held is None:
            if len(best) < count:
                best[period] = image
        elif image.whole and not held.whole:
            best[period] = image
    return best.values()
