"""Times as people say them.

A time that is read wrongly brings the wrong version back, and nobody notices: every word and number of a text
has to be accounted for here, and what two readers would take for two times is refused.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import re
import time
from datetime import date, timedelta
from typing import Any

from crnode.cli.output import moment
from crnode.errors import CrnodeError, ExitCode

CLOCKS = 3600.0  # seconds by which clocks of nodes may differ before a time counts as one of the future
FORMS = (
    "Write it like '2026-11-22 10:30', '22.11.2026 10:30', '10:30', 'yesterday 14:05', 'monday 9:00'"
    " or '2 hours ago'."
)
_DAYS = {"today": 0, "yesterday": 1, "tomorrow": -1}  # days ago
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_LETTERS = 3  # of a month or a weekday that is cut short
_YEARS_BACK = 9  # 29 February may be that long past, around 2100
_CALENDAR_DAY = 86_400
_UNITS: dict[str, tuple[int, int]] = {  # the shortest and the longest that each may be, in seconds
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), (1, 1)),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), (60, 60)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), (3600, 3600)),
    **dict.fromkeys(("d", "day", "days"), (_CALENDAR_DAY, _CALENDAR_DAY)),
    **dict.fromkeys(("w", "week", "weeks"), (7 * _CALENDAR_DAY, 7 * _CALENDAR_DAY)),
    **dict.fromkeys(("month", "months"), (28 * _CALENDAR_DAY, 31 * _CALENDAR_DAY)),
    **dict.fromkeys(("year", "years"), (365 * _CALENDAR_DAY, 366 * _CALENDAR_DAY)),
}
_CLOCK = (
    r"(?=\d+(?::|\s?[ap]m))(?P<hour>\d{1,2})(?::(?P<minute>\d{2})(?::(?P<second>\d{2}))?)?"
    r"(?:\s?(?P<half>[ap]m))?"
)
_DAY_CLOCK = re.compile(rf"(?:at\s|(?P<day>\S.*?)\s(?:at\s)?)?{_CLOCK}", re.ASCII)
_CLOCK_DAY = re.compile(rf"{_CLOCK}\s(?:on\s)?(?P<day>\S.*)", re.ASCII)
_ISO = re.compile(r"(?P<day>\d{4}-[^\st]*|\d{8})(?:[\st]\s?(?P<rest>.*))?", re.ASCII)
_ISO_CLOCK = re.compile(
    r"(?P<time>\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?|\d{2}(?:\d{2}){0,2})"
    r"\s?(?P<zone>z|[+-]\d{2}(?::?\d{2})?)?",
    re.ASCII,
)
_DOTTED = re.compile(r"(\d{1,2})\.\s?(\d{1,2})\.(?:\s?(\d{4})|(\d{2}))?", re.ASCII)
_SLASHED = re.compile(r"(\d{1,2})/(\d{1,2})(?:/(\d{4}))?", re.ASCII)
_DASHED = re.compile(r"(\d{1,2})-(\d{1,2})-(\d{4})", re.ASCII)
_YEAR_FIRST = re.compile(r"(\d{4})([/.])(\d{1,2})\2(\d{1,2})", re.ASCII)
_YEAR = r"(?:,? (?P<year>\d{4}))?"
_DAY_MONTH = re.compile(rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th|\.)? (?P<month>[a-z]+)\.?{_YEAR}", re.ASCII)
_MONTH_DAY = re.compile(rf"(?P<month>[a-z]+)\.? (?P<day>\d{{1,2}})(?:st|nd|rd|th)?{_YEAR}", re.ASCII)
_SPAN = re.compile(r"(?P<count>\d{1,9}(?:\.\d{1,3})?|an?(?=\s)|one(?=\s))\s?(?P<unit>[a-z]+)", re.ASCII)
_BETWEEN = re.compile(r"\s?,?\s?(?:and\s)?")


def parse_time(text: str, now: float | None = None) -> int:
    """A time as people say it -> wall clock nanoseconds, local time where no zone is named.

    ISO 8601; dates with dots ('22.11.2026', '22.11.'), which begin with the day; dates with slashes where
    only one order is possible; 'today', 'yesterday', weekdays and dates with English months, each with or
    without a clock time; a clock time alone; '2 hours ago'. What names no year, or no day, is the latest such
    time that is past; a day alone means all of it. `now`: seconds since 1970, for those.

    CrnodeError(USAGE) for anything else, for what may mean two times, and for what is in the future.
    """
    now = time.time() if now is None else now
    said = " ".join(text.lower().split())
    try:
        seconds = now if said == "now" else _seconds(text, said, now)
    except (ValueError, OverflowError, OSError):  # a year that this system cannot reckon with
        raise _no_time(text) from None
    if seconds > now + CLOCKS:
        raise CrnodeError(
            f"'{text}' is in the future, at {moment(math.floor(seconds) * 1_000_000_000)}.",
            "",
            "Leave it out for the newest version.",
            ExitCode.USAGE,
        )
    return math.floor(seconds) * 1_000_000_000 + 999_999_999  # what was there during that second counts


def _no_time(text: str, why: str = "") -> CrnodeError:
    return CrnodeError(f"'{text}' is not a time.", why, FORMS, ExitCode.USAGE)


def _seconds(text: str, said: str, now: float) -> float:
    if found := _ISO.fullmatch(said):
        return _iso(text, found["day"], found["rest"], now)
    if said.endswith(" ago"):
        return _ago(text, said.removesuffix(" ago"), now)
    found = _DAY_CLOCK.fullmatch(said) or _CLOCK_DAY.fullmatch(said)
    clock = _clock(text, found) if found is not None else None
    return _local(text, _days(text, found["day"] if found is not None else said, now, clock), clock, now)


# -- the clock


def _clock(text: str, found: re.Match[str]) -> datetime.time:
    """The clock time of a match of _CLOCK."""
    hour, minute, second = (int(found[name] or 0) for name in ("hour", "minute", "second"))
    if found["half"]:
        if not 1 <= hour <= 12:
            raise _no_time(text, f"There is no hour {hour} {found['half']}.")
        hour = hour % 12 + (12 if found["half"] == "pm" else 0)
    return _time(text, hour, minute, second)


def _time(text: str, hour: int, minute: int, second: int) -> datetime.time:
    for value, most, name in ((hour, 23, "hour"), (minute, 59, "minute"), (second, 59, "second")):
        if value > most:
            raise _no_time(text, f"There is no {name} {value}.")
    return datetime.time(hour, minute, second)


def _instants(local: datetime.datetime) -> list[float]:
    """When the clocks here show this: once, twice in an hour that they are set back by, or never."""
    first, second = local.timestamp(), local.replace(fold=1).timestamp()
    return [first, second] if first < second else [first] if first == second else []


def _local(text: str, days: list[date], clock: datetime.time | None, now: float) -> float:
    """The latest past one of these days, latest first; of a single one whatever it is."""
    if clock is None:
        return _all_of(days[0], now)
    if len(days) == 1:
        return _one(text, datetime.datetime.combine(days[0], clock), now)
    shown = (at for day in days for at in reversed(_instants(datetime.datetime.combine(day, clock))))
    return next(at for at in shown if at <= now)


def _all_of(day: date, now: float) -> float:
    """The last second of a day, or now while it lasts."""
    begin = datetime.datetime.combine(day, datetime.time()).timestamp()
    end = datetime.datetime.combine(day + timedelta(1), datetime.time()).timestamp() - 1
    return min(end, max(now, begin))


def _one(text: str, local: datetime.datetime, now: float) -> float:
    found = _instants(local)
    if not found:
        raise _no_time(text, "The clocks were set forward, past it.")
    past = [at for at in found if at <= now]
    if len(past) > 1:
        zoned = (datetime.datetime.fromtimestamp(at).astimezone().isoformat(" ") for at in past)
        raise CrnodeError(
            f"'{text}' was twice: the clocks were set back in between.",
            "",
            f"Write '{next(zoned)}' or '{next(zoned)}'.",
            ExitCode.USAGE,
        )
    return past[0] if past else found[0]


# -- dates


def _iso(text: str, day_text: str, rest: str | None, now: float) -> float:
    try:
        day = date.fromisoformat(day_text.upper())
    except ValueError:
        raise _no_time(text, f"There is no date {day_text}.") from None
    if rest is None:
        return _all_of(day, now)
    found = _ISO_CLOCK.fullmatch(rest)
    if found is None:
        found = _DAY_CLOCK.fullmatch(rest)
        if found is None or found["day"] is not None:
            raise _no_time(text)
        return _one(text, datetime.datetime.combine(day, _clock(text, found)), now)
    if "-" in day_text and re.fullmatch(r"\d{4,}", found["time"]):  # it might be a year as well
        raise _no_time(text)
    digits = [int(part) for part in re.findall(r"\d{1,2}", re.split("[.,]", found["time"])[0])]
    local = datetime.datetime.combine(day, _time(text, *[*digits, 0, 0][:3]))
    zone = found["zone"]
    if zone is None:
        return _one(text, local, now)
    hours, minutes = (0, 0) if zone == "z" else (int(zone[1:3]), int(zone[3:].strip(":") or 0))
    if hours > 23 or minutes > 59:
        raise _no_time(text, f"There is no zone {zone}.")
    offset = timedelta(hours=hours, minutes=minutes) * (-1 if zone.startswith("-") else 1)
    return local.replace(tzinfo=datetime.timezone(offset)).timestamp()


def _days(text: str, said: str | None, now: float, clock: datetime.time | None) -> list[date]:
    """The days that are meant, latest first: one, or all of which the latest past one counts."""
    today = datetime.datetime.fromtimestamp(now).date()
    if said is None:
        return [today - timedelta(n) for n in range(3)]  # the clocks may never have shown it on one of them
    if said in _DAYS:
        return [today - timedelta(_DAYS[said])]
    if (weekday := _named(said, _WEEKDAYS)) is not None:
        # A day alone means all of it, and that of today is not past.
        since = (today.weekday() - weekday) % 7 or (7 if clock is None else 0)
        return [today - timedelta(since + 7 * n) for n in range(3)]
    if found := _YEAR_FIRST.fullmatch(said):
        return [_date(text, int(found[1]), int(found[3]), int(found[4]))]
    if found := _DOTTED.fullmatch(said):
        year = int(found[3]) if found[3] else 2000 + int(found[4]) if found[4] else None
        return [_latest(text, year, int(found[2]), int(found[1]), today)]
    if found := _SLASHED.fullmatch(said) or _DASHED.fullmatch(said):
        month, day = _month_and_day(text, int(found[1]), int(found[2]))
        return [_latest(text, int(found[3]) if found[3] else None, month, day, today)]
    if found := _DAY_MONTH.fullmatch(said) or _MONTH_DAY.fullmatch(said):
        index = _named(found["month"], _MONTHS)
        if index is not None:
            year = int(found["year"]) if found["year"] else None
            return [_latest(text, year, index + 1, int(found["day"]), today)]
    raise _no_time(text)


def _named(word: str, names: tuple[str, ...]) -> int | None:
    """Which of the names this is, whole or cut short."""
    if len(word) < _LETTERS:
        return None
    return next((index for index, name in enumerate(names) if name.startswith(word)), None)


def _month_and_day(text: str, one: int, two: int) -> tuple[int, int]:
    if one > 12 or one == two or 0 in (one, two):  # the date says what is wrong with one that is none
        return two, one
    if two > 12:
        return one, two
    raise CrnodeError(
        f"'{text}' may be two days: {one} {_MONTHS[two - 1].title()} or {two} {_MONTHS[one - 1].title()}.",
        "Countries write such a date in different orders.",
        "Write the year first, as in '2026-11-22 10:30', or the day first with dots, as in '22.11.2026'.",
        ExitCode.USAGE,
    )


def _date(text: str, year: int, month: int, day: int) -> date:
    try:
        return date(year, month, day)
    except ValueError:
        wrong = f"day {day} in that month" if 1 <= month <= 12 else f"month {month}"
        raise _no_time(text, f"There is no {wrong}.") from None


def _latest(text: str, year: int | None, month: int, day: int, today: date) -> date:
    """That day of the year; without one the latest that is not after today."""
    if year is not None:
        return _date(text, year, month, day)
    _date(text, 2000, month, day)  # a leap year: what it has not, none has
    for back in range(_YEARS_BACK):
        with contextlib.suppress(ValueError):
            found = date(today.year - back, month, day)
            if found <= today:
                return found
    raise _no_time(text)


# -- spans


def _ago(text: str, said: str, now: float) -> float:
    """The time that is such a span before `now`: '2 hours', '1 day and 30 min', 'a week'."""
    shortest, longest, exact = 0.0, 0.0, True
    at = 0
    while at < len(said):
        if at and (between := _BETWEEN.match(said, at)):
            at = between.end()
        found = _SPAN.match(said, at)
        if found is None or found["unit"] not in _UNITS:
            raise _no_time(text)
        count = float(found["count"]) if found["count"][0].isdigit() else 1.0
        least, most = _UNITS[found["unit"]]
        shortest, longest = shortest + count * least, longest + count * most
        exact = exact and most < _CALENDAR_DAY
        at = found.end()
    import dateparser  # its tables take a second to read, and few times need them

    # Hours have passed whatever the clocks did meanwhile; days and months are those of the calendar here.
    zone = datetime.UTC if exact else None
    base = datetime.datetime.fromtimestamp(now, zone).replace(tzinfo=None)
    settings: Any = {"RELATIVE_BASE": base, "RETURN_AS_TIMEZONE_AWARE": False, "TIMEZONE": "local"}
    try:
        then = dateparser.parse(f"{said} ago", languages=["en"], settings=settings)
    except RecursionError:
        then = None
    # It passes over what it does not understand: that all of it was understood is seen by how far back it is.
    if then is None or not shortest - 1 <= (base - then).total_seconds() <= longest + 1:
        raise _no_time(text)
    return float(then.replace(tzinfo=zone).timestamp())
