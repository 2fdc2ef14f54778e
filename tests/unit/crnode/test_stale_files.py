"""Files of a live tree that could not be written: they stay what they were, nobody is blamed for it, and no
later change builds upon what is not there."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from store_samples import directory, file, put_file
from test_live_tree import Tree

from crnode.replicate import live_tree as live_tree_module
from crnode.replicate import write as write_module
from crnode.replicate.ahead import Ahead
from crnode.replicate.live_tree import LACKING
from crnode.store.store import Damaged
from crproto.entries import Entry

SIZE = 200_000


def _changed(data: bytes, at: int, seed: int) -> bytes:
    """`data` with 512 other bytes at `at`."""
    return data[:at] + random.Random(seed).randbytes(512) + data[at + 512 :]


class Patches:
    """A tree with one large file, which is patched in place, and chunks that cannot be read."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(live_tree_module, "IN_PLACE", 1)
        self.tree = Tree(tmp_path)
        self.path = self.tree.live / "f"
        self.first = random.Random(1).randbytes(SIZE)
        self.damaged: set[bytes] = set()
        self.tree.tree.load = self.load
        self.tree.move([directory(b""), self.version(self.first, 1)])
        self.inode = self.path.stat().st_ino

    def load(self, name: bytes) -> bytes:
        if name in self.damaged:
            raise Damaged(name)
        return self.tree.store.get(name)

    def version(self, data: bytes, mtime_ns: int, mode: int = 0o644) -> Entry:
        return file(b"f", put_file(self.tree.store, data), len(data), mtime_ns)._replace(mode=mode)

    def chunk_at(self, entry: Entry, at: int) -> bytes:
        """The id of the chunk that has the byte `at`."""
        assert entry.content is not None
        walk = write_module.content.walk(entry.content, entry.level, self.tree.store.get)
        return next(name for offset, length, name in walk if offset <= at < offset + length)

    def damage(self, entry: Entry, at: int) -> None:
        self.damaged = {self.chunk_at(entry, at)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Patches:
    return Patches(tmp_path, monkeypatch)


def test_a_change_whose_content_is_damaged_leaves_the_file_as_it_was(here: Patches) -> None:
    second = _changed(_changed(here.first, 1000, 2), 150_000, 3)
    entry = here.version(second, 2)
    here.damage(entry, 150_000)
    report = here.tree.move([entry])
    assert report.unapplied == {b"f": LACKING} and report.set_aside == []
    assert here.path.read_bytes() == here.first and here.path.stat().st_mtime_ns == 1
    here.damaged = set()
    healed = here.tree.tree.repair([b"f"])
    assert healed.set_aside == [] and healed.unapplied == {}
    assert here.path.read_bytes() == second


def test_a_larger_change_that_ends_in_damage_is_nobodys_change(
    here: Patches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_module, "LOADED", 1)
    second = _changed(_changed(_changed(here.first, 1000, 2), 80_000, 4), 150_000, 3)
    entry = here.version(second, 2)
    here.damage(entry, 150_000)
    report = here.tree.move([entry])
    assert report.unapplied == {b"f": LACKING}
    assert here.path.read_bytes() not in (here.first, second)  # a mixture, and told to be
    here.damaged = set()
    healed = here.tree.tree.repair([b"f"])
    assert healed.set_aside == [] and here.path.read_bytes() == second


@pytest.mark.parametrize("loaded", [1, 1 << 20], ids=["left as a mixture", "left as it was"])
@pytest.mark.parametrize("how", ["content", "mode", "nothing"])
def test_the_next_image_does_not_build_upon_a_file_that_was_not_written(
    here: Patches, monkeypatch: pytest.MonkeyPatch, loaded: int, how: str
) -> None:
    monkeypatch.setattr(write_module, "LOADED", loaded)
    second = _changed(_changed(_changed(here.first, 1000, 2), 80_000, 4), 150_000, 3)
    entry = here.version(second, 2)
    here.damage(entry, 150_000)
    assert here.tree.move([entry]).unapplied == {b"f": LACKING}
    here.damaged = set()
    third = _changed(second, 50_000, 5) if how == "content" else second
    changes: dict[str, list[Entry]] = {
        "content": [here.version(third, 3)],
        "mode": [entry._replace(mode=0o600)],
        "nothing": [file(b"other", put_file(here.tree.store, b"x"), 1)],
    }
    report = here.tree.move(changes[how])
    assert report.set_aside == [] and report.unapplied == {}
    assert here.path.read_bytes() == third
    assert here.path.stat().st_ino != here.inode
    # Once it is what the image has, changes are made in place again.
    inode = here.path.stat().st_ino
    fourth = _changed(third, 120_000, 6)
    here.tree.move([here.version(fourth, 4)])
    assert here.path.read_bytes() == fourth and here.path.stat().st_ino == inode


def test_after_a_repair_changes_are_made_in_place_again(here: Patches) -> None:
    second = _changed(here.first, 1000, 2)
    entry = here.version(second, 2)
    here.damage(entry, 1000)
    here.tree.move([entry])
    here.damaged = set()
    here.tree.tree.repair([b"f"])
    inode = here.path.stat().st_ino
    third = _changed(second, 120_000, 6)
    here.tree.move([here.version(third, 3)])
    assert here.path.read_bytes() == third and here.path.stat().st_ino == inode


def test_a_repair_that_cannot_read_it_either_leaves_it_to_the_next_move(here: Patches) -> None:
    second = _changed(here.first, 1000, 2)
    entry = here.version(second, 2)
    here.damage(entry, 1000)
    here.tree.move([entry])
    assert here.tree.tree.repair([b"f"]).unapplied == {b"f": LACKING}
    here.damaged = set()
    third = _changed(second, 120_000, 6)
    report = here.tree.move([here.version(third, 3)])
    assert report.unapplied == {} and here.path.read_bytes() == third


def test_a_change_in_place_that_has_no_room_goes_on_once_what_was_made_ahead_is_dropped(
    here: Patches, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = write_module._write_all, [3]

    def write(fd: int, data: bytes, at: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "no room")
        real(fd, data, at)

    monkeypatch.setattr(write_module, "_write_all", write)
    monkeypatch.setattr(Ahead, "give_up", lambda _: left[0] == 0)
    second = _changed(_changed(_changed(here.first, 1000, 2), 80_000, 4), 150_000, 3)
    report = here.tree.move([here.version(second, 2)])
    assert left[0] < 0
    assert report.set_aside == [] and report.unapplied == {}
    assert here.path.read_bytes() == second and here.path.stat().st_ino == here.inode


def test_an_attribute_that_is_refused_does_not_make_every_new_file_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the rename itself can say that the file system has no rename that replaces nothing."""
    tree = Tree(tmp_path)
    real: Callable[..., None] = os.utime

    def utime(path: int | str, *more: object, **times: tuple[int, int]) -> None:
        if times.get("ns") == (7, 7):
            raise OSError(errno.EINVAL, "no such time here")
        real(path, *more, **times)

    monkeypatch.setattr(write_module.os, "utime", utime)
    data = b"new"
    name = put_file(tree.store, data)
    report = tree.move([directory(b""), file(b"a", name, 3, 7), file(b"b", name, 3, 1)])
    assert list(report.unapplied) == [b"a"] and "Invalid argument" in report.unapplied[b"a"]
    assert (tree.live / "b").read_bytes() == data
    assert tree.tree._can_be_new
