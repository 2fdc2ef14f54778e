"""The catalog against a dumb model: a dict of whole images."""

from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_samples import SET, blank, commit, digest_of, directory, file, finish

from crnode.errors import CrnodeError, ExitCode
from crnode.store.catalog import Catalog, CatalogDamaged
from crnode.store.reader import OPEN, Fingerprint, Live, open_reader
from crproto.entries import DIRECTORY, FILE, SYMLINK, Entry, Extra, link_of
from crproto.paths import split

PATHS = [b"", b"a", b"a/x", b"a/y", b"a/b/c", b"a-b", b"a0", b"ab", b"ab/x", b"b", b"b\xff/z"]
LINKS = [None, bytes(10), bytes([1]) * 10]
Images = dict[int, dict[bytes, Entry]]


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """A few different entries for few paths, so that changes meet."""
    path = draw(st.sampled_from(PATHS))
    if draw(st.booleans()):
        return directory(path, draw(st.integers(0, 2)))
    link = draw(st.sampled_from(LINKS))
    if draw(st.booleans()):
        target = draw(st.sampled_from([b"x", b"y"]))
        return Entry(path, SYMLINK, 0o777, "u", 1, "g", 1, 5, 0, None, 0, Extra(target, link=link).encode())
    extra = Extra(link=link).encode() if link is not None else b""
    number = draw(st.integers(0, 3))
    return file(path, (bytes([number]) * 31 + b"\1", number % 2), number + 1, draw(st.integers(0, 1)), extra)


changes = st.tuples(st.lists(entries(), max_size=6), st.lists(st.sampled_from(PATHS), max_size=4))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("image"), changes),
        st.tuples(st.just("staged"), st.lists(changes, min_size=1, max_size=3)),
        st.tuples(st.just("undone"), st.lists(changes, min_size=1, max_size=3)),
        st.tuples(st.just("prune"), st.integers(0, 2**32), st.integers(1, 40)),
        st.tuples(st.just("failed"), changes),
    ),
    min_size=1, max_size=14,
)  # fmt: skip


@pytest.fixture(scope="module")
def fresh() -> Iterator[Path]:
    """An empty catalog to copy: creating one costs more than a test."""
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    catalog = Catalog(place / "fresh.db", SET)
    catalog.put_away()
    yield place / "fresh.db"
    shutil.rmtree(place)


def _fail(catalog: Catalog, changed: list[Entry], removed: list[bytes]) -> None:
    with catalog.transaction():
        catalog.change(catalog.next_ordinal(), catalog.totals(), changed, removed)
        raise ZeroDivisionError


def _apply(state: dict[bytes, Entry], change: tuple[list[Entry], list[bytes]]) -> None:
    changed, removed = change
    for path in removed:
        state.pop(path, None)
    for entry in changed:
        state[entry.path] = entry


def _order(entry: Entry) -> tuple[bytes, bytes]:
    return split(entry.path)


def _below(state: dict[bytes, Entry], top: bytes) -> list[Entry]:
    first = [state[top]] if top in state else []
    rest = [e for p, e in state.items() if p != top and (not top or p.startswith(top + b"/"))]
    return first + sorted(rest, key=_order)


def _check(catalog: Catalog, images: Images, ever: dict[bytes, list[tuple[int, Entry]]]) -> None:
    assert [i.ordinal for i in catalog.images()] == sorted(images)
    for ordinal, state in images.items():
        image = catalog.image_at(ordinal)
        assert image is not None
        assert image.digest == digest_of(state.values())
        assert (image.entries, image.bytes) == (len(state), sum(e.size for e in state.values()))
        assert list(catalog.walk(ordinal, page=2)) == sorted(state.values(), key=_order)
        assert list(catalog.in_key_order(ordinal, (b"", b""), None)) == sorted(state.values(), key=_order)
        low, high = (b"a", b"b"), (b"ab", b"x")
        between = [e for e in sorted(state.values(), key=_order) if low <= _order(e) < high]
        assert list(catalog.in_key_order(ordinal, low, high)) == between
        for path in PATHS:
            assert catalog.entry(path, ordinal) == state.get(path)
            assert list(catalog.subtree(path, ordinal)) == _below(state, path)
            inside = [e for e in state.values() if e.path and split(e.path)[0] == path]
            assert catalog.children(path, ordinal) == sorted(inside, key=_order)
        for link in LINKS[1:]:
            assert link is not None
            for kind in (FILE, SYMLINK):
                group = [p for p, e in state.items() if e.kind == kind and link_of(e) == link]
                assert catalog.link_members(link, kind, ordinal) == sorted(group, key=split)
        files = sorted((e for e in state.values() if e.content is not None), key=_order)
        assert sorted(catalog.files(ordinal), key=_order) == files
    for base in images:
        for to in images:
            if base >= to:
                continue
            came: dict[bytes, Entry] = {}
            after = None
            while page := catalog.came(base, to, after, 2):
                for _, entry in page:
                    assert entry.path not in came
                    came[entry.path] = entry
                after = page[-1][0]
            assert all(images[to][p] == e for p, e in came.items())
            differs = {p for p, e in images[to].items() if images[base].get(p) != e}
            assert differs <= came.keys()
            went = images[base].keys() - images[to].keys()
            assert sorted(catalog.went(base, to)) == sorted(went)
            holders = {split(p)[0] for p in images[to] if p}
            broken = {p for p in holders if p not in images[to] or images[to][p].kind != DIRECTORY}
            touched = {split(p)[0] for p in differs} | differs | went
            assert broken & touched <= set(catalog.folders_touched(base, to))
    named = {e.content for s in images.values() for e in s.values() if e.content is not None}
    assert named <= {content for content, _ in catalog.contents()}
    for path in PATHS:
        rows = catalog.history(path)
        assert all(born < died for born, died, _ in rows)
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(rows))
        for ordinal, state in images.items():
            assert [e for born, died, e in rows if born <= ordinal < died] == (
                [state[path]] if path in state else []
            )


@settings(max_examples=120, deadline=None)
@given(steps)
def test_rows_are_the_images(fresh: Path, plan: list[tuple]) -> None:  # type: ignore[type-arg]
    work = fresh.parent / "work.db"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{work}{suffix}").unlink(missing_ok=True)
    shutil.copy(fresh, work)
    catalog = Catalog(work, SET)
    images: Images = {}
    newest: dict[bytes, Entry] = {}
    try:
        for step in plan:
            if step[0] == "image":
                newest = dict(newest)
                _apply(newest, step[1])
                image = commit(catalog, *step[1])
                images[image.ordinal] = newest
            elif step[0] == "failed":
                with pytest.raises(ZeroDivisionError):
                    _fail(catalog, *step[1])
            elif step[0] in ("staged", "undone"):
                ordinal = catalog.next_ordinal()
                state = dict(newest)
                with catalog.transaction():
                    catalog.begin(blank(ordinal))
                for change in step[1]:
                    _apply(state, change)
                    with catalog.transaction():
                        totals = catalog.staged_totals()
                        assert totals is not None
                        catalog.save_staged(catalog.change(ordinal, totals, *change))
                    if images:
                        assert list(catalog.walk(max(images))) == sorted(newest.values(), key=_order)
                with catalog.transaction():
                    if step[0] == "undone":
                        catalog.undo(ordinal)
                    else:
                        finish(catalog, ordinal, [], [])
                        newest = state
                        images[ordinal] = state
                assert catalog.staging() is None
            elif images:
                keep = {o for o in images if random.Random(step[1] ^ o).random() < 0.5}
                for _ in range(500):
                    with catalog.transaction():
                        if not catalog.prune(keep, step[2]):
                            break
                keep.add(max(images))
                images = {o: s for o, s in images.items() if o in keep}
            assert catalog.digest(catalog.totals()) == digest_of(newest.values())
        _check(catalog, images, {})
        with open_reader(work) as reader, reader.snapshot():
            assert len(reader.images()) == len(images)
        for _ in range(500):  # in the end only the newest image's rows are left
            with catalog.transaction():
                if not catalog.prune(set(), 1000):
                    break
        if images:
            assert catalog._one("SELECT count(*) FROM entry") == (len(newest),)
    finally:
        catalog.close()


def test_an_archive_keeps_the_last_row_of_what_was_deleted(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.db", SET)
    for size in (1, 2, 3):
        commit(
            catalog,
            [file(b"gone", (bytes([size]) * 32, 0), size), file(b"stays", (bytes([size]) * 32, 0), size)],
        )
    commit(catalog, [], [b"gone"])
    commit(catalog, [file(b"more", None, 0)])
    with catalog.transaction():  # it comes back in an image that is never completed
        ordinal = catalog.next_ordinal()
        catalog.begin(blank(ordinal))
        catalog.save_staged(
            catalog.change(ordinal, catalog.totals(), [file(b"gone", (bytes([9]) * 32, 0), 9)])
        )
    with catalog.transaction():
        catalog.prune(set(), 1000, spare_deleted=True)
    with catalog.transaction():
        catalog.undo(ordinal)
    assert [(e.size, died < OPEN) for _, died, e in catalog.history(b"gone")] == [(3, True)]
    assert [e.size for _, _, e in catalog.history(b"stays")] == [3]


def test_small_things_are_kept_and_reopened(tmp_path: Path) -> None:
    path = tmp_path / "a b?c%20#.db"  # a name that a careless URI would lose
    catalog = Catalog(path, SET)
    image = commit(catalog, [file(b"d/f", (bytes(31) + b"\1", 0), 1)])
    print_ = Fingerprint(1, 2, 3, 4, 5)
    with catalog.transaction():
        catalog.see(b"d/f", print_)
        catalog.set_cursor("b", image.id or b"", image.ordinal, 9)
        catalog.set_live(Live(1, 1, 0, "clean", "boot"))
        catalog.set_problem("lost", b"sock", "a socket", 1)
        catalog.set_manifest(image.ordinal, bytes(32), 2)
        catalog.save_blocks([(bytes(32), b"h"), (bytes([1]) * 32, b"i")])
        catalog.drop_blocks([bytes(32)])
    catalog.checkpoint()
    with catalog.reader() as reader:
        assert reader.fingerprint(b"d/f") == print_
        assert reader.with_inode(1, 2) == [b"d/f"]
        assert reader.names(b"d", 1) == {b"f": (1, print_)}
        assert [c.target for c in reader.cursors()] == ["b"]
        assert reader.live() == Live(1, 1, 0, "clean", "boot")
        assert reader.lost() == [(b"sock", "a socket")]
        assert (bytes(32), 2) in set(reader.contents())
        assert (reader.blocks(bytes(32)), reader.blocks(bytes([1]) * 32)) == (b"", b"i")
        assert reader.quick_check() == "ok"
        with pytest.raises(apsw.ReadOnlyError):
            reader._db.execute("DELETE FROM entry")
    with catalog.transaction():
        catalog.clear_manifest(bytes(32))
    assert catalog.images()[0].manifest is None
    catalog.close()
    with pytest.raises(CrnodeError, match="another set"):
        Catalog(path, bytes(16))


def test_a_damaged_or_newer_catalog_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"no database" * 1000)
    with pytest.raises(CatalogDamaged) as damaged:
        Catalog(tmp_path / "bad.db", SET)
    assert "PosixPath" not in str(damaged.value) and "database" in str(damaged.value)
    catalog = Catalog(tmp_path / "newer.db", SET)
    catalog._db.execute("PRAGMA user_version=99")
    catalog.close()
    with pytest.raises(CrnodeError) as caught:
        Catalog(tmp_path / "newer.db", SET)
    assert caught.value.exit_code == ExitCode.REFUSED


def test_a_live_tree_is_noted_durable_only_where_it_has_been(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "set.db", SET)
    commit(catalog, [file(b"a", None, 0)])
    newest = commit(catalog, [file(b"b", None, 0)])
    with catalog.transaction():
        catalog.set_live(Live(2, 2, 1, "clean", "boot"))
    catalog.note_synced(1)  # older than what is known
    assert catalog.live() == Live(2, 2, 1, "clean", "boot")
    catalog.note_synced(3)  # not shown yet
    assert catalog.live() == Live(2, 2, 1, "clean", "boot")
    catalog.note_synced(2)
    assert catalog.live() == Live(2, 2, 2, "clean", "boot")
    with catalog.transaction():
        catalog.forget_tree("boot")  # the destination was replaced while its file system was synced
    catalog.note_synced(2)
    assert catalog.live() == Live(0, newest.ordinal, 0, "moving", "boot")
    catalog.put_away()


def test_folders_whose_names_are_used_once_leave_nothing(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.db", SET)
    stays = [directory(b""), directory(b"stays"), file(b"stays/f", None, 0)]
    commit(catalog, [*stays, *(directory(b"old %d" % n) for n in range(30))])
    for number in range(300):
        name = b"%d" % number
        commit(catalog, [directory(name), directory(name + b"/d"), file(name + b"/d/f", None, 0)])
        with catalog.transaction():
            catalog.see(name + b"/d/f", Fingerprint(1, number, 3, 4, 5))
        commit(catalog, [], [name + b"/d/f", name + b"/d", name])
        with catalog.transaction():
            catalog.see(name + b"/d/f", None)
            catalog.prune(set(), 1000)
    rows = {bytes(row[0]) for row in catalog._db.execute("SELECT path FROM dir")}
    assert {b"", b"stays"} <= rows and len(rows) < 40
    commit(catalog, [directory(b"7"), directory(b"7/d"), file(b"7/d/f", None, 9)])  # a name comes again
    with catalog.reader() as reader:
        newest = reader.newest()
        assert newest is not None and [e.size for e in reader.subtree(b"7/d", newest.ordinal)] == [0, 9]
        assert reader.entry(b"stays/f", newest.ordinal) is not None
    assert catalog.digest(catalog.totals()) == newest.digest
