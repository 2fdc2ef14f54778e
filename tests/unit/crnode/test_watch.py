"""The inotify reader on real directories: what it reports, in which paths; nothing is lost silently."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crnode.capture.settle import Change
from crnode.capture.watch import Watcher


class Seen:
    def __init__(self, root: Path, cookies: Path) -> None:
        self.root = root
        self.changes: list[tuple[bytes, Change]] = []
        self.lost: list[str] = []
        self.watcher = Watcher(cookies, lambda p, c: self.changes.append((p, c)), self.lost.append)
        self.add(b"")

    def add(self, path: bytes) -> None:
        fd = os.open(os.path.join(os.fsencode(self.root), path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.watcher.watch(path, fd)
        finally:
            os.close(fd)

    def all(self) -> list[tuple[bytes, Change]]:
        """Everything up to now: waits for a cookie, as captures do."""
        met: list[bool] = []
        self.watcher.cookie(lambda: met.append(True))
        deadline = time.monotonic() + 5
        while not met:
            assert time.monotonic() < deadline, "the cookie's event never came"
            select.select([self.watcher.fd], [], [], 0.1)
            self.watcher.read()
        out, self.changes[:] = list(self.changes), []
        return out


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Seen]:
    root = tmp_path / "root"
    root.mkdir()
    made = Seen(root, tmp_path / "cookies")
    yield made
    made.watcher.close()


def test_a_written_file_is_done_when_closed_and_its_directory_changed(seen: Seen) -> None:
    (seen.root / "a").write_bytes(b"x")
    changes = seen.all()
    assert changes[0] == (b"a", Change.WRITTEN)
    assert changes[-1] == (b"a", Change.DONE)
    assert (b"", Change.DONE) in changes


def test_a_new_directory_is_a_tree_and_its_files_are_seen_once_watched(seen: Seen) -> None:
    (seen.root / "d").mkdir()
    assert (b"d", Change.TREE) in seen.all()
    seen.add(b"d")
    (seen.root / "d" / "f").write_bytes(b"x")
    assert (b"d/f", Change.DONE) in seen.all()


def test_a_renamed_directory_moves_with_all_its_watches(seen: Seen) -> None:
    (seen.root / "d" / "e").mkdir(parents=True)
    seen.all()
    seen.add(b"d")
    seen.add(b"d/e")
    count = seen.watcher.count()
    (seen.root / "d").rename(seen.root / "moved")
    changes = seen.all()
    assert (b"d", Change.DONE) in changes
    assert (b"moved", Change.TREE) in changes
    (seen.root / "moved" / "e" / "f").write_bytes(b"x")
    assert (b"moved/e/f", Change.DONE) in seen.all()
    assert seen.watcher.count() == count


def test_a_directory_that_leaves_takes_its_watches_with_it(seen: Seen, tmp_path: Path) -> None:
    (seen.root / "d" / "e").mkdir(parents=True)
    seen.all()
    seen.add(b"d")
    seen.add(b"d/e")
    (seen.root / "d").rename(tmp_path / "outside")
    assert (b"d", Change.DONE) in seen.all()
    (tmp_path / "outside" / "e" / "f").write_bytes(b"x")
    assert [p for p, _ in seen.all() if p.startswith(b"d")] == []
    assert seen.watcher.count() == 1


def test_names_that_are_not_utf8(seen: Seen) -> None:
    Path(os.fsdecode(os.fsencode(seen.root) + b"/\xff\xfe")).write_bytes(b"x")
    assert (b"\xff\xfe", Change.DONE) in seen.all()


def test_overflow_is_told(seen: Seen) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 200_000:
        pytest.skip(f"the queue holds {limit} events here: too many to fill in a test")
    path = seen.root / "f"
    path.write_bytes(b"")
    for number in range(limit + 10):
        os.utime(path, ns=(0, number))  # equal neighbours are merged by the kernel: alternate two kinds
        with open(path, "ab") as file:
            file.write(b"x")
    seen.watcher.read()
    deadline = time.monotonic() + 5
    while not seen.lost and time.monotonic() < deadline:
        seen.watcher.read()
    assert seen.lost == ["the kernel's event queue overflowed"]


def test_a_removed_root_is_told(seen: Seen) -> None:
    seen.root.rmdir()
    seen.all()
    assert seen.lost


def test_a_directory_whose_parent_is_gone_is_no_root(seen: Seen) -> None:
    (seen.root / "d" / "e").mkdir(parents=True)
    fd = os.open(seen.root / "d" / "e", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(FileNotFoundError):  # `d` was never watched: it came and went
            seen.watcher.watch(b"d/e", fd)
    finally:
        os.close(fd)
    (seen.root / "d" / "e").rmdir()
    seen.all()
    assert not seen.lost, "its end was taken for the root's"
