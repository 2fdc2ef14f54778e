"""Scrub: every damaged object is found; once healed, a second scrub is clean."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from store_samples import flip, random_chunks, small_store, with_writer

from crnode.store.inventory import forget_garbage
from crnode.store.packs import Lane, Record
from crnode.store.scrub import Findings, scrub
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer


def _scrub(store: ObjectStore, bytes_per_second: int = 0) -> Findings:
    async def work(writer: Writer) -> Findings:
        return await scrub(store, writer, bytes_per_second=bytes_per_second)

    return with_writer(work)


def _spoil(store: ObjectStore, name: bytes) -> None:
    where = store.locate(name)
    assert where is not None
    flip(store.packs.path(where.pack), where.offset + where.size - 1)


def _heal(store: ObjectStore, records: list[Record]) -> None:
    store.put(records, Lane.BULK, cache=False)
    store.sync()


def test_a_sound_store_is_clean(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    records = random_chunks(200, 2000)
    store.put(records, Lane.BULK)
    found = _scrub(store)
    assert found.objects == 200
    assert found.bytes == store.packs.total()
    assert not found.damaged
    assert not found.stretches


def test_what_a_scrub_finds_is_not_forgotten_by_a_kill(tmp_path: Path) -> None:
    """Until each catalog was asked what it lacks, a later start takes the store for another one."""
    store = small_store(tmp_path / "store")
    records = random_chunks(3, 700)
    store.put(records, Lane.BULK, cache=False)
    store.sync()
    mark = store.mark()
    assert store.holds(mark)
    _spoil(store, records[1].id)
    assert [rotten.id for rotten in _scrub(store).damaged] == [records[1].id]
    store.close()
    again = small_store(tmp_path / "store")
    assert not again.holds(mark)
    assert again.missing([r.id for r in records]) == [records[1].id]
    settled = again.mark()
    again.note_lost([records[2].id])
    again.settle_doubt(again.doubts)
    again.close()
    last = small_store(tmp_path / "store")
    assert last.holds(settled)
    assert set(last.missing([r.id for r in records])) == {records[1].id, records[2].id}
    last.close()


def test_damage_is_found_and_clean_after_healing(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    records = random_chunks(3, 700)
    store.put(records, Lane.BULK, cache=False)
    for record in records:
        _spoil(store, record.id)
    found = _scrub(store)
    assert {d.id for d in found.damaged} == {r.id for r in records}
    assert store.damaged == {r.id for r in records}
    assert set(store.missing([records[0].id])) == {records[0].id}
    _heal(store, records[:2])
    assert forget_garbage(store, [records[2].id, records[0].id]) == [records[2].id]
    again = _scrub(store)
    assert not again.damaged
    assert again.stretches  # the old places stay damaged until collection takes their packs
    assert not store.damaged
    store.close()


def test_headers_ends_and_whole_packs_that_are_gone(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", 20_000)
    records = random_chunks(100, 1000)
    store.put(records, Lane.BULK, cache=False)
    store.tick(force=True)
    places = {r.id: store.locate(r.id) for r in records}
    first = places[records[0].id]
    assert first is not None
    flip(store.packs.path(first.pack), first.offset + 2)  # the magic
    lost = [r.id for r in records if places[r.id].pack == 2]  # type: ignore[union-attr]
    store.packs.path(2).unlink()
    found = _scrub(store)
    assert {d.id for d in found.damaged} == {records[0].id, *lost}
    _heal(store, records)
    assert not _scrub(store).damaged


def test_an_open_pack_is_read_to_its_last_record_and_moved_records_are_no_damage(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    records = random_chunks(10, 1000)
    store.put(records, Lane.SMALL, cache=False)
    store.sync()
    _spoil(store, records[3].id)
    shutil.copy(store.packs.path(1), tmp_path / "copy")
    store.damaged.add(records[3].id)
    store.put([records[3]], Lane.SMALL, cache=False)
    found = _scrub(store)
    assert not found.damaged
    assert found.objects == 10
    assert len(found.stretches) == 1


def test_the_pace_is_kept(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    store.put(random_chunks(40, 10_000), Lane.BULK)
    begun = time.monotonic()
    _scrub(store, bytes_per_second=400_000)
    assert 0.7 < time.monotonic() - begun < 4
