"""The store on the disk of the temporary folder: packs, index, catalog."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_samples import SET, chunk, commit, directory, file, random_chunks

from crnode.store.catalog import Catalog
from crnode.store.packs import Lane
from crnode.store.reader import Fingerprint
from crnode.store.store import ObjectStore
from crproto.entries import Entry

Timer = Callable[..., Any]
FILES = 100_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    made = ObjectStore(tmp_path / "store", ballast=0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """One image of 100,000 files in 1,000 folders."""
    made = Catalog(tmp_path_factory.mktemp("catalog") / "set.db", SET)
    tree: list[Entry] = [directory(b"")]
    for folder in range(FILES // 100):
        tree.append(directory(b"%04d" % folder))
        tree += [_file(folder, n, 0) for n in range(100)]
    commit(made, tree)
    with made.transaction():
        for entry in tree:
            made.see(entry.path, Fingerprint(1, 2, 3, 4, 5))
    yield made
    made.put_away()


def _file(folder: int, number: int, mtime: int) -> Entry:
    name = random.Random(folder * 100 + number + mtime).randbytes(32)
    return file(b"%04d/file-%02d" % (folder, number), (name, 0), 4096, mtime)


def test_a_small_chunk_made_durable(benchmark: Timer, store: ObjectStore) -> None:
    source = random.Random(1)

    def put() -> None:
        store.put([chunk(source.randbytes(4096))], Lane.SMALL)
        store.sync()

    benchmark(put)


def test_bulk_made_durable(benchmark: Timer, store: ObjectStore) -> None:
    """16 MiB in chunks of 16 KiB."""
    seeds = itertools.count()
    benchmark.extra_info["MiB"] = 16

    def put(records: Any) -> None:
        store.put(records, Lane.BULK, cache=False)
        store.sync()

    benchmark.pedantic(put, setup=lambda: ((random_chunks(1024, 16384, next(seeds)),), {}), rounds=10)


def test_looking_ids_up(benchmark: Timer, store: ObjectStore) -> None:
    records = random_chunks(10_000, 200)
    store.put(records, Lane.SMALL, cache=False)
    store.sync()
    ids = [record.id for record in records] + [bytes([n % 256]) * 32 for n in range(256)]
    benchmark.extra_info["items"] = len(ids)
    assert len(benchmark(lambda: store.missing(ids))) == 256


def test_reading_chunks(benchmark: Timer, store: ObjectStore) -> None:
    records = random_chunks(1000, 16384)
    store.put(records, Lane.BULK, cache=False)
    store.sync()
    benchmark.extra_info["MiB"] = 1000 * 16384 / 2**20
    assert benchmark(lambda: sum(len(store.get(r.id)) for r in records)) == 1000 * 16384


def test_an_image_of_one_file(benchmark: Timer, catalog: Catalog) -> None:
    moments = itertools.count(1)
    benchmark(lambda: commit(catalog, [_file(7, 7, next(moments))]))


def test_an_image_of_10_000_files(benchmark: Timer, catalog: Catalog) -> None:
    moments = itertools.count(1_000_000)

    def tree() -> tuple[tuple[Catalog, list[Entry]], dict[str, Any]]:
        moment = next(moments)
        return (catalog, [_file(n % 1000, n // 1000, moment) for n in range(10_000)]), {}

    benchmark.extra_info["items"] = 10_000
    benchmark.pedantic(commit, setup=tree, rounds=5)


def test_listing_a_folder(benchmark: Timer, catalog: Catalog) -> None:
    newest = catalog.newest()
    assert newest is not None
    assert len(benchmark(lambda: catalog.children(b"0500", newest.ordinal))) == 100


def test_one_entry(benchmark: Timer, catalog: Catalog) -> None:
    newest = catalog.newest()
    assert newest is not None
    assert benchmark(lambda: catalog.entry(b"0500/file-50", newest.ordinal)) is not None


def test_names_and_prints_of_a_folder(benchmark: Timer, catalog: Catalog) -> None:
    """What a scan asks for each folder."""
    newest = catalog.newest()
    assert newest is not None
    assert len(benchmark(lambda: catalog.names(b"0600", newest.ordinal))) == 100
