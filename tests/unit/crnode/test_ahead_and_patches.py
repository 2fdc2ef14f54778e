"""What goes ahead of an image, in what order; and patches: whose fault it is when their result is wrong."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_samples import chunk, small_store

from crnode.agent import restore
from crnode.capture.read import Fresh, Patch, PathReader
from crnode.capture.roots import OpenRoots, OwnPlaces, labels
from crnode.replicate import push as push_module
from crnode.replicate.commit import TargetCommit
from crnode.replicate.difference import ObjectReader, Wanted
from crnode.replicate.push import AHEAD_BYTES, Push
from crnode.replicate.quota import Staged
from crnode.store.packs import Lane
from crnode.store.store import CHUNK, RECIPE, Missing, ObjectStore
from crproto import delta
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE, chunk_id

MIB = 1 << 20


# -- what goes ahead


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """(bytes held, whether it was offered) of each part that was sent."""
    out: list[tuple[int, bool]] = []

    class Sender:
        async def send(self, parts: Any, objects: ObjectReader, *, offer: bool, patches: bool) -> None:
            assert patches and objects.fresh is not None
            out.append((objects.fresh.held, offer))

    monkeypatch.setattr(Push, "_sender", lambda self, peer: Sender())
    monkeypatch.setattr(push_module, "from_fresh", lambda fresh: iter(()))
    return out


def idle_push() -> Any:
    """A push that is connected and has nothing to do."""
    push: Any = object.__new__(Push)
    push._ahead, push._queued, push._due = deque(), 0, 0
    push._holds = False
    push._peer, push.state, push._news = object(), "in sync", asyncio.Event()
    push.source = SimpleNamespace(store=None, open_roots=None)
    push.lag, push._loop = SimpleNamespace(made=lambda *_: None), SimpleNamespace(time=lambda: 0.0)
    return push


def part(size: int, *, patched: bool = False) -> Fresh:
    fresh = Fresh({b"a": bytes(size)}, held=size)
    if patched:
        fresh.patches[b"a"] = Patch(b"b", [(0, 1)])
    return fresh


def test_an_image_waits_for_no_part_of_a_later_one(sent: list[tuple[int, bool]]) -> None:
    push = idle_push()
    for size in (MIB, 2 * MIB):
        push.send_ahead(part(size))
    push.announce(SimpleNamespace(image=SimpleNamespace(sequence=1)))
    push.send_ahead(part(3 * MIB))
    asyncio.run(push._send_ahead(None, push._due))
    assert [size for size, _ in sent] == [MIB, 2 * MIB]
    asyncio.run(push._send_ahead(None, push._due))
    assert len(sent) == 2
    asyncio.run(push._send_ahead(None, push._queued))
    assert [size for size, _ in sent] == [MIB, 2 * MIB, 3 * MIB]


def test_what_waits_to_go_ahead_is_bounded_and_needs_somebody_who_takes_it(
    sent: list[tuple[int, bool]],
) -> None:
    push = idle_push()
    for _ in range(20):
        push.send_ahead(part(4 * MIB))
    assert sum(fresh.held for fresh in push._ahead) == AHEAD_BYTES
    push.state = "full"
    asyncio.run(push._send_ahead(None, push._queued))
    assert not sent and not push._ahead
    push.send_ahead(part(MIB))
    push.state, push._peer = "in sync", None
    push.send_ahead(part(MIB))
    assert not push._ahead


def test_patches_go_without_being_offered(sent: list[tuple[int, bool]]) -> None:
    push = idle_push()
    push.send_ahead(part(MIB))
    push.send_ahead(part(MIB, patched=True))
    asyncio.run(push._send_ahead(None, push._queued))
    assert [offered for _, offered in sent] == [True, False]


def test_recipes_that_are_in_no_store_yet_are_read_from_memory(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    reader = ObjectReader(store, lambda: None, Fresh({b"c" * 32: b"chunk"}, recipes={b"r" * 32: b"recipe"}))
    assert reader.bytes_of(Wanted(b"r" * 32, RECIPE, 6, b"", 0)) == b"recipe"
    assert reader.bytes_of(Wanted(b"c" * 32, CHUNK, 5, b"", 0)) == b"chunk"
    assert reader.held(b"x" * 32) is None
    store.close()


def test_parts_are_of_one_size_however_many_files_they_come_from(tmp_path: Path) -> None:
    parts: list[int] = []
    names: set[bytes] = set()

    def spill(chunks: dict[bytes, bytes], _: dict[bytes, Patch]) -> None:
        parts.append(sum(map(len, chunks.values())))
        names.update(chunks)

    def missing(name: bytes) -> bytes:
        raise Missing(name)

    roots = OpenRoots(labels([str(tmp_path)]))
    more = (7, lambda _: False, 1 << 40, lambda: time.time_ns() + 10**12, 16 * MIB, OwnPlaces("00" * 16))
    reader = PathReader(roots, missing, lambda _: b"", *more)
    reader.spill, reader.spill_bytes = spill, MIB
    fresh = Fresh()
    for number in range(6):
        (tmp_path / f"{number}").write_bytes(random.Random(number).randbytes(7 * MIB // 4))
        reader.take(b"%d" % number, None, fresh)
    reader.close()
    assert sum(parts) + fresh.held == 6 * 7 * MIB // 4 == fresh.new_bytes
    assert max(parts) <= MIB and min(parts) > MIB // 4
    assert not names & fresh.chunks.keys()


# -- patches at the target


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    made = small_store(tmp_path / "store", 8 * MIB)
    made.cache.limit = 0  # else what was put a moment ago is read from memory
    return made


def put(store: ObjectStore, base: bytes, new: bytes, told: bytes) -> None:
    """A peer sends `new` under the id `told`, as a patch of what the store has as `base`."""
    commit: Any = object.__new__(TargetCommit)
    commit.store = store
    ranges = [(100, 50)]
    patch = delta.encode_patch(ranges, new)
    record = (told, CHUNK, delta.PATCH, len(new), len(patch), chunk_id(base))
    commit.put([record], memoryview(patch), None, Staged())


def spoil(store: ObjectStore, place: Path, data: bytes) -> None:
    """Turn a bit of a chunk in its pack."""
    where = store.locate(chunk_id(data))
    assert where is not None
    path = next((place / "packs").glob(f"*{where.pack}*"))
    with open(path, "r+b") as file:
        at = path.read_bytes().index(data)
        file.seek(at + 5000)
        byte = file.read(1)
        file.seek(at + 5000)
        file.write(bytes([byte[0] ^ 1]))


def test_the_result_of_a_patch_proves_its_base(store: ObjectStore, tmp_path: Path) -> None:
    base = os.urandom(100_000)
    new = base[:100] + os.urandom(50) + base[150:]
    store.put([chunk(base)], Lane.BULK)
    put(store, base, new, chunk_id(new))
    assert store.get(chunk_id(new)) == new and store.get(chunk_id(base)) == base

    # A base that is rotten is remembered, what came is left out, and nobody is blamed.
    spoil(store, tmp_path / "store", base)
    other = base[:100] + os.urandom(50) + base[150:]
    put(store, base, other, chunk_id(other))
    assert not store.has(chunk_id(other)) and store.damaged == {chunk_id(base)}
    store.close()


def test_a_patch_that_is_not_what_it_says_is_the_peers_fault(store: ObjectStore) -> None:
    base = os.urandom(100_000)
    new = base[:100] + os.urandom(50) + base[150:]
    store.put([chunk(base)], Lane.BULK)
    with pytest.raises(RemoteProtocolError, match="have another id"):
        put(store, base, new, chunk_id(b"something else"))
    assert not store.has(chunk_id(new)) and not store.damaged
    store.close()


# -- what a restore reads back


@pytest.mark.parametrize("size", [3 * MIB, 9 * MIB])
def test_a_byte_that_is_wrong_is_found_wherever_it_is(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    step = 70_000
    pieces = [(at, min(step, size - at), chunk_id(data[at : at + step])) for at in range(0, size, step)]
    pieces.insert(3, (3 * step, step, HOLE))  # what is a hole is not looked at
    with open(path, "r+b", buffering=0) as file:
        assert restore._has(file.fileno(), iter(pieces), size)
        for at in (0, size // 2, size - 1):
            file.seek(at)
            file.write(bytes([data[at] ^ 1]))
            assert not restore._has(file.fileno(), iter(pieces), size)
            file.seek(at)
            file.write(data[at : at + 1])
        assert restore._has(file.fileno(), iter(pieces), size)

    def torn() -> Any:
        yield from pieces[:40]
        raise Missing(b"x")

    with open(path, "rb") as file, pytest.raises(Missing):
        restore._has(file.fileno(), torn(), size)
