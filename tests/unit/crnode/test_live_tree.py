"""Moves of a live tree: groups of hard links, folders that come later than what is in them, deletions that
wait for an image that confirms them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from store_samples import SET, commit, directory, file, finish, put_file, small_store

from crnode.platform.files import boot_id
from crnode.replicate import turn
from crnode.replicate.live_tree import LiveTree, Report
from crnode.replicate.place import prepare
from crnode.replicate.turn import note_source, to_target
from crnode.replicate.write import Policy, fingerprint
from crnode.store.catalog import Catalog
from crnode.store.reader import ROLLING, Image, Live
from crproto.entries import SYMLINK, Entry, Extra, entry_from_wire

LINK = Extra(None, (), None, None, bytes(9) + b"\7", False).encode()


class Tree:
    def __init__(self, tmp_path: Path) -> None:
        self.store = small_store(tmp_path / "store")
        self.catalog = Catalog(tmp_path / "sets" / "one.db", SET)
        self.live = tmp_path / "live"
        place, _ = prepare(self.live, SET)
        self.tree = LiveTree(
            place, self.catalog, self.catalog.reader(), self._record, self.store.get, Policy(False, False),
            archive=False,
        )  # fmt: skip

    def _record(self, work: Any) -> None:
        with self.catalog.transaction():
            work()

    def move(self, changed: Sequence[Entry], removed: Sequence[bytes] = ()) -> Report:
        return self.move_to(commit(self.catalog, changed, removed))

    def move_to(self, image: Image) -> Report:
        with self.catalog.transaction():
            live = self.catalog.live() or Live(0, 0, 0, "clean", boot_id())
            self.catalog.set_live(live._replace(target=image.ordinal, state="moving"))
        report = self.tree.move()
        assert report is not None
        return report

    def roll(self, changed: Sequence[Entry], removed: Sequence[bytes] = ()) -> Report:
        """Move to an image that is rolling."""
        image = commit(self.catalog, changed, removed)
        with self.catalog.transaction():
            self.catalog._db.execute("UPDATE image SET flags=? WHERE ordinal=?", (ROLLING, image.ordinal))
        return self.move_to(image)


def test_a_name_of_a_group_in_what_was_a_file_until_now(tmp_path: Path) -> None:
    """rm b; mkdir b; ln a b/x: the group is written when `a` comes, and `b` is a file until then."""
    tree = Tree(tmp_path)
    old, data = put_file(tree.store, b"old"), put_file(tree.store, b"data")
    tree.move([directory(b""), file(b"a", data, 4), file(b"b", old, 3)])
    report = tree.move([file(b"a", data, 4, extra=LINK), directory(b"b"), file(b"b/x", data, 4, extra=LINK)])
    assert not report.unapplied
    assert (tree.live / "b" / "x").samefile(tree.live / "a")
    assert os.listdir(tree.tree.place.temporary) == []  # the names of a first try would keep its room


def test_the_folder_of_an_old_name_keeps_its_time_when_a_name_joins_the_group(tmp_path: Path) -> None:
    """ln a/one c/three, where a/one and b/two are one file: neither entries nor folders of those change."""
    tree = Tree(tmp_path)
    data = put_file(tree.store, b"data")
    names = [file(p, data, 4, extra=LINK) for p in (b"a/one", b"b/two", b"c/three")]
    folders = [directory(p) for p in (b"", b"a", b"b", b"c")]
    tree.move([*folders, *names[:2]])
    before = [(tree.live / name).stat().st_mtime_ns for name in "abc"]
    assert before == [folder.mtime_ns for folder in folders[1:]]
    report = tree.move([folders[3]._replace(mode=0o700), names[2]])
    assert not report.unapplied
    assert (tree.live / "a" / "one").samefile(tree.live / "c" / "three")
    assert [(tree.live / name).stat().st_mtime_ns for name in "abc"] == before, os.listdir(tree.live)


def test_a_file_below_what_was_a_file_comes_before_the_folder_itself(tmp_path: Path) -> None:
    """Rows come by the number of their directory, and that of x/b may be smaller than that of x."""
    tree = Tree(tmp_path)
    data = put_file(tree.store, b"data")
    tree.move([file(b"x/b/f", data, 4), directory(b"x/b"), directory(b"x"), directory(b"")])
    tree.move([file(b"x/b", data, 4)], [b"x/b/f"])
    report = tree.move([directory(b"x/b"), file(b"x/b/f", data, 4)])
    assert not report.unapplied
    assert (tree.live / "x" / "b" / "f").read_bytes() == b"data"


def test_groups_of_files_and_of_symbolic_links_may_have_one_name(tmp_path: Path) -> None:
    """Inode numbers are handed out again, and a peer may lie."""
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "sets" / "one.db", SET)
    link = bytes(9) + b"\7"
    named = put_file(store, b"data")
    files = [file(p, named, 4, extra=Extra(None, (), None, None, link, False).encode()) for p in (b"a", b"b")]
    links = [
        Entry(p, SYMLINK, 0o777, "u", 1, "g", 2, 0, 0, None, 0, Extra(b"there", link=link).encode())
        for p in (b"c", b"d")
    ]
    for entry in files + links:
        entry_from_wire(tuple(entry))  # any target takes them
    image = commit(catalog, [directory(b""), *files, *links])
    with catalog.transaction():
        catalog.set_live(Live(0, image.ordinal, 0, "moving", boot_id()))

    def record(work: Any) -> None:
        with catalog.transaction():
            work()

    place, _ = prepare(tmp_path / "live", SET)
    tree = LiveTree(place, catalog, catalog.reader(), record, store.get, Policy(False, False), archive=False)
    report = tree.move()
    assert report is not None and not report.unapplied
    live = catalog.live()
    assert live is not None and (live.at, live.state) == (image.ordinal, "clean")
    assert sorted(os.listdir(tmp_path / "live")) == ["a", "b", "c", "d"]


def test_what_had_changed_when_a_rolling_image_deletes_it_waits_too(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    one, two = put_file(tree.store, b"one"), put_file(tree.store, b"two")
    tree.move([directory(b""), file(b"f", one, 3), file(b"g", one, 3), file(b"h", one, 3)])
    commit(tree.catalog, [file(b"f", two, 3, 5)], [b"h"])  # the tree does not come to this one
    tree.roll([], [b"f", b"g"])
    assert sorted(os.listdir(tree.live)) == ["f", "g"]  # h was deleted before
    tree.roll([file(b"i", one, 3)])
    assert os.listdir(tree.live) == ["i"]


def test_a_folder_that_a_rolling_image_deletes_waits_with_what_is_in_it(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    one = put_file(tree.store, b"one")
    tree.move([directory(b""), directory(b"d"), file(b"d/f", one, 3)])
    commit(tree.catalog, [directory(b"d", 5)])
    assert tree.roll([], [b"d", b"d/f"]).set_aside == []
    assert (tree.live / "d" / "f").exists()
    assert tree.move([]).set_aside == []
    assert os.listdir(tree.live) == []


def test_what_came_back_and_is_deleted_by_the_next_rolling_image_waits_again(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    one = put_file(tree.store, b"one")
    tree.move([directory(b""), file(b"f", one, 3)])
    tree.roll([], [b"f"])
    commit(tree.catalog, [file(b"f", one, 3)])
    tree.roll([], [b"f"])
    assert (tree.live / "f").exists()


def test_a_deletion_waits_though_the_image_before_the_rolling_one_was_pruned(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    one, two = put_file(tree.store, b"one"), put_file(tree.store, b"two")
    tree.move([directory(b""), file(b"f", one, 3)])
    first = tree.catalog.newest()
    assert first is not None
    commit(tree.catalog, [file(b"f", two, 3, 5)])
    image = commit(tree.catalog, [], [b"f"])
    with tree.catalog.transaction():
        tree.catalog._db.execute("UPDATE image SET flags=? WHERE ordinal=?", (ROLLING, image.ordinal))
        tree.catalog.prune({first.ordinal, image.ordinal}, 1000)
    tree.move_to(image)
    assert (tree.live / "f").exists()


def test_names_that_an_image_calls_one_file_and_that_differ_are_not_made_one(tmp_path: Path) -> None:
    """An inode number came again while an old name kept its entry, and a peer may lie."""
    tree = Tree(tmp_path)
    one, two = put_file(tree.store, b"v1"), put_file(tree.store, b"v2")
    tree.move([directory(b""), file(b"a", one, 2, extra=LINK), file(b"b", one, 2, extra=LINK)])
    report = tree.move([file(b"c", two, 2, extra=LINK), file(b"d", two, 2, extra=LINK)], [b"b"])
    assert not report.unapplied
    assert [(tree.live / name).read_bytes() for name in "acd"] == [b"v1", b"v2", b"v2"]
    assert (tree.live / "c").samefile(tree.live / "d")
    tree.move([file(b"c", one, 2, extra=LINK), file(b"d", two, 2, 5, extra=LINK)])
    assert [(tree.live / name).read_bytes() for name in "acd"] == [b"v1", b"v1", b"v2"]
    assert (tree.live / "a").samefile(tree.live / "c")
    assert (tree.live / "d").stat().st_nlink == 1
    for name in "acd":
        (tree.live / name).unlink()
    report = tree.tree.repair([b"a", b"c", b"d"])
    assert [(tree.live / name).read_bytes() for name in "acd"] == [b"v1", b"v1", b"v2"]
    assert report.written == 4 and not report.unapplied and report.put_right == {b"a", b"c", b"d"}


def test_a_group_that_is_put_right_is_written_once(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    data = put_file(tree.store, b"data")
    names = [b"d/n%d" % number for number in range(30)]
    tree.move([directory(b""), directory(b"d"), *(file(path, data, 4, extra=LINK) for path in names)])
    for name in names:
        (tree.live / os.fsdecode(name)).unlink()
    report = tree.tree.repair(names)
    assert report.bytes == len(b"data")
    assert report.written == len(names) + 1  # and the folder's time
    first = tree.live / os.fsdecode(names[0])
    assert first.stat().st_nlink == len(names) and report.put_right == set(names)


def test_a_page_that_a_power_cut_took_from_a_former_source_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Tree(tmp_path)
    catalog = tree.catalog
    old, page = put_file(tree.store, b"old"), put_file(tree.store, b"page")
    tree.move([directory(b""), file(b"old", old, 3)])
    with catalog.transaction():
        image = finish(catalog, catalog.next_ordinal(), [file(b"page", page, 4)], (), 10**15)
    tree.move_to(image)
    monkeypatch.setattr(turn, "boot_id", lambda: "the boot before")
    note_source(catalog)
    monkeypatch.setattr(turn, "boot_id", boot_id)
    for name in ("old", "page"):  # the disk has something else, and says that it is what was written
        (tree.live / name).write_bytes(b"lost")
        with catalog.transaction():
            catalog.see(name.encode(), fingerprint((tree.live / name).stat()))
    to_target(catalog, tree.live)
    assert tree.tree.move() is not None
    assert (tree.live / "page").read_bytes() == b"page"
    assert (tree.live / "old").read_bytes() == b"lost"  # of long before: a scrub finds what is wrong with it
    assert tree.tree.move() is None and not catalog.any_touched()
