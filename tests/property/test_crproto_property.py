"""Laws of the pure core, for inputs that nobody thought of."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from crproto import chunking, codec, delta, frames
from crproto import messages as m
from crproto.connection import CLIENT, SERVER, Connection
from crproto.content import RecipeBuilder, new_objects, parse_recipe, segments, walk
from crproto.entries import DIRECTORY, FILE, SYMLINK, Entry, Extra, LtHash, entry_bytes, entry_from_wire
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE, chunk_id, recipe_id

few = settings(max_examples=60, deadline=None)
many = settings(max_examples=200, deadline=None)


@few
@given(
    st.integers(0, 3), st.integers(0, 2**32), st.integers(0, 900_000), st.integers(1, 300_000), st.booleans()
)
def test_windows_give_the_borders_of_one_call(
    number: int, seed: int, size: int, window: int, dull: bool
) -> None:
    data = random.Random(seed).randbytes(size)
    if dull:  # long stretches without any border
        data = data[: size // 3] + bytes(size // 3) + data[size // 3 :]
    view = memoryview(data)
    cutter = chunking.make_cutter(number)
    whole = cutter.cut(view, True)
    assert sum(whole) == len(data)
    assert all(0 < length <= cutter.max_size for length in whole)
    pieces = list(chunking.cut_stream(lambda at, n: view[at : at + n], len(data), cutter, window=window))
    assert [length for _, length, _ in pieces] == whole
    assert b"".join(part for _, _, part in pieces) == data


@few
@given(st.integers(0, 2), st.integers(0, 2**32), st.lists(st.integers(1, 400_000), max_size=6))
def test_a_cutter_leaves_less_than_one_chunk(number: int, seed: int, sizes: list[int]) -> None:
    cutter = chunking.make_cutter(number)
    for size in sizes:
        lengths = cutter.cut(memoryview(random.Random(seed).randbytes(size)), False)
        assert 0 <= size - sum(lengths) < cutter.max_size


@many
@given(
    st.binary(max_size=300),
    st.binary(min_size=1, max_size=300),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), max_size=8),
)
def test_a_patch_brings_what_it_carries(base: bytes, new: bytes, wanted: list[tuple[int, int]]) -> None:
    ranges: list[tuple[int, int]] = []
    end = 0
    for offset, length in sorted(wanted):
        if offset >= end and offset + length <= len(new):
            ranges.append((offset, length))
            end = offset + length
    covered = {place for offset, length in ranges for place in range(offset, offset + length)}
    patch = delta.encode_patch(ranges, new)
    possible = all(place in covered for place in range(len(base), len(new)))
    try:
        made = delta.apply_patch(base, patch, len(new))
    except RemoteProtocolError:
        assert not possible
        return
    assert possible
    assert all(made[place] == (new[place] if place in covered else base[place]) for place in range(len(new)))


@many
@given(st.binary(max_size=80), st.binary(max_size=80), st.integers(-5, 200))
def test_a_patch_of_any_bytes_is_applied_or_refused(base: bytes, patch: bytes, length: int) -> None:
    try:
        assert len(delta.apply_patch(base, patch, length)) == length
    except RemoteProtocolError:
        pass


@many
@given(st.binary(min_size=1, max_size=3000))
def test_zstd_round_trip(data: bytes) -> None:
    assert delta.decompress(delta.compress(data), len(data)) == data


# --- recipes --------------------------------------------------------------------------------------


def build(items: list[tuple[int, bytes]], store: dict[bytes, bytes]) -> tuple[bytes, int]:
    builder = RecipeBuilder(1)
    for length, name in items:
        builder.add(length, name)
        store.update(builder.take())
    root = builder.finish()
    store.update(builder.take())
    return root


def dumb_build(items: list[tuple[int, bytes]], store: dict[bytes, bytes]) -> tuple[bytes, int]:
    """The definition, level by level, with whole lists."""
    joined: list[tuple[int, bytes]] = []
    for length, name in items:
        if joined and name == HOLE == joined[-1][1]:
            joined[-1] = (joined[-1][0] + length, HOLE)
        else:
            joined.append((length, name))
    if len(joined) == 1 and joined[0][1] != HOLE:
        return joined[0][1], 0
    level = 0
    while True:
        level += 1
        above = []
        run: list[tuple[int, bytes]] = []
        for i, (length, name) in enumerate(joined):
            run.append((length, name))
            border = len(run) >= 16 and name != HOLE and name[-1] % 128 == 0
            if border or len(run) == 1024 or i == len(joined) - 1:
                total = sum(part for part, _ in run)
                data = bytes([level, 1]) + total.to_bytes(8, "big") + len(run).to_bytes(4, "big")
                data += b"".join(part.to_bytes(8, "big") + key for part, key in run)
                store[recipe_id(data)] = data
                above.append((total, recipe_id(data)))
                run = []
        joined = above
        if len(joined) == 1:
            return joined[0][1], level


def listing(seed: int, count: int, kinds: int, border: int) -> list[tuple[int, bytes]]:
    """``count`` items of ``kinds`` different ids, one in ``border`` of which closes a segment."""
    rng = random.Random(seed)
    names = [HOLE]
    for _ in range(kinds):
        name = rng.randbytes(31)
        names.append(name + (b"\x80" if rng.randrange(border) == 0 else b"\x01"))
    return [
        (rng.randrange(1, 70_000), names[rng.randrange(1, len(names)) if rng.random() > 0.02 else 0])
        for _ in range(count)
    ]


lists = st.builds(
    listing, st.integers(0, 2**32), st.integers(1, 4000), st.integers(1, 5000), st.integers(1, 200)
)


@few
@given(lists)
def test_recipes_are_what_the_definition_says(items: list[tuple[int, bytes]]) -> None:
    store: dict[bytes, bytes] = {}
    dumb: dict[bytes, bytes] = {}
    root = build(items, store)
    assert root == dumb_build(items, dumb)
    assert store == dumb
    size = sum(length for length, _ in items)
    found = list(walk(*root, store.__getitem__, size=size))
    at = 0
    for offset, length, _ in found:
        assert offset == at
        at += length
    assert at == size
    again: dict[bytes, bytes] = {}
    assert build([(length, name) for _, length, name in found], again) == root
    if root[1]:
        parts = [parse_recipe(store[name], 1) for name in segments(*root, store.__getitem__)]
        assert [item for part in parts for item in part.iter_items()] == [(n, name) for _, n, name in found]
        middle = size // 2
        tail = list(walk(*root, store.__getitem__, start=middle, stop=middle + 100_000))
        assert tail == [item for item in found if item[0] + item[1] > middle and item[0] < middle + 100_000]


def reach(root: tuple[bytes, int], store: dict[bytes, bytes]) -> dict[bytes, int]:
    """Everything under a content, by kind: the dumb way."""
    name, level = root
    if level == 0:
        return {} if name == HOLE else {name: 0}
    found = {name: 1}
    for _, child in parse_recipe(store[name], level).iter_items():
        found |= reach((child, level - 1), store)
    return found


@few
@given(
    lists,
    st.integers(0, 2**32),
    st.sampled_from(["replace", "insert", "delete", "append", "truncate", "other", "none"]),
)
def test_new_objects_names_what_is_new(items: list[tuple[int, bytes]], seed: int, what: str) -> None:
    rng = random.Random(seed)
    at = rng.randrange(len(items))
    fresh = [(rng.randrange(1, 5000), rng.randbytes(32)) for _ in range(rng.randrange(1, 40))]
    changed = {
        "replace": items[:at] + fresh + items[at + len(fresh) :],
        "insert": items[:at] + fresh + items[at:],
        "delete": items[:at] + items[at + len(fresh) :],
        "append": items + fresh * 40,
        "truncate": items[: at + 1],
        "other": fresh,
        "none": items,
    }[what] or fresh
    store: dict[bytes, bytes] = {}
    old, new = build(items, store), build(changed, store)
    chunks = {name: bytes(length) for length, name in items + changed}

    def load(name: bytes) -> bytes:
        return store.get(name) or chunks[name]

    before, after = reach(old, store), reach(new, store)
    told = list(new_objects(None if what == "none" else old, new, load))
    names = [name for name, _, _, _ in told]
    assert len(names) == len(set(names))
    known = {} if what == "none" else before
    assert set(after) - set(known) <= set(names) <= set(after)
    place = {name: i for i, name in enumerate(names)}
    offsets: dict[bytes, set[int]] = {}
    if new[1]:
        for offset, _, name in walk(*new, store.__getitem__):
            offsets.setdefault(name, set()).add(offset)
    for name, kind, length, offset in told:
        assert after[name] == kind
        if kind:
            assert length == len(store[name])
            recipe = parse_recipe(store[name])
            for _, child in recipe.iter_items():
                assert child == HOLE or child in known or place[child] < place[name]
        elif new[1]:
            assert offset in offsets[name]


# --- entries and digests --------------------------------------------------------------------------

components = st.binary(min_size=1, max_size=12).filter(
    lambda part: b"/" not in part and b"\0" not in part and part not in (b".", b"..", b".crnode")
)
safe_paths = st.lists(components, min_size=1, max_size=4).map(b"/".join)
owners = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
u32 = st.integers(0, 2**32 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=9).filter(lambda n: b"\0" not in n), st.binary(max_size=9), max_size=3
)
acls = st.none() | st.lists(st.tuples(st.integers(0, 255), st.integers(0, 7), owners, u32), max_size=3).map(
    lambda a: tuple(sorted(a))
)


@st.composite
def entries(draw: Any) -> Entry:
    kind = draw(st.sampled_from([FILE, DIRECTORY, SYMLINK]))
    extra = Extra(
        target=draw(st.binary(min_size=1, max_size=20).filter(lambda t: b"\0" not in t))
        if kind == SYMLINK
        else None,
        xattrs=tuple(sorted(draw(xattrs).items())),
        acl=draw(acls),
        default_acl=draw(acls) if kind == DIRECTORY else None,
        link=draw(st.none() | st.binary(min_size=10, max_size=10)) if kind != DIRECTORY else None,
        fuzzy=draw(st.booleans()) if kind == FILE else False,
    )
    content, level, size = None, 0, 0
    if kind == FILE and draw(st.booleans()):
        content = draw(st.binary(min_size=32, max_size=32).filter(lambda c: c != HOLE))
        level = draw(st.integers(0, 16))
        size = draw(st.integers(1, 8 << 20 if level == 0 else 2**63 - 1))
    path = draw(safe_paths) if kind != DIRECTORY else draw(safe_paths | st.just(b""))
    return Entry(
        path,
        kind,
        draw(st.integers(0, 0o7777)),
        draw(owners),
        draw(u32),
        draw(owners),
        draw(u32),
        draw(i64),
        size,
        content,
        level,
        extra.encode(),
    )


@many
@given(entries())
def test_entries_come_back(entry: Entry) -> None:
    data = entry_bytes(entry)
    found = entry_from_wire(codec.unpack(data))
    assert found == entry
    assert entry_bytes(found) == data
    assert Extra.decode(entry.extra).encode() == entry.extra


values = st.recursive(
    st.none() | st.booleans() | i64 | st.integers(0, 2**64 - 1) | st.binary(max_size=40) | owners,
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)


@many
@given(values)
def test_codec_round_trip(value: Any) -> None:
    data = codec.pack(value)
    found = codec.unpack(data)
    assert found == value
    assert codec.pack(found) == data


@many
@given(st.binary(max_size=200))
def test_unpack_of_any_bytes(data: bytes) -> None:
    try:
        codec.pack(codec.unpack(data))
    except RemoteProtocolError:
        pass


def dumb_lthash(elements: list[bytes]) -> bytes:
    """Lane by lane, from the definition."""
    from blake3 import blake3

    key = blake3(b"crnode entry v1").digest()
    lanes = [0] * 1024
    for element in elements:
        output = blake3(element, key=key).digest(2048)
        for i in range(1024):
            lanes[i] = (lanes[i] + int.from_bytes(output[2 * i : 2 * i + 2], "little")) % 65536
    return b"".join(lane.to_bytes(2, "little") for lane in lanes)


@few
@given(
    st.lists(st.binary(max_size=8), max_size=12), st.lists(st.binary(max_size=8), max_size=6), st.randoms()
)
def test_lthash_laws(kept: list[bytes], dropped: list[bytes], rng: random.Random) -> None:
    expected = dumb_lthash(kept)
    steps = [(element, True) for element in kept + dropped]
    rng.shuffle(steps)
    state = LtHash()
    state.update([element for element, _ in steps])
    state.update((), dropped)
    assert state.to_bytes() == expected
    assert LtHash.from_bytes(expected) == state == state.copy()
    early = LtHash()  # taking out before taking in is the same sum
    early.update((), dropped)
    half = LtHash.from_bytes(early.to_bytes())
    half.update(kept)
    half.update(dropped)
    assert half.to_bytes() == expected


# --- the connection -------------------------------------------------------------------------------


def hello(authenticated: bool) -> m.Hello:
    who = (b"c" * 16, "n", b"i" * 16) if authenticated else (b"", "", b"")
    return m.Hello(1, 1, (), *who, 1, (0, 0, 0), 0, 8 << 20)


def raw(value: Any, payload: bytes = b"") -> bytes:
    data = codec.pack(value)
    return frames.header(len(data), len(payload)) + data + payload


numbers = st.sampled_from(sorted(m.MESSAGES))
shaped = st.builds(
    lambda kind, fields, payload: raw((kind, *fields), payload),
    numbers,
    st.lists(values, max_size=8),
    st.binary(max_size=70),
)


@many
@given(
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.lists(st.binary(max_size=60) | shaped, max_size=6),
    st.integers(1, 200),
)
def test_nothing_but_remote_protocol_error(
    authenticated: bool, greeted: bool, client: bool, parts: list[bytes], size: int
) -> None:
    connection = Connection(CLIENT if client else SERVER, hello(authenticated), authenticated=authenticated)
    connection.start()
    data = (raw(hello(authenticated).to_wire()) if greeted else b"") + b"".join(parts)
    outcomes = []
    for step in (size, len(data) or 1):
        connection = Connection(
            CLIENT if client else SERVER, hello(authenticated), authenticated=authenticated
        )
        connection.start()
        events: list[object] = []
        try:
            for at in range(0, len(data), step):
                events += connection.receive_data(data[at : at + step])
            outcomes.append((events, ""))
        except RemoteProtocolError as error:
            outcomes.append(([*events, *error.events], str(error)))
    assert outcomes[0] == outcomes[1]  # however the bytes arrive


@few
@given(st.binary(max_size=100))
def test_chunk_ids_are_of_the_bytes(data: bytes) -> None:
    assert chunk_id(memoryview(data)) == chunk_id(bytearray(data)) == chunk_id(data)
