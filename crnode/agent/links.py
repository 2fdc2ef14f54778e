"""Links: one connection of ours to each other node, for the cluster document, questions and healing.

Pushes have connections of their own, so nothing here ever waits behind bulk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from crnode.cluster.document import ClusterDocument, Node
from crnode.errors import CrnodeError, ExitCode
from crnode.net.peer import Peer, PeerClosed
from crproto.connection import Received
from crproto.messages import (
    Call,
    Document,
    DocumentRequest,
    Entries,
    EntriesEnd,
    EntriesRequest,
    Fetch,
    FetchDone,
    Images,
    ImagesRequest,
    Objects,
    Result,
)
from crproto.shapes import Message

RETRY_FIRST, RETRY_MOST = 0.3, 8.0
CALL_SECONDS = 60.0
SILENCE_SECONDS = 60.0
"""Within a listing or a fetch: without any part for so long the node counts as unable to answer."""
OFFSET_WARNING_S = 2.0


class Part(NamedTuple):
    """A message of an answer; `cost` bytes of credit are given back once it was taken."""

    message: Message
    payload: memoryview
    cost: int


Answers = asyncio.Queue[Part | PeerClosed]


class Link:
    """A connection to `node` that is kept up; questions go over it one answer queue each."""

    def __init__(
        self,
        node: Node,
        dial: Callable[[Node], Awaitable[Peer]],
        on_document: Callable[[str, bytes], Awaitable[None]],
        document: Callable[[], ClusterDocument],
        is_master: Callable[[], bool],
    ) -> None:
        self.node = node
        self.state = "down"
        self.reason = "not connected yet"
        self.denied = False  # it says that this node was put out of the cluster
        self.seen_at: float | None = None
        self._dial = dial
        self._on_document = on_document
        self._document = document
        self._is_master = is_master
        self._peer: Peer | None = None
        self._number = 0
        self._waiting: dict[tuple[type[Message], int], Answers] = {}
        self._parts: dict[type[Message], Answers] = {}
        self._part_turn = asyncio.Lock()
        self._up = asyncio.Event()

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        wait = RETRY_FIRST
        while True:
            try:
                peer = await self._dial(self.node)
            except PeerClosed as error:
                self.state, self.reason = "down", str(error)
                # That somebody else answers there (dial.py) is our own refusal, and ends by itself. Who does
                # not answer at all takes nothing back.
                if error.code != "lost":
                    self.denied = error.code == "denied" and not error.retry
            else:
                wait = RETRY_FIRST
                await self._serve(peer)
            await asyncio.sleep(wait * random.uniform(0.7, 1.3))
            wait = min(wait * 2, RETRY_MOST)

    async def _serve(self, peer: Peer) -> None:
        self._peer = peer
        self.state, self.reason = "up", ""
        self._up.set()
        was_heard = False
        try:
            await self._exchange_documents(peer)
            async for received in peer.events():
                was_heard, self.denied = True, False
                self.seen_at = time.monotonic()
                if isinstance(received.message, Document):
                    await self._on_document(self.node.name, received.message.body)
                elif self._take(received):
                    continue  # whoever takes it from the queue gives its credit back: that bounds the queue
                peer.consumed(received.cost)
        except PeerClosed:
            pass  # told below, with the reason that the connection itself has
        finally:
            reason = peer.close_reason or PeerClosed("lost", f"The connection to {self.node.name} ended.")
            self.state, self.reason = "down", str(reason)
            if not was_heard and reason.code == "denied" and not reason.retry:
                self.denied = True  # its refusal came a moment after its greeting
            self._peer = None
            self._up.clear()
            for queue in (*self._waiting.values(), *self._parts.values()):
                queue.put_nowait(reason)
            await peer.close()

    async def _exchange_documents(self, peer: Peer) -> None:
        hello = peer.hello
        if hello is None:
            return
        mine = self._document()
        theirs = tuple(hello.document)
        if self._is_master() and theirs < tuple(mine.version):
            await peer.send(Document(mine.to_bytes()))
        elif self.node.name == mine.master.name and theirs > tuple(mine.version):
            await peer.send(DocumentRequest())

    async def send_document(self, document: ClusterDocument) -> None:
        """The master made a change: this node hears of it at once if it is connected, else when it
        connects."""
        if self._peer is not None:
            with contextlib.suppress(PeerClosed):
                await self._peer.send(Document(document.to_bytes()))

    def _take(self, received: Received) -> bool:
        """Hand a message to whoever waits for it; False when nobody does (any more)."""
        message = received.message
        queue: Answers | None = None
        if isinstance(message, Result | FetchDone | Images | EntriesEnd):
            queue = self._waiting.get((type(message), message.number))
        elif isinstance(message, Objects):
            queue = self._parts.get(Objects)
        elif isinstance(message, Entries):
            queue = self._parts.get(Entries)
        if queue is None:
            return False
        queue.put_nowait(Part(message, received.payload, received.cost))
        return True

    @property
    def peer(self) -> Peer | None:
        """The connection, while it is up."""
        return self._peer

    async def wait_up(self, seconds: float) -> bool:
        """Wait for the link to come up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._up.wait()
        return self._peer is not None

    def _connected(self) -> Peer:
        if self._peer is None:
            raise PeerClosed(
                "lost", f"{self.node.name} is not reachable.", self.reason, "Start its agent, or wait."
            )
        return self._peer

    # -- questions

    async def call(
        self, method: str, body: dict[str, Any], seconds: float | None = CALL_SECONDS
    ) -> dict[str, Any]:
        """Ask the other agent something. Raises CrnodeError as the other agent said it."""
        got = await self._question(lambda n: Call(n, method, json.dumps(body).encode()), Result, seconds)
        answer = got.message
        assert isinstance(answer, Result)
        out = json.loads(answer.body)
        if not answer.ok:
            raise CrnodeError.from_dict(out)
        if not isinstance(out, dict):
            raise CrnodeError(f"{self.node.name} gave an answer that is not understood.")
        return out

    async def images(self, uuid: str) -> tuple[tuple[Any, ...], ...]:
        """The images of a set that the node keeps (fields of crproto's Images)."""
        got = await self._question(lambda n: ImagesRequest(n, bytes.fromhex(uuid)), Images, CALL_SECONDS)
        answer = got.message
        assert isinstance(answer, Images)
        return answer.images

    async def _question(
        self, question: Callable[[int], Message], answer: type[Message], seconds: float | None
    ) -> Part:
        peer = self._connected()
        self._number += 1
        number = self._number
        queue: Answers = asyncio.Queue()
        self._waiting[(answer, number)] = queue
        try:
            await peer.send(question(number))
            async with asyncio.timeout(seconds):
                got = await queue.get()
        except TimeoutError:
            raise CrnodeError(
                f"{self.node.name} did not answer within {seconds:.0f} s.",
                "",
                "Look at its events.",
                ExitCode.UNREACHABLE,
            ) from None
        finally:
            self._waiting.pop((answer, number), None)
        if isinstance(got, PeerClosed):
            raise got.again()
        return got

    async def fetch(
        self, uuid: str, ids: list[bytes], take: Callable[[Objects, memoryview], Awaitable[None]]
    ) -> list[bytes]:
        """Fetch objects of a set; each frame goes to `take`. Returns the ids that the node cannot give.

        CrnodeError when it falls silent. Parts that were left behind then may come with a later fetch: every
        object says which it is.
        """

        async def part(got: Part) -> None:
            assert isinstance(got.message, Objects)
            await take(got.message, got.payload)

        end = await self._listing(
            lambda n: Fetch(n, bytes.fromhex(uuid)), [b"".join(ids)], Objects, FetchDone, part
        )
        return [bytes(end.payload[at : at + 32]) for at in range(0, len(end.payload), 32)]

    async def entries(
        self, uuid: str, image: bytes, path: bytes, take: Callable[[Entries], Awaitable[None]]
    ) -> int:
        """The entries of an image at and below `path`; each frame goes to `take`. Returns how many the node
        says that it sent: the caller compares.

        CrnodeError when it falls silent.
        """

        async def part(got: Part) -> None:
            assert isinstance(got.message, Entries)
            await take(got.message)

        end = await self._listing(
            lambda n: EntriesRequest(n, bytes.fromhex(uuid), image, path), [], Entries, EntriesEnd, part
        )
        assert isinstance(end.message, EntriesEnd)
        return end.message.count

    async def _listing(
        self,
        question: Callable[[int], Message],
        payload: list[bytes],
        parts: type[Message],
        last: type[Message],
        take: Callable[[Part], Awaitable[None]],
    ) -> Part:
        """Ask for an answer of many parts, one such question at a time; returns its last message.

        A part's credit is given back once `take` is done with it, so that no more than a window of them is
        ever waiting here.
        """
        async with self._part_turn:
            peer = self._connected()
            self._number += 1
            number = self._number
            queue: Answers = asyncio.Queue()
            self._parts[parts] = self._waiting[(last, number)] = queue
            over = False
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    await peer.send(question(number), payload)
                while True:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        got = await queue.get()
                    if isinstance(got, PeerClosed):
                        over = True
                        raise got.again()
                    if isinstance(got.message, last):
                        over = True
                        return got
                    try:
                        await take(got)
                    finally:
                        peer.consumed(got.cost)
            except TimeoutError:
                raise CrnodeError(
                    f"{self.node.name} fell silent in the middle of an answer.",
                    f"Nothing of it came for {SILENCE_SECONDS:.0f} s.",
                    "Look at its events and its log.",
                    ExitCode.UNREACHABLE,
                ) from None
            finally:
                self._parts.pop(parts, None)
                self._waiting.pop((last, number), None)
                while not queue.empty():
                    left = queue.get_nowait()
                    if isinstance(left, Part):
                        peer.consumed(left.cost)
                if not over and parts is Entries:
                    # Entries do not say which question they answer: what is still on its way would be taken
                    # for the next listing's.
                    peer.fail("internal", "A listing was given up half way.", retry=True)
