"""What this node answers to others, after mutual authentication: who may ask for what (rule 85)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from crnode.agent.reading import Readers
from crnode.agent.search import ContentSearch, Key
from crnode.agent.threads import in_thread
from crnode.errors import CrnodeError, ExitCode
from crnode.net.peer import Peer, PeerClosed
from crnode.replicate.commit import no_owner_error
from crnode.replicate.difference import Part
from crnode.replicate.receive import SESSION_MESSAGES, TargetSet
from crnode.store.store import CHUNK, Damaged, Missing
from crproto import delta
from crproto.connection import Received
from crproto.entries import Entry
from crproto.errors import LocalProtocolError, RemoteProtocolError
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
    SetOpen,
)
from crproto.shapes import Message

if TYPE_CHECKING:
    from crnode.agent.node import Agent

FRAME_BYTES = 512 << 10
FRAME_OBJECTS = 4000
PAGE_ENTRIES = 500  # of a catalog, per look
OF_WHAT_RUNS = ("takeover.state", "takeover.switch", "takeover.fence", "takeover.moved")
"""Questions whose answer would be wrong while the agent starts: that it has no data, for one."""
SIGN_SECONDS = 10.0
"""A search in a source's files that finds nothing gives a sign of life this often: who asked waits 60 s."""
DOCUMENT_WAITS, DOCUMENT_WAIT_SECONDS = 40, 0.05
GRANT_SECONDS = 24 * 3600.0

Method = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
log = logging.getLogger(__name__)


class Server:
    """Serves the connections that other nodes opened."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._grants: dict[tuple[str, str], float] = {}  # (node, set uuid) -> until (monotonic seconds)
        self._searched: dict[str, Key | None] = {}  # set uuid -> where the last search in its files ended
        self.methods: dict[str, Method] = {}
        self.readers = Readers(agent)

    def grant(self, node: str, uuid: str) -> None:
        """The master says that `node` may read the set for a day (a restore to a node that is no target)."""
        self._grants[(node, uuid)] = time.monotonic() + GRANT_SECONDS

    async def serve(self, peer: Peer) -> None:
        """All messages of one connection of another node, until it ends."""
        name = peer.name
        assert name is not None
        session: TargetSet | None = None
        self.agent.heard(name)
        calls: set[asyncio.Task[None]] = set()
        try:
            async for received in peer.events():
                self.agent.heard(name)
                message = received.message
                if isinstance(message, SetOpen):
                    await self.agent.in_force.wait()
                    await self._learn_of(message)
                    session = self._session(name, message)
                    await session.open(peer, message)
                elif isinstance(message, SESSION_MESSAGES):
                    if session is None:
                        raise RemoteProtocolError("SetOpen comes first")
                    await session.handle(peer, received)
                else:
                    task = asyncio.create_task(self._other(peer, name, received))
                    calls.add(task)
                    task.add_done_callback(calls.discard)
        except RemoteProtocolError as error:
            self.agent.journal.add("refused", f"{peer} broke the protocol and was cut off: {error}")
            peer.fail("protocol", str(error))
        finally:
            for task in calls:
                task.cancel()

    async def _learn_of(self, message: SetOpen) -> None:
        """A new set's source may be quicker than the document that names the set: wait for it a little."""
        for _ in range(DOCUMENT_WAITS):
            uuid = message.set.hex()
            if uuid in self.agent.sets.targets or uuid in self.agent.sets.refused:
                return
            await asyncio.sleep(DOCUMENT_WAIT_SECONDS)

    def _session(self, name: str, message: SetOpen) -> TargetSet:
        """The set that `name` wants to push, if it may."""
        document = self.agent.document
        spec = document.set_by_uuid(message.set.hex())
        if spec is None:
            raise CrnodeError(
                f"The set {message.name} is not known here.",
                "The cluster document has no such set (yet).",
                "If it was added a moment ago this passes by itself.",
                ExitCode.FAILED,
            )
        if spec.source != name or self.agent.node.name not in spec.targets or message.term != spec.term:
            raise no_owner_error(spec.name, name)
        running = self.agent.sets.targets.get(spec.uuid)
        if running is None:
            why = self.agent.sets.refused.get(spec.uuid, "It is being started.")
            raise CrnodeError(f"The set {spec.name} cannot be received by {self.agent.node.name}.", why)
        return running.target

    def may_read(self, name: str, uuid: str) -> bool:
        """Whether node `name` may read the set: its source, its targets, the master, and who was granted
        it."""
        document = self.agent.document
        spec = document.set_by_uuid(uuid)
        if name == document.master.name:
            return True
        if spec is not None and (spec.source == name or name in spec.targets):
            return True
        return self._grants.get((name, uuid), 0.0) > time.monotonic()

    async def _other(self, peer: Peer, name: str, received: Received) -> None:
        """Answer a message. Whatever goes wrong, whoever asked gets an answer: it would wait for ever."""
        message = received.message
        try:
            await self._answer(peer, name, message, received.payload)
        except PeerClosed:
            pass  # nobody is left to answer
        except Exception as error:  # noqa: BLE001 - a defect ends one answer, and is told, not the agent
            self._defect(name, type(message).__name__, error)
            self._excuse(peer, message)
        finally:
            peer.consumed(received.cost)

    async def _answer(self, peer: Peer, name: str, message: Message, payload: memoryview) -> None:
        if isinstance(message, Call):
            await self._call(peer, name, message)
        elif isinstance(message, DocumentRequest):
            await peer.send(Document(self.agent.said.to_bytes()))
        elif isinstance(message, Document):
            await self.agent.offered(name, message.body)
        elif isinstance(message, Fetch | ImagesRequest | EntriesRequest):
            await self.agent.in_force.wait()
            uuid = message.set.hex()
            if not self.may_read(name, uuid):
                self.agent.journal.add("refused", f"{name} asked for data of a set that it has no part in.")
                peer.fail("denied", "This node has no part in that set.")
                return
            if isinstance(message, Fetch):
                ids = [bytes(payload[at : at + 32]) for at in range(0, len(payload), 32)]
                await self._fetch(peer, name, message, ids)
            elif isinstance(message, ImagesRequest):
                await peer.send(Images(message.number, tuple(await self._images(uuid))))
            else:
                await self._entries(peer, message)

    def _defect(self, name: str, what: str, error: BaseException) -> None:
        log.error("the answer to %s of %s failed", what, name, exc_info=error)
        self.agent.journal.add(
            "defect", f"{what} of {name} could not be answered: {type(error).__name__}: {error}"
        )

    def _excuse(self, peer: Peer, message: Message) -> None:
        """Answer a question for which there is no word of failure by ending the connection with a Failure. (A
        Call and a Fetch have one of their own: see there.)"""
        if not isinstance(message, Document):
            peer.fail("internal", f"{type(message).__name__} failed by a defect; see the events.", retry=True)

    async def _call(self, peer: Peer, name: str, message: Call) -> None:
        method = self.methods.get(message.method)
        try:
            body = json.loads(message.body)
            if method is None or not isinstance(body, dict):
                raise CrnodeError(
                    f"The question '{message.method}' is not understood here.", "", "Use one version."
                )
            if message.method in OF_WHAT_RUNS:
                await self.agent.in_force.wait()
            answer, ok = await method(name, body), True
            text = json.dumps(answer).encode()
        except CrnodeError as error:
            text, ok = json.dumps(error.as_dict()).encode(), False
        except ValueError as error:
            text, ok = json.dumps({"what": f"The question was malformed: {error}."}).encode(), False
        except Exception as error:  # noqa: BLE001 - told in the answer and in the journal
            self._defect(name, f"The question '{message.method}'", error)
            text, ok = self._failed(message.method, error), False
        try:
            await peer.send(Result(message.number, ok, text))
        except LocalProtocolError as error:  # too long for a frame
            self._defect(name, f"The question '{message.method}'", error)
            await peer.send(Result(message.number, False, self._failed(message.method, error)))

    def _failed(self, method: str, error: BaseException) -> bytes:
        told = CrnodeError(
            f"'{method}' failed on {self.agent.node.name} by a defect.",
            f"{type(error).__name__}: {error}"[:500],
            "See the events and the log of that node.",
        )
        return json.dumps(told.as_dict()).encode()

    # -- reading

    async def _images(self, uuid: str) -> list[tuple[bytes, bytes, int, int, int, bytes, int, int, int, str]]:
        catalog = self.agent.sets.catalogs.get(uuid)
        if catalog is None:
            return []
        images = await self.agent.writer.submit(catalog.images)
        return [
            (
                i.id,
                i.parent,
                i.epoch,
                i.sequence,
                i.at_ns,
                i.digest,
                i.entries,
                i.bytes,
                i.flags,
                i.name or "",
            )
            for i in images[-4000:]
            if i.id is not None
        ]

    async def _entries(self, peer: Peer, message: EntriesRequest) -> None:
        """Entries of one image. It is held from its look-up to the end: nothing of it is pruned meanwhile."""
        uuid = message.set.hex()
        count = 0
        async with self.readers.hold(uuid, message.image) as image:
            if image is not None:
                reader = await in_thread(self.agent.sets.catalogs[uuid].reader)
                try:
                    rows = reader.subtree(message.path, image.ordinal)
                    while batch := await in_thread(lambda: _page(rows)):
                        count += len(batch)
                        await peer.send(Entries(tuple(batch), ()))
                finally:
                    reader.close()
        await peer.send(EntriesEnd(message.number, count))

    async def _fetch(self, peer: Peer, name: str, message: Fetch, ids: list[bytes]) -> None:
        """Give objects: from the store, or at a source from the files themselves. Whatever happens, FetchDone
        names those that were not sent."""
        missing = dict.fromkeys(ids)
        try:
            await self._give(peer, message.set.hex(), missing)
        except PeerClosed:
            raise
        except Exception as error:  # noqa: BLE001 - told in the journal; FetchDone answers
            self._defect(name, "Fetch", error)
        await peer.send(FetchDone(message.number), [b"".join(missing)] if missing else [])

    async def _give(self, peer: Peer, uuid: str, missing: dict[bytes, None]) -> None:
        """Send what can be had of `missing`, and take out of it what was sent."""
        records: list[tuple[bytes, int, int, int, int, bytes]] = []
        parts: list[bytes] = []

        async def flush() -> None:
            if records:
                await peer.send(Objects(tuple(records)), list(parts))
                for record in records:
                    missing.pop(record[0], None)
                records.clear()
                parts.clear()

        async def give(name: bytes, kind: int, data: bytes) -> None:
            records.append((name, kind, delta.RAW, len(data), len(data), b""))
            parts.append(data)
            if sum(map(len, parts)) >= FRAME_BYTES or len(records) >= FRAME_OBJECTS:
                await flush()

        for name in list(missing):
            try:
                data = await in_thread(lambda name=name: self.agent.store.get(name))  # type: ignore[misc]
            except (Missing, Damaged, OSError):
                continue
            where = self.agent.store.locate(name)
            await give(name, where.kind if where is not None else CHUNK, data)
        await flush()
        if missing and uuid in self.agent.sets.sources:
            async with contextlib.aclosing(self._from_source(uuid, set(missing))) as search:
                async for found in search:
                    if found is None:
                        await flush()
                        await peer.send(Objects(()))
                    else:
                        await give(found[0], CHUNK, found[1])
            await flush()

    async def _from_source(
        self, uuid: str, wanted: set[bytes]
    ) -> AsyncGenerator[tuple[bytes, bytes] | None, None]:
        """(id, bytes) of chunks of the newest image, read from the source's files. None now and then while
        the search goes on."""
        source = self.agent.sets.sources[uuid].source
        newest = source.newest
        if newest is None:
            return
        search = ContentSearch(
            source.catalog, self.agent.store, newest.ordinal, lambda: source.open_roots, wanted,
            self._searched.get(uuid),
        )  # fmt: skip
        try:
            while (page := await in_thread(search.page)) is not None:
                for found in page:
                    yield found
                if not page:
                    yield None
        finally:
            await in_thread(search.close)
            self._searched[uuid] = search.at
            if search.unreadable:
                self.agent.journal.add(
                    "damage", f"{search.unreadable} recipes of a source could not be read in a search."
                )


def _page(rows: Iterator[Entry]) -> list[Entry]:
    """The next entries, as many as one message holds."""
    part = Part()
    for entry in rows:
        part.add(entry)
        if part.full():
            break
    return part.entries


__all__ = ["Server"]
