"""The weekly look: digests of versions from their rows, packs in turn, what is wrong told and mended."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from store_samples import SET, blank, commit, digest_of, file, flip, random_chunks, small_store, with_writer

from crnode.agent.audit import BAD, PERIOD_NS, Audit
from crnode.agent.idle import Idle
from crnode.agent.maintenance import Maintenance
from crnode.agent.schedule import Schedule
from crnode.store import audit as module
from crnode.store.audit import audit, states
from crnode.store.catalog import Catalog
from crnode.store.packs import Lane
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer
from crproto.entries import LtHash

UUID = SET.hex()
LIMIT = (  # to one row
    " AND (dir,name) IN (SELECT dir,name FROM entry e WHERE e.born=entry.born AND e.died=entry.died LIMIT 1)"
)


def history(catalog: Catalog, images: int = 12) -> None:
    """Files that come, change, go and come back."""
    source = random.Random(5)
    there: set[bytes] = set()
    for number in range(images):
        names = [b"f%d" % source.randrange(15) for _ in range(6)]
        gone = [n for n in set(names[:2]) if n in there and n not in names[2:]]
        changed = [file(n, (source.randbytes(32), 0), number + 1, number) for n in set(names[2:])]
        commit(catalog, changed, gone)
        there = (there | {e.path for e in changed}) - set(gone)


def spoil(catalog: Catalog, sql: str, *args: object) -> None:
    db = apsw.Connection(str(catalog.path))
    db.execute(sql, args)
    assert db.changes() == 1
    db.close()


def test_states_of_all_images_come_out_of_one_pass(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "one.db", SET)
    history(catalog)
    with catalog.transaction():
        catalog.prune({2, 5, 6, 11}, 1000)
    images = catalog.images()
    assert [i.ordinal for i in images] == [2, 5, 6, 11, 12]
    for image, (count, size, state) in zip(images, states(catalog, images), strict=True):
        entries = list(catalog.walk(image.ordinal))
        assert (count, size) == (len(entries), sum(e.size for e in entries))
        assert image.digest == digest_of(entries) and isinstance(state, LtHash)
    assert audit(catalog, SET) == ([], images)


def test_images_whose_rows_changed_are_named_and_no_others(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "one.db", SET)
    commit(catalog, [file(b"a", (bytes(32), 0), 1), file(b"b", (bytes(32), 0), 1)])
    commit(catalog, [file(b"a", (bytes(31) + b"x", 0), 2)])
    commit(catalog, [file(b"c", (bytes(32), 0), 3)])
    spoil(catalog, "UPDATE entry SET mtime_ns=mtime_ns+1 WHERE name=x'61' AND born=1")
    assert [image.ordinal for image, _ in audit(catalog, SET)[0]] == [1]
    spoil(catalog, "DELETE FROM entry WHERE name=x'61' AND born=2")
    assert [image.ordinal for image, _ in audit(catalog, SET)[0]] == [1, 2, 3]
    other = Catalog(tmp_path / "two.db", SET)
    commit(other, [file(b"a", (bytes(32), 0), 1)])
    totals = other.meta("totals")
    assert totals is not None
    spoil(other, "UPDATE meta SET value=? WHERE key='totals'", totals[:-1] + bytes([totals[-1] ^ 1]))
    ((image, why),) = audit(other, SET)[0]
    assert image.ordinal == 1 and "next image" in why


class Agent(SimpleNamespace):
    """What the audit needs of an agent, on a real store and a real catalog."""

    rebuilt: list[tuple[str, str]]

    async def rebuild_catalog(self, uuid: str, why: str, found: object) -> None:
        self.rebuilt.append((uuid, why))


def agent_of(
    place: Path, store: ObjectStore, catalog: Catalog, writer: Writer, holder: dict[bytes, Any]
) -> Any:
    async def fetch(uuid: str, ids: set[bytes], paths: object = ()) -> dict[bytes, str]:
        got = [holder[i] for i in ids if i in holder]
        store.put(got, Lane.BULK, cache=False)
        store.sync()
        return {record.id: "shop2" for record in got}

    events: list[str] = []
    agent = Agent(
        data=place, store=store, writer=writer, problems={}, rebuilt=[], events=events,
        journal=SimpleNamespace(add=lambda kind, text, name=None: events.append(text)),
        document=SimpleNamespace(set_by_uuid=lambda uuid: None, sets_to=lambda _: ()),
        node=SimpleNamespace(name="shop1"), healer=SimpleNamespace(fetch=fetch),
        sets=SimpleNamespace(catalogs={UUID: catalog}, sources={}, targets={}, epochs={}),
    )  # fmt: skip
    agent.calls = SimpleNamespace(maintenance=Maintenance(agent), schedule=Schedule(agent, None))  # type: ignore[arg-type]
    return agent


def test_a_bad_version_is_marked_and_a_bad_newest_one_is_made_again(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "sets" / f"{UUID}.db", SET)
    history(catalog, 4)

    async def work(writer: Writer) -> None:
        agent = agent_of(tmp_path, store, catalog, writer, {})
        looks: Audit = agent.calls.maintenance.audit
        assert looks.due_catalog(4) is None  # it was written this moment
        assert Audit(agent).due_catalog(4 + PERIOD_NS) == UUID  # which a restart remembers
        looks.verified.catalogs[UUID] = 5
        assert looks.due_catalog(5 + PERIOD_NS) == UUID
        assert await looks.catalog(UUID, 5 + PERIOD_NS) == []
        assert looks.due_catalog(6 + PERIOD_NS) is None
        assert Audit(agent).due_catalog(6 + PERIOD_NS) is None  # a restart remembers
        spoil(catalog, "UPDATE entry SET size=size+1 WHERE born=1 AND died=2" + LIMIT)
        assert len(await looks.catalog(UUID, 7)) == 1
        first = catalog.images()[0]
        assert first.verdict == BAD and first.evidence is not None and "digest" in first.evidence
        assert not agent.rebuilt
        assert any("not whole" in text for text in agent.problems.values())
        spoil(catalog, "UPDATE entry SET size=size+1 WHERE born=4" + LIMIT)
        await looks.catalog(UUID, 8)
        ((uuid, why),) = agent.rebuilt
        assert uuid == UUID and "image 4" in why

    with_writer(work)


def test_a_node_looks_at_one_thing_a_minute(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", 20_000)
    catalog = Catalog(tmp_path / "sets" / f"{UUID}.db", SET)
    store.put(random_chunks(60, 1000), Lane.BULK, cache=False)
    store.sync()

    async def work(writer: Writer) -> None:
        agent = agent_of(tmp_path, store, catalog, writer, {})
        idle, looks = Idle(agent), agent.calls.maintenance.audit
        assert await idle.step(idle=True) == ""  # all is new
        looks.verified.catalogs[UUID] -= PERIOD_NS
        for number in store.packs.numbers():
            looks.verified.packs[str(number)] = looks.verified.catalogs[UUID]
        assert await idle.step(idle=False) == ""  # a week is no reason for a node that is busy, two are
        with agent.calls.maintenance._turn("A scrub"):
            assert await idle.step(idle=True) == ""
        assert await idle.step(idle=True) == f"catalog {UUID}"
        assert await idle.step(idle=True) == "packs 1, 2, 3, 4"
        assert await idle.step(idle=True) == ""
        looks.verified.catalogs[UUID] -= 2 * PERIOD_NS
        assert await idle.step(idle=False) == f"catalog {UUID}"

    with_writer(work)


def test_packs_are_read_in_turn_and_healed(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", 20_000)
    catalog = Catalog(tmp_path / "sets" / f"{UUID}.db", SET)
    records = {r.id: r for r in random_chunks(60, 1000)}
    store.put(list(records.values()), Lane.BULK, cache=False)
    commit(catalog, [file(name.hex().encode(), (name, 0), 1000) for name in records])
    store.sync()
    spoilt = next(iter(records))
    where = store.locate(spoilt)
    assert where is not None
    flip(store.packs.path(where.pack), where.offset + 100)

    async def work(writer: Writer) -> None:
        agent = agent_of(tmp_path, store, catalog, writer, {})
        looks: Audit = agent.calls.maintenance.audit
        now = store.packs.path(1).stat().st_mtime_ns
        for number in store.packs.numbers():
            os.utime(store.packs.path(number), ns=(now, now + number))
        assert looks.due_packs(now + 50, 1) == []
        later = now + 2 * PERIOD_NS
        assert looks.due_packs(later, 30_000) == [1, 2]
        assert await looks.packs([2], 0, later) == 0
        assert looks.due_packs(later + 5, 30_000) == [1, 3]
        assert await looks.packs([1], 0, later) == 1
        assert "damaged" in agent.problems["packs"]  # no node had it
        assert store.missing([spoilt]) == [spoilt]
        healthy = agent_of(tmp_path, store, catalog, writer, records)
        again: Audit = healthy.calls.maintenance.audit
        healthy.problems = agent.problems
        assert again.due_packs(later + 5, 30_000) == [3, 4]  # what was read before is remembered
        await healthy.calls.maintenance.inventory.run(lambda _: None)  # as each minute while it is lacking
        assert store.missing([spoilt]) == []
        assert await again.packs([1], 0, later) == 0
        assert not healthy.problems
        kept = json.loads((store.directory / "verified").read_text())
        assert set(kept["packs"]) >= {"1", "2"}

    with_writer(work)


def test_commits_and_pruning_meanwhile_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    catalog = Catalog(tmp_path / "one.db", SET)
    history(catalog, 6)
    reader = catalog.reader()
    real = reader.rows
    pages = 0

    def rows(after: Any, limit: int) -> Any:
        nonlocal pages
        pages += 1
        history(catalog, 1)
        with catalog.transaction():
            catalog.begin(blank(catalog.next_ordinal()))
            catalog.change(catalog.next_ordinal() - 1, catalog.totals(), [file(b"s", (bytes(32), 0), 9)])
            catalog.undo(catalog.next_ordinal() - 1)
            keep = {i.ordinal for i in catalog.images()[::2]}
            catalog.prune(keep, 3)
        return real(after, limit)

    monkeypatch.setattr(reader, "rows", rows)
    wrong, checked = audit(reader, SET)
    assert wrong == []
    assert len(checked) == 6
    assert pages > 5
    reader.close()
