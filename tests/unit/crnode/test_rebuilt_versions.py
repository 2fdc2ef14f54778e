"""Which versions a catalog has that was made again, and what is known of them: no more than were there, with
the names that they had, and none is missed in silence."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from store_samples import (
    SET,
    blank,
    commit,
    directory,
    file,
    put_file,
    reachable,
    small_store,
    with_writer,
)
from test_catalog_aside import maintenance_of, opened
from test_manifest import _set, _sets, _write

from crnode.agent import remaking
from crnode.agent.node import Agent
from crnode.replicate.commit import TargetCommit
from crnode.store import manifest
from crnode.store.catalog import Catalog
from crnode.store.collect import CatalogRef, Outcome, collect
from crnode.store.reader import Image, open_reader
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer


def spoil(catalog: Catalog) -> None:
    """Any damage that is found when the catalog is opened, though each row can be read."""
    with catalog.transaction():
        catalog.set_meta("set", None)
    catalog.put_away()


@pytest.mark.parametrize("row", [True, False])
def test_a_version_that_is_kept_stays_so(tmp_path: Path, row: bool) -> None:
    """Kept because the source went back behind it, after its manifest was written; with `row` or by the log
    alone."""
    store, catalog, _, _ = _set(tmp_path, files=20)
    newest = catalog.newest()
    assert newest is not None
    _write(store, catalog, newest)
    target = TargetCommit(catalog, store, archive=False, now_ns=lambda: 0, retain_roots=set)
    header: Any = SimpleNamespace(parent=b"\1" * 32, skips=False, incarnation=b"\2" * 16)
    with catalog.transaction():
        target._keep_other_line(header, newest)
    held = catalog.image_at(newest.ordinal)
    assert held is not None and held.name == f"diverged {newest.at_ns // 10**9}"
    spoil(catalog)
    if not row:
        catalog.path.unlink()
    opened(tmp_path, store, [])
    made = Catalog(catalog.path, SET).image(newest.id or b"")
    assert made is not None and (made.pinned, made.name, made.why) == (1, held.name, held.why)


def test_one_that_is_not_kept_any_more_is_not(tmp_path: Path) -> None:
    """A kill came between its row and its line in the log."""
    store, catalog, images, _ = _set(tmp_path, files=20)
    with catalog.transaction():
        catalog.set_pin(images[2].ordinal, "release", "pinned by a person")
    _write(store, catalog, images[2])
    with catalog.transaction():
        catalog.unpin(images[2].ordinal)
    spoil(catalog)
    opened(tmp_path, store, [])
    made = Catalog(catalog.path, SET).image(images[2].id or b"")
    assert made is not None and (made.pinned, made.name) == (0, None)


@pytest.mark.parametrize("later", [None, b"gone"])
def test_an_image_on_its_way_hides_nothing_of_what_an_archive_keeps(
    tmp_path: Path, later: bytes | None
) -> None:
    """It has the path again; `later`: and deletes it in another step."""
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "sets" / f"{SET.hex()}.db", SET)
    only, _ = named = put_file(store, b"the only copy of it", 4)
    commit(catalog, [directory(b""), file(b"gone", named, 19)])
    commit(catalog, [], [b"gone"])
    newest = commit(catalog, [file(b"more", put_file(store, b"y"), 1)])
    store.sync()
    with catalog.transaction():
        while catalog.prune({newest.ordinal}, 500, spare_deleted=True):
            pass
    ordinal = catalog.next_ordinal()
    with catalog.transaction():
        catalog.begin(blank(ordinal))
        totals = catalog.change(ordinal, catalog.totals(), [file(b"gone", put_file(store, b"z"), 1)])
        totals = catalog.change(ordinal, totals, [file(b"here", put_file(store, b"z"), 1)])
        if later is not None:
            totals = catalog.change(ordinal, totals, [], [later])
        catalog.save_staged(totals)
    spoil(catalog)
    said: list[str] = []
    opened(tmp_path, store, said)
    again = Catalog(catalog.path, SET)
    assert only in reachable([again], store) and not again.history(b"here")
    assert not any("what it kept" in text for text in said)


def pruned(place: Path) -> tuple[ObjectStore, Catalog, Image, Image, list[bytes]]:
    """A set whose first version was pruned and collected, though the log names it still: the store, the
    catalog, both images, and what of the store the second one needs."""
    source = random.Random(1)
    store = small_store(place / "store")
    catalog = Catalog(place / "sets" / f"{SET.hex()}.db", SET)
    big = put_file(store, source.randbytes(300_000))
    first = commit(catalog, [directory(b""), file(b"big", big, 300_000)])
    live = put_file(store, source.randbytes(230_000))
    store.sync()
    _write(store, catalog, first)
    also = put_file(store, source.randbytes(200_000))
    second = commit(catalog, [file(b"live", live, 230_000), file(b"also", also, 200_000)], [b"big"])
    with catalog.transaction():
        catalog.prune({second.ordinal}, 10_000)
    store.sync()

    async def work(writer: Writer) -> Outcome:
        return await collect(store, writer, [CatalogRef(SET.hex(), catalog.path, catalog=catalog)])

    assert with_writer(work).hole() is None and store.missing([big[0]])
    return store, catalog, first, second, sorted(name for name, _ in catalog.contents())


def test_what_was_pruned_does_not_come_back_from_the_log(tmp_path: Path) -> None:
    store, catalog, _, second, needed = pruned(tmp_path)
    spoil(catalog)
    said: list[str] = []
    assert opened(tmp_path, store, said) == [second.id]
    assert sorted(name for name, _ in Catalog(catalog.path, SET).contents()) == needed
    assert not store.missing(needed) and "lost" not in said[0].split("If this is an archive")[0]


def test_what_came_after_all_that_is_named_does(tmp_path: Path) -> None:
    """What waits may be from before the catalog that was lost."""
    store, catalog, images, _ = _set(tmp_path, files=20)
    older = catalog.path.with_name(f"{catalog.path.name}.damaged-5")
    with catalog.transaction():
        catalog.set_meta("set", None)
    catalog.checkpoint()
    older.write_bytes(catalog.path.read_bytes())
    with catalog.transaction():
        catalog.set_meta("set", SET)
    newest = commit(catalog, [directory(b"newest")])
    store.sync()
    _write(store, catalog, newest)
    catalog.put_away()
    catalog.path.unlink()
    assert opened(tmp_path, store, []) == [*(image.id for image in images), newest.id]


@pytest.mark.parametrize("waits", [False, True])
def test_a_manifest_whose_content_is_gone_stops_no_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """What was set aside lies there still, or (`waits`) there is no catalog at all at present."""
    store, catalog, first, second, needed = pruned(tmp_path)
    dead = put_file(store, random.Random(2).randbytes(300_000))
    store.sync()
    spoil(catalog)
    if waits:
        catalog.path.rename(f"{catalog.path}.damaged-5")
    said: list[str] = []

    async def run(writer: Writer) -> None:
        sets = _sets(tmp_path, store, writer, [])
        if not waits:
            await sets.catalog(SET.hex())
        house = maintenance_of(tmp_path, store, writer, sets, said)
        out = await house._collect(False, lambda _: None)
        assert out.hole() is None and out.removed_bytes > 200_000
        assert any(line.image.id == first.id for line in manifest.read_log(manifest.log_path(store)))
        await sets.close()

    with_writer(run)
    assert not any("Nothing was collected" in text for text in said)
    assert store.missing([dead[0]]) and not store.missing(needed)
    assert opened(tmp_path, store, []) == [second.id]


def test_a_collection_has_the_log_forget_what_was_pruned(tmp_path: Path) -> None:
    """So that it does not come back where nothing but the log is left."""
    store, catalog, first, second, _ = pruned(tmp_path)
    _write(store, catalog, second)
    catalog.close()
    log = manifest.log_path(store)

    async def run(writer: Writer) -> None:
        sets = _sets(tmp_path, store, writer, [])
        house = maintenance_of(tmp_path, store, writer, sets, [])
        for plan, there in ((False, True), (True, True), (False, False)):
            await house._collect(plan, lambda _: None)
            assert any(line.image.id == first.id for line in manifest.read_log(log)) == there
            await sets.catalog(SET.hex())  # of a set that is not open nobody knows what was pruned
        await sets.close()

    with_writer(run)
    catalog.path.unlink()
    assert opened(tmp_path, store, []) == [second.id]


@pytest.mark.parametrize("logged", [False, True])
def test_an_image_that_the_index_alone_names_is_missed(tmp_path: Path, logged: bool) -> None:
    """One bit in the head of its page makes a table end before its last row; nothing else shows it."""
    store, catalog, images, _ = _set(tmp_path, files=20)
    if logged:
        _write(store, catalog, images[2])
    path = catalog.path
    catalog.put_away()
    db = apsw.Connection(str(path))
    (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name='image'").fetchone()
    db.close()
    data = bytearray(path.read_bytes())
    at = (root - 1) * 4096 + 4  # the number of rows
    assert data[at] == 3
    data[at] = 2
    path.write_bytes(data)
    with open_reader(path) as reader:
        assert reader.quick_check() != "ok"
        assert [len(reader.readable_images()[0]), reader.readable_images()[1]] == [2, False]
    said = remaking.make_again(path, SET, store, "damaged", 10**18, sourced=False)
    assert "Which others there were cannot be read: versions may be lost." in said
    with open_reader(path) as reader:
        assert [image.id for image in reader.images()] == [image.id for image in images[: 2 + logged]]


def test_images_that_do_not_fit_have_the_catalog_looked_at_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They come again and again, and may be what is wrong."""
    agent: Any = object.__new__(Agent)
    looked: list[str] = []

    async def look(uuid: str) -> None:
        looked.append(uuid)

    agent._doubted, agent._look_at_catalog = {}, look
    agent._in_background = lambda work, _: asyncio.run(work)
    for uuid in ("one", "one", "two"):
        agent._catalog_doubtful(uuid)
    assert looked == ["one", "two"]
    monkeypatch.setattr("crnode.agent.node.DOUBT_SECONDS", 0.0)
    agent._catalog_doubtful("one")
    assert looked == ["one", "two", "one"]
