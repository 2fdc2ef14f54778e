"""Cutting a file of very many chunks again: a segment of its version before at a time."""

from __future__ import annotations

import random

import pytest
from test_read import Source, source  # noqa: F401 - a fixture

from crnode.capture import earlier
from crnode.capture import read as read_module
from crnode.capture.earlier import Segmented
from crproto import chunking
from crproto.ids import chunk_id
from crproto.recut import OldChunk, block_hashes, recut

SEED = 5


def test_a_segment_at_a_time_says_what_all_at_once_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(earlier, "LOADED", 4)
    made = random.Random(3)
    data = made.randbytes(2 << 20)
    view = memoryview(data)
    cut = chunking.cut_stream(
        lambda at, n: view[at : at + n], len(data), chunking.make_cutter(chunking.CUTTER_16K)
    )
    chunks = [OldChunk(length, chunk_id(part), block_hashes(part, SEED)) for _, length, part in cut]
    sizes, parts, at = [], {}, 0
    while at < len(chunks):
        sizes.append((b"%d" % at, min(made.randrange(1, 40), len(chunks) - at)))
        parts[sizes[-1][0]] = chunks[at : at + sizes[-1][1]]
        at += sizes[-1][1]
    loads: list[bytes] = []

    def load(name: bytes) -> list[OldChunk]:
        loads.append(name)
        return parts[name]

    lazy = Segmented(sizes, load)
    assert len(lazy) == len(chunks) and list(lazy) == chunks and lazy[3:50] == chunks[3:50]
    assert len(loads) < 2 * len(sizes) + 10
    with pytest.raises(IndexError):
        lazy[len(chunks)]
    for _ in range(4):
        new = bytearray(data)
        for _ in range(made.randrange(1, 4)):
            at = made.randrange(len(new))
            kind = made.randrange(3)
            if kind == 0:
                new[at : at + 4096] = made.randbytes(min(4096, len(new) - at))
            elif kind == 1:
                new[at:at] = made.randbytes(made.randrange(1, 60_000))
            else:
                del new[at : at + made.randrange(1, 60_000)]
        seen = memoryview(bytes(new))

        def pieces(old: list[OldChunk] | Segmented, seen: memoryview = seen) -> list[tuple[object, ...]]:
            cutter = chunking.make_cutter(chunking.CUTTER_16K)
            found = recut(old, len(seen), lambda a, n: seen[a : a + n], cutter, SEED, len(data))
            return [(p.offset, p.length, p.id, p.hashes, p.base, p.ranges) for p in found]

        assert pieces(lazy) == pieces(chunks)
        assert len(lazy._loaded) <= 5


def test_a_large_file_is_captured_again_as_a_small_one_is(
    source: Source, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    path = source.root / "large"
    data = bytearray(random.Random(4).randbytes(16 << 20))
    path.write_bytes(data)
    first, _ = source.take(b"large")
    data[7 << 20 : (7 << 20) + 9] = b"different"
    path.write_bytes(data)
    whole, fresh = source.take(b"large", first)
    monkeypatch.setattr(read_module, "AT_ONCE", 100)
    by_segment, again = source.take(b"large", first)
    assert (by_segment.content, by_segment.level) == (whole.content, whole.level)
    assert again.patches.keys() == fresh.patches.keys() and again.chunks.keys() == fresh.chunks.keys()
    assert len(again.chunks) == 1
    data[0:0] = b"an insertion"
    path.write_bytes(data)
    entry, _ = source.take(b"large", by_segment)
    assert source.bytes_of(entry, path) == bytes(data)
