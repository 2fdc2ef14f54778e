"""Stories of takeover as text: a script goes in, a transcript comes out. Pure.

Where :mod:`crnode.sim.world` lives through bad luck of all kinds, a script tells one story that matters, and
its transcript says what each node decided, and when. Nothing in it is left to chance: time is virtual,
messages take exactly as long as the script says, and what would be drawn is a fixed number. The cores are
the real ones. After every step it is checked that at most one node holds a lease, that at most one serves,
and who, and that what is opened descends from what was opened before; who breaks that ends the story.

A line is a command; ``#`` begins a comment. What the capitals stand for: NODE a name that ``nodes`` gave,
TIME ``300ms``, ``2.5s`` or ``2m``, EPOCH ``3.1`` (counter and slot), PERCENT ``+1%``, NUMBER one in [0, 1),
MESSAGE ``Grant``, ``Ok`` or another kind, BOOL ``yes`` or ``no``; ``...`` one or more of it.

Before the first start:

``nodes NAME...``: the machines.
``voters NODE...``: who votes; all nodes when it is not said.
``candidates NODE...``: who may be active, in the order of their slots; all nodes when it is not said.
``lease KIND``: ``lan`` (2.5 s, when it is not said) or ``wan`` (10 s).

Machines:

``start NODE...``: its keeper starts, or starts again with what its vote file says.
``kill NODE...``: its keeper ends, and with it services and address.
``forget NODE``: one that is down loses its vote file; it comes back as somebody else.
``freeze NODE TIME``: its keeper stands still. The kernel goes on, and ends the address by its lifetime.
``jump NODE TIME``: BOOTTIME goes forward, as it does when a machine sleeps; the other clock does not.
``clock NODE PERCENT``: from now on both its clocks are so much too fast.
``chance NODE NUMBER``: what it draws from now on; 0.5 when it is not said.
``data NODE EPOCH``: the newest opened epoch that its data descends from. What a serving node has the others
get every half second, as far as they are reached.

Network:

``delay TIME``: of all messages; 1 ms when it is not said.
``delay NODE NODE TIME``, ``delay NODE -> NODE TIME``: between two, both ways or one way. What is under way
already arrives when it would have.
``cut NODE``, ``cut NODE NODE``, ``cut NODE -> NODE``: from everybody; between two; one way. What arrives
meanwhile is lost.
``heal``, ``heal NODE``, ``heal NODE NODE``, ``heal NODE -> NODE``: the opposite.
``drop next NODE NODE``, ``drop next MESSAGE NODE NODE``: the next one that the first sends to the second.

Decisions:

``campaign NODE``: once, if its lease lets it.
``auto NODE...``: from now on whenever nothing hinders it, as its keeper does it.
``ask NODE``: a person wants it to be active; only with ``auto``.
``unable NODE``, ``able NODE``: whether it could serve.
``switch NODE NODE``: the first hands over to the second.
``stopped NODE``: its services are down, and its successor has everything.
``take back NODE``: its successor is not ready.
``give way NODE NODE``: the first leaves an epoch that is not open to the second.
``abandon NODE``: it leaves an epoch that is not open to anybody.
``add voter NODE``, ``remove voter NODE``: the active node changes who votes.
``want voters NODE...``: from now on it does so until these vote, as its keeper does it.

The story:

``run TIME``: let time pass.
``show``: a table of what all nodes are and have promised.
``trace renewals``: show every message from now on. Else pre-votes, renewals and signs of life are left out,
and what is said again in the same words about the same epoch.
``assert active NODE``, ``assert nobody active``, ``assert serves NODE BOOL``, ``assert holds NODE BOOL``,
``assert mark NODE EPOCH``, ``assert data NODE EPOCH``: what has to be so, else the story ends there.

In the table a promise without a time is over. In a transcript a message stands at the time at which it
arrives, or would have: ``b -> c  Grant 2.2``. A voter that lost its vote file has a tick behind its name in
lists of voters: ``c'``.

What agents do is reduced to how long it takes and the epoch of the data; who is there, and able, is known
to all who could hear it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

from crnode.failover.lease import Lease, Phase
from crnode.failover.terms import (
    NO_EPOCH,
    SECOND,
    Config,
    ConfigId,
    Effect,
    Epoch,
    Grant,
    Hard,
    Moment,
    No,
    Ok,
    Open,
    Opened,
    PreVote,
    PreVoted,
    Release,
    Renew,
    Voter,
)
from crnode.sim.stage import BEAT_NS, LEASES, MILLION, MS, Box, Stage, seconds
from crnode.sim.world import Violation

UNITS = {"ms": MS, "s": SECOND, "m": 60 * SECOND}
MESSAGES = {kind.__name__: kind for kind in (PreVote, PreVoted, Grant, Renew, Ok, No, Open, Opened, Release)}
PATTERNS: dict[str, tuple[str, Callable[..., Any], str]] = {
    "TIME": (r"(\d{1,6}(?:\.\d+)?)(ms|s|m)", lambda n, unit: int(Decimal(n) * UNITS[unit]), "2.5s or 300ms"),
    "EPOCH": (r"(\d{1,9})\.(\d{1,4})", lambda counter, slot: Epoch(int(counter), int(slot)), "3.1"),
    "PERCENT": (r"([+-]\d{1,2}(?:\.\d{1,4})?)%", Decimal, "+1% or -0.5%"),
    "NUMBER": (r"(0(?:\.\d+)?)", float, "0.25"),
    "BOOL": (r"(yes|no)", lambda said: said == "yes", "yes or no"),
}
"""What stands for a word in capitals: its pattern, what makes a value of it, and an example."""


class BadLine(Exception):
    """A line that is no command, or cannot be done; the text names it."""

    def __init__(self, number: int, line: str, why: str) -> None:
        super().__init__(f"Line {number}, '{line}': {why}")


class Told(NamedTuple):
    """A story to its end."""

    lines: list[str]
    broken: str  # what broke it, with its line; '' for nothing


class _Unfit(Exception):
    """Why a command cannot be done."""


class Scenario(Stage):
    """See the module's text."""

    def value(self, kind: str, said: str) -> Any:
        """What a word of a script stands for; see the module's text."""
        if kind == "NODE":
            if said not in self._boxes:
                raise _Unfit(f"There is no node '{said}'.")
            return self._boxes[said]
        if kind == "MESSAGE":
            if said not in MESSAGES:
                raise _Unfit(f"There is no message '{said}'. There are: {', '.join(MESSAGES)}.")
            return MESSAGES[said]
        if kind in PATTERNS:
            pattern, make, like = PATTERNS[kind]
            found = re.fullmatch(pattern, said)
            if found is None:
                raise _Unfit(f"'{said}' is not like {like}.")
            return make(*found.groups())
        return said

    # -- commands: before the first start

    def nodes(self, *names: str) -> None:
        if self._boxes:
            raise _Unfit("The nodes are named already.")
        for number, name in enumerate(names, 1):
            if not name.isidentifier() or name in self._boxes:
                raise _Unfit(f"'{name}' is no name of a node, or names two.")
            self._boxes[name] = Box(name, number)
        self._voters = self._candidates = list(self._boxes.values())

    def voters(self, *boxes: Box) -> None:
        self._before_start()
        self._voters = list(boxes)

    def candidates(self, *boxes: Box) -> None:
        self._before_start()
        self._candidates = list(boxes)

    def lease(self, kind: str) -> None:
        self._before_start()
        if kind not in LEASES:
            raise _Unfit("A lease is lan or wan.")
        self._timers, self._lease_ns = LEASES[kind]

    def _before_start(self) -> None:
        if self._begun:
            raise _Unfit("It has to stand before the first start.")

    def _begin(self) -> None:
        """Everybody's vote file: voters know each other, the others know nothing."""
        self._begun = True
        slots = tuple((box.name, slot) for slot, box in enumerate(self._candidates, 1))
        voters = tuple(sorted(Voter(box.name, box.inc) for box in self._voters))
        config = Config(ConfigId(1, NO_EPOCH, 1), voters, slots, self._lease_ns)
        for box in self._boxes.values():
            known = config if box in self._voters else self._nothing()
            box.hard = Hard(box.inc, NO_EPOCH, "", known, 0, NO_EPOCH)

    def _nothing(self) -> Config:
        return Config(ConfigId(0, NO_EPOCH, 0), (), (), self._lease_ns)

    # -- commands: machines

    def start(self, *boxes: Box) -> None:
        if not self._begun:
            self._begin()
        for box in boxes:
            if box.lease is not None:
                raise _Unfit(f"{box.name} is up.")
            assert box.hard is not None
            box.generation += 1
            number = box.generation << 40
            box.lease = self._core(box.name, box.hard, self._timers, box.draw, number)
            box.started = box.moment(self.now)
            box.takeovers, box.told, box.served = [], {}, NO_EPOCH
            box.asked = box.released = False
            self._shown = {one for one in self._shown if box.name not in one[:2]}
            self._do(box, box.lease.start(box.started))
            self.at(BEAT_NS, self._beat, box, box.generation)
            self.at(BEAT_NS, self._tell_alive, box, box.generation)

    def kill(self, *boxes: Box) -> None:
        for box in boxes:
            self._up(box)
            box.lease, box.frozen, box.waiting = None, False, []
            box.running = box.address = False
            self.say(f"{box.name} dies")

    def forget(self, box: Box) -> None:
        if box.lease is not None or not self._begun:
            raise _Unfit(f"{box.name} is not down.")
        box.lives += 1
        box.inc = f"{box.name}{box.lives}".encode()
        box.hard = Hard(box.inc, NO_EPOCH, "", self._nothing(), 0, NO_EPOCH)
        self.say(f"{box.name} has lost what it promised, and is somebody else from now on")

    def freeze(self, box: Box, lasts: int) -> None:
        self._awake(box)
        box.frozen = True
        self.say(f"{box.name} stands still for {seconds(lasts)}")
        self.at(lasts, self._thaw, box, box.generation)

    def jump(self, box: Box, by: int) -> None:
        boot, raw = box.moment(self.now)
        box.base = (self.now, Moment(boot + by, raw))
        self.say(f"{box.name}'s BOOTTIME goes forward by {seconds(by)}")
        self._tick(box)

    def clock(self, box: Box, percent: Decimal) -> None:
        box.base = (self.now, box.moment(self.now))
        box.rate = MILLION + int(percent * 10_000)
        self._set_timer(box)

    def chance(self, box: Box, number: float) -> None:
        box.chance = number

    def data(self, box: Box, epoch: Epoch) -> None:
        box.data = epoch

    def _up(self, box: Box) -> Lease:
        if box.lease is None:
            raise _Unfit(f"{box.name} is down.")
        return box.lease

    def _awake(self, box: Box) -> Lease:
        lease = self._up(box)
        if box.frozen:
            raise _Unfit(f"{box.name} stands still.")
        return lease

    # -- commands: network

    def delay(self, *args: Any) -> None:
        if len(args) == 1:
            self._delay = args[0]
            return
        one, other, lasts = args
        self._delays[one.name, other.name] = self._delays[other.name, one.name] = lasts

    def delay_one(self, one: Box, other: Box, lasts: int) -> None:
        self._delays[one.name, other.name] = lasts

    def cut(self, *boxes: Box) -> None:
        self._cut |= self._pairs(boxes)

    def cut_one(self, one: Box, other: Box) -> None:
        self._cut.add((one.name, other.name))

    def heal(self, *boxes: Box) -> None:
        self._cut -= self._pairs(boxes) if boxes else self._cut

    def heal_one(self, one: Box, other: Box) -> None:
        self._cut.discard((one.name, other.name))

    def _pairs(self, boxes: tuple[Box, ...]) -> set[tuple[str, str]]:
        """Both ways between two, or one and everybody."""
        others = [box.name for box in boxes[1:]] or list(self._boxes)
        ways = {(boxes[0].name, other) for other in others}
        return ways | {(b, a) for a, b in ways}

    def drop_next(self, *args: Any) -> None:
        kind, one, other = args if len(args) == 3 else (None, *args)
        self._drops.append((kind, one.name, other.name))

    # -- commands: decisions

    def campaign(self, box: Box) -> None:
        answer = self._awake(box).campaign(box.data, box.moment(self.now))
        if isinstance(answer, str):
            self.say(f"{box.name} does not campaign: {answer}")
        else:
            self._campaigns(box, answer)

    def auto(self, *boxes: Box) -> None:
        for box in boxes:
            box.auto = True

    def ask(self, box: Box) -> None:
        self._up(box)
        box.asked, box.able = True, True

    def unable(self, box: Box) -> None:
        box.able = False

    def able(self, box: Box) -> None:
        box.able = True

    def switch(self, box: Box, successor: Box) -> None:
        self._done(box, "hand over", self._awake(box).hand_over(successor.name))

    def stopped(self, box: Box) -> None:
        lease = self._awake(box)
        if lease.phase is Phase.HANDING:
            box.running = False
        self._done(box, "release anything", lease.stopped(box.moment(self.now)))

    def take_back(self, box: Box) -> None:
        self._done(box, "take anything back", self._awake(box).take_back())

    def give_way(self, box: Box, successor: Box) -> None:
        self._done(box, "give way", self._awake(box).give_way(successor.name, box.moment(self.now)))

    def abandon(self, box: Box) -> None:
        self._done(box, "abandon anything", self._awake(box).abandon("it cannot serve", box.moment(self.now)))

    def _done(self, box: Box, what: str, answer: list[Effect] | str) -> None:
        if isinstance(answer, str) or not answer:
            phase = f"it is {box.lease.phase.name.lower()}." if box.lease is not None else ""
            self.say(f"{box.name} does not {what}: {answer or phase}")
        else:
            self._do(box, answer)

    def add_voter(self, box: Box) -> None:
        self._change(lambda voters: (*voters, Voter(box.name, box.inc)))

    def remove_voter(self, box: Box) -> None:
        self._change(lambda voters: tuple(voter for voter in voters if voter.name != box.name))

    def want_voters(self, *boxes: Box) -> None:
        self._wanted = tuple(box.name for box in boxes)

    def _change(self, change: Callable[[tuple[Voter, ...]], tuple[Voter, ...]]) -> None:
        box = self._active()
        if box is None:
            raise _Unfit("Nobody is active.")
        config = self._awake(box).hard.config
        box.told.pop("voters", None)
        self._change_to(box, config._replace(voters=tuple(sorted(change(config.voters)))))

    # -- commands: the story

    def trace_renewals(self) -> None:
        self._traced = True

    def show(self) -> None:
        head = ("node", "phase", "epoch", "lease left", "promised", "mark", "data", "serves", "voters")
        rows = [head, *(self._row(box) for box in self._boxes.values())]
        widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.lines.append(f"  {'  '.join(cells)}".rstrip())

    def _row(self, box: Box) -> tuple[str, ...]:
        lease, hard = box.lease, box.hard
        now = box.moment(self.now)
        if hard is None:
            return (box.name, "down", "-", "-", "-", "-", str(box.data), "no", "-")
        phase, epoch, left = "down", "-", "-"
        promised = f"{hard.epoch} to {hard.to}" if hard.to else "nothing"
        if lease is not None:
            phase = lease.phase.name.lower() + (", stands still" if box.frozen else "")
            if lease.doubts:
                phase += ", doubts"
            if lease.phase >= Phase.CAMPAIGNING:
                epoch, ns = str(lease.epoch), lease.left(now)
                left = seconds(ns) if ns > 0 else "over" if lease.holds else "-"
            if wait := lease.promise_left(now):
                promised += f", {seconds(wait)}"
            if lease.released is not None:
                promised += f", released to {lease.released[1]}"
        serves = "yes" if self._serves(box) else "no"
        voters = self._names(hard.config) or "-"
        return (box.name, phase, epoch, left, promised, str(hard.mark), str(box.data), serves, voters)

    def assert_active(self, box: Box) -> None:
        found = self._active()
        if found is not box or not self._serves(box):
            raise Violation(f"{box.name} is not active, {found.name if found is not None else 'nobody'} is.")

    def assert_nobody(self) -> None:
        found = self._active()
        if found is not None:
            raise Violation(f"{found.name} is active.")

    def assert_serves(self, box: Box, wanted: bool) -> None:
        if self._serves(box) is not wanted:
            raise Violation(f"{box.name} {'does not serve' if wanted else 'serves'}.")

    def assert_holds(self, box: Box, wanted: bool) -> None:
        if self._holds(box) is not wanted:
            raise Violation(f"{box.name} holds {'no' if wanted else 'a'} lease.")

    def assert_mark(self, box: Box, epoch: Epoch) -> None:
        mark = box.hard.mark if box.hard is not None else NO_EPOCH
        if mark != epoch:
            raise Violation(f"{box.name} has the mark {mark}.")

    def assert_data(self, box: Box, epoch: Epoch) -> None:
        if box.data != epoch:
            raise Violation(f"{box.name} has data of {box.data}.")


# -- the language

FORMS: dict[str, Callable[..., None]] = {
    "nodes NAME...": Scenario.nodes,
    "voters NODE...": Scenario.voters,
    "candidates NODE...": Scenario.candidates,
    "lease KIND": Scenario.lease,
    "start NODE...": Scenario.start,
    "kill NODE...": Scenario.kill,
    "forget NODE": Scenario.forget,
    "freeze NODE TIME": Scenario.freeze,
    "jump NODE TIME": Scenario.jump,
    "clock NODE PERCENT": Scenario.clock,
    "chance NODE NUMBER": Scenario.chance,
    "data NODE EPOCH": Scenario.data,
    "delay TIME": Scenario.delay,
    "delay NODE NODE TIME": Scenario.delay,
    "delay NODE -> NODE TIME": Scenario.delay_one,
    "cut NODE": Scenario.cut,
    "cut NODE NODE": Scenario.cut,
    "cut NODE -> NODE": Scenario.cut_one,
    "heal": Scenario.heal,
    "heal NODE": Scenario.heal,
    "heal NODE NODE": Scenario.heal,
    "heal NODE -> NODE": Scenario.heal_one,
    "drop next NODE NODE": Scenario.drop_next,
    "drop next MESSAGE NODE NODE": Scenario.drop_next,
    "campaign NODE": Scenario.campaign,
    "auto NODE...": Scenario.auto,
    "ask NODE": Scenario.ask,
    "unable NODE": Scenario.unable,
    "able NODE": Scenario.able,
    "switch NODE NODE": Scenario.switch,
    "stopped NODE": Scenario.stopped,
    "take back NODE": Scenario.take_back,
    "give way NODE NODE": Scenario.give_way,
    "abandon NODE": Scenario.abandon,
    "add voter NODE": Scenario.add_voter,
    "remove voter NODE": Scenario.remove_voter,
    "want voters NODE...": Scenario.want_voters,
    "run TIME": Scenario.run,
    "show": Scenario.show,
    "trace renewals": Scenario.trace_renewals,
    "assert active NODE": Scenario.assert_active,
    "assert nobody active": Scenario.assert_nobody,
    "assert serves NODE BOOL": Scenario.assert_serves,
    "assert holds NODE BOOL": Scenario.assert_holds,
    "assert mark NODE EPOCH": Scenario.assert_mark,
    "assert data NODE EPOCH": Scenario.assert_data,
}
"""What may be said, and what does it; see the module's text."""


def tell(text: str, core: type[Lease] = Lease) -> Told:
    """What this script comes to. Raises BadLine."""
    scenario = Scenario(core)
    lines = scenario.lines
    apart = False
    for number, raw in enumerate(text.splitlines(), 1):
        line = " ".join(raw.partition("#")[0].split())
        if not line:
            apart = apart or not raw.strip()
            continue
        if apart and lines:
            lines.append("")
        apart = False
        lines.append(f"> {line}")
        try:
            _obey(scenario, line.split())
            scenario.check()
        except Violation as violation:
            broken = f"Line {number}, '{line}': {violation}"
            scenario.say(f"BROKEN: {broken}")
            return Told(lines, broken)
        except _Unfit as unfit:
            raise BadLine(number, line, str(unfit)) from None
    return Told(lines, "")


def _obey(scenario: Scenario, words: list[str]) -> None:
    for form, work in FORMS.items():
        if _fits(form.split(), words):
            work(scenario, *_values(scenario, form.split(), words))
            return
    near = [form for form in FORMS if form.split()[0] == words[0]]
    if near:
        raise _Unfit(f"It is said like this: {', or '.join(near)}.")
    known = dict.fromkeys(form.split()[0] for form in FORMS)
    raise _Unfit(f"There is no command '{words[0]}'. There are: {', '.join(known)}.")


def _is_literal(word: str) -> bool:
    return not word.rstrip(".").isupper()


def _fits(form: list[str], words: list[str]) -> bool:
    """Whether these words have that form, whatever they mean."""
    if len(words) != len(form) and not (form[-1].endswith("...") and len(words) > len(form)):
        return False
    return all(not _is_literal(word) or word == said for word, said in zip(form, words, strict=False))


def _values(scenario: Scenario, form: list[str], words: list[str]) -> list[Any]:
    kinds = [*form, *form[-1:] * (len(words) - len(form))]
    pairs = zip(kinds, words, strict=True)
    values = [scenario.value(kind.rstrip("."), said) for kind, said in pairs if not _is_literal(kind)]
    if form[-1].endswith("...") and len(set(values)) != len(values):
        raise _Unfit("One is named twice.")
    return values


__all__ = ["FORMS", "BadLine", "Scenario", "Told", "tell"]
