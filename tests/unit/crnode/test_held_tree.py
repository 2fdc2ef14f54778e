"""What a live tree does with a brake: it is asked before every move that it did not ask about itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from store_samples import SET, directory, file, put_file
from test_live_tree import Tree

from crnode.platform.files import boot_id
from crnode.replicate.brake import Brake, HeldBack, held
from crnode.replicate.live_tree import LiveTree
from crnode.replicate.place import prepare
from crnode.replicate.write import Policy
from crnode.store.reader import Live
from crproto.entries import Entry

COUNT = 60


def _text(number: int) -> bytes:
    return b"".join(b"%d: line %d\n" % (number, line) for line in range(150))


class Braked(Tree):
    """A live tree with a brake, both of which a new process makes anew."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        self.told: list[str] = []
        self.new()
        self.move([directory(b""), *(self.entry(n, _text(n)) for n in range(COUNT))])
        self.move([self.entry(0, b"a small change")])

    def new(self) -> None:
        get = self.store.get
        self.brake = Brake("docs", self.catalog, self._record, get, self.told.append, lambda: 50)
        place, _ = prepare(self.live, SET)
        self.tree = LiveTree(
            place, self.catalog, self.catalog.reader(), self._record, get, Policy(False, False),
            archive=False, check=self.brake.check,
        )  # fmt: skip

    def entry(self, number: int, data: bytes) -> Entry:
        return file(b"f%d" % number, put_file(self.store, data), len(data))

    def noise(self) -> list[Entry]:
        return [self.entry(n, os.urandom(3000)) for n in range(COUNT)]

    def shown(self) -> set[bytes]:
        return {path.read_bytes() for path in self.live.glob("f*")}


def test_a_move_that_only_the_commit_noted_is_judged_by_the_next_process(tmp_path: Path) -> None:
    """The commit of an image says where the tree goes; the agent is killed before the brake was asked."""
    tree = Braked(tmp_path)
    before = tree.shown()
    tree.new()
    with pytest.raises(HeldBack):
        tree.move(tree.noise())
    assert tree.shown() == before and held(tree.catalog) is not None
    live = tree.catalog.live()
    assert live is not None and live.state == "clean"


def test_a_tree_that_shows_nothing_goes_to_the_version_before(tmp_path: Path) -> None:
    tree = Braked(tmp_path)
    before = tree.shown()
    with pytest.raises(HeldBack):
        tree.move(tree.noise())
    for path in tree.live.glob("f*"):
        path.unlink()
    with tree.catalog.transaction():
        tree.catalog.forget_tree(boot_id())
    tree.new()
    report = tree.tree.move()
    assert report is not None and report.written >= COUNT
    assert tree.shown() == before
    with pytest.raises(HeldBack):
        tree.tree.move()
    assert tree.shown() == before and tree.told[1:] == []


def test_an_attack_that_came_while_nothing_is_shown_is_judged_too(tmp_path: Path) -> None:
    tree = Braked(tmp_path)
    before = tree.shown()
    for path in tree.live.glob("f*"):
        path.unlink()
    with tree.catalog.transaction():
        tree.catalog.forget_tree(boot_id())
    report = tree.move(tree.noise())
    assert report.written >= COUNT and tree.shown() == before and held(tree.catalog) is not None


def test_what_a_process_began_goes_on_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Braked(tmp_path)
    asked: list[bool] = []
    check = tree.brake.check
    tree.tree._check = lambda at, image, begun: (asked.append(begun), check(at, image, begun))[1]
    fail = tree.tree._deletions
    monkeypatch.setattr(tree.tree, "_deletions", lambda at, to: (_ for _ in ()).throw(OSError(5, "disk")))
    with pytest.raises(OSError, match="disk"):
        tree.move([tree.entry(1, b"another")])
    monkeypatch.setattr(tree.tree, "_deletions", fail)
    assert tree.tree.move() is not None
    assert asked == [False, True]
    assert tree.catalog.live() == Live(3, 3, 0, "clean", boot_id())
