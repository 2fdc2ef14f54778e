"""Whole clusters in virtual time: nothing breaks, what is broken on purpose is found, and a seed is a
world."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from crnode.cli.app import app, main
from crnode.errors import ExitCode
from crnode.sim.broken import RULES
from crnode.sim.run import live, live_all, story

SEEDS = {
    "no-promise": 200,
    "validity-from-receipt": 8000,
    "no-restart-wait": 2000,
    "no-margin": 4000,
    "no-mark": 2000,
    "two-voters-at-once": 2000,
    "amnesia": 200,
    "release-before-stop": 200,
    "alone-after-a-start": 8000,
}
"""In so many worlds each rule is missed at least once."""


def test_in_no_world_a_promise_is_broken() -> None:
    found = live(range(1, 1001))
    assert found.broken == [] and found.worlds == 1000
    # They are no idle worlds: in many of them the lease went from one node to another.
    assert found.opened > 1500 and found.events > 200_000


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_is_taken_away_is_missed(rule: str) -> None:
    found = live_all(1, SEEDS[rule], rule)
    assert found.broken, f"{found.worlds} worlds without the rule, and nothing broke"
    told = story(found.broken[0].seed, rule)
    assert told[-1].endswith(f"BROKEN: {found.broken[0].what}")


def test_a_seed_is_a_world() -> None:
    assert story(5) == story(5) != story(6)


def test_processes_share_the_worlds() -> None:
    assert live_all(1, 500, jobs=2) == live_all(1, 500)


def test_the_command_tells_what_it_found() -> None:
    done = CliRunner().invoke(app, ["selftest", "--count", "50", "--json"])
    assert json.loads(done.stdout)["worlds"] == 50 and json.loads(done.stdout)["broken"] == []
    done = CliRunner().invoke(app, ["selftest", "--seed", "5", "--story"])
    assert done.exit_code == 0 and "serves epoch" in done.stdout


def test_the_command_fails_with_the_story_when_something_broke(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--count", "200", "--break", "no-promise"]) == ExitCode.FAILED
    out = capsys.readouterr().out
    assert "BROKEN" in out and "--story --break no-promise" in out
    assert main(["selftest", "--break", "nothing"]) == ExitCode.USAGE
    assert "no-promise" in capsys.readouterr().err
