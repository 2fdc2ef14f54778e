"""The two clocks of this machine that a lease is counted by (rule 3)."""

from __future__ import annotations

import time

from crnode.failover.terms import Moment


def moment() -> Moment:
    """What they say now (clock_gettime(2))."""
    return Moment(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW))


__all__ = ["moment"]
