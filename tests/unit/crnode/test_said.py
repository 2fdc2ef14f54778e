"""Of several documents that come at once the newest holds, in memory and on disk; no change gets lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from crnode.agent import node as agent_node
from crnode.agent.node import Agent
from crnode.cluster.create import choose_places, create_cluster
from crnode.cluster.document import ClusterDocument, Node, Role, parse_document
from crnode.cluster.membership import SetSpec, add_node, add_set
from crnode.cluster.node_file import read_node_file
from crnode.platform.files import atomic_write

NOW = 1_700_000_000_000_000_000


@pytest.fixture
def document(tmp_path: Path) -> ClusterDocument:
    places = choose_places("127.0.0.1:7400", None)
    made = create_cluster(tmp_path / "data", "one", "shop", places, NOW)
    box = Node(
        name="box",
        role=Role.REPLI_MASTER,
        address="127.0.0.1:7402",
        fingerprint="ab" * 32,
        incarnation="cd" * 16,
        added_at_ns=1,
    )
    return add_node(made, box, NOW)


def with_set(document: ClusterDocument, name: str) -> ClusterDocument:
    spec = SetSpec.parse({"name": name, "source": "box", "paths": [f"/srv/{name}"], "to": ["one"]})
    return add_set(document, spec, NOW, f"{sum(map(ord, name)):032x}")


class Slow:
    """Disks write the first document much later than those after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        monkeypatch.setattr(agent_node, "atomic_write", self.write)

    def write(self, path: Path, data: bytes) -> None:
        self.begun += 1
        if self.begun == 1:
            time.sleep(0.3)
        atomic_write(path, data)


def run(tmp_path: Path, document: ClusterDocument, work: Callable[[Agent], Awaitable[object]]) -> list[int]:
    """Let an agent that does not run its sets do something; returns how many sets each document had that it
    put into force."""
    followed: list[int] = []

    async def main() -> None:
        agent = Agent(tmp_path / "data", read_node_file(tmp_path / "data"), document, "127.0.0.1:7400")

        async def follow() -> None:
            followed.append(len(agent.said.sets))

        agent._follow = follow  # type: ignore[method-assign]
        agent.in_force.set()
        await work(agent)
        kept = parse_document((tmp_path / "data" / "cluster.json").read_bytes())
        assert kept == agent.said

    asyncio.run(main())
    return followed


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_older_of_two_that_come_on_two_connections_does_not_hold(
    tmp_path: Path, document: ClusterDocument, monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]
) -> None:
    Slow(monkeypatch)
    first = with_set(document, "first")
    second = with_set(first, "second")
    offers = [(first, second)[number].to_bytes() for number in order]

    async def work(agent: Agent) -> None:
        await asyncio.gather(*(agent.offered("one", body) for body in offers))
        assert agent.said == second
        assert not agent.journal.latest(100)  # neither is refused: each was news when it came

    assert run(tmp_path, document, work)[-1] == 2


def test_two_changes_at_once_are_both_made(
    tmp_path: Path, document: ClusterDocument, monkeypatch: pytest.MonkeyPatch
) -> None:
    Slow(monkeypatch)
    names = ["first", "second", "third"]

    async def work(agent: Agent) -> None:
        made = await asyncio.gather(*(agent.change(lambda said, n=name: with_set(said, n)) for name in names))  # type: ignore[misc]
        assert sorted(spec.name for spec in agent.said.sets) == names
        assert len({document.version for document in made}) == 3
        # What is no change is none.
        assert await agent.change(lambda said: said) is agent.said

    assert run(tmp_path, document, work) == [1, 2, 3]


def test_what_came_is_put_into_force_though_its_connection_ends(
    tmp_path: Path, document: ClusterDocument, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent again, it is no news: nothing else would put it into force."""
    Slow(monkeypatch)
    offered = with_set(document, "first").to_bytes()

    async def work(agent: Agent) -> None:
        agent.in_force.clear()
        task = asyncio.create_task(agent.offered("one", offered))
        await asyncio.sleep(0.05)
        task.cancel()  # while it is written
        with contextlib.suppress(asyncio.CancelledError):
            await task
        asked = asyncio.create_task(agent.change(lambda said: with_set(said, "second")))
        await asyncio.sleep(0.01)
        asked.cancel()  # before it is
        await asyncio.sleep(0.6)
        assert [spec.name for spec in agent.said.sets] == ["first", "second"]
        agent.in_force.set()
        await asyncio.sleep(0.05)

    # The one that came waits until the agent has begun; what its owner changes is put into force at once.
    assert run(tmp_path, document, work) == [2, 2]
