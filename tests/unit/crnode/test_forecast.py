"""What people are told of a takeover that has not happened."""

from __future__ import annotations

from typing import Any

import pytest

from crnode.cluster.document import Takeover
from crnode.failover.forecast import forecast


def takeover(*voters: str) -> Takeover:
    return Takeover.model_validate(
        {"voters": voters, "candidates": voters[:2], "founder": voters[0], "founder_incarnation": "00" * 16}
    )


def row(node: str, phase: str = "standby", version: int = 9, **more: Any) -> dict[str, Any]:
    keeper: dict[str, Any] = {"phase": phase, "epoch": "4.1", "voters": ["a", "b", "c"], "why_unable": ""}
    keeper |= {"holder": "", "generation": 0, "config": [4, 1, 2], "hindered": ""}
    keeper |= {key: more.pop(key) for key in list(more) if key in keeper}
    sets = [{"name": "web", "version": version, "time_ns": version * 10**9, "epoch": 1}]
    return {"node": node, "why_not": "", "sets": sets, "keeper": keeper, **more}


def test_all_is_well() -> None:
    out = forecast(takeover("a", "b", "c"), [row("a", "active"), row("b"), row("c")])
    assert out["ok"] and out["active"] == "a"
    text = " ".join(out["says"])
    assert "b could take over with version 9 of web, the newest." in text
    assert "If a fails, b serves after about 4 s." in text
    assert "c could" not in text  # it votes only


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row("a", "active"), row("b", why_not="Set web has no version here yet."), row("c")],
         "b cannot take over: Set web has no version"),
        ([row("a", "active"), row("b", why_unable="its service web fails again and again"), row("c")],
         "b cannot take over: its service web"),
        ([row("a", "active"), row("b"), {"node": "c", "error": "No route."}],
         "Without a 1 of 3 voters are left, and 2 are needed"),
        ([row("a", "active"), {"node": "b", "error": "No route."}, row("c")],
         "b cannot take over: it does not answer."),
    ],
)  # fmt: skip
def test_what_stands_in_the_way(rows: list[dict[str, Any]], said: str) -> None:
    out = forecast(takeover("a", "b", "c"), rows)
    assert not out["ok"] and any(said in text for text in out["says"]), out["says"]


def test_who_has_just_started_and_promised_nothing_yet_is_not_counted_on() -> None:
    """It said that it could, by the epoch before; a moment later that it leaves two minutes to another."""
    rows = [row("a", "active", epoch="12.1"), row("b", epoch="9.2"), row("c", epoch="12.1")]
    out = forecast(takeover("a", "b", "c"), rows)
    assert not out["ok"]
    assert "b cannot take over: Its keeper has not promised epoch 12.1" in " ".join(out["says"])
    rows = [row("a", "active", epoch="12.1"), row("b", epoch="12.1"), row("c", epoch="9.3")]
    assert forecast(takeover("a", "b", "c"), rows)["ok"]  # who does not take over need not


def test_who_is_on_the_way_is_said() -> None:
    """What moves, and who may be active, does not change meanwhile."""
    rows = [row("a", "handing"), row("b"), row("c")]
    assert forecast(takeover("a", "b", "c"), rows)["changing"] == "a"
    rows = [row("a"), row("b", "gathering", holder="b"), row("c")]
    assert forecast(takeover("a", "b", "c"), rows)["changing"] == "b"
    rows = [row("a", "active"), row("b", "asking"), row("c")]  # who asks in vain holds nothing
    assert forecast(takeover("a", "b", "c"), rows)["changing"] is None


def test_what_it_would_cost_and_two_that_are_too_few() -> None:
    rows = [row("a", "active", voters=["a"]), row("b", version=4, voters=["a"])]
    out = forecast(takeover("a", "b"), rows)
    text = " ".join(out["says"])
    assert not out["ok"]
    assert "b could take over with version 4 of web, 5.0 s older." in text
    assert "Only a votes" in text and "witness" in text
    nobody = forecast(takeover("a", "b", "c"), [row("a"), row("b"), row("c")])
    assert nobody["says"][0] == "No node is active."


def test_where_the_one_that_votes_is_gone_force_is_named() -> None:
    rows = [{"node": "a", "error": "No route."}, row("b", voters=["a"])]
    out = forecast(takeover("a", "b"), rows)
    assert not out["ok"] and out["active"] is None
    assert any("crnode failover --force --i-switched-off a" in text for text in out["says"])


def test_where_no_keeper_runs_nothing_is_switched_off() -> None:
    """Right after a takeover was set that is the only thing to do; force was the loudest line."""
    rows = [{"node": name, "error": "Its keeper does not run."} for name in "abc"]
    text = " ".join(forecast(takeover("a", "b", "c"), rows)["says"])
    assert "Start one on each of them: crnode keeper" in text and "--force" not in text


def test_what_its_keeper_says_against_it_counts() -> None:
    rows = [row("a", "active"), row("b", hindered="It leaves it to others: it does not reach 192.0.2.1."),
    row("c")]
    out = forecast(takeover("a", "b", "c"), rows)
    assert not out["ok"] and any("does not reach 192.0.2.1" in text for text in out["says"])


def test_whose_agent_does_not_answer_may_be_active_all_the_same() -> None:
    rows = [{"node": "a", "error": "No route."}, row("b", holder="a"), row("c", holder="a")]
    out = forecast(takeover("a", "b", "c"), rows)
    assert out["active"] == "a" and any("its agent does not answer" in text for text in out["says"])
    assert any(text.startswith("If a fails, b serves") for text in out["says"])


def test_the_newest_configuration_says_who_votes() -> None:
    rows = [row("a", voters=["a", "b"], config=[4, 1, 2]), row("b", voters=["a", "b", "c"], config=[4, 1, 3])]
    rows.append({"node": "c", "error": "No route."})
    assert forecast(takeover("a", "b", "c"), rows)["ok"]
    rows[1] = row("b", voters=["c"], generation=1)
    assert not forecast(takeover("a", "b", "c"), rows)["ok"]
