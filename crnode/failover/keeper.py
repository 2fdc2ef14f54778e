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
from crnode.failover.controls import Place, write_drop_ins
from crnode.failover.fence import Address, drop_by_hook, run_hook
from crnode.failover.guard import Systemd, Watchdog, lock_memory, run_first, spare_memory
from crnode.failover.layers import layers
from crnode.failover.lease import Lease, Phase
from crnode.failover.links import Link, keeper_address, tune
from crnode.failover.machine import Facts, hindrance, next_voters, sentence
from crnode.failover.services import Services
from crnode.failover.terms import (
    GENERATION_BITS,
    LAN,
    LAN_LEASE_NS,
    NO_EPOCH,
    SECOND,
    WAN,
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
VOTE_SECONDS = 5.0  # for a node that is to vote to be one of the voters
FORGIVEN_SECONDS = 600.0  # after which a failure of a service, or of this node to serve, counts no more
HAND_OVERS, HAND_OVER_SECONDS = 2, 3600.0  # that a service may cause, within so long (rule 24)
ALL_DATA = Epoch(1 << 62, 0)
"""Where no set moves with the lease: whatever was opened, nothing of it is missing here."""
AGENT_SOCKET = "control.sock"
HOOK_AGAIN_SECONDS = 2.0
ENDED_SECONDS = 1.0  # within which what was killed is gone
STEPS = {"takeover.gather": "made its data ready", "takeover.open": "opened the epoch"}
ASK_SECONDS = 1.0  # between two questions to the agent about its data
ANSWER_SECONDS = 2.0  # it has as long to answer
STALE_SECONDS = 4.0  # what it said counts for so long
SILENT_SECONDS = 10.0  # it works on what it was asked to do, and says so each second

_DIGITS = re.compile(r"\d+")
log = logging.getLogger("crnode.keeper")


def moment() -> Moment:
    """The two clocks of this machine (clock_gettime(2))."""
    return Moment(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW))


class Keeper:
    """See the module's text."""

    def __init__(self, data: Path, chance: Callable[[], float] = random.random) -> None:
        self.data = data
        self.node = read_node_file(data)
        self.document: ClusterDocument = read_document(data)
        self.client = client_context(data)
        self.server = server_context(data)
        self.votes = VoteFile(data / NAME)
        self.started = moment()
        self.takeovers: list[Moment] = []
        self.links: dict[str, Link] = {}
        self.address: Address | None = None
        self.services = Services((), Place(data, f"{self.document.id[:8]}-{self.node.name}"), self.say)
        self._systemd = Systemd(dict(os.environ))
        self._watchdog: Watchdog | None = None
        self._veto: Veto | None = None
        self._reach = ThreadPoolExecutor(1, "reach")
        self._asking: asyncio.Task[None] | None = None
        self._guards: dict[str, bool] = {}  # of this process: which the system allowed
        self._units: list[str] = []  # whose drop-ins are written
        self._steps: list[tuple[str, float]] = []  # of the takeover under way, and their seconds
        self._hooked = False  # the owner's command has moved the address to here
        self._home_since: float | None = None  # when the node that is home was able, and has been since
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._asked = False  # a person wants this node to be active
        self._taken_back = ""  # why the last switch was
        self._released = False  # the last holder named this node
        self._up = False  # the services are started: the address may be held
        self._failures: dict[str, list[float]] = {}  # service -> when it failed
        self._handed: list[float] = []  # when a service made another node serve
        self._unable_since = 0.0
        self._broken: BaseException | None = None  # of what ran beside
        self._served = NO_EPOCH
        self._mending = False  # a service is being started again
        self._settled = asyncio.Event()  # no change of the voters is under way
        self._voting = ""  # who is given a vote, to be able to take over (rule 12)
        self._active: ActiveAnswer | None = None
        self._told: dict[str, str] = {}
        self._document_read = 0.0
        self._alive_sent = 0.0
        self._able = ""  # why this node has not been able to serve, of itself
        self._data: tuple[float, Epoch, str] = (0.0, NO_EPOCH, "its agent has not answered yet")
        self._agent = ThreadPoolExecutor(4, "agent")
        self._late: deque[float] = deque(maxlen=DELAYS_MOST)  # s from tick to tick, beyond what was asked
        self._answers: deque[float] = deque(maxlen=DELAYS_MOST)  # s from a renewal to its answer
        self._least_left: float | None = None  # of the lease, as a tick found it, since this node is active
        timers = WAN if self._takeover().network == "wan" else LAN
        self.lease = Lease(self.node.name, self.votes.hard, timers, chance, time.time_ns())
        self._found()

    def _takeover(self) -> Takeover:
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
        takeover, hard = self._takeover(), self.votes.hard
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
        self._later(self._ask_data())
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
        takeover = self._takeover()
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
            self.address = Address(str(takeover.address), takeover.interface, self.say) if here else None
        is_candidate = self.node.name in takeover.candidates  # a witness has units of its own, maybe
        self.services.configure(takeover.services if is_candidate else ())
        units = [service.unit for service in self.services.services if service.unit]
        if units != self._units:
            self._units = units
            self._later(self._write_drop_ins(units))
        path = takeover.watchdog if is_candidate else ""
        if self._watchdog is None or self._watchdog.path != path:
            if self._watchdog is not None:
                self._watchdog.disarm()
            self._watchdog = Watchdog(path, self.say) if path else None
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
            self._document_read = clock
            with contextlib.suppress(CrnodeError):
                document = read_document(self.data)
                if document.version != self.document.version and document.takeover is not None:
                    self.document = document
                    self._configure()
        if self.lease.phase is Phase.ACTIVE:
            left = self.lease.left(now) / SECOND
            self._least_left = left if self._least_left is None else min(left, self._least_left)
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
                self._settled.set()
            self._keep_voters(now)
            self._watch()
            self._go_home(clock)
            if self.address is not None:
                self.address.announce_more()
        self._feed()

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

    def _consider(self, now: Moment) -> None:
        """Whether to campaign, with the reason for people."""
        mark = self.lease.hard.mark
        owner = next((name for name, slot in self.lease.hard.config.slots if slot == mark.slot), "")
        link = self.links.get(owner)
        owner_able = link is None or not link.is_there or link.able
        self._released = self.lease.released == (self.lease.hard.epoch, self.node.name)
        asked = self._asked or self._released
        facts = Facts(
            self.node.name, self._takeover().network, self.started, self._why_not(), owner_able,
            tuple(self.takeovers), asked, self._veto.forbids if self._veto is not None else "",
        )  # fmt: skip
        why = hindrance(facts, self.lease, now)
        if not why:
            answer = self.lease.campaign(self._data[1] if self._takeover().sets else ALL_DATA, now)
            if isinstance(answer, str):
                why = answer
            else:
                self.do(answer)
        self.say_once("campaign", f"No campaign: {why}" if why else "")

    def _keep_voters(self, now: Moment) -> None:
        there = {name: link for name, link in self.links.items() if link.is_there and link.incarnation}
        heard = {name: link.incarnation for name, link in there.items()}
        heard[self.node.name] = self.lease.hard.incarnation
        takeover, config = self._takeover(), self.lease.hard.config
        if self._voting:
            return
        wanted = next_voters(config, takeover.voters, heard, self.node.name)
        known = dict(config.slots)
        new = [name for name in takeover.candidates if name not in known]
        if new:  # a slot is never given to another node
            last = max(known.values(), default=0)
            slots = (*config.slots, *((name, last + 1 + at) for at, name in enumerate(new)))
            wanted = (wanted or config)._replace(slots=slots)
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
        finally:
            writer.close()

    def _take(self, name: str, envelope: wire.Envelope) -> None:
        if envelope.cluster.hex() != self.document.id or (link := self.links.get(name)) is None:
            return
        link.heard, link.incarnation = time.monotonic(), envelope.incarnation
        if type(envelope.message) is Alive:
            link.able = envelope.message.able
            self.do(self.lease.heard(name, envelope.message.config, envelope.message.mark))
            return
        if type(envelope.message) is Ok and (sent := link.renewals.pop(envelope.message.nonce, None)):
            self._answers.append(link.heard - sent)
        self.do(self.lease.receive(name, envelope.incarnation, envelope.message, moment()))

    # -- effects

    def do(self, effects: list[Effect]) -> None:
        """Carry out what was decided, in its order. A vote file that cannot be written ends the keeper:
        nothing that depends on it is said."""
        for effect in effects:
            kind = type(effect)
            if kind is Save:
                self.votes.save(effect.hard)  # type: ignore[union-attr]
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
            elif kind is Gather:
                self._later(self._gathered())
            elif kind is CommitOpening:
                self._later(self._committed())
            elif kind is Serve:
                self._later(self._serve(effect.epoch))  # type: ignore[union-attr]
            elif kind is Stop:
                self._later(self._hand_over(effect.successor))  # type: ignore[union-attr]
            elif kind is Say:
                self.say(effect.text)  # type: ignore[union-attr]

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """What could not be done as it was decided ends the keeper, which fences: better nobody than two."""
        self._running.discard(task)
        if not task.cancelled() and self._broken is None:
            self._broken = task.exception()

    def _fence(self, why: str) -> None:
        if self._up:
            self.say(f"Fence: {why}")
        self._address_off()
        self.services.kill()
        self._up = False

    def _address_off(self) -> None:
        if self.address is not None:
            self.address.off()
        if self._hooked:
            self._hooked = False
            drop_by_hook(self._takeover().address_hook, self._takeover().address or "", self.node.name)

    def _hold(self) -> None:
        """Have the address for as long as the lease is held, if it may be had at all (H5)."""
        lease = self.lease
        if self.address is None or not self._up or lease.phase is not Phase.ACTIVE or lease.doubts:
            return
        self.address.hold(lease.left(moment()) / SECOND)
        if lease.left(moment()) <= 0:  # it ended while that was done
            self._address_off()

    def _still(self, epoch: Epoch) -> bool:
        lease = self.lease
        return lease.epoch == epoch and lease.serves and lease.left(moment()) > lease.timers.stop_ns

    # -- what the agent does with the data

    async def _ask_agent(self, what: str, args: dict[str, Any], seconds: float) -> dict[str, Any]:
        """A control call of this node's agent. Raises CrnodeError."""
        work = partial(call, self.data / AGENT_SOCKET, what, args, None, seconds)
        return await asyncio.get_running_loop().run_in_executor(self._agent, work)

    async def _ask_data(self) -> None:
        """Know what the agent has, as long as this runs."""
        while True:
            if self._takeover().sets:
                try:
                    answer = await self._ask_agent("takeover.state", {}, ANSWER_SECONDS)
                    data, why = Epoch(*map(int, answer["data"])), str(answer["why_not"])
                except (CrnodeError, KeyError, TypeError, ValueError) as error:
                    told = error.what if isinstance(error, CrnodeError) else repr(error)
                    data, why = self._data[1], f"its agent does not say what data it has: {told}"
                self._data = (time.monotonic(), data, why)
            await asyncio.sleep(ASK_SECONDS)

    def _why_not(self) -> str:
        """Why this node could not serve now; '' when it could."""
        if self._able or not self._takeover().sets:
            return self._able
        at, _, why = self._data
        return why if time.monotonic() - at < STALE_SECONDS else "its agent does not answer"

    async def _gathered(self) -> None:
        epoch = self.lease.epoch
        self._steps.clear()
        self._later(self._look_for_other())
        before = "" if self._released else self._active_before()
        if not await self._did("takeover.gather", epoch) or self.lease.epoch != epoch:
            return
        if before and (hook := self._takeover().fence_hook):
            why = await run_hook(hook, node=before, action="fence")
            if self.lease.epoch != epoch:
                return
            if why:
                self.say(f"{before} could not be switched off: {why}.")
                self.do(self.lease.abandon(f"{before} could not be switched off", moment()))
                return
            self.say(f"{before} was switched off by the owner's command.")
        self.do(self.lease.gathered(moment()))

    def _active_before(self) -> str:
        """The other node that opened the newest epoch, and may serve still."""
        hard = self.lease.hard
        names = (name for name, slot in hard.config.slots if slot == hard.mark.slot and hard.mark != NO_EPOCH)
        name = next(names, "")
        return name if name != self.node.name else ""

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

    async def _committed(self) -> None:
        epoch = self.lease.epoch
        if await self._did("takeover.open", epoch) and self.lease.epoch == epoch:
            self.do(self.lease.committed(moment()))

    async def _did(self, what: str, epoch: Epoch) -> bool:
        """Let the agent do a step towards this epoch; when it cannot, the epoch is left to others."""
        if not self._takeover().sets:
            return True
        now = time.monotonic()
        there = [name for name, link in self.links.items() if now - link.heard < LATELY_SECONDS]
        args = {"epoch": epoch_number(*epoch), "there": there}
        begun = time.monotonic()
        try:
            answer = await self._ask_agent(what, args, SILENT_SECONDS)
        except CrnodeError as error:
            if self.lease.epoch == epoch:
                self.say(f"{self.node.name} cannot serve: {error}")
                self.do(self.lease.abandon(f"{self.node.name} cannot serve: {error.what}", moment()))
            return False
        for text in answer.get("said", ()):
            self.say(text)
        self._steps.append((STEPS[what], time.monotonic() - begun))
        return True

    async def _serve(self, epoch: Epoch) -> None:
        if not self._asked and not self._released and epoch != self._served:
            self.takeovers.append(moment())
        self._least_left = None
        self._served = epoch  # once more in the same one: a switch was taken back
        self._asked = self._released = False
        self._failures.clear()
        self.say(f"{self.node.name} is active in epoch {epoch}.")
        begun = time.monotonic()
        if self._watchdog is not None:
            self._watchdog.arm()
        await self.services.start(lambda: self._still(epoch))
        if self._still(epoch):
            self._up = True
            self._hold()
            self._steps += [("started services", time.monotonic() - begun)]
            told = ", ".join(f"{name} in {seconds:.2f} s" for name, seconds in self._steps)
            self.say(f"{self.node.name} serves: it {told}.")
            self._steps.clear()
            if self._takeover().address_hook:
                self._later(self._take_by_hook(epoch))

    async def _take_by_hook(self, epoch: Epoch) -> None:
        """Let the owner's command bring the clients here, until it has."""
        takeover = self._takeover()
        while self._still(epoch) and self._up:
            self._hooked = True
            address = takeover.address or ""
            why = await run_hook(takeover.address_hook, action="take", address=address, node=self.node.name)
            self.say_once("hook", f"The command that moves the address failed: {why}." if why else "")
            if not why:
                self.say("The command that moves the address has done so.")
                return
            await asyncio.sleep(HOOK_AGAIN_SECONDS)

    async def _hand_over(self, successor: str) -> None:
        epoch = self.lease.epoch
        self._up = False
        stopped = await self.services.stop()
        why = "" if stopped else "the services did not stop"
        if not why and self._takeover().sets:
            try:
                await self._ask_agent("takeover.hand-over", {"to": successor}, SILENT_SECONDS)
            except CrnodeError as error:
                why = str(error)
        if self.lease.epoch != epoch or self.lease.phase is not Phase.HANDING:
            return
        link = self.links.get(successor)
        if not why and (link is None or not link.is_there or not link.able):
            why = "it does not answer, or is not able to serve"
        if why:
            self._taken_back = why
            self.say(f"The switch to {successor} is taken back: {why}.")
            self.do(self.lease.take_back())
            return
        self.do(self.lease.stopped(moment()))

    def _go_home(self, clock: float) -> None:
        """Hand back by itself, when the owner wants that and home has been able for so long."""
        wait, home = self._takeover().failback_s, self._home()
        link = self.links.get(home)
        if wait is None or link is None or not (link.is_there and link.able) or not self._up:
            self._home_since = None
        elif self._home_since is None:
            self._home_since = clock
        elif clock - self._home_since >= wait and not self._voting:
            self._home_since = clock  # if it comes to nothing, as long again
            self._later(self._hand_back(home))

    def _home(self) -> str:
        """The node that is active when all is well: whose the sets are that move, else the master."""
        names = self._takeover().sets
        homes = {spec.source for spec in self.document.sets if spec.name in names}
        return homes.pop() if len(homes) == 1 else self.document.master.name

    async def _hand_back(self, home: str) -> None:
        if self._takeover().sets:
            try:
                await self._ask_agent("takeover.ready-for", {"to": home}, ANSWER_SECONDS)
            except CrnodeError as error:
                self.say_once("home", f"{home} is not handed back to yet: {error}")
                return
        answer = await self._with_vote(home)
        if isinstance(answer, str):
            self.say_once("home", f"{home} is not handed back to yet: {answer}")
            return
        self.say(f"{home} has been able for {self._takeover().failback_s} s, and is to serve again.")
        self.do(answer)

    def _watch(self) -> None:
        """A service that does not serve is started again; one that goes on like that makes another node
        serve, if there is one that is able."""
        if not self._up or self._mending:
            return
        now = time.monotonic()
        for name, why in self.services.unsure():
            self.say_once(f"unsure {name}", f"The service {name}: {why}.")
        for spec, why in self.services.failed():
            recent = [at for at in self._failures.get(spec.name, []) if now - at < FORGIVEN_SECONDS]
            self._failures[spec.name] = [*recent, now]
            self._mending = True
            self._later(self._mend(spec.name, why, len(recent), again=len(recent) < spec.restarts))
            return

    async def _mend(self, name: str, why: str, before: int, *, again: bool) -> None:
        """Start a service again, or let another node serve, when that has everything and could."""
        epoch = self.lease.epoch
        try:
            if not again:
                held = await self._move_away(name, why)
                if not held:
                    return
                self.say_once("service", f"The service {name} fails again and again, and {held}.")
            self.say(f"The service {name} does not serve: {why}; it is started again.")
            if before:
                await asyncio.sleep(min(0.1 * 2**before, 5.0))
            if self._still(epoch) and name in self.services.running:
                await self.services.end(name)
            if self._still(epoch):
                await self.services.start(lambda: self._still(epoch))
        finally:
            self._mending = False

    async def _move_away(self, name: str, why: str) -> str:
        """Begin to hand over, because a service fails here; else why not."""
        now = time.monotonic()
        self._handed = [at for at in self._handed if now - at < HAND_OVER_SECONDS]
        if len(self._handed) >= HAND_OVERS:
            return f"it moved {HAND_OVERS} times within the hour"
        others = [n for n, link in self.links.items() if link.is_there and link.able]
        able = [n for n in others if self.lease.hard.config.slot(n) is not None]
        if not able:
            return "no other node is able"
        if self._takeover().sets:
            try:
                await self._ask_agent("takeover.ready-for", {"to": able[0]}, ANSWER_SECONDS)
            except CrnodeError as error:
                return f"{able[0]} cannot serve yet: {error}"
        answer = await self._with_vote(able[0])
        if isinstance(answer, str):
            return answer
        self._able, self._unable_since = f"its service {name} fails again and again: {why}", now
        self._handed.append(now)
        self.say(f"The service {name} fails again and again: {why}. {able[0]} is to serve.")
        self.do(answer)
        return ""

    async def _with_vote(self, successor: str) -> list[Effect] | str:
        """Begin to hand over to a node; where the active one votes alone, that one gets a vote before."""
        lease, link = self.lease, self.links[successor]
        if lease.phase is not Phase.ACTIVE or lease.hard.config.incarnation(successor) is not None:
            return lease.hand_over(successor)
        self._voting = successor
        try:
            config = lease.hard.config
            voters = tuple(sorted((*config.voters, Voter(successor, link.incarnation))))
            answer = lease.change(config._replace(voters=voters), moment())
            if isinstance(answer, str):
                return answer
            self.do(answer)
            async with asyncio.timeout(VOTE_SECONDS):
                self._settled.clear()
                await self._settled.wait()
            return lease.hand_over(successor)
        except TimeoutError:
            return f"{successor} was to vote, and did not answer in time."
        finally:
            self._voting = ""

    def _answer_active(self, port: int | None) -> None:
        """Answer load balancers on that port (rule 23)."""
        if self._active is not None and self._active.port != port:
            self._active.close()
            self._active = None
        if port is not None and self._active is None:
            self._active = ActiveAnswer(port, self._serves_for, self.say)
            self._later(self._active.run())

    def _serves_for(self) -> float:
        """For how many seconds this node is active yet; 0 when it is not, or not sure."""
        lease = self.lease
        if not self._up or lease.phase is not Phase.ACTIVE or lease.doubts:
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
            "layers": self._layers(),
            "able": not self._why_not(),
            "why_unable": self._able,
            "data": str(self._data[1]),
            "late_ms": spread_ms(self._late),
            "answers_ms": spread_ms(self._answers),
            "least_left_s": self._least_left,
        }

    def _layers(self) -> list[dict[str, Any]]:
        """What ends this node's services when nothing of ours can (rule 4): each with whether it is live."""
        takeover, units = self._takeover(), self._units
        return layers(
            has_address=self.address is not None,
            units=units,
            bound=own_unit(),
            watched=self._systemd.watches,
            device=takeover.watchdog,
            fence=takeover.fence_hook,
            guards=self._guards,
        )

    async def _switch(self, args: dict[str, Any], report: Any) -> dict[str, Any]:
        successor = str(args["to"])
        link = self.links.get(successor)
        if link is None or not link.is_there or not link.able:
            raise CrnodeError(
                f"{successor} cannot take over now.",
                "Its keeper does not answer, or it is not able to serve.",
                "Look at it with: crnode takeover status",
                ExitCode.REFUSED,
            )
        if self._takeover().sets and self.lease.phase is Phase.ACTIVE:
            await self._ask_agent("takeover.ready-for", {"to": successor}, ANSWER_SECONDS)
        answer = await self._with_vote(successor)
        if isinstance(answer, str):
            raise CrnodeError(f"There was no switch to {successor}.", answer, "", ExitCode.REFUSED)
        self._taken_back = ""
        self.do(answer)
        return {"to": successor}

    async def _campaign_call(self, args: dict[str, Any], report: Any) -> dict[str, Any]:
        """A person wants this node to be active as soon as the lease is free."""
        self._asked, self._able = True, ""
        self._failures.clear()
        return {"node": self.node.name}

    async def _force(self, args: dict[str, Any], report: Any) -> dict[str, Any]:
        """A person has switched the others off: this node goes on alone, in a later generation (rule 28).
        `accept_loss`: even with data that is not what was served last."""
        data = self._data[1] if self._takeover().sets else ALL_DATA
        answer = self.lease.force(data, accept_loss=bool(args.get("accept_loss")))
        if isinstance(answer, str):
            raise CrnodeError("This node was not made active by force.", answer, "", ExitCode.REFUSED)
        self.do(answer)
        return await self._campaign_call(args, report)

    async def _alone(self, args: dict[str, Any], report: Any) -> dict[str, Any]:
        """A person says that no other node was made active by force (rule 12)."""
        self.lease.activate_alone()
        return await self._campaign_call(args, report)


def spread_ms(seconds: Iterable[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum, in ms; {} of nothing."""
    found = sorted(seconds)
    if not found:
        return {}
    p50, p99 = found[len(found) // 2], found[len(found) * 99 // 100]
    return {"p50": p50 * 1000, "p99": p99 * 1000, "max": found[-1] * 1000}


__all__ = ["SOCKET", "Keeper", "keeper_address", "moment", "spread_ms"]
