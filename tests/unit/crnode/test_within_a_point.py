"""What happens while a point is read is compared with what it has taken, which is in no catalog yet."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rot_samples import Capturing, capturing, until

from crnode.capture.job import Job
from crnode.store.reader import CLEAN

Then = Callable[[], None]


def _run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    begin: Then,
    after: bytes,
    then: Then,
    check: Callable[[Capturing], None],
) -> None:
    """`begin` changes the set; as soon as the path `after` was captured because of that, `then` does."""
    root = tmp_path / "root"
    done: list[int] = []
    real = Job._take

    async def work(here: Capturing) -> None:
        def take(self: Job, path: bytes) -> list[bytes]:
            out = real(self, path)
            if path == after and not done:
                done.append(1)
                then()
            return out

        monkeypatch.setattr(Job, "_take", take)
        here.source._recent.clear()  # as after a restart, an hour, or 2,000 other changes
        begin()
        assert await until(lambda: done and here.source.state == "ok")
        await asyncio.sleep(2.5)  # two polls
        newest = here.catalog.newest()
        assert newest is not None and newest.flags & CLEAN
        assert here.source._settle.due() is None
        check(here)

    capturing(tmp_path / "place", root, 0.1, work)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("root", "root/d", "place", "made", "made/sub", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "root" / "keep").write_bytes(b"keep")
    (tmp_path / "root" / "d" / "f").write_bytes(b"content of f")
    (tmp_path / "made" / "h").write_bytes(b"first")
    (tmp_path / "other" / "g").write_bytes(b"of other")
    return tmp_path / "root"


def test_a_folder_put_back_keeps_its_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(here: Capturing) -> None:
        assert (root / "d" / "f").exists()
        assert here.content(b"d/f") is not None, "a file that is there is in no image: mirrors delete it"

    _run(tmp_path, monkeypatch, lambda: os.rename(root / "d", root / "e"), b"e/f",
         lambda: os.rename(root / "e", root / "d"), check)  # fmt: skip


def test_a_new_folder_that_is_exchanged_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchange() -> None:
        os.rename(root / "new", tmp_path / "old")
        os.rename(tmp_path / "other", root / "new")

    def check(here: Capturing) -> None:
        assert os.listdir(root / "new") == ["g"]
        assert here.content(b"new/g") is not None
        assert here.content(b"new/h") is None, "a clean image has a file that is not there"

    _run(tmp_path, monkeypatch, lambda: os.rename(tmp_path / "made", root / "new"), b"new/h", exchange, check)


def test_a_name_taken_before_its_other_one_is_written_has_the_same_bytes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        os.link(root / "new" / "h", root / "z")
        with open(root / "z", "ab") as file:
            file.write(b" and second")

    def check(here: Capturing) -> None:
        assert (root / "new" / "h").read_bytes() == b"first and second"
        assert here.content(b"z") == here.content(b"new/h"), "one file, two contents in a clean image"

    _run(tmp_path, monkeypatch, lambda: os.rename(tmp_path / "made", root / "new"), b"new/h", write, check)


def test_a_new_folders_time_is_that_of_the_disk(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `cp -r` makes it: a folder is taken from its parent's listing, and watched when listed itself."""

    def check(here: Capturing) -> None:
        newest = here.catalog.newest()
        assert newest is not None
        entry = here.catalog.entry(b"new/sub", newest.ordinal)
        assert entry is not None and here.content(b"new/sub/late") is not None
        assert entry.mtime_ns == (root / "new" / "sub").stat().st_mtime_ns

    _run(tmp_path, monkeypatch, lambda: os.rename(tmp_path / "made", root / "new"), b"new/sub",
         lambda: (root / "new" / "sub" / "late").write_bytes(b"late") and None, check)  # fmt: skip


def test_the_names_of_a_file_that_is_written_all_the_time_are_taken_a_few_times(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(here: Capturing) -> None:
        paths = here.source._paths
        assert paths is not None
        os.link(root / "keep", root / "other")
        real, taken = paths.take, 0

        def take(*args: Any) -> Any:
            nonlocal taken
            taken += 1
            assert taken < 50, "it never ends"
            with open(root / "keep", "ab") as file:
                file.write(b"more")
            return real(*args[:3])

        monkeypatch.setattr(paths, "take", take)
        job = Job(paths, here.catalog, here.source._view, here.source._selection, None)
        assert list(job.run([(b"keep", False), (b"other", False)])) == []
        assert {b"keep", b"other"} <= job.batch.changed.keys()
        assert taken > 2
        monkeypatch.undo()

    capturing(tmp_path / "place", root, 0.1, work)
