"""The agent process of one node: composition root and order of start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw
import uvloop

from crnode import __version__
from crnode.agent.calls import Calls
from crnode.agent.heal import Healer
from crnode.agent.idle import Idle
from crnode.agent.learn import newer_document
from crnode.agent.links import Link
from crnode.agent.serve import Server
from crnode.agent.sets import Sets
from crnode.agent.threads import in_thread
from crnode.cluster.create import bad_address
from crnode.cluster.document import (
    ClusterDocument,
    Node,
    ReplicationSet,
    Role,
    fingerprint,
    parse_document,
    split_address,
)
from crnode.cluster.join import JoinDesk
from crnode.cluster.keep import Rung
from crnode.cluster.membership import Change, accept
from crnode.cluster.moves import Move, from_json, moved, to_json
from crnode.cluster.node_file import (
    CA_KEY_FILE,
    CONTROL_SOCKET,
    DOCUMENT_FILE,
    NODE_FILE,
    DataLock,
    NodeFile,
    check_data_dir,
    read_document,
    read_node_file,
)
from crnode.errors import CrnodeError, ExitCode
from crnode.net.control import ControlServer
from crnode.net.dial import dial
from crnode.net.hello import node_hello
from crnode.net.join import serve_joiner
from crnode.net.listen import Listener, listen
from crnode.net.peer import Peer, PeerClosed
from crnode.net.tls import client_context, server_context
from crnode.observe.journal import Journal
from crnode.platform.files import atomic_write, machine_id
from crnode.store.catalog import Catalog, CatalogDamaged
from crnode.store.child import ChildFailed
from crnode.store.index import IndexDamaged
from crnode.store.packs import StoreFailed
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer
from crproto.connection import Connected
from crproto.messages import Hello

SWITCH_SECONDS = 0.0005  # one busy thread of Python may hold the loop up no longer than this
MEND_SECONDS = 60.0  # between two times that a catalog is made again
LOOK_SECONDS = 2.0
ANSWER_SECONDS = 2.0  # a node that is there answers a question in that time
FIRST_GENERATION = 1  # of a cluster document; in a later one another node may have become the master
MOVES_FILE = "moves.json"
DOUBT_SECONDS = 600.0  # between two looks at a catalog of a set whose images do not fit it
log = logging.getLogger(__name__)
T = TypeVar("T")


class Agent:
    """Everything one node runs. Build it inside a running loop, then `await run()`."""

    def __init__(self, data: Path, node: NodeFile, document: ClusterDocument, listen_at: str) -> None:
        self.data = data
        self.node = node
        self.said = document  # as the master made it,
        self.moves: dict[str, Move] = {}  # ... which node has the sets that move, by uuid,
        self.document = document  # ... and how that is read
        self.problems: dict[str, str] = {}  # what a check at idle found, until a later one finds it gone
        self.listen_at = listen_at
        self.started_ns = time.time_ns()
        self.journal = Journal(data / "journal.jsonl", node.name, time.time_ns)
        self.links: dict[str, Link] = {}
        self._link_tasks: dict[str, asyncio.Task[None]] = {}
        self._heard: dict[str, float] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._relief: set[asyncio.Task[Any]] = set()
        self._stocktaking: asyncio.Task[None] | None = None
        self._mending: set[str] = set()  # sets whose catalog is being made again
        self._mended: dict[str, float] = {}  # set -> monotonic seconds at which that was done last
        self._later: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._doubted: dict[str, float] = {}  # set -> monotonic seconds when its catalog was looked at for it
        self._owned: set[asyncio.Task[Any]] = set()  # changes of the document on their way
        self._peers: set[Peer] = set()  # connections that other nodes opened
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._turn = asyncio.Lock()
        self.in_force = asyncio.Event()  # the sets of the first document run
        self._saying = asyncio.Lock()  # held while another document comes to hold
        self._client_tls = client_context(data)
        self._loop = asyncio.get_running_loop()

    # -- life

    async def run(self, ready: Callable[[], None] | None = None) -> int:
        """Run until stopped by a signal or a failed disk. Returns the exit code."""
        self.desk = self._make_desk()  # first: a CA that cannot be read ends the agent before anything runs
        self._server_tls = server_context(self.data)
        self.store = await asyncio.to_thread(
            ObjectStore, self.data / "store", quota=self.node.quota or 0, catalogs=self.data / "sets"
        )
        self._tell_recovery()
        self.sets: Sets
        self.writer = Writer(
            self._loop, self._keep_house, self._store_failed, damaged=self._writer_met_damage
        )
        self.healer = Healer(self)
        self.sets = Sets(
            self.data,
            self.node,
            self.store,
            self.writer,
            dial=self._dial_by_name,
            heal=self.healer.heal,
            journal=self.journal.add,
            now_ns=time.time_ns,
            crashed=self._crashed,
            doubted=self._doubt,
            damaged=self._catalog_damaged,
            later=self._follow_later,
            doubtful=self._catalog_doubtful,
            kept=self.kept,
        )
        self.server = Server(self)
        self.calls = Calls(self)
        self.server.methods = self.calls.peer_methods()
        listener: Listener | None = None
        control: ControlServer | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        try:
            host, port = split_address(self.listen_at)
            listener = await listen(
                host, port, self._server_tls, self._hello, self._on_peer, lambda: self.document
            )
            self.journal.add("start", f"{self.node.name} started as {self.node.role} (crnode {__version__}).")
            await self._learn()
            await asyncio.to_thread(self.calls.proof.clean)
            self.moves = await asyncio.to_thread(self._read_moves)
            await self._follow()
            self.in_force.set()
            await self.calls.in_place.clean()
            await self.calls.moving.resume()
            self.calls.forced.begin()
            control = ControlServer(self.data / CONTROL_SOCKET, self.calls.control_handlers())
            await control.start()  # last: who can ask finds everything there
            for work, name in ((self.calls.maintenance.run(), "maintenance"), (Idle(self).run(), "idle")):
                self._in_background(work, name)
            if ready is not None:
                ready()
            gc.freeze()  # what is there now lives as long as the process: no collection need look at it again
            await self._stop.wait()
        finally:
            if control is not None:
                await control.close()
            self.calls.moving.close()
            self.calls.forced.close()
            ending: list[asyncio.Task[Any]] = [*self._background, *self._relief, *self.sets.returning]
            ending += self._owned
            ending += self._link_tasks.values()
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            if listener is not None:
                await listener.close()
            with contextlib.suppress(StoreFailed):
                await self.sets.close()
            await self.writer.close()
            clean = self._failure is None
            await asyncio.to_thread(lambda: self.store.close(clean=clean))
            self.journal.add("stop", f"{self.node.name} stopped.")
            self.journal.close()
        if self._failure is not None:
            print(f"crnode: stopped: {self._failure}", file=sys.stderr)
            return int(ExitCode.FAILED)
        return int(ExitCode.OK)

    def stop(self) -> None:
        """Ask the agent to stop in order."""
        self._stop.set()

    def _keep_house(self) -> None:
        self.store.check_there()
        self.store.tick()
        self.sets.keep_house()

    def _store_failed(self, error: BaseException) -> None:
        """A failed disk: acknowledge nothing more, end, start again as suspect (rule 33)."""
        if self._failure is None:
            if isinstance(error, CrnodeError) and error.exit_code == ExitCode.FULL:
                self.journal.add("full", str(error))
                self.relieve()
                return
            self._failure = error
            if not isinstance(error, IndexDamaged):  # what is in the packs is not in question then
                with contextlib.suppress(FileNotFoundError):
                    (self.data / "store" / "boot").unlink()  # the next start reads recent records again
            self.journal.add("failed", f"The store failed and the agent stops: {error}")
            self._stop.set()

    def relieve(self) -> None:
        """The disk is full: free what is dead, once a minute at most."""
        task = asyncio.create_task(self.calls.maintenance.relieve())
        self._relief.add(task)
        task.add_done_callback(self._relief.discard)

    def _doubt(self) -> None:
        """A catalog may not fit the store: all is looked up, and its set takes nothing before (rule 32)."""
        if self._stocktaking is None or self._stocktaking.done():
            work = self.calls.maintenance.inventory.at_start()
            self._stocktaking = self._in_background(work, "inventory")

    def _crashed(self, error: BaseException) -> None:
        """A defect in a task of ours: say so and stop, rather than go on half alive."""
        if isinstance(error, StoreFailed):  # no defect: whoever meets a store that failed first says it
            self._store_failed(error)
            return
        log.error("a task ended by a defect", exc_info=error)
        if self._failure is None:
            self._failure = error
            self.journal.add("defect", f"A defect stopped the agent: {type(error).__name__}: {error}")
            self._stop.set()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crashed(error)

    def _tell_recovery(self) -> None:
        found = self.store.recovery
        if found.rebuilt:
            self.journal.add("recovery", "The index of the object store was rebuilt from the packs.")
        if found.torn_bytes:
            self.journal.add("recovery", f"{found.torn_bytes} bytes of an unfinished append were cut off.")
        if found.unclean_boot:
            self.journal.add(
                "recovery", f"The machine was cut off; {found.rehashed_bytes >> 20} MiB were read again."
            )
        for pack in found.lost_packs:
            text = f"Pack {pack} of the object store is gone; what it held is fetched again."
            self.journal.add("damage", text)
        for gap in found.damaged:
            self.journal.add(
                "damage", f"Pack {gap.pack} is damaged from byte {gap.start} to {gap.end}; it is healed."
            )

    def _make_desk(self) -> JoinDesk | None:
        if not self._is_master() or not (self.data / CA_KEY_FILE).exists():
            return None
        return JoinDesk(self.data, lambda: self.said, self.change)

    def renew_desk(self) -> None:
        """This node became the master."""
        self.desk = self._make_desk()

    # -- the document

    async def change(self, make: Change) -> ClusterDocument:
        """As the master: `make` a new document of the one that is said; durable first, then in force here,
        then told to all, also when whoever asks goes away. Returns it; nothing happens when `make` returns
        what it got. Raises what `make` raises."""
        return await self._own(self._change(make))

    async def _change(self, make: Change) -> ClusterDocument:
        async with self._saying:
            document = make(self.said)
            if document is self.said:
                return document
            await self._say(document)
        await self._follow()
        await asyncio.gather(*(link.send_document(self.said) for link in list(self.links.values())))
        return document

    async def _own(self, work: Coroutine[Any, Any, T]) -> T:
        """Work of this agent: it goes on when whoever waits for it is cancelled, and ends with the agent."""
        task = asyncio.create_task(work)
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)
        return await asyncio.shield(task)

    async def _say(self, document: ClusterDocument) -> None:
        """Make it durable, and the one that holds. Under :attr:`_saying`: two changes of one document would
        have one number, and of two that came on two connections the older could come to hold."""
        await in_thread(partial(atomic_write, self.data / DOCUMENT_FILE, document.to_bytes()))
        self.said = document

    async def offered(self, sender: str, body: bytes) -> None:
        """Another node sent a document: take it if it is news from the master (rules 85, 88)."""
        await self._own(self._offered(sender, body))

    async def _offered(self, sender: str, body: bytes) -> None:
        if await self._take(sender, body):
            await self.in_force.wait()  # before, what moved has not been read
            await self._follow()

    async def _take(self, sender: str, body: bytes) -> bool:
        """Whether the document that was sent is news, and durable now; a refusal is told."""
        try:
            offered = parse_document(body, f"the document from {sender}")
            hears: set[str] = set()
            if offered.version.generation > self.said.version.generation:
                hears = {node.name for node in offered.nodes if node.lost and await self.answers(node.name)}
            was_news = offered.version > self.said.version
            async with self._saying:
                if was_news and offered.version <= self.said.version:
                    return False  # a newer one came meanwhile, on another connection
                document = accept(self.said, offered, sender, hears=hears)
                if document.version == self.said.version:
                    return False
                await self._say(document)
        except CrnodeError as error:
            self.journal.add("refused", str(error))
            return False
        return True

    async def _learn(self) -> None:
        """Before any set is opened: a source that was away must not capture under an old document."""
        if self._is_master():
            return
        body = await newer_document(self.said, self._dial)
        if body is not None and await self._take(self.said.master.name, body):
            self.document = self.said
            self.journal.add("cluster", "The cluster was changed while this node was away.")

    async def _follow(self) -> None:
        """Put into force what is said."""
        async with self._turn:
            document = self.document = moved(self.said, self.moves)
            self._turn_away()
            here = document.node(self.node.name)
            if here is not None and here.role is not self.node.role:
                self.journal.add("cluster", f"The role of this node is now {here.role}.")
            others = {n.name: n for n in document.nodes if n.name != self.node.name}
            for name in [n for n in self.links if n not in others or self.links[n].node != others[n]]:
                self._link_tasks.pop(name).cancel()
                del self.links[name]
            for name, node in others.items():
                if name not in self.links:
                    link = Link(node, self._dial, self.offered, lambda: self.said, self._is_master)
                    self.links[name] = link
                    self._link_tasks[name] = asyncio.create_task(link.run(), name=f"link to {name}")
            await self.sets.apply(document, self._epochs())

    def _epochs(self) -> dict[str, int]:
        takeover = self.document.takeover
        names = takeover.sets if takeover is not None else ()
        moving = {spec.uuid for spec in self.document.sets if spec.name in names}
        # One that was taken out goes on in its last epoch: its targets take nothing older.
        moving |= {spec.uuid for spec in self.document.sets if spec.uuid in self.moves}
        return {uuid: self.moves[uuid].epoch if uuid in self.moves else 0 for uuid in moving}

    def _read_moves(self) -> dict[str, Move]:
        path = self.data / MOVES_FILE
        try:
            body = path.read_bytes()
        except FileNotFoundError:
            return {}
        return from_json(body, str(path))

    async def move(self, moves: Mapping[str, Move]) -> None:
        """Sets have another source from now on: durable first, then in force here."""
        async with self._saying:
            now = {**self.moves, **moves}
            await in_thread(partial(atomic_write, self.data / MOVES_FILE, to_json(now)))
            self.moves = now
        await self._follow()

    async def rebuild_catalog(self, uuid: str, why: str, found: Catalog | None = None) -> None:
        """A running set's catalog (`found`, where it takes long to find that) is damaged: it is set aside and
        made again, and the set goes on; also when whoever asked for it goes away meanwhile."""
        task = asyncio.create_task(self._rebuild_catalog(uuid, why, found), name="catalog")
        self.sets.returning.add(task)
        task.add_done_callback(self.sets.returning.discard)
        await asyncio.shield(task)

    async def _rebuild_catalog(self, uuid: str, why: str, found: Catalog | None) -> None:
        try:
            await self._start_over(uuid, why, found)
        except Exception as error:
            # The set was stopped for it: it waits with the reason, and is tried again.
            self.sets.refused[uuid] = f"Its catalog is damaged and cannot be made again: {error}"
            self._follow_later()
            raise
        await self._follow()

    async def _start_over(self, uuid: str, why: str, found: Catalog | None = None) -> None:
        """What the set's tasks still say of the damaged catalog while they end asks for no other one; what
        they say of the one that was made does."""
        self._mending.add(uuid)
        try:
            if await self.sets.start_over(uuid, why, found or self.sets.catalogs.get(uuid)):
                self._mended[uuid] = time.monotonic()
        finally:
            self._mending.discard(uuid)

    def _catalog_damaged(self, uuid: str, error: BaseException) -> None:
        """Something of a set met a damaged catalog: it is made again, and the set waits until then."""
        if uuid in self._mending or uuid not in self.sets.catalogs:
            return
        self._mending.add(uuid)
        self.sets.refused[uuid] = f"Its catalog is damaged ({error}); it is made again."
        self._in_background(self._mend_catalog(uuid, str(error)), "catalog")

    async def _mend_catalog(self, uuid: str, why: str) -> None:
        told = ""
        while True:
            if told and uuid in self.sets.catalogs:
                break  # somebody else made it again
            self._mending.add(uuid)
            # A disk that damages it again at once is not to be asked for it without an end.
            before = self._mended.get(uuid)
            since = time.monotonic() - (before if before is not None else -MEND_SECONDS)
            await asyncio.sleep(max(MEND_SECONDS - since, 0))
            if self._mended.get(uuid) != before:
                break  # a check has done it meanwhile
            try:
                await self._start_over(uuid, why)
                break
            except (CrnodeError, CatalogDamaged, apsw.Error, OSError) as error:
                if str(error) != told:
                    self.journal.add("damage", f"A damaged catalog could not be made again: {error}")
                told = str(error)
                self.sets.refused[uuid] = f"Its catalog is damaged and cannot be made again: {error}"
                await asyncio.sleep(MEND_SECONDS)
        self._mending.discard(uuid)
        await self._follow()

    def _follow_later(self) -> None:
        """A set could not start for what may pass, a full disk for one: it is tried again without anybody's
        doing."""
        if self._later is None or self._later.done():
            self._later = self._in_background(self._follow_again(), "again")

    async def _follow_again(self) -> None:
        await asyncio.sleep(MEND_SECONDS)
        self._later = None  # what is so still asks for another one
        await self._follow()

    def _writer_met_damage(self, error: BaseException) -> None:
        """A job met a damaged catalog. Where it does not say which, all are looked at."""
        if isinstance(error, CatalogDamaged):
            self._catalog_damaged(Path(error.args[0]).stem, error)
        elif self._looking is None or self._looking.done():
            self._looking = self._in_background(self._look_at_catalogs(), "catalogs")

    async def _look_at_catalogs(self) -> None:
        await asyncio.sleep(LOOK_SECONDS)  # a task that ended by it says which one it is
        for uuid in list(self.sets.catalogs):
            if (
                uuid in self._mending
                or time.monotonic() - self._mended.get(uuid, -MEND_SECONDS) < MEND_SECONDS
            ):
                continue
            await self._look_at_catalog(uuid)

    def _catalog_doubtful(self, uuid: str) -> None:
        """An image does not fit what the catalog here has: a row that is gone is missed by nobody else. It is
        looked at now and then, because the image may as well be wrong and come again and again."""
        now = time.monotonic()
        if now - self._doubted.get(uuid, -DOUBT_SECONDS) >= DOUBT_SECONDS:
            self._doubted[uuid] = now
            self._in_background(self._look_at_catalog(uuid), "catalog")

    async def _look_at_catalog(self, uuid: str) -> None:
        try:
            await self.calls.maintenance.audit.catalog(uuid, time.time_ns())
        except (CrnodeError, ChildFailed, CatalogDamaged, apsw.Error, OSError) as error:
            self.journal.add("damage", f"A catalog could not be checked: {error}")

    def _in_background(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._task_ended)
        self._background.add(task)
        return task

    def _is_master(self) -> bool:
        return self.document.master.name == self.node.name

    # -- connections

    def heard(self, name: str) -> None:
        """A node is alive: something came from it."""
        self._heard[name] = time.monotonic()

    def heard_ago(self, name: str) -> float | None:
        """Seconds since anything came from that node, None if nothing ever did."""
        link = self.links.get(name)
        times = [
            t for t in (self._heard.get(name), link.seen_at if link is not None else None) if t is not None
        ]
        if link is not None and link.peer is not None:
            return 0.0
        return time.monotonic() - max(times) if times else None

    def kept(self, spec: ReplicationSet, node: str) -> tuple[Rung, ...] | None:
        """The rungs in force for the versions of a set at a node: they stay with it when the set moves."""
        return (self.said.set_by_uuid(spec.uuid) or spec).kept_at(node)

    async def answers(self, name: str) -> bool:
        """Whether that node answers a question now: a connection may outlive who was at its other end."""
        link = self.links.get(name)
        if link is None or link.peer is None:
            return False
        try:
            await link.call("status", {}, ANSWER_SECONDS)
        except TimeoutError:
            return False
        except CrnodeError as error:
            return error.exit_code is not ExitCode.UNREACHABLE
        return True

    def _hello(self) -> Hello:
        return node_hello(self.node, self.document, time.time_ns())

    async def _dial(self, node: Node) -> Peer:
        peer, _ = await dial(node.address, self._client_tls, self._hello(), node.fingerprint, node.name)
        self.heard(node.name)
        return peer

    async def _dial_by_name(self, name: str) -> Peer:
        node = self.document.node(name)
        if node is None:
            raise PeerClosed("unknown", f"The cluster has no node {name}.")
        return await self._dial(node)

    async def _on_peer(self, peer: Peer, connected: Connected) -> None:
        if peer.name is None:
            if self.desk is None:
                peer.fail(
                    "denied",
                    f"{self.node.name} is not the master; machines join at {self.document.master.name}.",
                )
                return
            await serve_joiner(peer, self.desk)
            return
        self._peers.add(peer)
        try:
            await self.server.serve(peer)
        finally:
            self._peers.discard(peer)

    def _turn_away(self) -> None:
        """End the connections of nodes that are not (any more) in the document: it is the revocation list."""
        for peer in list(self._peers):
            node = self.document.node(peer.name or "")
            if node is None or peer.certificate is None or fingerprint(peer.certificate) != node.fingerprint:
                peer.fail("denied", f"'{peer.name}' was removed from the cluster '{self.document.name}'.")


def run(data: Path, role: str, listen: str | None = None) -> int:
    """Run the agent in the foreground until SIGTERM or SIGINT; returns the exit code. CrnodeError says why
    not."""
    if listen is not None:
        try:
            split_address(listen)
        except ValueError as error:
            raise bad_address(error) from error
    check_data_dir(data)
    with DataLock(data):
        node = read_node_file(data)
        document = read_document(data)
        if document.id != node.cluster:
            raise CrnodeError(
                f"'{data / DOCUMENT_FILE}' and '{data / NODE_FILE}' do not belong together.",
                f"One is of cluster {document.id[:8]} ({document.name}), the other of {node.cluster[:8]}.",
                "Restore both from one backup, or join anew with an empty data directory.",
                ExitCode.REFUSED,
            )
        here = document.node(node.name)
        if here is None:
            raise CrnodeError(
                f"This node, {node.name}, is not in its own cluster document.",
                f"It may have been removed from {document.name}.",
                "Ask for a new invitation and join with an empty data directory.",
                ExitCode.REFUSED,
            )
        became = here.role is Role.MASTER and document.version.generation > FIRST_GENERATION
        if role != here.role.value and not became:
            raise CrnodeError(
                f"This node is the {here.role} of cluster {document.name}, not a {role}.",
                "The cluster document says so, and it is changed at the master alone.",
                f"Start it with: crnode --role {here.role} --data {data}",
                ExitCode.REFUSED,
            )
        node = _same_machine(data, node)
        logging.basicConfig(
            level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
        sys.setswitchinterval(SWITCH_SECONDS)

        def ready() -> None:
            if sys.stdout.isatty() or os.environ.get("CRNODE_SAY_READY"):
                print(f"crnode: {node.name} ({here.role}) is running; stop it with Ctrl-C.", flush=True)

        async def main() -> int:
            agent = Agent(data, node, document, listen or node.listen)
            return await agent.run(ready)

        return _run_loop(main)


def _run_loop(main: Callable[[], Awaitable[int]]) -> int:
    async def outer() -> int:
        return await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(outer())


def _same_machine(data: Path, node: NodeFile) -> NodeFile:
    """A data directory that was copied to another machine must not speak as the first one (rule 90)."""
    if node.is_this_machine():
        return node
    fresh = node.model_copy(update={"incarnation": secrets.token_hex(16), "machine_id": machine_id()})
    fresh.write(data)
    print(
        f"crnode: the data directory {data} was made on another machine; this one goes on under a new"
        f" incarnation. If"
        " the other machine still runs, stop it now, or join this one with a token of its own.",
        file=sys.stderr,
    )
    return fresh


__all__ = ["Agent", "run"]
