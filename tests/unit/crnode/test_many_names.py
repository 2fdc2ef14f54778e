"""Files with many names: each is read once, however many batches a first copy takes."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from store_samples import INCARNATION, SET, small_store

from crnode.capture.commit import SourceCommit
from crnode.capture.job import BATCH_ENTRIES, Job
from crnode.capture.read import PathReader
from crnode.capture.roots import OpenRoots, OwnPlaces, Selection, labels
from crnode.store.catalog import Catalog
from crnode.store.reader import CLEAN, Reader
from crnode.store.store import ObjectStore
from crproto.content import walk
from crproto.entries import Extra
from crproto.ids import chunk_id

FILES, FOLDERS = 300, 12
LARGE = 1 << 20


def captures(tmp_path: Path, root: Path) -> tuple[ObjectStore, SourceCommit, Reader, PathReader]:
    """What captures `root`; its files count as old."""
    catalog, store = Catalog(tmp_path / "c.db", SET), small_store(tmp_path / "store", 8 << 20)
    reader = catalog.reader()
    paths = PathReader(
        OpenRoots(labels([str(root)])), store.load, reader.blocks, 1, lambda _: False, 1 << 40,
        lambda: time.time_ns() + 10**10, 16 << 20, OwnPlaces(""),
    )  # fmt: skip
    return store, SourceCommit(catalog, store, INCARNATION, 0, 1, time.time_ns, set), reader, paths


def test_a_large_file_is_read_once_for_all_of_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    data = random.Random(1).randbytes(LARGE)
    (root / "0").write_bytes(data)
    for number in range(1, 600):  # more than one batch
        os.link(root / "0", root / f"{number}")
    store, commit, reader, paths = captures(tmp_path, root)
    came = 0
    real = os.preadv

    def preadv(fd: int, buffers: Any, at: int) -> int:
        nonlocal came
        got = real(fd, buffers, at)
        came += got
        return got

    monkeypatch.setattr(os, "preadv", preadv)
    view = 0
    for content, tops in ((data, [(b"", True)]), (data[:500] + b"changed" + data[507:], [(b"5", False)])):
        if content != data:
            with open(root / "7", "r+b") as file:
                file.write(content)
        came = 0
        job, staged = Job(paths, reader, view, Selection([], []), None), False
        for batch in job.run(tops):
            if not batch.empty():
                job.staged(commit.stage(batch, False))
                staged = True
        point = commit.finish(job.flush(), CLEAN, staged, False, False, False)
        view = point.image.ordinal
        assert came <= 2 * LARGE
        came = 0  # ... of one round: who is told of a write in the next one reads, whatever the times say
        assert list(job.run([(b"9", False)])) == [] and came >= LARGE
        entries = [reader.entry(b"%d" % number, view) for number in range(600)]
        assert len({(e.content, e.level, e.size, e.extra) for e in entries if e is not None}) == 1
        (entry,) = {e.content for e in entries if e is not None}
        found = b"".join(
            content[at : at + length]
            for at, length, name in walk(entry, entries[0].level, store.load, size=LARGE)
            if name == chunk_id(content[at : at + length])
        )
        assert found == content and None not in entries


def test_a_first_copy_of_hard_links_reads_each_name_once_and_a_change_all_of_a_group(tmp_path: Path) -> None:
    """Each batch took again what the batches before it had: a copy of a tree of snapshots took days."""
    root = tmp_path / "root"
    (root / "s0").mkdir(parents=True)
    for number in range(FILES):
        (root / "s0" / f"{number}").write_bytes(b"%d" % number)
    for folder in range(1, FOLDERS):
        (root / f"s{folder}").mkdir()
        for number in range(FILES):
            os.link(root / "s0" / f"{number}", root / f"s{folder}" / f"{number}")
    assert FILES * FOLDERS > 3 * BATCH_ENTRIES
    store, commit, reader, paths = captures(tmp_path, root)
    taken: list[bytes] = []
    real = paths.take

    def take(path: bytes, *args: Any, **more: Any) -> Any:
        taken.append(path)
        return real(path, *args, **more)

    paths.take = take  # type: ignore[method-assign]

    def capture(view: int, top: bytes, whole: bool) -> Any:
        taken.clear()
        job, staged = Job(paths, reader, view, Selection([], []), None), False
        for batch in job.run([(top, whole)]):
            if not batch.empty():
                job.staged(commit.stage(batch, False))
                staged = True
        return commit.finish(job.flush(), CLEAN, staged, False, False, False)

    first = capture(0, b"", True)
    assert first.image.entries == FILES * FOLDERS + FOLDERS + 1
    assert len(taken) <= first.image.entries + FOLDERS
    (root / "s3" / "7").write_bytes(b"another")
    second = capture(first.image.ordinal, b"s3/7", False)
    assert sorted(taken) == sorted(b"s%d/7" % folder for folder in range(FOLDERS))
    entries = [reader.entry(b"s%d/7" % folder, second.image.ordinal) for folder in range(FOLDERS)]
    assert {entry.size for entry in entries if entry is not None} == {7}
    assert len({Extra.decode(entry.extra).link for entry in entries if entry is not None}) == 1
    assert None not in entries
    os.unlink(root / "s3" / "7")
    (root / "s3" / "7").write_bytes(b"of its own")
    third = capture(second.image.ordinal, b"s3/7", False)
    alone, other = reader.entry(b"s3/7", third.image.ordinal), reader.entry(b"s4/7", third.image.ordinal)
    assert alone is not None and other is not None and alone.size == 10 and other.size == 7
    assert not alone.extra and sorted(taken) == sorted(b"s%d/7" % folder for folder in range(FOLDERS))
