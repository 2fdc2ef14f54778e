"""One world: nodes with clocks of their own, a network that loses, doubles and delays, and a day of bad luck.

Everything follows from one seed. Time is virtual, in ns; between two events nothing happens. A node is a
keeper (the :class:`~crnode.failover.lease.Lease`, its vote file) and what stands for an agent: a line of
images, of which the newest is kept over a crash. The active one makes images and sends them to the others,
which commit them, or do not (rule 20), and acknowledge.

What is modelled of a machine: a keeper that dies between any two effects, and starts again; a keeper that
stands still while the kernel goes on (the address ends by its lifetime, and after half a lease systemd ends
the services); a machine that sleeps (one of its clocks stands still, the other does not); clocks that are
wrong by one part in a hundred; a vote file whose last write is torn when its keeper dies in it.

Not modelled: a vote file that loses what was written durably (an assumption, and one of the ways to break
it), and a machine that is paused without its clocks knowing (rule 2 says what holds then).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from crnode.failover.lease import Lease, Phase
from crnode.failover.terms import (
    GENERATION_BITS,
    NO_EPOCH,
    SECOND,
    AddressOff,
    AddressOn,
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
    Release,
    Save,
    Say,
    Send,
    Serve,
    Stop,
    Timers,
    Voter,
)

MS = SECOND // 1000
WORST = (1 - 0.0099, 1 + 0.0099)


class Violation(Exception):
    """A promise was broken; the text says which, when and by whom."""


class Image(NamedTuple):
    """One state of the protected data: where it comes from, and the newest epoch that its line opens."""

    parent: int
    depth: int
    epoch: Epoch
    opens: Epoch


class Plan(NamedTuple):
    """What kind of world it is."""

    nodes: int
    voters: int
    lease_ns: int
    renew_ns: int
    troubled_ns: int  # so long things go wrong
    healed_ns: int  # ... and so long nothing does: at its end somebody has to be active
    loss: float
    doubled: float
    late: float  # share of messages that are late by up to `later_ns`
    later_ns: int
    eager: bool  # candidates try in the first instant in which nothing forbids it
    quick_ns: int  # a message takes so long at most when nothing is wrong
    troubles: tuple[float, ...]  # weights: kill, freeze, sleep, one way, slow, cut, switch, voters, force
    trouble_every_ns: int


class Node:
    """One machine."""

    __slots__ = (
        "acked", "address", "address_until", "asleep", "boot", "diverged", "drift", "fence", "frozen",
        "gathering", "generation", "hard", "inc", "index", "lease", "name", "newest", "raw", "running",
        "stopping", "thawed", "ticks", "up", "watched",
    )  # fmt: skip

    def __init__(self, index: int, chance: random.Random) -> None:
        self.index = index
        self.name = f"n{index}"
        self.inc = b"%016d" % index
        self.drift = (_rate(chance), _rate(chance))
        if chance.random() < 0.5:  # both as wrong as they may be, and the same way
            self.drift = (chance.choice(WORST),) * 2
        self.boot, self.raw = chance.randrange(10**12), chance.randrange(10**12)
        self.lease: Lease | None = None
        self.hard: Hard | None = None
        self.up = False
        self.frozen = 0  # until when; 0: it is not
        self.asleep = False  # ... and the whole machine with it
        self.generation = 0  # of its process: what was meant for an earlier life is dropped
        self.ticks = 0  # number of the timer that counts
        self.address = False
        self.address_until = 0
        self.running = False  # the services
        self.stopping = 0  # number of the stop under way
        self.newest = 0  # image, kept over crashes
        self.diverged: list[int] = []
        self.fence = NO_EPOCH
        self.gathering: dict[str, int] = {}
        self.acked = 0  # the newest image that another node acknowledged
        self.thawed: list[tuple[str, Any]] = []  # what came while it stood still
        self.watched = 0

    def moment(self, now: int) -> Moment:
        return Moment(int(now * self.drift[0]) + self.boot, int(now * self.drift[1]) + self.raw)


def _rate(chance: random.Random) -> float:
    """How fast a clock goes: off by a hundredth at most."""
    return chance.uniform(*WORST)


class World:
    """See the module's text. `lease` makes the keeper's core: another one breaks a rule on purpose."""

    def __init__(
        self, seed: int, lease: type[Lease] = Lease, trait: str = "", story: bool = False
    ) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.trait = trait
        self.now = 0
        self.events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.counter = 0
        self.told: list[str] | None = [] if story else None
        self.plan = self._plan()
        self._lease = lease
        self.timers = Timers(self.plan.renew_ns, 300 * MS * self.plan.lease_ns // (3 * SECOND))
        self.nodes = [Node(index, self.chance) for index in range(self.plan.nodes)]
        self.by_name = {node.name: node for node in self.nodes}
        self.images = [Image(0, 0, NO_EPOCH, NO_EPOCH)]
        self.opened: list[Epoch] = []  # by a majority, in the order of it
        self.openings: dict[Epoch, int] = {}  # epoch -> its opening image
        self.cut: set[tuple[int, int]] = set()
        self.slow: dict[tuple[int, int], int] = {}
        self.healed = False
        self.switched_off: set[int] = set()  # by a person, who made another node active by force
        self.forced = False  # ... just now: what it opens need not descend from what was opened before
        self.first_active: int | None = None
        self.actives = 0
        candidates = self.plan.nodes if self.plan.nodes < 4 else self.plan.nodes - 1
        config = Config(
            ConfigId(1, NO_EPOCH, 1),
            tuple(Voter(n.name, n.inc) for n in self.nodes[: self.plan.voters]),
            tuple((n.name, n.index + 1) for n in self.nodes[:candidates]),
            self.plan.lease_ns,
        )
        for node in self.nodes:
            node.hard = Hard(node.inc, NO_EPOCH, "", config, 0, NO_EPOCH)

    def _plan(self) -> Plan:
        chance = self.chance
        nodes = chance.choice((3, 3, 3, 4, 5))
        return Plan(
            nodes=nodes,
            voters=nodes if nodes != 4 else 3,
            lease_ns=3 * SECOND,
            renew_ns=SECOND // 2,
            troubled_ns=chance.randrange(8, 20) * SECOND,
            healed_ns=25 * SECOND,
            loss=chance.choice((0.0, 0.02, 0.1, 0.3)),
            doubled=chance.choice((0.0, 0.0, 0.05)),
            late=chance.choice((0.0, 0.02, 0.1, 0.5)),
            later_ns=chance.choice((SECOND, 3 * SECOND, 12 * SECOND)),
            eager=chance.random() < 0.5,
            quick_ns=chance.choice((2, 20)) * MS,
            troubles=(
                *(chance.choice((0.2, 1.0, 1.0, 4.0)) for _ in range(8)),
                chance.choice((0.0, 0.0, 0.0, 4.0)),
            ),
            trouble_every_ns=chance.randrange(700, 4000) * MS,
        )

    # -- time

    def at(self, delay: int, work: Callable[..., None], *args: Any) -> None:
        self.counter += 1
        heapq.heappush(self.events, (self.now + max(0, delay), self.counter, work, args))

    def say(self, text: str) -> None:
        if self.told is not None:
            self.told.append(f"{self.now / 1e9:9.3f}  {text}")

    def run(self) -> None:
        """Live to the end. Raises Violation."""
        for node in self.nodes:
            self.at(self.chance.randrange(2 * SECOND), self.boot, node)
        self.at(self.chance.randrange(SECOND), self.trouble)
        self.at(self.plan.troubled_ns, self.heal)
        end = self.plan.troubled_ns + self.plan.healed_ns
        events = self.events
        while events:
            at, _, work, args = heapq.heappop(events)
            if at > end:
                break
            self.now = at
            work(*args)
            if self.healed and self.active() is not None:
                break
        if self.active() is None:
            raise Violation(
                f"Nobody is active {self.plan.healed_ns / SECOND:.0f} s after everything was whole again."
            )

    def active(self) -> Node | None:
        for node in self.nodes:
            if node.up and node.lease is not None and node.lease.phase is Phase.ACTIVE and self.serves(node):
                return node
        return None

    # -- nodes

    def boot(self, node: Node) -> None:
        """A keeper starts, or starts again."""
        if node.up:
            return
        if node.index in self.switched_off:
            assert node.hard is not None
            voters = {int(voter.name[1:]) for voter in node.hard.config.voters}
            if len(voters) > 1 and len(voters & self.switched_off) >= node.hard.config.majority:
                return  # its word would be worth as much as a majority's: the person keeps it off
        if self.trait == "amnesia" and node.generation:
            assert node.hard is not None
            node.hard = Hard(node.inc, NO_EPOCH, "", node.hard.config, 0, NO_EPOCH)
        assert node.hard is not None
        node.up = True
        node.generation += 1
        node.lease = self._lease(
            node.name, node.hard, self.timers, self.chance.random, node.generation << 40
        )
        self.say(f"{node.name} starts")
        self.do(node, node.lease.start(node.moment(self.now)))
        if node.up:
            self.at(self.chance.randrange(SECOND), self.consider, node, node.generation)

    def kill(self, node: Node) -> None:
        """kill -9 of the keeper: systemd ends the services and the address goes with it."""
        if node.up:
            self.say(f"{node.name} dies")
            node.up, node.frozen, node.asleep, node.thawed = False, 0, False, []
            node.lease = None
            node.running = node.address = False

    def consider(self, node: Node, generation: int) -> None:
        """What the machine above the lease does: try to become active when nobody is."""
        if not node.up or node.generation != generation:
            return
        self.at(self.chance.randrange(500 * MS, 1300 * MS), self.consider, node, generation)
        if node.frozen or node.lease is None or node.lease.phase is not Phase.STANDBY:
            return
        moment = node.moment(self.now)
        node.lease.hear(node.fence)
        answer = node.lease.campaign(self.images[node.newest].opens, moment)
        if isinstance(answer, str):
            if self.plan.eager and 0 < (left := node.lease.promise_left(moment)) < SECOND:
                # In the first instant in which nothing forbids it: that is where a margin has to hold.
                self.at(int(left * 1.01) + self.chance.randrange(5 * MS), self.eager, node, generation)
            return
        self.say(f"{node.name} campaigns")
        self.do(node, answer)

    def eager(self, node: Node, generation: int) -> None:
        lease = self.lease_of(node, generation)
        if lease is None or node.frozen or lease.phase is not Phase.STANDBY:
            return
        answer = lease.campaign(self.images[node.newest].opens, node.moment(self.now))
        if not isinstance(answer, str):
            self.say(f"{node.name} campaigns at once")
            self.do(node, answer)

    def timer(self, node: Node) -> None:
        """Set the next tick."""
        assert node.lease is not None
        node.ticks += 1
        wait = node.lease.wake_in(node.moment(self.now))
        if wait is not None:
            self.at(wait * 102 // 100 + MS, self.tick, node, node.generation, node.ticks)

    def tick(self, node: Node, generation: int, number: int) -> None:
        if not node.up or node.generation != generation or node.ticks != number or node.frozen:
            return
        assert node.lease is not None
        self.do(node, node.lease.tick(node.moment(self.now)))

    def do(self, node: Node, effects: list[Effect]) -> None:
        """Carry out what a keeper decided, in order; it may die between any two of them."""
        dying = self.chance.random() < 0.002 and not self.healed and effects
        for number, effect in enumerate(effects):
            if dying and self.chance.random() < 0.5:
                if type(effect) is Save:
                    self.say(f"{node.name} dies while it writes its vote file: the other slot holds")
                self.kill(node)
                self.at(self.chance.randrange(50 * MS, 5 * SECOND), self.boot, node)
                return
            self._one(node, effect, effects, number)
            if not node.up:
                return
        self.timer(node)

    def _one(self, node: Node, effect: Effect, effects: list[Effect], number: int) -> None:
        kind = type(effect)
        if kind is Send:
            self.send(node, effect.to, effect.message)  # type: ignore[union-attr]
        elif kind is Save:
            node.hard = effect.hard  # type: ignore[union-attr]
        elif kind is Extend:
            self.extend(node, effect.left_ns)  # type: ignore[union-attr]
        elif kind is Fence:
            if node.running or node.address:
                self.say(f"{node.name} fences: {effect.why}")  # type: ignore[union-attr]
            node.running = node.address = False
        elif kind is AddressOff:
            self.say(f"{node.name} takes its address off: {effect.why}")  # type: ignore[union-attr]
            node.address = False
        elif kind is AddressOn:
            node.address = node.running
            self.check(node)
        elif kind is Gather:
            self.gather(node, effect.epoch)  # type: ignore[union-attr]
        elif kind is CommitOpening:
            took = self.chance.randrange(1 * MS, 30 * MS)
            epoch = effect.epoch  # type: ignore[union-attr]
            self.at(took, self.commit_opening, node, node.generation, epoch)
        elif kind is Serve:
            self.serve(node, effect.epoch)  # type: ignore[union-attr]
        elif kind is Stop:
            self.stop(node, effect.successor)  # type: ignore[union-attr]
        elif kind is Say and self.told is not None:
            self.say(f"{node.name}: {effect.text}")  # type: ignore[union-attr]

    # -- serving

    def serves(self, node: Node) -> bool:
        """Whether clients are answered: the address is on, and the kernel has not ended it."""
        return node.address and node.running and node.address_until > self.now

    def serve(self, node: Node, epoch: Epoch) -> None:
        assert node.lease is not None
        if epoch not in self.opened:
            self._open(node, epoch)
        self.say(f"{node.name} serves epoch {epoch}")
        node.running = node.address = True
        self.extend(node, node.lease.left(node.moment(self.now)))
        self.check(node)
        self.at(0, self.write, node, node.generation, epoch)

    def _open(self, node: Node, epoch: Epoch) -> None:
        """I4: what is opened descends from what was opened before."""
        image = self.openings[epoch]
        if self.opened:
            if epoch <= self.opened[-1]:
                raise Violation(f"{node.name} opens epoch {epoch} after {self.opened[-1]}.")
            last = self.opened[-1]
            if self.forced:
                self.forced = False
                self.say(f"{node.name} was forced, and serves what it has")
            elif not self.in_line(self.openings[last], image):
                raise Violation(f"{node.name} opens epoch {epoch}, whose data does not descend from {last}.")
        self.opened.append(epoch)

    def extend(self, node: Node, left: int) -> None:
        """The kernel ends the address by itself: it counts as its clocks do."""
        node.address_until = self.now + int(left / max(node.drift))
        if node.address:
            self.check(node)

    def check(self, node: Node) -> None:
        """I3 and P2: at no instant two leases, or two that serve."""
        lease = node.lease
        assert lease is not None
        for other in self.nodes:
            if other is node:
                continue
            if self.serves(node) and self.serves(other):
                raise Violation(f"{node.name} and {other.name} serve at the same time.")
            if (
                other.lease is not None
                and lease.holds
                and other.lease.holds
                and lease.left(node.moment(self.now)) > 0
                and other.lease.left(other.moment(self.now)) > 0
            ):
                raise Violation(f"{node.name} and {other.name} both hold a lease.")

    def write(self, node: Node, generation: int, epoch: Epoch) -> None:
        """The active node's data changes, and the change travels."""
        lease = node.lease
        if not node.up or node.generation != generation or lease is None or lease.epoch != epoch:
            return
        self.at(self.chance.randrange(200 * MS, 900 * MS), self.write, node, generation, epoch)
        if node.frozen or not self.serves(node):
            return
        if epoch >= node.fence:
            node.newest = self.image(node.newest, epoch)
            for other in self.nodes:
                if other is not node:
                    self.send(node, other.name, ("push", node.newest))

    def image(self, parent: int, epoch: Epoch, opens: Epoch | None = None) -> int:
        before = self.images[parent]
        opened = opens if opens is not None else before.opens
        self.images.append(Image(parent, before.depth + 1, epoch, opened))
        return len(self.images) - 1

    def in_line(self, old: int, new: int) -> bool:
        """Whether image `old` is `new` or an ancestor of it."""
        images = self.images
        depth = images[old].depth
        while images[new].depth > depth:
            new = images[new].parent
        return old == new

    def stop(self, node: Node, successor: str) -> None:
        """A planned switch: services stop in good order, which takes its time."""
        node.stopping += 1
        took = self.chance.randrange(20 * MS, 2500 * MS)
        self.say(f"{node.name} stops its services for {successor}")
        self.at(took, self.down, node, node.generation, node.stopping)
        self.at(took + MS, self.stopped, node, node.generation, node.stopping, successor)

    def down(self, node: Node, generation: int, number: int) -> None:
        lease = self.lease_of(node, generation)
        if lease is not None and node.stopping == number and lease.phase is Phase.HANDING:
            node.running = False

    def stopped(self, node: Node, generation: int, number: int, successor: str) -> None:
        if self.later(node, generation, self.stopped, number, successor):
            return
        lease = self.lease_of(node, generation)
        if lease is None or node.stopping != number or lease.phase is not Phase.HANDING:
            return
        other = self.by_name[successor]
        if self.chance.random() < 0.2 or other.newest != node.newest:  # S4: the successor has not everything
            self.say(f"{node.name} takes its services up again")
            node.running, node.address = True, not lease.doubts
            self.do(node, lease.take_back())
            return
        self.do(node, lease.stopped(node.moment(self.now)))

    def later(self, node: Node, generation: int, work: Callable[..., None], *args: Any) -> bool:
        """Whether the keeper stands still, and `work` is done when it goes on."""
        if node.up and node.generation == generation and node.frozen:
            self.at(100 * MS, work, node, generation, *args)
            return True
        return False

    def lease_of(self, node: Node, generation: int) -> Lease | None:
        """Of a keeper that is in the same life still."""
        return node.lease if node.up and node.generation == generation else None

    # -- gathering and opening

    def gather(self, node: Node, epoch: Epoch) -> None:
        node.gathering = {node.name: node.newest}
        node.fence = max(node.fence, epoch)
        for other in self.nodes:
            if other is not node:
                self.send(node, other.name, ("gather", epoch))
        self.at(self.chance.randrange(100 * MS, 900 * MS), self.gathered, node, node.generation, epoch)

    def gathered(self, node: Node, generation: int, epoch: Epoch) -> None:
        if self.later(node, generation, self.gathered, epoch):
            return
        lease = self.lease_of(node, generation)
        if lease is None or lease.epoch != epoch:
            return
        images = self.images
        best = max(node.gathering.values(), key=lambda n: (images[n].opens, images[n].depth))
        if best != node.newest:
            self.keep(node, best)
        self.do(node, lease.gathered(node.moment(self.now)))

    def keep(self, node: Node, image: int) -> None:
        """Go to `image`; what is not in its line stays as a diverged version."""
        if not self.in_line(node.newest, image):
            node.diverged.append(node.newest)
        node.newest = image

    def commit_opening(self, node: Node, generation: int, epoch: Epoch) -> None:
        if self.later(node, generation, self.commit_opening, epoch):
            return
        lease = self.lease_of(node, generation)
        if lease is None or lease.epoch != epoch:
            return
        if epoch < node.fence:
            return
        node.newest = self.image(node.newest, epoch, epoch)
        self.openings[epoch] = node.newest
        for name, image in node.gathering.items():  # rule 21: what an answering member had is in it
            same = self.images[image].opens == self.images[self.images[node.newest].parent].opens
            if same and not self.in_line(image, node.newest):
                raise Violation(f"What {name} had acknowledged is not in what {node.name} opens.")
        self.do(node, lease.committed(node.moment(self.now)))

    # -- network

    def send(self, node: Node, to: str, message: Any) -> None:
        other = self.by_name[to]
        if type(message) is Release and node.running:
            raise Violation(f"{node.name} releases its lease while its services run.")  # I5
        chance, plan = self.chance, self.plan
        if not self.healed and chance.random() < plan.loss:
            return
        delay = chance.randrange(200_000, plan.quick_ns) + self.slow.get((node.index, other.index), 0)
        if not self.healed and chance.random() < plan.late:
            delay += chance.randrange(plan.later_ns)
        self.at(delay, self.arrive, node.index, other, message, node.inc)
        if not self.healed and chance.random() < plan.doubled:
            self.at(delay + chance.randrange(2 * SECOND), self.arrive, node.index, other, message, node.inc)

    def arrive(self, sender: int, node: Node, message: Any, inc: bytes) -> None:
        if (sender, node.index) in self.cut or not node.up:
            return
        if (sender in self.switched_off) != (node.index in self.switched_off):
            return  # its certificate counts no more
        if node.frozen:
            if len(node.thawed) < 50:
                node.thawed.append((self.nodes[sender].name, message))
            return
        self.take(node, self.nodes[sender].name, message, inc)

    def take(self, node: Node, sender: str, message: Any, inc: bytes) -> None:
        if type(message) is tuple:
            self.data(node, sender, *message)
            return
        assert node.lease is not None
        before = node.lease.phase
        typed: Message = message
        self.do(node, node.lease.receive(sender, inc, typed, node.moment(self.now)))
        if node.up and node.lease is not None and before < Phase.CONFIRMING <= node.lease.phase:
            self.check(node)

    def data(self, node: Node, sender: str, what: str, value: Any) -> None:
        """What agents say to each other."""
        other = self.by_name[sender]
        if what == "alive":
            lease = node.lease
            assert lease is not None
            self.do(node, lease.heard(sender, *value))
        elif what == "gather":
            # I6: from now on nothing older is committed here.
            node.fence = max(node.fence, value)
            self.send(node, sender, ("have", (value, node.newest)))
        elif what == "have":
            epoch, image = value
            if node.lease is not None and node.lease.epoch == epoch and node.lease.phase is Phase.GATHERING:
                node.gathering[sender] = image
        elif what == "push":
            image = self.images[value]
            mine = self.images[node.newest]
            if image.epoch < node.fence or image.opens < mine.opens or self.in_line(value, node.newest):
                return
            self.keep(node, value)
            assert node.lease is not None
            if node.lease.hard.epoch <= image.epoch:  # rule 20: else no acknowledgement leaves
                self.send(node, sender, ("ack", value))
        elif what == "ack":
            other.acked = max(other.acked, value)

    # -- trouble

    def trouble(self) -> None:
        """One thing goes wrong, and is well again after a while."""
        if self.healed:
            return
        self.at(self.chance.randrange(self.plan.trouble_every_ns), self.trouble)
        (kind,) = self.chance.choices(range(9), self.plan.troubles)
        node = self.chance.choice(self.nodes)
        if self.chance.random() < 0.4 and (holding := [n for n in self.nodes if n.lease and n.lease.holds]):
            node = self.chance.choice(holding)
        kinds = (
            *(self.die, self.stand_still, self.nap, self.one_way),
            *(self.slow_down, self.part, self.switch, self.reconfigure, self.force),
        )
        kinds[kind](node)

    def die(self, node: Node) -> None:
        """One dies and comes back soon, before its promise ends, or later; sometimes more than one."""
        others = [other for other in self.nodes if other is not node and self.chance.random() < 0.2]
        for one in (node, *others):
            self.kill(one)
            most = self.chance.choice((500 * MS, 6 * SECOND))
            self.at(self.chance.randrange(50 * MS, most), self.boot, one)

    def stand_still(self, node: Node) -> None:
        self.freeze(node, self.chance.randrange(100 * MS, 5 * SECOND))

    def nap(self, node: Node) -> None:
        self.sleep(node, self.chance.randrange(100 * MS, 6 * SECOND))

    def one_way(self, node: Node) -> None:
        pair = (node.index, self.chance.randrange(len(self.nodes)))
        self.cut.add(pair)
        self.say(f"n{pair[0]} is not heard by n{pair[1]} any more")
        self.at(self.chance.randrange(100 * MS, 8 * SECOND), self.join, {pair})

    def slow_down(self, node: Node) -> None:
        """What one node says reaches the others late, all of it."""
        delay = self.chance.randrange(200 * MS, 4 * SECOND)
        for other in self.nodes:
            if self.chance.random() < 0.7:
                self.slow[node.index, other.index] = delay
        self.say(f"what {node.name} says is late by {delay / 1e9:.1f} s")
        self.at(self.chance.randrange(SECOND, 10 * SECOND), self.speed_up, node)

    def speed_up(self, node: Node) -> None:
        for other in self.nodes:
            self.slow.pop((node.index, other.index), None)

    def part(self, node: Node) -> None:
        side = {n.index for n in self.nodes if n is node or self.chance.random() < 0.3}
        pairs = {(a, b) for a in side for b in range(len(self.nodes)) if b not in side}
        pairs |= {(b, a) for a, b in pairs}
        self.cut |= pairs
        self.say(f"the network is cut: {', '.join(f'n{i}' for i in sorted(side))} from the others")
        self.at(self.chance.randrange(100 * MS, 8 * SECOND), self.join, pairs)

    def join(self, pairs: set[tuple[int, int]]) -> None:
        self.cut -= pairs

    def freeze(self, node: Node, lasts: int) -> None:
        """SIGSTOP of the keeper: the kernel goes on, and systemd ends the services after half a lease."""
        if not node.up or node.frozen:
            return
        node.frozen = self.now + lasts
        node.watched += 1
        self.say(f"{node.name} stands still for {lasts / 1e9:.1f} s")
        self.at(self.plan.lease_ns // 2, self.watchdog, node, node.generation, node.watched)
        self.at(lasts, self.thaw, node, node.generation)

    def watchdog(self, node: Node, generation: int, number: int) -> None:
        """systemd kills a keeper that does not report, and what is bound to it."""
        if node.up and node.frozen and node.generation == generation and node.watched == number:
            self.kill(node)
            self.at(self.chance.randrange(100 * MS, SECOND), self.boot, node)

    def thaw(self, node: Node, generation: int) -> None:
        if not node.up or node.generation != generation or not node.frozen or node.asleep:
            return
        node.frozen = 0
        self.say(f"{node.name} goes on")
        came, node.thawed = node.thawed, []
        assert node.lease is not None
        # Either may be first: what came, or the clock.
        if self.chance.random() < 0.5:
            self.do(node, node.lease.tick(node.moment(self.now)))
        for sender, message in came:
            if node.up and not node.frozen:
                self.take(node, sender, message, self.by_name[sender].inc)
        if node.up and node.lease is not None:
            self.do(node, node.lease.tick(node.moment(self.now)))

    def sleep(self, node: Node, lasts: int) -> None:
        """The whole machine sleeps: nothing of it answers, and one of its clocks stands still."""
        if not node.up or node.frozen:
            return
        self.say(f"{node.name} sleeps for {lasts / 1e9:.1f} s")
        node.frozen, node.asleep = self.now + lasts, True
        address, node.address = node.address, False
        self.at(lasts, self.awake, node, node.generation, lasts, address)

    def awake(self, node: Node, generation: int, lasts: int, address: bool) -> None:
        if node.up and node.generation == generation and node.frozen:
            node.asleep = False
            node.raw -= int(lasts * node.drift[1])
            node.address = address and node.address_until > self.now  # until its keeper looks: this instant
            node.frozen = 0
            self.say(f"{node.name} wakes")
            assert node.lease is not None
            self.do(node, node.lease.tick(node.moment(self.now)))
            came, node.thawed = node.thawed, []
            for sender, message in came:
                if node.up and not node.frozen:
                    self.take(node, sender, message, self.by_name[sender].inc)

    def switch(self, _: Node) -> None:
        """A person asks for a planned switch."""
        for node in self.nodes:
            lease = node.lease
            if lease is not None and not node.frozen and lease.phase is Phase.ACTIVE:
                others = [name for name, _ in lease.hard.config.slots if name != node.name]
                answer = lease.hand_over(self.chance.choice(others))
                if not isinstance(answer, str):
                    self.do(node, answer)
                return

    def reconfigure(self, _: Node) -> None:
        """A voter is added or removed."""
        for node in self.nodes:
            lease = node.lease
            if lease is None or node.frozen or lease.phase is not Phase.ACTIVE:
                continue
            held = lease.hard.config
            voters = set(held.voters)
            changes = 2 if self.trait == "two-voters-at-once" else 1
            known = [one for one in self.nodes if one.index not in self.switched_off]
            for one in self.chance.sample(known, min(changes, len(known))):
                voters ^= {Voter(one.name, one.inc)}
            if len(voters) < 2:
                return
            answer = lease.change(held._replace(voters=tuple(sorted(voters))), node.moment(self.now))
            if not isinstance(answer, str):
                self.say(f"{node.name} changes the voters to {', '.join(v.name for v in sorted(voters))}")
                self.do(node, answer)
            return

    def force(self, node: Node) -> None:
        """A person switches off all that do not answer, and lets one go on alone. It is not done while a
        majority answers, or a node that may hold the lease."""
        lease = node.lease
        if lease is None or node.frozen or node.index in self.switched_off:
            return
        config = lease.hard.config
        there = {
            other.index
            for other in self.nodes
            if other.up and not other.frozen and other.index not in self.switched_off
            and (other is node or not {(node.index, other.index), (other.index, node.index)} & self.cut)
        }  # fmt: skip
        leases = [other.lease for other in self.nodes if other.index in there and other.lease is not None]
        configs = {one.hard.config for one in leases} | {config}
        many = any(
            len(there & {int(voter.name[1:]) for voter in one.voters}) >= one.majority for one in configs
        )
        if many or any(one.holds for one in leases):
            return
        off = {other.index for other in self.nodes} - there
        for index in off - self.switched_off:
            self.kill(self.nodes[index])
            if self.chance.random() < 0.5:
                self.at(self.chance.randrange(SECOND, 20 * SECOND), self.boot, self.nodes[index])
        lease.hear(node.fence)
        # Not before what anybody promised has run out: it may have been to one that is off now.
        answer = lease.force(self.images[node.newest].opens)
        if isinstance(answer, str):
            return
        self.switched_off |= off
        self.forced = True
        self.say(f"{node.name} goes on by force, without {', '.join(f'n{i}' for i in sorted(off))}")
        self.do(node, answer)
        self.at(3 * SECOND, self.force_again, node)
        self.at(0, self.tell, node.index)
        for index in there:
            self.at(0, self.tell, index)

    def force_again(self, node: Node) -> None:
        """Who died while it was made to go on has to be told again: the others are off."""
        if node.index in self.switched_off:
            return
        lease = node.lease
        if lease is None or node.frozen:
            self.at(SECOND, self.force_again, node)
        elif not (lease.hard.config.id.generation >> GENERATION_BITS or lease.holds):
            answer = lease.force(self.images[node.newest].opens)
            if not isinstance(answer, str):
                self.do(node, answer)
            self.at(3 * SECOND, self.force_again, node)

    def tell(self, index: int) -> None:
        """A keeper says now and then what it knows."""
        node = self.nodes[index]
        self.at(SECOND, self.tell, index)
        if node.up and not node.frozen and node.lease is not None:
            for other in self.nodes:
                if other is not node:
                    told = ("alive", (node.lease.hard.config, node.lease.opened))
                    self.send(node, other.name, told)

    def heal(self) -> None:
        """Nothing goes wrong any more: everybody is up, everybody hears everybody."""
        self.say("everything is whole again")
        self.cut, self.slow = set(), {}
        self.healed = True
        for node in self.nodes:
            if node.frozen and not node.asleep:
                self.thaw(node, node.generation)
            if not node.up:
                self.at(self.chance.randrange(SECOND), self.boot, node)
        if self.switched_off:
            self.at(2 * SECOND, self.say_alone)

    def say_alone(self) -> None:
        """A person lets the node go on that was made active by force last."""
        left = [node.lease for node in self.nodes if node.index not in self.switched_off and node.lease]
        voting = [lease for lease in left if lease.is_voter]
        newest = max(voting, key=lambda lease: lease.hard.config.id, default=None)
        if newest is not None:
            newest.activate_alone()


__all__ = ["Image", "Node", "Violation", "World"]
