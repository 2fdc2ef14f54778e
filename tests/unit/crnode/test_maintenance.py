"""Maintenance of one node: what the calls answer, how damage is healed, what a full disk gets back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_samples import (
    SET,
    commit,
    file,
    flip,
    put_file,
    random_chunks,
    reachable,
    small_store,
    with_writer,
)
from test_object_store import small_disk

from crnode.agent import maintenance as maintenance_module
from crnode.agent.heal import Healer
from crnode.agent.maintenance import MINIMUM_BYTES, Maintenance, worth_collecting
from crnode.cluster.document import ClusterDocument, DocumentId, Node, ReplicationSet, Role, Target
from crnode.errors import CrnodeError, ExitCode
from crnode.store import collect as collect_module
from crnode.store import manifest
from crnode.store.catalog import Catalog
from crnode.store.collect import Collected
from crnode.store.packs import Lane, Record
from crnode.store.reader import BAD, UNTESTED
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer
from crnode.versions.retention import USUAL

__all__ = ["small_disk"]
UUID = SET.hex()


class _Healer(Healer):
    """A holder that has whole copies of `records`."""

    def __init__(self, store: ObjectStore, records: list[Record]) -> None:
        super().__init__(SimpleNamespace(store=store))  # type: ignore[arg-type]
        self.store = store
        self.records = {r.id: r for r in records}
        self.asked: list[tuple[str, set[bytes]]] = []

    async def fetch(self, uuid: str, ids: set[bytes], paths: Collection[bytes] = ()) -> dict[bytes, str]:
        self.asked.append((uuid, set(ids)))
        got = [self.records[i] for i in ids if i in self.records]
        self.store.put(got, Lane.BULK, cache=False)
        self.store.sync()
        return {record.id: "shop2" for record in got}

    async def heal(self, uuid: str, ids: set[bytes]) -> set[bytes]:
        return set(await self.fetch(uuid, ids))


def _agent(place: Path, store: ObjectStore, catalog: Catalog, writer: Writer, holder: list[Record]) -> Any:
    nodes = tuple(
        Node(
            name=name, role=role, address=f"{name}:1", fingerprint=f"{number:064x}",
            incarnation=f"{number:032x}", added_at_ns=1,
        )
        for number, (name, role) in enumerate((("shop2", Role.MASTER), ("shop1", Role.REPLICA)))
    )  # fmt: skip
    spec = ReplicationSet(
        name="web", uuid=UUID, source="shop2", paths=("/srv",), targets={"shop1": Target(node="shop1")},
        created_at_ns=1,
    )  # fmt: skip
    document = ClusterDocument(
        id="ab" * 16, name="shop", version=DocumentId(1, 0, 1), nodes=nodes, sets=(spec,)
    )
    events: list[tuple[str, str]] = []
    commit_ = SimpleNamespace(catalog=catalog, ladder=USUAL)
    said: list[tuple[str, bool]] = []
    target = SimpleNamespace(
        lacks=lambda text, damaged: said.append((text, damaged)), in_flight=lambda: None,
        spec=spec, commit=SimpleNamespace(now_ns=time.time_ns), catalog=catalog, store=store, writer=writer,
        destination=place / "live", status=SimpleNamespace(live=""),
    )  # fmt: skip
    return SimpleNamespace(
        data=place, store=store, writer=writer, document=document, node=SimpleNamespace(name="shop1"),
        healer=_Healer(store, holder), events=events, problems={},
        journal=SimpleNamespace(add=lambda kind, text, name=None: events.append((kind, text))),
        sets=SimpleNamespace(
            epochs={},
            catalogs={UUID: catalog}, sources={},
            targets={UUID: SimpleNamespace(spec=spec, commit=commit_, target=target)},
        ),
        said=said, links={},
    )  # fmt: skip


def _run(
    place: Path, store: ObjectStore, catalog: Catalog, holder: list[Record],
    work: Callable[[Maintenance, Any], Awaitable[Any]],
) -> Any:  # fmt: skip
    async def main(writer: Writer) -> Any:
        agent = _agent(place, store, catalog, writer, holder)
        return await work(Maintenance(agent), agent)

    return with_writer(main)


def _records(store: ObjectStore) -> list[Record]:
    store.tick(force=True)
    return [Record(i, w.kind, 0, w.raw, store.get(i)) for i, w in store.index.items()]


def _place(tmp_path: Path, files: int = 30) -> tuple[ObjectStore, Catalog]:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "sets" / f"{UUID}.db", SET)
    data = [bytes(r.stored) for r in random_chunks(files, 4000)]
    commit(catalog, [file(b"f%d" % n, put_file(store, d), 4000) for n, d in enumerate(data)])
    store.sync()
    return store, catalog


def test_a_scrub_heals_and_a_second_one_is_clean(tmp_path: Path) -> None:
    store, catalog = _place(tmp_path)
    holder = _records(store)
    live = reachable([catalog], store)
    (garbage,) = random_chunks(1, 300, seed=99)
    store.put([garbage], Lane.BULK, cache=False)
    recipe = next(r for r in holder if r.kind == 1)
    part = recipe.stored[-32:]
    for name in (recipe.id, bytes(part), garbage.id):
        where = store.locate(name)
        assert where is not None
        flip(store.packs.path(where.pack), where.offset + 100)

    async def work(maintenance: Maintenance, agent: Any) -> None:
        with pytest.raises(CrnodeError) as caught:
            await maintenance.scrub({"set": "none"}, lambda _: None)
        assert caught.value.exit_code == ExitCode.USAGE
        answer = await maintenance.scrub({}, lambda _: None)
        healed = {row["id"]: row["healed_from"] for row in answer["damaged"]}
        assert healed == {
            recipe.id.hex(): "shop2", bytes(part).hex(): "shop2", garbage.id.hex(): "nothing needs it",
        }  # fmt: skip
        again = await maintenance.scrub({"set": "web"}, lambda _: None)
        assert again["damaged"] == []
        assert again["objects"] > 0
        assert not store.damaged
        assert reachable([catalog], store) == live

    _run(tmp_path, store, catalog, holder, work)


def test_what_nobody_has_stays_damaged_and_is_said(tmp_path: Path) -> None:
    store, catalog = _place(tmp_path)
    whole = _records(store)
    name, path = next((e.content, e.path) for e in catalog.walk(1) if e.content)
    where = store.locate(name)
    assert where is not None
    flip(store.packs.path(where.pack), where.offset + 100)

    async def work(maintenance: Maintenance, agent: Any) -> None:
        answer = await maintenance.scrub({}, lambda _: None)
        assert answer["damaged"] == [
            {
                "id": name.hex(), "pack": where.pack, "healed_from": None,
                "set": "web", "path": path.decode(), "newest": True,
            }
        ]  # fmt: skip
        assert answer["lacking"] == 1
        text, damaged = agent.said[-1]
        assert damaged and catalog.lacking == {path}
        assert "version 1;" in text and path.decode() in text
        assert catalog.images()[0].verdict == BAD
        agent.healer.records = {r.id: r for r in whole}
        agent.links = {"shop2": SimpleNamespace(peer=object())}  # it can be reached now
        await maintenance.inventory.again()
        assert agent.said[-1] == ("", False)
        assert not catalog.lacking
        assert catalog.images()[0].verdict == UNTESTED
        store.damaged.add(name)
        store.index.remove([name])
        assert store.missing([name]) == [name]
        agent.healer.records = {}
        gone = await maintenance.collect({}, lambda _: None)
        assert gone["hole"]["ids"] == [name.hex()]
        assert gone["removed_bytes"] == 0

    _run(tmp_path, store, catalog, [], work)


def test_a_collection_heals_holes_first_and_one_runs_at_a_time(tmp_path: Path) -> None:
    store, catalog = _place(tmp_path)
    holder = _records(store)
    name = next(e.content for e in catalog.walk(1) if e.content)
    store.index.remove([name])
    (garbage,) = random_chunks(1, 150_000, seed=99)
    store.put([garbage], Lane.BULK)

    async def work(maintenance: Maintenance, agent: Any) -> None:
        running = asyncio.ensure_future(maintenance.collect({}, lambda _: None))
        await asyncio.sleep(0)
        for other in (maintenance.collect, maintenance.scrub):
            with pytest.raises(CrnodeError, match="A collection is running") as caught:
                await other({}, lambda _: None)
            assert caught.value.exit_code == ExitCode.REFUSED
        answer = await running
        assert answer["hole"] is None
        assert answer["removed_bytes"] >= 150_000
        assert set(answer) >= {"packs", "removed_bytes", "copied_bytes", "kept_bytes", "seconds", "hole"}
        assert agent.healer.asked == [(UUID, {name})]
        plan = await maintenance.collect({"plan": True}, lambda _: None)
        assert plan["removed_bytes"] == 0

    _run(tmp_path, store, catalog, holder, work)
    assert len(reachable([catalog], store)) > 30


def test_a_damaged_manifest_is_forgotten_and_written_again(tmp_path: Path) -> None:
    store, catalog = _place(tmp_path, files=4000)

    async def work(maintenance: Maintenance, agent: Any) -> None:
        assert await maintenance.write_due_manifests() == 1
        assert await maintenance.write_due_manifests() == 0
        (image,) = catalog.images()
        assert image.manifest is not None
        assert image.manifest[32] > 0
        where = store.locate(image.manifest[:32])
        assert where is not None
        await agent.writer.submit(store.sync)
        flip(store.packs.path(where.pack), where.offset + 80)
        assert (await maintenance.collect({}, lambda _: None))["hole"] is None
        assert catalog.images()[0].manifest is None
        maintenance._written.clear()
        assert await maintenance.write_due_manifests() == 1
        assert len(manifest.read_log(manifest.log_path(store))) == 2

    _run(tmp_path, store, catalog, [], work)


def test_a_catalog_set_aside_keeps_its_versions_until_it_is_rebuilt(tmp_path: Path) -> None:
    store, catalog = _place(tmp_path)
    live = reachable([catalog], store)

    async def work(maintenance: Maintenance, agent: Any) -> None:
        await maintenance.write_due_manifests()
        catalog.put_away()
        catalog.path.rename(f"{catalog.path}.damaged-1")
        agent.sets.catalogs.clear()
        Catalog(catalog.path, SET).close()  # begun anew, as the agent does it
        assert (await maintenance.collect({}, lambda _: None))["hole"] is None
        assert store.missing(sorted(live)) == []
        catalog.path.with_name(f"{catalog.path.name}.damaged-1").unlink()
        await maintenance.collect({}, lambda _: None)
        assert len(store.missing(sorted(live))) > 0.9 * len(live)

    _run(tmp_path, store, catalog, [], work)


def test_a_full_disk_gets_room_back(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "GRACE_SECONDS", 0.01)
    store = ObjectStore(small_disk / "store", pack_size=1 << 20)
    assert (small_disk / "store" / "ballast").exists()
    catalog = Catalog(small_disk / "sets" / f"{UUID}.db", SET)
    kept = 0

    def fill() -> None:
        nonlocal kept
        for seed in range(1000):
            records = random_chunks(16, 16 << 10, seed)
            store.put(records, Lane.BULK, cache=False)
            store.sync()
            if seed % 4 == 0 and kept < 60:
                commit(catalog, [file(b"k%d" % seed, (records[0].id, 0), 16 << 10)])
                kept += 1

    with pytest.raises(CrnodeError):
        fill()
    live = reachable([catalog], store)

    async def work(maintenance: Maintenance, agent: Any) -> None:
        answer = await maintenance.relieve()
        assert answer is not None
        assert answer["hole"] is None
        assert answer["removed_bytes"] > 10 << 20
        assert await maintenance.relieve() is None  # not again at once
        store.check_room()
        assert (small_disk / "store" / "ballast").exists()

    _run(small_disk, store, catalog, [], work)
    assert reachable([catalog], store) == live
    store.close()
    catalog.close()


def test_a_collection_asks_what_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "GRACE_SECONDS", 0.01)
    store, catalog = _place(tmp_path)
    store.put(random_chunks(300, 2000, seed=4), Lane.BULK, cache=False)
    store.sync()

    async def work(maintenance: Maintenance, agent: Any) -> None:
        (running,) = agent.sets.targets.values()
        running.target.in_flight = lambda: 0  # an image of which this may be the content
        assert (await maintenance.collect({}, lambda _: None))["removed_bytes"] == 0
        running.target.in_flight = lambda: None
        with agent.healer.spared():
            store.put(random_chunks(300, 2000, seed=5), Lane.BULK, cache=False)  # for a restore
            store.sync()
            assert (await maintenance.collect({}, lambda _: None))["removed_bytes"] > 300 * 2000
            assert (await maintenance.collect({}, lambda _: None))["removed_bytes"] == 0
        assert (await maintenance.collect({}, lambda _: None))["removed_bytes"] > 300 * 2000

    _run(tmp_path, store, catalog, [], work)
    store.close()


def test_when_a_collection_is_worth_while() -> None:
    gib, day = 1 << 30, 24 * 3600 * 10**9
    last = Collected(live=900 << 20, total=1 << 30, at_ns=0)
    assert not worth_collecting(MINIMUM_BYTES - 1, None, 5, 0, idle=True)
    assert worth_collecting(gib, None, 0, 0, idle=True)
    assert not worth_collecting(gib, last, 0, 0, idle=True)  # nothing came since
    assert worth_collecting(gib + (100 << 20), last, 0, 0, idle=True)
    assert not worth_collecting(gib + (100 << 20), last, 0, 0, idle=False)
    assert worth_collecting(2 * gib, last, 0, 0, idle=False)
    assert not worth_collecting(gib, last, 5, day - 1, idle=True)
    assert worth_collecting(gib, last, 5, day, idle=True)


def test_what_was_refused_once_does_not_stop_housekeeping(tmp_path: Path) -> None:
    store, catalog = _place(tmp_path)
    store.room.quota = store.room.used() + 50_000
    with pytest.raises(CrnodeError):
        store.check_room(60_000)  # of a peer that never comes again

    async def work(maintenance: Maintenance, agent: Any) -> None:
        written = manifest.log_path(store)
        assert not written.exists()
        await maintenance._minute()
        assert written.exists()
        store.room.check_last()
        store.room.quota = 1  # there is room for nothing
        await maintenance._minute()
        assert [kind for kind, _ in agent.events].count("full") == 1  # and none is made twice in a minute

    _run(tmp_path, store, catalog, [], work)


@pytest.mark.parametrize("closed", [False, True])
def test_housekeeping_outlives_what_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    monkeypatch.setattr(maintenance_module, "CHECK_SECONDS", 0.0)
    store, catalog = _place(tmp_path)
    if closed:
        catalog.close()
    else:
        manifest.log_path(store).mkdir()  # an OSError for who writes there

    async def work(maintenance: Maintenance, agent: Any) -> None:
        task = asyncio.create_task(maintenance.run())
        async with asyncio.timeout(10):
            while len([text for _, text in agent.events if "Housekeeping" in text]) < 2 and not task.done():
                await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    _run(tmp_path, store, catalog, [], work)
