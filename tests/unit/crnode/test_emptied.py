"""A set that is emptied and comes back, what a consent is good for, and folders that nobody told of."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from rot_samples import Capturing, capturing, until

from crnode.capture import source as module
from crnode.capture.roots import OpenRoots, labels
from crnode.capture.unsure import why_not


def _made(tmp_path: Path, *, folders: bool = False) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(4):
        (root / f"f{number}").write_bytes(b"%d" % number)
    if folders:
        (root / "d" / "e").mkdir(parents=True)
        (root / "d" / "e" / "x").write_bytes(b"x")
    (tmp_path / "place").mkdir()
    return root


def _empty(root: Path) -> None:
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_set_put_back_as_it_was_is_not_emptied_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rsync -a or tar from a backup: the same bytes, modes and times, of the root too."""
    monkeypatch.setattr(module, "EMPTIED_SECONDS", 0.2)
    root = _made(tmp_path)

    async def work(here: Capturing) -> None:
        source = here.source
        shutil.copytree(root, tmp_path / "backup")
        _empty(root)
        assert await until(lambda: source.state == "emptied")
        shutil.copytree(tmp_path / "backup", root, dirs_exist_ok=True)
        shutil.copystat(tmp_path / "backup", root)
        assert await until(lambda: source.state == "ok"), (source.state, source.detail)

    capturing(tmp_path / "place", root, 0.1, work)


def test_a_consent_to_an_emptied_set_is_not_kept_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put back as it was; the status says 'emptied' still, and a person does what it says."""
    monkeypatch.setattr(module, "EMPTIED_SECONDS", 0.2)
    root = _made(tmp_path)

    async def work(here: Capturing) -> None:
        source = here.source
        shutil.copytree(root, tmp_path / "backup")
        _empty(root)
        assert await until(lambda: source.state == "emptied")
        shutil.copytree(tmp_path / "backup", root, dirs_exist_ok=True)
        shutil.copystat(tmp_path / "backup", root)
        await asyncio.sleep(1)
        source.accept()
        await asyncio.sleep(2)
        assert source.state == "ok"
        _empty(root)
        await asyncio.sleep(2)
        newest = here.catalog.newest()
        assert newest is not None and newest.entries > 1

    capturing(tmp_path / "place", root, 0.1, work)


def test_a_consent_given_while_a_point_is_being_taken_counts_for_the_next_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore back to an empty beginning gives it while its deletions are captured: lost with that point,
    it waited for a person until its time was over."""
    root = _made(tmp_path)

    async def work(here: Capturing) -> None:
        source = here.source
        real = source.commit.finish
        met: list[int] = []

        def finish(*args: Any) -> Any:
            out = real(*args)
            if not met:
                met.append(1)
                _empty(root)
                source._loop.call_soon_threadsafe(source.accept)
                time.sleep(0.2)
            return out

        monkeypatch.setattr(source.commit, "finish", finish)
        (root / "f0").write_bytes(b"changed")

        def is_empty() -> bool:
            newest = here.catalog.newest()
            return newest is not None and newest.entries == 1

        assert await until(is_empty), (source.state, source.detail)
        assert met and source.state == "ok"

    capturing(tmp_path / "place", root, 0.1, work)


def test_folders_that_come_back_to_an_emptied_set_are_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EMPTIED_SECONDS", 0.2)
    root = _made(tmp_path, folders=True)

    async def work(here: Capturing) -> None:
        source = here.source
        _empty(root)
        assert await until(lambda: source.state == "emptied")
        (root / "d" / "e").mkdir(parents=True)
        (root / "d" / "e" / "x").write_bytes(b"x")
        assert await until(lambda: source.state == "ok")
        assert await until(lambda: here.content(b"d/e/x") is not None)
        await asyncio.sleep(0.5)
        (root / "d" / "e" / "new").write_bytes(b"new")
        assert await until(lambda: here.content(b"d/e/new") is not None, 20)

    capturing(tmp_path / "place", root, 0.1, work)


@pytest.mark.parametrize("noticed", [True, False])
def test_folders_made_while_events_were_lost_are_watched(tmp_path: Path, noticed: bool) -> None:
    """The kernel's queue overflows while folders are made, and a scan finds them; or it tells nobody, and the
    next scan that reconciles does."""
    root = _made(tmp_path)

    async def work(here: Capturing) -> None:
        source = here.source
        watcher = source._watcher
        assert watcher is not None
        source._loop.remove_reader(watcher.fd)
        (root / "d" / "e").mkdir(parents=True)
        (root / "d" / "e" / "x").write_bytes(b"x")
        os.read(watcher.fd, 1 << 20)  # gone
        source._loop.add_reader(watcher.fd, source._readable)
        if noticed:
            source._events_lost("the kernel's event queue overflowed")
        else:
            source._want_scan("reconcile", beside=True)
        assert await until(lambda: here.content(b"d/e/x") is not None)
        await asyncio.sleep(0.5)
        (root / "d" / "e" / "new").write_bytes(b"new")
        assert await until(lambda: here.content(b"d/e/new") is not None, 20)

    capturing(tmp_path / "place", root, 0.1, work)


def test_a_folder_made_while_events_were_lost_at_the_start_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_bytes(b"f")
    (tmp_path / "place").mkdir()
    real = module.watch_tree
    made: list[int] = []

    def slow(paths: Any, watcher: Any, takes: Any, top: bytes) -> int:
        count = real(paths, watcher, takes, top)
        if not made:  # a large tree: its queue overflows while watches are still being added
            made.append(1)
            watcher.read, kept = (lambda: None), watcher.read
            (root / "d").mkdir()
            (root / "d" / "x").write_bytes(b"x")
            os.read(watcher.fd, 1 << 20)  # gone
            watcher.read = kept
            watcher._lost("the kernel's event queue overflowed")
        return count

    monkeypatch.setattr(module, "watch_tree", slow)

    async def work(here: Capturing) -> None:
        assert here.content(b"d/x") is not None and made
        await asyncio.sleep(1)
        (root / "d" / "new").write_bytes(b"new")
        assert await until(lambda: here.content(b"d/new") is not None, 20)

    capturing(tmp_path / "place", root, 0.1, work)


def test_folders_alone_are_nothing_to_go_by(tmp_path: Path) -> None:
    """An unsure source is not captured before there is a file in it, however many empty folders there are."""
    root = tmp_path / "mnt"
    (root / "sub" / "deeper").mkdir(parents=True)
    roots = OpenRoots(labels([str(root)]))
    try:
        assert "is empty" in why_not("docs", roots)
        (root / "sub" / "deeper" / "link").symlink_to("nowhere")
        assert why_not("docs", roots) == ""
    finally:
        roots.close()
