"""Which images stay versions, and why."""

from __future__ import annotations

import itertools
import random

import pytest

from crnode.cluster.keep import MOST, Rung, parse_rung
from crnode.store.reader import BAD, GOOD, Image
from crnode.versions.retention import (
    DAY,
    HOUR,
    LOSSES,
    MINUTE,
    SECOND,
    WEEK,
    Budget,
    Candidate,
    Ladder,
    at_once,
    candidates,
    ladder_of,
    plan,
    retain,
)

NEWEST = (Rung(period_s=0, count=16),)


def _line(*at: int, pinned: tuple[int, ...] = (), rolling: tuple[int, ...] = ()) -> list[Candidate]:
    return [Candidate(n, t, n in pinned, n not in rolling) for n, t in enumerate(at, 1)]


def _image(ordinal: int, at_ns: int, received_ns: int) -> Image:
    rest = (b"", 0, 0, 1, 1, 0, None, None, 0, None, None)
    return Image(ordinal, b"", b"", b"", 0, ordinal, at_ns, received_ns, *rest)


def test_a_source_that_dates_its_images_weeks_apart_pushes_nothing_out() -> None:
    """Rule 84: an hour of honest history, then a hundred images in ten seconds, dated a week apart each."""
    honest = [_image(n, n * MINUTE, n * MINUTE) for n in range(1, 61)]
    now = 61 * MINUTE
    lies = [_image(60 + n, now + n * WEEK, now + n * SECOND // 10) for n in range(1, 101)]
    kept = retain(candidates([*honest, *lies]))
    assert sum(ordinal <= 60 for ordinal in kept) >= 45
    believed = [image.at_ns for image in candidates(lies)]
    assert max(believed) <= now + 10 * SECOND + 5 * MINUTE
    late = candidates([_image(1, 0, DAY)])  # one whose clock is far behind counts as just before
    assert late[0].at_ns == DAY - 5 * MINUTE
    fine = candidates([_image(1, DAY, DAY + 3 * SECOND)])
    assert fine[0].at_ns == DAY


def test_what_nothing_near_stands_for_goes_a_few_at_a_time() -> None:
    images = _line(*(n * 2 * HOUR for n in range(30)), *(58 * HOUR + n * SECOND for n in range(1, 40)))
    newest = images[-1].ordinal
    going, losses = at_once(images, {newest})
    assert losses == LOSSES
    assert going == set(range(1, LOSSES + 1)) | set(range(30, newest))  # those of this hour are points
    assert at_once(images, {newest}, 0) == (set(range(30, newest)), 0)
    assert at_once(images, {1, newest}, 3)[0] >= {2, 3, 4}
    assert at_once(images, {image.ordinal for image in images}) == (set(), 0)


def test_thinning_as_always_costs_nothing_of_the_budget() -> None:
    """A set that is changed all the time, as a day passes: what goes has a neighbour that stays."""
    held: list[Candidate] = []
    lost = 0
    for minute in range(0, 60 * 50, 5):
        held.append(Candidate(minute + 1, minute * MINUTE, False, True))
        going, losses = at_once(held, retain(held), 1000)
        held = [image for image in held if image.ordinal not in going]
        lost += losses
    assert lost <= 50  # an hour of yesterday, once an hour


def test_the_budget_is_an_hours_and_a_clock_that_jumps_fills_it_once() -> None:
    full = Budget().now(DAY)
    assert full.left == LOSSES
    spent = full.less(LOSSES)
    assert spent.now(DAY + HOUR // 2).left == LOSSES / 2
    assert spent.now(DAY - HOUR).left == 0
    assert spent.now(100 * DAY).left == LOSSES


def test_nothing_keeps_nothing_and_one_is_the_newest() -> None:
    assert retain([]) == {}
    assert retain(_line(5)) == {1: "newest"}


def test_points_in_a_burst_go_and_those_before_quiet_stay() -> None:
    burst = [n * SECOND // 10 for n in range(50)]
    kept = retain(_line(*burst, burst[-1] + 10 * SECOND), Ladder(NEWEST))
    assert kept == {51: "newest", 50: "recent"}


def test_a_file_written_without_pause_still_leaves_a_point_a_minute() -> None:
    images = _line(*(n * SECOND // 2 for n in range(2400)))
    kept = retain(images, Ladder(NEWEST, most=16))
    times = sorted(images[o - 1].at_ns for o in kept)
    assert len(kept) == 16
    assert all(two - one >= MINUTE for one, two in itertools.pairwise(times))


def test_empty_places_hold_a_version_a_minute() -> None:
    """A log that is appended each second: the newest cover seconds, the rest of an hour is not lost."""
    held: list[Candidate] = []
    for n in range(2 * 3600):
        held.append(Candidate(n, n * SECOND, False, True))
        kept = retain(held)
        held = [i for i in held if i.ordinal in kept]
        assert len(held) <= MOST
    assert len(held) == MOST
    now = held[-1].at_ns
    minutes = {i.at_ns // MINUTE for i in held}
    assert minutes >= {now // MINUTE - n for n in range(40)}
    assert list(retain(held).values()).count("minutely") > 40


def test_the_ladder_over_a_year() -> None:
    images = _line(*range(0, 364 * DAY, HOUR // 2))
    kept = retain(images)
    assert len(kept) <= MOST
    assert max(kept) == len(images)
    newest = images[-1].at_ns
    ages = sorted((newest - images[o - 1].at_ns) for o in kept)
    for days in range(1, 14):
        assert any(days * DAY <= age < (days + 1) * DAY for age in ages), days
    for weeks in range(10):
        assert any(weeks * WEEK <= age < (weeks + 1) * WEEK for age in ages), weeks


def test_a_whole_image_is_preferred_and_a_rolling_one_better_than_none() -> None:
    ladder = Ladder((parse_rung("newest:1"), parse_rung("hourly:2")), most=2, quiet_ns=HOUR)
    images = _line(10 * MINUTE, 30 * MINUTE, 50 * MINUTE, 125 * MINUTE, rolling=(3,))
    assert retain(images, ladder) == {4: "newest", 2: "hourly"}
    only = _line(0, 100 * MINUTE, rolling=(1,))
    assert 1 in retain(only, ladder)


def test_pins_stay_and_are_beside_the_64() -> None:
    images = _line(*range(0, 100 * MINUTE * 3, MINUTE), pinned=(1, 2, 3))
    kept = retain(images)
    assert all(kept[n] == "pinned" for n in (1, 2, 3))
    assert sum(why != "pinned" for why in kept.values()) <= MOST


def test_a_clock_that_jumps_prunes_no_more_than_usual() -> None:
    images = _line(*range(0, 20 * HOUR, HOUR))
    late = [*images, Candidate(21, images[-1].at_ns + 400 * DAY, False, True)]
    assert set(retain(late)) >= {21, 20}
    back = [*images, Candidate(21, -400 * DAY, False, True)]
    assert 21 in retain(back)


def test_thinning_again_and_again_is_stable() -> None:
    """What one thinning kept by a rung, the next one does not lose while nothing new came."""
    source = random.Random(4)
    at, images = 0, []
    for n in range(1, 400):
        at += source.choice([SECOND // 10, SECOND, MINUTE, HOUR])
        images.append(Candidate(n, at, False, source.random() < 0.9))
        kept = retain(images)
        images = [i for i in images if i.ordinal in kept]
        assert len(images) <= MOST
        assert images[-1].ordinal == n
    assert set(retain(images)) == {i.ordinal for i in images}


@pytest.mark.parametrize(
    ("every", "lasting", "whole"),
    [(MINUTE, 25 * DAY, 1.0), (30 * SECOND, 4 * DAY, 0.9), (SECOND // 2, HOUR, 1.0)],
    ids=["a minute", "30 s", "without pause"],
)
def test_the_ladder_fills_while_what_was_thinned_is_gone(every: int, lasting: int, whole: float) -> None:
    """As a target lives: each image is thinned with the survivors of the last time, nothing else is left."""
    source = random.Random(7)
    held: list[Candidate] = []
    begun = 1_700_000_000 * SECOND + 17 * MINUTE
    for n in range(lasting // every):
        now = begun + n * every
        held.append(Candidate(n, now, False, source.random() < whole))
        kept = retain(held)
        held = [i for i in held if i.ordinal in kept]
        assert len(held) <= MOST
        if n % 1000 == 0:
            assert retain(held).keys() == kept.keys()  # thinning again takes nothing
            for size, most in ((HOUR, 24), (DAY, 14), (WEEK, 10)):
                periods = {i.at_ns // size for i in held}
                there = range(max(begun // size, now // size - most + 1), now // size + 1)
                assert periods >= set(there), (n, size)
    minutes = {i.at_ns // MINUTE for i in held[-16:]}
    assert len(minutes) == (16 if every != 30 * SECOND else 8)


def test_years_of_hourly_images_fill_every_rung() -> None:
    held: list[Candidate] = []
    for n in range(2 * 364 * 24):
        held.append(Candidate(n, n * HOUR + 5 * MINUTE, False, True))
        kept = retain(held)
        held = [i for i in held if i.ordinal in kept]
    newest = held[-1].at_ns
    for size, most in ((HOUR, 24), (DAY, 14), (WEEK, 10)):
        assert {i.at_ns // size for i in held} >= {newest // size - n for n in range(most)}


def test_a_time_long_ago_or_ahead_costs_no_more_than_its_own_place() -> None:
    """An image dated 2038 takes one place of each rung, and loses it once as many newer ones have come."""
    held = [Candidate(1, 400 * WEEK, False, True)]
    for n in range(2, 2000):
        held.append(Candidate(n, n * 10 * MINUTE, False, True))
        kept = retain(held)
        held = [i for i in held if i.ordinal in kept]
    assert len({i.at_ns // HOUR for i in held if i.ordinal > 1}) >= 24
    assert len({i.at_ns // DAY for i in held if i.ordinal > 1}) >= 13


def test_what_was_proved_good_stays_and_where_it_began_to_be_bad() -> None:
    verdicts = {3: GOOD, 5: GOOD, 7: BAD, 8: BAD}
    images = [Candidate(n, n * SECOND // 10, False, True, verdicts.get(n, 0)) for n in range(500)]
    kept = retain(images)
    assert kept[5] == "newest good" and 7 in kept  # which is followed by quiet, once the others are gone
    assert 3 not in kept and 8 not in kept
    assert retain([i for i in images if i.ordinal in kept]).keys() == kept.keys()
    assert 7 not in retain([i for i in images if i.ordinal not in (3, 5)])


def test_a_good_version_is_the_65th_at_most() -> None:
    held: list[Candidate] = []
    for n in range(3000):
        held.append(Candidate(n, n * MINUTE, False, True, GOOD if n == 1 else BAD if n > 1 else 0))
        kept = retain(held)
        held = [i for i in held if i.ordinal in kept]
        assert len(held) <= MOST + 2
    assert {1, 2} <= {i.ordinal for i in held}


def _owner(*rungs: str) -> Ladder:
    return ladder_of(tuple(parse_rung(text) for text in rungs))


def test_an_owners_rungs_are_taken_as_they_are_written() -> None:
    images = _line(*range(0, 3 * DAY, MINUTE))
    kept = retain(images, _owner("15m:20", "newest:2"))
    assert list(kept.values()).count("15m") == 19  # the newest is in the latest quarter
    assert len(kept) == 21 and "minutely" not in kept.values()
    quarters = sorted({images[o - 1].at_ns // (15 * MINUTE) for o in kept})
    assert quarters == list(range(quarters[-1] - 19, quarters[-1] + 1))
    assert retain(images, _owner("newest:2")).keys() == {len(images), len(images) - 1}


def test_a_rung_with_an_age_keeps_nothing_older_and_asks_no_clock() -> None:
    images = _line(*range(0, 40 * DAY, 6 * HOUR))
    kept = retain(images, _owner("daily:30:10d"))
    newest = images[-1].at_ns
    assert max(newest - images[o - 1].at_ns for o in kept) <= 10 * DAY
    assert len({images[o - 1].at_ns // DAY for o in kept}) >= 10
    assert retain([i for i in images if i.ordinal in kept], _owner("daily:30:10d")).keys() == kept.keys()


def test_rungs_of_an_owner_never_drop_the_newest_pins_or_what_was_proved_good() -> None:
    images = [Candidate(n, n * DAY, n == 2, True, {5: GOOD, 7: BAD}.get(n, 0)) for n in range(1, 100)]
    kept = retain(images, _owner("hourly:1"))
    assert kept == {99: "newest", 2: "pinned", 5: "newest good", 7: "first bad"}


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_is_what_thinning_does_and_says_why_of_each(seed: int) -> None:
    chance = random.Random(seed)
    at, images = 0, []
    for n in range(1, 300):
        at += chance.choice([SECOND // 10, SECOND, MINUTE, HOUR, DAY])
        images.append(Candidate(n, at, chance.random() < 0.02, chance.random() < 0.9))
    owners = [_owner("15m:4", "daily:9"), _owner("weekly:3:60d"), _owner("newest:64")]
    ladder = chance.choice([Ladder(), *owners])
    decisions = plan(images, ladder)
    assert [d.ordinal for d in decisions] == [i.ordinal for i in images]
    kept = retain(images, ladder)
    assert {d.ordinal: d.why for d in decisions if d.keep} == kept
    for decision in decisions:
        assert decision.why
        if decision.instead:
            assert not decision.keep and decision.instead in kept
