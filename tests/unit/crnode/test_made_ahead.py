"""Files that a second thread writes ahead of the move: what cannot be made, is not wanted, or has no room."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from store_samples import SET, commit, directory, file, put_file, small_store

from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import boot_id
from crnode.replicate import ahead, write
from crnode.replicate.live_tree import LACKING, LiveTree, Report
from crnode.replicate.place import prepare
from crnode.replicate.write import Policy, TreeWriter
from crnode.store.catalog import Catalog
from crnode.store.reader import Live
from crnode.store.store import Damaged
from crproto.entries import Entry

COUNT = 5 * ahead.FEW
SIZE = 8192


def _bytes(number: int, generation: int) -> bytes:
    return (b"%d of %d " % (number, generation) * SIZE)[:SIZE]


class Tree:
    def __init__(self, tmp_path: Path, live: Path) -> None:
        self.store = small_store(tmp_path / "store")
        self.catalog = Catalog(tmp_path / "sets" / "one.db", SET)
        self.live = live
        self.damaged: set[bytes] = set()
        self.threads: set[str] = set()  # that read content
        place, _ = prepare(live, SET)
        self.tree = LiveTree(
            place, self.catalog, self.catalog.reader(), self._record, self.load, Policy(False, False),
            archive=False,
        )  # fmt: skip

    def load(self, content: bytes) -> bytes:
        self.threads.add(threading.current_thread().name)
        if content in self.damaged:
            raise Damaged(content)
        return self.store.get(content)

    def _record(self, work: Any) -> None:
        with self.catalog.transaction():
            work()

    def files(self, generation: int) -> list[Entry]:
        made = []
        for number in range(COUNT):
            name = put_file(self.store, _bytes(number, generation), SIZE)
            made.append(file(b"d/f%03d" % number, name, SIZE, generation))
        return [directory(b""), directory(b"d", generation), *made]

    def move(self, changed: list[Entry]) -> Report:
        image = commit(self.catalog, changed, [])
        with self.catalog.transaction():
            live = self.catalog.live() or Live(0, 0, 0, "clean", boot_id())
            self.catalog.set_live(live._replace(target=image.ordinal, state="moving"))
        report = self.tree.move()
        assert report is not None
        return report

    def shows(self, generation: int, but: int | None = None) -> None:
        """All files are there, whole, and nothing else: no temporary either."""
        wanted = {f"f{n:03}": _bytes(n, generation) for n in range(COUNT) if n != but}
        assert {p.name: p.read_bytes() for p in (self.live / "d").iterdir()} == wanted
        assert os.listdir(self.tree.place.temporary) == []


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, tmp_path / "live")


def test_many_files_are_made_in_another_thread_too_and_all_come_right(tree: Tree) -> None:
    report = tree.move(tree.files(1))
    assert (report.written, report.bytes) == (COUNT + 2, COUNT * SIZE)
    tree.shows(1)
    assert any(name.startswith("ahead") for name in tree.threads)
    tree.move(tree.files(2))
    tree.shows(2)
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]


def test_a_file_whose_content_is_damaged_is_told_and_the_others_are_written(tree: Tree) -> None:
    files = tree.files(1)
    broken = files[2 + COUNT // 2]
    assert broken.content is not None
    tree.damaged = {broken.content}
    report = tree.move(files)
    assert (report.damaged, report.unapplied) == ({broken.content}, {broken.path: LACKING})
    tree.shows(1, but=COUNT // 2)


def test_what_was_made_for_a_move_that_is_stopped_is_removed(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tree.tree._done

    def stop(path: bytes, *more: Any) -> None:
        done(path, *more)
        tree.tree.stopping = path.endswith(b"f020")

    monkeypatch.setattr(tree.tree, "_done", stop)
    with pytest.raises(CrnodeError):
        tree.move(tree.files(1))
    assert os.listdir(tree.tree.place.temporary) == []
    assert len(os.listdir(tree.live / "d")) == 21
    monkeypatch.undo()
    tree.tree.stopping = False
    tree.tree.move()
    tree.shows(1)


def test_a_local_change_is_found_however_far_the_other_thread_is(tree: Tree) -> None:
    tree.move(tree.files(1))
    (tree.live / "d" / "f100").write_bytes(b"somebody's own")
    report = tree.move(tree.files(2))
    assert report.set_aside == [b"d/f100"]
    tree.shows(2)
    kept = [p for p in tree.tree.place.aside.rglob("f100") if p.is_file()]
    assert [p.read_bytes() for p in kept] == [b"somebody's own"]


@pytest.mark.parametrize("cannot", [False, True], ids=["", "where the file system cannot tell"])
def test_a_file_that_somebody_makes_where_a_new_one_comes_is_kept(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, cannot: bool
) -> None:
    """Whether it is there before, or comes when the new one is written and not named yet."""
    (tree.live / "d").mkdir(parents=True)
    (tree.live / "d" / "f010").write_bytes(b"before")
    if cannot:

        def no(*_: Any, **__: Any) -> None:
            raise OSError(errno.EINVAL, "no")

        monkeypatch.setattr(write, "rename_new", no)
    else:
        parent = TreeWriter.parent

        def late(self: TreeWriter, path: bytes) -> tuple[int, bytes]:
            found = parent(self, path)
            mine = tree.live / "d" / "f020"
            if path == b"d/f020" and not mine.exists():
                mine.write_bytes(b"late")
            return found

        monkeypatch.setattr(TreeWriter, "parent", late)
    report = tree.move(tree.files(1))
    monkeypatch.undo()
    kept = {p.name: p.read_bytes() for p in tree.tree.place.aside.rglob("f0*") if p.is_file()}
    assert kept == ({"f010": b"before"} if cannot else {"f010": b"before", "f020": b"late"})
    assert set(report.set_aside) == {b"d/" + name.encode() for name in kept}
    tree.shows(1)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Tree]:
    """A tree on a file system that holds one generation of the files, and a few more."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root")
    place = tmp_path / "disk"
    place.mkdir()
    size = COUNT * SIZE + 20 * SIZE
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield Tree(tmp_path, place)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_files_that_are_replaced_one_after_the_other_need_no_more_room_than_that(small: Tree) -> None:
    """What is made ahead has its room before that of the files it replaces is free."""
    small.move(small.files(1))
    small.move(small.files(2))
    small.shows(2)


def test_a_disk_that_is_full_is_told_and_nothing_is_left_on_it(small: Tree) -> None:
    many = small.files(1) + [e._replace(path=b"e" + e.path[1:]) for e in small.files(1)[1:]]
    with pytest.raises(CrnodeError) as refused:
        small.move(many)
    assert refused.value.exit_code is ExitCode.FULL
    assert os.listdir(small.tree.place.temporary) == []
