"""Lag and throttle: pure, so every case is a literal."""

from __future__ import annotations

import random

from crnode.replicate.lag import OPEN_MOST, Lag, Throttle


def test_lag_is_the_age_of_the_oldest_point_that_is_not_acknowledged() -> None:
    lag = Lag()
    assert lag.seconds(5.0) == 0.0
    lag.made(1, 10.0)
    lag.made(2, 11.0)
    assert lag.seconds(12.5) == 2.5
    assert lag.behind() == 2
    lag.acked(1, 13.0)
    assert lag.seconds(13.0) == 2.0
    lag.acked(2, 13.5)
    assert (lag.seconds(99.0), lag.behind(), lag.last_seconds) == (0.0, 0, 2.5)


def test_an_image_that_skips_others_acknowledges_them() -> None:
    lag = Lag()
    for number in range(1, 6):
        lag.made(number, float(number))
    lag.acked(4, 7.0)
    assert lag.behind() == 1
    assert lag.acknowledged == 4


def test_points_made_again_after_a_restart_do_not_count_twice() -> None:
    lag = Lag()
    lag.acked(7, 1.0)
    lag.made(7, 2.0)
    assert lag.behind() == 0


def test_throttle_keeps_the_rate_over_time() -> None:
    throttle = Throttle(1000)
    now = waited = 0.0
    for _ in range(50):
        delay = throttle.delay(500, now)
        waited += delay
        now += delay
    assert 23.0 <= waited <= 25.0  # 25,000 bytes at 1,000 a second, less the burst


def test_no_limit_never_waits() -> None:
    assert Throttle(None).delay(1 << 40, 0.0) == 0.0


def test_the_last_day_is_measured_by_time() -> None:
    lag = Lag()
    lag.made(1, 0.0)
    lag.acked(1, 10.0)  # 10 s of ages 0 to 10
    found = lag.rpo(100.0)  # 90 s of nothing
    assert (found.p50, found.max, found.over) == (0.0, 10.0, 100.0)
    assert 5.0 <= found.p95 <= 5.0 * 9 / 8  # for 5 of 100 s it was more
    for _ in range(3):  # asking changes nothing
        assert lag.rpo(100.0) == found


def test_ages_over_a_seeded_history_are_those_of_a_sampled_one() -> None:
    source = random.Random(3)
    lag, now, sequence, done, made = Lag(), 0.0, 0, 0, {}
    samples: list[float] = []

    def wait(seconds: float) -> None:
        nonlocal now
        steps = int(seconds * 20)
        for step in range(steps):
            oldest = min((made[n] for n in range(done + 1, sequence + 1)), default=None)
            samples.append(now + (step + 0.5) / 20 - oldest if oldest is not None else 0.0)
        now += steps / 20

    lag.rpo(0.0)
    for _ in range(600):
        if source.random() < 0.6:
            sequence += 1
            made[sequence] = now
            lag.made(sequence, now)
        elif done < sequence:
            done = source.randint(done + 1, sequence)
            lag.acked(done, now)
        wait(source.choice((0.05, 0.5, 2.0, 5.0)))
    found = lag.rpo(now)
    samples.sort()
    assert abs(found.over - now) < 1e-6
    assert abs(found.max - samples[-1]) < 0.1
    for share, value in ((0.5, found.p50), (0.95, found.p95)):
        sampled = samples[int(share * len(samples))]
        assert sampled * 0.98 - 0.05 <= value <= sampled * 9 / 8 + 0.05, (share, sampled, value)


def test_only_the_last_day_counts() -> None:
    lag = Lag()
    lag.made(1, 0.0)
    lag.acked(1, 3000.0)
    assert lag.rpo(3000.0).max == 3000.0
    for hour in range(1, 25):
        lag.made(1 + hour, hour * 3600.0)
        lag.acked(1 + hour, hour * 3600.0 + 1)
    found = lag.rpo(25 * 3600.0)
    assert found.max == 1.0
    assert abs(found.over - 24 * 3600) < 1e-6
    assert found.p95 == 0.0


def test_a_target_that_is_away_ages() -> None:
    lag = Lag()
    lag.made(1, 0.0)
    found = lag.rpo(40 * 3600.0)  # longer than is kept
    assert found.max == 40 * 3600.0
    assert abs(found.over - 24 * 3600) < 1e-6
    assert found.p50 >= 28 * 3600.0 * 8 / 9


def test_a_target_that_is_away_for_long_takes_no_more_memory() -> None:
    """A busy set makes dozens of points a second: each was remembered for as long as a target was away."""
    lag = Lag()
    for sequence in range(1, 50_001):
        lag.made(sequence, float(sequence))
    assert len(lag._open) <= OPEN_MOST
    assert lag.seconds(60_000.0) == 59_999.0 and lag.behind() == 50_000
    for acked in (1, 777, 30_000, 49_999):
        lag.acked(acked, 60_000.0)
        oldest = 60_000.0 - lag.seconds(60_000.0)
        assert acked - 32 <= oldest <= acked + 1  # never younger than it is
        assert 50_000 - acked <= lag.behind() <= 50_000 - acked + 32
    lag.acked(50_000, 60_000.0)
    assert lag.seconds(60_000.0) == 0.0 and lag.behind() == 0
