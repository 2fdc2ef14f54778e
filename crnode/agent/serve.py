"""What this node answers to others, after mutual authentication: who may ask for what (rule 85)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from crnode.errors import CrnodeError, ExitCode
from crnode.net.peer import Peer
from crnode.replicate.commit import no_owner_error
from crnode.replicate.difference import Abandoned, ObjectReader, Wanted, from_catalog
from crnode.replicate.receive import SESSION_MESSAGES, TargetSet
from crnode.store.store import CHUNK, RECIPE, Damaged, Missing
from crproto import delta
from crproto.connection import Received
from crproto.errors import RemoteProtocolError
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

if TYPE_CHECKING:
    from crnode.agent.node import Agent

FRAME_BYTES = 512 << 10
DOCUMENT_WAITS, DOCUMENT_WAIT_SECONDS = 40, 0.05
GRANT_SECONDS = 24 * 3600.0

Method = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class Server:
    """Serves the connections that other nodes opened."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._grants: dict[tuple[str, str], float] = {}  # (node, set uuid) -> until (monotonic seconds)
        self.methods: dict[str, Method] = {}

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
        message = received.message
        if isinstance(message, Call):
            await self._call(peer, name, message)
        elif isinstance(message, DocumentRequest):
            await peer.send(Document(self.agent.document.to_bytes()))
        elif isinstance(message, Document):
            await self.agent.offered(name, message.body)
        elif isinstance(message, Fetch | ImagesRequest | EntriesRequest):
            uuid = message.set.hex()
            if not self.may_read(name, uuid):
                self.agent.journal.add("refused", f"{name} asked for data of a set that it has no part in.")
                peer.fail("denied", "This node has no part in that set.")
                return
            if isinstance(message, Fetch):
                ids = [bytes(received.payload[at : at + 32]) for at in range(0, len(received.payload), 32)]
                await self._fetch(peer, message, ids)
            elif isinstance(message, ImagesRequest):
                await peer.send(Images(message.number, tuple(await self._images(uuid))))
            else:
                await self._entries(peer, message)
        peer.consumed(received.cost)

    async def _call(self, peer: Peer, name: str, message: Call) -> None:
        method = self.methods.get(message.method)
        try:
            body = json.loads(message.body)
            if method is None or not isinstance(body, dict):
                raise CrnodeError(
                    f"The question '{message.method}' is not understood here.", "", "Use one version."
                )
            answer, ok = await method(name, body), True
        except CrnodeError as error:
            answer, ok = dict(error.as_dict()), False
        except ValueError as error:
            answer, ok = {"what": f"The question was malformed: {error}."}, False
        await peer.send(Result(message.number, ok, json.dumps(answer).encode()))

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
        catalog = self.agent.sets.catalogs.get(message.set.hex())
        image = await self.agent.writer.submit(catalog.image, message.image) if catalog is not None else None
        count = 0
        if catalog is not None and image is not None:
            reader = await asyncio.to_thread(catalog.reader)
            try:
                rows = reader.subtree(message.path, image.ordinal)
                while batch := await asyncio.to_thread(
                    lambda: [e for _, e in zip(range(500), rows, strict=False)]
                ):
                    count += len(batch)
                    await peer.send(Entries(tuple(batch), ()))
            finally:
                reader.close()
        await peer.send(EntriesEnd(message.number, count))

    async def _fetch(self, peer: Peer, message: Fetch, ids: list[bytes]) -> None:
        """Give objects: from the store, or at a source from the files themselves."""
        missing: list[bytes] = []
        records: list[tuple[bytes, int, int, int, int, bytes]] = []
        parts: list[bytes] = []

        async def flush() -> None:
            if records:
                await peer.send(Objects(tuple(records)), list(parts))
                records.clear()
                parts.clear()

        async def give(name: bytes, kind: int, data: bytes) -> None:
            records.append((name, kind, delta.RAW, len(data), len(data), b""))
            parts.append(data)
            if sum(map(len, parts)) >= FRAME_BYTES:
                await flush()

        for name in ids:
            try:
                data = await asyncio.to_thread(self.agent.store.get, name)
                where = self.agent.store.locate(name)
                await give(name, where.kind if where is not None else CHUNK, data)
            except (Missing, Damaged):
                missing.append(name)
        if missing and message.set.hex() in self.agent.sets.sources:
            wanted = set(missing)
            async for item, data in self._from_source(message.set.hex(), wanted):
                await give(item.id, item.kind, data)
                wanted.discard(item.id)
            missing = list(wanted)
        await flush()
        await peer.send(FetchDone(message.number), [b"".join(missing)] if missing else [])

    async def _from_source(self, uuid: str, wanted: set[bytes]):  # type: ignore[no-untyped-def]
        """Objects of the newest image, read from the source's files."""
        running = self.agent.sets.sources[uuid]
        newest = running.source.newest
        if newest is None:
            return
        reader = await asyncio.to_thread(running.source.catalog.reader)
        objects = ObjectReader(self.agent.store, lambda: running.source.open_roots, None)
        try:
            parts = from_catalog(reader, self.agent.store.load, 0, newest.ordinal, None)
            left = set(wanted)
            while left and (part := await asyncio.to_thread(lambda: next(parts, None))) is not None:
                for item in part.objects:
                    if item.id in left and item.kind != RECIPE:
                        try:
                            data = await asyncio.to_thread(objects.bytes_of, item)
                        except Abandoned:
                            continue
                        left.discard(item.id)
                        yield item, data
        finally:
            objects.close()
            reader.close()


__all__ = ["Server", "Wanted"]
