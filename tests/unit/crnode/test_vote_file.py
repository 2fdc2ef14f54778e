"""The vote file and the keepers' messages in bytes: what they are, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crnode.failover import wire
from crnode.failover.hard_state import (
    FILE_BYTES,
    SLOT_BYTES,
    NoState,
    decode,
    encode_slot,
    offset,
)
from crnode.failover.terms import (
    LAN,
    LAN_LEASE_NS,
    NO_EPOCH,
    SECOND,
    WAN,
    WAN_LEASE_NS,
    Alive,
    Config,
    ConfigId,
    Epoch,
    Grant,
    Hard,
    Message,
    No,
    Ok,
    Open,
    Opened,
    PreVote,
    PreVoted,
    Release,
    Renew,
    Timers,
    Voter,
    check_timers,
    held_for,
)
from crproto.errors import RemoteProtocolError

INC = bytes(range(16))
VOTERS = (Voter("shop1", INC), Voter("box2", INC[::-1]))
CONFIG = Config(ConfigId(1, Epoch(4, 2), 7), VOTERS, (("shop1", 1), ("box2", 2)), 3 * SECOND)
HARD = Hard(INC, Epoch(5, 1), "shop1", CONFIG, 3 * SECOND, Epoch(4, 2))

epochs = st.builds(Epoch, st.integers(0, 2**62), st.integers(0, 9))
names = st.text("abcdefghij-0123456789", min_size=1, max_size=20)
configs = st.builds(
    Config,
    st.builds(ConfigId, st.integers(0, 99), epochs, st.integers(0, 2**40)),
    st.lists(st.builds(Voter, names, st.binary(min_size=16, max_size=16)), max_size=5).map(tuple),
    st.lists(st.tuples(names, st.integers(0, 9)), max_size=8).map(tuple),
    st.integers(1, 2**40),
)
incarnations = st.binary(min_size=16, max_size=16)
hards = st.builds(Hard, incarnations, epochs, names, configs, st.integers(0, 2**50), epochs)
numbers = st.integers(0, 2**62)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(PreVote, numbers, epochs, configs),
    st.builds(PreVoted, numbers, st.booleans(), epochs),
    st.builds(Grant, numbers, epochs, epochs, configs),
    st.builds(Renew, numbers, epochs, configs),
    st.builds(Ok, numbers, epochs, numbers, configs.map(lambda config: config.id)),
    st.builds(No, numbers, epochs, names, configs),
    st.builds(Open, numbers, epochs),
    st.builds(Opened, numbers, epochs),
    st.builds(Release, epochs, names),
    st.builds(Alive, numbers, st.booleans(), configs, epochs),
)


def written(*states: Hard) -> bytes:
    file = bytearray(FILE_BYTES)
    for number, hard in enumerate(states):
        file[offset(number) : offset(number) + SLOT_BYTES] = encode_slot(hard, number)
    return bytes(file)


def test_a_slot_is_these_bytes() -> None:
    """Golden: a file of today is read by every later version."""
    slot = encode_slot(HARD, 3)
    assert slot.rstrip(b"\0").hex() == (
        "4352763100000000000000030000007297a07dc996c410000102030405060708090a0b0c0d0e0f920501a573686f7031"
        "94930192040207"
        "9292a573686f7031c410000102030405060708090a0b0c0d0e0f92a4626f7832c4100f0e0d0c0b0a09080706050403020100"
        "9292a573686f70310192a4626f783202ceb2d05e00ceb2d05e00920402"
    )
    assert len(slot) == SLOT_BYTES


@given(st.lists(hards, min_size=1, max_size=5))
def test_the_newest_state_is_read_back(states: list[Hard]) -> None:
    assert decode(written(*states)) == (states[-1], len(states) - 1)


@given(hards, hards, st.integers(0, 600))
def test_a_write_that_is_torn_leaves_the_state_before(before: Hard, after: Hard, at: int) -> None:
    file = bytearray(written(before))
    file[SLOT_BYTES : SLOT_BYTES + at] = encode_slot(after, 1)[:at]
    lacks = any(encode_slot(after, 1)[at:])
    assert decode(bytes(file)) == ((before, 0) if lacks else (after, 1))


@given(hards, st.integers(0, SLOT_BYTES * 8 - 1))
def test_a_flipped_bit_is_no_state(hard: Hard, bit: int) -> None:
    file = bytearray(written(hard))
    file[bit // 8] ^= 1 << bit % 8
    used = len(encode_slot(hard, 0).rstrip(b"\0"))
    if bit // 8 >= used:
        return  # behind the state
    with pytest.raises(NoState):
        decode(bytes(file))


@pytest.mark.parametrize("file", [b"", bytes(FILE_BYTES), b"x" * FILE_BYTES, bytes(100)])
def test_what_is_no_vote_file_is_no_state(file: bytes) -> None:
    with pytest.raises(NoState):
        decode(file)


def test_a_slot_in_the_other_place_does_not_count() -> None:
    with pytest.raises(NoState):
        decode(bytes(SLOT_BYTES) + encode_slot(HARD, 2))


@given(messages)
def test_messages_come_back(message: Message) -> None:
    envelope = wire.Envelope(INC, INC[::-1], message)
    assert wire.decode(wire.encode(envelope)) == envelope


def test_messages_are_these_bytes() -> None:
    held = wire.encode(wire.Envelope(INC, INC, Ok(9, Epoch(5, 1), 3 * SECOND, CONFIG.id)))
    assert held.hex() == (
        "9502c410000102030405060708090a0b0c0d0e0fc410000102030405060708090a0b0c0d0e0f04"
        "9409920501ceb2d05e00930192040207"
    )


@given(messages, st.integers(0, 10_000), st.integers(1, 255))
def test_a_broken_message_is_refused_or_another_one(message: Message, at: int, mask: int) -> None:
    data = bytearray(wire.encode(wire.Envelope(INC, INC, message)))
    data[at % len(data)] ^= mask
    try:
        found = wire.decode(bytes(data))
    except RemoteProtocolError:
        return
    assert type(found.message) in (PreVote, PreVoted, Grant, Renew, Ok, No, Open, Opened, Release, Alive)


@pytest.mark.parametrize(
    "data", [b"", b"\x90", b"\x91\x02", b"\xc0", b"\x95\x01\xa0\xa0\x00\x90", b"\xff" * 9000]
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.decode(data)


def test_a_later_version_is_refused_and_not_guessed() -> None:
    data = bytearray(wire.encode(wire.Envelope(INC, INC, Open(1, NO_EPOCH))))
    data[1] = 3
    with pytest.raises(RemoteProtocolError, match="version"):
        wire.decode(bytes(data))


def test_a_lease_is_relied_on_for_less_than_was_promised_in_any_two_clocks() -> None:
    """However wrong two clocks are within the bound, the holder is through before the voter is."""
    for promised in (3 * SECOND, 10 * SECOND):
        slowest_holder, fastest_voter = 0.99, 1.01
        assert held_for(promised) / slowest_holder < promised / fastest_voter
        assert held_for(promised) > promised * 0.9


def test_timers_that_cannot_work_are_refused() -> None:
    check_timers(LAN, LAN_LEASE_NS)
    check_timers(WAN, WAN_LEASE_NS)
    with pytest.raises(ValueError, match="four times"):
        check_timers(Timers(SECOND, SECOND // 10), 3 * SECOND)
    with pytest.raises(ValueError, match="third"):
        check_timers(Timers(SECOND // 2, SECOND), 3 * SECOND)
