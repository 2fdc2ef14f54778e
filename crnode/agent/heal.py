"""Self-healing: damaged or missing objects are fetched again from the source or another holder, and said
so."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from crnode.agent.search import ContentSearch
from crnode.agent.threads import in_thread
from crnode.capture.roots import OpenRoots, Root
from crnode.errors import CrnodeError, ExitCode
from crnode.replicate.receive import TargetSet
from crnode.store.packs import Lane, Record
from crnode.store.store import CHUNK, identify
from crproto import delta
from crproto.errors import RemoteProtocolError
from crproto.messages import Objects

if TYPE_CHECKING:
    from crnode.agent.links import Link
    from crnode.agent.node import Agent

IDS_A_QUESTION = 2000
UP_SECONDS = 2.0  # a holder that is not connected is waited for so long
AWAY_SECONDS = 30.0  # and not again within that


class Healer:
    """Fetches objects by id from whoever holds them. Everything fetched is verified before it is stored."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.first: dict[str, str] = {}  # set -> the holder that is asked before the others
        self._away: dict[str, float] = {}  # holder -> when it was waited for in vain, in monotonic seconds
        self._spared: dict[object, int] = {}  # who needs something -> the collection in which that began

    @contextlib.contextmanager
    def spared(self) -> Iterator[None]:
        """What comes into the store in here stays until the end of it, though no image names it. What was
        there before may go in a collection all the same: whoever meets Missing fetches it."""
        who = object()
        self._spared[who] = self.agent.store.collection
        try:
            yield
        finally:
            del self._spared[who]

    def born(self) -> int | None:
        """The collection in which the oldest of what is spared was born; None when there is none."""
        return min(self._spared.values(), default=None)

    def holders(self, uuid: str) -> list[str]:
        """Nodes that may hold the set's objects, the source first."""
        spec = self.agent.document.set_by_uuid(uuid)
        if spec is None:
            return []
        lost = {node.name for node in self.agent.document.nodes if node.lost}
        return [n for n in (spec.source, *spec.targets) if n not in ("", self.agent.node.name, *lost)]

    def _members(self, uuid: str) -> list[str]:
        """The sets that a group is made of, by uuid; none for a set."""
        document = self.agent.document
        spec = document.set_by_uuid(uuid)
        found = [document.set_named(name) for name in spec.members] if spec is not None else []
        return [member.uuid for member in found if member is not None]

    async def heal(self, uuid: str, ids: set[bytes]) -> set[bytes]:
        """Fetch `ids` and store them; returns those that are whole again."""
        healed = await self.fetch(uuid, ids)
        if healed:
            names = ", ".join(sorted(set(healed.values())))
            self.agent.journal.add(
                "healed", f"{len(healed)} damaged or missing objects were fetched again from {names}."
            )
        lost = ids - healed.keys()
        if lost:
            self.agent.calls.maintenance.inventory.look_again()
            self.agent.journal.add(
                "damage",
                f"{len(lost)} objects are damaged here and no reachable node has them; it is tried again.",
            )
        return set(healed)

    async def fetch(
        self, uuid: str, ids: set[bytes], paths: Collection[bytes] = ()
    ) -> dict[bytes, str]:
        """id -> where it came from, for everything that could be fetched into the store.

        `paths`: where in the set they belong; this node's own live tree is then looked at first. Ends early
        where there is no room.
        """
        found: dict[bytes, str] = {}
        running = self.agent.sets.targets.get(uuid)
        if paths and running is not None:
            try:
                await self._own_tree(running.target, ids, paths, found)
            except CrnodeError:  # no room to keep anything
                return found
        for member in self._members(uuid):  # what a group has came with its members
            found |= await self.fetch(member, {i for i in ids if i not in found}, paths)
        for name in sorted(self.holders(uuid), key=lambda name: name != self.first.get(uuid)):
            wanted = [i for i in ids if i not in found]
            if not wanted:
                break
            link = self.agent.links.get(name)
            if link is None or not await self._is_up(name, link):
                continue

            async def take(message: Objects, payload: memoryview, name: str = name) -> None:
                for got in await self.agent.writer.submit(self._store, message, payload):
                    found[got] = name

            try:
                for at in range(0, len(wanted), IDS_A_QUESTION):
                    await link.fetch(uuid, wanted[at : at + IDS_A_QUESTION], take)
            except CrnodeError as error:
                if error.exit_code == ExitCode.FULL:
                    break
                continue  # the next holder is asked
        return found

    async def _is_up(self, name: str, link: Link) -> bool:
        """Whether a holder can be asked. One that was waited for a moment ago is not waited for again: of a
        restore each batch asks."""
        since = self._away.get(name)
        is_away = since is not None and time.monotonic() - since < AWAY_SECONDS
        if await link.wait_up(0.0 if is_away else UP_SECONDS):
            self._away.pop(name, None)
            return True
        if not is_away:
            self._away[name] = time.monotonic()
        return False

    async def _own_tree(
        self, target: TargetSet, ids: set[bytes], paths: Collection[bytes], found: dict[bytes, str]
    ) -> None:
        """Chunks that are still in the files of the live tree; their bytes are verified like any others."""
        live = target.live
        if live is None or live.at == 0:
            return
        try:
            roots = OpenRoots([Root(b"", target.destination)])
        except OSError:
            return
        search = ContentSearch(target.catalog, self.agent.store, live.at, lambda: roots, ids)
        try:
            search.only(paths)
            while (page := await in_thread(search.page)) is not None:
                records = [Record(name, CHUNK, delta.RAW, len(data), data) for name, data in page]
                await self.agent.writer.submit(self._keep, records)
                found.update((record.id, "its own live tree") for record in records)
        finally:
            await in_thread(search.close)
            roots.close()

    def _keep(self, records: list[Record]) -> None:
        self.agent.store.check_room(sum(len(record.stored) for record in records))
        self.agent.store.put(records, Lane.BULK, cache=False)
        self.agent.store.sync()

    def _store(self, message: Objects, payload: memoryview) -> list[bytes]:
        """Verify and append what came (in the writer thread); returns the ids."""
        records: list[Record] = []
        at = 0
        for name, kind, codec, raw, stored, _ in message.records:
            part = payload[at : at + stored]
            at += stored
            try:
                data = delta.decode_object(codec, part, raw, None)
            except RemoteProtocolError:
                continue
            if identify(kind, data) == name:
                records.append(Record(name, kind, delta.RAW, len(data), memoryview(bytes(data))))
        self._keep(records)
        return [record.id for record in records]
