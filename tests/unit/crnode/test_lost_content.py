"""A target that lost content acknowledges nothing that needs it, whatever an image changes (rule 32)."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_samples import INCARNATION, SET, digest_of, file, file_records, random_chunks, small_store

from crnode.replicate.commit import TargetCommit
from crnode.store.catalog import Catalog
from crnode.store.packs import Lane, Record
from crnode.store.store import Missing, ObjectStore
from crproto.entries import Entry
from crproto.ids import image_id
from crproto.limits import DIGEST_SCHEME
from crproto.messages import ImageBegin


class Target:
    """A target and the entries that its source has."""

    def __init__(self, place: Path) -> None:
        self.store = small_store(place / "store")
        self.catalog = Catalog(place / "set.db", SET)
        self.commit = TargetCommit(
            self.catalog, self.store, archive=False, now_ns=lambda: 0, retain_roots=set
        )
        self.entries: dict[bytes, Entry] = {}
        self.sequence = 0

    def push(self, changed: list[Entry], removed: list[bytes] = []) -> list[bytes]:  # noqa: B006
        """An image that changes this much; what the target says that it lacks, [] when it took it."""
        newest = self.catalog.newest()
        parent = newest.id if newest is not None and newest.id is not None else bytes(32)
        entries = {k: v for k, v in self.entries.items() if k not in removed} | {e.path: e for e in changed}
        digest = digest_of(entries.values())
        self.sequence += 1
        name = image_id(parent, SET, INCARNATION, 0, self.sequence, self.sequence, digest)
        header = ImageBegin(
            name, parent, parent if newest is not None else b"", INCARNATION, 0, self.sequence,
            self.sequence, digest, 1, len(entries), sum(e.size for e in entries.values()), DIGEST_SCHEME,
            False, False,
        )  # fmt: skip
        incoming = self.commit.begin(header)
        self.commit.add(incoming, changed, removed)
        missing = self.commit.commit(incoming)
        if not missing:
            self.entries = entries
        return missing

    def lose(self, names: list[bytes], paths: set[bytes]) -> None:
        """These objects are gone, and an inventory has found which paths need them."""
        self.store.index.remove(names)
        self.store.cache._items.clear()
        self.catalog.lacking = set(paths)

    def put(self, records: list[Record]) -> None:
        self.store.put(records, Lane.BULK, cache=False)


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path)


def test_everything_below_a_lost_recipe_is_asked_for_before_anything_is_acknowledged(target: Target) -> None:
    data = bytes(random_chunks(1, 100_000)[0].stored)
    name, level, records = file_records(data)
    assert len(records) > 190
    target.put(records)
    assert target.push([file(b"big", (name, level), len(data))]) == []
    target.lose([r.id for r in records], {b"big"})
    change = [file(b"other", None, 0)]
    have = {r.id: r for r in records}
    asked: set[bytes] = set()
    for _ in range(6):
        missing = target.push(change)
        if not missing:
            break
        asked |= set(missing)
        target.put([have[i] for i in missing])
    assert asked == set(have)
    assert target.catalog.lacking == set()
    assert target.catalog.newest().entries == 2  # type: ignore[union-attr]


def test_an_object_of_two_paths_is_asked_for_although_one_of_them_goes(target: Target) -> None:
    (shared,) = random_chunks(1, 700)
    target.put([shared])
    both = [file(p, (shared.id, 0), 700) for p in (b"a.txt", b"b.txt")]
    assert target.push(both) == []
    target.lose([shared.id], {b"a.txt", b"b.txt"})
    assert target.push([], [b"a.txt"]) == [shared.id]
    target.put([shared])
    assert target.push([], [b"a.txt"]) == []


def test_a_path_that_the_image_changes_or_removes_needs_its_old_content_no_more(target: Target) -> None:
    old, new = random_chunks(2, 700)
    target.put([old])
    assert target.push([file(b"a", (old.id, 0), 700), file(b"b", (old.id, 0), 700)]) == []
    target.lose([old.id], {b"a", b"b"})
    target.put([new])
    assert target.push([file(b"a", (new.id, 0), 700)], [b"b"]) == []
    assert target.catalog.lacking == set()


def test_an_image_that_was_not_taken_leaves_what_is_lacking_known(target: Target) -> None:
    old, new, never = random_chunks(3, 700)
    target.put([old])
    assert target.push([file(b"a", (old.id, 0), 700)]) == []
    target.lose([old.id], {b"a"})
    target.put([new])
    assert target.push([file(b"a", (new.id, 0), 700), file(b"c", (never.id, 0), 700)]) == [never.id]
    assert target.catalog.lacking == {b"a"}


def test_what_a_start_found_lost_is_not_forgotten_by_the_next_start(tmp_path: Path) -> None:
    place = tmp_path / "store"
    store = small_store(place, 10_000)
    store.put(random_chunks(100, 500), Lane.SMALL)
    store.sync()
    mark = store.mark()
    store.close()
    (place / "packs" / f"{store.packs.numbers()[0]:08d}.pack").unlink()
    first = small_store(place, 10_000)
    assert first.recovery.lost_packs
    assert not first.holds(mark)
    first.close(clean=False)  # killed before anybody looked
    second = ObjectStore(place, pack_size=10_000, ballast=0)
    assert not second.recovery.lost_packs
    assert not second.holds(mark)
    second.close()


def test_a_pack_that_vanishes_under_a_running_agent_counts_as_missing(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", 10_000)
    records = random_chunks(100, 500)
    store.put(records, Lane.SMALL, cache=False)
    store.sync()
    where = store.locate(records[0].id)
    assert where is not None
    store.packs.remove(where.pack)
    with pytest.raises(Missing):
        store.get(records[0].id)
    assert store.missing([records[0].id]) == [records[0].id]
    assert store.put([records[0]], Lane.SMALL, cache=False) > 0
    assert store.get(records[0].id) == records[0].stored
