"""crproto alone: cutting, ids, block hashes, recipes, entries, digest, frames. Rates are for the bytes or
items that the `extra_info` of each says."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from store_samples import file

from crproto import codec, content
from crproto.chunking import CUTTER_16K, CUTTER_64K, CUTTER_PAGES, cut_stream, make_cutter
from crproto.content import RecipeBuilder
from crproto.delta import apply_patch, compress, encode_patch
from crproto.entries import Entry, LtHash, entry_bytes, entry_from_wire, entry_to_wire
from crproto.frames import FrameParser, header
from crproto.ids import chunk_id
from crproto.messages import Entries, decode, encode
from crproto.recut import OldChunk, block_hashes, recut

Timer = Callable[..., Any]
MIB = 1 << 20


@pytest.fixture(scope="session")
def entries() -> list[Entry]:
    chance = random.Random(2)
    return [
        file(b"some/folder/of/a/tree/file-%05d" % n, (chance.randbytes(32), 0), 4096, n) for n in range(4000)
    ]


@pytest.mark.parametrize("number", [CUTTER_16K, CUTTER_64K, CUTTER_PAGES])
def test_cutting(benchmark: Timer, noise: bytes, number: int) -> None:
    view = memoryview(noise)
    benchmark.extra_info["MiB"] = len(noise) / MIB

    def cut() -> int:
        reader = cut_stream(lambda at, length: view[at : at + length], len(view), make_cutter(number))
        return sum(length for _, length, _ in reader)

    assert benchmark(cut) == len(noise)


@pytest.mark.parametrize("size", [4 << 10, 16 << 10, 64 << 10])
def test_chunk_ids(benchmark: Timer, noise: bytes, size: int) -> None:
    view = memoryview(noise)
    pieces = [view[at : at + size] for at in range(0, len(view), size)]
    benchmark.extra_info["MiB"] = len(noise) / MIB
    assert len(set(benchmark(lambda: [chunk_id(piece) for piece in pieces]))) == len(pieces)


def test_block_hashes(benchmark: Timer, noise: bytes) -> None:
    view = memoryview(noise)
    benchmark.extra_info["MiB"] = len(noise) / MIB

    def hashes() -> int:
        return sum(len(block_hashes(view[at : at + 16384], 7)) for at in range(0, len(view), 16384))

    assert benchmark(hashes) == len(noise) // 4096 * 8


@pytest.mark.parametrize("change", ["a page", "an insertion"])
def test_comparing_a_large_file(benchmark: Timer, noise: bytes, change: str) -> None:
    view = memoryview(noise)
    cutter = make_cutter(CUTTER_16K)
    old = [
        OldChunk(length, chunk_id(part), block_hashes(part, 7))
        for _, length, part in cut_stream(lambda at, length: view[at : at + length], len(view), cutter)
    ]
    at = 5_000_000
    new = noise[:at] + b"x" * 100 + noise[at + (100 if change == "a page" else 0) :]
    changed = memoryview(new)
    benchmark.extra_info["MiB"] = len(new) / MIB

    def compare() -> int:
        def read(at: int, length: int) -> memoryview:
            return changed[at : at + length]

        return sum(
            p.length for p in recut(old, len(new), read, make_cutter(CUTTER_16K), 7) if p.data is not None
        )

    assert 0 < benchmark(compare) < 200_000


def test_recipes(benchmark: Timer) -> None:
    """Of a file with 65,536 chunks (1 GiB)."""
    ids = [random.Random(n).randbytes(32) for n in range(65_536)]
    benchmark.extra_info["items"] = len(ids)

    def build() -> int:
        builder = RecipeBuilder(CUTTER_16K)
        for name in ids:
            builder.add(16_384, name)
        root, level = builder.finish()
        made = dict(builder.take())
        return sum(1 for _ in content.walk(root, level, made.__getitem__))

    assert benchmark(build) == len(ids)


def test_patches(benchmark: Timer, noise: bytes) -> None:
    base = memoryview(noise)[: 16 << 10]
    changed = bytearray(base)
    changed[4096:8192] = noise[-4096:]
    ranges = ((4096, 4096),)

    def there_and_back() -> bytes:
        return apply_patch(base, encode_patch(ranges, changed), len(changed))

    assert benchmark(there_and_back) == changed


@pytest.mark.parametrize("kind", ["random", "text"])
def test_compressing(benchmark: Timer, noise: bytes, kind: str) -> None:
    data = (
        noise[:MIB] if kind == "random" else b"".join(b"line %d of a log file\n" % n for n in range(45_000))
    )
    benchmark.extra_info["MiB"] = len(data) / MIB
    assert len(benchmark(lambda: compress(data))) <= len(data) + 1000


def test_entries_to_bytes_and_back(benchmark: Timer, entries: list[Entry]) -> None:
    benchmark.extra_info["items"] = len(entries)

    def there_and_back() -> int:
        data = codec.pack([entry_to_wire(entry) for entry in entries])
        return sum(entry_from_wire(wire).size for wire in codec.unpack(data))

    assert benchmark(there_and_back) == 4096 * len(entries)


def test_a_message_of_entries(benchmark: Timer, entries: list[Entry]) -> None:
    message = Entries(tuple(entries[:1000]), ())
    benchmark.extra_info["items"] = 1000
    assert benchmark(lambda: decode(encode(message, 0), 0)) == message


def test_the_digest_of_an_image(benchmark: Timer, entries: list[Entry]) -> None:
    benchmark.extra_info["items"] = len(entries)

    def digest() -> LtHash:
        out = LtHash()
        out.update(map(entry_bytes, entries))
        return out

    again = LtHash()
    again.update(map(entry_bytes, reversed(entries)))
    assert benchmark(digest) == again


@pytest.mark.parametrize("size", [4 << 10, 256 << 10, MIB])
def test_frames(benchmark: Timer, noise: bytes, size: int) -> None:
    """16 MiB of payload through the parser, as a transport fills its buffer."""
    message = b"\x91\x01"
    frames = [header(len(message), size) + message + noise[at : at + size] for at in range(0, 16 * MIB, size)]
    stream = memoryview(b"".join(frames))
    benchmark.extra_info["MiB"] = len(stream) / MIB

    def parse() -> int:
        parser, at, count = FrameParser(2 * MIB, MIB), 0, 0
        while at < len(stream):
            room = parser.get_buffer(256 << 10)
            length = min(len(room), len(stream) - at, 256 << 10)
            room[:length] = stream[at : at + length]
            at += length
            count += len(parser.buffer_updated(length))
        return count

    assert benchmark(parse) == len(frames)
