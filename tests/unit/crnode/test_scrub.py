"""Scrub: every damaged object is found and named with who needs it; once healed, a second scrub is clean."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from store_samples import SET, chunk, commit, file, flip, put_file, random_chunks, small_store, with_writer

from crnode.store.catalog import Catalog
from crnode.store.collect import CatalogRef
from crnode.store.packs import Lane, Record
from crnode.store.scrub import Findings, forget_garbage, scrub, who_needs
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer

OTHER = bytes(range(100, 116))


def _scrub(store: ObjectStore, *catalogs: Catalog, bytes_per_second: int = 0) -> Findings:
    refs = [CatalogRef(c.set_uuid.hex(), c.path, catalog=c) for c in catalogs]

    async def work(writer: Writer) -> Findings:
        return await scrub(store, writer, refs, bytes_per_second=bytes_per_second)

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


def test_damage_is_found_named_and_clean_after_healing(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    one, two = Catalog(tmp_path / "one.db", SET), Catalog(tmp_path / "two.db", OTHER)
    plain, both, nobody = random_chunks(3, 700)
    store.put([plain, both, nobody], Lane.BULK, cache=False)
    inside = random_chunks(1, 512, seed=9)[0]
    data = bytes(inside.stored) + bytes(5000)
    named = put_file(store, data)
    recipe = store.get(named[0])
    commit(one, [file(b"plain", (plain.id, 0), 700), file(b"both", (both.id, 0), 700)])
    commit(two, [file(b"both", (both.id, 0), 700), file(b"large", named, len(data))])
    for name in (plain.id, both.id, nobody.id, inside.id):
        _spoil(store, name)
    found = _scrub(store, one, two)
    assert {d.id: set(d.sets) for d in found.damaged} == {
        plain.id: {SET.hex()}, both.id: {SET.hex(), OTHER.hex()}, nobody.id: set(), inside.id: {OTHER.hex()},
    }  # fmt: skip
    assert found.certain
    assert store.damaged == {d.id for d in found.damaged}
    assert set(store.missing([plain.id, named[0]])) == {plain.id}
    _heal(store, [plain, both, inside])
    assert forget_garbage(store, [nobody.id, plain.id]) == [nobody.id]
    again = _scrub(store, one, two)
    assert not again.damaged
    assert again.stretches  # the old places stay damaged until collection takes their packs
    assert not store.damaged
    assert store.get(named[0]) == recipe
    store.close()


def test_a_damaged_recipe_hides_who_needs_its_chunks(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "one.db", SET)
    data = random_chunks(1, 5000)[0].stored
    name, level = put_file(store, bytes(data))
    recipe = store.get(name)
    commit(catalog, [file(b"f", (name, level), 5000)])
    part = chunk(bytes(data[:512]))
    _spoil(store, name)
    _spoil(store, part.id)
    found = _scrub(store, catalog)
    assert {d.id: d.sets for d in found.damaged} == {name: (SET.hex(),), part.id: ()}
    assert not found.certain  # so the chunk must not be taken for garbage
    _heal(store, [Record(name, 1, 0, len(recipe), recipe)])

    async def work(writer: Writer) -> tuple[dict[bytes, list[str]], bool]:
        return await who_needs(store, writer, [CatalogRef(SET.hex(), catalog.path)], [part.id])

    assert with_writer(work) == ({part.id: [SET.hex()]}, True)


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
