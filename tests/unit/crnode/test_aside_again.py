"""A catalog that was set aside and could not be made again at once: what waits is whole, is taken for what it
is, and is gone on with by whoever tries it next."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest
from store_samples import SET, commit, directory, with_writer
from test_catalog_aside import UUID, agent_with, maintenance_of, opened, started, unsaved
from test_manifest import _set, _sets

from crnode.agent import remaking
from crnode.errors import CrnodeError, ExitCode
from crnode.store import rebuild
from crnode.store.catalog import is_blank
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer


class _Killed(BaseException):
    pass


def _raises(error: BaseException) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise error

    return call


def failing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, str], bool], error: type[OSError]) -> None:
    """Let the renames of files fail of which `fails` says so, given the number and the old name."""
    real, seen = os.rename, [0]

    def rename(old: Any, new: Any) -> None:
        seen[0] += 1
        if fails(seen[0], str(old)):
            raise error(28, "No space left on device", str(old), None, str(new))
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)


@pytest.mark.parametrize("putting_back", [False, True])
def test_a_second_attempt_at_a_running_set_goes_on_with_what_the_first_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, putting_back: bool
) -> None:
    """The first one ends by a rename: that of the write-ahead log, or the last one of putting all back."""
    store, path, ids = unsaved(tmp_path)
    said: list[str] = []
    Path(f"{path}-shm").unlink(missing_ok=True)

    async def run(writer: Writer) -> list[bytes | None]:
        sets = _sets(tmp_path, store, writer, said)
        with monkeypatch.context() as patch:
            if putting_back:
                patch.setattr(rebuild, "_change", _raises(CrnodeError("No room.", "", "", ExitCode.FULL)))
            failing(patch, lambda n, _: n > 1 + putting_back, OSError)
            with pytest.raises(OSError, match="No space left"):
                await sets.start_over(UUID, "malformed")
        await sets.start_over(UUID, "malformed")
        made = [image.id for image in sets.catalogs[UUID].images()]
        await sets.close()
        return made

    assert with_writer(run) == ids
    assert "is damaged (malformed); it was set aside before" in said[0]
    assert not remaking.waiting(path)


def test_so_it_is_where_the_agent_tries_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crnode.agent.node.MEND_SECONDS", 0.05)
    store, catalog, _, _ = _set(tmp_path, files=20)
    commit(catalog, [directory(b"newest")])
    ids = [image.id for image in catalog.images()]
    catalog.put_away()
    said: list[str] = []

    async def run(writer: Writer) -> list[bytes | None]:
        sets = _sets(tmp_path, store, writer, said)
        await sets.catalog(UUID)
        agent = agent_with(sets, [])
        agent.journal = SimpleNamespace(add=lambda kind, text, *_: said.append(text))
        failing(monkeypatch, lambda n, _: n == 2, OSError)
        await asyncio.wait_for(agent._mend_catalog(UUID, "malformed"), 20)
        made = [image.id for image in sets.catalogs[UUID].images()]
        await sets.close()
        return made

    assert with_writer(run) == ids, said
    assert "could not be made again" in said[0]


def test_a_log_that_cannot_be_renamed_has_its_set_wait_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the agent starts; and no collection reads what is cut in two."""
    store, path, ids = unsaved(tmp_path)
    said: list[str] = []

    async def collects(writer: Writer) -> None:
        sets = _sets(tmp_path, store, writer, said)
        await maintenance_of(tmp_path, store, writer, sets, said)._collect(False, lambda _: None)
        await sets.close()

    with monkeypatch.context() as patch:
        failing(patch, lambda _, old: old.endswith("-wal"), PermissionError)
        for _ in range(2):
            why, again = started(tmp_path, store, said)
            assert f"{path}-wal" in why and again == 1
        with pytest.raises(CrnodeError, match="cannot be opened, written or renamed"):
            with_writer(collects)
    assert opened(tmp_path, store, said) == ids


def test_an_empty_log_that_a_reader_made_is_not_taken_for_the_one_that_stayed_behind(tmp_path: Path) -> None:
    store, path, ids = unsaved(tmp_path)
    aside = path.with_name(f"{path.name}.damaged-5")
    path.rename(aside)
    Path(f"{aside}-wal").touch()
    assert opened(tmp_path, store, []) == ids


@pytest.mark.parametrize("sourced", [False, True])
def test_a_lock_on_what_waits_is_no_damage(tmp_path: Path, sourced: bool) -> None:
    store, path, ids = unsaved(tmp_path)
    aside = path.with_name(f"{path.name}.damaged-5")
    for part in ("", "-wal"):  # as a kill leaves it
        os.rename(f"{path}{part}", f"{aside}{part}")
    other = apsw.Connection(str(aside))  # an administrator, or a backup
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    other.execute("UPDATE meta SET value=value")
    said: list[str] = []
    why, again = started(tmp_path, store, said, sourced=sourced)
    assert f"The catalog {aside} cannot be used now" in why and "locked" in why and again == 1
    assert not path.exists() and remaking.waiting(path) == [aside]
    other.execute("ROLLBACK")
    other.close()
    if not sourced:
        assert opened(tmp_path, store, said) == ids


@pytest.mark.parametrize("newest", [False, True])
def test_nor_one_that_comes_while_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newest: bool
) -> None:
    """After its images were read, before what an archive keeps."""
    store, path, ids = unsaved(tmp_path)
    if not newest:  # no image can be had: it is begun anew
        monkeypatch.setattr(rebuild, "gives_id", lambda *_: False)
    monkeypatch.setattr("crnode.store.ended.connect_damaged", _raises(apsw.BusyError("locked")))
    why, again = started(tmp_path, store, [])
    assert "locked" in why and again == 1 and path.exists()
    monkeypatch.undo()
    assert opened(tmp_path, store, []) == ids


def flipped(place: Path) -> tuple[ObjectStore, Path, list[bytes | None]]:
    """A catalog of which one bit is changed: the number of its schema is 0, as in a file without any."""
    store, catalog, images, _ = _set(place, files=20)
    path = catalog.path
    catalog.put_away()
    (store.directory / "catalogs").write_text(f"{UUID}\n")
    data = bytearray(path.read_bytes())
    assert data[63] == 1
    data[63] = 0
    path.write_bytes(data)
    return store, path, [image.id for image in images]


@pytest.mark.parametrize("killed", [False, True])
def test_a_file_with_tables_is_not_blank_whatever_its_number_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    store, path, ids = flipped(tmp_path)
    assert not is_blank(path)
    if killed:
        with monkeypatch.context() as patch, pytest.raises(_Killed):
            patch.setattr(rebuild, "_put_in_place", _raises(_Killed()))
            opened(tmp_path, store, [])
        assert not path.exists()
    assert opened(tmp_path, store, []) == ids


@pytest.mark.parametrize("bit", [1, 8, 31])
def test_a_bit_of_the_number_of_the_schema_is_damage(tmp_path: Path, bit: int) -> None:
    """And no newer crnode: that would have changed the schema as well."""
    store, catalog, images, _ = _set(tmp_path, files=20)
    path = catalog.path
    catalog.put_away()
    changed(path, 60, 1 ^ 1 << bit)
    assert started(tmp_path, store, []) == ("", 0)
    assert opened(tmp_path, store, []) == [image.id for image in images]


@pytest.mark.parametrize("number", [2, 3, 99])
def test_a_newer_schema_is_refused(tmp_path: Path, number: int) -> None:
    store, catalog, _, _ = _set(tmp_path, files=20)
    path = catalog.path
    catalog._db.execute("CREATE TABLE more (one INTEGER PRIMARY KEY) STRICT")
    catalog.put_away()
    changed(path, 60, number)
    why, again = started(tmp_path, store, [])
    assert "was written by a newer crnode" in why and again == 0
    assert path.exists() and not remaking.asides(path.parent)


def test_a_bit_of_the_name_of_the_set_is_damage_where_its_versions_say_whose_they_are(tmp_path: Path) -> None:
    store, catalog, images, _ = _set(tmp_path, files=20)
    with catalog.transaction():
        catalog.set_meta("set", bytes([SET[0] ^ 1]) + SET[1:])
    catalog.put_away()
    assert started(tmp_path, store, []) == ("", 0)
    assert opened(tmp_path, store, []) == [image.id for image in images]


def changed(path: Path, at: int, number: int) -> None:
    """Put a number into the header of a file."""
    data = path.read_bytes()
    path.write_bytes(data[:at] + number.to_bytes(4, "big") + data[at + 4 :])
