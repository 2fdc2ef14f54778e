"""What crosses: a restore to its place and a switch, a proof and the removal of its set."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crnode.agent.in_place import InPlace
from crnode.agent.moving import Moving
from crnode.agent.node import Agent
from crnode.agent.proof import Proof
from crnode.agent.restore import Chosen, Restore
from crnode.agent.sets import Sets
from crnode.cluster.moves import Move, epoch_number
from crnode.errors import CrnodeError, ExitCode
from crnode.store.reader import GOOD

SPEC: Any = SimpleNamespace(name="site", uuid="ab" * 16, paths=("/srv",))


def test_nothing_is_handed_over_while_it_is_brought_back() -> None:
    agent: Any = SimpleNamespace(sets=SimpleNamespace(sources={SPEC.uuid: object()}))
    place = InPlace(agent, None, None, None)  # type: ignore[arg-type]
    agent.calls = SimpleNamespace(in_place=place)
    agent.node, agent.moves = SimpleNamespace(name="a"), {}
    moving: Any = object.__new__(Moving)
    moving.agent, moving.specs = agent, lambda: [SPEC]

    async def run() -> None:
        going_on = asyncio.Event()

        async def restore(*_: object) -> None:
            going_on.set()
            await asyncio.sleep(600)  # for others

        place._running = lambda _: None  # type: ignore[method-assign, assignment, return-value]
        place._run = restore  # type: ignore[method-assign, assignment]
        asked = asyncio.create_task(place.run(SPEC, {"version": "3"}, lambda _: None))
        await going_on.wait()
        args = {"to": "b", "epoch": 258}
        for what in (moving.ready_for(args, None), moving._hand_over(args)):
            with pytest.raises(CrnodeError, match="begins to move just now, and is not opened yet"):
                await what  # else its epoch is released, and nobody may be active with that set
        agent.moves[SPEC.uuid] = Move(257, "a")  # it was left out since, and is named again
        with pytest.raises(CrnodeError, match="is not opened yet"):
            await moving.ready_for(args, None)
        agent.moves[SPEC.uuid] = Move(258, "a")
        with pytest.raises(CrnodeError, match="being brought back to an older version") as error:
            await moving.ready_for(args, None)
        assert error.value.exit_code == ExitCode.REFUSED
        with pytest.raises(CrnodeError, match="being brought back"):
            await moving._hand_over(args)
        with place.closed([SPEC.uuid], "b serves it now."):
            await asyncio.wait_for(place.end(SPEC.uuid), 20)
            with pytest.raises(CrnodeError, match=r"ended early\. b serves it now"):
                await asked
            with pytest.raises(CrnodeError, match="not brought back now"):
                await place.run(SPEC, {"version": "3"}, lambda _: None)
        assert not place.is_under_way(SPEC.uuid)
        asked = asyncio.create_task(place.run(SPEC, {"version": "3"}, lambda _: None))
        await asyncio.sleep(0)
        asked.cancel()  # whoever asked hung up
        with pytest.raises(asyncio.CancelledError):
            await asked
        planned = asyncio.create_task(place.run(SPEC, {"version": "3", "plan": True}, lambda _: None))
        await asyncio.sleep(0)
        assert not place.is_under_way(SPEC.uuid)  # who only asks what would be changes nothing
        planned.cancel()
        await asyncio.wait([planned])

    asyncio.run(run())


def test_a_step_that_changes_files_is_not_cut_off(tmp_path: Path) -> None:
    """It ends at the next one."""
    agent: Any = SimpleNamespace(store=None)
    place = InPlace(agent, None, None, None)  # type: ignore[arg-type]

    async def run() -> None:
        steps: list[str] = []

        def step() -> None:
            time.sleep(0.2)
            steps.append("whole")

        async def restore(*_: object) -> None:
            try:
                while True:
                    place._go_on(SPEC)
                    await place._change(SPEC, step)
            finally:
                steps.append("closed")

        place._running = lambda _: None  # type: ignore[method-assign, assignment, return-value]
        place._run = restore  # type: ignore[method-assign, assignment]
        asked = asyncio.create_task(place.run(SPEC, {"version": "3"}, lambda _: None))
        await asyncio.sleep(0.1)
        with place.closed([SPEC.uuid], "b serves it now."):
            await asyncio.wait_for(place.end(SPEC.uuid), 20)
        with pytest.raises(CrnodeError, match="ended early"):
            await asked
        assert steps == ["whole", "closed"]

    asyncio.run(run())


def test_what_a_node_keeps_and_bundles_stays_with_it_when_a_set_moves() -> None:
    said: Any = SimpleNamespace(set_by_uuid=lambda _: SimpleNamespace(kept_at=lambda node: f"of {node}"))
    agent: Any = SimpleNamespace(said=said)
    assert Agent.kept(agent, SPEC, "b") == "of b"  # as the master said it, whoever is the source now
    source = SimpleNamespace(spec=SPEC, source=SimpleNamespace(catalog="catalog of site"), moves=True)
    other = SimpleNamespace(name="else", uuid="cd" * 16)
    target = SimpleNamespace(spec=other, target=SimpleNamespace(catalog="catalog of else"))
    sets: Any = SimpleNamespace(targets={other.uuid: target}, sources={SPEC.uuid: source})
    group: Any = SimpleNamespace(members=("site", "else"))
    assert {one.name: one.catalog for one in Sets.members(sets, group)} == {
        "site": "catalog of site",
        "else": "catalog of else",
    }
    source.moves = False  # it has no versions
    assert [one.name for one in Sets.members(sets, group)] == ["else"]


def test_a_proof_of_a_set_that_was_removed_ends_and_stops_nothing() -> None:
    """Its catalog went while a version was read for an hour: that stopped the agent."""
    agent: Any = SimpleNamespace(
        sets=SimpleNamespace(catalogs={}), store=None, node=SimpleNamespace(name="b"),
        writer=SimpleNamespace(submit=lambda work: asyncio.to_thread(work)),
    )  # fmt: skip
    restore = Restore(agent)
    proof = Proof(agent, restore, None)  # type: ignore[arg-type]
    chosen = Chosen(bytes(32), 4, b"", 1, 1, "b")

    async def run() -> None:
        assert await proof._note(SPEC, chosen, GOOD, "read back") == (GOOD, "read back")
        with pytest.raises(CrnodeError, match="does not keep version 4 of site any more"):
            await restore.pages(SPEC, chosen, b"", lambda _: None)

    asyncio.run(run())


def test_a_set_that_nobody_opened_yet_keeps_its_home_from_nothing() -> None:
    """It has no epoch that anybody could descend from: after a restart no node could be active."""
    old = SimpleNamespace(name="old", uuid="aa" * 16, source="a")
    new = SimpleNamespace(name="new", uuid="bb" * 16, source="a")
    seven = epoch_number(7, 1)
    rows = {"old": {"epoch": seven, "fence": seven}, "new": {"epoch": 0, "fence": 0}}
    moving: Any = object.__new__(Moving)

    async def one(spec: Any) -> tuple[dict[str, object], str]:
        return {"name": spec.name, **rows[spec.name]}, ""

    def data(here: str, *specs: object, moves: tuple[str, ...] = ("aa" * 16,)) -> tuple[list[int], bool]:
        moving.agent = SimpleNamespace(
            node=SimpleNamespace(name=here), moves=dict.fromkeys(moves, Move(1, "a")), links={}
        )
        moving.specs, moving._one_state = lambda: list(specs), one
        found = asyncio.run(moving.state({}, lambda _: None))
        return found["data"], found["is_new"]

    assert data("a", old, new) == ([7, 1], False)
    assert data("a", new) == ([0, 0], True)
    assert data("b", old, new) == ([0, 0], False)  # it has nothing of it
    assert data("a", old, new, moves=("aa" * 16, "bb" * 16)) == ([0, 0], False)  # it was opened, and is lost
    assert data("a") == ([0, 0], False)
