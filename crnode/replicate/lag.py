"""How far a target is behind, from facts alone. Pure: times in seconds come in as arguments."""

from __future__ import annotations

from collections import deque


class Lag:
    """Follows points made and acknowledged by one target; sequences rise."""

    def __init__(self) -> None:
        self._open: deque[tuple[int, float]] = deque()  # (sequence, when it was made), oldest first
        self.acknowledged = 0
        self.last_seconds = 0.0  # from point to acknowledgement, of the last one that was waited for

    def made(self, sequence: int, now: float) -> None:
        """A point was made."""
        if sequence > self.acknowledged and (not self._open or sequence > self._open[-1][0]):
            self._open.append((sequence, now))

    def acked(self, sequence: int, now: float) -> None:
        """The target has this point and all before it."""
        self.acknowledged = max(self.acknowledged, sequence)
        while self._open and self._open[0][0] <= sequence:
            _, when = self._open.popleft()
            self.last_seconds = now - when

    def start_over(self, newest: int, now: float) -> None:
        """Nothing is known of the target any more: the newest point is open again."""
        self.acknowledged = 0
        if not self._open and newest:
            self._open.append((newest, now))

    def seconds(self, now: float) -> float:
        """Age of the oldest point that the target has not acknowledged; 0 when there is none."""
        return now - self._open[0][1] if self._open else 0.0

    def behind(self) -> int:
        """Points not acknowledged."""
        return len(self._open)


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
