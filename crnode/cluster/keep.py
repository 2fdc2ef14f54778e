"""What an owner says about the versions that are kept: rungs of a ladder, as text and as values. Pure.

A rung is written PERIOD:COUNT or PERIOD:COUNT:AGE: 'hourly:24', '15m:40', 'daily:14:30d', 'newest:16'.
"""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST = 64
"""Versions of a set that rungs may keep together; named ones come on top."""
MAX_RUNGS = 8
SHORTEST_S, LONGEST_S = 60, 10 * 366 * 86_400
"""Seconds of a rung's period and age."""

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_WORDS = {"newest": 0, "hourly": 3600, "daily": 86_400, "weekly": 7 * 86_400}
_FORM = "Write it as PERIOD:COUNT or PERIOD:COUNT:AGE, like newest:16, hourly:24, 15m:40 or daily:14:30d."


class Rung(BaseModel):
    """At most `count` versions, the last one of each period of `period_s` seconds, cut at fixed borders of
    UTC (0: the newest points, whatever their distance); none older than `age_s` before the newest (0: any).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    period_s: Annotated[int, Field(ge=0, le=LONGEST_S)]
    count: Annotated[int, Field(ge=1, le=MOST)]
    age_s: Annotated[int, Field(ge=0, le=LONGEST_S)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if 0 < self.period_s < SHORTEST_S:
            raise ValueError(
                f"A version each {self.period_s} s is too many to keep; the shortest period is 1m."
            )
        if self.age_s and self.age_s < self.period_s:
            raise ValueError(
                f"The rung '{self.text}' has an age that is shorter than its period; make the age longer."
            )
        return self

    @property
    def text(self) -> str:
        """As it is written."""
        return ":".join([self.word, str(self.count), *([_spoken(self.age_s)] if self.age_s else [])])

    @property
    def word(self) -> str:
        """Its period alone: 'newest', 'hourly', '15m'."""
        return next((w for w, s in _WORDS.items() if s == self.period_s), _spoken(self.period_s))


DEFAULT = tuple(
    Rung(period_s=_WORDS[word], count=count)
    for word, count in (("newest", 16), ("hourly", 24), ("daily", 14), ("weekly", 10))
)
"""The ladder of a set whose owner said nothing: together 64."""


def parse_rung(text: str) -> Rung:
    """Read :attr:`Rung.text`. ValueError with a sentence."""
    period, _, rest = text.strip().lower().partition(":")
    count, colon, age = rest.partition(":")
    if not re.fullmatch(r"[0-9]{1,9}", count) or (colon and not age):
        raise ValueError(f"The rung '{text}' names no number of versions. {_FORM}")
    if not 1 <= int(count) <= MOST:
        raise ValueError(f"The rung '{text}' keeps {count} versions; 1 to {MOST} are possible.")
    return Rung(
        period_s=_WORDS[period] if period in _WORDS else _seconds(period, text),
        count=int(count),
        age_s=_seconds(age, text) if age else 0,
    )


def check_rungs(rungs: tuple[Rung, ...]) -> tuple[Rung, ...]:
    """`rungs` themselves if they make a ladder; else ValueError with a sentence."""
    for number, rung in enumerate(rungs):
        if any(rung.period_s == other.period_s for other in rungs[:number]):
            raise ValueError(f"Two rungs have the period '{rung.word}'; say once how many of it are kept.")
    if (count := sum(rung.count for rung in rungs)) > MOST:
        raise ValueError(
            f"The rungs keep {count} versions together, and a set has at most {MOST}; keep fewer of some."
        )
    return rungs


def _seconds(text: str, rung: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if found is None or not int(found[1]):
        raise ValueError(
            f"'{text}' in the rung '{rung}' is no length of time; write 15m, 6h, 30d or 12w. {_FORM}"
        )
    return int(found[1]) * _UNITS[found[2]]


def _spoken(seconds: int) -> str:
    unit = next((u for u in ("w", "d", "h", "m") if seconds % _UNITS[u] == 0), "m")
    return f"{seconds // _UNITS[unit]}{unit}"
