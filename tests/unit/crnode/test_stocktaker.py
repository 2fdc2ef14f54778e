"""What an inventory concludes while the store and the catalog go on changing, and over restarts (rule 32)."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_samples import (
    INCARNATION,
    SET,
    commit,
    digest_of,
    directory,
    file,
    file_records,
    flip,
    random_chunks,
    with_writer,
)
from test_lost_content import Target
from test_manifest import _sets

import crnode.agent.inventory as module
from crnode.agent.inventory import Report, Stocktaker
from crnode.agent.maintenance import Maintenance
from crnode.agent.sets import Sets
from crnode.errors import CrnodeError, ExitCode
from crnode.store.catalog import Catalog
from crnode.store.collect import CatalogRef
from crnode.store.packs import Lane
from crnode.store.reader import BAD, UNTESTED
from crnode.store.store import Damaged
from crnode.store.writer import Writer
from crproto.ids import image_id
from crproto.limits import DIGEST_SCHEME
from crproto.messages import ImageBegin

Work = Callable[[Stocktaker], Coroutine[Any, Any, Any]]


def taking(target: Target, work: Work | None = None, *, runs: bool = True, removed: bool = False) -> Any:
    """Run an inventory (or `work`) for a target that no other node can be asked by; its set is refused unless
    it `runs`."""

    async def run(writer: Writer) -> Any:
        async def nothing(*_: object) -> dict[bytes, str]:
            return {}

        held = target.catalog if runs else None
        ref = CatalogRef(SET.hex(), target.catalog.path, False, (), held, removed)
        agent = SimpleNamespace(
            store=target.store,
            writer=writer,
            links={},
            sets=SimpleNamespace(catalogs={SET.hex(): held} if held else {}, sources={}, targets={}),
            healer=SimpleNamespace(fetch=nothing),
            journal=SimpleNamespace(add=lambda *_: None),
            document=SimpleNamespace(set_by_uuid=lambda _: None),
        )
        maintenance = SimpleNamespace(catalogs=lambda: [ref], forget_garbage=nothing)
        taker = Stocktaker(agent, maintenance)  # type: ignore[arg-type]
        if work is not None:
            return await work(taker)
        return await taker.run(lambda _: None)

    return with_writer(run)


def reopened(target: Target, place: Path) -> Target:
    """The same after a restart, with its doubts."""
    entries, sequence = target.entries, target.sequence
    target.store.close()
    target.catalog.close()
    again = Target(place)
    again.entries, again.sequence = entries, sequence

    async def look(writer: Writer) -> None:
        sets = SimpleNamespace(store=again.store, writer=writer, doubted=lambda: None)
        await Sets._compare_with_store(sets, again.catalog)  # type: ignore[arg-type]

    with_writer(look)
    return again


def test_a_store_put_back_from_an_older_copy_is_doubted_however_it_grows(tmp_path: Path) -> None:
    target = Target(tmp_path)
    old, new = random_chunks(2, 700)
    target.put([old])
    assert target.push([file(b"a", (old.id, 0), 700)]) == []
    target.store.close()
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    target = reopened(Target(tmp_path), tmp_path)
    target.entries, target.sequence = {b"a": file(b"a", (old.id, 0), 700)}, 1
    target.put([new])
    assert target.push([file(b"a", (new.id, 0), 700)]) == []
    target.store.close()
    target.catalog.close()
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "copy").rename(tmp_path / "store")
    target = reopened(Target(tmp_path), tmp_path)
    assert target.catalog.suspect
    for part in random_chunks(5, 700, seed=9):  # another set's push, before the look-up has come to its end
        target.put([part])
    target.store.sync()
    target = reopened(target, tmp_path)
    assert target.catalog.suspect
    assert taking(target).left_count == 1
    assert target.catalog.lacking == {b"a"}


def test_a_recipe_that_comes_while_it_is_looked_for_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(tmp_path)
    data = bytes(random_chunks(1, 100_000)[0].stored)
    name, level, records = file_records(data)
    target.put(records)
    assert target.push([file(b"big", (name, level), len(data))]) == []
    target.lose([r.id for r in records], {b"big"})
    (recipe,) = [r for r in records if r.id == name]
    real = module.take_inventory

    async def with_a_session(*args: Any) -> AsyncIterator[Any]:
        async for batch in real(*args):
            await args[1].submit(
                target.put, [recipe]
            )  # what the source was asked for, before it is looked up
            yield batch

    monkeypatch.setattr(module, "take_inventory", with_a_session)
    report = taking(target)
    assert report.left_count == 3  # recipes below the one that came
    assert target.catalog.lacking == {b"big"}
    assert target.push([file(b"other", None, 0)]) != []


def test_a_version_that_lacked_what_another_way_brought_is_judged_anew_in_the_next_minute(
    tmp_path: Path,
) -> None:
    target = Target(tmp_path)
    one, other = random_chunks(2, 700)
    target.put([one, other])
    assert target.push([file(b"a", (one.id, 0), 700)]) == []
    assert target.push([file(b"b", (other.id, 0), 700)]) == []
    target.lose([other.id], {b"b"})

    def verdicts() -> list[int]:
        return [image.verdict for image in target.catalog.images()]

    def judge(ordinal: int, verdict: int, evidence: str | None) -> None:
        with target.catalog.transaction():
            target.catalog.set_verdict(ordinal, verdict, evidence)
            target.catalog.set_meta(module.PROVED, bytes(8))

    async def work(taker: Stocktaker) -> None:
        first, second = target.catalog.images()
        judge(first.ordinal, BAD, "'check' ended with 1")
        await taker.run(lambda _: None)
        assert verdicts() == [BAD, BAD] and taker.lacking
        taker._due = float("inf")
        await taker.again()
        assert verdicts() == [BAD, BAD]
        target.put([other])  # as a restore or a repair of the live tree does
        await taker.again()
        assert verdicts() == [BAD, UNTESTED]  # the owner's command is not taken back
        assert target.catalog.meta(module.PROVED) is None
        # Nothing is lacking: what was read is here by now.
        judge(second.ordinal, BAD, f"{module.EVIDENCE}1 files, one is b")
        await taker.again()
        assert verdicts() == [BAD, UNTESTED]

    taking(target, work)


def test_an_image_that_is_not_complete_hides_nothing_of_the_newest(tmp_path: Path) -> None:
    target = Target(tmp_path)
    old, new = random_chunks(2, 700)
    target.put([old, new])
    assert target.push([file(b"a", (old.id, 0), 700)]) == []
    newest = target.catalog.newest()
    assert newest is not None and newest.id is not None
    changed = [file(b"a", (new.id, 0), 700)]
    digest = digest_of(changed)
    name = image_id(newest.id, SET, INCARNATION, 0, 2, 2, digest)
    header = ImageBegin(
        name, newest.id, newest.id, INCARNATION, 0, 2, 2, digest, 1, 1, 700, DIGEST_SCHEME, False, False
    )
    incoming = target.commit.begin(header)
    target.commit.add(incoming, changed, [])
    target.commit._spill(incoming)  # staged, and then cut off
    target.store.index.remove([old.id])
    target.store.cache._items.clear()
    taking(target)
    assert target.catalog.lacking == {b"a"}
    assert target.push([file(b"b", None, 0)]) == [old.id]


def test_damage_that_a_reader_met_is_known_after_a_restart(tmp_path: Path) -> None:
    target = Target(tmp_path)
    (a,) = random_chunks(1, 700)
    target.put([a])
    target.store.sync()
    assert target.push([file(b"a", (a.id, 0), 700)]) == []
    target.store.tick(force=True)
    where = target.store.locate(a.id)
    assert where is not None
    flip(target.store.packs.path(where.pack), where.offset + where.size - 1)
    target.store.cache._items.clear()
    with pytest.raises(Damaged):
        target.store.get(a.id)
    taking(target)
    assert target.push([file(b"b", None, 0)]) == [a.id]
    target = reopened(target, tmp_path)
    assert target.catalog.suspect
    taking(target)
    assert target.push([file(b"b", None, 0)]) == [a.id]
    target.store.put([a], Lane.BULK, cache=False)
    taking(target)
    assert not target.catalog.suspect
    assert target.push([file(b"b", None, 0)]) == []


def test_what_is_met_damaged_while_an_inventory_walks_is_no_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(tmp_path)
    needed, spare = random_chunks(2, 700)
    target.put([needed, spare])
    assert target.push([file(b"a", (needed.id, 0), 700)]) == []
    target.store.damaged.add(spare.id)
    real = module.take_inventory

    async def with_a_reader(*args: Any) -> AsyncIterator[Any]:
        async for batch in real(*args):
            yield batch
        target.store.damaged.add(needed.id)

    monkeypatch.setattr(module, "take_inventory", with_a_reader)

    async def work(taker: Stocktaker) -> list[bytes]:
        report: Report = await taker.run(lambda _: None)
        return await Maintenance.forget_garbage(SimpleNamespace(agent=taker.agent), report)  # type: ignore[arg-type]

    assert taking(target, work) == [spare.id]
    assert target.store.damaged == {needed.id}


def test_a_doubt_that_comes_while_an_inventory_walks_outlives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(tmp_path)
    one, other = random_chunks(2, 700)
    target.put([one, other])
    target.store.sync()
    changed = [file(b"a", (one.id, 0), 700), file(b"b", (other.id, 0), 700)]
    assert target.push(changed) == []
    target.store.note_lost([])
    real = module.take_inventory

    async def with_a_scrub(*args: Any) -> AsyncIterator[Any]:
        async for batch in real(*args):
            yield batch
        target.store.note_lost([other.id])

    async def work(taker: Stocktaker) -> bool:
        await taker.run(lambda _: None)
        return taker.lacking

    with monkeypatch.context() as patch:
        patch.setattr(module, "take_inventory", with_a_scrub)
        assert taking(target, work)
    target = reopened(target, tmp_path)
    assert target.catalog.suspect
    taking(target)
    assert target.catalog.lacking == {b"b"}


def test_a_catalog_that_is_made_again_while_an_inventory_walks_is_not_judged_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one showed fewer rows than the new one has."""
    target = Target(tmp_path)
    here, lost = random_chunks(2, 700)
    target.put([here])
    target.store.sync()
    assert target.push([file(b"a", (here.id, 0), 700)]) == []
    again = Catalog(tmp_path / "again.db", SET)
    commit(again, [directory(b""), file(b"a", (here.id, 0), 700), file(b"b", (lost.id, 0), 700)])
    again.suspect = True  # as each is that was made again
    real = module.take_inventory

    async def work(taker: Stocktaker) -> None:
        async def with_a_making(*args: Any) -> AsyncIterator[Any]:
            async for batch in real(*args):
                yield batch
            taker.agent.sets.catalogs[SET.hex()] = again

        with monkeypatch.context() as patch:
            patch.setattr(module, "take_inventory", with_a_making)
            await taker.run(lambda _: None)
        assert again.suspect and not again.looked_up
        ref = CatalogRef(SET.hex(), again.path, False, (), again)
        taker.maintenance.catalogs = lambda: [ref]  # type: ignore[method-assign]
        await taker.run(lambda _: None)
        assert again.suspect and again.looked_up and again.lacking == {b"b"}

    taking(target, work)


def losing(place: Path, *, needed: bool) -> Target:
    """A target with two files, whose store lost an object that one of them needs, or nothing does."""
    target = Target(place)
    one, other, spare = random_chunks(3, 700)
    target.put([one, other, spare])
    target.store.sync()
    assert target.push([file(b"a", (one.id, 0), 700), file(b"b", (other.id, 0), 700)]) == []
    target.store.tick(force=True)
    target.store.note_lost([one.id if needed else spare.id])
    return target


def test_a_set_that_cannot_run_at_present_learns_of_a_loss_when_it_does(tmp_path: Path) -> None:
    """A scrub finds damage in what it needs, nobody has that, and its catalog is not open."""
    target = losing(tmp_path, needed=True)

    async def work(taker: Stocktaker) -> Report:
        report: Report = await taker.run(lambda _: None)
        assert taker.lacking  # so that it is asked for again, while somebody may have it
        return report

    assert taking(target, work, runs=False).left_count == 1
    assert target.store.in_doubt
    target = reopened(target, tmp_path)
    assert target.catalog.suspect
    taking(target)
    assert target.catalog.lacking == {b"a"}
    assert target.push([file(b"c", None, 0)]) != []


@pytest.mark.parametrize("removed", [False, True])
def test_a_doubt_is_settled_when_what_does_not_run_lacks_nothing_or_was_removed(
    tmp_path: Path, removed: bool
) -> None:
    target = losing(tmp_path, needed=removed)
    assert taking(target, runs=False, removed=removed).left_count == 0
    assert not target.store.in_doubt
    target = reopened(target, tmp_path)
    assert not target.catalog.suspect


def test_a_set_that_starts_while_the_store_is_in_doubt_is_suspect(tmp_path: Path) -> None:
    target = losing(tmp_path, needed=True)
    told: list[int] = []

    async def look(writer: Writer) -> None:
        sets = SimpleNamespace(store=target.store, writer=writer, doubted=lambda: told.append(1))
        await Sets._compare_with_store(sets, target.catalog)  # type: ignore[arg-type]

    with_writer(look)
    assert target.catalog.suspect and told == [1]
    assert target.catalog.meta("store") is None  # a restart asks as well


def test_a_catalog_that_could_not_be_compared_with_the_store_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(tmp_path, needed=True).catalog.put_away()
    store = Target(tmp_path / "other").store
    (tmp_path / "sets").mkdir()
    (tmp_path / "set.db").rename(tmp_path / "sets" / f"{SET.hex()}.db")

    def full(*_: object) -> None:
        raise CrnodeError("No room.", "", "", ExitCode.FULL)

    async def work(writer: Writer) -> None:
        sets = _sets(tmp_path, store, writer, [])
        with monkeypatch.context() as patch, pytest.raises(CrnodeError, match="No room"):
            patch.setattr(Catalog, "set_meta", full)
            await sets.catalog(SET.hex())
        assert not sets.catalogs
        assert (await sets.catalog(SET.hex())).suspect
        await sets.close()

    with_writer(work)
