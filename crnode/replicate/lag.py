"""How far a target is behind, and was, from facts alone. Pure: times in seconds come in as arguments."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

HOUR = 3600.0
KEPT_HOURS = 24
OPEN_MOST = 4096  # points that are remembered one by one while a target is away
# Upper ends of the classes of ages: 1 ms to two days, each an eighth greater than the one before.
EDGES = tuple(0.001 * 2 ** (n / 6) for n in range(math.ceil(6 * math.log2(2 * 86400 / 0.001)) + 1))


class Rpo(NamedTuple):
    """What a loss of the source would have cost over the last day, in seconds: how old the oldest change was
    that the target had not acknowledged (recovery point objective). Percentiles are over time, not over
    changes: p95 was not exceeded for 95 % of `over`. They are exact to an eighth."""

    p50: float
    p95: float
    max: float
    over: float  # seconds that were measured


@dataclass
class _Hour:
    number: int
    times: list[float] = field(default_factory=lambda: [0.0] * (len(EDGES) + 1))  # seconds spent in a class
    none: float = 0.0  # seconds in which nothing was open
    worst: float = 0.0


class Meter:
    """The ages of the oldest change that was not acknowledged, by the time spent at each: 24 histograms."""

    def __init__(self) -> None:
        self._hours: deque[_Hour] = deque(maxlen=KEPT_HOURS)
        self._until: float | None = None

    def note(self, now: float, oldest: float | None) -> None:
        """From the last call until `now` the oldest open change was the one of `oldest`; None for none."""
        at, self._until = self._until, now
        while at is not None and at < now:
            hour = int(at // HOUR)
            end = min(now, (hour + 1) * HOUR)
            self._add(hour, end - at, end - oldest if oldest is not None else None)
            at = end

    def _add(self, number: int, lasting: float, age: float | None) -> None:
        """`lasting` seconds, at whose end the age was `age`."""
        if not self._hours or self._hours[-1].number != number:
            self._hours.append(_Hour(number))
        hour = self._hours[-1]
        if age is None:
            hour.none += lasting
            return
        hour.worst = max(hour.worst, age)
        low = max(0.0, age - lasting)
        hour.none += lasting - (age - low)  # a change that came after the last call
        for place in range(bisect_right(EDGES, low), len(EDGES) + 1):
            top = EDGES[place] if place < len(EDGES) else math.inf
            hour.times[place] += min(age, top) - low
            if age <= top:
                return
            low = top

    def read(self) -> Rpo:
        """Of the last 24 hours that were measured."""
        sums = list(accumulate(map(sum, zip(*(hour.times for hour in self._hours), strict=True))))
        none = sum(hour.none for hour in self._hours)
        worst = max((hour.worst for hour in self._hours), default=0.0)
        over = none + (sums[-1] if sums else 0.0)

        def percentile(share: float) -> float:
            wanted = share * over - none
            if wanted <= 0:
                return 0.0
            place = next((n for n, total in enumerate(sums) if total >= wanted), len(EDGES))
            return min(worst, EDGES[place] if place < len(EDGES) else math.inf)

        return Rpo(percentile(0.5), percentile(0.95), worst, over)


class _Points(NamedTuple):
    """Points in a row that are remembered as one."""

    sequence: int  # of the last of them
    made: float  # when the first was
    many: int


class Lag:
    """Follows points made and acknowledged by one target; sequences rise."""

    def __init__(self) -> None:
        self._meter = Meter()
        self._open: deque[_Points] = deque()  # oldest first
        self._together = 1  # so many points in a row are remembered as one
        self._behind = 0  # points in all of them
        self.acknowledged = 0
        self.last_seconds = 0.0  # from point to acknowledgement, of the last one that was waited for

    def made(self, sequence: int, now: float) -> None:
        """A point was made."""
        self._note(now)
        if sequence > self.acknowledged and (not self._open or sequence > self._open[-1].sequence):
            self._remember(sequence, now)

    def _remember(self, sequence: int, now: float) -> None:
        """What became one is open as long as any of it: what is told is too old, never too young."""
        self._behind += 1
        if not self._open:
            self._together = 1
        last = self._open[-1] if self._open else None
        if last is not None and last.many < self._together:
            self._open[-1] = _Points(sequence, last.made, last.many + 1)
            return
        self._open.append(_Points(sequence, now, 1))
        if len(self._open) > OPEN_MOST:
            known = list(self._open)
            pairs = zip(known[::2], known[1::2], strict=False)
            self._open = deque(_Points(b.sequence, a.made, a.many + b.many) for a, b in pairs)
            self._open.extend(known[len(known) // 2 * 2 :])
            self._together *= 2

    def acked(self, sequence: int, now: float) -> None:
        """The target has this point and all before it."""
        self._note(now)
        self.acknowledged = max(self.acknowledged, sequence)
        while self._open and self._open[0].sequence <= sequence:
            gone = self._open.popleft()
            self._behind -= gone.many
            self.last_seconds = now - gone.made

    def start_over(self, newest: int, now: float) -> None:
        """Nothing is known of the target any more: the newest point is open again."""
        self._note(now)
        self.acknowledged = 0
        if not self._open and newest:
            self._remember(newest, now)

    def seconds(self, now: float) -> float:
        """Age of the oldest point that the target has not acknowledged; 0 when there is none."""
        return now - self._open[0].made if self._open else 0.0

    def rpo(self, now: float) -> Rpo:
        """How it was over the last day."""
        self._note(now)
        return self._meter.read()

    def _note(self, now: float) -> None:
        self._meter.note(now, self._open[0].made if self._open else None)

    def behind(self) -> int:
        """Points not acknowledged."""
        return self._behind


class Throttle:
    """A token bucket over bytes; `rate` in bytes a second, None for no limit. A second's worth may burst."""

    def __init__(self, rate: int | None) -> None:
        self.rate = rate
        self._level = 0.0
        self._at = 0.0

    def delay(self, count: int, now: float) -> float:
        """Seconds to wait after sending `count` bytes at `now`, to keep the rate."""
        if self.rate is None:
            return 0.0
        self._level = max(0.0, self._level - (now - self._at) * self.rate) + count
        self._at = now
        return max(0.0, (self._level - self.rate) / self.rate)
