"""Inventory: what the rows need and the store cannot give is named, with the images that are not whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from store_samples import SET, chunk, commit, file, flip, put_file, random_chunks, small_store, with_writer

from crnode.store.catalog import Catalog
from crnode.store.collect import CatalogRef
from crnode.store.inventory import MANIFEST, Inventory, Lacking, merged, take_inventory
from crnode.store.packs import Lane, Record
from crnode.store.reader import OPEN
from crnode.store.store import CHUNK, RECIPE, ObjectStore
from crnode.store.writer import Writer

OTHER = bytes(range(100, 116))


def _take(store: ObjectStore, *catalogs: Catalog, source: bool = False) -> tuple[list[Lacking], Inventory]:
    refs = [CatalogRef(c.set_uuid.hex(), c.path, source, ("box2",), c) for c in catalogs]

    async def work(writer: Writer) -> tuple[list[Lacking], Inventory]:
        out = Inventory()
        found = [one async for batch in take_inventory(store, writer, refs, out) for one in batch]
        return found, out

    return with_writer(work)


def _spoil(store: ObjectStore, name: bytes) -> None:
    where = store.locate(name)
    assert where is not None
    flip(store.packs.path(where.pack), where.offset + where.size - 1)
    store.damaged.add(name)


def test_a_whole_store_lacks_nothing(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "one.db", SET)
    data = b"x" * 3000 + b"y" * 3000
    commit(catalog, [file(b"large", put_file(store, data), len(data)), file(b"empty", None, 0)])
    store.sync()
    found, out = _take(store, catalog)
    assert found == []
    assert out.certain and out.ids > 3
    assert out.sets[SET.hex()].spans == []


def test_damaged_and_missing_objects_are_named_with_set_path_and_images(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    one, two = Catalog(tmp_path / "one.db", SET), Catalog(tmp_path / "two.db", OTHER)
    plain, both, nobody, never = random_chunks(4, 700)
    store.put([plain, both, nobody], Lane.BULK, cache=False)
    inside = random_chunks(1, 512, seed=9)[0]
    data = bytes(inside.stored) + bytes(5000)
    named = put_file(store, data)
    first = commit(one, [file(b"plain", (plain.id, 0), 700), file(b"both", (both.id, 0), 700)])
    second = commit(one, [file(b"never", (never.id, 0), 700)], [b"plain"])
    commit(two, [file(b"both", (both.id, 0), 700), file(b"large", named, len(data))])
    for name in (plain.id, nobody.id, inside.id):
        _spoil(store, name)
    found, out = _take(store, one, two)
    assert {(f.set, f.id, f.kind, f.path, f.died == OPEN) for f in found} == {
        (SET.hex(), plain.id, CHUNK, b"plain", False),
        (SET.hex(), never.id, CHUNK, b"never", True),
        (OTHER.hex(), inside.id, CHUNK, b"large", True),
    }
    assert out.certain  # every recipe could be read: `nobody` is garbage
    here = out.sets[SET.hex()]
    assert here.rows == 2
    assert here.touches(first.ordinal) and here.touches(second.ordinal)
    assert not here.touches(0)


def test_what_the_newest_image_needs_is_told_although_an_older_one_needed_it_first(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "one.db", SET)
    lost = random_chunks(1, 600)[0]
    data = bytes(lost.stored[:512]) + bytes(2000)
    named = put_file(store, data)
    part = chunk(data[:512])
    commit(catalog, [file(b"a", named, len(data))])
    commit(catalog, [file(b"z", named, len(data))], [b"a"])  # the same recipe, met at `a` first
    _spoil(store, part.id)
    found, _ = _take(store, catalog)
    assert [(f.path, f.died == OPEN) for f in found] == [(b"a", False), (b"z", True)]


def test_a_missing_recipe_hides_what_is_below_it(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "one.db", SET)
    data = bytes(random_chunks(1, 5000)[0].stored)
    name, level = put_file(store, data)
    recipe = store.get(name)
    commit(catalog, [file(b"f", (name, level), 5000)])
    part = chunk(data[:512])
    _spoil(store, name)
    _spoil(store, part.id)
    found, out = _take(store, catalog)
    assert [(f.id, f.kind) for f in found] == [(name, RECIPE)]
    assert not out.certain  # so the chunk must not be taken for garbage
    store.put([Record(name, RECIPE, 0, len(recipe), recipe)], Lane.BULK)
    store.sync()
    found, out = _take(store, catalog)
    assert [(f.id, f.kind) for f in found] == [(part.id, CHUNK)]
    assert out.certain


def test_an_emptied_store_lacks_everything_and_a_manifest_is_told_by_its_own_id(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "one.db", SET)
    records = random_chunks(5000, 40)
    image = commit(catalog, [file(b"%05d" % n, (r.id, 0), 40) for n, r in enumerate(records)])
    with catalog.transaction():
        catalog.set_manifest(image.ordinal, bytes(range(32)), 1)
    found, out = _take(store, catalog)
    assert {f.id for f in found if f.kind == CHUNK} == {r.id for r in records}
    lost = [f for f in found if f.kind == MANIFEST]
    assert lost == [Lacking(SET.hex(), bytes(range(32)), MANIFEST, None, 0, 0)]
    assert out.sets[SET.hex()].rows == 5000


def test_a_source_needs_recipes_alone_once_its_targets_have_the_image(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "one.db", SET)
    name, level = put_file(store, b"q" * 2000)
    lost = random_chunks(1, 100)[0]
    image = commit(catalog, [file(b"big", (name, level), 2000), file(b"small", (lost.id, 0), 100)])
    assert [f.id for f in _take(store, catalog, source=True)[0]] == [lost.id]  # nobody has it yet
    assert image.id is not None
    with catalog.transaction():
        catalog.set_cursor("box2", image.id, image.ordinal, 0)
    assert _take(store, catalog, source=True)[0] == []


def test_a_catalog_that_cannot_be_read_makes_nothing_certain(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "one.db", SET)
    catalog.close()
    catalog.path.write_bytes(b"no database" * 1000)
    found, out = _take(store, catalog)
    assert found == [] and not out.certain
    assert out.sets[SET.hex()].unreadable


def test_intervals_are_merged() -> None:
    assert merged([(5, 7), (1, 3), (3, 4), (6, 9)]) == [(1, 4), (5, 9)]


def test_a_store_knows_whether_it_is_the_one_that_a_mark_was_taken_from(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    store.put(random_chunks(10, 500), Lane.SMALL)
    store.sync()
    early = store.mark()
    older = tmp_path / "older"
    store.close()
    shutil.copytree(tmp_path / "store", older)
    store = small_store(tmp_path / "store")
    assert store.holds(early)
    store.put(random_chunks(200, 2000, seed=5), Lane.BULK)
    store.sync()
    late = store.mark()
    assert store.holds(early) and store.holds(late)
    store.close()
    back = small_store(older)  # put back from a copy: the same store, and not as far
    assert back.holds(early) and not back.holds(late)
    back.close()
    other = small_store(tmp_path / "other")
    assert not other.holds(early)
    other.close()
    shutil.rmtree(tmp_path / "store")
    made_anew = small_store(tmp_path / "store")
    assert not made_anew.holds(late)
    made_anew.close()


def test_collection_of_old_packs_is_no_loss(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", 10_000)
    store.put(random_chunks(10, 500), Lane.SMALL)
    store.sync()
    mark = store.mark()
    store.put(random_chunks(100, 500, seed=3), Lane.SMALL)
    store.sync()
    first = store.packs.numbers()[0]
    store.tick(force=True)
    store.index.remove([name for name, where in store.index.items() if where.pack == first])
    store.forget_pack(first)
    store.packs.remove(first)
    store.close()
    again = small_store(tmp_path / "store", 10_000)
    assert not again.recovery.lost_packs
    assert again.holds(mark)
    again.close()
