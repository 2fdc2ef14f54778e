"""Times as people say them: read as they were meant, or refused."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crnode.cli.times import parse_time
from crnode.errors import CrnodeError, ExitCode

MONDAY = datetime.datetime(2026, 11, 30, 8, 45, 10)


@contextmanager
def clocks_of(zone: str) -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = zone
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


@pytest.fixture
def berlin() -> Iterator[None]:
    with clocks_of("Europe/Berlin"):
        yield


def read(text: str, now: datetime.datetime = MONDAY) -> str:
    """What is understood, as the clocks here show it."""
    found = parse_time(text, now.timestamp())
    assert found % 1_000_000_000 == 999_999_999  # the whole second
    return str(datetime.datetime.fromtimestamp(found // 1_000_000_000))


def refusal(text: str, now: datetime.datetime = MONDAY) -> CrnodeError:
    with pytest.raises(CrnodeError) as caught:
        parse_time(text, now.timestamp())
    assert caught.value.exit_code == ExitCode.USAGE and caught.value.hint
    assert caught.value.what.startswith(f"'{text}' ")
    return caught.value


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("now", "2026-11-30 08:45:10"),
        # ISO 8601
        ("2026-11-22", "2026-11-22 23:59:59"),
        ("2026-11-30", "2026-11-30 08:45:10"),
        ("2026-10-25", "2026-10-25 23:59:59"),  # of 25 hours
        (" 2026-11-22  10:30 ", "2026-11-22 10:30:00"),
        ("2026-11-22 9:30", "2026-11-22 09:30:00"),
        ("2026-11-22 at 9:30 pm", "2026-11-22 21:30:00"),
        ("2026-11-22T10", "2026-11-22 10:00:00"),
        ("2026-11-22T10:30:05.123456", "2026-11-22 10:30:05"),
        ("2026-11-22T10:30:05Z", "2026-11-22 11:30:05"),
        ("2026-11-22 10:30-05:30", "2026-11-22 17:00:00"),
        ("2026-11-22 10:30:00 +0200", "2026-11-22 09:30:00"),
        ("20261122", "2026-11-22 23:59:59"),
        ("20261122T103005+01", "2026-11-22 10:30:05"),
        ("2026-W48-1", "2026-11-23 23:59:59"),
        # dates with dots, the day first
        ("05.11.2026", "2026-11-05 23:59:59"),
        ("5.11.2026 7:05", "2026-11-05 07:05:00"),
        ("11.5.2026", "2026-05-11 23:59:59"),
        ("5.11.26", "2026-11-05 23:59:59"),
        ("5. 11. 2026 10:30:15", "2026-11-05 10:30:15"),
        ("5.11.", "2026-11-05 23:59:59"),
        ("05.11. 10:30", "2026-11-05 10:30:00"),
        ("30.11.", "2026-11-30 08:45:10"),
        ("1.12.", "2025-12-01 23:59:59"),
        ("29.2.", "2024-02-29 23:59:59"),
        ("2026.11.05", "2026-11-05 23:59:59"),
        # dates with slashes
        ("22/11/2026", "2026-11-22 23:59:59"),
        ("11/22/2026 10:30", "2026-11-22 10:30:00"),
        ("22-11-2026", "2026-11-22 23:59:59"),
        ("5/5/2026", "2026-05-05 23:59:59"),
        ("22/11", "2026-11-22 23:59:59"),
        ("2026/11/05 10:30", "2026-11-05 10:30:00"),
        # with names of months
        ("5 November 2026", "2026-11-05 23:59:59"),
        ("Nov 5, 2026 at 10:30", "2026-11-05 10:30:00"),
        ("5. nov. 2026", "2026-11-05 23:59:59"),
        ("may 3rd", "2026-05-03 23:59:59"),
        ("24 dec 18:00", "2025-12-24 18:00:00"),
        # days and clock times
        ("10:30", "2026-11-29 10:30:00"),
        ("8:45", "2026-11-30 08:45:00"),
        ("at 8:45:11", "2026-11-29 08:45:11"),
        ("12 am", "2026-11-30 00:00:00"),
        ("12:30pm", "2026-11-29 12:30:00"),
        ("today", "2026-11-30 08:45:10"),
        ("today 7:00", "2026-11-30 07:00:00"),
        ("yesterday", "2026-11-29 23:59:59"),
        ("Yesterday 14:05", "2026-11-29 14:05:00"),
        ("yesterday at 2pm", "2026-11-29 14:00:00"),
        ("14:05 yesterday", "2026-11-29 14:05:00"),
        ("monday", "2026-11-23 23:59:59"),
        ("monday 9:00", "2026-11-23 09:00:00"),
        ("monday 8:30", "2026-11-30 08:30:00"),
        ("9:00 on Sunday", "2026-11-29 09:00:00"),
        ("Tue 23:59", "2026-11-24 23:59:00"),
        ("thursday", "2026-11-26 23:59:59"),
        # spans
        ("2 hours ago", "2026-11-30 06:45:10"),
        ("10 min ago", "2026-11-30 08:35:10"),
        ("90s ago", "2026-11-30 08:43:40"),
        ("an hour ago", "2026-11-30 07:45:10"),
        ("1h30m ago", "2026-11-30 07:15:10"),
        ("1 hour, 30 minutes ago", "2026-11-30 07:15:10"),
        ("1 day and 2 hours ago", "2026-11-29 06:45:10"),
        ("1.5 hours ago", "2026-11-30 07:15:10"),
        ("a week ago", "2026-11-23 08:45:10"),
        ("3 months ago", "2026-08-30 08:45:10"),  # the clocks were changed since
        ("1 year ago", "2025-11-30 08:45:10"),
    ],
)
def test_times_are_read_as_they_are_meant(text: str, wanted: str) -> None:
    assert read(text) == wanted


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-13-01", "There is no date 2026-13-01."),
        ("2026-02-29 10:00", "There is no date 2026-02-29."),
        ("2026-11-5", "There is no date 2026-11-5."),
        ("2026-11", "There is no date"),
        ("2026-11-22-10", "There is no date"),
        ("20261322", "There is no date"),
        ("2026-11-22 25:00", "There is no hour 25."),
        ("2026-11-22 10:60", "There is no minute 60."),
        ("2026-11-22T10:30:61Z", "There is no second 61."),
        ("2026-11-22 10:30+25:00", "There is no zone +25:00."),
        ("2026-11-22T", ""),
        ("2026-11-22 2026", ""),
        ("2026-11-22 10:30 sharp", ""),
        ("2026-11-22 yesterday 10:30", ""),
        ("31.11.2026", "There is no day 31 in that month."),
        ("31.11.", "There is no day 31 in that month."),
        ("11.22.2026", "There is no month 22."),
        ("0.1.2026", "There is no day 0 in that month."),
        ("29.2.2026", "There is no day 29 in that month."),
        ("5.11. 10", ""),
        ("5.11", ""),
        ("25/13/2026", "There is no month 13."),
        ("0/5/2026", "There is no day 0"),
        ("22/11/26", ""),
        ("2026/13/01", "There is no month 13."),
        ("31 february", "There is no day 31 in that month."),
        ("yesterday 25:00", "There is no hour 25."),
        ("yesterday 24:00", "There is no hour 24."),
        ("9:75", "There is no minute 75."),
        ("13 pm", "There is no hour 13 pm."),
        ("0am", "There is no hour 0 am."),
        ("hier 10h", ""),
        ("gestern 14:05", ""),
        ("12 15", ""),
        ("this morning", ""),
        ("last monday", ""),
        ("monday tuesday 9:00", ""),
        ("yesterday 9", ""),
        ("yesterday 14:05 or so", ""),
        ("10:30 11:30", ""),
        ("ma 9:00", ""),
        ("2 hours", ""),
        ("in 2 hours", ""),
        ("ago", ""),
        ("2 ago", ""),
        ("2 hours and ago", ""),
        ("2 hours 3 hours ago", ""),
        ("1 hour yesterday ago", ""),
        ("3 moons ago", ""),
        ("1.5 months ago", ""),
        ("99999999999999999999 years ago", ""),
        ("999999999 weeks ago", ""),
        ("3000 years ago", ""),
        ("٣.١١.2026", ""),
        ("9999-12-31", ""),
        ("0000-01-01", "There is no date"),
        ("00010101", ""),
        *((odd, "") for odd in ("", "12", "-64", "x", "3.5", "13-1", ":", ".")),
        *((odd, "") for odd in ("version 12", "never", "some day")),
    ],
)
def test_what_is_no_time_or_not_understood_is_refused(text: str, why: str) -> None:
    error = refusal(text)
    assert "is not a time" in error.what and error.why.startswith(why) and bool(error.why) == bool(why)
    assert "'22.11.2026 10:30'" in error.hint


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize("text", ["11/05/2026", "11/05", "5/11/2026 10:30", "05-11-2026"])
def test_a_date_that_may_be_two_is_refused(text: str) -> None:
    error = refusal(text)
    assert "5 November" in error.what and "11 May" in error.what and "'22.11.2026'" in error.hint


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    "text", ["2026-12-01", "2026-11-30 10:30", "30.11. 23:00", "1.12.2026", "today 14:00", "tomorrow 9:00"]
)
def test_a_time_of_the_future_is_refused(text: str) -> None:
    assert "is in the future, at 2026-1" in refusal(text).what
    assert read("2026-11-30 09:30") == "2026-11-30 09:30:00"  # as far as clocks of nodes may differ


@pytest.mark.usefixtures("berlin")
def test_hours_in_which_the_clocks_are_changed() -> None:
    error = refusal("2026-10-25 02:30")
    assert "was twice" in error.what
    for text, offset in (("2026-10-25 02:30:00+02:00", 2), ("2026-10-25 02:30:00+01:00", 1)):
        assert f"'{text}'" in error.hint
        wanted = datetime.datetime(2026, 10, 25, 2, 30, tzinfo=datetime.timezone(timedelta(hours=offset)))
        assert parse_time(text) // 1_000_000_000 == wanted.timestamp()
    refusal("25.10.2026 2:30")
    assert refusal("2026-03-29 02:30").why == "The clocks were set forward, past it."
    assert read("2:30", datetime.datetime(2026, 3, 29, 8)) == "2026-03-28 02:30:00"
    three = datetime.datetime(2026, 10, 25, 3, 10)
    for text, back in (("2 hours ago", 7200), ("30 min ago", 1800), ("2:30", 2400)):  # what has passed counts
        assert parse_time(text, three.timestamp()) // 1_000_000_000 == three.timestamp() - back
    first = datetime.datetime(2026, 10, 25, 2, 40)  # the second 2:30 is yet to come
    wanted = datetime.datetime(2026, 10, 25, 2, 30).timestamp()
    for text in ("2:30", "today 2:30", "25.10.2026 02:30"):
        assert parse_time(text, first.timestamp()) // 1_000_000_000 == wanted


ZONES = ["UTC", "Europe/Berlin", "America/Havana", "Asia/Kathmandu", "Australia/Lord_Howe"]


@settings(max_examples=300, deadline=None)
@given(
    st.datetimes(datetime.datetime(1971, 1, 1), datetime.datetime(2026, 11, 29)),
    st.sampled_from(ZONES),
    st.booleans(),
)
def test_dates_are_read_back_to_the_same_instant(local: datetime.datetime, zone: str, far: bool) -> None:
    local = local.replace(microsecond=0)
    with clocks_of(zone):
        now = (datetime.datetime(2026, 11, 30, 8, 45) if far else local + timedelta(hours=30)).timestamp()
        at = local.timestamp()
        assume(local.replace(fold=1).timestamp() == at)  # neither skipped nor twice
        clock = f"{local:%H:%M:%S}"
        for text in (
            f"{local.isoformat()}",
            local.isoformat(" "),
            local.astimezone().isoformat(),
            datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(),
            f"{local:%Y%m%dT%H%M%S}",
            f"{local:%d.%m.%Y} {clock}",
            f"{local.day}.{local.month}.{local.year} {local.hour}:{clock[3:]}",
            f"{local:%Y/%m/%d} {clock}",
            f"{local.day} {local:%B %Y} {clock}",
            f"{clock} {local:%b} {local.day}, {local.year}",
        ):
            assert parse_time(text, now) == int(at) * 1_000_000_000 + 999_999_999, text
        for text in (local.date().isoformat(), f"{local:%d.%m.%Y}"):
            whole = datetime.datetime.fromtimestamp(parse_time(text, now) // 1_000_000_000)
            assert whole.date() == local.date()
            assert (whole + timedelta(seconds=1)).date() == local.date() + timedelta(days=1)
        if not far:
            assert parse_time(f"{local:%d.%m.} {clock}", now) // 1_000_000_000 == at


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789.:/- aghopmtsz", max_size=24))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    try:
        found = parse_time(text)
    except CrnodeError:
        refusal(text, datetime.datetime.now())
    else:
        assert found <= time.time_ns() + 3_602_000_000_000
