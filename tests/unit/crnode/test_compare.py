"""Two nodes compare: what differs is found in as many questions as it takes, and each may be sent."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from store_samples import SET, commit, directory, file

from crnode.replicate import compare
from crnode.store.catalog import Catalog
from crproto.limits import MESSAGE
from crproto.messages import Compare, Compared, List, Listed, encode


@pytest.mark.parametrize("folder", [b"", b"d/"])
def test_a_range_with_more_than_an_answer_holds_is_asked_for_on_and_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bytes
) -> None:
    """The other side has 200 entries between two of ours: a question that could not be sent began it anew for
    ever, and the target never caught up."""
    monkeypatch.setattr(compare, "LISTED", 7)
    monkeypatch.setattr(compare, "RANGE_ENTRIES", 3)
    ours = Catalog(tmp_path / "ours.db", SET)
    theirs = Catalog(tmp_path / "theirs.db", SET)
    above = [directory(b""), *([directory(folder.rstrip(b"/"))] if folder else [])]
    mine = [file(folder + b"%03d" % number, None, number) for number in range(0, 200, 40)]
    other = [file(folder + b"%03d" % number, None, number) for number in range(200)]
    at = commit(ours, [*above, *mine]).ordinal
    there = commit(theirs, [*above, *other[1:]]).ordinal
    questions: list[Compare | List] = []

    async def ask(question: Compare | List) -> Compared | Listed:
        encode(question, 0)  # what may not be sent raises
        questions.append(question)
        with theirs.reader() as reader:
            if isinstance(question, Compare):
                return Compared(question.number, tuple(compare.ranges(reader, there, question.borders)))
            high = None if question.open_end else (question.hi_dir, question.hi_name)
            low = (question.lo_dir, question.lo_name)
            items, last = compare.listing(reader, there, low, high)
            return Listed(question.number, tuple(items), last)

    async def run(work: Callable[[], object]) -> object:
        return work()

    with ours.reader() as reader:
        changed, removed = asyncio.run(compare.difference(reader, at, ask, run))
    assert changed == [folder + b"000"]
    assert sorted(removed) == sorted({e.path for e in other} - {e.path for e in mine})
    assert len(questions) > 20


@pytest.mark.parametrize("only_theirs", [True, False])
def test_long_paths_fill_a_question_or_an_answer_before_their_number_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_theirs: bool
) -> None:
    """What is too large for a message was refused by our own encoder, and the comparison began anew."""
    monkeypatch.setattr(compare, "RANGE_ENTRIES", 1)
    folders = [b"/".join([b"%d" % depth * 250 for depth in range(to)]) for to in range(5)]
    files = [file(folders[-1] + b"/%04d" % number, None, number) for number in range(1500)]
    ours = Catalog(tmp_path / "ours.db", SET)
    theirs = Catalog(tmp_path / "theirs.db", SET)
    above = [directory(path) for path in folders]
    at = commit(ours, above if only_theirs else above + files).ordinal
    there = commit(theirs, above + files[:-1]).ordinal
    sizes: list[int] = []

    async def ask(question: Compare | List) -> Compared | Listed:
        sizes.append(len(encode(question, 0)))
        with theirs.reader() as reader:
            if isinstance(question, Compare):
                return Compared(question.number, tuple(compare.ranges(reader, there, question.borders)))
            high = None if question.open_end else (question.hi_dir, question.hi_name)
            low = (question.lo_dir, question.lo_name)
            items, last = compare.listing(reader, there, low, high)
            listed = Listed(question.number, tuple(items), last)
            sizes.append(len(encode(listed, 0)))
            return listed

    async def run(work: Callable[[], object]) -> object:
        return work()

    with ours.reader() as reader:
        changed, removed = asyncio.run(compare.difference(reader, at, ask, run))
    assert changed == ([] if only_theirs else [files[-1].path])
    assert sorted(removed) == ([e.path for e in files[:-1]] if only_theirs else [])
    assert 500_000 < max(sizes) < MESSAGE and len(sizes) >= 4


def test_a_range_reads_the_names_of_its_own(tmp_path: Path) -> None:
    """Not those of the whole folder: with a million in one, each of thousands of ranges read them all."""
    catalog = Catalog(tmp_path / "one.db", SET)
    names = [b"a/%03d" % number for number in range(100)]
    files = [file(path, None, 0) for path in (*names, b"b", b"c/1")]
    at = commit(catalog, [directory(path) for path in (b"", b"a", b"c")] + files).ordinal
    rows: list[object] = []
    with catalog.reader() as reader:
        whole = [e.path for e in reader.in_key_order(at, (b"", b""), None)]
        assert len(whole) == 105 and set(names) < set(whole)
        reader._db.setrowtrace(lambda _, row: rows.append(row) or row)
        some = [e.path for e in reader.in_key_order(at, (b"a", b"010"), (b"a", b"020"))]
        assert some == names[10:20] and len(rows) < 20
        reader._db.setrowtrace(None)
        borders = [(b"", b"b"), (b"a", b"050"), (b"b", b""), (b"c", b"1")]
        ends = [*borders, None]
        parts = [
            [e.path for e in reader.in_key_order(at, low, high)]
            for low, high in zip([(b"", b""), *borders], ends, strict=True)
        ]
    assert list(itertools.chain.from_iterable(parts)) == whole
