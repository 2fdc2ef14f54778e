"""The floor of free space and the node's own quota: what counts, what is refused, what is given up for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_samples import SET, commit, file, random_chunks, with_writer

from crnode.capture.commit import SourceCommit
from crnode.capture.job import Batch
from crnode.cluster.create import Places, create_cluster
from crnode.cluster.node_file import read_node_file
from crnode.cluster.sizes import parse_quota, set_quota
from crnode.errors import CrnodeError, ExitCode
from crnode.store import collect as collect_module
from crnode.store.catalog import Catalog
from crnode.store.collect import CatalogRef, collect
from crnode.store.packs import Lane
from crnode.store.room import floor_of
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer

OTHER = bytes(range(100, 116))


def test_the_floor_is_a_share_that_a_small_disk_can_spare() -> None:
    gib = 1 << 30
    assert floor_of(1000 * gib) == 50 * gib
    assert floor_of(30 * gib) == 2 * gib
    assert floor_of(10 * gib) == gib
    assert floor_of(100 << 20) == 10 << 20


def store_of(place: Path, quota: int, clock: list[float]) -> ObjectStore:
    return ObjectStore(
        place / "store", pack_size=64 << 10, ballast=0, quota=quota, catalogs=place / "sets",
        clock=lambda: clock[0],
    )  # fmt: skip


def test_packs_and_catalogs_count_against_the_quota(tmp_path: Path) -> None:
    clock = [0.0]
    store = store_of(tmp_path, 400_000, clock)
    store.check_room(390_000)
    with pytest.raises(CrnodeError) as caught:
        store.check_room(400_001)
    assert caught.value.exit_code == ExitCode.FULL
    assert "quota" in str(caught.value)
    store.check_room()
    with pytest.raises(CrnodeError):  # what was refused is refused still, when housekeeping asks
        store.room.check_last()
    store.check_room(400_000)
    with pytest.raises(CrnodeError):
        store.room.check_last()
    store.room.quota = 500_000
    store.check_room(400_001)
    store.room.check_last()
    store.room.quota = 400_000
    store.put(random_chunks(30, 10_000), Lane.BULK, cache=False)
    assert store.room.used() == store.packs.total() > 300_000
    with pytest.raises(CrnodeError):
        store.check_room(100_000)
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "one.db").write_bytes(bytes(90_000))
    store.check_room(10_000)  # catalogs are looked at every other second
    clock[0] = 2.0
    with pytest.raises(CrnodeError):
        store.check_room(10_000)
    store.packs.seal_all()
    store.packs.remove(1)
    store.packs.remove(1)
    assert store.room.used() == store.packs.total() + 90_000
    store.check_room(10_000)
    store.close(clean=False)
    last = max((tmp_path / "store" / "packs").glob("*.pack"))
    with open(last, "ab") as pack:
        pack.write(b"torn")
    again = store_of(tmp_path, 400_000, clock)
    assert again.recovery.torn_bytes == 4
    assert again.room.used() == again.packs.total() + 90_000
    again.close(clean=False)
    unbound = store_of(tmp_path, 0, clock)
    unbound.check_room(1 << 20)
    unbound.close()


def test_the_spool_is_given_up_and_nothing_that_was_received(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_module, "GRACE_SECONDS", 0.01)
    store = ObjectStore(tmp_path / "store", pack_size=64 << 10, ballast=0)
    own = Catalog(tmp_path / "sets" / "own.db", SET)
    other = Catalog(tmp_path / "sets" / "other.db", OTHER)
    received, *spooled = random_chunks(20, 10_000)
    store.put([received], Lane.BULK, cache=False)
    commit(other, [file(b"f", (received.id, 0), 10_000)])
    source = SourceCommit(own, store, bytes(16), 0, 0, lambda: 1, set)

    def spool() -> None:
        batch = Batch()
        batch.changed = {b"f%d" % n: file(b"f%d" % n, (r.id, 0), 10_000) for n, r in enumerate(spooled)}
        batch.fresh.chunks = {r.id: bytes(r.stored) for r in spooled}
        source.stage(batch, True)

    spool()
    refs = [
        CatalogRef(SET.hex(), own.path, True, ("box2",), own),
        CatalogRef(OTHER.hex(), other.path, False, (), other),
    ]

    async def work(writer: Writer) -> None:
        names = [r.id for r in spooled]
        await collect(store, writer, refs)
        assert store.missing(names) == []
        await writer.submit(source.give_up_spool)
        await collect(store, writer, refs)
        assert set(store.missing(names)) == set(names)
        assert store.missing([received.id]) == []
        await writer.submit(spool)  # from here on it counts again
        await collect(store, writer, refs)
        assert store.missing(names) == []

    with_writer(work)


@pytest.mark.parametrize(
    ("text", "size"), [("64MiB", 64 << 20), ("50GiB", 50 << 30), ("2TiB", 2 << 40), ("67108864", 64 << 20)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_quota(text) == size


@pytest.mark.parametrize(
    "text", ["", "50GB", "50 GiB", "-1GiB", "1.5GiB", "50gib", "63MiB", "٥٠GiB", "GiB", "50GiB\n", "9" * 19]
)
def test_what_is_no_quota_is_refused(text: str) -> None:
    with pytest.raises(CrnodeError) as caught:
        parse_quota(text)
    assert caught.value.exit_code == ExitCode.USAGE


def test_the_quota_stands_in_the_nodes_file(tmp_path: Path) -> None:
    create_cluster(tmp_path / "data", "shop1", "shop", Places("127.0.0.1:7400", "127.0.0.1:7400", ""), 1)
    assert read_node_file(tmp_path / "data").quota is None
    set_quota(tmp_path / "data", 64 << 20)
    assert read_node_file(tmp_path / "data").quota == 64 << 20
