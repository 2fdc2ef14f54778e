"""The vote file: what a keeper must never forget, in bytes. Pure.

Two slots of 4 KiB, written in turn: a write that is torn leaves the other one. Each has a magic number, its
number, a checksum and the state. The slot with the greater number that is whole counts. Both bad: this
voter does not exist any more (rule 8); it is never guessed what it had promised.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

from crnode.failover.terms import Config, ConfigId, Epoch, Hard, Voter
from crproto import codec
from crproto.errors import RemoteProtocolError

SLOT_BYTES = 4096
SLOTS = 2
FILE_BYTES = SLOT_BYTES * SLOTS
MAGIC = b"CRv1"
_HEAD = struct.Struct(">4sQII")  # magic, number, length of the state, CRC-32 of number, length and state


class NoState(Exception):
    """Neither slot is whole: this voter is nobody any more."""


def encode_slot(hard: Hard, number: int) -> bytes:
    """The bytes of slot `number % 2`, for the `number`th state since the file was made; always SLOT_BYTES."""
    state = codec.pack(state_value(hard))
    head = struct.pack(">QI", number, len(state))
    check = zlib.crc32(state, zlib.crc32(head))
    slot = _HEAD.pack(MAGIC, number, len(state), check) + state
    if len(slot) > SLOT_BYTES:
        raise ValueError(f"the state of a voter has {len(slot)} bytes, a slot {SLOT_BYTES}")
    return slot.ljust(SLOT_BYTES, b"\0")


def offset(number: int) -> int:
    """Where in the file the `number`th state is written."""
    return number % SLOTS * SLOT_BYTES


def decode(file: bytes) -> tuple[Hard, int]:
    """The newest whole state of a vote file, and its number. Raises NoState."""
    found: list[tuple[int, Hard]] = []
    for at in range(SLOTS):
        slot = file[at * SLOT_BYTES : (at + 1) * SLOT_BYTES]
        if (one := _decode_slot(slot, at)) is not None:
            found.append(one)
    if not found:
        raise NoState
    number, hard = max(found, key=lambda pair: pair[0])
    return hard, number


def _decode_slot(slot: bytes, place: int) -> tuple[int, Hard] | None:
    if len(slot) != SLOT_BYTES:
        return None
    magic, number, length, check = _HEAD.unpack_from(slot)
    state = slot[_HEAD.size : _HEAD.size + length]
    head = struct.pack(">QI", number, length)
    if magic != MAGIC or len(state) != length or number % SLOTS != place:
        return None
    if zlib.crc32(state, zlib.crc32(head)) != check:
        return None
    try:
        return number, state_of(codec.unpack(state))
    except (RemoteProtocolError, ValueError, TypeError):
        return None


# -- values as they are packed: in the file, and in messages


def state_value(hard: Hard) -> Any:
    """What :func:`state_of` reads."""
    config = config_value(hard.config)
    return (hard.incarnation, tuple(hard.epoch), hard.to, config, hard.longest_ns, tuple(hard.mark))


def state_of(value: Any) -> Hard:
    """The state of :func:`state_value`. ValueError or TypeError for anything else."""
    incarnation, epoch, to, config, longest, mark = value
    if type(incarnation) is not bytes or len(incarnation) != 16 or type(to) is not str:
        raise ValueError("no incarnation, or nobody's name")
    return Hard(incarnation, epoch_of(epoch), to, config_of(config), number_of(longest), epoch_of(mark))


def config_value(config: Config) -> Any:
    """What :func:`config_of` reads."""
    name = (config.id.generation, tuple(config.id.epoch), config.id.version)
    return (name, tuple(map(tuple, config.voters)), tuple(map(tuple, config.slots)), config.lease_ns)


def config_of(value: Any) -> Config:
    """The configuration of :func:`config_value`. ValueError or TypeError for anything else."""
    name, voters, slots, lease = value
    found = tuple(Voter(voter, incarnation) for voter, incarnation in voters)
    if any(type(v.name) is not str or type(v.incarnation) is not bytes for v in found):
        raise ValueError("a voter has no name or no incarnation")
    if any(type(candidate) is not str for candidate, _ in slots):
        raise ValueError("a candidate has no name")
    candidates = tuple((candidate, number_of(slot)) for candidate, slot in slots)
    return Config(config_id_of(name), found, candidates, number_of(lease))


def config_id_of(value: Any) -> ConfigId:
    """A configuration's id. ValueError or TypeError for anything else."""
    generation, epoch, version = value
    return ConfigId(number_of(generation), epoch_of(epoch), number_of(version))


def epoch_of(value: Any) -> Epoch:
    """An epoch. ValueError or TypeError for anything else."""
    counter, slot = value
    return Epoch(number_of(counter), number_of(slot))


def number_of(value: Any) -> int:
    """A number of 63 bits that is not negative. ValueError for anything else."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("no number")
    return value


__all__ = [
    *("FILE_BYTES", "MAGIC", "SLOT_BYTES", "NoState", "config_id_of", "config_of", "config_value", "decode"),
    *("encode_slot", "epoch_of", "number_of", "offset"),
]
