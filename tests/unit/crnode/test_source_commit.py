"""What a source commits is a tree, whatever the paths were while they were read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_samples import INCARNATION, SET, directory, file, random_chunks, small_store

from crnode.agent.sets import Sets
from crnode.capture.commit import Point, SourceCommit
from crnode.capture.job import Batch
from crnode.cluster.keep import parse_rung
from crnode.platform.files import boot_id
from crnode.replicate.turn import to_target
from crnode.store.catalog import Catalog
from crnode.store.reader import CLEAN, Live
from crnode.versions.retention import HOUR, LOSSES, MINUTE, ladder_of
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


NEWEST = (parse_rung("newest:1"),)


def test_what_is_read_stays_at_the_source_of_a_set_that_moves_and_losses_are_few(tmp_path: Path) -> None:
    """Rules 38 and 84: a restore there lost its rows, and each image made eight versions go."""
    catalog, now, read = Catalog(tmp_path / "set.db", SET), [HOUR], {0}
    commit = SourceCommit(
        catalog, small_store(tmp_path / "store"), INCARNATION, 0, 1, lambda: now[0], set,
        ladder=ladder_of((parse_rung("newest:1"),)), retain_roots=lambda: read,
    )  # fmt: skip
    first = finish(commit, [directory(b""), file(b"a", None, 0)]).image.ordinal
    read.add(first)
    for size in range(40):
        now[0] += MINUTE // 60
        finish(commit, [file(b"a", None, size)])
    assert catalog.image_at(first) is not None
    assert len(list(catalog.subtree(b"", first))) == 2
    read.clear()
    finish(commit, [file(b"b", None, 1)])
    assert catalog.image_at(first) is None
    # Images of hours of which nothing near stays go eight in an hour, not eight with each image.
    commit.ladder = ladder_of((parse_rung("newest:64"),))
    for size in range(20):
        now[0] += 2 * HOUR
        finish(commit, [file(b"a", None, 100 + size)])
    commit.ladder = ladder_of((parse_rung("newest:1"),))
    before = len(catalog.images())
    for size in range(3):
        now[0] += MINUTE
        finish(commit, [file(b"a", None, 200 + size)])
    assert len(catalog.images()) >= before - LOSSES


def test_a_walk_back_leaves_a_target_one_until_it_is_the_source(tmp_path: Path) -> None:
    """Killed before its live tree shows what it went back to, it would take the bad one for that."""
    catalog = Catalog(tmp_path / "set.db", SET)
    store = small_store(tmp_path / "store")
    sets: Any = SimpleNamespace(
        epochs={SET.hex(): 5}, readers_roots={}, bundled={}, targets={}, store=store, now_ns=lambda: HOUR,
        node=SimpleNamespace(name="b", incarnation=INCARNATION.hex()), kept=lambda spec, node: NEWEST,
    )  # fmt: skip
    spec: Any = SimpleNamespace(uuid=SET.hex(), paths=("/srv",), keep=None)
    commit: SourceCommit = Sets.source_commit(sets, catalog, spec)
    good = finish(commit, [directory(b""), file(b"state", None, 3)]).image
    bad = finish(commit, [file(b"state", None, 6), file(b"tmp.work", None, 1)]).image
    with catalog.transaction():
        catalog.set_live(Live(bad.ordinal, bad.ordinal, bad.ordinal, "clean", boot_id()))
        catalog.set_pin(good.ordinal, "good", "")
    for size in range(4):  # what the brake holds goes on coming; the tree shows the image before
        finish(commit, [file(b"state", None, 7 + size)], (b"tmp.work",) if not size else ())
    Sets.source_commit(sets, catalog, spec).walk_back(good.ordinal, 5, "walked back", "bad")
    to_target(catalog, tmp_path)  # a restart in between
    newest, live = catalog.newest(), catalog.live()
    assert newest is not None and live is not None and newest.ordinal > bad.ordinal == live.at
    assert b"tmp.work" in list(catalog.went(live.at, newest.ordinal))  # else it stayed, and was served
