"""Lag and throttle: pure, so every case is a literal."""

from __future__ import annotations

from crnode.replicate.lag import Lag, Throttle


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
