"""Rungs as people write them."""

from __future__ import annotations

import pytest

from crnode.cluster.keep import DEFAULT, MOST, Rung, check_rungs, parse_rung

HOUR, DAY = 3600, 86_400


@pytest.mark.parametrize(
    ("text", "rung", "again"),
    [
        ("newest:16", Rung(period_s=0, count=16), "newest:16"),
        ("hourly:24", Rung(period_s=HOUR, count=24), "hourly:24"),
        ("1h:24", Rung(period_s=HOUR, count=24), "hourly:24"),
        (" Daily:14:30d ", Rung(period_s=DAY, count=14, age_s=30 * DAY), "daily:14:30d"),
        ("15m:40:10h", Rung(period_s=900, count=40, age_s=10 * HOUR), "15m:40:10h"),
        ("90m:1", Rung(period_s=5400, count=1), "90m:1"),
        ("weekly:10:52w", Rung(period_s=7 * DAY, count=10, age_s=364 * DAY), "weekly:10:52w"),
        ("newest:5:2d", Rung(period_s=0, count=5, age_s=2 * DAY), "newest:5:2d"),
    ],
)
def test_a_rung_is_read_and_written_again(text: str, rung: Rung, again: str) -> None:
    assert parse_rung(text) == rung
    assert rung.text == again and parse_rung(again) == rung


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no number"),
        ("hourly", "names no number"),
        ("hourly:", "names no number"),
        ("hourly:x", "names no number"),
        ("hourly:-1", "names no number"),
        ("hourly:3:", "names no number"),
        ("hourly:0", "1 to 64"),
        ("hourly:65", "1 to 64"),
        ("0m:5", "no length of time"),
        ("15:5", "no length of time"),
        ("fortnightly:5", "no length of time"),
        ("15m:5:soon", "no length of time"),
        ("daily:3:6h", "shorter than its period"),
        ("999999w:1", "less than or equal"),
    ],
)
def test_what_is_no_rung_is_refused_with_a_sentence(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_rung(text)


def test_a_ladder_has_each_period_once_and_at_most_64_versions() -> None:
    assert sum(rung.count for rung in check_rungs(DEFAULT)) == MOST
    with pytest.raises(ValueError, match="period 'hourly'"):
        check_rungs((parse_rung("hourly:1"), parse_rung("60m:2")))
    with pytest.raises(ValueError, match="65 versions"):
        check_rungs((parse_rung("hourly:60"), parse_rung("daily:5")))
