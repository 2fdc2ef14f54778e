"""What a source commits is a tree, whatever the paths were while they were read."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_samples import INCARNATION, SET, directory, file, random_chunks, small_store

from crnode.capture.commit import Point, SourceCommit
from crnode.capture.job import Batch
from crnode.store.catalog import Catalog
from crnode.store.reader import CLEAN
from crproto.entries import Entry


@pytest.fixture
def commit(tmp_path: Path) -> SourceCommit:
    catalog = Catalog(tmp_path / "set.db", SET)
    return SourceCommit(catalog, small_store(tmp_path / "store"), INCARNATION, 0, 1, lambda: 1, set)


def finish(commit: SourceCommit, changed: list[Entry], removed: tuple[bytes, ...] = ()) -> Point:
    batch = Batch()
    batch.changed = {entry.path: entry for entry in changed}
    batch.removed = set(removed)
    point = commit.finish(batch, CLEAN, False, True, True, False)
    assert point is not None
    return point


def paths(commit: SourceCommit, point: Point) -> list[bytes]:
    return sorted(e.path for e in commit.catalog.subtree(b"", point.image.ordinal))


def test_what_lies_below_a_file_is_left_out_and_looked_at_again(commit: SourceCommit) -> None:
    root = directory(b"")
    point = finish(commit, [root, file(b"a", None, 0), file(b"a/x", None, 0), file(b"b", None, 0)])
    assert paths(commit, point) == [b"", b"a", b"b"]
    assert point.again == [b"a"]
    assert [e.path for e in point.changed] == [b"", b"a", b"b"]
    assert b"a/x" in point.removed
    assert point.image.entries == 3


def test_a_directory_that_became_a_file_takes_what_was_below_it_along(commit: SourceCommit) -> None:
    finish(commit, [directory(b""), directory(b"a"), directory(b"a/x"), file(b"a/x/y", None, 0)])
    point = finish(commit, [file(b"a", None, 0)])
    assert paths(commit, point) == [b"", b"a"]
    assert set(point.removed) == {b"a/x", b"a/x/y"}


def test_a_directory_that_is_gone_leaves_nothing_behind(commit: SourceCommit) -> None:
    finish(commit, [directory(b""), directory(b"a"), file(b"a/y", None, 0)])
    point = finish(commit, [], (b"a",))
    assert paths(commit, point) == [b""]
    assert point.again == [b"a"]


def test_a_folder_that_cannot_be_taken_makes_no_images_for_ever(commit: SourceCommit) -> None:
    first = finish(commit, [directory(b"")])
    for _ in range(3):
        batch = Batch()
        batch.changed = {b"odd/f": file(b"odd/f", None, 0)}
        batch.lost = {b"odd": "its time is beyond what can be replicated"}
        assert commit.finish(batch, CLEAN, False, False, False, False) is None
        newest = commit.catalog.newest()
        assert newest is not None
        assert newest.id == first.image.id
        told = dict(commit.catalog.lost())
        assert told[b"odd"].startswith("its time")
        assert "folder" in told[b"odd/f"]
    # with another change beside it, and with what is known already of the folder
    batch = Batch()
    batch.changed = {b"odd/f": file(b"odd/f", None, 0), b"g": file(b"g", None, 0)}
    point = commit.finish(batch, CLEAN, False, False, False, False)
    assert point is not None
    assert paths(commit, point) == [b"", b"g"]
    assert point.again == []


def test_a_holder_has_the_bytes_that_are_wanted_and_no_older_ones(commit: SourceCommit) -> None:
    old, new = random_chunks(2, 700)
    first = finish(commit, [directory(b""), file(b"f", (old.id, 0), 700)])
    for target in ("box2", "box3"):
        assert first.image.id is not None
        commit.acknowledged(target, first.image.id)
    second = finish(commit, [file(b"f", (new.id, 0), 700)])
    assert second.image.id is not None
    commit.acknowledged("box3", second.image.id)
    assert commit.leave_out(b"f", "box2") is None  # box3 has them
    commit.acknowledged("box3", first.image.id)
    point = commit.leave_out(b"f", "box2")
    assert point is not None
    assert paths(commit, point) == [b""]


def test_rows_of_a_staged_image_make_a_tree_too(commit: SourceCommit) -> None:
    first = Batch()
    first.changed = {e.path: e for e in (directory(b""), directory(b"a"), file(b"a/x", None, 0))}
    commit.stage(first, False)
    last = Batch()
    last.changed = {b"a": file(b"a", None, 0)}
    point = commit.finish(last, CLEAN, True, False, True, False)
    assert point is not None
    assert paths(commit, point) == [b"", b"a"]
    assert point.again == [b"a"]


def test_a_tree_is_left_as_it_is(commit: SourceCommit) -> None:
    entries = [directory(b""), directory(b"a"), file(b"a/x", None, 0)]
    point = finish(commit, entries)
    assert paths(commit, point) == [b"", b"a", b"a/x"] and point.again == []
    assert finish(commit, [file(b"a/z", None, 0)]).again == []
