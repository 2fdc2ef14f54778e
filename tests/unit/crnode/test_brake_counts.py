"""What the brake counts, against a dumb model, and what it makes of it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from store_samples import SET, commit, directory, file, put_file, small_store

from crnode.platform.files import boot_id
from crnode.replicate.brake import META, UNDONE, Brake, HeldBack, accept, held, needed, show
from crnode.store.catalog import Catalog
from crnode.store.reader import ROLLING, Image, Live, connect
from crnode.store.store import ObjectStore
from crnode.versions.brake import Counts, judge
from crnode.versions.changes import WINDOW_NS, Counter, baseline
from crproto.entries import Entry, Extra

COUNT = 100


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return small_store(tmp_path / "store")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "sets" / "one.db", SET)


def _entry(store: ObjectStore, path: bytes, data: bytes) -> Entry:
    return file(path, put_file(store, data) if data else None, len(data))


def _text(number: int) -> bytes:
    return b"".join(b"%d: line %d\n" % (number, line) for line in range(150))


@pytest.mark.parametrize("seed", range(30))
def test_counts_are_those_of_a_dumb_model(store: ObjectStore, catalog: Catalog, seed: int) -> None:
    chance = random.Random(seed)
    number = 0

    def data() -> bytes:
        nonlocal number
        number += 1
        return b"" if chance.random() < 0.1 else b"%d" % number * chance.choice((1, 400))

    states: list[dict[bytes, bytes]] = [{b"d%d/f%d" % (n % 3, n): data() for n in range(60)}]
    folders = [directory(b""), *(directory(b"d%d" % n) for n in range(4))]
    ordinals = [commit(catalog, [*folders, *(_entry(store, p, d) for p, d in states[0].items())]).ordinal]
    for _ in range(6):
        now = dict(states[-1])
        for path in chance.sample(sorted(now), 12):
            what = chance.choice(("delete", "rewrite", "rename", "rename over"))
            old = now.pop(path)
            if what == "rewrite":
                now[path] = data()
            elif what == "rename":
                now[b"d3/r%d-%d" % (len(ordinals), number)] = old
                number += 1
            elif what == "rename over":
                now[chance.choice(sorted(now))] = old
        gone = [path for path in states[-1] if path not in now]
        changed = [_entry(store, p, d) for p, d in now.items() if states[-1].get(p) != d]
        ordinals.append(commit(catalog, changed, gone).ordinal)
        states.append(now)
    with Counter(connect(catalog.path)) as counter:
        for base in range(len(states)):
            for to in range(base + 1, len(states)):
                found = counter.counts(ordinals[base], ordinals[to])
                was, now = states[base], states[to]
                changed_paths = [path for path, data in was.items() if path in now and now[path] != data]
                earlier = states[:base]  # what is as it once was has been brought back
                rewritten = sum(all(s.get(path) != now[path] for s in earlier) for path in changed_paths)
                gone = [data for path, data in was.items() if path not in now]
                came = [data for path, data in now.items() if was.get(path) != data]
                deleted = 0
                for item in gone:
                    if item and item in came:
                        came.remove(item)
                    else:
                        deleted += 1
                assert found == Counts(len(was), deleted, rewritten)
                most = counter.changed(ordinals[base], ordinals[to], 10_000)
                assert most >= len(changed_paths) + len(gone)
                assert counter.changed(ordinals[base], ordinals[to], 3) == min(most, 3)


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        (_text, lambda n: os.urandom(2000), True),
        (_text, lambda n: _text(n + 1000), False),
        (lambda n: os.urandom(2000), lambda n: os.urandom(2000), False),
        (lambda n: b"%d" % n * 20, lambda n: os.urandom(100), False),
        (lambda n: _text(n) * 100, lambda n: os.urandom(160_000), True),
    ],
    ids=["text to noise", "text to text", "noise to noise", "too short to say", "large ones"],
)
def test_a_loss_of_structure_is_seen_by_what_it_was_before(
    store: ObjectStore,
    catalog: Catalog,
    before: Callable[[int], bytes],
    after: Callable[[int], bytes],
    lost: bool,
) -> None:
    one = commit(catalog, [directory(b""), *(_entry(store, b"f%d" % n, before(n)) for n in range(30))])
    two = commit(catalog, [_entry(store, b"f%d" % n, after(n)) for n in range(25)])
    with Counter(connect(catalog.path)) as counter:
        found = counter.counts(one.ordinal, two.ordinal, store.get)
    assert (found.files, found.rewritten) == (30, 25)
    assert found.scrambled == (1.0 if lost else 0.0)


@pytest.mark.parametrize(
    ("found", "usual", "percent", "trips"),
    [
        (Counts(100, 50, 0), [], 50, True),
        (Counts(100, 49, 0), [], 50, False),
        (Counts(100, 20, 30), [], 50, True),
        (Counts(100, 50, 0), [], 51, False),
        (Counts(100, 100, 0), [], 0, False),
        (Counts(19, 19, 0), [], 50, False),
        (Counts(20, 20, 0), [], 50, True),
        (Counts(100, 0, 25, 0.7), [], 50, True),
        (Counts(100, 0, 24, 0.7), [], 50, False),
        (Counts(100, 0, 25, 0.5), [], 50, False),
        (Counts(100, 0, 80), [Counts(100, 0, 70)], 50, False),
        (Counts(100, 0, 80), [Counts(100, 0, 60), Counts(5, 5, 0)], 50, True),
        (Counts(0, 0, 0), [], 50, False),
    ],
)
def test_what_trips_it(found: Counts, usual: list[Counts], percent: int, trips: bool) -> None:
    assert bool(judge(found, usual, percent)) == trips


def _image(ordinal: int, at_ns: int) -> Image:
    return Image(ordinal, b"%d" % ordinal, b"", b"", 0, ordinal, at_ns, at_ns, b"", 1, 1, 0, 1, 0, None, None,
                 0, None, None)  # fmt: skip


def test_the_baseline_is_an_hour_old_or_the_first_there_is_and_never_before_an_acceptance() -> None:
    images = [_image(n, n * WINDOW_NS // 4) for n in range(1, 20)]
    newest = images[-1]
    assert baseline(images, newest, 0) == images[-5]
    assert baseline(images[-3:], newest, 0) == images[-3]
    assert baseline(images, newest, 17) == images[16]
    assert baseline(images, newest, 19) is None
    assert baseline([newest], newest, 0) is None


def test_the_baseline_is_whole_unless_that_makes_it_days_old() -> None:
    whole = _image(1, 0)
    rolling = [_image(n, 48 * WINDOW_NS + n)._replace(flags=ROLLING) for n in range(2, 5)]
    newest = _image(9, 50 * WINDOW_NS)
    assert baseline([whole, *rolling], newest, 0) == rolling[-1]
    near = _image(6, 49 * WINDOW_NS - 10)
    later = _image(7, 49 * WINDOW_NS - 5)._replace(flags=ROLLING)
    assert baseline([whole, *rolling, near, later], newest, 0) == near
    assert "within 3 days" in judge(Counts(100, 60, 0), [], 50, 72 * WINDOW_NS)


class Guarded:
    """A brake on a real catalog; `told` is what people were told."""

    def __init__(self, store: ObjectStore, catalog: Catalog) -> None:
        self.store, self.catalog, self.told = store, catalog, []  # type: ignore[var-annotated]
        self.percent = 50
        files = [_entry(store, b"f%d" % number, _text(number)) for number in range(COUNT)]
        self.at = commit(catalog, [directory(b""), *files])
        with catalog.transaction():
            catalog.set_live(Live(self.at.ordinal, self.at.ordinal, self.at.ordinal, "clean", boot_id()))
        self.brake = self.new()

    def new(self) -> Brake:
        load, tell = self.store.get, self.told.append
        return Brake("docs", self.catalog, self._record, load, tell, lambda: self.percent)

    def _record(self, work: Callable[[], object]) -> None:
        with self.catalog.transaction():
            work()

    def came(self, *changed: Entry, removed: tuple[bytes, ...] = ()) -> bool:
        """An image comes, and the live tree goes there if it may; whether it did."""
        image = commit(self.catalog, list(changed), list(removed))
        try:
            self.brake.check(self.at.ordinal, image, False)
        except HeldBack:
            return False
        self.at = image
        return True


@pytest.fixture
def guarded(store: ObjectStore, catalog: Catalog) -> Guarded:
    return Guarded(store, catalog)


def test_files_that_are_encrypted_one_by_one_are_noticed_after_a_quarter(guarded: Guarded) -> None:
    through = 0
    for number in range(COUNT):
        if not guarded.came(_entry(guarded.store, b"f%d" % number, os.urandom(3000))):
            break
        through += 1
    assert 24 <= through <= 24 + COUNT * 0.02 + 10
    assert len(guarded.told) == 1 and "as if it had been encrypted" in guarded.told[0]
    assert not guarded.came(_entry(guarded.store, b"more", b"x"))
    assert len(guarded.told) == 1  # said once
    found = held(guarded.catalog)
    assert found is not None and found.sequence == guarded.at.sequence + 1
    guarded.brake.close()
    guarded.brake = guarded.new()
    assert not guarded.came(_entry(guarded.store, b"yet more", b"x"))  # another process knows it, too


def test_what_was_accepted_is_what_comes_next_is_compared_with(guarded: Guarded) -> None:
    gone = tuple(b"f%d" % n for n in range(60))
    assert not guarded.came(removed=gone)
    with guarded.catalog.transaction():
        assert accept(guarded.catalog) is not None
    newest = guarded.catalog.newest()
    assert newest is not None
    guarded.brake.check(guarded.at.ordinal, newest, False)
    guarded.at = newest
    assert guarded.came(_entry(guarded.store, b"new", b"x"))
    assert not guarded.came(removed=tuple(b"f%d" % n for n in range(60, 90)))  # 30 of the 40 that are left


def test_a_tree_that_is_as_it_was_lets_go_and_the_move_skips_what_was_between(guarded: Guarded) -> None:
    originals = [_entry(guarded.store, b"f%d" % n, _text(n)) for n in range(60)]
    assert not guarded.came(removed=tuple(entry.path for entry in originals))
    newest = guarded.catalog.newest()
    live = guarded.catalog.live()
    assert newest is not None and live is not None
    with guarded.catalog.transaction():  # as the commit of the image notes it
        guarded.catalog.set_live(live._replace(target=newest.ordinal, state="moving"))
    assert guarded.came(*originals)
    assert guarded.catalog.meta(META) is None and "as it was" in guarded.told[-1]
    live = guarded.catalog.live()
    assert live is not None and (live.state, live.target) == ("clean", live.at)


def test_an_unfinished_move_to_what_came_before_is_finished_first(guarded: Guarded) -> None:
    before = commit(guarded.catalog, [_entry(guarded.store, b"f1", b"small change")])
    image = commit(guarded.catalog, [], [b"f%d" % n for n in range(60)])
    with pytest.raises(HeldBack):
        guarded.brake.check(guarded.at.ordinal, image, False)
    guarded.brake.check(guarded.at.ordinal, before, True)
    with pytest.raises(HeldBack):
        guarded.brake.check(before.ordinal, image, True)


def _shown(guarded: Guarded) -> None:
    with guarded.catalog.transaction():
        assert show(guarded.catalog) is not None


def _accepted(guarded: Guarded) -> None:
    with guarded.catalog.transaction():
        assert accept(guarded.catalog) is not None


def _again(guarded: Guarded) -> bool:
    """The agent tries once more, a while later; whether the live tree may go to the newest image."""
    guarded.brake._counted_ns = 0
    newest = guarded.catalog.newest()
    assert newest is not None
    try:
        guarded.brake.check(guarded.at.ordinal, newest, False)
    except HeldBack:
        return False
    guarded.at = newest
    return True


def test_only_what_was_shown_is_accepted(guarded: Guarded) -> None:
    """A person looks, an attack comes, the person accepts."""
    assert not guarded.came(removed=tuple(b"f%d" % n for n in range(60)))
    _shown(guarded)
    guarded.brake._counted_ns = 0
    noise = [_entry(guarded.store, b"f%d" % n, os.urandom(3000)) for n in range(60, 100)]
    assert not guarded.came(*noise)
    assert "more came" in guarded.told[-1] and "40 rewritten" in guarded.told[-1]
    found = held(guarded.catalog)
    assert found is not None and "encrypted" in found.more
    assert needed(guarded.catalog) >= {found.ordinal, found.shown, found.from_}
    _accepted(guarded)
    assert not _again(guarded)
    found = held(guarded.catalog)
    assert found is not None and "Of 40 files 40 rewritten" in found.why
    assert found.sequence > found.before
    _shown(guarded)
    _accepted(guarded)
    assert _again(guarded)


def test_who_accepts_without_a_look_accepts_what_was_told(guarded: Guarded) -> None:
    assert not guarded.came(removed=tuple(b"f%d" % n for n in range(60)))
    assert not guarded.came(removed=tuple(b"f%d" % n for n in range(60, 95)))
    _accepted(guarded)
    assert not _again(guarded)


def test_it_lets_go_when_nearly_all_is_as_before_and_not_sooner(guarded: Guarded) -> None:
    noise = [_entry(guarded.store, b"f%d" % n, os.urandom(3000)) for n in range(60)]
    assert not guarded.came(*noise)
    assert not _again(guarded)
    back = [_entry(guarded.store, b"f%d" % n, _text(n)) for n in range(60)]
    guarded.brake._counted_ns = 0
    assert not guarded.came(*back[:30])
    guarded.brake._counted_ns = 0
    # The source worked on while it got its files back: no image is to the letter as before.
    assert guarded.came(_entry(guarded.store, b"diary", b"today"), *back[30:])
    assert "as it was" in guarded.told[-1] and held(guarded.catalog) is None
    # What was undone is not what is usual here.
    assert guarded.catalog.meta(UNDONE)
    assert not guarded.came(*noise)


def test_padding_does_not_make_the_next_count_late(guarded: Guarded) -> None:
    """A source makes many files first: the step is a share of what is shown."""
    guarded.came(_entry(guarded.store, b"small", b"change"))
    padding = [_entry(guarded.store, b"p%d" % n, b"") for n in range(2000)]
    noise = [_entry(guarded.store, b"f%d" % n, os.urandom(3000)) for n in range(30)]
    assert not guarded.came(*padding, *noise)


def test_a_count_that_failed_is_made_up_for(guarded: Guarded) -> None:
    guarded.came(_entry(guarded.store, b"small", b"change"))
    good = guarded.brake._look

    def broken(*args: object) -> None:
        raise OSError("disk")

    guarded.brake._look = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(OSError, match="disk"):
        guarded.came(removed=tuple(b"f%d" % n for n in range(60)))
    guarded.brake._look = good  # type: ignore[method-assign]
    assert not _again(guarded)


def test_a_version_that_was_thinned_meanwhile_is_not_named(guarded: Guarded) -> None:
    guarded.came(_entry(guarded.store, b"small", b"change"))
    note = guarded.brake._note

    def late(found: object) -> None:
        guarded.catalog.prune({guarded.at.ordinal - 1, guarded.at.ordinal + 1}, 10_000)
        note(found)  # type: ignore[arg-type]

    guarded.brake._note = late  # type: ignore[method-assign]
    assert not guarded.came(removed=tuple(b"f%d" % n for n in range(60)))
    found = held(guarded.catalog)
    assert found is not None
    (before,) = [image for image in guarded.catalog.images() if image.ordinal == found.from_]
    assert before.sequence == found.before and before.pinned


def test_no_count_that_every_image_brings_reads_the_whole_catalog(catalog: Catalog) -> None:
    """A million files are a second: the index of ended rows is used."""
    queries: list[str] = []
    reader = Counter(connect(catalog.path))
    reader._db.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: queries.append(event["sql"]))
    reader.changed(1, 2, 100)
    reader.counts(1, 2)
    reader._db.trace_v2(0, None)
    ended = [sql for sql in queries if "died<=" in sql]
    assert len(ended) == 2
    for sql in ended:
        values = (1, 2, 3)[: 2 + sql.count("?3")]
        steps = [row[3] for row in reader._db.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
        assert any("entry_died" in step for step in steps), steps
    reader.close()


@pytest.mark.parametrize("names", [1, 3, 30])
def test_files_of_many_names_that_are_all_rewritten_are_a_mass_change(
    store: ObjectStore, catalog: Catalog, names: int
) -> None:
    """A tree of snapshots: what is counted as rewritten and what there is are names, both of them."""
    entries, again = [], []
    for number in range(60):
        link = Extra(link=b"%010d" % number).encode() if names > 1 else b""
        old, new = put_file(store, _text(number)), put_file(store, os.urandom(5000))
        for name in range(names):
            entries.append(file(b"s%d-%d" % (name, number), old, len(_text(number)), 0, link))
            again.append(file(b"s%d-%d" % (name, number), new, 5000, 1, link))
    first = commit(catalog, [directory(b""), *entries])
    second = commit(catalog, again)
    with Counter(connect(catalog.path)) as counter:
        found = counter.counts(first.ordinal, second.ordinal, store.get)
    assert found.rewritten == found.files == 60 * names and found.share == 1
    assert judge(found, [], 50)
