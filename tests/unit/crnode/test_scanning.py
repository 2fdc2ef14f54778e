"""Scans that run while points are taken."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import apsw
import pytest
from rot_samples import Capturing, capturing
from store_samples import SET

import crnode.capture.scanning as module
from crnode.capture.scan import encode_request
from crnode.capture.scanning import Scanning, scan_set
from crnode.store.catalog import Catalog, CatalogDamaged, is_damage


def test_a_scan_that_saw_files_vanish_deletes_no_half_of_an_emptied_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set is emptied while it is scanned: the scan met two names that were gone already, and ends while
    the point is taken that finds nothing left."""
    root = tmp_path / "root"
    root.mkdir()
    for number in range(4):
        (root / f"f{number}").write_bytes(b"%d" % number)

    async def work(here: Capturing) -> None:
        source = here.source
        newest = here.catalog.newest()
        assert newest is not None
        ended = asyncio.Event()

        async def half(request: str) -> list[bytes]:
            await ended.wait()
            return [b"f0", b"f1"]

        finish = source._finish

        async def and_end(*args: object) -> None:
            await finish(*args)  # type: ignore[arg-type]
            if source._emptied:
                ended.set()
                await asyncio.sleep(0.05)

        with monkeypatch.context() as patch:
            patch.setattr(module, "scan_set", half)
            patch.setattr(source, "_finish", and_end)
            asked = asyncio.ensure_future(source.scan_now())
            while source._scanning is None:
                await asyncio.sleep(0.01)
            for path in root.iterdir():
                path.unlink()
            while not source._emptied:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
        now = here.catalog.newest()
        assert now is not None
        assert (now.id, now.entries) == (newest.id, newest.entries)
        assert source.state == "emptied"
        asked.cancel()

    (tmp_path / "place").mkdir()
    capturing(tmp_path / "place", root, 0.1, work)


def test_what_events_told_of_is_not_found_by_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> tuple[list[bytes], list[bytes]]:
        async def found(request: str) -> list[bytes]:
            return [b"told", b"folder/below", b"not"]

        monkeypatch.setattr(module, "scan_set", found)
        scanning = Scanning("", 1, "reconcile", lambda: None)
        scanning.note([b"told", b"folder"])
        dirty = await scanning.result()
        some = scanning.unannounced(dirty)
        scanning.note(b"%d" % n for n in range(module.TOLD_MOST))
        return some, scanning.unannounced(dirty)

    assert asyncio.run(work()) == ([b"not"], [])


def test_a_scan_that_meets_a_damaged_catalog_says_so(tmp_path: Path) -> None:
    """Whoever meets damage has the catalog made again: the scan's child meets it first."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "place").mkdir()
    for number in range(400):
        (root / f"more{number:04d}").write_bytes(b"m")

    async def work(here: Capturing) -> None:
        source = here.source
        here.catalog._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        (root_page,) = here.catalog._db.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name='seen'"
        ).fetchone()
        (size,) = here.catalog._db.execute("PRAGMA page_size").fetchone()
        fd = os.open(here.catalog.path, os.O_WRONLY)
        os.pwrite(fd, os.urandom(size), (root_page - 1) * size)
        os.close(fd)
        with pytest.raises(CatalogDamaged) as told:
            await scan_set(source._scan_request())
        assert is_damage(told.value)
        assert told.value.args[0] == here.catalog.path

    capturing(tmp_path / "place", root, 0.1, work)


def test_a_set_with_many_patterns_is_scanned(tmp_path: Path) -> None:
    """More than an argument of a process may hold."""
    Catalog(tmp_path / "set.db", SET).close()
    (tmp_path / "root").mkdir()
    patterns = [f"folder{n}/" + "x" * 140 for n in range(1000)]
    request = encode_request([str(tmp_path / "root")], [], patterns, tmp_path / "set.db", 0, SET.hex())
    assert asyncio.run(scan_set(request)) == [b""]


def test_a_folder_that_cannot_be_captured_costs_no_scan_alone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_bytes(b"f")
    at = os.open(root, os.O_RDONLY)
    for _ in range(130):  # deeper than what is replicated; a mount point in the set does the same
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    (tmp_path / "place").mkdir()

    async def work(here: Capturing) -> None:
        source = here.source
        await asyncio.sleep(1.5)
        alone: list[str] = []
        real = source._scan

        async def scan() -> None:
            alone.append(source._scan_reason)
            await real()

        source._scan = scan  # type: ignore[method-assign]
        for _ in range(3):
            source._want_scan("reconcile", beside=True)
            await asyncio.sleep(1.5)
        assert source.state == "ok"
        assert not alone

    capturing(tmp_path / "place", root, 0.1, work)
