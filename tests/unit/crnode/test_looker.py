"""What looking at versions says, against a dumb model: a dict of whole images."""

from __future__ import annotations

import fnmatch
import itertools
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_samples import SET, commit, directory, file

from crnode.store.catalog import Catalog
from crnode.versions import look
from crnode.versions.look import Difference, Looker
from crproto.entries import DIRECTORY, FILE, SYMLINK, Entry, Extra
from crproto.paths import split

PATHS = [b"a", b"a/x.txt", b"a/Y.TXT", b"a/b", b"a/b/c", b"a-b", b"ab", b"b\xff", b"bin", b"bin/[1]"]
State = dict[bytes, Entry]


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    path = draw(st.sampled_from(PATHS))
    kind = draw(st.sampled_from([FILE, FILE, FILE, DIRECTORY, SYMLINK]))
    mtime = draw(st.integers(0, 1))
    if kind == DIRECTORY:
        return directory(path, mtime)._replace(mode=draw(st.sampled_from([0o755, 0o700])))
    if kind == SYMLINK:
        target = draw(st.sampled_from([b"x", b"y"]))
        return Entry(path, SYMLINK, 0o777, "u", 1, "g", 1, mtime, 0, None, 0, Extra(target).encode())
    number = draw(st.integers(0, 3))
    return file(path, (bytes([number]) * 32, 0) if number else None, number, mtime)


steps = st.lists(
    st.tuples(st.lists(entries(), max_size=5), st.lists(st.sampled_from(PATHS), max_size=3)), max_size=6
)


@pytest.fixture(scope="module")
def fresh() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    catalog = Catalog(place / "fresh.db", SET)
    catalog.put_away()
    yield place / "fresh.db"
    shutil.rmtree(place)


def _what(one: Entry | None, two: Entry | None) -> str:
    if one is None or two is None:
        return "added" if one is None else "deleted"
    if one.kind != two.kind or (one.kind == FILE and (one.content, one.size) != (two.content, two.size)):
        return "changed"
    if one.kind == SYMLINK and one.extra != two.extra:
        return "changed"
    same = one._replace(mtime_ns=two.mtime_ns) if two.kind != FILE else one
    return "" if same == two else "attributes"


def _differences(one: State, two: State, below: bytes) -> list[Difference]:
    out = {}
    for path in one.keys() | two.keys():
        what = _what(one.get(path), two.get(path))
        if what:
            sizes = [state[path].size if path in state else None for state in (two, one)]
            out[path] = Difference(what, path, None, *sizes)
    pools: dict[str, dict[bytes, list[bytes]]] = {"added": defaultdict(list), "deleted": defaultdict(list)}
    for what, state in (("added", two), ("deleted", one)):
        for path in sorted(p for p, d in out.items() if d.what == what):
            if state[path].kind == FILE and (content := state[path].content) is not None:
                pools[what][content].append(path)
    for content, paths in pools["added"].items():
        for path, before in zip(paths, pools["deleted"][content], strict=False):
            out[path] = Difference("renamed", path, before, two[path].size, two[path].size)
            del out[before]

    def inside(path: bytes | None) -> bool:
        return path is not None and (not below or path == below or path.startswith(below + b"/"))

    return sorted((d for d in out.values() if inside(d.path) or inside(d.before)), key=lambda d: d.path)


@settings(max_examples=150, deadline=None)
@given(steps, st.sampled_from([b"", b"a", b"a/b", b"bin/[1]"]))
def test_what_is_said_is_what_the_images_say(
    fresh: Path, plan: list[tuple[list[Entry], list[bytes]]], below: bytes
) -> None:
    work = fresh.parent / "work.db"
    for suffix in ("", "-wal", "-shm"):
        Path(f"{work}{suffix}").unlink(missing_ok=True)
    shutil.copy(fresh, work)
    catalog = Catalog(work, SET)
    try:
        states: list[State] = []
        for changed, removed in plan:
            now = dict(states[-1]) if states else {}
            for path in removed:
                now.pop(path, None)
            now |= {entry.path: entry for entry in changed}
            commit(catalog, changed, removed)
            states.append(now)
        images = catalog.images()
        with Looker(work) as looker:
            for (i, one), (j, two) in itertools.permutations(enumerate(states), 2):
                ordinals = images[i].ordinal, images[j].ordinal
                with mock.patch.object(look, "MANY", -1):
                    read_through = looker.differences(*ordinals, below, 1000)
                with mock.patch.object(look, "MANY", 100):
                    found = looker.differences(*ordinals, below, 1000)
                expected = _differences(one, two, below)
                assert found.rows == expected and read_through == found
                assert sum(paths for paths, _ in found.counts.values()) == len(expected)
                for what, (paths, size) in found.counts.items():
                    rows = [d for d in expected if d.what == what]
                    assert paths == len(rows)
                    assert size == sum(d.old_size if d.size is None else d.size for d in rows if d)
                first = looker.differences(images[i].ordinal, images[j].ordinal, below, 2)
                assert len(first.rows) == min(2, len(expected))
                assert first.counts == found.counts
            for image, state in zip(images, states, strict=True):
                for path in [b"", *PATHS]:
                    _check_folder(looker, image.ordinal, state, path)
            for text in (b"A", b".txt", b"a/", b"*.txt", b"?b", b"[1]", b"a*[", b"a*c", b"\xff"):
                _check_search(looker, catalog, states, text)
    finally:
        catalog.close()


def _check_folder(looker: Looker, ordinal: int, state: State, path: bytes) -> None:
    top = state.get(path)
    if path and (top is None or top.kind != DIRECTORY):
        assert looker.folder(path, ordinal, b"", 10) == (None if top is None else [top])
        return
    inside = sorted((e for e in state.values() if e.path and split(e.path)[0] == path), key=lambda e: e.path)
    paged: list[Entry] = []
    while page := looker.folder(path, ordinal, split(paged[-1].path)[1] if paged else b"", 2):
        paged += page
        if len(page) < 2:
            break
    assert paged == inside


def _check_search(looker: Looker, catalog: Catalog, states: list[State], text: bytes) -> None:
    def matches(path: bytes) -> bool:
        subject = (path if b"/" in text else split(path)[1]).lower()
        if b"*" in text or b"?" in text:
            pattern = text.lower().decode("latin-1").replace("[", "[[]")
            return fnmatch.fnmatchcase(subject.decode("latin-1"), pattern)
        return text.lower() in subject

    expected = []
    for path in sorted({p for state in states for p in state if matches(p)}):
        here = [number for number, state in enumerate(states) if path in state]
        last = states[here[-1]][path]
        expected.append((path, last.kind, last.size, here[0], here[-1]))
    assert [tuple(row) for row in looker.search(text, catalog.images(), 100)] == expected


def test_a_looker_changes_nothing_and_many_differences_are_cut(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.db", SET)
    chance = random.Random(3)
    one = commit(catalog, [file(b"%d" % n, (chance.randbytes(32), 0), 5) for n in range(3000)])
    two = commit(catalog, [file(b"%d" % n, (chance.randbytes(32), 0), 6) for n in range(1500, 4000)])
    with Looker(tmp_path / "c.db") as looker:
        found = looker.differences(one.ordinal, two.ordinal, b"", 10)
        assert found.counts == {"added": (1000, 6000), "changed": (1500, 9000)}
        assert len(found.rows) == 10
        with pytest.raises(Exception, match="readonly"):
            looker._db.execute("DELETE FROM entry")
    catalog.close()
