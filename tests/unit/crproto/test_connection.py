"""Two connections back to back, and one against literal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import crproto_samples as samples
import pytest

from crproto import codec, frames
from crproto import messages as m
from crproto.connection import (
    CLIENT,
    SERVER,
    Closed,
    Connected,
    Connection,
    CreditGranted,
    Event,
    Received,
)
from crproto.conversation import Session, Stage
from crproto.errors import LocalProtocolError, RemoteProtocolError
from crproto.limits import DEFAULT, Limits
from crproto.shapes import Message

ID_A, ID_B, ID_C, SET, INC = samples.ID_A, samples.ID_B, samples.ID_C, samples.SET, samples.INCARNATION
SMALL = Limits(frame=4096, message=4096)


class Pair:
    """A client and a server; what one sends the other receives at once."""

    def __init__(
        self, *, authenticated: bool = True, window: int = samples.WINDOW, limits: Limits = DEFAULT
    ) -> None:
        joining = {} if authenticated else {"cluster": b"", "node": "", "incarnation": b""}
        self.client = Connection(
            CLIENT,
            samples.hello("shop1", credit=window, **joining),
            authenticated=authenticated,
            limits=limits,
        )
        self.server = Connection(
            SERVER, samples.hello("shop2", credit=window), authenticated=authenticated, limits=limits
        )
        greeting = self.client.start(), self.server.start()
        (self.to_server,) = self.server.receive_data(b"".join(greeting[0]))
        (self.to_client,) = self.client.receive_data(b"".join(greeting[1]))

    def send(self, sender: Connection, message: Message, payload: Sequence[bytes] = ()) -> list[Event]:
        receiver = self.server if sender is self.client else self.client
        return receiver.receive_data(b"".join(bytes(part) for part in sender.send(message, payload)))

    def session(self) -> Pair:
        self.send(self.client, m.SetOpen(SET, "web", INC, 1, 1, b""))
        self.send(self.server, m.SetState(b"", 0, b"", b"", b"", b"", b"", ""))
        return self


def begin(name: bytes = ID_C) -> m.ImageBegin:
    return m.ImageBegin(name, ID_A, b"", INC, 1, 1, 5, ID_B, 0, 1, 5, 1, False, False)


def raw(message: Message, payload: bytes = b"") -> bytes:
    data = m.encode(message, len(payload))
    return frames.header(len(data), len(payload)) + data + payload


CHUNK = m.Objects(((ID_A, 0, 0, 5, 5, b""),))


def test_hellos_meet() -> None:
    pair = Pair()
    assert pair.to_server == Connected(samples.hello("shop1"), 1, frozenset({"compare"}))
    assert pair.to_client == Connected(samples.hello("shop2"), 1, frozenset({"compare"}))
    assert pair.client.stage is pair.server.stage is Stage.READY
    assert pair.client.credit == samples.WINDOW


def test_version_is_the_highest_common_and_features_the_intersection() -> None:
    old = Connection(SERVER, samples.hello("a", version_max=3, features=("x", "y")), authenticated=True)
    old.start()
    (event,) = old.receive_data(raw(samples.hello("b", version_min=2, version_max=9, features=("y", "z"))))
    assert isinstance(event, Connected)
    assert (event.version, event.features) == (3, frozenset({"y"}))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version_min": 2, "version_max": 3}, "version"),
        ({"cluster": b"another-cluster!"}, "cluster"),
        ({"cluster": b"", "node": "", "incarnation": b""}, "cluster"),
        ({"credit": 1000}, "protocol"),
    ],
)
def test_a_hello_that_does_not_fit_is_answered_with_failure(changes: dict[str, Any], code: str) -> None:
    server = Connection(SERVER, samples.hello("shop2"), authenticated=True)
    client = Connection(CLIENT, samples.hello("shop1"), authenticated=True)
    client.receive_data(b"".join(server.start()))
    client.start()
    with pytest.raises(RemoteProtocolError) as caught:
        server.receive_data(raw(samples.hello("shop1", **changes)))
    assert caught.value.code == code
    (event,) = client.receive_data(b"".join(server.last_words))
    assert isinstance(event, Closed)
    assert (event.code, event.retry) == (code, False)
    assert client.stage is server.stage is Stage.CLOSED


def test_a_hello_of_a_later_version_may_have_more_fields() -> None:
    server = Connection(SERVER, samples.hello("shop2"), authenticated=True)
    wire = [*samples.hello("shop1").to_wire(), "new", 5]
    data = codec.pack(wire)
    (event,) = server.receive_data(frames.header(len(data), 0) + data)
    assert isinstance(event, Connected)
    assert event.hello == samples.hello("shop1")


TRANSCRIPT: tuple[tuple[Message, bytes], ...] = (
    (samples.hello("shop1"), b""),
    (m.Ping(1), b""),
    (m.SetOpen(SET, "web", INC, 1, 1, b""), b""),
)


@pytest.mark.parametrize("size", [1, 3, 7, 64, 10**6])
def test_the_slices_in_which_bytes_arrive_do_not_matter(size: int) -> None:
    server = Connection(SERVER, samples.hello("shop2"), authenticated=True)
    server.start()
    data = b"".join(raw(message, payload) for message, payload in TRANSCRIPT) + raw(m.Ping(2))[:5]
    events: list[Event] = []
    for at in range(0, len(data), size):
        events += server.receive_data(data[at : at + size])
    assert isinstance(events[0], Connected)
    assert [event.message for event in events[1:] if isinstance(event, Received)] == [
        m.Ping(1),
        TRANSCRIPT[2][0],
    ]
    assert server.receive_data(raw(m.Ping(2))[5:]) == [Received(m.Ping(2), memoryview(b""), 0)]


def test_a_push() -> None:
    pair = Pair().session()
    entries = m.Entries(samples.ENTRIES, (b"gone",))
    assert pair.send(pair.client, CHUNK, [b"hel", b"lo"])  # ahead of the image
    for message in (begin(), entries, m.ImageCommit(ID_C)):
        (event,) = pair.send(pair.client, message)
        assert isinstance(event, Received)
        assert event.message == message
    assert pair.send(pair.server, m.Missing(ID_C), [ID_A]) == [Received(m.Missing(ID_C), memoryview(ID_A), 0)]
    (event,) = pair.send(pair.client, CHUNK, [b"hello"])
    assert isinstance(event, Received)
    assert bytes(event.payload) == b"hello"
    pair.send(pair.client, m.ImageCommit(ID_C))
    assert pair.send(pair.server, m.Ack(ID_C)) == [Received(m.Ack(ID_C), memoryview(b""), 0)]
    assert pair.send(pair.server, m.Applied(ID_C, True, 0))


# (who sends, what, in which state of the session): what must be refused on both sides alike.
WRONG: list[tuple[str, Message, Session]] = [
    ("client", begin(), Session.NONE),
    ("client", begin(), Session.OPENING),
    ("client", CHUNK, Session.NONE),
    ("client", CHUNK, Session.OPENING),
    ("server", CHUNK, Session.OPEN),
    ("client", m.Entries((), ()), Session.OPEN),
    ("server", m.Entries((), ()), Session.IMAGE),
    ("client", m.SetOpen(SET, "web", INC, 1, 1, b""), Session.OPEN),
    ("server", m.SetOpen(SET, "web", INC, 1, 1, b""), Session.OPEN),
    ("server", m.Ack(ID_C), Session.NONE),
    ("server", m.Ack(ID_C), Session.OPENING),
    ("client", m.Ack(ID_C), Session.OPEN),
    ("client", m.SetState(b"", 0, b"", b"", b"", b"", b"", ""), Session.OPEN),
    ("server", m.ImageCommit(ID_C), Session.IMAGE),
    ("server", m.Need(1), Session.OPEN),
    ("server", m.Result(1, True, b""), Session.OPEN),
    ("client", m.Compare(1, ()), Session.NONE),
    ("server", m.Listed(1, (), True), Session.OPEN),
    ("client", m.CaRequest(), Session.OPEN),
]


@pytest.mark.parametrize(("side", "message", "session"), WRONG)
def test_out_of_turn(side: str, message: Message, session: Session) -> None:
    pair = Pair()
    if session is Session.OPENING:
        pair.send(pair.client, m.SetOpen(SET, "web", INC, 1, 1, b""))
    elif session is not Session.NONE:
        pair.session()
    if session is Session.IMAGE:
        pair.send(pair.client, begin())
    sender, receiver = (pair.client, pair.server) if side == "client" else (pair.server, pair.client)
    payload = b"hello" if isinstance(message, m.Objects) else b""
    with pytest.raises(LocalProtocolError):
        sender.send(message, [payload])
    sender.send(m.Ping(1))  # our own mistake changed nothing
    with pytest.raises(RemoteProtocolError):
        receiver.receive_data(raw(message, payload))
    assert receiver.last_words


def test_questions_are_answered_once() -> None:
    pair = Pair().session()
    pair.send(pair.client, m.Compare(5, ()))
    with pytest.raises(LocalProtocolError, match="still unanswered"):
        pair.client.send(m.Compare(5, ()))
    pair.send(pair.client, m.List(5, b"", b"", b"", b"", True))  # numbers belong to a kind
    pair.send(pair.server, m.Listed(5, (), False))
    pair.send(pair.server, m.Listed(5, (), True))
    pair.send(pair.server, m.Compared(5, ((0, ID_A),)))
    with pytest.raises(LocalProtocolError, match="answers no question"):
        pair.server.send(m.Compared(5, ((0, ID_A),)))
    assert pair.send(pair.client, m.Compare(5, ()))


def test_fetch_and_entries_are_answered_without_a_session() -> None:
    pair = Pair()
    pair.send(pair.server, m.Fetch(1, SET), [ID_A])
    assert pair.send(pair.client, CHUNK, [b"hello"])
    pair.send(pair.client, m.FetchDone(1), [ID_B])
    with pytest.raises(LocalProtocolError):
        pair.client.send(CHUNK, [b"hello"])
    pair.send(pair.client, m.EntriesRequest(1, SET, ID_C, b""))
    assert pair.send(pair.server, m.Entries(samples.ENTRIES, ()))
    assert pair.send(pair.server, m.EntriesEnd(1, 5))


def test_too_many_questions() -> None:
    pair = Pair()
    for number in range(64):
        pair.send(pair.client, m.Call(number, "status", b""))
    with pytest.raises(LocalProtocolError, match="64 questions"):
        pair.client.send(m.Call(64, "status", b""))


def test_credit_runs_out_and_comes_back_in_quarters() -> None:
    pair = Pair(window=SMALL.min_credit, limits=SMALL).session()
    payload = bytes(2000)
    objects = m.Objects(((ID_A, 0, 0, 2000, 2000, b""),))
    cost = pair.client.frame_cost(objects, 2000)
    assert cost == len(raw(objects, payload))
    before = pair.client.credit
    (event,) = pair.send(pair.client, objects, [payload])
    assert isinstance(event, Received)
    assert event.cost == cost
    assert pair.client.credit == before - cost
    assert pair.send(pair.client, objects, [payload])
    with pytest.raises(LocalProtocolError, match="credit"):
        pair.client.send(objects, [payload])
    assert pair.server.consumed(1000) == []
    granted = pair.server.consumed(cost - 1000)
    assert pair.client.receive_data(b"".join(granted)) == [CreditGranted(before - cost)]
    assert pair.client.frame_cost(m.Ping(1), 0) == 0
    with pytest.raises(LocalProtocolError):
        pair.server.consumed(cost + 1)


def test_overdrawn_and_invented_credit_are_refused() -> None:
    pair = Pair(window=SMALL.min_credit, limits=SMALL).session()
    objects = raw(m.Objects(((ID_A, 0, 0, 2000, 2000, b""),)), bytes(2000))
    with pytest.raises(RemoteProtocolError, match="credit") as caught:
        pair.server.receive_data(objects * 4)
    assert len(caught.value.events) == 2  # what was right before is not lost
    with pytest.raises(RemoteProtocolError, match="never used"):
        pair.client.receive_data(raw(m.Credit(1)))


def test_a_stranger_can_only_join() -> None:
    pair = Pair(authenticated=False)
    assert pair.client.stage is Stage.JOINING
    assert pair.send(pair.client, m.CaRequest())
    assert pair.send(pair.server, m.CaReply(b"DER", "shop"))
    assert pair.send(pair.client, m.JoinRequest(b"secret", b"CSR", "a:1", "m"))
    assert pair.send(pair.server, m.JoinReply(b"DER", "shop3", bytes(300_000)))
    with pytest.raises(LocalProtocolError):
        pair.client.send(m.DocumentRequest())
    with pytest.raises(RemoteProtocolError, match="only join"):
        pair.server.receive_data(raw(m.DocumentRequest()))


def test_a_stranger_has_few_and_small_frames() -> None:
    pair = Pair(authenticated=False)
    for _ in range(7):
        pair.send(pair.client, m.CaRequest())
    with pytest.raises(RemoteProtocolError, match="too many frames"):
        pair.server.receive_data(raw(m.CaRequest()))
    pair = Pair(authenticated=False)
    with pytest.raises(RemoteProtocolError, match="65536 are allowed"):
        pair.server.receive_data(b"\x00\x01\x00\x01\x00\x00\x00\x05")


def test_goodbye_and_failure_end_it() -> None:
    for message, closed in (
        (m.Bye("restart"), Closed("", "restart", True)),
        (m.Failure("busy", "later", True), Closed("busy", "later", True)),
    ):
        pair = Pair()
        assert pair.send(pair.client, message) == [closed]
        assert pair.client.receive_data(raw(m.Ping(1))) == []  # was on its way
        assert pair.server.receive_data(raw(m.Ping(1))) == []
        with pytest.raises(LocalProtocolError):
            pair.server.send(m.Ping(1))
        with pytest.raises(LocalProtocolError):
            pair.client.send(m.Ping(1))


def test_after_an_error_nothing_works_any_more() -> None:
    pair = Pair()
    with pytest.raises(RemoteProtocolError):
        pair.server.receive_data(b"\0\0\0\5\0\0\0\1\xc1")
    for call in (
        lambda: pair.server.receive_data(b"x"),
        pair.server.get_buffer,
        lambda: pair.server.send(m.Ping(1)),
    ):
        with pytest.raises(LocalProtocolError):
            call()
    assert pair.client.receive_data(b"".join(pair.server.last_words))


@pytest.mark.parametrize(
    "bad",
    [
        b"\0\0\0\0\0\0\0\0",  # no message
        b"\0\0\0\4\0\0\0\1",  # a message longer than its frame
        b"\0\0\0\5\0\0\0\1\x93",  # an array that ends early
        b"\0\0\0\6\0\0\0\2\x91\x63",  # an unknown type
        b"\0\0\0\7\0\0\0\3\x91\x04\0",  # bytes behind the message
        b"\0\0\0\6\0\0\0\2\x91\x04",  # Ping without a nonce
        b"\0\0\0\7\0\0\0\3\x92\x04\xc3",  # Ping with True
        b"\0\0\0\x08\0\0\0\3\x92\x04\x01\xff",  # Ping with a payload
        b"\0\0\0\x0c\0\0\0\x08\x92\x04\xca\0\0\0\0\0",  # Ping with a float
        b"\xff\xff\xff\xff\0\0\0\1",  # four gigabytes
    ],
)
def test_malformed_frames(bad: bytes) -> None:
    for size in (1, len(bad)):
        pair = Pair()
        with pytest.raises(RemoteProtocolError):
            for at in range(0, len(bad), size):
                pair.server.receive_data(bad[at : at + size])


def test_what_the_peer_would_refuse_is_not_sent() -> None:
    pair = Pair()
    with pytest.raises(LocalProtocolError, match="would refuse"):
        pair.client.send(m.Call(-1, "status", b""))
    with pytest.raises(LocalProtocolError, match="would refuse"):
        pair.client.send(m.Ping(1), [b"payload"])
    with pytest.raises(LocalProtocolError, match=r"start\(\)"):
        Connection(CLIENT, samples.hello("a"), authenticated=True).send(m.Ping(1))
    with pytest.raises(LocalProtocolError):
        Connection(CLIENT, samples.hello("a", credit=5), authenticated=True)


def test_payload_parts_are_not_copied() -> None:
    pair = Pair().session()
    part = memoryview(bytes(5))
    assert pair.client.send(CHUNK, [part])[1] is part
