"""When a version is due to be proved."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from store_samples import SET, commit, directory, file, put_file, small_store, with_writer

from crnode.agent.schedule import Schedule
from crnode.cluster.node_file import ProofPlan
from crnode.store.catalog import Catalog
from crnode.store.reader import GOOD, ROLLING
from crnode.store.writer import Writer

HOUR = 3600 * 10**9
DAY = 24 * HOUR
START = 1_700_000_000 * 10**9


class Proved:
    """Stands where versions are proved; which ones were is in `asked`."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def verify(self, spec: object, args: dict[str, Any], progress: object) -> dict[str, Any]:
        self.asked.append(args["version"])
        return {"verdict": "good", "evidence": "", "damaged": []}


def test_the_newest_whole_version_is_proved_once_a_day_when_the_node_is_idle(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "sets" / "one.db", SET)
    data = put_file(store, b"data")
    first = commit(catalog, [directory(b""), file(b"a", data, 4)])
    second = commit(catalog, [file(b"b", data, 4)])
    with catalog.transaction():
        catalog._db.execute("UPDATE image SET flags=? WHERE ordinal=?", (ROLLING, second.ordinal))
    running = SimpleNamespace(spec=SimpleNamespace(name="docs"), commit=SimpleNamespace(catalog=catalog))
    node = SimpleNamespace(name="box2", proofs={})
    proved = Proved()

    async def work(writer: Writer) -> None:
        agent: Any = SimpleNamespace(
            node=node, writer=writer, sets=SimpleNamespace(targets={SET.hex(): running})
        )
        schedule = Schedule(agent, proved)  # type: ignore[arg-type]

        async def step(now_ns: int, *, idle: bool = True) -> str:
            return await schedule.step(now_ns, idle=idle, pace=0)

        assert await step(START) == f"proof docs {first.sequence}"
        assert await step(START + 1) == ""
        assert await step(START + DAY, idle=False) == ""
        assert await step(START + 2 * DAY, idle=False) == f"proof docs {first.sequence}"
        with catalog.transaction():
            catalog.set_verdict(first.ordinal, GOOD, "read back")
        assert await step(START + 4 * DAY) == ""  # it is known already
        third = commit(catalog, [file(b"c", data, 4)])
        assert await step(START + 4 * DAY) == f"proof docs {third.sequence}"
        node.proofs = {"docs": ProofPlan(every_s=3600)}
        assert third.id is not None
        with catalog.transaction():
            catalog.set_verdict(third.ordinal, GOOD, "read back")
        fourth = commit(catalog, [file(b"d", data, 4)])
        assert await step(START + 4 * DAY + HOUR - 1) == ""
        assert await step(START + 4 * DAY + HOUR) == f"proof docs {fourth.sequence}"
        node.proofs = {"docs": ProofPlan(every_s=0)}
        assert await step(START + 40 * DAY) == ""

    with_writer(work)
    assert len(proved.asked) == 4
