"""Manifests and the log of versions: a lost catalog comes back with its versions, whatever the log went
through."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from store_samples import (
    SET,
    commit,
    digest_of,
    directory,
    file,
    flip,
    put_file,
    reachable,
    small_store,
    with_writer,
)

from crnode.agent.sets import Sets
from crnode.errors import CrnodeError, ExitCode
from crnode.store import manifest, rebuild
from crnode.store.catalog import Catalog
from crnode.store.collect import CatalogRef, Outcome, collect
from crnode.store.manifest import (
    ManifestChanged,
    append_line,
    compact_log,
    due,
    is_logged,
    log_path,
    read_log,
    rebuild_log,
    write_manifest,
)
from crnode.store.mark import manifest_entries
from crnode.store.reader import ROLLING, Image
from crnode.store.rebuild import rebuild_catalog
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer
from crproto.entries import Entry

OTHER = bytes(range(100, 116))


def _write(store: ObjectStore, catalog: Catalog, *images: Image) -> list[tuple[bytes, int]]:
    async def work(writer: Writer) -> list[tuple[bytes, int]]:
        return [await write_manifest(store, writer, catalog, image) for image in images]

    return with_writer(work)


def _set(place: Path, files: int = 300) -> tuple[ObjectStore, Catalog, list[Image], list[list[Entry]]]:
    """Three images with folders, changes and removals, and their entries."""
    source = random.Random(2)
    store = small_store(place / "store", 1 << 20)
    catalog = Catalog(place / "sets" / f"{SET.hex()}.db", SET)
    dirs = [b"", b"a", b"a/b", b"a0", b"z"]
    made = [directory(d) for d in dirs]
    for n in range(files):
        data = source.randbytes(source.randint(1, 3000))
        head = source.choice(dirs)
        path = b"%b/file%04d" % (head, n) if head else b"file%04d" % n
        made.append(file(path, put_file(store, data), len(data), mtime_ns=n))
    images = [commit(catalog, made)]
    some = [e for e in made if e.kind == 1]
    images.append(
        commit(catalog, [e._replace(mtime_ns=10**9) for e in some[::5]], [e.path for e in some[1::7]])
    )
    images.append(commit(catalog, [file(b"last", put_file(store, b"last"), 4)], [b"z"]))
    store.sync()
    return store, catalog, images, [list(catalog.walk(i.ordinal)) for i in images]


def test_a_manifest_is_the_image_and_the_same_on_every_node(tmp_path: Path) -> None:
    store, catalog, images, entries = _set(tmp_path, files=2000)
    named = _write(store, catalog, images[0], images[2])
    for (name, level), expected in zip(named, (entries[0], entries[2]), strict=True):
        assert level > 0
        assert list(manifest_entries(name, level, store.get)) == expected
    assert catalog.images()[0].manifest == named[0][0] + bytes([named[0][1]])
    other = Catalog(tmp_path / "other.db", SET)
    commit(other, random.Random(1).sample(entries[0], len(entries[0])))  # other rows, other directory numbers
    assert list(other.walk(1)) == entries[0]
    lines = read_log(log_path(store))
    assert [(line.content, line.level) for line in lines] == named
    assert [line.image.id for line in lines] == [images[0].id, images[2].id]


def test_a_large_one_has_the_borders_of_one_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [random.Random(n).randbytes(700) for n in range(9000)]
    found = []
    for window in (4 << 20, 1 << 20):
        monkeypatch.setattr(manifest, "_WINDOW", window)
        cutter = manifest.ManifestCutter()
        for part in parts:
            cutter.add(part)
        found.append(cutter.finish())
    assert found[0] == found[1]
    assert found[0][1] >= 1


def test_a_lost_catalog_comes_back_with_its_versions(tmp_path: Path) -> None:
    store, catalog, images, entries = _set(tmp_path)
    with catalog.transaction():
        catalog.set_meta("fence_epoch", (7).to_bytes(8, "big"))
        catalog.set_pin(images[0].ordinal, "release 1.4", "asked for")
    _write(store, catalog, images[2], images[0])  # an older one may follow later
    path = catalog.path
    catalog.close()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    done = rebuild_catalog(path, SET, store)
    assert done.images == 2
    assert not done.left_out
    assert not list(path.parent.glob(".*"))
    again = Catalog(path, SET)
    back = again.images()
    assert [i.id for i in back] == [images[0].id, images[2].id]
    assert (back[0].pinned, back[0].name) == (1, "release 1.4")
    assert [list(again.walk(i.ordinal)) for i in back] == [entries[0], entries[2]]
    assert again.digest(again.totals()) == images[2].digest == digest_of(entries[2])
    assert again.meta("fence_epoch") == (7).to_bytes(8, "big")
    assert reachable([again], store)
    more = commit(again, [file(b"more", None, 0)])
    assert more.ordinal == 3
    assert sorted(again.went(1, 2)) == sorted({e.path for e in entries[0]} - {e.path for e in entries[2]})


def test_damage_costs_the_image_that_it_hits(tmp_path: Path) -> None:
    store, catalog, images, entries = _set(tmp_path)
    named = _write(store, catalog, *images)
    where = store.locate(named[2][0])
    assert where is not None
    catalog.close()
    flip(store.packs.path(where.pack), where.offset + 90)
    store.cache = type(store.cache)(0)
    done = rebuild_catalog(tmp_path / "new.db", SET, store)
    assert done.images == 2
    assert len(done.left_out) == 1
    newest = Catalog(tmp_path / "new.db", SET).newest()
    assert newest is not None
    assert newest.id == images[1].id


def test_none_at_all_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    with pytest.raises(CrnodeError, match="rebuilt"):
        rebuild_catalog(tmp_path / "sets" / "new.db", SET, store)
    assert not list((tmp_path / "sets").iterdir())


def test_the_log_bears_a_torn_line_at_every_byte_and_a_rotten_one(tmp_path: Path) -> None:
    store, catalog, images, _ = _set(tmp_path, files=3)
    _write(store, catalog, *images)
    path = log_path(store)
    whole = path.read_bytes()
    lines = read_log(path)
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        kept = lines[:2] if cut < len(whole) - 1 else lines  # only the line's end is missing
        assert read_log(path) == kept
        append_line(path, lines[2])
        assert read_log(path) == [*kept, lines[2]]
    path.write_bytes(whole)
    for at in range(0, last, 7):
        flip(path, at)
        assert lines[2] in read_log(path)
        assert len(read_log(path)) in (1, 2)  # a line's end may be what rotted
        flip(path, at)
    path.write_bytes(whole[:40] + b"?" + whole[41:])
    assert rebuild_log(path) == (2, 1)
    assert read_log(path) == lines[1:]
    assert compact_log(path, lambda line: line.image.id == images[2].id) == 1
    assert read_log(path) == lines[2:]


def test_what_was_pruned_meanwhile_gets_no_manifest(tmp_path: Path) -> None:
    store, catalog, images, _ = _set(tmp_path)
    with catalog.transaction():
        catalog.prune(set(), 100_000)
    with pytest.raises(ManifestChanged):
        _write(store, catalog, images[0])
    assert read_log(log_path(store)) == []


def test_manifests_are_roots_and_waiting_ones_keep_their_images(tmp_path: Path) -> None:
    store, catalog, images, entries = _set(tmp_path)
    named = _write(store, catalog, images[1])

    async def work(writer: Writer) -> Outcome:
        return await collect(store, writer, [CatalogRef(SET.hex(), catalog.path)])

    assert with_writer(work).hole() is None
    assert list(manifest_entries(*named[0], store.get)) == entries[1]
    before = reachable([catalog], store)
    catalog.close()
    shutil.move(catalog.path, tmp_path / "aside")

    async def without(writer: Writer) -> Outcome:
        return await collect(store, writer, [], manifests=named)

    with_writer(without)
    assert rebuild_catalog(catalog.path, SET, store).images == 1
    again = Catalog(catalog.path, SET)
    assert reachable([again], store) <= before


def _image(ordinal: int, *, flags: int = 1, written: bool = False) -> Image:
    from store_samples import blank

    return blank(ordinal)._replace(flags=flags, manifest=b"m" * 33 if written else None)


def test_when_they_are_due() -> None:
    assert due([], [], None, 0.0) is None
    first = _image(1, flags=ROLLING)
    assert due([first], [1], None, 5.0) == first  # right after the first copy
    assert due([first], [1], 5.0, 6.0) is None
    done = _image(1, written=True)
    two, three = _image(2), _image(3, flags=ROLLING)
    assert due([done, two, three], [1, 2, 3], 5.0, 500.0) is None
    assert due([done, two, three], [1, 3], 5.0, 700.0) is None  # the newest is not clean, 2 is not kept
    assert due([done, two, three], [1, 2, 3], 5.0, 700.0) == two
    assert due([done, two, _image(4)], [1, 4], 5.0, 700.0) == _image(4)


def _put_aside(catalog: Catalog) -> Path:
    catalog.put_away()
    return catalog.path.rename(catalog.path.with_name(f"{catalog.path.name}.damaged-1"))


def test_versions_without_a_manifest_come_from_the_rows_that_are_whole(tmp_path: Path) -> None:
    store, catalog, images, entries = _set(tmp_path)
    with catalog.transaction():
        catalog.set_meta("fence_epoch", (9).to_bytes(8, "big"))
        catalog.set_pin(images[0].ordinal, "release 1.4", "asked for")
    _write(store, catalog, images[1])
    with catalog.transaction():  # a byte of a row that only the first image has
        catalog._db.execute("UPDATE entry SET mtime_ns=7 WHERE born=1 AND died=2 AND name!=x''")
    path, aside = catalog.path, _put_aside(catalog)
    done = rebuild_catalog(path, SET, store, aside=aside)
    assert (done.images, done.lost, done.certain) == (2, 1, True)
    assert done.left_out == [f"image {images[0].sequence}: its rows are missing or damaged"]
    again = Catalog(path, SET)
    assert [i.id for i in again.images()] == [images[1].id, images[2].id]
    assert [list(again.walk(i.ordinal)) for i in again.images()] == entries[1:]
    assert again.images()[1].manifest is None
    assert again.meta("fence_epoch") == (9).to_bytes(8, "big")
    assert again.digest(again.totals()) == images[2].digest


def test_rows_that_are_whole_stand_in_for_a_damaged_manifest(tmp_path: Path) -> None:
    store, catalog, images, entries = _set(tmp_path)
    named = _write(store, catalog, *images)
    where = store.locate(named[0][0])
    assert where is not None
    flip(store.packs.path(where.pack), where.offset + 90)
    store.cache = type(store.cache)(0)
    path, aside = catalog.path, _put_aside(catalog)
    done = rebuild_catalog(path, SET, store, aside=aside)
    assert (done.images, done.lost, done.left_out) == (3, 0, [])
    again = Catalog(path, SET)
    assert [list(again.walk(i.ordinal)) for i in again.images()] == entries


def test_a_catalog_of_which_nothing_can_be_read_leaves_what_is_lost_uncertain(tmp_path: Path) -> None:
    store, catalog, images, _ = _set(tmp_path, files=20)
    _write(store, catalog, images[2])
    path, aside = catalog.path, _put_aside(catalog)
    aside.write_bytes(b"no database" * 1000)
    done = rebuild_catalog(path, SET, store, aside=aside)
    assert (done.images, done.lost, done.certain) == (1, 0, False)


def test_a_disk_that_is_full_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, catalog, images, _ = _set(tmp_path, files=20)
    _write(store, catalog, images[2])
    path, _ = catalog.path, _put_aside(catalog)

    def full(*_: object) -> None:
        raise CrnodeError("No room.", "", "", ExitCode.FULL)

    with monkeypatch.context() as patch, pytest.raises(CrnodeError) as caught:
        patch.setattr(rebuild, "_change", full)
        rebuild_catalog(path, SET, store)
    assert caught.value.exit_code == ExitCode.FULL
    assert rebuild_catalog(path, SET, store).images == 1
    assert is_logged(log_path(store), SET) and not is_logged(log_path(store), OTHER)


def _sets(place: Path, store: ObjectStore, writer: Writer, said: list[str]) -> Sets:
    """The sets of a node that has none yet; what its journal says goes to `said`."""
    node: Any = SimpleNamespace(name="box1", destinations=())
    return Sets(
        place, node, store, writer, dial=None, heal=None,
        journal=lambda kind, text, *_: said.append(text), now_ns=lambda: 10**18,
        crashed=lambda _: None, doubted=lambda: None,
    )  # type: ignore[arg-type]  # fmt: skip


def test_a_full_disk_leaves_a_damaged_catalog_for_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, catalog, images, _ = _set(tmp_path, files=20)
    path = catalog.path
    catalog.put_away()
    db = apsw.Connection(str(path))
    db.execute("DELETE FROM meta WHERE key='set'")
    db.close()
    said: list[str] = []

    def full(*_: object) -> None:
        raise CrnodeError("No room.", "", "", ExitCode.FULL)

    async def work(writer: Writer) -> list[bytes | None]:
        sets = _sets(tmp_path, store, writer, said)
        with monkeypatch.context() as patch, pytest.raises(CrnodeError, match="No room"):
            patch.setattr(rebuild, "_change", full)
            await sets.catalog(SET.hex())
        assert path.exists() and not said
        made = await sets.catalog(SET.hex())
        found = [image.id for image in made.images()]
        await sets.close()
        return found

    assert with_writer(work) == [image.id for image in images]
    assert "made again with 3 of its versions." in said[0]
    assert "lost" not in said[0]


def test_a_catalog_whose_making_was_cut_off_is_made_from_the_same_rows(tmp_path: Path) -> None:
    """A kill between the rename of the damaged file and the end of the rebuild."""
    store, catalog, images, _ = _set(tmp_path, files=20)
    path = catalog.path
    catalog.put_away()
    path.rename(path.with_name(f"{path.name}.damaged-1000"))
    (store.directory / "catalogs").write_text(f"{SET.hex()}\n")
    said: list[str] = []

    async def work(writer: Writer) -> list[bytes | None]:
        sets = _sets(tmp_path, store, writer, said)
        found = [image.id for image in (await sets.catalog(SET.hex())).images()]
        await sets.close()
        return found

    assert with_writer(work) == [image.id for image in images]
    assert "set aside before" in said[0]
