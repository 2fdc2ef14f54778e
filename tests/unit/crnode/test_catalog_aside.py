"""A catalog that cannot be used is set aside and made again, whatever happens meanwhile: it costs no version
that can still be read, and none is called damaged that is whole."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from rot_samples import Capturing, capturing
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
from test_manifest import _set, _sets, _write

from crnode.agent import remaking
from crnode.agent.heal import Healer
from crnode.agent.maintenance import Maintenance
from crnode.agent.node import Agent
from crnode.agent.sets import Sets
from crnode.capture.commit import SourceCommit
from crnode.capture.source import SourceSet
from crnode.capture.unsure import unsure
from crnode.cluster.document import ReplicationSet, Target
from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import boot_id
from crnode.replicate.commit import TargetCommit
from crnode.store import child, manifest, rebuild
from crnode.store.audit import audit
from crnode.store.catalog import Catalog, CatalogOutOfReach, out_of_reach
from crnode.store.collect import Outcome
from crnode.store.order import in_order
from crnode.store.reader import Image, Live, open_reader
from crnode.store.rebuild import rebuild_catalog
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
            return [image.id for image in sets.catalogs[UUID].images()]
        finally:
            await sets.close()

    return with_writer(run)


def started(
    place: Path, store: ObjectStore, said: list[str], *, sourced: bool = False
) -> tuple[str, int]:
    """Start the set as a document does: why it was refused, and how often another attempt was asked for."""
    asked: list[int] = []

    async def run(writer: Writer) -> tuple[str, int]:
        sets = _sets(place, store, writer, said)
        sets.later = lambda: asked.append(1)
        sets._sourced = {UUID} if sourced else set()
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


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_file_that_cannot_be_renamed_has_its_set_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store, path, ids = unsaved(tmp_path)
    real, seen, said = os.rename, [0], list[str]()

    def rename(old: str, new: str) -> None:
        seen[0] += 1
        if seen[0] > number:
            raise PermissionError(13, "Permission denied", old, None, new)
        real(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        why, again = started(tmp_path, store, said)
    assert f"Permission denied. It is {path}" in why and " to " in why and again == 1
    assert started(tmp_path, store, said) == ("", 0)
    assert opened(tmp_path, store, said) == ids, said


def test_a_source_waits_while_somebody_has_its_catalog_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crnode.capture.source.FULL_RETRY_SECONDS", 0.3)
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_bytes(b"f")
    (tmp_path / "place").mkdir()

    async def work(here: Capturing) -> None:
        other = apsw.Connection(str(here.catalog.path))
        other.execute("BEGIN IMMEDIATE")
        (root / "g").write_bytes(b"g")
        for _ in range(50):
            await asyncio.sleep(0.1)
            if here.source.state == "waiting":
                break
        assert "locked" in here.source.detail
        other.execute("ROLLBACK")
        other.close()
        await asyncio.wait_for(here.source.scan_now(), 10)
        assert here.content(b"g") is not None

    capturing(tmp_path / "place", root, 0.1, work)


def test_a_lock_of_a_moment_is_not_noticed(tmp_path: Path) -> None:
    _, catalog, _, _ = _set(tmp_path, files=2)
    other = apsw.Connection(str(catalog.path))
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.05, other.execute, ("ROLLBACK",))
    timer.start()
    commit(catalog, [directory(b"more")])
    timer.join()
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CatalogOutOfReach, match="locked"):
        commit(catalog, [directory(b"yet more")])
    other.execute("ROLLBACK")
    commit(catalog, [directory(b"yet more")])


def test_a_set_of_which_a_task_ended_by_a_lock_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, catalog, _, _ = _set(tmp_path, files=2)
    done: list[str] = []

    async def run(writer: Writer) -> None:
        sets = _sets(tmp_path, store, writer, [])
        sets.later = lambda: done.append("later")
        sets.crashed = lambda _: done.append("crashed")
        spec: Any = SimpleNamespace(uuid=UUID, name="docs")

        async def ends() -> None:
            raise out_of_reach(catalog.path, apsw.BusyError("locked"))

        async def did(what: str) -> None:
            done.append(what)

        sets.sources[UUID] = None  # type: ignore[assignment]
        monkeypatch.setattr(sets, "_stop_source", lambda uuid: did("stopped"))
        monkeypatch.setattr(sets, "_source", lambda spec: did("started"))
        await asyncio.wait([sets._task(ends(), "push to box2", spec)])
        await asyncio.sleep(0)
        assert "locked" in sets.refused[UUID]
        document: Any = SimpleNamespace(
            sets_from=lambda _: [spec], sets_to=lambda _: [], sets=[], tombstones=[]
        )
        await sets.apply(document)
        await sets.apply(document)
        assert done == ["later", "stopped", "started", "started"] and not sets.refused
        sets.sources.clear()
        await sets.close()

    with_writer(run)


def test_housekeeping_goes_on_beside_a_lock(tmp_path: Path) -> None:
    store, catalog, _, _ = _set(tmp_path, files=2)
    other = apsw.Connection(str(catalog.path))
    other.execute("BEGIN IMMEDIATE")

    async def run(writer: Writer) -> None:
        sets = _sets(tmp_path, store, writer, [])
        thin = TargetCommit(catalog, store, archive=False, now_ns=lambda: 0, retain_roots=set)
        sets.targets[UUID] = SimpleNamespace(commit=thin)  # type: ignore[assignment]
        await writer.submit(sets.keep_house)
        sets.targets.clear()
        await sets.close()

    with_writer(run)
    other.execute("ROLLBACK")


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


@pytest.mark.parametrize("bit", [0x04, 0x80])
@pytest.mark.parametrize(
    "name", [b"evidence", b"manifest", b"pinned", b"mtime_ns", b"touched (path", b"value BL"]
)
def test_one_bit_of_the_page_of_the_schema_costs_no_image(tmp_path: Path, name: bytes, bit: int) -> None:
    """SQLite says that we asked for something wrong: there is no such column."""
    store, catalog, images, _ = _set(tmp_path, files=5)
    path = catalog.path
    catalog.put_away()
    data = path.read_bytes()
    at = data.index(name) + name.find(b"(") + 1
    path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
    said: list[str] = []
    assert started(tmp_path, store, said) == ("", 0)
    assert opened(tmp_path, store, said) == [image.id for image in images]
    assert len([one for one in remaking.asides(path.parent) if not one.part]) == 1


def test_so_it_is_where_a_set_finds_it_as_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, catalog, images, _ = _set(tmp_path, files=5)
    path = catalog.path
    catalog.put_away()
    path.write_bytes(path.read_bytes().replace(b"evidence", b"avidence", 1))
    monkeypatch.setattr("crnode.store.catalog.changed_table", lambda _: None)
    said: list[str] = []
    assert started(tmp_path, store, said) == ("", 0)
    assert "no such column" in said[0]
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


def test_what_was_set_aside_is_never_overwritten(tmp_path: Path) -> None:
    """Damage is met at the start, and at once in the new catalog as well."""
    store, catalog, images, _ = _set(tmp_path, files=20)
    _write(store, catalog, images[2])
    path = catalog.path
    catalog.put_away()
    original = b"the original" + os.urandom(50_000)
    path.write_bytes(original)

    async def again(sets: Sets, _: Catalog) -> None:
        await sets.start_over(UUID, "malformed")

    opened(tmp_path, store, [], again)
    left = [one for one in remaking.asides(path.parent) if not one.part]
    assert len(left) == 2 and all(one.kept for one in left)
    assert left[0].path.read_bytes() == original


class _Killed(BaseException):
    pass


def unsaved(place: Path) -> tuple[ObjectStore, Path, list[bytes | None]]:
    """A damaged catalog whose newest image is in its write-ahead log alone; the ids of its images."""
    store, catalog, _, _ = _set(place, files=20)
    with catalog.transaction():
        catalog.set_meta("set", None)
    catalog.checkpoint()
    commit(catalog, [directory(b"newest")])
    ids = [image.id for image in catalog.images()]
    parts = {suffix: Path(f"{catalog.path}{suffix}").read_bytes() for suffix in ("", "-wal")}
    catalog.close()
    for suffix, data in parts.items():
        Path(f"{catalog.path}{suffix}").write_bytes(data)
    (store.directory / "catalogs").write_text(f"{UUID}\n")
    return store, catalog.path, ids


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int, *, back: bool) -> None:
    """Let the n-th rename of a file to (or from) its place aside be the last thing that happens."""
    real, seen = remaking._rename, [0]

    def rename(path: Path, to: Path, part: str) -> None:
        if ("damaged" in path.name) == back:
            if seen[0] == number:
                raise _Killed
            seen[0] += 1
        real(path, to, part)

    monkeypatch.setattr(remaking, "_rename", rename)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_kill_while_a_catalog_is_set_aside_loses_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store, _, ids = unsaved(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(_Killed):
        kill_at(patch, number, back=False)
        opened(tmp_path, store, [])
    said: list[str] = []
    assert opened(tmp_path, store, said) == ids, said


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_kill_while_it_is_put_back_loses_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store, _, ids = unsaved(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(rebuild, "_change", _full)
        kill_at(patch, number, back=True)
        opened(tmp_path, store, [])
    said: list[str] = []
    assert opened(tmp_path, store, said) == ids, said


def _full(*_: object) -> None:
    raise CrnodeError("No room.", "", "", ExitCode.FULL)


def test_only_a_making_that_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    """A catalog that was made again long ago says nothing of what came since."""
    store, catalog, _, _ = _set(tmp_path, files=20)
    put_aside(catalog, store)
    said: list[str] = []
    opened(tmp_path, store, said)
    assert "set aside before" in said[0]
    again = Catalog(catalog.path, SET)
    commit(again, [directory(b"since then")])
    again.put_away()
    again.path.unlink()
    assert opened(tmp_path, store, said) == []
    assert "is gone and is begun anew, without any earlier version" in said[1]


def test_versions_that_may_have_come_since_a_catalog_was_set_aside_are_spoken_of(tmp_path: Path) -> None:
    """Set aside by an earlier crnode, which gave it the same name whether the making had ended or not."""
    store, catalog, images, _ = _set(tmp_path, files=20)
    put_aside(catalog, store)
    said: list[str] = []
    assert opened(tmp_path, store, said) == [image.id for image in images]
    assert "If there was another one since then, versions may be lost." in said[0]


def test_what_is_said_of_a_catalog_is_said_in_the_event_loop(tmp_path: Path) -> None:
    """Whoever follows the journal waits in a queue of the loop, which no other thread may touch."""
    store, catalog, _, _ = _set(tmp_path, files=20)
    put_aside(catalog, store)
    threads: list[str] = []

    async def run(writer: Writer) -> None:
        sets = _sets(tmp_path, store, writer, [])
        sets.journal = lambda *_: threads.append(threading.current_thread().name)
        await sets.catalog(UUID)
        await sets.close()

    with_writer(run)
    assert threads == [threading.main_thread().name]


@pytest.mark.parametrize("sourced", [True, False])
@pytest.mark.parametrize("note", [("roots", b'{"": "1:2"}'), ("place", b'["/srv/docs", "ab", 7, null]')])
def test_a_catalog_that_is_made_again_knows_the_directories_of_its_set(
    tmp_path: Path, note: tuple[str, bytes], sourced: bool
) -> None:
    """A disk that is not mounted is neither an empty source nor a new destination (rules 59 and 64)."""
    store, catalog, _, _ = _set(tmp_path, files=20)
    with catalog.transaction():
        catalog.set_meta(*note)
    catalog.put_away()

    async def again(sets: Sets, _: Catalog) -> None:
        sets._sourced = {UUID} if sourced else set()
        await sets.start_over(UUID, "a page of entries is damaged")
        assert sets.catalogs[UUID].meta(note[0]) == note[1]
        assert not unsure(sets.catalogs[UUID]) or note[0] == "place"

    opened(tmp_path, store, [], again)


@pytest.mark.parametrize("value", [b"no JSON", b"{}", b"[]", b"[1, 2]", b'{"": 7}'])
@pytest.mark.parametrize("key", ["roots", "place"])
def test_what_damage_made_of_them_is_not_taken_over(tmp_path: Path, key: str, value: bytes) -> None:
    store, catalog, _, _ = _set(tmp_path, files=20)
    with catalog.transaction():
        catalog.set_meta(key, value)
    catalog.put_away()

    async def again(sets: Sets, _: Catalog) -> None:
        await sets.start_over(UUID, "a page of entries is damaged")
        assert sets.catalogs[UUID].meta(key) is None

    opened(tmp_path, store, [], again)


def test_a_source_whose_folders_nobody_knows_any_more_captures_none_that_is_empty(tmp_path: Path) -> None:
    """However late the empty one appears: it may be where a disk is to be mounted."""
    store, catalog, _, _ = _set(tmp_path / "data", files=20)
    path = catalog.path
    catalog.put_away()
    path.write_bytes(b"no database" * 1000)
    folder, full = tmp_path / "mnt", tmp_path / "full"
    full.mkdir()
    (full / "a").touch()
    spec = ReplicationSet(
        uuid=UUID, name="docs", source="box1", paths=(str(full), str(folder)), template="files", term=1,
        targets={"box2": Target(node="box2")}, created_at_ns=1,
    )  # fmt: skip

    async def run(writer: Writer) -> None:
        sets = _sets(tmp_path / "data", store, writer, [])
        sets._sourced = {UUID}
        made = await sets.catalog(UUID)
        commit = SourceCommit(made, store, bytes(16), 0, 2, lambda: 10**18, set)

        async def opens(accept: bool = False) -> str:
            source = SourceSet(
                spec, made, store, writer, commit, cookie_dir=tmp_path / "cookies", seed=7,
                now_ns=lambda: 10**18, on_point=lambda _: None, journal=lambda *_: None,
            )  # fmt: skip
            source._accepts = int(accept)
            assert await source._open_roots() == (source.state != "root missing")
            await source._close_session()
            source._thread.shutdown()
            return source.detail

        assert "No such file" in await opens()
        folder.mkdir()
        assert f"The folder {folder} is empty" in await opens()
        assert unsure(made) and made.meta("roots") is None
        (folder / "a").touch()
        assert await opens() == "" and not unsure(made)
        (folder / "a").unlink()
        assert await opens() == ""  # it is known now which one it is
        with made.transaction():
            made.set_meta("roots", None)
        assert await opens(accept=True) == ""
        await sets.close()

    with_writer(run)


def archive(place: Path) -> tuple[ObjectStore, Catalog, bytes]:
    """A damaged catalog of a set in which `gone` was written, changed and deleted, and of which all images
    but the first and the last are pruned; the content of `gone` that only its last row names."""
    store = small_store(place / "store")
    catalog = Catalog(place / "sets" / f"{UUID}.db", SET)
    stays = file(b"stays", put_file(store, b"x"), 1)
    first = file(b"gone", put_file(store, b"first"), 5)
    last, _ = named = put_file(store, b"the only copy of it", 4)
    images = [
        commit(catalog, [directory(b""), stays, first]),
        commit(catalog, [file(b"gone", named, 19)]),
        commit(catalog, [], [b"gone"]),
        commit(catalog, [file(b"more", put_file(store, b"y"), 1)]),
    ]
    store.sync()
    _write(store, catalog, images[0])
    with catalog.transaction():
        catalog.prune({images[0].ordinal}, 500, spare_deleted=True)
        catalog.set_meta("set", None)  # any damage
    return store, catalog, last


@pytest.mark.parametrize("newest", [True, False])
def test_an_archive_that_is_made_again_has_the_last_of_what_was_deleted(tmp_path: Path, newest: bool) -> None:
    store, catalog, last = archive(tmp_path)
    if not newest:  # not one image can be had
        with catalog.transaction():
            catalog._db.execute("UPDATE entry SET mtime_ns=7 WHERE name=CAST('stays' AS BLOB)")
        manifest.log_path(store).unlink()
    catalog.put_away()
    said: list[str] = []
    for _ in range(2):  # it lives through another damage
        assert len(opened(tmp_path, store, said)) == 2 * newest
        again = Catalog(catalog.path, SET)
        assert last in reachable([again], store), said
        assert again.history(b"gone")[-1][2].content == last
        found, checked = audit(again, SET)
        assert not found and len(checked) == 2 * newest
        with again.transaction():
            again.set_meta("set", None)
        again.put_away()
    assert len(said) == 2 and not any("what it kept" in text for text in said)


@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize("spare", [True, False])
def test_what_an_archive_took_over_goes_when_the_path_is_back_and_a_mirror_drops_it(
    tmp_path: Path, newest: bool, spare: bool
) -> None:
    store, catalog, last = archive(tmp_path)
    path, aside = catalog.path, put_aside(catalog, store)
    if newest:
        rebuild_catalog(path, SET, store, aside=aside)
    else:
        rebuild.begin_catalog(path, SET, store, aside, {})
    again = Catalog(path, SET)
    assert last in reachable([again], store)
    for changed in ([], [file(b"gone", put_file(store, b"back"), 4)]):
        commit(again, [directory(b""), *changed])
        with again.transaction():
            while again.prune(set(), 500, spare_deleted=spare):
                pass
        assert (last in reachable([again], store)) == (spare and not changed)


@pytest.mark.parametrize("change", ["content=zeroblob(32)", "content=randomblob(32)", "level=9", "mode=-1",
                                    "mtime_ns=4611686018427387904*2.0", "owner=99"])  # fmt: skip
def test_a_row_of_a_deleted_path_that_makes_no_sense_is_left_out_and_said(
    tmp_path: Path, change: str
) -> None:
    store, catalog, last = archive(tmp_path)
    path = catalog.path
    catalog.put_away()
    db = apsw.Connection(str(path))
    (sql,) = db.execute("SELECT sql FROM sqlite_schema WHERE name='entry'").fetchone()
    for text in (sql.replace("STRICT,", ""), sql):
        db.execute("PRAGMA writable_schema=1")
        db.execute("UPDATE sqlite_schema SET sql=? WHERE name='entry'", (text,))
        db.execute("PRAGMA writable_schema=RESET")
        if text != sql:
            db.execute(f"UPDATE entry SET {change} WHERE born=2")
    db.close()
    said: list[str] = []
    assert len(opened(tmp_path, store, said)) == 2
    assert "what it kept of files that were deleted may be lost" in said[0]
    assert last not in reachable([Catalog(path, SET)], store)


def test_what_lies_on_both_sides_of_a_page_that_cannot_be_read_is_taken_over(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "sets" / f"{UUID}.db", SET)
    names = [b"%04d" % n for n in range(2000)]
    content = put_file(store, b"x")
    commit(catalog, [directory(b""), *(file(name, content, 1) for name in names)])
    newest = commit(catalog, [], names)
    store.sync()
    _write(store, catalog, newest)
    with catalog.transaction():
        catalog.prune({newest.ordinal}, 5000, spare_deleted=True)
    path, aside = catalog.path, put_aside(catalog, store)
    data = aside.read_bytes()
    pages = [at for at in range(0, len(data), 4096) if b"1000" in data[at : at + 4096]]
    for at in pages:
        aside.write_bytes(data[:at] + b"\xff" * 4096 + data[at + 4096 :])
        data = aside.read_bytes()
    assert not rebuild_catalog(path, SET, store, aside=aside).ended
    again = Catalog(path, SET)
    kept = [name for name in names if again.history(name)]
    assert 1700 < len(kept) < 2000 and {names[0], names[-1]} <= set(kept)


def maintenance_of(place: Path, store: ObjectStore, writer: Writer, sets: Sets, said: list[str]) -> Any:
    """The housekeeping of a node that receives the one set."""
    spec = SimpleNamespace(uuid=UUID, name="docs", source="shop1", targets={"box1": None})
    document = SimpleNamespace(set_by_uuid=lambda _: spec, sets_to=lambda _: [spec])
    agent: Any = SimpleNamespace(
        data=place, store=store, writer=writer, sets=sets, document=document,
        node=SimpleNamespace(name="box1"), journal=SimpleNamespace(add=lambda kind, text: said.append(text)),
    )  # fmt: skip
    agent.healer = Healer(agent)
    return Maintenance(agent)


def collected(
    place: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, *, first: bool = False
) -> tuple[list[bytes | None], list[str]]:
    """Collect while the catalog waits for room (with `first`, before it was opened at all), then make it
    again; ids of its images, and what housekeeping said."""
    said: list[str] = []

    async def run(writer: Writer) -> list[bytes | None]:
        sets = _sets(place, store, writer, [])
        with monkeypatch.context() as patch:
            patch.setattr(rebuild, "_change", _full)
            if not first:
                with pytest.raises(CrnodeError, match="No room"):
                    await sets.catalog(UUID)
            await maintenance_of(place, store, writer, sets, said)._collect(False, lambda _: None)
        made = await sets.catalog(UUID)
        found = [image.id for image in made.images()]
        await sets.close()
        return found

    return with_writer(run), said


@pytest.mark.parametrize("first", [True, False])
def test_a_collection_while_a_catalog_waits_to_be_made_again_takes_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    store, catalog, images, _ = _set(tmp_path, files=300)
    needed = sorted(name for name, _ in catalog.contents())
    put_aside(catalog, store)
    found, said = collected(tmp_path, store, monkeypatch, first=first)
    assert found == [image.id for image in images] and not said
    assert store.missing(needed) == []


@pytest.mark.parametrize("first", [True, False])
def test_nor_of_one_that_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    store, path, ids = unsaved(tmp_path)
    with open_reader(path) as reader:
        needed = sorted(name for name, _ in reader.contents())
    with monkeypatch.context() as patch, pytest.raises(_Killed):
        kill_at(patch, 1, back=False)  # its write-ahead log stays behind
        opened(tmp_path, store, [])
    found, said = collected(tmp_path, store, monkeypatch, first=first)
    assert found == ids and not said
    assert store.missing(needed) == []


def test_a_collection_beside_one_that_cannot_be_read_gives_nothing_back_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, catalog, images, _ = _set(tmp_path, files=300)
    needed = sorted(name for name, _ in catalog.contents())
    _write(store, catalog, images[2])
    aside = put_aside(catalog, store)
    aside.write_bytes(b"no database" * 1000)
    found, said = collected(tmp_path, store, monkeypatch)
    assert found == [images[2].id]
    assert "Nothing was collected: A catalog cannot be read" in said[0] and str(aside) in said[0]
    assert store.missing(needed) == []


def test_a_collection_that_begins_while_a_catalog_is_made_again_takes_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, catalog, images, _ = _set(tmp_path, files=300)
    needed = sorted(name for name, _ in catalog.contents())
    path = catalog.path
    with catalog.transaction():
        catalog.set_meta("set", None)
    catalog.put_away()
    at, go = slowly(monkeypatch)

    async def run(writer: Writer) -> list[bytes | None]:
        sets = _sets(tmp_path, store, writer, [])
        making = asyncio.ensure_future(sets.catalog(UUID))
        assert await asyncio.to_thread(at.wait, 10)
        house = maintenance_of(tmp_path, store, writer, sets, [])
        collecting = asyncio.ensure_future(house._collect(False, lambda _: None))
        await asyncio.sleep(0.2)
        go.set()
        made = await making
        await collecting
        found = [image.id for image in made.images()]
        await sets.close()
        return found

    assert with_writer(run) == [image.id for image in images]
    assert store.missing(needed) == [] and path.exists()


def slowly(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let the making of a catalog wait: (set when it has begun, to be set for it to go on)."""
    at, go, real = threading.Event(), threading.Event(), rebuild._rebuild

    def slow(*args: Any) -> None:
        at.set()
        go.wait(10)
        real(*args)

    monkeypatch.setattr(rebuild, "_rebuild", slow)
    return at, go


def test_a_catalog_that_is_set_aside_while_a_collection_reads_it_makes_that_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, catalog, _, _ = _set(tmp_path, files=300)
    needed = sorted(name for name, _ in catalog.contents())
    with catalog.transaction():
        catalog.prune(set(), 10_000)  # something is dead
    said: list[str] = []

    async def run(writer: Writer) -> Outcome:
        sets = _sets(tmp_path, store, writer, [])
        house = maintenance_of(tmp_path, store, writer, sets, said)
        real = child.Child.read

        async def read(self: child.Child) -> child.Frame:
            frame = await real(self)
            if frame.header["event"] == "marked":
                remaking.set_aside(catalog.path, 10**12)
            return frame

        monkeypatch.setattr(child.Child, "read", read)
        out: Outcome = await house._collect(False, lambda _: None)
        return out

    out = with_writer(run)
    assert "was set aside or replaced while it was read" in said[0] and out.removed_bytes == 0
    assert store.missing(needed) == []


def agent_with(sets: Sets, followed: list[str]) -> Any:
    """As much of an agent as makes a catalog again."""
    agent: Any = object.__new__(Agent)
    agent.sets, agent.said, agent._mending, agent._mended = sets, None, set(), {}

    async def follow() -> None:
        followed.append("now")

    agent._follow = follow
    agent._follow_later = lambda: followed.append("later")
    return agent


@pytest.mark.parametrize("full", [False, True])
def test_a_client_that_hangs_up_while_a_catalog_is_made_again_stops_no_set_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """`crnode scrub` and Ctrl-C."""
    store, catalog, images, _ = _set(tmp_path, files=20)
    catalog.put_away()
    followed: list[str] = []

    async def run(writer: Writer) -> None:
        sets = _sets(tmp_path, store, writer, [])
        await sets.catalog(UUID)
        agent = agent_with(sets, followed)
        at, go = slowly(monkeypatch)
        if full:
            monkeypatch.setattr(rebuild, "_change", _full)
        call = asyncio.ensure_future(agent.rebuild_catalog(UUID, "a check found it"))
        assert await asyncio.to_thread(at.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        (task,) = sets.returning
        go.set()
        await asyncio.wait([task], timeout=10)
        await asyncio.sleep(0)
        assert not sets.returning
        if full:
            assert "No room" in sets.refused[UUID] and followed == ["later"]
        else:
            assert len(sets.catalogs[UUID].images()) == len(images) and followed == ["now"]
        await sets.close()

    with_writer(run)


def test_who_waits_for_a_catalog_to_be_made_again_hears_why_it_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, catalog, _, _ = _set(tmp_path, files=20)
    catalog.put_away()
    monkeypatch.setattr(rebuild, "_change", _full)

    async def run(writer: Writer) -> None:
        sets = _sets(tmp_path, store, writer, [])
        await sets.catalog(UUID)
        with pytest.raises(CrnodeError, match="No room"):
            await agent_with(sets, []).rebuild_catalog(UUID, "a check found it")
        await sets.close()

    with_writer(run)


def test_two_who_find_the_same_damage_have_it_made_again_once(tmp_path: Path) -> None:
    """`crnode scrub` and the weekly look; and a look that came to its end when all was over."""
    store, catalog, images, _ = _set(tmp_path, files=20)
    catalog.put_away()

    async def run(writer: Writer) -> None:
        sets = _sets(tmp_path, store, writer, [])
        looked_at = await sets.catalog(UUID)
        agent = agent_with(sets, [])
        await asyncio.gather(agent.rebuild_catalog(UUID, "scrub"), agent.rebuild_catalog(UUID, "idle"))
        await agent.rebuild_catalog(UUID, "a slow look", looked_at)
        assert len([one for one in remaking.asides(tmp_path / "sets") if not one.part]) == 1
        await agent.rebuild_catalog(UUID, "another damage", sets.catalogs[UUID])
        assert len([one for one in remaking.asides(tmp_path / "sets") if not one.part]) == 2
        assert len(sets.catalogs[UUID].images()) == len(images)
        await sets.close()

    with_writer(run)


def test_attempts_at_a_set_that_cannot_start_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crnode.agent.node.MEND_SECONDS", 0.001)

    async def run() -> int:
        agent: Any = object.__new__(Agent)
        agent._later, agent._background, agent.said, times = None, set(), None, []

        async def follow() -> None:
            times.append(1)
            if len(times) < 200:
                agent._follow_later()

        agent._follow = follow
        agent._follow_later()
        while len(times) < 200:
            await asyncio.sleep(0.01)
        return len(agent._background)

    assert asyncio.run(run()) < 10
