"""What is deleted or put back while a large image is captured, after the part it was in was staged."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rot_samples import Capturing, capturing, until

from crnode.capture import job as job_module
from crnode.capture import source as module
from crnode.capture.job import Job
from crnode.errors import CrnodeError
from crnode.store.reader import CLEAN


def _made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setattr(job_module, "BATCH_ENTRIES", 20)  # else it takes 2,000 files or 24 MiB
    root, made = tmp_path / "root", tmp_path / "made"
    for place in (root, made, tmp_path / "place"):
        place.mkdir()
    (root / "keep").write_bytes(b"keep")
    (root / "a").write_bytes(b"old")
    for n in range(100):
        (made / f"f{n:03}").write_bytes(b"%d" % n)
    return root, made


def _on_staged(here: Capturing, then: Callable[[int], None]) -> None:
    real = here.source.commit.stage

    def stage(*args: Any) -> int:
        ordinal = real(*args)
        then(ordinal)
        return ordinal

    here.source.commit.stage = stage  # type: ignore[method-assign]


def _delete_one(here: Capturing, root: Path, folder: bytes, done: list[bytes]) -> Callable[[int], None]:
    def then(ordinal: int) -> None:
        first = next((e for e in here.catalog.walk(ordinal) if e.path.startswith(folder + b"/f")), None)
        if first is not None and not done:
            done.append(first.path)
            os.unlink(os.path.join(os.fsencode(root), first.path))

    return then


def test_a_file_deleted_after_its_batch_is_in_no_clean_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, made = _made(tmp_path, monkeypatch)
    done: list[bytes] = []

    async def work(here: Capturing) -> None:
        _on_staged(here, _delete_one(here, root, b"new", done))
        made.rename(root / "new")
        assert await until(lambda: done and here.content(b"new/f050") and here.source.state == "ok")
        await asyncio.sleep(2.5)
        newest = here.catalog.newest()
        assert newest is not None and newest.flags & CLEAN
        assert here.content(done[0]) is None, "a deleted file is in a clean image"

    capturing(tmp_path / "place", root, 0.1, work)


def test_a_file_put_back_after_its_batch_has_its_own_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mv a saved; write another a; ...; mv saved a."""
    root, made = _made(tmp_path, monkeypatch)
    done: list[bytes] = []

    async def work(here: Capturing) -> None:
        right = here.content(b"a")

        def then(ordinal: int) -> None:
            entry = here.catalog.entry(b"a", ordinal)
            if not done and entry is not None and entry.size == 9:
                done.append(b"a")
                os.rename(tmp_path / "saved", root / "a")

        _on_staged(here, then)
        os.rename(root / "a", tmp_path / "saved")
        (root / "a").write_bytes(b"different")
        made.rename(root / "new")
        assert await until(lambda: done and here.content(b"new/f050") and here.source.state == "ok")
        await asyncio.sleep(2.5)
        await here.source.scan_now()  # what `crnode sync` does: it finds nothing, for ever
        newest = here.catalog.newest()
        assert newest is not None and newest.flags & CLEAN
        assert (root / "a").read_bytes() == b"old"
        assert here.content(b"a") == right, "a clean image has other bytes than the file, and no scan sees it"

    capturing(tmp_path / "place", root, 0.1, work)


def test_a_resumed_image_forgets_what_is_deleted_while_it_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was cut off by a full disk, and goes on."""
    monkeypatch.setattr(module, "FULL_RETRY_SECONDS", 1.0)
    root, made = _made(tmp_path, monkeypatch)
    done: list[bytes] = []
    failed: list[int] = []

    async def work(here: Capturing) -> None:
        real = here.source.commit.finish

        def finish(*args: Any) -> Any:
            if args[2] and not failed:
                failed.append(1)
                here.source._loop.call_soon_threadsafe(
                    here.source._loop.call_later, 0.3, lambda: made.rename(root / "zz")
                )
                raise CrnodeError("No room.", "", "")
            return real(*args)

        here.source.commit.finish = finish  # type: ignore[method-assign]
        _on_staged(here, _delete_one(here, root, b"zz", done))
        (tmp_path / "first").mkdir()
        for n in range(50):
            (tmp_path / "first" / f"g{n}").write_bytes(b"%d" % n)
        (tmp_path / "first").rename(root / "first")
        assert await until(lambda: failed and done and here.content(b"zz/f050") and here.source.state == "ok")
        await asyncio.sleep(2.5)
        assert here.content(done[0]) is None, "a deleted file is in the newest image"

    capturing(tmp_path / "place", root, 0.1, work)


def test_a_folder_that_was_unknown_is_asked_for_again_once_it_is_staged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "BATCH_ENTRIES", 5)
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_bytes(b"f")
    (tmp_path / "place").mkdir()

    async def work(here: Capturing) -> None:
        source = here.source
        assert source._paths is not None
        empty = Job(source._paths, here.catalog, source._view, source._selection, None).flush()
        view = here.source.commit.stage(empty, False)  # an image in the making, as after a restart
        made = root / "new"
        made.mkdir()
        names = [b"new/%d" % n for n in range(8)]
        for name in names:
            (root / name.decode()).write_bytes(name)
        job = Job(source._paths, here.catalog, view, source._selection, None)
        for batch in job.run([(b"new", False), *((name, False) for name in names)]):
            here.source.commit.stage(batch, False)
        (root / "new" / "0").unlink()
        batches = [*job.run([(names[0], False)]), job.flush()]
        assert any(names[0] in batch.removed for batch in batches), "the deletion is not in the image"

    capturing(tmp_path / "place", root, 0.1, work)
