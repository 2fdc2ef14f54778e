"""One connection without input or output: bytes in, events out; messages in, bytes out.

conversation.py says which message may come when; this module adds the handshake, the limits and the credit.

**Handshake.** Both sides send Hello at once. The version spoken is the highest that both have, the features
those that both name. Whether the peer showed a certificate of our cluster is known from TLS and given as
``authenticated``.

**Credit.** Hello grants the peer a window of bytes for *bulk* frames (Entries, Offer, Objects), counted whole
with their length words. Credit comes back as the receiver reports them processed. Everything else is free but
bounded, so that acknowledgements and heartbeats never wait behind data. Since the largest frame is two thirds
of the smallest window, and credit comes back in quarters of the window, every frame gets through.

**Errors.** Bad bytes raise RemoteProtocolError, once: the connection is then closed, and ``last_words`` holds
the Failure frame that tells the peer why. A wrong call of ours raises LocalProtocolError and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, TypeAlias

from crproto.conversation import Conversation, Stage
from crproto.errors import LocalProtocolError, RemoteProtocolError
from crproto.frames import Frame, FrameParser, header
from crproto.ids import Buffer
from crproto.limits import DEFAULT, TEXT, Limits
from crproto.messages import Bye, Credit, Failure, Hello, decode, encode
from crproto.shapes import Message


class Side(Enum):
    """Who dialled."""

    CLIENT = "client"
    SERVER = "server"


CLIENT = Side.CLIENT
SERVER = Side.SERVER


class Connected(NamedTuple):
    """Both hellos are exchanged: the peer's, and what follows from both."""

    hello: Hello
    version: int
    features: frozenset[str]


class Received(NamedTuple):
    """A message. ``cost`` bytes of credit are to be given back by Connection.consumed once it is
    processed."""

    message: Message
    payload: memoryview
    cost: int


class CreditGranted(NamedTuple):
    """``total`` bytes of bulk frames may be sent now."""

    total: int


class Closed(NamedTuple):
    """The peer closed, by Bye (code '') or Failure. Nothing else follows."""

    code: str
    text: str
    retry: bool


Event: TypeAlias = Connected | Received | CreditGranted | Closed


class Connection:
    """See the module. Feed it by get_buffer and buffer_updated, or by receive_data; never by both at once."""

    def __init__(self, side: Side, hello: Hello, *, authenticated: bool, limits: Limits = DEFAULT) -> None:
        if authenticated and hello.credit < limits.min_credit:
            raise LocalProtocolError(f"a window of {hello.credit} bytes is less than {limits.min_credit}")
        self.side = side
        self.hello = hello
        self.authenticated = authenticated
        self.limits = limits
        self.credit = 0  # bytes of bulk frames that we may still send
        self.last_words: list[bytes] = []  # after an error of the peer: what to send before closing
        self._conversation = Conversation(authenticated=authenticated, questions=limits.questions)
        self._client = side is CLIENT
        self._parser = FrameParser(limits.before_auth, limits.before_auth)
        self._send_frame = self._send_message = limits.before_auth
        self._started = False
        self._broken = False
        self._peer: Hello | None = None
        self._early = 0  # frames of a peer that is not authenticated
        self._allowed = hello.credit  # bytes of bulk frames that the peer may still send
        self._processed = 0  # bytes processed and not yet given back
        self._unprocessed = 0  # bytes received and not yet reported processed
        self._packed: tuple[Message, int, bytes] | None = None  # of frame_cost, for the send that follows it

    @property
    def stage(self) -> Stage:
        """How far the connection is."""
        return Stage.CLOSED if self._broken else self._conversation.stage

    # --- sending ----------------------------------------------------------------------------------

    def start(self) -> list[bytes]:
        """Our Hello. To be sent before anything else, by both sides, without waiting."""
        if self._started:
            raise LocalProtocolError("this connection was started before")
        self._started = True
        message = self._pack(self.hello, 0)
        self._say(self.hello)
        if self._peer is not None:
            self._open(self._peer)
        return [header(len(message), 0) + message]

    def frame_cost(self, message: Message, payload_length: int) -> int:
        """Bytes of credit that sending this takes: 0 unless it is bulk."""
        if not message.BULK:
            return 0
        packed = self._pack(message, payload_length)
        self._packed = (message, payload_length, packed)
        return 8 + len(packed) + payload_length

    def send(self, message: Message, payload: Sequence[Buffer] = ()) -> list[Buffer]:
        """The frame as parts, to be written in order; the payload's parts are passed through as they are.

        LocalProtocolError, and nothing changes, when the message is not allowed now, not valid, too large, or
        costs more than the present credit.
        """
        self._alive()
        if not self._started:
            raise LocalProtocolError("start() comes first")
        if isinstance(message, Hello):
            raise LocalProtocolError("Hello is sent by start()")
        length = sum([part.nbytes if isinstance(part, memoryview) else len(part) for part in payload])
        packed = self._packed
        self._packed = None
        if packed is not None and packed[0] is message and packed[1] == length:
            data = packed[2]
        else:
            data = self._pack(message, length)
        cost = 8 + len(data) + length if message.BULK else 0
        if cost > self.credit:
            raise LocalProtocolError(f"{cost} bytes of bulk need as much credit, there is {self.credit}")
        self._say(message)
        self.credit -= cost
        return [header(len(data), length) + data, *payload]

    def consumed(self, count: int) -> list[bytes]:
        """We processed ``count`` bytes of bulk (Received.cost): what gives the peer its credit back, often
        nothing."""
        if not 0 <= count <= self._unprocessed:
            raise LocalProtocolError(f"{count} bytes processed of {self._unprocessed} received")
        self._unprocessed -= count
        self._processed += count
        if self._processed * 4 < self.hello.credit or not self._processed or self.stage is not Stage.READY:
            return []
        amount, self._processed = self._processed, 0
        self._allowed += amount
        message = self._pack(Credit(amount), 0)
        return [header(len(message), 0) + message]

    def _pack(self, message: Message, payload_length: int) -> bytes:
        try:
            data = encode(message, payload_length)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"the peer would refuse this: {error}") from None
        if len(data) > self._send_message or 4 + len(data) + payload_length > self._send_frame:
            raise LocalProtocolError(
                f"{type(message).__name__} of {len(data)} + {payload_length} bytes is too large"
            )
        return data

    def _say(self, message: Message) -> None:
        refusal = self._conversation.say(self._client, message)
        if refusal:
            raise LocalProtocolError(refusal)

    def _alive(self) -> None:
        if self._broken or self._conversation.stage is Stage.CLOSED:
            raise LocalProtocolError("the connection is closed")

    # --- receiving --------------------------------------------------------------------------------

    def get_buffer(self, hint: int = -1) -> memoryview:
        """Where a transport may write received bytes; see FrameParser."""
        if self._broken:
            raise LocalProtocolError("the connection is closed")
        return self._parser.get_buffer(hint)

    def buffer_updated(self, count: int) -> list[Event]:
        """``count`` bytes were written there: what they mean.

        Bytes after the end (Bye or Failure of either side) are dropped. On RemoteProtocolError the events
        that were complete before are in its ``events``.
        """
        if self._broken:
            raise LocalProtocolError("the connection is closed")
        self._parser.filled(count)
        events: list[Event] = []
        try:
            while (frame := self._parser.next_frame()) is not None:
                if self._conversation.stage is not Stage.CLOSED:
                    self._frame(frame, events)
        except RemoteProtocolError as error:
            self._fail(error)
            error.events = tuple(events)
            raise
        return events

    def receive_data(self, data: Buffer) -> list[Event]:
        """The same for bytes that already lie elsewhere."""
        events: list[Event] = []
        view = memoryview(data)
        while view:
            room = self.get_buffer(len(view))
            count = min(len(room), len(view))
            room[:count] = view[:count]
            try:
                events += self.buffer_updated(count)
            except RemoteProtocolError as error:
                error.events = (*events, *error.events)
                raise
            view = view[count:]
        return events

    def _fail(self, error: RemoteProtocolError) -> None:
        closed = self._conversation.stage is Stage.CLOSED
        self._broken = True
        if self._started and not closed:
            message = encode(Failure(error.code, str(error)[:TEXT], False), 0)
            self.last_words = [header(len(message), 0) + message]

    def _frame(self, frame: Frame, events: list[Event]) -> None:
        length = len(frame.payload)
        if not self.authenticated:
            self._early += 1
            if self._early > self.limits.frames_before_auth:
                raise RemoteProtocolError("too many frames without authentication", "limit")
        message = decode(frame.message, length, max_len=self._parser.message_limit)
        refusal = self._conversation.say(not self._client, message)
        if refusal:
            raise RemoteProtocolError(f"{type(message).__name__}: {refusal}")
        if isinstance(message, Hello):
            self._greet(message, events)
        elif isinstance(message, Credit):
            self._credit(message.amount, events)
        elif isinstance(message, Failure):
            events.append(Closed(message.code or "internal", message.text, message.retry))
        elif isinstance(message, Bye):
            events.append(Closed("", message.text, True))
        else:
            cost = 8 + len(frame.message) + length if message.BULK else 0
            if cost > self._allowed:
                raise RemoteProtocolError(
                    f"{cost} bytes of bulk were sent on {self._allowed} bytes of credit"
                )
            self._allowed -= cost
            self._unprocessed += cost
            events.append(Received(message, frame.payload, cost))

    def _greet(self, peer: Hello, events: list[Event]) -> None:
        mine = self.hello
        version = min(mine.version_max, peer.version_max)
        if version < max(mine.version_min, peer.version_min):
            raise RemoteProtocolError(
                f"we speak versions {mine.version_min} to {mine.version_max}, "
                f"the peer {peer.version_min} to {peer.version_max}",
                "version",
            )
        if self.authenticated:
            if not peer.cluster:
                raise RemoteProtocolError("a node with a certificate names no cluster", "cluster")
            if peer.cluster != mine.cluster:
                raise RemoteProtocolError("the peer belongs to another cluster", "cluster")
            if peer.credit < self.limits.min_credit:
                raise RemoteProtocolError(
                    f"a window of {peer.credit} bytes is too small for the largest frame"
                )
        self._peer = peer
        if self._started:
            self._open(peer)
        events.append(Connected(peer, version, frozenset(mine.features) & frozenset(peer.features)))

    def _open(self, peer: Hello) -> None:
        """Both hellos are said: from now on the full limits hold, except for what a stranger sends to a
        server."""
        self.credit = peer.credit
        if self.authenticated or self._client:  # a joining client is sent the cluster document
            self._parser.frame_limit = self.limits.frame
            self._parser.message_limit = self.limits.message
        if self.authenticated or not self._client:
            self._send_frame = self.limits.frame
            self._send_message = self.limits.message

    def _credit(self, amount: int, events: list[Event]) -> None:
        if self._peer is None or self.credit + amount > self._peer.credit:
            raise RemoteProtocolError(f"{amount} bytes of credit were given back that were never used")
        self.credit += amount
        events.append(CreditGranted(self.credit))
