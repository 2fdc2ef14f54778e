"""The journal while the clock of the machine is set."""

from __future__ import annotations

from pathlib import Path

from crnode.observe.journal import REPEAT_NS, Journal


def test_a_clock_that_was_set_back_silences_nothing(tmp_path: Path) -> None:
    now = [10**18]
    journal = Journal(tmp_path / "events", "a", lambda: now[0])
    journal.add("held", "It is held.")
    journal.add("held", "It is held.")  # the same moment: said once
    now[0] -= 86_400 * 10**9
    journal.add("held", "It is held.")
    now[0] += REPEAT_NS
    journal.add("held", "It is held.")
    assert [event["text"] for event in journal.latest(10)] == ["It is held."] * 3
