"""What a story is played on: machines, a network with exact delays, and what has to be so at every instant.

Nothing is left to chance here, and nothing goes wrong unless somebody says so; :mod:`crnode.sim.scenario` is
how it is said. What is modelled of a machine is what :mod:`crnode.sim.world` models, with these differences:
a keeper ticks twenty times a second, and in the very instant in which its core wants it; clocks are wrong by
as much as was said; of the data nothing is known but the opened epoch that it descends from.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from crnode.failover.lease import Lease, Phase
from crnode.failover.machine import Facts, hindrance, next_voters
from crnode.failover.terms import (
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
    Effect,
    Epoch,
    Extend,
    Fence,
    Gather,
    Grant,
    Hard,
    Message,
    Moment,
    No,
    PreVote,
    PreVoted,
    Release,
    Renew,
    Save,
    Say,
    Send,
    Serve,
    Stop,
    at_most,
)
from crnode.sim.world import Violation

MS = SECOND // 1000
BEAT_NS = 50 * MS  # a keeper looks so often whether it should do something
GATHER_NS = 100 * MS  # what agents need to gather,
COMMIT_NS = 10 * MS  # ... and to commit the opening image
ALIVE_NS = SECOND  # keepers tell each other so often what they know
COPY_NS = 500 * MS  # a serving node's data reaches the others so often
MILLION = 1_000_000
LEASES = {"lan": (LAN, LAN_LEASE_NS), "wan": (WAN, WAN_LEASE_NS)}
class Copy(NamedTuple):
    """What agents send: data that descends from that epoch."""

    data: Epoch


class Box:
    """One machine."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.lives = 1  # of its vote file
        self.inc = name.encode()
        self.hard: Hard | None = None
        self.lease: Lease | None = None  # None: it is down
        self.generation = 0  # of its keeper: what was meant for an earlier one is dropped
        self.started = Moment(0, 0)
        self.rate = MILLION  # of both clocks
        self.base = (0, Moment(number * 1000 * SECOND, number * 777 * SECOND))  # what they said at that time
        self.chance = 0.5
        self.ticks = 0  # number of the timer that counts
        self.frozen = False
        self.waiting: list[Callable[[], None]] = []  # what came while it stood still
        self.running = False  # the services
        self.address = False
        self.until: tuple[Moment, int] | None = None  # the address ends by itself so long after
        self.data = NO_EPOCH
        self.auto = False
        self.asked = self.released = False  # by a person; the last holder named this node
        self.able = True
        self.takeovers: list[Moment] = []
        self.served = NO_EPOCH
        self.told: dict[str, str] = {}

    def draw(self) -> float:
        return self.chance

    def moment(self, now: int) -> Moment:
        since, (boot, raw) = self.base
        passed = (now - since) * self.rate // MILLION
        return Moment(boot + passed, raw + passed)

    def after(self, wait: int) -> int:
        """In how many ns its clocks have gone on by `wait`."""
        return -(-wait * MILLION // self.rate)


class Stage:
    """See the module's text. `core` makes the keepers' cores: another one breaks a rule on purpose."""

    def __init__(self, core: type[Lease] = Lease) -> None:
        self.now = 0
        self.lines: list[str] = []
        self._core = core
        self._boxes: dict[str, Box] = {}
        self._voters: list[Box] = []
        self._candidates: list[Box] = []
        self._timers, self._lease_ns = LAN, LAN_LEASE_NS
        self._begun = False
        self._events: list[tuple[int, int, Callable[..., None]]] = []
        self._counter = 0
        self._delay = MS
        self._delays: dict[tuple[str, str], int] = {}
        self._cut: set[tuple[str, str]] = set()
        self._drops: list[tuple[type | None, str, str]] = []
        self._traced = False
        self._shown: set[tuple[object, ...]] = set()
        self._asked: dict[tuple[str, int], Message] = {}  # who asked, nonce -> the question
        self._wanted: tuple[str, ...] = ()
        self._opened = NO_EPOCH  # the newest that was served
        self._parents: dict[Epoch, Epoch] = {}  # what the data descended from that opens an epoch

    def say(self, text: str) -> None:
        self.lines.append(f"{self.now // MS / 1000:9.3f}  {text}")

    # -- time

    def at(self, wait: int, work: Callable[..., None], *args: Any) -> None:
        self._counter += 1
        due: Callable[..., None] = partial(work, *args)
        heapq.heappush(self._events, (self.now + wait, self._counter, due))

    def run(self, lasts: int) -> None:
        end = self.now + lasts
        while self._events and self._events[0][0] <= end:
            self.now, _, work = heapq.heappop(self._events)
            work()
            self.check()
        self.now = end
        self.check()

    # -- what has to be so at every instant

    def check(self) -> None:
        boxes = list(self._boxes.values())
        holders = [box for box in boxes if self._holds(box)]
        serving = [box for box in boxes if self._serves(box)]
        for found, what in ((serving, "serve at the same time"), (holders, "both hold a lease")):
            if len(found) > 1:
                raise Violation(f"{found[0].name} and {found[1].name} {what}.")
        if serving and serving != holders:
            raise Violation(f"{serving[0].name} serves and holds no lease.")

    def _holds(self, box: Box) -> bool:
        return box.lease is not None and box.lease.holds and box.lease.left(box.moment(self.now)) > 0

    def _serves(self, box: Box) -> bool:
        """Whether clients are answered: the address is on, and the kernel has not ended it."""
        if box.lease is None or not box.running or not box.address or box.until is None:
            return False
        return at_most(box.until[0], box.moment(self.now)) < box.until[1]

    def _active(self) -> Box | None:
        """Who is active; one that stands still is it no more when its lease is over."""
        for box in self._boxes.values():
            if box.lease is not None and box.lease.phase is Phase.ACTIVE and self._holds(box):
                return box
        return None

    # -- keepers

    def _beat(self, box: Box, generation: int) -> None:
        """What a keeper does twenty times a second: is it time for anything, is there anything to begin?"""
        lease = box.lease
        if lease is None or box.generation != generation:
            return
        self.at(BEAT_NS, self._beat, box, generation)
        if box.frozen:
            return
        self._tick(box)
        if box.auto and lease.phase is Phase.STANDBY:
            self._consider(box, lease)
        elif self._wanted and lease.phase is Phase.ACTIVE:
            heard = {one.name: one.inc for one in self._boxes.values() if self._hears(box, one)}
            config = next_voters(lease.hard.config, self._wanted, heard, box.name)
            if config is not None:
                self._change_to(box, config)

    def _tell_alive(self, box: Box, generation: int) -> None:
        if box.lease is None or box.generation != generation:
            return
        self.at(ALIVE_NS, self._tell_alive, box, generation)
        if not box.frozen:
            for other in self._boxes.values():
                if other is not box:
                    lease = box.lease
                    self._send(box, other.name, Alive(0, box.able, lease.hard.config, lease.opened))

    def _consider(self, box: Box, lease: Lease) -> None:
        now = box.moment(self.now)
        mark = lease.hard.mark
        owner = next((self._boxes[n] for n, slot in lease.hard.config.slots if slot == mark.slot), box)
        box.released = lease.released == (lease.hard.epoch, box.name)
        facts = Facts(
            box.name,
            "lan" if self._timers is LAN else "wan",
            box.started,
            "" if box.able else "a person said so",
            owner.able or not self._hears(box, owner),
            tuple(box.takeovers),
            box.asked or box.released,
        )
        why: list[Effect] | str = hindrance(facts, lease, now) or lease.campaign(box.data, now)
        if isinstance(why, str):
            self._say_once(box, "campaign", f"{box.name} does not campaign: {why}")
        else:
            box.told.pop("campaign", None)
            self._campaigns(box, why)

    def _change_to(self, box: Box, config: Config) -> None:
        assert box.lease is not None
        answer = box.lease.change(config, box.moment(self.now))
        if isinstance(answer, str):
            self._say_once(box, "voters", f"{box.name} leaves the voters as they are: {answer}")
            return
        self._say_once(box, "voters", f"{box.name} changes the voters to {self._names(config)}")
        self._do(box, answer)

    def _campaigns(self, box: Box, effects: list[Effect]) -> None:
        self.say(f"{box.name} campaigns with data of {box.data}")
        self._do(box, effects)

    def _hears(self, box: Box, other: Box) -> bool:
        return other.lease is not None and not other.frozen and (other.name, box.name) not in self._cut

    def _say_once(self, box: Box, about: str, text: str) -> None:
        """When it is another sentence than before; that seconds went by is no other one."""
        plain = re.sub(r"\b\d+ s\b", "", text)
        if box.told.get(about) != plain:
            box.told[about] = plain
            self.say(text)

    def _tick(self, box: Box) -> None:
        if box.lease is not None and not box.frozen:
            self._do(box, box.lease.tick(box.moment(self.now)))

    def _timer(self, box: Box, generation: int, number: int) -> None:
        if (box.generation, box.ticks) == (generation, number):
            self._tick(box)

    def _set_timer(self, box: Box) -> None:
        """The next tick: in the very instant in which there is something to do."""
        box.ticks += 1
        wait = box.lease.wake_in(box.moment(self.now)) if box.lease is not None else None
        if wait is not None:
            self.at(box.after(wait), self._timer, box, box.generation, box.ticks)

    def _do(self, box: Box, effects: list[Effect]) -> None:
        for effect in effects:
            self._one(box, effect)
        self._set_timer(box)

    def _one(self, box: Box, effect: Effect) -> None:
        name, lease = box.name, box.lease
        assert lease is not None
        if isinstance(effect, Send):
            self._send(box, effect.to, effect.message)
        elif isinstance(effect, Save):
            self._save(box, effect.hard)
        elif isinstance(effect, Say):
            self.say(f"{name}: {effect.text}")
        elif isinstance(effect, Fence):
            self.say(f"{name} fences: {effect.why}")
            box.running = box.address = False
        elif isinstance(effect, AddressOff):
            self.say(f"{name} takes its address off: {effect.why}")
            box.address = False
        elif isinstance(effect, AddressOn):
            self.say(f"{name} has its address again")
            box.address = box.running
        elif isinstance(effect, Extend):
            self._extend(box, effect.left_ns)
        elif isinstance(effect, Gather):
            self.say(f"{name} gathers what others have")
            self.at(GATHER_NS, self._gathered, box, box.generation, effect.epoch)
        elif isinstance(effect, CommitOpening):
            self.at(COMMIT_NS, self._committed, box, box.generation, effect.epoch)
        elif isinstance(effect, Serve):
            self._serve(box, lease, effect.epoch)
        elif isinstance(effect, Stop):
            self.say(f"{name} stops its services for {effect.successor}")

    def _save(self, box: Box, hard: Hard) -> None:
        before, box.hard = box.hard, hard
        assert before is not None
        if (before.epoch, before.to) != (hard.epoch, hard.to):
            self.say(f"{box.name} promises epoch {hard.epoch} to {hard.to}")
        if before.mark != hard.mark:
            self.say(f"{box.name} notes the mark {hard.mark}")
        if before.config.voters != hard.config.voters:
            self.say(f"{box.name} knows as voters {self._names(hard.config)}")

    def _names(self, config: Config) -> str:
        """Who votes; one that came back as somebody else has a tick for each time."""
        ticks = {voter: voter.incarnation.removeprefix(voter.name.encode()) for voter in config.voters}
        return " ".join(voter.name + "'" * (int(life or b"1") - 1) for voter, life in ticks.items())

    def _thaw(self, box: Box, generation: int) -> None:
        if box.generation != generation or not box.frozen:
            return
        box.frozen = False
        self.say(f"{box.name} goes on")
        came, box.waiting = box.waiting, []
        self._tick(box)
        for work in came:
            work()

    def _when_awake(self, box: Box, generation: int, work: Callable[[], None]) -> None:
        """Do it now, or when the keeper goes on; not at all when it is another one meanwhile."""
        if box.lease is None or box.generation != generation:
            return
        if box.frozen:
            box.waiting.append(partial(self._when_awake, box, generation, work))
        else:
            work()

    def _gathered(self, box: Box, generation: int, epoch: Epoch) -> None:
        def work() -> None:
            if box.lease is not None and box.lease.epoch == epoch:
                self._do(box, box.lease.gathered(box.moment(self.now)))

        self._when_awake(box, generation, work)

    def _committed(self, box: Box, generation: int, epoch: Epoch) -> None:
        def work() -> None:
            if box.lease is not None and box.lease.epoch == epoch:
                self._parents[epoch], box.data = box.data, epoch
                self.say(f"{box.name} has committed the image that opens epoch {epoch}")
                self._do(box, box.lease.committed(box.moment(self.now)))

        self._when_awake(box, generation, work)

    # -- serving

    def _serve(self, box: Box, lease: Lease, epoch: Epoch) -> None:
        self.say(f"{box.name} serves epoch {epoch}")
        if not box.asked and not box.released and epoch != box.served:
            box.takeovers.append(box.moment(self.now))
        again = epoch == box.served  # a switch was taken back
        box.asked, box.released, box.served = False, False, epoch
        if epoch != self._opened:
            parent = self._parents[epoch]
            if epoch < self._opened or parent < self._opened:
                was = f"and {self._opened} was opened before"
                raise Violation(f"{box.name} opens epoch {epoch} with data of {parent}, {was}.")
            self._opened = epoch
        box.running, box.address = True, not lease.doubts
        self._extend(box, lease.left(box.moment(self.now)))
        if not again:
            self._copy(box, box.generation, epoch)

    def _extend(self, box: Box, left: int) -> None:
        box.until = (box.moment(self.now), left)
        self.at(box.after(left), self._lapse, box, box.until)

    def _lapse(self, box: Box, until: tuple[Moment, int]) -> None:
        if box.until != until or not box.address:
            return
        left = until[1] - at_most(until[0], box.moment(self.now))
        if left > 0:  # its clock was set meanwhile
            self.at(box.after(left), self._lapse, box, until)
            return
        box.address = False
        self.say(f"{box.name}'s address ends by its lifetime")

    def _copy(self, box: Box, generation: int, epoch: Epoch) -> None:
        """What the active node has reaches the others."""
        if box.generation != generation or box.lease is None or box.lease.epoch != epoch or not box.running:
            return
        self.at(COPY_NS, self._copy, box, generation, epoch)
        if self._serves(box):
            for other in self._boxes.values():
                if other is not box:
                    self._send(box, other.name, Copy(box.data))

    # -- network

    def _send(self, box: Box, to: str, message: Message | Copy) -> None:
        if isinstance(message, Release) and box.running:
            raise Violation(f"{box.name} releases its lease while its services run.")
        if isinstance(message, PreVote | Grant | Renew):
            self._asked[box.name, message.nonce] = message
        way = (box.name, to)
        if not isinstance(message, Copy):
            for drop in self._drops:
                if drop[1:] == way and drop[0] in (None, type(message)):
                    self._drops.remove(drop)
                    self.say(f"{box.name} -> {to}  {_text(message)} (dropped)")
                    return
        self.at(self._delays.get(way, self._delay), self._arrive, box.name, box.inc, to, message)

    def _arrive(self, sender: str, inc: bytes, to: str, message: Message | Copy) -> None:
        box = self._boxes[to]
        if box.lease is None or (sender, to) in self._cut:
            self._show(sender, to, message, " (lost)")
            return
        self._when_awake(box, box.generation, partial(self._take, box, sender, inc, message))

    def _take(self, box: Box, sender: str, inc: bytes, message: Message | Copy) -> None:
        assert box.lease is not None
        if isinstance(message, Copy):
            if message.data > box.data:
                box.data = message.data
                self.say(f"{box.name} has data of {box.data}")
            return
        self._show(sender, box.name, message, "")
        if isinstance(message, Alive):
            self._do(box, box.lease.heard(sender, message.config, message.mark))
            return
        self._do(box, box.lease.receive(sender, inc, message, box.moment(self.now)))

    def _show(self, sender: str, to: str, message: Message | Copy, fate: str) -> None:
        """Say what arrived, or was lost; what goes on all the time only when it is asked for."""
        if isinstance(message, Copy):
            return
        text = f"{sender} -> {to}  {_text(message)}{fate}"
        if not self._traced:
            if isinstance(message, PreVote | Renew | Alive):
                return
            about: object = None
            if isinstance(message, PreVoted):
                about = message.nonce
            elif isinstance(message, No):
                asked = self._asked[to, message.nonce]
                about = asked.epoch if isinstance(asked, Grant | Renew) else None
            if (sender, to, text, about) in self._shown:
                return
            self._shown.add((sender, to, text, about))
        self.say(text)


def _text(message: Message) -> str:
    if isinstance(message, PreVoted):
        return "would promise" if message.yes else "would not promise"
    if isinstance(message, No):
        return f"No, {message.epoch} is promised to {message.to}" if message.to else "No, nothing is promised"
    if isinstance(message, PreVote):
        return f"PreVote with data of {message.data}"
    if isinstance(message, Alive):
        return "Alive"
    text = f"{type(message).__name__} {message.epoch}"
    if isinstance(message, Grant):
        return f"{text} with data of {message.data}"
    if isinstance(message, Release):
        return f"{text} to {message.successor}"
    return text


def seconds(ns: int) -> str:
    return f"{ns // MS / 1000:.3f} s"


__all__ = ["Box", "Stage", "seconds"]
