"""Keepers' messages in bytes. Pure.

A message is the canonical msgpack of (version, type, fields…), and travels on a connection that proves who
sends it; the cluster and the sender's incarnation stand in front. A version that is not known is refused,
never guessed (rule 25).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from crnode.failover.hard_state import config_id_of, config_of, config_value, epoch_of, number_of
from crnode.failover.terms import (
    Alive,
    Grant,
    Message,
    No,
    Ok,
    Open,
    Opened,
    PreVote,
    PreVoted,
    Release,
    Renew,
)
from crproto import codec
from crproto.errors import RemoteProtocolError

VERSION = 2
MOST_BYTES = 8192


class Envelope(NamedTuple):
    """A message and who it is of, as the sender says; the connection says it, too."""

    cluster: bytes  # 16 bytes
    incarnation: bytes  # of the sender's vote file
    message: Message


_TYPES: tuple[type[Message], ...] = (
    PreVote, PreVoted, Grant, Renew, Ok, No, Open, Opened, Release, Alive,
)  # fmt: skip
_NUMBERS = {kind: number for number, kind in enumerate(_TYPES)}


def encode(envelope: Envelope) -> bytes:
    """The bytes of a message."""
    message = envelope.message
    number = _NUMBERS[type(message)]
    fields = tuple(_value(field) for field in message)
    return codec.pack((VERSION, envelope.cluster, envelope.incarnation, number, fields))


def _value(field: Any) -> Any:
    if type(field) in (int, str, bytes, bool):
        return field
    if hasattr(field, "voters"):
        return config_value(field)
    return tuple(_value(part) for part in field)


def decode(data: bytes) -> Envelope:
    """The message of these bytes. RemoteProtocolError, a sentence, for anything that :func:`encode` does not
    write."""
    value = codec.unpack(data, max_len=MOST_BYTES)
    if type(value) is not tuple or not value or value[0] != VERSION:
        raise RemoteProtocolError("a keeper's message of a version that is not known here", "version")
    try:
        _, cluster, incarnation, number, fields = value
        if any(type(name) is not bytes or len(name) != 16 for name in (cluster, incarnation)):
            raise ValueError("no cluster or no incarnation")
        return Envelope(cluster, incarnation, _message(_TYPES[number_of(number)], fields))
    except (ValueError, TypeError, IndexError) as error:
        raise RemoteProtocolError(f"a keeper's message is malformed: {error}") from error


def _message(kind: type[Message], fields: Any) -> Message:
    if kind is PreVote:
        nonce, data, config = fields
        return PreVote(number_of(nonce), epoch_of(data), config_of(config))
    if kind is PreVoted:
        nonce, yes, epoch = fields
        return PreVoted(number_of(nonce), _flag(yes), epoch_of(epoch))
    if kind is Alive:
        nonce, able, config, mark = fields
        return Alive(number_of(nonce), _flag(able), config_of(config), epoch_of(mark))
    if kind is Grant:
        nonce, epoch, data, config = fields
        return Grant(number_of(nonce), epoch_of(epoch), epoch_of(data), config_of(config))
    if kind is Renew:
        nonce, epoch, config = fields
        return Renew(number_of(nonce), epoch_of(epoch), config_of(config))
    if kind is Ok:
        nonce, epoch, promised, config = fields
        return Ok(number_of(nonce), epoch_of(epoch), number_of(promised), config_id_of(config))
    if kind is No:
        nonce, epoch, to, config = fields
        return No(number_of(nonce), epoch_of(epoch), _name(to), config_of(config))
    if kind is Release:
        epoch, successor = fields
        return Release(epoch_of(epoch), _name(successor))
    nonce, epoch = fields
    if kind is Open:
        return Open(number_of(nonce), epoch_of(epoch))
    return Opened(number_of(nonce), epoch_of(epoch))


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("neither yes nor no")
    return value


def _name(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("no name")
    return value


__all__ = ["MOST_BYTES", "VERSION", "Envelope", "decode", "encode"]
