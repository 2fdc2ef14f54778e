"""What crosses: a restore to its place and a switch, a proof and the removal of its set."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from crnode.agent.in_place import InPlace
from crnode.agent.moving import Moving
from crnode.agent.proof import Proof
from crnode.agent.restore import Chosen, Restore
from crnode.errors import CrnodeError, ExitCode
from crnode.store.reader import GOOD

SPEC: Any = SimpleNamespace(name="site", uuid="ab" * 16, paths=("/srv",))


def test_nothing_is_handed_over_while_it_is_brought_back_and_a_restore_ends_when_another_serves() -> None:
    agent: Any = SimpleNamespace(sets=SimpleNamespace(sources={SPEC.uuid: object()}))
    place = InPlace(agent, None, None, None)  # type: ignore[arg-type]
    agent.calls = SimpleNamespace(in_place=place)
    moving: Any = object.__new__(Moving)
    moving.agent, moving.specs = agent, lambda: [SPEC]

    async def run() -> None:
        going_on, reached = asyncio.Event(), []

        async def restore(*_: object) -> dict[str, object]:
            going_on.set()
            while True:
                place._go_on(SPEC)
                reached.append(1)
                await asyncio.sleep(0.01)

        place._running = lambda _: None  # type: ignore[method-assign, assignment, return-value]
        place._run = restore  # type: ignore[method-assign, assignment]
        asked = asyncio.create_task(place.run(SPEC, {"version": "3"}, lambda _: None))
        await going_on.wait()
        with pytest.raises(CrnodeError, match="being brought back to an older version") as error:
            await moving.ready_for({"to": "b"}, None)
        assert error.value.exit_code == ExitCode.REFUSED
        with pytest.raises(CrnodeError, match="being brought back"):
            await moving._hand_over({"to": "b"})
        await place.end(SPEC.uuid, "b serves site now.")
        assert not place.is_under_way(SPEC.uuid)
        with pytest.raises(CrnodeError, match=r"ended early\. b serves site now"):
            await asked
        assert reached

    asyncio.run(run())


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
