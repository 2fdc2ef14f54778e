"""A catalog that cannot be used is set aside and made again, whatever happens meanwhile: it costs no version
that can still be read, and none is called damaged that is whole."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from store_samples import SET, blank, with_writer
from test_manifest import _set, _sets, _write

from crnode.agent.sets import Sets
from crnode.platform.files import boot_id
from crnode.store.catalog import Catalog
from crnode.store.manifest import in_order, rebuild_catalog
from crnode.store.reader import Image, Live
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer

UUID = SET.hex()


def opened(
    place: Path,
    store: ObjectStore,
    said: list[str],
    work: Callable[[Sets, Catalog], Awaitable[Any]] | None = None,
) -> list[bytes | None]:
    """Open the catalog as a start of the agent does; the ids of its images, oldest first."""

    async def run(writer: Writer) -> list[bytes | None]:
        sets = _sets(place, store, writer, said)
        try:
            catalog = await sets.catalog(UUID)
            if work is not None:
                await work(sets, catalog)
            return [image.id for image in catalog.images()]
        finally:
            await sets.close()

    return with_writer(run)


def started(place: Path, store: ObjectStore, said: list[str]) -> tuple[str, int]:
    """Start the set as a document does: why it was refused, and how often another attempt was asked for."""
    asked: list[int] = []

    async def run(writer: Writer) -> tuple[str, int]:
        sets = _sets(place, store, writer, said)
        sets.later = lambda: asked.append(1)
        spec: Any = SimpleNamespace(uuid=UUID, name="docs")

        async def start() -> None:
            await sets.catalog(UUID)

        try:
            await sets._guarded(spec, start)
            return sets.refused.get(UUID, ""), len(asked)
        finally:
            await sets.close()

    return with_writer(run)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB on which there is a folder `sets`; it is filled by :func:`fill`."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=2m none {place} 2>/dev/null") != 0:
        pytest.skip("needs to mount a tmpfs")
    try:
        (place / "sets").mkdir()
        yield place
    finally:
        os.system(f"umount {place}")


def fill(place: Path) -> None:
    with open(place / "filler", "wb", 0) as filler, pytest.raises(OSError, match="space"):
        while True:
            filler.write(bytes(4096))


def test_a_catalog_that_somebody_has_locked_waits_and_is_whole(tmp_path: Path) -> None:
    store, catalog, images, _ = _set(tmp_path, files=20)
    path = catalog.path
    catalog.put_away()
    other = apsw.Connection(str(path))  # sqlite3 of an administrator
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    other.execute("UPDATE meta SET value=value")
    said: list[str] = []
    why, again = started(tmp_path, store, said)
    assert "locked" in why and why in said[0] and again == 1
    assert not any("set aside" in text for text in said)
    other.execute("COMMIT")
    other.close()
    assert started(tmp_path, store, said) == ("", 0)
    assert not list(path.parent.glob("*.damaged-*"))
    assert opened(tmp_path, store, said) == [i.id for i in images]


def test_a_catalog_that_is_opened_on_a_full_disk_waits_for_room(tmp_path: Path, full_disk: Path) -> None:
    store, catalog, images, _ = _set(tmp_path, files=20)
    path = catalog.path
    catalog.put_away()
    (full_disk / "sets" / path.name).write_bytes(path.read_bytes())
    fill(full_disk)
    said: list[str] = []
    why, again = started(full_disk, store, said)
    assert why and again == 1
    assert not list((full_disk / "sets").glob("*.damaged-*"))
    (full_disk / "filler").unlink()
    assert started(full_disk, store, said) == ("", 0)
    assert opened(full_disk, store, said) == [i.id for i in images]


def spoil_row(path: Path, change: str) -> None:
    """Change rows of `image` to values that its schema forbids, as a flipped bit does."""
    db = apsw.Connection(str(path))
    db.execute("DELETE FROM meta WHERE key='set'")  # found when the catalog is opened
    (sql,) = db.execute("SELECT sql FROM sqlite_schema WHERE name='image'").fetchone()
    plain = sql.replace("STRICT", "").replace("NOT NULL", "")
    for text in (plain, sql):
        db.execute("PRAGMA writable_schema=1")
        db.execute("UPDATE sqlite_schema SET sql=? WHERE name='image'", (text,))
        db.execute("PRAGMA writable_schema=RESET")
        if text == plain:
            db.execute(f"UPDATE image SET {change}")
    db.close()


@pytest.mark.parametrize(
    "value",
    [
        "received_ns=received_ns+0.5", "received_ns=NULL", "sequence=-1", "sequence=NULL", "at_ns='soon'",
        "parent=NULL", "incarnation=x'00'", "digest=7", "entries=NULL", "pinned=NULL", "manifest=5",
        "state=NULL",
    ],
)  # fmt: skip
def test_an_image_row_that_damage_made_senseless_costs_that_image_alone(tmp_path: Path, value: str) -> None:
    store, catalog, images, _ = _set(tmp_path, files=20)
    path = catalog.path
    catalog.put_away()
    spoil_row(path, f"{value} WHERE ordinal=1")
    said: list[str] = []
    assert started(tmp_path, store, said) == ("", 0)
    assert opened(tmp_path, store, said) == [images[1].id, images[2].id]
    assert "lost" in said[0]


@pytest.mark.parametrize("value", ["name=CAST(x'ff00fe' AS TEXT)", "why=x'ff'", "evidence=5"])
def test_what_damage_made_of_a_note_on_an_image_does_not_cost_the_image(tmp_path: Path, value: str) -> None:
    store, catalog, images, _ = _set(tmp_path, files=20)
    path = catalog.path
    catalog.put_away()
    spoil_row(path, f"{value} WHERE ordinal=1")
    said: list[str] = []
    assert started(tmp_path, store, said) == ("", 0)
    assert opened(tmp_path, store, said) == [image.id for image in images]


@pytest.mark.parametrize("value", ["NULL", "5", "'a'", "zeroblob(40)"])
def test_notes_of_a_damaged_catalog_that_make_no_sense_are_left_out(tmp_path: Path, value: str) -> None:
    store, catalog, images, _ = _set(tmp_path, files=20)
    with catalog.transaction():
        catalog.set_meta("fence_epoch", bytes(8))
    path = catalog.path
    catalog.put_away()
    db = apsw.Connection(str(path))
    (sql,) = db.execute("SELECT sql FROM sqlite_schema WHERE name='meta'").fetchone()
    for text in (sql.replace("STRICT", "").replace("value BLOB", "value"), sql):
        db.execute("PRAGMA writable_schema=1")
        db.execute("UPDATE sqlite_schema SET sql=? WHERE name='meta'", (text,))
        db.execute("PRAGMA writable_schema=RESET")
        if text != sql:
            db.execute(f"UPDATE meta SET value={value} WHERE key IN ('set','fence_epoch')")
    db.close()
    said: list[str] = []
    assert started(tmp_path, store, said) == ("", 0)
    assert opened(tmp_path, store, said) == [image.id for image in images]


def put_aside(catalog: Catalog, store: ObjectStore) -> Path:
    """As a kill leaves it between the set-aside and the end of the making."""
    aside = catalog.path.with_name(f"{catalog.path.name}.damaged-1000")
    catalog.put_away()
    catalog.path.rename(aside)
    (store.directory / "catalogs").write_text(f"{UUID}\n")
    return aside


def test_a_catalog_has_its_live_tree_from_the_moment_it_is_there(tmp_path: Path) -> None:
    store, catalog, _, _ = _set(tmp_path, files=20)
    rebuild_catalog(catalog.path, SET, store, aside=put_aside(catalog, store))  # killed when it was in place
    found: list[Live | None] = []

    async def look(_: Sets, made: Catalog) -> None:
        found.append(made.live())

    opened(tmp_path, store, [], look)
    assert found == [Live(0, 3, 0, "moving", boot_id())]


def test_an_image_that_came_while_the_clock_was_ahead_does_not_become_the_newest(tmp_path: Path) -> None:
    store, catalog, images, _ = _set(tmp_path, files=20)
    with catalog.transaction():
        catalog._db.execute("UPDATE image SET received_ns=received_ns+3600000000000 WHERE ordinal=2")
    rebuild_catalog(catalog.path, SET, store, aside=put_aside(catalog, store))
    assert opened(tmp_path, store, []) == [image.id for image in images]


def test_so_it_is_for_images_of_which_the_manifests_alone_are_left(tmp_path: Path) -> None:
    store, catalog, images, _ = _set(tmp_path, files=20)
    with catalog.transaction():
        catalog._db.execute("UPDATE image SET received_ns=received_ns+3600000000000 WHERE ordinal=2")
    _write(store, catalog, images[2], *catalog.images()[:2])
    put_aside(catalog, store).unlink()
    assert opened(tmp_path, store, []) == [image.id for image in images]


def _image(line: bytes, sequence: int, at: int, received: int, ordinal: int = 0) -> Image:
    return blank(ordinal)._replace(
        id=line * 31 + bytes([sequence]), incarnation=line * 16, sequence=sequence, at_ns=at,
        received_ns=received,
    )  # fmt: skip


def test_the_order_of_images_follows_the_catalog_then_sequences_then_both_clocks() -> None:
    a1, a2, a5 = (_image(b"a", n, n, n, ordinal=n) for n in (1, 2, 5))
    b1 = _image(b"b", 1, 10, 10, ordinal=6)
    held = [a1, a2, a5, b1]
    assert in_order(held, [a5, a1]) == held
    ahead = _image(b"a", 3, 3, 99)  # received by a clock that was ahead, pruned since
    assert in_order(held, [ahead]) == [a1, a2, ahead, a5, b1]
    assert in_order(held, [_image(b"b", 2, 1, 1)])[-1].sequence == 2  # the next one, whatever clocks said
    older = _image(b"c", 9, 7, 99)  # of a line that the catalog does not hold any more
    assert in_order(held, [older]) == [a1, a2, a5, older, b1]
    newer = _image(b"c", 1, 11, 11)
    assert in_order(held, [newer]) == [*held, newer]
    assert in_order([], [b1._replace(ordinal=0), ahead, a1._replace(ordinal=0)]) == [
        a1._replace(ordinal=0), ahead, b1._replace(ordinal=0)
    ]  # fmt: skip
