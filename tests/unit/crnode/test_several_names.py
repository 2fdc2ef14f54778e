"""Files with several names, of which inotify tells the one that was used: all have one content in the end."""

from __future__ import annotations

import asyncio
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rot_samples import Capturing, capturing, until

from crnode.capture import job as job_module
from crnode.capture.job import Batch, Job
from crnode.capture.read import PathReader
from crnode.capture.watch import IN_Q_OVERFLOW, Watcher
from crnode.store.reader import CLEAN, Image
from crproto.entries import link_of
from crproto.ids import chunk_id

Take = Callable[[Job, bytes], list[bytes]]


async def quiet(here: Capturing, seconds: float = 2.5) -> Image:
    """The newest image, after two polls without anything to do."""
    await asyncio.sleep(seconds)
    assert await until(lambda: here.source._settle.due() is None and here.source.state == "ok")
    newest = here.catalog.newest()
    assert newest is not None and newest.flags & CLEAN
    return newest


def _ordinal(here: Capturing) -> int:
    newest = here.catalog.newest()
    assert newest is not None
    return newest.ordinal


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    made = tmp_path / "root"
    made.mkdir()
    (made / "keep").write_bytes(b"k")
    return made


def test_a_name_that_was_looked_at_in_an_earlier_batch(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    (made / "s").mkdir(parents=True)
    (root / "a").write_bytes(b"v0")
    os.link(root / "a", root / "b")
    for number in range(8):
        (made / "s" / f"n{number}").write_bytes(b"n%d" % number)
    monkeypatch.setattr(job_module, "BATCH_ENTRIES", 6)
    real, calls, written = Job._take, [], []

    async def work(here: Capturing) -> None:
        def take(self: Job, path: bytes) -> list[bytes]:
            if path.startswith(b"d/s/n"):
                calls.append(path)
            if path == b"b" and len(calls) == 8 and not written:  # its own event's turn
                written.append(1)
                with open(root / "b", "ab") as file:
                    file.write(b" v2")
            return real(self, path)

        monkeypatch.setattr(Job, "_take", take)
        here.source._recent.clear()
        os.link(root / "a", made / "c")
        os.rename(made, root / "d")
        os.chmod(root / "b", 0o600)
        assert await until(lambda: bool(written))
        await quiet(here)
        want = chunk_id((root / "a").read_bytes())
        assert [name for name in (b"a", b"b", b"d/c") if here.content(name) != want] == []

    capturing(tmp_path / "place", root, 0.1, work)


def test_a_link_that_is_made_before_the_file_is_opened(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of its names and its fingerprint are of one moment, or nobody would ever look again."""
    real, done = PathReader.take, []

    def take(self: PathReader, path: bytes, *more: Any) -> Any:
        if path == b"x" and not done:
            done.append(1)
            os.link(root / "x", root / "t")  # as ln -f does
            os.rename(root / "t", root / "y")
        return real(self, path, *more)

    monkeypatch.setattr(PathReader, "take", take)

    async def work(here: Capturing) -> None:
        (root / "x").write_bytes(b"data")
        assert await until(lambda: bool(done))
        newest = await quiet(here)
        x, y = (here.catalog.entry(name, newest.ordinal) for name in (b"x", b"y"))
        assert x is not None and y is not None
        assert link_of(x) == link_of(y) is not None

    capturing(tmp_path / "place", root, 0.1, work)


@pytest.mark.parametrize("seed", [6, 9, 11])
def test_names_of_a_file_that_is_written_while_they_are_taken(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Not all are taken again in this point; what is left the next one takes."""
    chance = random.Random(seed)
    (root / "a").write_bytes(b"v0")
    for name in "bc":
        os.link(root / "a", root / name)
    real = Job._take
    left, share = chance.randrange(20, 60), chance.choice((0.5, 0.7, 0.9))

    def more() -> None:
        with open(root / "a", "ab") as file:
            file.write(b".")

    async def work(here: Capturing) -> None:
        def take(self: Job, path: bytes) -> list[bytes]:
            nonlocal left
            out = real(self, path)
            if left > 0 and path in (b"a", b"b", b"c"):
                left -= 1
                if chance.random() < share:
                    more()
            return out

        monkeypatch.setattr(Job, "_take", take)
        here.source._recent.clear()
        more()
        await until(lambda: left <= 0, 10.0)
        monkeypatch.setattr(Job, "_take", real)
        await quiet(here)
        want = chunk_id((root / "a").read_bytes())
        assert [name for name in (b"a", b"b", b"c") if here.content(name) != want] == []

    capturing(tmp_path / "place", root, 0.1, work)


def test_what_cannot_be_taken_is_no_name_of_a_file_that_may_be_gone(tmp_path: Path, root: Path) -> None:
    """It keeps its content, but not its group: the number of the inode is handed out again, and c would be
    said to be the same file as a."""
    (root / "a").write_bytes(b"of a and b")
    os.link(root / "a", root / "b")

    async def work(here: Capturing) -> None:
        content = here.content(b"a")
        os.mkfifo(root / "t")
        os.rename(root / "t", root / "a")
        newest = await quiet(here)
        a, b = (here.catalog.entry(name, newest.ordinal) for name in (b"a", b"b"))
        assert a is not None and a.content == content and link_of(a) is None
        assert b is not None and b.content == content
        assert [path for path, _ in here.source.lost] == [b"a"]
        await here.source.scan_now()
        assert (await quiet(here, 0.2)).ordinal == newest.ordinal

    capturing(tmp_path / "place", root, 0.1, work)


def test_a_point_in_which_events_are_lost_is_rolling(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was moved meanwhile may be missing under both names."""
    for name in ("d", "e"):
        (root / name).mkdir()
    (root / "d" / "f").write_bytes(b"data")
    real_event, real_take, lost = Watcher._event, Job._take, []

    def event(self: Watcher, wd: int, mask: int, cookie: int, name: bytes) -> None:
        if name == b"g":  # the queue is full here
            if not lost:
                lost.append(1)
                real_event(self, -1, IN_Q_OVERFLOW, 0, b"")
            return
        real_event(self, wd, mask, cookie, name)

    def take(self: Job, path: bytes) -> list[bytes]:
        if path == b"x" and (root / "d" / "f").exists():
            os.rename(root / "d" / "f", root / "e" / "g")
        return real_take(self, path)

    async def work(here: Capturing) -> None:
        monkeypatch.setattr(Watcher, "_event", event)
        monkeypatch.setattr(Job, "_take", take)
        newest = here.catalog.newest()
        assert newest is not None
        (root / "x").write_bytes(b"a point is due")
        await until(lambda: here.content(b"e/g") is not None)
        await quiet(here, 0.5)
        torn = [
            image.ordinal
            for image in here.catalog.images()
            if image.ordinal > newest.ordinal
            and image.flags & CLEAN
            and here.catalog.entry(b"d/f", image.ordinal) is None
            and here.catalog.entry(b"e/g", image.ordinal) is None
        ]
        assert lost and not torn

    capturing(tmp_path / "place", root, 0.1, work)


def test_memory_of_many_names_grows_with_their_number(tmp_path: Path, root: Path) -> None:
    count = 1500
    (root / "a").write_bytes(b"a")
    for number in range(count - 1):
        os.link(root / "a", root / f"name-of-it-{number:05}")

    async def work(here: Capturing) -> None:
        newest = here.catalog.newest()
        assert newest is not None
        tracemalloc.start()
        os.chmod(root / "a", 0o600)
        try:
            assert await until(lambda: _ordinal(here) > newest.ordinal, 60)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < count * 20_000  # bytes for each name
        names = (b"name-of-it-%05d" % number for number in range(count - 1))
        entries = [here.catalog.entry(name, _ordinal(here)) for name in names]
        assert {entry.mode for entry in entries if entry is not None} == {0o600} and None not in entries

    capturing(tmp_path / "place", root, 0.1, work)


def test_a_batch_of_fingerprints_alone_is_bounded(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restore from a backup: other inodes, the same entries. No image is made of that."""
    monkeypatch.setattr(job_module, "BATCH_PRINTS", 50)
    for number in range(300):
        (root / f"f{number}").write_bytes(b"%d" % number)
    real, sizes = Job.flush, []

    def flush(self: Job) -> Batch:
        batch = real(self)
        sizes.append(len(batch.prints))
        return batch

    monkeypatch.setattr(Job, "flush", flush)

    async def work(here: Capturing) -> None:
        newest = await quiet(here)
        sizes.clear()
        for number in range(300):
            info = (root / f"f{number}").stat()
            (root / "new").write_bytes(b"%d" % number)
            os.utime(root / "new", ns=(info.st_mtime_ns, info.st_mtime_ns))
            os.rename(root / "new", root / f"f{number}")
        await here.source.scan_now()
        after = await quiet(here)
        assert max(sizes) <= 60
        assert after.entries == newest.entries
        for number in range(300):
            print_ = here.catalog.fingerprint(b"f%d" % number)
            assert print_ is not None and print_.ino == (root / f"f{number}").stat().st_ino

    capturing(tmp_path / "place", root, 0.1, work)
