"""chunking, content and delta, on literals."""

from __future__ import annotations

import random

import pytest
import zstandard

from crproto import chunking, delta
from crproto.content import HEADER, ITEM, RecipeBuilder, new_objects, parse_recipe, segments, walk
from crproto.errors import LocalProtocolError, RemoteProtocolError
from crproto.ids import HOLE, chunk_id

A, B = b"\xaa" * 32, b"\xbb" * 32


@pytest.mark.parametrize(
    ("size", "pages", "previous", "number"),
    [
        (1, False, None, 0),
        (32768, False, 2, 0),
        (32769, False, None, 1),
        ((512 << 20) - 1, False, None, 1),
        (512 << 20, False, None, 2),
        (512 << 20, False, 1, 1),
        (1 << 30, False, 1, 2),
        (256 << 20, False, 2, 2),
        ((256 << 20) - 1, False, 2, 1),
        (5, True, 1, 3),
        (1 << 40, True, None, 3),
        (512 << 20, False, 0, 2),
    ],
)
def test_choose_cutter(size: int, pages: bool, previous: int | None, number: int) -> None:
    assert chunking.choose_cutter(size, pages=pages, previous=previous) == number


def test_unknown_cutter() -> None:
    with pytest.raises(LocalProtocolError):
        chunking.make_cutter(9)


def test_pages_keep_their_borders() -> None:
    cutter = chunking.make_cutter(chunking.CUTTER_PAGES)
    assert cutter.cut(memoryview(bytes(40_000)), True) == [16384, 16384, 7232]
    assert cutter.cut(memoryview(bytes(40_000)), False) == [16384, 16384]


def test_cut_stream_ends_where_the_file_ends() -> None:
    data = memoryview(random.Random(1).randbytes(300_000))
    cutter = chunking.make_cutter(chunking.CUTTER_16K)
    short = list(chunking.cut_stream(lambda at, n: data[at : min(at + n, 200_000)], 300_000, cutter))
    assert sum(length for _, length, _ in short) == 200_000


def recipe(
    items: list[tuple[int, bytes]], level: int = 1, cutter: int = 1, total: int | None = None
) -> bytes:
    total = sum(length for length, _ in items) if total is None else total
    return HEADER.pack(level, cutter, total, len(items)) + b"".join(ITEM.pack(*item) for item in items)


def test_parse_recipe() -> None:
    found = parse_recipe(recipe([(5, A), (9 << 40, HOLE)]), 1)
    assert (found.level, found.cutter, found.total) == (1, 1, 5 + (9 << 40))
    assert list(found.iter_items()) == [(5, A), (9 << 40, HOLE)]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        recipe([]),
        recipe([(5, A)])[:-1],
        recipe([(5, A)]) + b"x",
        recipe([(0, A)]),
        recipe([(5, A)], total=6),
        recipe([(5, A)], level=0),
        recipe([(5, A)], level=17),
        recipe([(5, A)], level=2),
        recipe([(5, A)], cutter=4),
        recipe([(9 << 20, A)]),
        recipe([(5, A)] * 4097),
        recipe([(2**63, HOLE)]),
    ],
)
def test_recipes_that_are_refused(bad: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_recipe(bad, 1)


def test_holes_among_recipes_are_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        parse_recipe(recipe([(5, HOLE)], level=2))


def test_a_recipe_whose_child_has_another_length_is_refused() -> None:
    child = recipe([(5, A)])
    parent = recipe([(6, B)], level=2)
    with pytest.raises(RemoteProtocolError, match="5 bytes stands where 6"):
        list(walk(A, 2, lambda name: parent if name == A else child))


def test_an_empty_file_has_no_recipe() -> None:
    with pytest.raises(LocalProtocolError):
        RecipeBuilder(1).finish()
    builder = RecipeBuilder(1)
    builder.add(5, A)
    assert builder.finish() == (A, 0)
    assert builder.take() == []
    with pytest.raises(LocalProtocolError):
        builder.finish()


def test_level_0() -> None:
    assert list(walk(A, 0, lambda _: b"12345")) == [(0, 5, A)]
    assert list(walk(A, 0, lambda _: b"", size=7)) == [(0, 7, A)]
    assert list(segments(A, 0, lambda _: b"")) == []
    assert list(new_objects(None, (A, 0), lambda _: b"12345")) == [(A, 0, 5, 0)]
    assert list(new_objects((A, 0), (A, 0), lambda _: b"")) == []


def test_a_patch() -> None:
    patch = delta.encode_patch([(1, 2), (6, 1)], b"aXXaaaY")
    assert len(patch) == delta.patch_size([(1, 2), (6, 1)])
    assert delta.apply_patch(b"aaaaaa", patch, 7) == b"aXXaaaY"
    assert delta.apply_patch(b"aaaaaabbbbbbb", patch, 7) == b"aXXaaaY"
    assert delta.apply_patch(b"abc", delta.encode_patch([], b""), 2) == b"ab"
    with pytest.raises(LocalProtocolError):
        delta.encode_patch([(3, 2), (4, 1)], b"0123456")
    with pytest.raises(LocalProtocolError):
        delta.encode_patch([(6, 2)], b"0123456")


@pytest.mark.parametrize(
    ("payload", "length"),
    [
        (b"", 4),
        (b"\0\0\0\1", 4),
        (b"\xff\xff\xff\xff", 4),
        (b"\0\0\0\0x", 4),
        (b"\0\0\0\0", 5),
        (b"\0\0\0\0", 0),
        (b"\0\0\0\0", 1 << 40),
        (b"\0\0\0\1" + b"\0\0\0\3" + b"\0\0\0\2" + b"xx", 4),
        (b"\0\0\0\1" + b"\0\0\0\0" + b"\0\0\0\0", 4),
        (b"\0\0\0\1" + b"\0\0\0\0" + b"\0\0\0\2" + b"x", 4),
        (b"\0\0\0\1" + b"\0\0\0\5" + b"\0\0\0\1" + b"x", 6),
        (b"\0\0\0\2" + b"\0\0\0\1\0\0\0\1" + b"\0\0\0\0\0\0\0\1" + b"xx", 4),
    ],
)
def test_patches_that_are_refused(payload: bytes, length: int) -> None:
    with pytest.raises(RemoteProtocolError):
        delta.apply_patch(b"base", payload, length)


def test_zstd() -> None:
    data = b"text " * 10_000
    packed = delta.compress(data)
    assert len(packed) < 200
    assert delta.decompress(packed, len(data)) == data
    for wrong in (len(data) - 1, len(data) + 1, 0, 1 << 40):
        with pytest.raises(RemoteProtocolError):
            delta.decompress(packed, wrong)
    for bad in (packed[:-1], packed + b"x", b"", b"\x28\xb5\x2f\xfd" + b"\0" * 9):
        with pytest.raises(RemoteProtocolError):
            delta.decompress(bad, len(data))


def test_zstd_that_hides_its_size_is_refused() -> None:
    hidden = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)
    with pytest.raises(RemoteProtocolError, match="does not state"):
        delta.decompress(hidden, 100)


def test_decode_object() -> None:
    raw = memoryview(b"hello")
    assert delta.decode_object(delta.RAW, raw, 5) is raw
    assert delta.decode_object(delta.ZSTD, delta.compress(b"hello"), 5) == b"hello"
    assert delta.decode_object(delta.PATCH, delta.encode_patch([(0, 1)], b"jello"), 5, b"hello") == b"jello"
    with pytest.raises(LocalProtocolError):
        delta.decode_object(delta.PATCH, b"", 5)
    for codec, length in ((delta.RAW, 4), (9, 5)):
        with pytest.raises(RemoteProtocolError):
            delta.decode_object(codec, raw, length)


def test_one_changed_chunk_names_one_segment_a_level() -> None:
    old_items = [(4096, chunk_id(i.to_bytes(4, "big"))) for i in range(20_000)]
    new_items = [*old_items[:7_000], (4096, chunk_id(b"changed")), *old_items[7_001:]]
    store: dict[bytes, bytes] = {}
    loads = 0

    def load(name: bytes) -> bytes:
        nonlocal loads
        loads += 1
        return store[name]

    roots = []
    for items in (old_items, new_items):
        builder = RecipeBuilder(1)
        for length, name in items:
            builder.add(length, name)
        roots.append(builder.finish())
        store.update(builder.take())
    level = roots[0][1]
    found = list(new_objects(roots[0], roots[1], load))
    assert [item[:3] for item in found if item[1] == 0] == [(chunk_id(b"changed"), 0, 4096)]
    assert found[0][3] == 7_000 * 4096
    assert len(found) == 1 + level
    assert found[-1][0] == roots[1][0]
    assert loads <= 2 * level + 4
