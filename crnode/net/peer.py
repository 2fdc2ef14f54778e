"""One connection to another node: drives a crproto.Connection over a TLS transport.

The protocol core decides what is right; this shell moves bytes, keeps the clock (handshake, ping, silence)
and waits (for credit, for the transport to drain). Received bulk is bounded by the credit that our Hello
granted; all other messages are bounded by pausing the socket while nobody reads them.

Buffers given to :meth:`Peer.send` belong to the transport from then on and must not be written again.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, cast

from crnode.cluster.document import join_address
from crnode.errors import CrnodeError, ExitCode
from crproto.connection import CLIENT, Closed, Connected, Connection, CreditGranted, Event, Received
from crproto.conversation import Stage
from crproto.errors import LocalProtocolError, RemoteProtocolError
from crproto.ids import Buffer
from crproto.limits import TEXT
from crproto.messages import Bye, Failure, Hello, Ping, Pong
from crproto.shapes import Message

HANDSHAKE_S = 10.0
"""TLS and both hellos; a stranger who is slower holds a socket for nothing."""
PING_S = 5.0
DEAD_S = 20.0
"""Without a byte for four pings the peer counts as gone, though TCP may hope for minutes."""
CLOSE_S = 2.0
"""For the last bytes to leave and the peer to close too; then the connection is cut."""
QUEUE_HIGH = 4096
QUEUE_LOW = 1024
"""Messages received and not read: the socket is paused from the first number on until the second."""
WRITE_HIGH = 1 << 20
WRITE_LOW = 1 << 18
"""Bytes unsent in user space: enough to keep the wire busy, not so many that an acknowledgement waits long.
"""
_SCRATCH = memoryview(bytearray(65536))  # where bytes go that nobody wants any more


class PeerClosed(CrnodeError):
    """The connection is over. `code` is a word of crproto.limits.FAILURE_CODES, '' for an orderly Bye,
    'lost' when the network or the peer's process broke off. `retry`: dialling again may help.
    """

    def __init__(self, code: str, what: str, why: str = "", hint: str = "", retry: bool = True) -> None:
        final = code in ("denied", "unknown", "cluster", "version", "protocol", "limit")
        super().__init__(what, why, hint, ExitCode.REFUSED if final else ExitCode.UNREACHABLE)
        self.code = code
        self.retry = retry

    def again(self) -> PeerClosed:
        """An equal error to raise: one exception object must not be raised in two tasks."""
        return PeerClosed(self.code, self.what, self.why, self.hint, self.retry)


class Admission(NamedTuple):
    """What was decided from the peer's certificate: the protocol core, its node's name, and a refusal if it
    is one.
    """

    connection: Connection
    name: str | None
    refusal: PeerClosed | None = None


Admit = Callable[[bytes | None], Admission]  # certificate in DER, None if none was shown


class Peer(asyncio.BufferedProtocol):
    """The other node, as sessions see it: send, receive, consumed, close."""

    def __init__(self, admit: Admit, made: Callable[[Peer], None] | None = None) -> None:
        """`admit` is asked once TLS stands; `made` is called after our Hello was sent. Create it inside a
        loop.
        """
        self._loop = asyncio.get_running_loop()
        self._admit = admit
        self._made = made
        self._transport: asyncio.Transport | None = None
        self._connection: Connection | None = None
        self._connected: asyncio.Future[Connected] = self._loop.create_future()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._queue: deque[Received] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._senders: set[asyncio.Future[None]] = set()
        self._bulk_turn = asyncio.Lock()
        self._writable = True
        self._paused = False
        self._ended = False
        self._heard = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._ping: tuple[int, int] | None = None  # (nonce, our wall clock when it left)
        self._remote = "an unknown address"
        self.name: str | None = None  # of the authenticated node; None for a machine that may only join
        self.certificate: bytes | None = None  # DER
        self.bytes_in = 0  # after TLS
        self.bytes_out = 0
        self.clock_offset_ns: int | None = None  # the peer's wall clock minus ours
        self.round_trip_ns: int | None = None
        self.close_reason: PeerClosed | None = None

    # --- for sessions ---

    async def handshake(self, timeout_s: float = HANDSHAKE_S) -> Connected:
        """Wait for the peer's Hello. PeerClosed when it refuses, goes away or takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._connected)
        except TimeoutError:
            silent = PeerClosed("lost", f"{self} did not say hello.", f"It was silent for {timeout_s:.0f} s.")
            self._end(silent, abort=True)
            raise silent.again() from None

    async def send(self, message: Message, payload: Sequence[Buffer] = ()) -> None:
        """Send one message once there is credit (bulk) and room for it. PeerClosed when the connection is
        over.

        LocalProtocolError when the message is not allowed here: a defect of the caller.
        """
        if message.BULK:
            async with self._bulk_turn:  # in order, and no large frame starves behind small ones
                connection = self._open()
                length = sum([part.nbytes if isinstance(part, memoryview) else len(part) for part in payload])
                cost = connection.frame_cost(message, length)
                while not self._writable or connection.credit < cost:
                    await self._changed()
                self._write(self._open().send(message, payload))
            return
        while not self._writable:
            await self._changed()
        self._write(self._open().send(message, payload))

    async def receive(self) -> Received | None:
        """The next message, in order; None once the connection is over. For one reader."""
        while not self._queue:
            if self._ended:
                return None
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        item = self._queue.popleft()
        if self._paused and len(self._queue) <= QUEUE_LOW and self._transport is not None:
            self._paused = False
            self._heard = self._loop.time()
            self._transport.resume_reading()
        return item

    async def events(self) -> AsyncIterator[Received]:
        """All messages until the connection is over."""
        while (item := await self.receive()) is not None:
            yield item

    def consumed(self, count: int) -> None:
        """`count` bytes of Received.cost are processed: gives the peer its credit back. Nothing once it is
        over.
        """
        if (
            count
            and not self._ended
            and self._connection is not None
            and self._connection.stage is Stage.READY
        ):
            self._write(self._connection.consumed(count))

    def fail(self, code: str, text: str, retry: bool = False) -> None:
        """Tell the peer why this connection ends (a word of FAILURE_CODES and a sentence), then close it."""
        self._last(Failure(code, text[:TEXT], retry))
        self._end(PeerClosed(code, f"The connection to {self} was given up.", text, "", retry))

    async def close(self, text: str = "") -> None:
        """Say goodbye and wait until the connection is down (at most 2 s)."""
        if not self._ended:
            self._last(Bye(text[:TEXT]))
            self._end(PeerClosed("", f"The connection to {self} was closed.", text))
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Wait until the transport is gone."""
        await asyncio.shield(self._lost)

    @property
    def closed(self) -> bool:
        """Whether the connection is over (messages may still be waiting to be received)."""
        return self._ended

    @property
    def congested(self) -> bool:
        """Whether the link is the bottleneck: more is unsent than the transport likes to hold."""
        return not self._writable

    @property
    def hello(self) -> Hello | None:
        """The peer's Hello, once it came."""
        done = (
            self._connected.done() and not self._connected.cancelled() and self._connected.exception() is None
        )
        return self._connected.result().hello if done else None

    @property
    def local_host(self) -> str | None:
        """Our own IP address on this connection."""
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(name[0]) if isinstance(name, tuple) else None

    @property
    def remote_address(self) -> str:
        """Where the peer is, for messages."""
        return self._remote

    def __str__(self) -> str:
        return (
            f"'{self.name}' at {self.remote_address}"
            if self.name
            else f"the machine at {self.remote_address}"
        )

    # --- for the transport ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        place = transport.get_extra_info("peername")  # asked now: it is forgotten once the socket is closed
        if isinstance(place, tuple):
            self._remote = join_address(str(place[0]), int(place[1]))
        tls: Any = transport.get_extra_info("ssl_object")
        self.certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        connection, self.name, refusal = self._admit(self.certificate)
        self._connection = connection
        self._heard = self._loop.time()
        self._write(connection.start())
        if refusal is not None:
            self._last(Failure(refusal.code, str(refusal)[:TEXT], refusal.retry))
            self._end(refusal)
        elif connection.authenticated:
            self._timer = self._loop.call_later(PING_S, self._tick)
        if self._made is not None:
            self._made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._ended or self._connection is None:
            return _SCRATCH
        return self._connection.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self.bytes_in += nbytes
        self._heard = self._loop.time()
        if self._ended or self._connection is None:
            return
        try:
            events: Sequence[Event] = self._connection.buffer_updated(nbytes)
            broken = None
        except RemoteProtocolError as error:
            events, broken = cast(Sequence[Event], error.events), error
        for event in events:
            self._take(event)
        if broken is not None:
            self._write(self._connection.last_words)
            why = f"It broke the protocol: {broken}."
            self._end(PeerClosed(broken.code, f"The connection to {self} was cut.", why, "", retry=False))
        if self._queue and self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        if (
            len(self._queue) >= QUEUE_HIGH
            and not self._paused
            and self._transport is not None
            and not self._ended
        ):
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False  # TLS has no half-open connections: the transport closes

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._wake_senders()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(self._lost_reason(exc), abort=True)
        if not self._lost.done():
            self._lost.set_result(None)

    # --- inside ---

    def _take(self, event: Event) -> None:
        if isinstance(event, Received):
            message = event.message
            if isinstance(message, Ping):
                self._reply(Pong(message.nonce, time.time_ns()))
            elif isinstance(message, Pong):
                self._pong(message)
            else:
                self._queue.append(event)
        elif isinstance(event, CreditGranted):
            self._wake_senders()
        elif isinstance(event, Connected):
            self.clock_offset_ns = event.hello.time_ns - time.time_ns()
            if not self._connected.done():
                self._connected.set_result(event)
        elif isinstance(event, Closed):
            if event.code:
                # What a peer says is told as it is: it wrote a whole sentence for people.
                self._end(PeerClosed(event.code, event.text or f"{self} refused.", "", "", event.retry))
            else:
                self._end(PeerClosed("", f"{self} closed the connection.", event.text))

    def _reply(self, message: Message) -> None:
        if not self._ended and self._connection is not None:
            with contextlib.suppress(
                LocalProtocolError
            ):  # the connection may have closed within this very batch
                self._write(self._connection.send(message))

    def _pong(self, message: Pong) -> None:
        if self._ping is not None and message.nonce == self._ping[0]:
            now = time.time_ns()
            left = self._ping[1]
            self._ping = None
            self.round_trip_ns = max(0, now - left)
            self.clock_offset_ns = message.time_ns - (left + now) // 2

    def _tick(self) -> None:
        if self._ended:
            return
        silence = self._loop.time() - self._heard
        if silence > DEAD_S and not self._paused:
            why = f"Not a byte came for {silence:.0f} s."
            self._end(PeerClosed("lost", f"{self} is silent.", why), abort=True)
            return
        if self._connection is not None and self._connection.stage is Stage.READY:
            nonce = secrets.randbits(63)
            self._ping = (nonce, time.time_ns())
            self._reply(Ping(nonce))
        self._timer = self._loop.call_later(PING_S, self._tick)

    def _open(self) -> Connection:
        if self._ended or self._connection is None:
            reason = self.close_reason or PeerClosed("lost", "There is no connection yet.")
            raise reason.again()
        return self._connection

    async def _changed(self) -> None:
        """Until credit or room came, or the connection is over (then PeerClosed)."""
        self._open()
        waiter = self._loop.create_future()
        self._senders.add(waiter)
        try:
            await waiter
        finally:
            self._senders.discard(waiter)
        self._open()

    def _wake_senders(self) -> None:
        for waiter in self._senders:
            if not waiter.done():
                waiter.set_result(None)

    def _write(self, parts: Sequence[Buffer]) -> None:
        if not parts or self._transport is None:
            return
        self.bytes_out += sum([part.nbytes if isinstance(part, memoryview) else len(part) for part in parts])
        self._transport.writelines(parts)

    def _last(self, message: Message) -> None:
        if self._ended or self._connection is None:
            return
        with contextlib.suppress(LocalProtocolError):  # the core has closed already: nothing more may be said
            self._write(self._connection.send(message))

    def _lost_reason(self, exc: Exception | None) -> PeerClosed:
        what = f"The connection to {self} broke off."
        connection = self._connection
        dialled = connection is not None and connection.side is CLIENT and connection.authenticated
        if dialled and self.bytes_in == 0 and not isinstance(exc, ConnectionAbortedError):
            # In TLS 1.3 a client is done before the server saw its certificate, and asyncio then closes
            # without an alert: a no sounds like this. So does a node that is just being stopped.
            return PeerClosed(
                "lost",
                f"{self} hung up without a word.",
                "Most likely it does not accept this node's certificate, which is of another cluster.",
                "Check the address; if it is right, this machine has to join that cluster anew.",
            )
        if isinstance(exc, ssl.SSLError):
            return PeerClosed("lost", what, f"TLS says: {exc.reason or exc}.")
        return PeerClosed("lost", what, f"The system says: {exc}." if exc else "The other side closed it.")

    def _end(self, reason: PeerClosed, abort: bool = False) -> None:
        """The connection is over, for this reason (the first one counts). What is written still leaves."""
        if not self._ended:
            self._ended = True
            self.close_reason = reason
            if self._timer is not None:
                self._timer.cancel()
            if not self._connected.done():
                self._connected.set_exception(reason.again())
                self._connected.exception()  # nobody may be waiting: not a warning then
            if self._reader is not None and not self._reader.done():
                self._reader.set_result(None)
            self._wake_senders()
            if self._transport is not None and not abort:
                if self._paused:
                    self._paused = False
                    self._transport.resume_reading()  # to see the end of the stream
                self._transport.close()
                self._timer = self._loop.call_later(CLOSE_S, self._transport.abort)
                return
        if abort and self._transport is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._transport.abort()
