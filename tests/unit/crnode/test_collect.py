"""Collection: nothing reachable is ever removed, garbage goes, and a crash at any point is harmless."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_samples import (
    SET,
    below,
    chunk,
    commit,
    file,
    flip,
    put_file,
    random_chunks,
    reachable,
    small_store,
    with_writer,
)

from crnode.store import collect as collect_module
from crnode.store.catalog import Catalog
from crnode.store.collect import CatalogRef, Outcome, collect, last_collected
from crnode.store.mark import Filter
from crnode.store.packs import Lane, Record
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer
from crproto import delta

OTHER = bytes(range(100, 116))


def _fill(place: Path, files: int = 40, size: int = 9000, seed: int = 1) -> tuple[ObjectStore, Catalog]:
    """A store whose catalog has three images: all files, half of them changed, two thirds removed."""
    source = random.Random(seed)
    store = small_store(place / "store")
    catalog = Catalog(place / "sets" / f"{SET.hex()}.db", SET)
    names = [b"f%03d" % n for n in range(files)]
    content = {name: source.randbytes(size) for name in names}
    commit(catalog, [file(n, put_file(store, content[n]), size) for n in names])
    for name in names[::2]:
        data = bytearray(content[name])
        data[source.randrange(size)] ^= 1
        content[name] = bytes(data)
    commit(catalog, [file(n, put_file(store, content[n]), size) for n in names[::2]])
    commit(catalog, [], [n for at, n in enumerate(names) if at % 3])
    store.sync()
    return store, catalog


def _ref(catalog: Catalog, **more: object) -> CatalogRef:
    return CatalogRef(catalog.set_uuid.hex(), catalog.path, catalog=catalog, **more)  # type: ignore[arg-type]


def _prune_to_newest(catalog: Catalog) -> None:
    with catalog.transaction():
        catalog.prune(set(), 100_000)


def _collect(store: ObjectStore, *catalogs: Catalog, **more: object) -> Outcome:
    async def work(writer: Writer) -> Outcome:
        return await collect(store, writer, [_ref(c) for c in catalogs], **more)  # type: ignore[arg-type]

    return with_writer(work)


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "GRACE_SECONDS", 0.01)


def test_the_filter_never_says_no_to_what_is_in_it() -> None:
    source = random.Random(3)
    for turn in range(4):
        inside = [source.randbytes(32) for _ in range(20_000)]
        marked = Filter(len(inside), turn)
        for name in inside:
            marked.add(name)
        assert all(name in marked for name in inside)
        wrong = sum(source.randbytes(32) in marked for _ in range(20_000))
        assert wrong < 20_000 * 0.05


def test_garbage_goes_and_nothing_reachable(tmp_path: Path) -> None:
    store, catalog = _fill(tmp_path)
    everything = {name for name, _ in store.index.items()} | set(store.index.pending)
    live = reachable([catalog], store)
    out = _collect(store, catalog)
    assert out.hole() is None
    assert reachable([catalog], store) == live  # all versions are there
    _prune_to_newest(catalog)
    live = reachable([catalog], store)
    before = store.packs.total()
    plan = _collect(store, catalog, plan=True)
    assert store.packs.total() == before
    assert plan.removed_bytes > 0
    out = _collect(store, catalog)
    assert reachable([catalog], store) == live
    assert out.removed_bytes == before - store.packs.total() > 0.3 * before
    left = {name for name, _ in store.index.items()} | set(store.index.pending)
    assert live <= left < everything
    dead = sum(1 for name in everything - live if name in left)
    # What is dead and stays lies in packs that are mostly alive.
    assert dead < 0.4 * len(left)
    last = last_collected(store.directory)
    assert last is not None
    assert last.total == store.packs.total() == out.kept_bytes
    store.close()
    again = small_store(tmp_path / "store")
    assert reachable([catalog], again) == live
    assert not again.recovery.lost_packs
    assert not again.recovery.damaged
    again.close()


def test_everything_goes_when_no_catalog_names_anything(tmp_path: Path) -> None:
    store, catalog = _fill(tmp_path)
    catalog.close()
    out = _collect(store)
    assert store.packs.total() == 0
    assert store.index.count() == 0
    assert out.copied_bytes == 0
    store.put([chunk(b"new")], Lane.SMALL)
    store.sync()
    store.close()
    again = small_store(tmp_path / "store")
    assert again.get(chunk(b"new").id) == b"new"
    again.close()


def test_two_sets_share_objects(tmp_path: Path) -> None:
    store, catalog = _fill(tmp_path)
    other = Catalog(tmp_path / "sets" / "other.db", OTHER)
    commit(other, list(catalog.walk(1))[:5])
    _prune_to_newest(catalog)
    live = reachable([catalog, other], store)
    _collect(store, catalog, other)
    assert reachable([catalog, other], store) == live


@pytest.mark.parametrize("why", ["missing", "damaged"])
def test_a_hole_stops_the_sweep(tmp_path: Path, why: str) -> None:
    store, catalog = _fill(tmp_path)
    _prune_to_newest(catalog)
    entry = next(e for e in catalog.walk(3) if e.level)
    assert entry.content is not None
    where = store.locate(entry.content)
    assert where is not None
    held = store.get(entry.content)
    before = store.packs.total()
    if why == "missing":
        store.tick(force=True)
        store.index.remove([entry.content])
    else:
        flip(store.packs.path(where.pack), where.offset + 100)
    out = _collect(store, catalog)
    assert [(h.id, h.why, h.set) for h in out.holes] == [(entry.content, why, SET.hex())]
    assert out.hole() is not None
    assert store.packs.total() == before
    assert store.live_extra is None
    store.damaged.add(entry.content)
    store.put([Record(entry.content, 1, delta.RAW, len(held), held)], Lane.BULK)
    assert _collect(store, catalog).hole() is None
    reachable([catalog], store)


def test_a_catalog_that_cannot_be_read_stops_the_sweep(tmp_path: Path) -> None:
    store, catalog = _fill(tmp_path)
    bad = tmp_path / "sets" / "bad.db"
    bad.write_bytes(b"this is no database at all" * 500)

    async def work(writer: Writer) -> Outcome:
        return await collect(store, writer, [_ref(catalog), CatalogRef("bad", bad)])

    before = store.packs.total()
    out = with_writer(work)
    assert out.unreadable
    assert store.packs.total() == before


def test_a_source_keeps_recipes_and_spooled_chunks_only(tmp_path: Path) -> None:
    store, catalog = _fill(tmp_path)
    _prune_to_newest(catalog)
    newest = catalog.newest()
    assert newest is not None
    assert newest.id is not None
    segments = {e.content for e in catalog.walk(newest.ordinal) if e.level and e.content is not None}
    with catalog.transaction():
        catalog.save_blocks(
            [(s, b"hashes") for s in segments] + [(bytes([7]) * 32, b"of a segment that is gone")]
        )

    def run(behind: bool) -> Outcome:
        with catalog.transaction():
            catalog.set_cursor("b", newest.id or b"", newest.ordinal - behind, 0)

        async def work(writer: Writer) -> Outcome:
            return await collect(store, writer, [_ref(catalog, source=True, targets=("b",))])

        return with_writer(work)

    live = reachable([catalog], store)
    run(True)
    assert reachable([catalog], store) == live  # a target waits for the chunks
    assert set(catalog.segments()) == segments
    run(False)
    assert all(store.has(s) for s in segments)
    chunks = live - segments
    assert sum(store.has(c) for c in chunks) < len(chunks) * 0.2


def test_what_becomes_live_after_the_mark_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage that an image comes to need between the mark and the sweep: named again by a put, answered as
    held, or below a recipe that is new."""
    store, catalog = _fill(tmp_path)
    old = list(catalog.walk(1))
    _prune_to_newest(catalog)
    live = reachable([catalog], store)
    dead = [e for e in old if e.content not in {x.content for x in catalog.walk(3)}]
    assert len(dead) > 20
    real = collect_module._Run._sealed

    def sealed(self: collect_module._Run, shares: dict[int, int]) -> dict[int, int]:
        first, second, third = dead[:3]
        assert first.content and second.content and third.content
        data = store.get(first.content)
        store.put(
            [Record(first.content, 1, delta.RAW, len(data), data)], Lane.SMALL
        )  # a source puts its recipes
        store.mark_live([second.content])  # a target answered that it holds it
        whole = b"".join(store.get(c) for c in _chunks(store, third.content, third.level)) + b"more"
        new = file(b"new", put_file(store, whole), len(whole))  # chunks are held, the recipe is new
        store.sync()
        commit(catalog, [first, second, new])
        return real(self, shares)

    monkeypatch.setattr(collect_module._Run, "_sealed", sealed)
    _collect(store, catalog)
    after = reachable([catalog], store)
    assert live <= after
    assert len(after) > len(live)
    assert store.live_extra is None


@pytest.mark.parametrize("pack", ["new", "emptied"])
def test_a_pack_of_which_the_mark_saw_nothing_is_not_taken_for_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str
) -> None:
    """An image comes between mark and sweep, and all that is new of it lies in a pack that had no record in
    the index when the mark began: it was not begun yet, or what was in it had been dropped."""
    store, catalog = _fill(tmp_path)
    store.flush_index()
    store.packs.seal_all()
    if pack == "emptied":
        gone = put_file(store, random.Random(8).randbytes(20_000))
        names = {gone[0], *_chunks(store, *gone)}
        store.flush_index()
        store.index.remove(list(names))
        assert store.packs.open_packs()
    data = random.Random(9).randbytes(30_000)
    real = collect_module._Run._sealed

    def sealed(self: collect_module._Run, shares: dict[int, int]) -> dict[int, int]:
        new = file(b"new", put_file(store, data), len(data))
        store.sync()
        commit(catalog, [new])
        return real(self, shares)

    monkeypatch.setattr(collect_module._Run, "_sealed", sealed)
    _collect(store, catalog)
    (new,) = [entry for entry in catalog.walk(4) if entry.path == b"new"]
    assert new.content is not None
    assert b"".join(store.get(name) for name in _chunks(store, new.content, new.level)) == data
    assert reachable([catalog], store)


def test_what_was_put_again_after_damage_is_not_taken_for_its_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, catalog = _fill(tmp_path)
    old = list(catalog.walk(1))
    _prune_to_newest(catalog)
    here = {entry.content for entry in catalog.walk(3)}
    dead = [e for e in old if e.content not in here]
    real = collect_module.PackSweep.step
    done: list[int] = []

    def step(self: collect_module.PackSweep) -> bool:
        if not done:
            done.append(1)
            for entry in dead[:10]:
                assert entry.content is not None
                for name in below(entry.content, entry.level, store.get):
                    where = store.locate(name)
                    assert where is not None
                    data = store.get(name)
                    store.damaged.add(name)
                    store.put([Record(name, where.kind, delta.RAW, len(data), data)], Lane.BULK, cache=False)
            store.sync()
            commit(catalog, dead[:10])
        return real(self)

    monkeypatch.setattr(collect_module.PackSweep, "step", step)
    out = _collect(store, catalog)
    assert out.removed_bytes > 0
    assert len(reachable([catalog], store)) > 100


def _chunks(store: ObjectStore, name: bytes, level: int) -> list[bytes]:
    from crproto.content import walk

    return [child for _, _, child in walk(name, level, store.get)]


def test_puts_and_reads_go_on_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "STEP_SECONDS", 0.0005)
    store, catalog = _fill(tmp_path, files=150)
    _prune_to_newest(catalog)
    live = reachable([catalog], store)
    source = random.Random(5)
    waits: list[float] = []

    async def work(writer: Writer) -> Outcome:
        running = asyncio.ensure_future(collect(store, writer, [_ref(catalog)]))
        number = 0
        while not running.done():
            number += 1

            def put(number: int = number) -> None:
                data = source.randbytes(3000)
                entry = file(b"during%d" % number, put_file(store, data), len(data))
                store.sync()
                commit(catalog, [entry])

            begun = time.monotonic()
            await writer.submit(put)
            waits.append(time.monotonic() - begun)
            assert all([await asyncio.to_thread(store.get, name) for name in random.sample(sorted(live), 3)])
            await asyncio.sleep(0.002)
        return await running

    out = with_writer(work)
    assert out.removed_bytes > 0
    assert len(waits) > 5
    assert live <= reachable([catalog], store)
    assert max(waits) < 0.25


CRASH = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from store_samples import SET, small_store
from crnode.store import collect as module
from crnode.store.catalog import Catalog
from crnode.store.collect import CatalogRef, collect
from crnode.store.writer import Writer
place, point, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
module.GRACE_SECONDS = 0.01
module.STEP_DEAD = 40
module.STEP_BYTES = 20_000
store = small_store(place / "store")
catalog = Catalog(place / "sets" / f"{SET.hex()}.db", SET)
left = [when]
def dying(real):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
owner, name = {"remove": (store.index, "remove"), "commit": (store.index, "commit"),
               "append": (store.packs, "append"), "sync": (store.packs, "sync"),
               "unlink": (store.packs, "remove"), "number": (store, "next_collection"),
               "step": (module.PackSweep, "step")}[point]
setattr(owner, name, dying(getattr(owner, name)))
async def main():
    writer = Writer(asyncio.get_running_loop(), lambda: None, print)
    await collect(store, writer, [CatalogRef(SET.hex(), catalog.path)])
    await writer.close()
asyncio.run(main())
print("END", flush=True)
"""


@pytest.mark.parametrize("point", ["remove", "commit", "append", "sync", "unlink", "number", "step"])
def test_killed_at_every_step(tmp_path: Path, point: str) -> None:
    base = tmp_path / "base"
    store, catalog = _fill(base)
    _prune_to_newest(catalog)
    live = reachable([catalog], store)
    store.close()
    catalog.put_away()
    died = 0
    place = Path(shutil.copytree(base, tmp_path / "run"))
    for when in (1, 2, 3, 6):  # each goes on where the one before died
        done = subprocess.run(
            [sys.executable, "-c", CRASH, str(place), point, str(when), str(Path(__file__).parent)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        died += done.returncode == -signal.SIGKILL
        assert done.returncode == -signal.SIGKILL or "END" in done.stdout, done.stderr
        store = small_store(place / "store")
        catalog = Catalog(place / "sets" / f"{SET.hex()}.db", SET)
        assert not store.recovery.damaged
        assert not store.recovery.lost_packs
        assert reachable([catalog], store) == live
        assert store.missing(sorted(live)) == []
        store.close(clean=False)
        catalog.close()
    assert died >= 1
    store = small_store(place / "store")
    catalog = Catalog(place / "sets" / f"{SET.hex()}.db", SET)
    assert _collect(store, catalog).hole() is None
    assert reachable([catalog], store) == live
    assert store.packs.total() < 0.8 * sum(p.stat().st_size for p in (base / "store" / "packs").iterdir())


def test_a_live_record_that_rotted_keeps_its_pack(tmp_path: Path) -> None:
    store, catalog = _fill(tmp_path)
    _prune_to_newest(catalog)
    store.tick(force=True)
    victims = []
    for entry in catalog.walk(3):
        assert entry.content is not None
        victims += [c for c in below(entry.content, entry.level, store.get) if c != entry.content][:1]
    for name in victims:
        where = store.locate(name)
        assert where is not None
        flip(store.packs.path(where.pack), where.offset + 70)
    out = _collect(store, catalog)
    assert set(out.damaged) <= set(victims)
    assert out.damaged
    assert all(store.index.get(name) is not None for name in victims)
    assert all(name in store.damaged for name in out.damaged)


def test_a_collection_with_many_waiting_manifests_runs(tmp_path: Path) -> None:
    """More than an argument of a process may hold."""
    store = small_store(tmp_path / "store")
    dead, held = (put_file(store, os.urandom(300_000)) for _ in range(2))
    manifests = [(os.urandom(32), 1) for _ in range(2016)]  # of versions that were pruned, for all we know

    async def work(writer: Writer) -> None:
        out = await collect(store, writer, [], manifests=[*manifests, held])
        assert out.hole() is None

    with_writer(work)
    assert not store.missing(sorted(below(*held, store.get)))
    assert store.missing([dead[0]])


def test_what_is_on_its_way_is_spared(tmp_path: Path) -> None:
    """The content of a large file, whose entry comes last."""
    store, catalog = _fill(tmp_path)
    born = store.next_collection()
    staged = random_chunks(200, 2000, seed=9)
    store.put(staged, Lane.BULK, cache=False)
    store.sync()
    for _ in range(2):
        _collect(store, catalog, in_flight=lambda: born)
        store.put(random_chunks(200, 2000, seed=store.collection), Lane.BULK, cache=False)
        store.sync()
    assert store.missing([record.id for record in staged]) == []
    _collect(store, catalog)
    assert store.missing([record.id for record in staged])


def test_one_that_is_given_up_while_it_waits_to_begin_ends(tmp_path: Path) -> None:
    """Else no further one could begin, and what becomes live was noted for ever."""
    store, catalog = _fill(tmp_path)

    async def work(writer: Writer) -> Outcome:
        writer.submit(time.sleep, 0.3)  # an image is being committed
        first = asyncio.create_task(collect(store, writer, [_ref(catalog)]))
        await asyncio.sleep(0.1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await writer.submit(lambda: None)
        assert store.live_extra is None
        return await collect(store, writer, [_ref(catalog)])

    assert with_writer(work).hole() is None
    store.close()
