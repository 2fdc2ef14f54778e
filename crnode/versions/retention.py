"""Which images of a set stay versions. Pure: images in, what stays and what goes, each with its reason, out.

The default ladder keeps at most 64 besides pins: the 16 newest points that were followed by quiet or are the
last of their minute, then one an hour for 24 hours, one a day for 14 days, one a week for 10 weeks. Places
that these leave empty (a young set has no weeks yet) go to the last point of each minute, the latest first: a
log that is appended each second fills the 16 newest within as many seconds. A ladder that an owner wrote is
taken as it is written, and fills nothing.

Minutes, hours, days and weeks are cut at fixed borders (of UTC): were they counted back from the newest
image, they would slide with it, and what was thinned a minute ago would never grow old enough for the next
rung. Only periods that hold an image count, the latest first. Ages are counted from the newest image, never
from a clock, and an image's time counts as far as it is within five minutes of when it was received: neither
a clock that jumps nor a source that dates its images weeks apart pushes good versions out (rule 84).
"""

from __future__ import annotations

import bisect
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crnode.cluster.keep import DEFAULT, MOST, Rung
from crnode.store.reader import BAD, FUZZY, GOOD, ROLLING, UNTESTED, Image

SECOND = 10**9
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY
TRUSTED_NS = 5 * MINUTE  # a source's clock is believed so far from ours
NEAR_NS = HOUR  # a version that stays so near stands for one that goes
LOSSES = 8  # versions an hour that go though nothing near them stays


class Candidate(NamedTuple):
    """An image as retention sees it; time in ns; `whole` is False for a rolling or fuzzy one."""

    ordinal: int
    at_ns: int
    pinned: bool
    whole: bool
    verdict: int = UNTESTED


def candidates(images: Iterable[Image], needed: Container[int] = ()) -> list[Candidate]:
    """Images of a catalog as retention sees them; `needed` are ordinals of those that stay in any case."""
    return [
        Candidate(
            i.ordinal,
            _believed(i),
            bool(i.pinned) or i.ordinal in needed,
            not i.flags & (ROLLING | FUZZY),
            i.verdict,
        )
        for i in images
    ]


def _believed(image: Image) -> int:
    """The time that retention goes by; people see the one that the source said."""
    return min(max(image.at_ns, image.received_ns - TRUSTED_NS), image.received_ns + TRUSTED_NS)


class Budget(NamedTuple):
    """How many losses retention may cause yet, refilled with LOSSES an hour up to as many. A clock that jumps
    refills it once."""

    left: float = LOSSES
    at_ns: int = 0

    def now(self, now_ns: int) -> Budget:
        """The budget at the time `now_ns`."""
        more = max(0, now_ns - self.at_ns) / HOUR * LOSSES
        return Budget(min(float(LOSSES), self.left + more), now_ns)

    def less(self, losses: int) -> Budget:
        """What is left after so many losses."""
        return self._replace(left=self.left - losses)


def at_once(images: Sequence[Candidate], kept: Iterable[int], most: int = LOSSES) -> tuple[set[int], int]:
    """(ordinals of those of `images` that may go now, as `kept` stays; how many of them are losses): of
    versions within an hour of which nothing stays the oldest `most`, so that neither a rule that was written
    wrongly nor a clock that jumped empties a set before anybody can say so (rule 84)."""
    staying = set(kept)
    times = sorted(image.at_ns for image in images if image.ordinal in staying)
    going = [image for image in images if image.ordinal not in staying]
    losses = [image.ordinal for image in going if not _near(times, image.at_ns)]
    spared = losses[max(0, most) :]
    return {image.ordinal for image in going} - set(spared), len(losses) - len(spared)


def _near(times: Sequence[int], at_ns: int) -> bool:
    place = bisect.bisect_left(times, at_ns - NEAR_NS)
    return place < len(times) and times[place] <= at_ns + NEAR_NS


@dataclass(frozen=True)
class Ladder:
    """How many versions of each rung, and how many in all.

    Attributes:
        fill: what the rungs leave of `most` goes to the last point of each minute.
        apart_ns, quiet_ns: the newest points are so far from each other, or were followed by so much quiet.
    """

    rungs: tuple[Rung, ...] = DEFAULT
    fill: bool = True
    most: int = MOST
    apart_ns: int = MINUTE
    quiet_ns: int = SECOND


USUAL = Ladder()


def ladder_of(rungs: tuple[Rung, ...] | None) -> Ladder:
    """The ladder that an owner wrote, or the usual one."""
    return USUAL if rungs is None else Ladder(rungs, fill=False)


class Decision(NamedTuple):
    """What retention does with one image, and why; `instead` is the ordinal of the image that is kept for
    the same period, 0 if there is none."""

    ordinal: int
    keep: bool
    why: str
    instead: int = 0


def plan(images: Sequence[Candidate], ladder: Ladder = USUAL) -> list[Decision]:
    """What thinning does with `images` now, in their order: see :func:`retain`."""
    kept = retain(images, ladder)
    staying = [image for image in images if image.ordinal in kept]
    rungs = sorted((rung for rung in ladder.rungs if rung.period_s), key=lambda rung: rung.period_s)
    out = []
    for image in images:
        if image.ordinal in kept:
            out.append(Decision(image.ordinal, True, kept[image.ordinal]))
            continue
        why, instead = "older than the rules reach", 0
        for rung in rungs:
            size = rung.period_s * SECOND
            other = [o for o in staying if o.at_ns // size == image.at_ns // size]
            if other:
                why, instead = f"{rung.word}: another one of the same period stays", other[-1].ordinal
                break
        out.append(Decision(image.ordinal, False, why, instead))
    return out


def retain(images: Sequence[Candidate], ladder: Ladder = USUAL) -> dict[int, str]:
    """ordinal -> why it is kept, for `images` in ascending order of their line.

    The newest image, pinned ones, the newest that was proved good and the first bad one after it are always
    in it; without them there are at most 64. What it keeps, it keeps again as long as nothing new
    comes: quiet is judged between neighbours, so it thins until nothing goes.
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
    now_ns = images[-1].at_ns
    for rung in sorted(ladder.rungs, key=lambda rung: rung.period_s):
        within = images
        if rung.age_s:
            within = [image for image in images if now_ns - image.at_ns <= rung.age_s * SECOND]
        if not rung.period_s:
            _newest_points(within, rung.count, ladder, kept)
            continue
        for image in _one_each(within, rung.period_s * SECOND, rung.count):
            kept.setdefault(image.ordinal, rung.word)
    if ladder.fill:
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


def _newest_points(images: Sequence[Candidate], most: int, ladder: Ladder, kept: dict[int, str]) -> None:
    """Walk back from the newest: a point counts when quiet followed it, or when it is the last of its
    minute."""
    count = len(kept)
    for image, following in zip(images[-2::-1], images[:0:-1], strict=True):
        if count >= most:
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
