"""codec, ids, paths and entries, on literals."""

from __future__ import annotations

from typing import Any

import crproto_samples as samples
import pytest

from crproto import codec, paths
from crproto.entries import DIRECTORY, FILE, SYMLINK, Entry, Extra, LtHash, entry_bytes, entry_from_wire
from crproto.errors import LocalProtocolError, RemoteProtocolError
from crproto.ids import HOLE, check_name, chunk_id, image_id, recipe_id
from crproto.messages import MESSAGES, decode, encode


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\x91",  # an array that ends early
        b"\x01\x02",  # trailing bytes
        b"\xdd\xff\xff\xff\xff",  # an array of four thousand million
        b"\xc6\xff\xff\xff\xff",  # so many bytes
        b"\xdf\xff\xff\xff\xff",  # so many pairs
        b"\xd4\x01\x00",  # an extension
        b"\xc7\x00\xff",  # an empty timestamp
        b"\xd6\xff\0\0\0\0",  # a timestamp
        b"\xa1\xff",  # text that is not UTF-8
        b"\x81\x01\x02",  # a map with an integer key
        b"\xc1",
        b"\x91" * 2000 + b"\x01",  # deeper than any stack
    ],
)
def test_unpack_refuses(bad: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        codec.unpack(bad)


def test_unpack_looks_at_the_length_first() -> None:
    with pytest.raises(RemoteProtocolError, match="3 bytes of msgpack where 2") as caught:
        codec.unpack(b"\xa2ab", max_len=2)
    assert caught.value.code == "limit"


@pytest.mark.parametrize("value", [2**64, object(), "\ud800"])
def test_pack_refuses(value: object) -> None:
    with pytest.raises(LocalProtocolError):
        codec.pack(value)


@pytest.mark.parametrize(
    "good", [b"a", b"a/b", b"...", b".a", b"a..", b"\xff/\xfe", b"x" * 255, b"a/" * 127 + b"a"]
)
def test_good_paths(good: bytes) -> None:
    paths.check_path(good)
    assert paths.join(*paths.split(good)) == good


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"/",
        b"/a",
        b"a/",
        b"a//b",
        b".",
        b"..",
        b"a/..",
        b"../a",
        b"a/./b",
        b"a\0",
        b".crnode",
        b"a/.crnode/b",
        b"x" * 256,
        b"a/" + b"x" * 256,
        b"a/" * 128 + b"a",
        b"aaaaaaa/" * 512 + b"a",
    ],
)
def test_bad_paths(bad: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        paths.check_path(bad)


def test_only_the_root_is_empty() -> None:
    paths.check_path(b"", root=True)
    assert paths.split(b"") == (b"", b"")
    assert paths.split(b"a/b/c") == (b"a/b", b"c")


@pytest.mark.parametrize("good", ["a", "0", "shop-1", "x" * 63])
def test_good_names(good: str) -> None:
    assert check_name(good) == good


@pytest.mark.parametrize("bad", ["", "-a", "A", "a_b", "a.b", "x" * 64, "a\n", "\u00e4"])
def test_bad_names(bad: str) -> None:
    with pytest.raises(ValueError, match="cannot be a name"):
        check_name(bad)


def test_ids_are_separated_by_kind() -> None:
    assert chunk_id(b"same") != recipe_id(b"same")
    with pytest.raises(LocalProtocolError):
        image_id(b"", samples.SET, samples.INCARNATION, 1, 1, 1, samples.ID_A)
    with pytest.raises(LocalProtocolError):
        image_id(HOLE, samples.SET, samples.INCARNATION, -1, 1, 1, samples.ID_A)


GOOD = Entry(b"a", FILE, 0o644, "u", 1, "g", 1, 5, 9, samples.ID_A, 0, b"")
LINK = Entry(b"l", SYMLINK, 0o777, "u", 1, "g", 1, 5, 0, None, 0, Extra(target=b"x").encode())
FOLDER = Entry(b"d", DIRECTORY, 0o755, "u", 1, "g", 1, 5, 0, None, 0, b"")


@pytest.mark.parametrize("entry", [*samples.ENTRIES, samples.LINKED_SYMLINK])
def test_entries_come_back(entry: Entry) -> None:
    assert entry_from_wire(codec.unpack(entry_bytes(entry))) == entry


@pytest.mark.parametrize(
    ("entry", "changes"),
    [
        (GOOD, {"path": b"../a"}),
        (GOOD, {"path": "a"}),
        (GOOD, {"path": b""}),
        (GOOD, {"kind": 4}),
        (GOOD, {"kind": True}),
        (GOOD, {"mode": 0o10000}),
        (GOOD, {"mode": -1}),
        (GOOD, {"owner": b"u"}),
        (GOOD, {"owner": "u" * 256}),
        (GOOD, {"group": "a\0"}),
        (GOOD, {"owner_id": 2**32}),
        (GOOD, {"mtime_ns": 2**63}),
        (GOOD, {"mtime_ns": 1.5}),
        (GOOD, {"size": 0}),
        (GOOD, {"size": -1}),
        (GOOD, {"size": 2**63, "level": 1}),
        (GOOD, {"content": None}),
        (GOOD, {"content": b"short"}),
        (GOOD, {"content": HOLE}),
        (GOOD, {"level": 17}),
        (GOOD, {"level": -1}),
        (GOOD, {"size": 1 << 30}),
        (GOOD, {"extra": Extra(target=b"x").encode()}),
        (GOOD, {"extra": b"\x80"}),
        (GOOD, {"size": 0, "content": None, "level": 1}),
        (FOLDER, {"size": 1}),
        (FOLDER, {"content": samples.ID_A}),
        (FOLDER, {"extra": Extra(fuzzy=True).encode()}),
        (FOLDER, {"extra": Extra(target=b"x").encode()}),
        (FOLDER, {"extra": Extra(link=b"0123456789").encode()}),
        (LINK, {"extra": b""}),
        (LINK, {"size": 3}),
        (LINK, {"extra": Extra(link=b"0123456789").encode()}),
        (LINK, {"extra": Extra(target=b"x", default_acl=()).encode()}),
        (LINK, {"extra": Extra(target=b"x", fuzzy=True).encode()}),
    ],
)
def test_entries_that_are_refused(entry: Entry, changes: dict[str, Any]) -> None:
    entry_from_wire(entry)
    with pytest.raises(RemoteProtocolError):
        entry_from_wire(tuple(entry._replace(**changes)))


def test_an_entry_has_twelve_fields() -> None:
    with pytest.raises(RemoteProtocolError, match="12 fields"):
        entry_from_wire((*GOOD, 1))
    for other in (17, None, b"twelve bytes", "twelve chars", dict.fromkeys(range(12), 0), ()):
        with pytest.raises(RemoteProtocolError):
            entry_from_wire(other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "found",
    [
        {},
        [],
        {"unknown": 1},
        {"fuzzy": False},
        {"fuzzy": 1},
        {"target": b""},
        {"target": b"a\0b"},
        {"target": "a"},
        {"target": None},
        {"link": b"short"},
        {"xattrs": []},
        {"xattrs": [[b"b", b""], [b"a", b""]]},
        {"xattrs": [[b"a", b""], [b"a", b""]]},
        {"xattrs": [[b"", b""]]},
        {"xattrs": [[b"a", b"x" * 65537]]},
        {"xattrs": [[b"a"]]},
        {"acl": [[2, 8, "", 0]]},
        {"acl": [[2, 7, b"", 0]]},
        {"acl": [[4, 1, "", 0], [1, 1, "", 0]]},
        {"acl": None},
        {"target": b"a", "link": b"0123456789"},
        {"link": b"0123456789", "target": b"a", "z": 1},
    ],
)
def test_extras_that_are_refused(found: object) -> None:
    with pytest.raises(RemoteProtocolError):
        Extra.decode(codec.pack(found))


def test_extras_come_back() -> None:
    extra = Extra(b"t", ((b"a", b"1"), (b"b", b"")), (), ((1, 7, "", 0), (2, 4, "x", 5)), b"0123456789", True)
    assert Extra.decode(extra.encode()) == extra
    assert Extra().encode() == b""
    assert Extra.decode(b"") == Extra()


def test_lthash_forgets_an_element_after_65536_times() -> None:
    """The known weakness, and a check that the deferred carries are right far beyond one folding."""
    state = LtHash()
    state.add(b"other")
    before = state.to_bytes()
    for _ in range(65_536):
        state.add(b"same")
    assert state.to_bytes() == before
    state.remove(b"same")
    assert state.to_bytes() != before


def test_lthash_state_has_one_size() -> None:
    with pytest.raises(LocalProtocolError):
        LtHash.from_bytes(bytes(2047))


@pytest.mark.parametrize(("message", "payload"), samples.MESSAGES)
def test_messages_come_back_and_take_no_other_length(message: Any, payload: bytes) -> None:
    data = encode(message, len(payload))
    assert decode(data, len(payload)) == message
    wire = codec.unpack(data)
    for wrong in (wire[:-1], *([] if message.TYPE == 1 else [(*wire, 0)])):
        with pytest.raises(RemoteProtocolError):
            decode(codec.pack(wrong), len(payload))
    with pytest.raises(RemoteProtocolError):
        decode(data, len(payload) + 5_000_001)


def test_no_message_takes_a_value_of_another_type_anywhere() -> None:
    """Each field of each message in turn becomes a map, which no field may be."""
    assert len(MESSAGES) == len(samples.MESSAGES)
    for message, payload in samples.MESSAGES:
        wire = codec.unpack(encode(message, len(payload)))
        for place in range(1, len(wire)):
            with pytest.raises(RemoteProtocolError):
                decode(codec.pack((*wire[:place], {}, *wire[place + 1 :])), len(payload))
