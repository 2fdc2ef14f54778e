"""The keeper: the small process that holds lease, votes and fence (rule 7), on connections of its own.

It decides nothing that :mod:`crnode.failover.lease` and :mod:`crnode.failover.machine` do not decide: it
reads the two clocks, writes the vote file, carries messages, and does to the machine what it is told,
asking the lease before and after (rule 17). What it knows of the cluster is the document that the agent
keeps; it goes on when the agent does not. What is to be done with the data it asks the agent to do, over the
control socket, and never waits for that: the lease is renewed meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from crnode.cluster.document import ClusterDocument, Takeover, join_address
from crnode.cluster.moves import epoch_number
from crnode.cluster.node_file import read_document, read_node_file
from crnode.errors import CrnodeError, ExitCode
from crnode.failover import wire
from crnode.failover.active import ActiveAnswer
from crnode.failover.clocks import moment
from crnode.failover.controls import Place, write_drop_ins
from crnode.failover.fence import Address, Clients, run_hook
from crnode.failover.guard import Systemd, Watchdog, lock_memory, run_first, spare_memory
from crnode.failover.layers import layers
from crnode.failover.lease import Lease, Phase
from crnode.failover.links import Link, keeper_address, tune
from crnode.failover.machine import Facts, hindrance, next_voters, sentence
from crnode.failover.services import Services
from crnode.failover.tending import Tending
from crnode.failover.terms import (
    GENERATION_BITS,
    LAN_LEASE_NS,
    NO_EPOCH,
    SECOND,
    WAN_LEASE_NS,
    AddressOff,
    AddressOn,
    Alive,
    CommitOpening,
    Config,
    ConfigId,
    Effect,
    Epoch,
    Extend,
    Fence,
    Gather,
    Hard,
    Message,
    Moment,
    Ok,
    Renew,
    Save,
    Say,
    Send,
    Serve,
    Stop,
    Voter,
    timers_of,
)
from crnode.failover.veto import Veto
from crnode.failover.vote_file import NAME, VoteFile
from crnode.net.control import ControlServer, call
from crnode.net.tls import PeerRefused, client_context, peer_name, server_context
from crnode.platform.cgroups import own_unit
from crproto.errors import RemoteProtocolError

SOCKET = "keeper.sock"
TICK_SECONDS = 0.05
DELAYS_MOST = 12_000  # that are remembered: of ticks ten minutes
ALIVE_SECONDS = 1.0
LATELY_SECONDS = 1.5  # one that was heard so long ago is there, as far as can be known
FORGIVEN_SECONDS = 600.0  # after which a failure of a service, or of this node to serve, counts no more
ALL_DATA = Epoch(1 << 62, 0)
"""Where no set moves with the lease: whatever was opened, nothing of it is missing here."""
AGENT_SOCKET = "control.sock"
HOOK_AGAIN_SECONDS = 2.0
ENDED_SECONDS = 1.0  # within which what was killed is gone
STEPS = {"takeover.gather": "made its data ready", "takeover.open": "opened the epoch"}
ASK_SECONDS = 1.0  # between two questions to the agent about its data
ANSWER_SECONDS = 2.0  # it has as long to answer
ABLE_SECONDS = 3.0  # after what happened, by which the others have heard that this node is able
STALE_SECONDS = 4.0  # what it said counts for so long
SILENT_SECONDS = 10.0  # it works on what it was asked to do, and says so each second

_DIGITS = re.compile(r"\d+")
log = logging.getLogger("crnode.keeper")


class Keeper:
    """See the module's text."""

    def __init__(self, data: Path, chance: Callable[[], float] = random.random) -> None:
        self.data = data
        self.node = read_node_file(data)
        self.document: ClusterDocument = read_document(data)
        self.client = client_context(data)
        self.server = server_context(data)
        self.votes = VoteFile(data / NAME)
        if not self.votes.lock():  # before anything: what runs here is that one's, and goes on
            why, hint = f"It has {self.votes.path} open.", "See: crnode takeover status"
            raise CrnodeError(f"A keeper of {self.node.name} runs already.", why, hint, ExitCode.REFUSED)
        self.started = moment()
        self.takeovers: list[Moment] = []
        self.links: dict[str, Link] = {}
        self.address: Address | None = None
        self.services = Services((), Place(data, f"{self.document.id[:8]}-{self.node.name}"), self.say)
        self._systemd = Systemd(dict(os.environ))
        self.tending = Tending(self)
        self._watchdog: Watchdog | None = None
        self._veto: Veto | None = None
        self._reach = ThreadPoolExecutor(1, "reach")
        self._asking: asyncio.Task[None] | None = None
        self._guards: dict[str, bool] = {}  # of this process: which the system allowed
        self._units: list[str] | None = None  # whose drop-ins are written
        self._steps: list[tuple[str, float]] = []  # of the takeover under way, and their seconds
        self._clients: Clients | None = None
        self._opened_sets: tuple[str, ...] = ()  # those that are open in this epoch
        self._opening = False
        self._off: frozenset[str] = frozenset()  # whom a person has switched off
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._asked = False  # a person wants this node to be active
        self._taken_back = ""  # why the last switch was
        self._released = False  # the last holder named this node
        self.is_up = False  # the services are started: the address may be held
        self._unable_since = 0.0
        self._broken: BaseException | None = None  # of what ran beside
        self._is_unsaved = False  # what the lease knows is not on the disk: nothing is said any more
        self._switching = asyncio.Lock()
        self._handed_to = ""  # who got the lease by the last switch; '' when it came to nothing
        self._served = NO_EPOCH
        self._active: ActiveAnswer | None = None
        self._told: dict[str, str] = {}
        self._document_read = 0.0
        self._alive_sent = 0.0
        self._hindered = ""  # why it does not campaign, whoever holds the lease
        self._unfenced = (NO_EPOCH, "")  # the mark then, and whom the owner's command could not switch off
        self._able = ""  # why this node has not been able to serve, of itself
        self._data: tuple[float, Epoch, str] = (0.0, NO_EPOCH, "its agent has not answered yet")
        self._is_new = False  # none of its sets was ever opened, as far as its agent knows
        self._agent = ThreadPoolExecutor(4, "agent")
        self._late: deque[float] = deque(maxlen=DELAYS_MOST)  # s from tick to tick, beyond what was asked
        self._answers: deque[float] = deque(maxlen=DELAYS_MOST)  # s from a renewal to its answer
        self._least_left: float | None = None  # of the lease, as a tick found it, since this node is active
        timers = timers_of(self.votes.hard.config.lease_ns)
        self.lease = Lease(self.node.name, self.votes.hard, timers, chance, time.time_ns())
        self._found()

    def takeover(self) -> Takeover:
        found = self.document.takeover
        if found is None:
            raise CrnodeError(
                "This cluster has no takeover to keep.",
                "Nobody has said yet who votes.",
                "Say it at the master: crnode takeover set",
                ExitCode.REFUSED,
            )
        return found

    def _found(self) -> None:
        """The first keeper of a cluster begins as its only voter; the others are added by it."""
        takeover, hard = self.takeover(), self.votes.hard
        founder = takeover.founder, takeover.founder_incarnation
        is_founder = founder == (self.node.name, hard.incarnation.hex())
        if is_founder and hard.config.id == ConfigId(0, NO_EPOCH, 0):
            slots = tuple((name, number) for number, name in enumerate(takeover.candidates, 1))
            lease = WAN_LEASE_NS if takeover.network == "wan" else LAN_LEASE_NS
            me = Voter(self.node.name, hard.incarnation)
            config = Config(ConfigId(1, NO_EPOCH, 1), (me,), slots, lease)
            self.lease.hard = hard._replace(config=config)
            self.votes.save(self.lease.hard)

    def say(self, text: str) -> None:
        """A sentence for whoever reads the log."""
        log.info("%s", text)

    def tell(self, text: str) -> None:
        """... and for the journal of this node's agent, which people read."""
        self.say(text)
        self.later(self._note(text))

    async def _note(self, text: str) -> None:
        with contextlib.suppress(CrnodeError):
            await self.ask_agent("takeover.note", {"text": text}, ANSWER_SECONDS)

    def say_once(self, about: str, text: str) -> None:
        """The same, when it is another one than before about that; a number that changes makes no other."""
        before, self._told[about] = self._told.get(about, ""), text
        if text and _DIGITS.sub("", text) != _DIGITS.sub("", before):
            self.say(text)

    # -- the process

    async def run(self) -> None:
        """Keep until cancelled."""
        self._guards = {"locked": lock_memory(), "spared": spare_memory(), "first": run_first()}
        self._configure()
        self.do(self.lease.start(moment()))
        host, port = keeper_address(self.node.listen)
        try:
            server = await asyncio.start_server(self._connected, host, port, ssl=self.server)
        except OSError as error:
            raise CrnodeError(
                f"The keeper cannot listen on {join_address(host, port)}.",
                f"The system says: {error.strerror or error}.",
                "Another keeper may be running with this data directory.",
            ) from error
        control = ControlServer(
            self.data / SOCKET,
            {
                "status": self._status,
                "switch": self._switch,
                "campaign": self._campaign_call,
                "force": self._force,
                "alone": self._alone,
            },
        )
        await control.start()
        self.later(self._ask_data())
        self.say(f"The keeper of {self.node.name} listens on {join_address(host, port)}.")
        self._systemd.tell("READY=1")
        try:
            ticked = time.monotonic()
            while True:
                await asyncio.sleep(TICK_SECONDS)
                before, ticked = ticked, time.monotonic()
                self._late.append(ticked - before - TICK_SECONDS)
                if self._broken is not None:
                    raise self._broken
                self._tick()
        finally:
            self._systemd.tell("STOPPING=1")
            self.do([Fence("the keeper ends")])
            deadline = time.monotonic() + ENDED_SECONDS
            while self._watchdog is not None and self._watchdog.is_armed and time.monotonic() < deadline:
                self._feed(ended=True)  # disarmed when nothing is left; else it does what we could not
                await asyncio.sleep(TICK_SECONDS / 5)
            for task in [*self._tasks.values(), *self._running]:
                task.cancel()
            await control.close()
            server.close()
            self._answer_active(None)
            self.votes.close()
            if self._asking is not None:
                self._asking.cancel()
            for executor in (self._agent, self._reach):
                executor.shutdown(wait=False, cancel_futures=True)

    def _configure(self) -> None:
        """Take over what the document says."""
        takeover = self.takeover()
        others = {node.name for node in self.document.nodes if node.name != self.node.name}
        for name in others - self.links.keys():
            self.links[name] = Link(self, name)
            self._tasks[name] = asyncio.create_task(self.links[name].run())
        for name in self.links.keys() - others:
            del self.links[name]
            self._tasks.pop(name).cancel()
        wanted = (takeover.address, takeover.interface)
        if self.address is None or (str(self.address.address), self.address.interface) != wanted:
            if self.address is not None:
                self.address.off()
            here = takeover.address is not None and self.node.name in takeover.candidates
            say = partial(self.say_once, "address")
            self.address = Address(str(takeover.address), takeover.interface, say) if here else None
        is_candidate = self.node.name in takeover.candidates  # a witness has units of its own, maybe
        self._left_as_no_candidate()
        services = takeover.services if is_candidate else ()
        if tuple(self.services.services) != services:
            self._able = ""  # what failed was another one
            self.tending.forget()
        self.services.configure(services)
        units = [service.unit for service in self.services.services if service.unit]
        if units != self._units:
            self._units = units
            self.later(self._write_drop_ins(units))
        hook, there = takeover.address_hook, takeover.address or ""
        clients = self._clients
        if clients is not None and (
            not is_candidate or (clients.command, clients.address) != (hook, there)
        ):
            clients.drop()
            self._clients = None  # what is said of them next waits for that
        if self._clients is None and is_candidate and hook:
            self._clients = Clients(hook, there, self.node.name, clients)
            self._bring_clients()
        self.lease.removed = frozenset(name for name, _ in self.lease.hard.config.slots) - (
            others | {self.node.name}
        )
        path = takeover.watchdog if is_candidate else ""
        if self._watchdog is None or self._watchdog.path != path:
            if self._watchdog is not None:
                self._watchdog.disarm()
            self._watchdog = Watchdog(path, self.say) if path else None
            if self._watchdog is not None and self.lease.serves:
                self._watchdog.arm()
        if self._veto is None or self._veto.address != takeover.veto:
            if self._asking is not None:
                self._asking.cancel()
            self._veto = self._asking = None
            if takeover.veto and is_candidate:
                self._veto = Veto(takeover.veto, self._reach, self.say)
                self._asking = asyncio.create_task(self._veto.run())
        self._answer_active(takeover.active_port)

    def _tick(self) -> None:
        now, clock = moment(), time.monotonic()
        self._systemd.alive()
        if clock - self._document_read >= 1.0:
            self._read_document()
        if self.lease.phase is Phase.ACTIVE:
            left = self.lease.left(now) / SECOND
            self._least_left = left if self._least_left is None else min(left, self._least_left)
        self.lease.timers = timers_of(self.lease.lease_ns)
        self.do(self.lease.tick(now))
        if self._able and clock - self._unable_since >= FORGIVEN_SECONDS:
            self._able = ""
        if clock - self._alive_sent >= ALIVE_SECONDS:
            self._alive_sent = clock
            for name in self.links:
                lease = self.lease
                self._send(name, Alive(0, not self._why_not(), lease.hard.config, lease.opened))
        if self.lease.phase is Phase.STANDBY:
            self._consider(now)
        elif self.lease.phase is Phase.ACTIVE:
            if self.lease.is_settled:
                self.tending.settled.set()
            self._keep_voters(now)
            self.tending.watch()
            self._open_more()
            self.tending.go_home(clock)
            if self.address is not None:
                self.address.announce_more()
        self._feed()

    def _read_document(self) -> None:
        self._document_read = time.monotonic()
        with contextlib.suppress(CrnodeError):
            document = read_document(self.data)
            if document.version != self.document.version and document.takeover is not None:
                self.document = document
                self._configure()

    def _feed(self, *, ended: bool = False) -> None:
        """The machine's watchdog: it is fed while the lease is held, and disarmed when nothing is left of
        what served; in between it has to do what we could not."""
        if self._watchdog is None or not self._watchdog.is_armed:
            return
        if not ended and self.lease.holds and self.lease.left(moment()) > 0:
            self._watchdog.feed()
        elif self.services.are_gone() and (self.address is None or not self.address.on):
            self._watchdog.disarm()

    async def _write_drop_ins(self, units: list[str]) -> None:
        work = partial(write_drop_ins, units, own_unit())
        why = await asyncio.get_running_loop().run_in_executor(self._agent, work)
        self.say_once("drop-ins", f"systemd could not be told about the units: {why}" if why else "")
        if not self.lease.serves:
            self.services.kill()  # what systemd started before it knew

    def _consider(self, now: Moment) -> None:
        """Whether to campaign, with the reason for people."""
        mark = self.lease.hard.mark
        owner = next((name for name, slot in self.lease.hard.config.slots if slot == mark.slot), "")
        link = self.links.get(owner)
        owner_able = link is None or not link.is_there or link.able
        self._released = self.lease.released == (self.lease.hard.epoch, self.node.name)
        asked = self._asked or self._released
        facts = Facts(
            self.node.name, self.takeover().network, self.started, self._why_not(), owner_able,
            tuple(self.takeovers), asked, self._veto.forbids if self._veto is not None else "",
        )  # fmt: skip
        why = self._hindered = hindrance(facts, self.lease, now)
        if not why:
            answer = self.lease.campaign(self.descent, now)
            if isinstance(answer, str):
                why = answer
            else:
                self.do(answer)
        self.say_once("campaign", f"No campaign: {why}" if why else "")

    def _keep_voters(self, now: Moment) -> None:
        there = {name: link for name, link in self.links.items() if link.is_there and link.incarnation}
        heard = {name: link.incarnation for name, link in there.items()}
        heard[self.node.name] = self.lease.hard.incarnation
        takeover, config = self.takeover(), self.lease.hard.config
        if self.tending.voting:
            return
        wanted = next_voters(config, takeover.voters, heard, self.node.name)
        known = dict(config.slots)
        new = [name for name in takeover.candidates if name not in known]
        if new:  # a slot is never given to another node
            last = max(known.values(), default=0)
            slots = (*config.slots, *((name, last + 1 + at) for at, name in enumerate(new)))
            wanted = (wanted or config)._replace(slots=slots)
        lease_ns = WAN_LEASE_NS if takeover.network == "wan" else LAN_LEASE_NS
        if config.lease_ns != lease_ns and wanted is None:
            wanted = config._replace(lease_ns=lease_ns)
        if wanted is not None:
            answer = self.lease.change(wanted, now)
            if isinstance(answer, str):
                self.say_once("voters", f"The voters stay as they are: {answer}")
            else:
                self.say_once("voters", f"The voters become {', '.join(v.name for v in wanted.voters)}.")
                self.do(answer)

    # -- messages

    def _send(self, to: str, message: Message) -> None:
        link = self.links.get(to)
        if link is not None:
            if type(message) is Renew:
                link.note_renewal(message.nonce)
            cluster = bytes.fromhex(self.document.id)
            link.send(wire.encode(wire.Envelope(cluster, self.lease.hard.incarnation, message)))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            if certificate is None:
                return
            name = peer_name(self.document, certificate)
            tune(writer)
            while True:
                size = int.from_bytes(await reader.readexactly(4), "big")
                if size > wire.MOST_BYTES:
                    raise RemoteProtocolError(f"{size} bytes announced")
                self._take(name, wire.decode(await reader.readexactly(size)))
        except RemoteProtocolError as error:
            self.say_once("protocol", f"A keeper was cut off: {error}")
        except (PeerRefused, OSError, asyncio.IncompleteReadError, ssl.SSLError):
            return
        except asyncio.CancelledError:  # the keeper ends; streams of asyncio would print where
            return
        except CrnodeError:  # the vote file: the next tick ends the keeper, and says it
            return
        finally:
            writer.close()

    def _take(self, name: str, envelope: wire.Envelope) -> None:
        if envelope.cluster.hex() != self.document.id or (link := self.links.get(name)) is None:
            return
        node = self.document.node(name)
        if node is None or node.lost:  # its connection is older than that
            return
        link.heard, link.incarnation = time.monotonic(), envelope.incarnation
        if type(envelope.message) is Alive:
            link.able = envelope.message.able
            takeover = self.takeover()
            if name in takeover.candidates or name in takeover.voters:
                self.do(self.lease.heard(name, envelope.message.config, envelope.message.mark))
            return
        if type(envelope.message) is Ok and (sent := link.renewals.pop(envelope.message.nonce, None)):
            self._answers.append(link.heard - sent)
        self.do(self.lease.receive(name, envelope.incarnation, envelope.message, moment()))

    # -- effects

    def do(self, effects: list[Effect]) -> None:
        """Carry out what was decided, in its order. A vote file that cannot be written ends the keeper:
        nothing that depends on it is said, now or until it has ended. Raises CrnodeError."""
        for effect in effects:
            kind = type(effect)
            if self._is_unsaved and kind is not Fence:
                continue
            if kind is Save:
                self._save(effect.hard)  # type: ignore[union-attr]
            elif kind is Send:
                self._send(effect.to, effect.message)  # type: ignore[union-attr]
            elif kind is Extend:
                self._hold()
            elif kind is Fence:
                self._fence(effect.why)  # type: ignore[union-attr]
            elif kind is AddressOff:
                self.say(f"The address is taken off: {effect.why}")  # type: ignore[union-attr]
                self._address_off()
            elif kind is AddressOn:
                self._hold()
                self._bring_clients()
            elif kind is Gather:
                self.later(self._gathered())
            elif kind is CommitOpening:
                self.later(self._committed())
            elif kind is Serve:
                self.later(self._serve(effect.epoch))  # type: ignore[union-attr]
            elif kind is Stop:
                self.later(self._hand_over(effect.successor))  # type: ignore[union-attr]
            elif kind is Say:
                self.say(effect.text)  # type: ignore[union-attr]

    def _save(self, hard: Hard) -> None:
        try:
            self.votes.save(hard)
        except OSError as error:
            self._is_unsaved = True
            why = f"The system says: {error.strerror or error}."
            hint = "Give it room, or another disk, and start the keeper again."
            self._broken = CrnodeError(f"The vote file {self.votes.path} cannot be written.", why, hint)
            raise self._broken from error

    def later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """What could not be done as it was decided ends the keeper, which fences: better nobody than two."""
        self._running.discard(task)
        if not task.cancelled() and self._broken is None:
            self._broken = task.exception()

    def _fence(self, why: str) -> None:
        if self.is_up:
            self.say(f"Fence: {why}")
        self._address_off()
        self.services.kill()
        self.is_up = False

    def _address_off(self) -> None:
        if self.address is not None:
            self.address.off()
        if self._clients is not None:
            self._clients.drop()

    def _hold(self) -> None:
        """Have the address for as long as the lease is held, if it may be had at all (H5)."""
        lease = self.lease
        if self.address is None or not self.is_up or lease.phase is not Phase.ACTIVE or lease.doubts:
            return
        self.address.hold(lease.left(moment()) / SECOND)
        if lease.left(moment()) <= 0:  # it ended while that was done
            self._address_off()

    def still(self, epoch: Epoch) -> bool:
        """Whether services may be started: not when they are being stopped for another node."""
        return self.lease.phase is Phase.ACTIVE and not self._lost(epoch)

    def _lost(self, epoch: Epoch) -> bool:
        """Whether services may not even run any more."""
        lease = self.lease
        return lease.epoch != epoch or not lease.serves or lease.left(moment()) <= lease.timers.stop_ns

    async def start_services(self, epoch: Epoch) -> None:
        await self.services.start(lambda: self.still(epoch), lambda: self._lost(epoch))

    # -- what the agent does with the data

    async def ask_agent(self, what: str, args: dict[str, Any], seconds: float) -> dict[str, Any]:
        """A control call of this node's agent. Raises CrnodeError."""
        work = partial(call, self.data / AGENT_SOCKET, what, args, None, seconds)
        return await asyncio.get_running_loop().run_in_executor(self._agent, work)

    async def _ask_data(self) -> None:
        """Know what the agent has, as long as this runs."""
        while True:
            if self.takeover().sets:
                try:
                    answer = await self.ask_agent("takeover.state", {}, ANSWER_SECONDS)
                    data, why = Epoch(*map(int, answer["data"])), str(answer["why_not"])
                    self._is_new = bool(answer["is_new"])
                    self.lease.hear(Epoch(*map(int, answer["fence"])))
                except (CrnodeError, KeyError, TypeError, ValueError) as error:
                    told = error.what if isinstance(error, CrnodeError) else repr(error)
                    data, why = self._data[1], f"its agent does not say what data it has: {told}"
                self._data = (time.monotonic(), data, why)
            await asyncio.sleep(ASK_SECONDS)

    @property
    def descent(self) -> Epoch:
        """What this node's data descends from. Sets that nobody opened yet lack nothing where they are at
        home and this node opened the newest epoch itself; who forgot that others did has another's mark."""
        if not self.takeover().sets:
            return ALL_DATA
        hard = self.lease.hard
        is_own = hard.mark.slot == hard.config.slot(self.node.name)
        return hard.mark if self._is_new and is_own else self._data[1]

    def _why_not(self) -> str:
        """Why this node could not serve now; '' when it could."""
        if self.node.name not in self.takeover().candidates:
            return "it is no candidate"
        if self._able or not self.takeover().sets:
            return self._able
        at, _, why = self._data
        return why if time.monotonic() - at < STALE_SECONDS else "its agent does not answer"

    async def _gathered(self) -> None:
        epoch = self.lease.epoch
        if self._left_as_no_candidate():
            return
        self._steps.clear()
        self.later(self._look_for_other())
        before = "" if self._released else self._active_before()
        if not await self._did("takeover.gather", epoch) or self.lease.epoch != epoch:
            return
        if before and (hook := self.takeover().fence_hook):
            why = await run_hook(hook, CRNODE_NODE=before, CRNODE_ACTION="fence")
            if self.lease.epoch != epoch:
                return
            if why:
                self._unfenced = (self.lease.hard.mark, f"{before} could not be switched off: {why}.")
                self.tell(self._unfenced[1])
                self.do(self.lease.abandon(f"{before} could not be switched off", moment()))
                return
            self.say(f"{before} was switched off by the owner's command.")
        self.do(self.lease.gathered(moment()))

    def _active_before(self) -> str:
        """The other node that opened the newest epoch, and may serve still."""
        hard = self.lease.hard
        opened = max(hard.mark, self.descent) if self.takeover().sets else hard.mark
        names = (name for name, slot in hard.config.slots if slot == opened.slot and opened != NO_EPOCH)
        name = next(names, "")
        return name if name != self.node.name and name not in self._off else ""

    async def _look_for_other(self) -> None:
        """Whether a machine that hangs still answers for the address: it is told, and no reason not to take
        it, which the neighbours are told of again and again."""
        if self.address is None:
            return
        work = self.address.other_holder
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._agent, work)
        except OSError as error:
            self.say(f"Nobody could be asked who has {self.address.address}: {error.strerror or error}.")
            return
        if found:
            self.say(f"Another machine still answers for {self.address.address}: {found}.")

    def _left_as_no_candidate(self) -> bool:
        """Whether it may not be active any more, and left the epoch for that: nobody would take what it opens
        for the source's."""
        if self.node.name in self.takeover().candidates:
            return False
        self.do(self.lease.abandon("it is no candidate any more", moment()))
        return True

    async def _committed(self) -> None:
        epoch = self.lease.epoch
        if self._left_as_no_candidate():
            return
        if await self._did("takeover.open", epoch) and self.lease.epoch == epoch:
            self.do(self.lease.committed(moment()))

    async def _did(self, what: str, epoch: Epoch) -> bool:
        """Let the agent do a step towards this epoch; when it cannot, the epoch is left to others."""
        if not self.takeover().sets:
            return True
        now = time.monotonic()
        there = [name for name, link in self.links.items() if now - link.heard < LATELY_SECONDS]
        args = {"epoch": epoch_number(*epoch), "there": there}
        begun = time.monotonic()
        try:
            answer = await self.ask_agent(what, args, SILENT_SECONDS)
        except CrnodeError as error:
            if self.lease.epoch == epoch:
                self.say(f"{self.node.name} cannot serve: {error}")
                self.do(self.lease.abandon(f"{self.node.name} cannot serve: {error.what}", moment()))
            return False
        for text in answer.get("said", ()):
            self.say(text)
        self._steps.append((STEPS[what], time.monotonic() - begun))
        self._opened_sets = self.takeover().sets
        return True

    def _open_more(self) -> None:
        """A set that moves from now on is opened in the epoch that is held: else its data would descend from
        nothing that was opened, and nobody could become active."""
        if self.is_up and self._opened_sets != self.takeover().sets and not self._opening:
            self._opening = True
            self.later(self._open_in(self.lease.epoch, self.takeover().sets))

    async def _open_in(self, epoch: Epoch, sets: tuple[str, ...]) -> None:
        try:
            await self.ask_agent("takeover.open", {"epoch": epoch_number(*epoch)}, SILENT_SECONDS)
        except CrnodeError as error:
            self.say_once("opening", f"What moves from now on could not be opened yet: {error}")
            await asyncio.sleep(ASK_SECONDS)
        else:
            self._opened_sets = sets
        finally:
            self._opening = False

    async def _serve(self, epoch: Epoch) -> None:
        if not self._asked and not self._released and epoch != self._served:
            self.takeovers.append(moment())
        self._least_left = None
        self._served = epoch  # once more in the same one: a switch was taken back
        self._asked = self._released = False
        self._handed_to = ""
        self._off = frozenset()  # whoever comes back may serve again, and be switched off again
        self.tending.forget()
        self.say(f"{self.node.name} is active in epoch {epoch}.")
        begun = time.monotonic()
        if self._watchdog is not None:
            self._watchdog.arm()
        await self.start_services(epoch)
        if self.still(epoch):
            self.is_up = True
            self._hold()
            self._steps += [("started services", time.monotonic() - begun)]
            told = ", ".join(f"{name} in {seconds:.2f} s" for name, seconds in self._steps)
            self.say(f"{self.node.name} serves: it {told}.")
            self._steps.clear()
            self._bring_clients()

    def _bring_clients(self) -> None:
        lease = self.lease
        if self._clients is not None and self.is_up and lease.phase is Phase.ACTIVE and not lease.doubts:
            self.later(self._take_by_hook(self._clients, lease.epoch))

    async def _take_by_hook(self, clients: Clients, epoch: Epoch) -> None:
        """Let the owner's command bring the clients here, until it has."""
        while self.still(epoch) and self.is_up and not self.lease.doubts:
            why = await clients.take()
            if not clients.taken:
                return  # they were taken away meanwhile
            self.say_once("hook", f"The command that moves the address failed: {why}." if why else "")
            if not why:
                self.say("The command that moves the address has done so.")
                return
            await asyncio.sleep(HOOK_AGAIN_SECONDS)

    async def _hand_over(self, successor: str) -> None:
        epoch = self.lease.epoch
        self.is_up = False
        await self.tending.idle()
        stopped = await self.services.stop()
        why = "" if stopped else "the services did not stop"
        if not why and self.takeover().sets:
            try:
                args = {"to": successor, "epoch": epoch_number(*epoch)}
                await self.ask_agent("takeover.hand-over", args, SILENT_SECONDS)
            except CrnodeError as error:
                why = str(error)
        if self.lease.epoch != epoch or self.lease.phase is not Phase.HANDING:
            return
        link = self.links.get(successor)
        if not why and (link is None or not link.is_there or not link.able):
            why = "it does not answer, or is not able to serve"
        if not why and not self.services.are_gone():
            why = "something of the services runs again"
        if why:
            self._taken_back = why
            self.say(f"The switch to {successor} is taken back: {why}.")
            self.do(self.lease.take_back())
            return
        self._handed_to = successor
        self.do(self.lease.stopped(moment()))

    def is_unable(self, why: str) -> None:
        """This node cannot serve, of itself, for a while."""
        self._able, self._unable_since = why, time.monotonic()

    def _answer_active(self, port: int | None) -> None:
        """Answer load balancers on that port (rule 23)."""
        if self._active is not None and self._active.port != port:
            self._active.close()
            self._active = None
        if port is not None and self._active is None:
            self._active = ActiveAnswer(port, self._serves_for, self.say)
            self.later(self._active.run())

    def _serves_for(self) -> float:
        """For how many seconds this node is active yet; 0 when it is not, or not sure."""
        lease = self.lease
        if not self.is_up or lease.phase is not Phase.ACTIVE or lease.doubts:
            return 0.0
        return lease.left(moment()) / SECOND

    # -- calls

    async def _status(self, args: dict[str, Any], report: Any) -> dict[str, Any]:
        lease, now = self.lease, moment()
        return {
            "node": self.node.name,
            "phase": lease.phase.name.lower(),
            "epoch": str(lease.epoch) if lease.holds else str(lease.hard.epoch),
            "holder": self.node.name if lease.holds else lease.hard.to if lease.promised(now) else "",
            "left_s": lease.left(now) / SECOND,
            "says": sentence(lease, now),
            "voters": [voter.name for voter in lease.hard.config.voters],
            "is_voter": lease.is_voter,
            "generation": lease.hard.config.id.generation >> GENERATION_BITS,
            "address": str(self.address.address) if self.address is not None and self.address.on else None,
            "services": self.services.told(),
            "keepers": {name: link.is_there for name, link in self.links.items()},
            "why_not": self._told.get("campaign", ""),
            "taken_back": self._taken_back,
            "handed_to": self._handed_to,
            "hindered": self._hindrance_told(),
            "config": [*lease.hard.config.id.epoch, lease.hard.config.id.version],
            "address_wanted": str(self.address.address) if self.address is not None else None,
            "layers": self._layers(),
            "able": not self._why_not(),
            "why_unable": self._able,
            "data": str(self.descent),
            "late_ms": spread_ms(self._late),
            "answers_ms": spread_ms(self._answers),
            "least_left_s": self._least_left,
        }

    def _hindrance_told(self) -> str:
        """Why nobody should count on this node now; '' when somebody may."""
        mark, why = self._unfenced
        if why and mark == self.lease.hard.mark:  # tried again and again; whoever opens an epoch ends it
            return why
        return self._hindered or self.lease.waits() if self.lease.phase is Phase.STANDBY else ""

    def _layers(self) -> list[dict[str, Any]]:
        """What ends this node's services when nothing of ours can (rule 4): each with whether it is live."""
        takeover, units = self.takeover(), self._units or []
        usable = self._watchdog is not None and self._watchdog.is_usable
        return layers(
            has_address=self.address is not None,
            units=units,
            bound=own_unit(),
            watched=self._systemd.watches,
            device=takeover.watchdog if usable else "",
            fence=takeover.fence_hook,
            guards=self._guards,
        )

    async def _switch(self, args: dict[str, Any], report: Any) -> dict[str, Any]:
        """Begin to hand over; who asks for the same twice is told of the one that is under way."""
        successor = str(args["to"])
        async with self._switching:
            if self.lease.phase is Phase.HANDING:
                other = self.lease.successor
                if other != successor:
                    why = f"It is being handed over to {other}."
                    hint = "Wait until that has ended."
                    raise CrnodeError(f"There was no switch to {successor}.", why, hint, ExitCode.REFUSED)
            elif self._handed_to != successor:
                await self._begin_switch(successor)
        return {"to": successor}

    async def _begin_switch(self, successor: str) -> None:
        self._read_document()  # what was said a moment ago counts
        for _ in range(int(ABLE_SECONDS / TICK_SECONDS) if successor in self.links else 0):
            if self._is_able(successor):
                break
            await asyncio.sleep(TICK_SECONDS)  # what it can it tells now and then
        else:
            raise CrnodeError(
                f"{successor} cannot take over now.",
                "Its keeper does not answer, or it is not able to serve.",
                "Look at it with: crnode takeover status",
                ExitCode.REFUSED,
            )
        if self.lease.phase is Phase.ACTIVE and (not self.is_up or self.tending.is_busy):
            raise CrnodeError(
                f"There was no switch to {successor}.",
                "The services are being started here.",
                "Repeat it in a moment.",
                ExitCode.REFUSED,
            )
        if self.takeover().sets and self.lease.phase is Phase.ACTIVE:
            args = {"to": successor, "epoch": epoch_number(*self.lease.epoch)}
            await self.ask_agent("takeover.ready-for", args, ANSWER_SECONDS)
        answer = await self.tending.with_vote(successor)
        if isinstance(answer, str):
            raise CrnodeError(f"There was no switch to {successor}.", answer, "", ExitCode.REFUSED)
        self._taken_back = self._handed_to = ""
        self.do(answer)

    def _is_able(self, name: str) -> bool:
        link = self.links.get(name)
        return link is not None and link.is_there and link.able

    async def _campaign_call(self, args: dict[str, Any], report: Any) -> dict[str, Any]:
        """A person wants this node to be active as soon as the lease is free."""
        self._asked, self._able = True, ""
        self.tending.forget()
        return {"node": self.node.name}

    async def _force(self, args: dict[str, Any], report: Any) -> dict[str, Any]:
        """A person has switched the others off: this node goes on alone, in a later generation (rule 28).
        `accept_loss`: even with data that is not what was served last."""
        answer = self.lease.force(self.descent, accept_loss=bool(args.get("accept_loss")))
        if isinstance(answer, str):
            raise CrnodeError("This node was not made active by force.", answer, "", ExitCode.REFUSED)
        self._off = frozenset(str(name) for name in args.get("off", ()))
        self.do(answer)
        return await self._campaign_call(args, report)

    async def _alone(self, args: dict[str, Any], report: Any) -> dict[str, Any]:
        """A person says that no other node was made active by force (rule 12)."""
        voters = [voter.name for voter in self.lease.hard.config.voters]
        if len(voters) > 1:
            raise CrnodeError(
                f"{self.node.name} is not made active by your word alone.",
                f"{', '.join(voters)} vote, and a majority of them says who is active.",
                "To let this node take over when nobody is active: crnode failover",
                ExitCode.REFUSED,
            )
        self.lease.activate_alone()
        return await self._campaign_call(args, report)


def spread_ms(seconds: Iterable[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum, in ms; {} of nothing."""
    found = sorted(seconds)
    if not found:
        return {}
    p50, p99 = found[len(found) // 2], found[len(found) * 99 // 100]
    return {"p50": p50 * 1000, "p99": p99 * 1000, "max": found[-1] * 1000}


__all__ = ["SOCKET", "Keeper", "keeper_address", "spread_ms"]
