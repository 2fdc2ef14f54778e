"""What a service's probe says of it, from its answers alone. Pure.

One failure is none: a service is down when its probe failed `fall` times in a row, and up again when it
succeeded `rise` times. One that does neither for long, failing now and then, is unsure: that is told, and
nothing is moved for it, because what fails here now and then most likely does so there, too.
"""

from __future__ import annotations

from enum import Enum


class Health(Enum):
    """See the module's text."""

    STARTING = "starting"
    UP = "up"
    DOWN = "down"
    UNSURE = "unsure"


UNSETTLED = 8  # answers that neither settle anything, times (rise + fall), from which on it is unsure


class Judge:
    """Counts the answers of one probe.

    Args:
        rise: successes in a row after which the service is up.
        fall: failures in a row after which it is down.
        grace: failures that do not count after a start, until the first success.
    """

    def __init__(self, rise: int, fall: int, grace: int = 0) -> None:
        self.health = Health.STARTING
        self._rise, self._fall, self._grace = rise, fall, grace
        self.restart()

    def restart(self) -> None:
        """The service was started anew."""
        self.health = Health.STARTING
        self._good = self._bad = self._unsettled = 0
        self._left = self._grace

    def note(self, ok: bool) -> Health:
        """Take one answer; returns what the service is now."""
        if self.health is Health.STARTING and not ok and self._left > 0:
            self._left -= 1
            return self.health
        changed = bool(self._bad) if ok else bool(self._good)
        self._good, self._bad = (self._good + 1, 0) if ok else (0, self._bad + 1)
        if self._good >= self._rise:
            self.health, settled = Health.UP, self._good >= self._rise + self._fall
        elif self._bad >= self._fall:
            self.health, settled = Health.DOWN, True
        else:
            settled = False
        self._unsettled = 0 if settled else self._unsettled + changed
        if self._unsettled >= UNSETTLED and self.health is not Health.DOWN:
            self.health = Health.UNSURE
        return self.health


__all__ = ["Health", "Judge"]
