"""Who may go on by force: what has to be silent, what has to be named, and whose word would be enough
without."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from crnode.agent.forced import Forced
from crnode.errors import CrnodeError

NAMES = ("a", "b", "c", "d")


class Box:
    """Node b of a cluster of four, in which a, b and c vote. `up`: who answers b; `hears`: whom they hear."""

    def __init__(self, up: str, hears: dict[str, str], voters: str = "abc") -> None:
        nodes = [SimpleNamespace(name=name) for name in NAMES]
        takeover = SimpleNamespace(voters=tuple("abc"), candidates=tuple("ab"))
        document = SimpleNamespace(takeover=takeover, nodes=nodes)
        self.node = SimpleNamespace(name="b")
        self.said = self.document = document
        self._up, self._hears, self._voters = up, hears, voters

    async def answers(self, name: str) -> bool:
        return name in self._up

    async def forward(self, name: str, what: str, args: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert what == "takeover.hears"
        hears = [one for one in self._hears.get(name, "") if one in args["names"]]
        return {"hears": hears, "voters": list(self._voters)}

    def check(self, off: str, *, keepers: str = "", half_done: bool = False) -> None:
        forced = Forced(self, None, self.forward)  # type: ignore[arg-type]
        mine = {"keepers": {name: name in keepers for name in NAMES if name != "b"}, "voters": list("abc")}
        asyncio.run(forced._check_off(sorted(off), mine, half_done=half_done))


def test_all_that_is_silent_and_named_is_off() -> None:
    Box(up="d", hears={}).check("ac")
    Box(up="", hears={}).check("acd")


@pytest.mark.parametrize(
    ("box", "keepers"),
    [
        (Box(up="ad", hears={}), ""),  # its agent answers here
        (Box(up="d", hears={}), "a"),  # its keeper does
        (Box(up="d", hears={"d": "a"}), ""),  # it answers a node that votes on nothing
    ],
)
def test_who_answers_anybody_is_not_off(box: Box, keepers: str) -> None:
    with pytest.raises(CrnodeError, match="a is not switched off"):
        box.check("ac", keepers=keepers)


def test_a_voter_that_is_silent_has_to_be_named() -> None:
    with pytest.raises(CrnodeError, match="c does not answer either"):
        Box(up="d", hears={}).check("a")


def test_a_majority_needs_no_force_and_another_one_may_know_better_who_that_is() -> None:
    with pytest.raises(CrnodeError, match="b and c are a majority"):
        Box(up="c", hears={}).check("a", keepers="c")
    with pytest.raises(CrnodeError, match="d are a majority"):
        Box(up="d", hears={}, voters="bd").check("ac")
    Box(up="c", hears={}).check("a", half_done=True)  # it went on already
