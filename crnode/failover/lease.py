"""The lease: at most one node is active, and what it opens descends from what was active before. Pure.

Theory of operation
===================

Time is counted by each node for itself. A **voter** promises a lease to one candidate: for `lease_ns`,
counted by the slower of its clocks, it promises none to anybody else. A **candidate** that has such
promises of a majority holds the lease: from when it *sent* each request, counted by the faster of its
clocks, less the drift of both and a margin. Two majorities share a voter, and that voter's earlier promise
had ended before it gave the later one: so the earlier holder knew its lease to be over, before the later
one held it.

A lease is one **epoch**. Nobody serves in it before it is *opened*: the holder has gathered what others
have, made its own data whole and committed an image that opens the epoch, and then a majority has noted the
epoch as the mark. A voter promises nothing to a candidate whose data does not descend from its mark. So
opened epochs form a line, and stale data never serves again. The image comes before the mark: noted first,
an epoch whose holder dies in between would be one that nobody's data descends from, and nobody could ever
be active again.

What a voter promises it saves before it says it. What it forgot it has not promised only if it comes back as
somebody else; so a voter that lost its state is no voter any more.

A holder **fences** when its lease comes to its end, with no network and no help; it **doubts** when its own
time made a jump, or it hears of a later epoch: the address goes at once, and comes back when a majority
answers what was asked after that. Once it fenced, or released its lease, it never serves in that epoch
again.

Who votes is a **configuration**. Only an active holder changes it, one voter at a time, after the present
one was confirmed in the holder's own epoch by a majority together with the mark. While a change is under
way the lease is held as the configuration before says: majorities of neighbours share a voter, and that
voter's promise stands whichever of the two it has. From when a majority of the new one has it together with
the mark, the new one counts, and nobody wins under the old one any more. A change that comes to nothing is
taken back by another one.

Where nobody else can vote, a person may put one node's word in place of a majority's: **by force** it begins
a later *generation*, in which it alone votes, and in which nothing of an earlier one counts (rule 28). That
at most one is active rests on that person then. So whoever alone votes and has just started waits for the
other candidates to say that they know of no later generation, or for a person (rule 12).

States
======

==============  ==================================================  ===============================
phase           what it waits for                                   what ends it
==============  ==================================================  ===============================
STANDBY         nothing; it votes                                   campaign()
ASKING          pre-votes of a majority                             they come, or time is up
CAMPAIGNING     promises of a majority                              they come, or time is up
CONFIRMING      the configuration, in its own epoch, at a majority  it is confirmed
GATHERING       the agent: everybody asked, the live tree clean     gathered()
COMMITTING      the agent: the opening image committed              committed()
OPENING         the mark at a majority                              it is noted
ACTIVE          nothing; it serves                                  hand_over(), the lease's end
HANDING         the agent: services stopped, the successor ready    stopped(), take_back()
==============  ==================================================  ===============================

From CONFIRMING on the lease is held and renewed; each of these phases ends in STANDBY, fenced, when it runs
out. Letters and numbers in the comments (V1, C3, H4 ...) are the steps of the protocol, as crnode/SAFETY.md
calls them under rules 1 to 28.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from crnode.failover.terms import (
    EPOCH_JUMP,
    FORCED_AHEAD,
    GENERATION_BITS,
    MOST_VOTERS,
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
    Grant,
    Hard,
    Message,
    Moment,
    No,
    Ok,
    Open,
    Opened,
    PreVote,
    PreVoted,
    Release,
    Renew,
    Save,
    Say,
    Send,
    Serve,
    Stop,
    Timers,
    Voter,
    at_least,
    at_most,
    held_for,
    next_generation,
)

GENERATIONS_MOST = 16  # that a node may have missed
ASKING_NS = SECOND  # a candidate waits so long for pre-votes
ASK_AGAIN_NS = SECOND // 10  # and asks again meanwhile: a promise may end a moment later elsewhere than here


class Phase(IntEnum):
    """See the module's text; from CONFIRMING on the lease is held."""

    STANDBY = 0
    ASKING = 1
    CAMPAIGNING = 2
    CONFIRMING = 3
    GATHERING = 4
    COMMITTING = 5
    OPENING = 6
    ACTIVE = 7
    HANDING = 8


class Lease:
    """What one keeper knows and decides. Its methods return what is to be done, in that order; whoever does
    it may die between any two of them.

    Args:
        me: name of this node.
        hard: what the vote file says. Changed only together with a :class:`Save` among the effects.
        chance: random numbers in [0, 1).
        nonce: where the numbers of questions begin; a keeper that starts anew begins elsewhere.
    """

    def __init__(
        self, me: str, hard: Hard, timers: Timers, chance: Callable[[], float], nonce: int = 0
    ) -> None:
        self.me = me
        self.hard = hard
        self.timers = timers
        self.phase = Phase.STANDBY
        self.promised_here = False  # in this life
        self.released: tuple[Epoch, str] | None = None  # the promise that ended early, and for whom
        self._chance = chance
        self._nonce = nonce
        self._promise: tuple[Moment, int] | None = None  # since when, for how long
        self._seen = hard.epoch.counter  # the greatest counter that was heard of
        self._data = NO_EPOCH
        self._epoch = NO_EPOCH  # the one that is campaigned for, or held
        self._begun: Moment | None = None  # of a campaign
        self._wait: tuple[Moment, int] | None = None  # no campaign before that is over
        self._sent: dict[int, tuple[str, Moment]] = {}  # nonce -> whom it asked, when
        self._held: dict[str, tuple[Moment, int]] = {}  # voter -> from when on, for how long it is relied on
        self._configs: dict[str, ConfigId] = {}  # voter -> the configuration that it has
        self._marks: set[Voter] = set()  # those that noted our epoch as the mark
        self._yes: set[str] = set()  # voters that would promise
        self._no: set[str] = set()  # voters that have promised a later epoch to another
        self._doubted: dict[str, Epoch] = {}  # voter -> the later epoch of its that was a reason for doubt
        self._renewed: Moment | None = None
        self._ticked: Moment | None = None
        self._doubt: Moment | None = None  # answers to what was asked before that are not enough
        self._before: Config | None = None  # while a change of the configuration is under way
        self._confirmed: set[str] = set()  # candidates that know of no later generation
        self.removed: frozenset[str] = frozenset()  # nodes that are none any more, whatever slots they had
        self._is_told_alone = False  # a person says that no other node can be active
        self._successor = ""

    # -- what the outside may know

    @property
    def epoch(self) -> Epoch:
        """The epoch that this node holds or campaigns for."""
        return self._epoch

    @property
    def holds(self) -> bool:
        return self.phase >= Phase.CONFIRMING

    @property
    def serves(self) -> bool:
        """Whether services may run; an address needs :meth:`left` as well, and no doubt."""
        return self.phase >= Phase.ACTIVE

    @property
    def successor(self) -> str:
        """Whom it is being handed over to, or was last."""
        return self._successor

    @property
    def doubts(self) -> bool:
        return self._doubt is not None

    @property
    def lease_ns(self) -> int:
        """The length of the lease; while it changes the shorter one, which has to be renewed in time."""
        return min(self.hard.config.lease_ns, self._counting.lease_ns)

    @property
    def is_settled(self) -> bool:
        """Whether no change of the voters is under way: the active node may begin one."""
        return self._before is None and self._is_confirmed() and self._is_marked()

    @property
    def is_voter(self) -> bool:
        return self.hard.config.incarnation(self.me) == self.hard.incarnation

    def relies_on(self, voter: str) -> bool:
        """Whether that voter promised this epoch to this node: only who did hears of a release (V4)."""
        return voter in self._held

    def promised(self, now: Moment) -> bool:
        """Whether this voter's promise still runs."""
        if self._promise is None:
            return False
        since, lasts = self._promise
        return at_least(since, now) < lasts

    def promise_left(self, now: Moment) -> int:
        """For how many ns this voter's promise still runs, as it counts."""
        return max(0, self._promise[1] - at_least(self._promise[0], now)) if self._promise is not None else 0

    def left(self, now: Moment) -> int:
        """For how many ns the lease is held (C3, H1): by a majority of the configuration that counts."""
        return self._left(self._counting, now) if self.phase >= Phase.CAMPAIGNING else 0

    @property
    def _counting(self) -> Config:
        return self.hard.config if self._before is None else self._before

    def _left(self, config: Config, now: Moment) -> int:
        lefts = []
        for voter in config.voters:
            held = self._held.get(voter.name)
            lefts.append(held[1] - at_most(held[0], now) if held is not None else 0)
        lefts.sort(reverse=True)
        return lefts[config.majority - 1]

    def wake_in(self, now: Moment) -> int | None:
        """ns after which :meth:`tick` has something to do; None: nothing until something happens."""
        waits = []
        if self.phase in (Phase.ASKING, Phase.CAMPAIGNING):
            assert self._begun is not None
            most = ASKING_NS if self.phase is Phase.ASKING else self.hard.config.lease_ns
            waits.append(most - at_most(self._begun, now))
        if self.phase is Phase.ASKING and self._renewed is not None:
            waits.append(ASK_AGAIN_NS - at_most(self._renewed, now))
        if self.phase >= Phase.CAMPAIGNING and self._renewed is not None:
            waits.append(self.timers.renew_ns - at_most(self._renewed, now))
        if self.holds:
            waits.append(self.left(now) - self.timers.stop_ns)
            waits.append(self.timers.renew_ns // 2)  # else a jump of time would not be seen
        return max(0, min(waits)) if waits else None

    # -- what happens

    def start(self, now: Moment) -> list[Effect]:
        """A keeper begins: whatever ran in its life before is ended, and what it promised then still runs."""
        self._promise = (now, self.hard.longest_ns)
        self._ticked = now
        return [Fence("the keeper starts")]

    def tick(self, now: Moment) -> list[Effect]:
        """Time has passed."""
        out: list[Effect] = []
        ticked, self._ticked = self._ticked, now
        if self.holds:
            if self.left(now) <= self.timers.stop_ns:
                return self._fence("its lease comes to its end, and no majority answered in time", now)  # H4
            if ticked is not None and at_most(ticked, now) > self.timers.renew_ns:
                out += self._begin_doubt("time made a jump: this machine stood still", now)
        if self.phase in (Phase.ASKING, Phase.CAMPAIGNING):
            assert self._begun is not None
            most = ASKING_NS if self.phase is Phase.ASKING else self.hard.config.lease_ns
            if at_most(self._begun, now) >= most:
                return out + self._give_up("no majority answered", now)
        if (
            self.phase is Phase.ASKING
            and self._renewed is not None
            and at_most(self._renewed, now) >= ASK_AGAIN_NS
        ):
            out += self._ask_pre_votes(now)
        if (
            self.phase >= Phase.CAMPAIGNING
            and self._renewed is not None
            and at_most(self._renewed, now) >= self.timers.renew_ns
        ):
            out += self._ask_all(now)
        return out

    def receive(self, sender: str, incarnation: bytes, message: Message, now: Moment) -> list[Effect]:
        """A message of another keeper, whose identity the connection proves."""
        if type(message) is Renew:
            return self._on_renew(sender, incarnation, message, now)
        if type(message) is Ok:
            return self._on_ok(sender, incarnation, message, now)
        if type(message) is No:
            return self._on_no(sender, message, now)
        if type(message) is Grant:
            return self._on_grant(sender, incarnation, message, now)
        if type(message) is PreVote:
            return self._on_pre_vote(sender, message, now)
        if type(message) is PreVoted:
            return self._on_pre_voted(sender, incarnation, message, now)
        if type(message) is Open:
            return self._on_open(sender, message)
        if type(message) is Opened:
            return self._on_opened(sender, incarnation, message, now)
        if type(message) is Release:
            return self._on_release(sender, message)
        return []

    # -- voter

    def _may_promise(self, sender: str, epoch: Epoch, config: Config, now: Moment) -> bool:
        """V1, without what is asked of the data."""
        hard = self.hard
        return (
            config.slot(sender) == epoch.slot
            and config.incarnation(self.me) == hard.incarnation
            and config.id >= hard.config.id
            and hard.epoch < epoch
            and epoch.counter <= hard.epoch.counter + EPOCH_JUMP
            and (not self.promised(now) or hard.to == sender or self.released == (hard.epoch, sender))
        )

    def _is_other(self, sender: str, incarnation: bytes, config: Config) -> bool:
        """Whether the sender calls itself a voter that it is not any more."""
        known = config.incarnation(sender)
        return known is not None and known != incarnation

    def _on_pre_vote(self, sender: str, message: PreVote, now: Moment) -> list[Effect]:
        hard = self.hard
        free = not self.promised(now) or hard.to == sender or self.released == (hard.epoch, sender)
        yes = (
            message.config.incarnation(self.me) == hard.incarnation
            and not self.holds
            and free
            and message.config.slot(sender) is not None
            and message.config.id >= hard.config.id
            and message.data >= hard.mark
        )
        return [Send(sender, PreVoted(message.nonce, yes, hard.epoch))]

    def _on_grant(self, sender: str, incarnation: bytes, message: Grant, now: Moment) -> list[Effect]:
        if self._is_other(sender, incarnation, message.config):
            return []
        may = self._may_promise(sender, message.epoch, message.config, now)
        if not may or not self._descends(message.data):
            return [Send(sender, No(message.nonce, self.hard.epoch, self.hard.to, self.hard.config))]
        out = self._give(sender, message.epoch, message.config, now)
        return [*out, Send(sender, self._ok(message.nonce, message.config))]

    def _descends(self, data: Epoch) -> bool:
        """Whether data that descends from that epoch descends from the mark: opened epochs form a line."""
        return data >= self.hard.mark

    def _on_renew(self, sender: str, incarnation: bytes, message: Renew, now: Moment) -> list[Effect]:
        if self._is_other(sender, incarnation, message.config):
            return []
        hard, config = self.hard, message.config
        out: list[Effect] = []
        if config.id.generation < hard.config.id.generation:
            return [Send(sender, No(message.nonce, hard.epoch, hard.to, hard.config))]
        if (message.epoch, sender) == (hard.epoch, hard.to):  # V2
            if config.incarnation(self.me) != hard.incarnation and config.id > hard.config.id:
                # No voter any more: it learns that, and its answer counts for nothing.
                self.hard = hard._replace(config=config)
                return [Save(self.hard)]
            if config.id > hard.config.id or config.lease_ns > hard.longest_ns:
                newer = max(config, hard.config, key=lambda one: one.id)
                longest = max(hard.longest_ns, config.lease_ns)
                self.hard = hard._replace(config=newer, longest_ns=longest)
                out.append(Save(self.hard))
            self._promise_for(config.lease_ns, now)
        elif self._may_promise(sender, message.epoch, config, now) or self._may_return(sender, message, now):
            out += self._give(sender, message.epoch, config, now)
        else:
            return [Send(sender, No(message.nonce, hard.epoch, hard.to, hard.config))]
        return [*out, Send(sender, self._ok(message.nonce, config))]

    def _may_return(self, sender: str, message: Renew, now: Moment) -> bool:
        """Whether a voter that promised a later epoch to itself, and gave that up, may help who holds the
        lease: nobody relies on what it promised. Else its vote would be lost as long as that one holds it."""
        hard, config = self.hard, message.config
        return (
            hard.to == self.me
            and self.phase is Phase.STANDBY
            and not self.promised(now)
            and hard.mark <= message.epoch < hard.epoch
            and config.slot(sender) == message.epoch.slot
            and config.incarnation(self.me) == hard.incarnation
            and config.id >= hard.config.id
        )

    def _give(self, to: str, epoch: Epoch, config: Config, now: Moment) -> list[Effect]:
        """Promise this epoch to that candidate."""
        longest = max(self.hard.longest_ns, config.lease_ns)
        self.hard = self.hard._replace(epoch=epoch, to=to, config=config, longest_ns=longest)
        self._seen = max(self._seen, epoch.counter)
        self._promise = None
        self._promise_for(config.lease_ns, now)
        self.released = None
        out: list[Effect] = [Save(self.hard)]
        if to != self.me and self.phase is not Phase.STANDBY:
            if self.holds:
                out = [*self._fence(f"epoch {epoch} was promised to {to}", now), *out]
            self._end(now)
        return out

    def _promise_for(self, lasts: int, now: Moment) -> None:
        """From now on for so long, and never shorter than was promised before."""
        self.promised_here = True
        if self._promise is not None:
            since, before = self._promise
            if before - at_least(since, now) > lasts:
                return
        self._promise = (now, lasts)

    def _ok(self, nonce: int, config: Config) -> Ok:
        return Ok(nonce, self.hard.epoch, config.lease_ns, self.hard.config.id)

    def _on_open(self, sender: str, message: Open) -> list[Effect]:
        hard = self.hard
        if (message.epoch, sender) != (hard.epoch, hard.to):  # V3
            return []
        out: list[Effect] = []
        if hard.mark < message.epoch:
            self.hard = hard._replace(mark=message.epoch)
            out.append(Save(self.hard))
        return [*out, Send(sender, Opened(message.nonce, message.epoch))]

    def _on_release(self, sender: str, message: Release) -> list[Effect]:
        if (message.epoch, sender) == (self.hard.epoch, self.hard.to):  # V4
            self.released = (message.epoch, message.successor)
            if message.successor == self.me:
                self._wait = None  # what it tried before was at another's lease
        return []

    def hear(self, epoch: Epoch) -> None:
        """Somebody began this epoch, as this node's data knows: the next one is greater."""
        self._hear(epoch)

    # -- alone, and by force

    @property
    def opened(self) -> Epoch:
        """The epoch that this node is active in, and a majority has noted as the mark; else none."""
        return self._epoch if self.serves else NO_EPOCH

    def heard(self, sender: str, config: Config, mark: Epoch) -> list[Effect]:
        """Another keeper says which configuration it knows, and what it opened. So a candidate that does not
        vote knows what there is to be by force, and whether its data would do. Nobody speaks for another's
        epoch, and nothing makes a leap (rule 19)."""
        known = self.hard.config
        leap = max(mark.counter, config.id.epoch.counter) > self.hard.epoch.counter + EPOCH_JUMP
        later = (config.id.generation >> GENERATION_BITS) - (known.id.generation >> GENERATION_BITS)
        slot = config.slot(sender)
        if leap or later > GENERATIONS_MOST or (mark != NO_EPOCH and mark.slot != slot):
            return []
        if config.id.generation <= self.hard.config.id.generation:
            self._confirmed.add(sender)
        else:
            self._confirmed.discard(sender)
        if self.phase is not Phase.STANDBY:
            return []
        newer = max(config, self.hard.config, key=lambda one: one.id)
        hard = self.hard._replace(config=newer, mark=max(self.hard.mark, mark))
        if hard == self.hard:
            return []
        self.hard = hard
        return [Save(hard)]

    def activate_alone(self) -> None:
        """A person says that no other node was made active by force."""
        self._is_told_alone = True

    def unconfirmed(self) -> list[str]:
        """Whom this node, which alone votes and has just started, waits for; empty when for nobody."""
        hard = self.hard
        is_first = hard.mark == NO_EPOCH and not hard.config.id.generation >> GENERATION_BITS
        alone = len(hard.config.voters) == 1 and not is_first
        if not alone or self.promised_here or self._is_told_alone:
            return []
        others = (name for name, _ in hard.config.slots if name != self.me and name not in self.removed)
        return [name for name in others if name not in self._confirmed]

    def waits(self) -> str:
        """That it waits for the word of others, or of a person, before it may be active; '' when not."""
        names = self.unconfirmed() if self.is_voter else []
        if not names:
            return ""
        return (
            f"It alone votes and has just started: it waits until {' and '.join(names)} confirmed that no"
            " other node was made active by force. Where you know that, say so: crnode activate --alone"
        )

    def force(self, data: Epoch, *, accept_loss: bool = False) -> list[Effect] | str:
        """Begin a generation in which this node alone votes, because a person has switched the others off
        (M5). `accept_loss`: though its data, which descends from epoch `data`, does not descend from what was
        opened last (rule 1). A sentence says why not."""
        hard = self.hard
        if self.phase is not Phase.STANDBY:
            return f"It is at it already ({self.phase.name.lower()})."
        slot = hard.config.slot(self.me)
        if slot is None:
            return "This node is no candidate."
        if data < hard.mark and not accept_loss:
            return f"Its data descends from epoch {data}, and epoch {hard.mark} was opened since."
        generation = next_generation(hard.config.id.generation, slot)
        known = max(self._seen, hard.epoch.counter, hard.mark.counter, hard.config.id.epoch.counter)
        epoch = Epoch(known + FORCED_AHEAD * (generation >> GENERATION_BITS), slot)
        voters = (Voter(self.me, hard.incarnation),)
        config = hard.config._replace(id=ConfigId(generation, epoch, 1), voters=voters)
        mark = min(hard.mark, data)
        self.hard = hard._replace(config=config, epoch=epoch, to="", mark=mark)
        self._seen = max(self._seen, epoch.counter)
        self._is_told_alone = True
        self._wait = None
        return [Save(self.hard), Say("A new generation begins by force: this node alone votes.")]

    # -- candidate

    def campaign(self, data: Epoch, now: Moment) -> list[Effect] | str:
        """Try to become the holder, with data that descends from the opened epoch `data` (C1). A sentence
        says why it may not be tried."""
        hard = self.hard
        if self.phase is not Phase.STANDBY:
            return f"It is at it already ({self.phase.name.lower()})."
        if not self.is_voter or hard.config.slot(self.me) is None:
            return "This node is no candidate, or not a voter any more."
        if data < hard.mark:
            return f"Its data descends from epoch {data}, and epoch {hard.mark} was opened since."
        if why := self.waits():
            return why
        if self.promised(now) and hard.to != self.me and self.released != (hard.epoch, self.me):
            return f"It has promised the lease to {hard.to or 'whoever had it before this keeper started'}."
        if self._wait is not None and at_most(self._wait[0], now) < self._wait[1]:
            return "It has tried a moment ago, and waits before it tries again."
        self._wait = None
        self._data = data
        self.phase, self._begun = Phase.ASKING, now
        self._yes = {self.me}
        self._no = set()
        return [*self._ask_pre_votes(now), *self._pre_voted(now)]

    def _ask_pre_votes(self, now: Moment) -> list[Effect]:
        """Ask those who have not said yes."""
        self._renewed = now
        config = self.hard.config
        names = [voter.name for voter in config.voters if voter.name not in self._yes]
        return [Send(name, PreVote(self._ask(name, now), self._data, config)) for name in names]

    def _on_pre_voted(
        self, sender: str, incarnation: bytes, message: PreVoted, now: Moment
    ) -> list[Effect]:
        self._hear(message.epoch)
        asked = self._sent.pop(message.nonce, None)
        if self.phase is not Phase.ASKING or asked is None or asked[0] != sender:
            return []
        if not message.yes or self.hard.config.incarnation(sender) != incarnation:
            return []
        self._yes.add(sender)
        return self._pre_voted(now)

    def _pre_voted(self, now: Moment) -> list[Effect]:
        if len(self._yes) < self.hard.config.majority:
            return []
        slot = self.hard.config.slot(self.me)
        assert slot is not None
        self._epoch = Epoch(max(self._seen, self.hard.epoch.counter) + 1, slot)  # C2
        self.phase, self._begun = Phase.CAMPAIGNING, now
        self._held, self._configs, self._marks, self._no, self._sent = {}, {}, set(), set(), {}
        self._doubted = {}
        self._doubt = self._before = None
        out = self._give(self.me, self._epoch, self.hard.config, now)
        return [*out, *self._ask_all(now)]

    def _give_up(self, why: str, now: Moment) -> list[Effect]:
        lease = self.hard.config.lease_ns
        self._wait = (now, lease + int(lease * self._chance()))
        self._end(now)
        return [Say(f"The campaign was given up: {why}.")]

    # -- holder

    def _held_for(self, promised_ns: int) -> int:
        return held_for(promised_ns)

    def _ask(self, voter: str, now: Moment) -> int:
        self._nonce += 1
        self._sent[self._nonce] = (voter, now)
        if len(self._sent) > 64 * MOST_VOTERS:
            for nonce in list(self._sent)[: 32 * MOST_VOTERS]:
                del self._sent[nonce]
        return self._nonce

    def _voters(self) -> list[str]:
        """Everybody who is asked: of both configurations while one changes into the other."""
        names = [voter.name for voter in self.hard.config.voters]
        if self._before is not None:
            names += [voter.name for voter in self._before.voters if voter.name not in names]
        return names

    def _ask_all(self, now: Moment) -> list[Effect]:
        """A round of questions: for the lease, or to go on with it; and my own voter's promise to myself."""
        self._renewed = now
        config = self.hard.config
        out: list[Effect] = []
        for name in self._voters():
            if name == self.me:
                self._promise_for(config.lease_ns, now)
                self._held[name] = (now, self._held_for(config.lease_ns))
                self._configs[name] = config.id
                continue
            nonce = self._ask(name, now)
            if self.phase is Phase.CAMPAIGNING:
                if name not in self._held:
                    out.append(Send(name, Grant(nonce, self._epoch, self._data, config)))
                else:
                    out.append(Send(name, Renew(nonce, self._epoch, config)))
                continue
            out.append(Send(name, Renew(nonce, self._epoch, config)))
            if self.phase >= Phase.OPENING and not self._has_marked(name):
                out.append(Send(name, Open(self._ask(name, now), self._epoch)))
        return out + self._progress(now)

    def _on_ok(self, sender: str, incarnation: bytes, message: Ok, now: Moment) -> list[Effect]:
        asked = self._sent.pop(message.nonce, None)
        if self.phase < Phase.CAMPAIGNING or message.epoch != self._epoch:
            return []
        if asked is None or asked[0] != sender:
            return []
        config = self._before if self._before is not None else self.hard.config
        if incarnation not in (self.hard.config.incarnation(sender), config.incarnation(sender)):
            return []
        sent = asked[1]
        held = self._held.get(sender)
        if held is None or held[0].boot < sent.boot:
            self._held[sender] = (sent, self._held_for(message.promised_ns))
        if self._configs.get(sender, message.config) <= message.config:
            self._configs[sender] = message.config
        self._no.discard(sender)
        self._doubted.pop(sender, None)
        return self._progress(now)

    def _on_no(self, sender: str, message: No, now: Moment) -> list[Effect]:
        self._hear(message.epoch)
        out: list[Effect] = []
        asked = self._sent.pop(message.nonce, None)
        if not self.holds and message.config.id > self.hard.config.id:
            self.hard = self.hard._replace(config=message.config)  # C2: a No teaches
            out.append(Save(self.hard))
            if self.phase is not Phase.STANDBY:
                return out + self._give_up(f"{sender} knows a later configuration", now)
        if asked is None or asked[0] != sender or self.phase < Phase.CAMPAIGNING:
            return out
        self._no.add(sender)
        voters = {voter.name for voter in self._counting.voters}
        refused = len(self._no & voters) >= self._counting.majority
        if not self.holds:
            return out + self._give_up("a majority refused", now) if refused else out
        if message.epoch > self._epoch:
            if refused:
                return out + self._fence(f"a majority has promised a later epoch, {message.epoch}", now)
            if self._doubted.get(sender) != message.epoch:  # else it said so before, and a majority held
                self._doubted[sender] = message.epoch
                out += self._begin_doubt(f"{sender} has promised epoch {message.epoch}", now)
        return out

    def _hear(self, epoch: Epoch) -> None:
        if epoch.counter <= self._seen + EPOCH_JUMP:
            self._seen = max(self._seen, epoch.counter)

    def _progress(self, now: Moment) -> list[Effect]:
        """Go on as far as the answers reach."""
        out: list[Effect] = []
        if self.phase is Phase.CAMPAIGNING and self.left(now) > self.timers.stop_ns:
            config = self.hard.config  # H2: the same, in its own epoch
            version = config.id.version + 1
            again = config._replace(id=ConfigId(config.id.generation, self._epoch, version))
            self.hard = self.hard._replace(config=again)
            self.phase = Phase.CONFIRMING
            self._ticked = now
            out += [Save(self.hard), Say(f"It holds the lease of epoch {self._epoch}.")]
            return [*out, *self._ask_all(now)]
        if self.phase is Phase.CONFIRMING and self._is_confirmed():
            self.phase = Phase.GATHERING
            out.append(Gather(self._epoch))
        if self.phase is Phase.OPENING and self._is_marked() and self.left(now) > self.timers.stop_ns:
            self.phase = Phase.ACTIVE  # now, and only now, services start
            out.append(Serve(self._epoch))
            if self._doubt is not None:
                out.append(AddressOff("it is not sure that the lease is still held"))
        if self._doubt is not None and self._is_sure():
            self._doubt = None
            if self.phase is Phase.ACTIVE:
                out.append(AddressOn())
        if self.serves:
            out.append(Extend(self.left(now)))
            if self._before is not None and self._is_confirmed() and self._is_marked():
                self._before = None
                out.append(Say("The change of the voters is complete."))
        return out

    def _is_confirmed(self) -> bool:
        """Whether a majority of the present configuration has it."""
        config = self.hard.config
        having = [v for v in config.voters if (c := self._configs.get(v.name)) is not None and c >= config.id]
        return len(having) >= config.majority

    def _is_marked(self) -> bool:
        config = self.hard.config
        return sum(voter in self._marks for voter in config.voters) >= config.majority

    def _has_marked(self, name: str) -> bool:
        """Whether the voter of that name noted our epoch: as who it is now, not as who it was before."""
        incarnation = self.hard.config.incarnation(name)
        return incarnation is not None and Voter(name, incarnation) in self._marks

    def _is_sure(self) -> bool:
        """Whether a majority answered what was asked since the doubt began."""
        assert self._doubt is not None
        fresh = 0
        for voter in self._counting.voters:
            held = self._held.get(voter.name)
            fresh += held is not None and held[0].boot >= self._doubt.boot
        return fresh >= self._counting.majority

    def gathered(self, now: Moment) -> list[Effect]:
        """Everybody was asked, what is newer is here, and the live tree is at it (H3)."""
        if self.phase is not Phase.GATHERING or self.left(now) <= self.timers.stop_ns:
            return []
        self.phase = Phase.COMMITTING
        return [CommitOpening(self._epoch)]

    def committed(self, now: Moment) -> list[Effect]:
        """The opening image is committed here, durably: the epoch may be opened."""
        if self.phase is not Phase.COMMITTING or self.left(now) <= self.timers.stop_ns:
            return []
        self.phase = Phase.OPENING
        self.hard = self.hard._replace(mark=max(self.hard.mark, self._epoch))
        self._marks = {Voter(self.me, self.hard.incarnation)}
        out: list[Effect] = [Save(self.hard)]
        for name in self._voters():
            if name != self.me:
                out.append(Send(name, Open(self._ask(name, now), self._epoch)))
        return out + self._progress(now)

    def _on_opened(self, sender: str, incarnation: bytes, message: Opened, now: Moment) -> list[Effect]:
        self._sent.pop(message.nonce, None)
        if message.epoch != self._epoch or self.phase < Phase.OPENING:
            return []
        if self.hard.config.incarnation(sender) != incarnation:
            return []
        self._marks.add(Voter(sender, incarnation))
        return self._progress(now)

    def hand_over(self, successor: str) -> list[Effect] | str:
        """Begin to let `successor` be active; services stop while the lease is held (S2)."""
        if self.phase is not Phase.ACTIVE:
            return "This node is not active."
        if successor == self.me or self.hard.config.slot(successor) is None:
            return f"{successor} is no other candidate."
        if self.hard.config.incarnation(successor) is not None and not self.relies_on(successor):
            return f"{successor} has promised nothing in this epoch yet, so its release would not be heard."
        self.phase, self._successor = Phase.HANDING, successor
        return [AddressOff(f"{successor} takes over as asked"), Stop(successor)]

    def take_back(self) -> list[Effect]:
        """The successor is not ready in time: go on in the same epoch (S4)."""
        if self.phase is not Phase.HANDING:
            return []
        self.phase = Phase.ACTIVE
        out: list[Effect] = [Serve(self._epoch)]
        return out if self._doubt is not None else [*out, AddressOn()]

    def stopped(self, now: Moment) -> list[Effect]:
        """Nothing of the services is left, verified, and the successor has everything: the epoch ends here
        for good (S5)."""
        if self.phase is not Phase.HANDING:
            return []
        return self._release(self._successor, now)

    def give_way(self, successor: str, now: Moment) -> list[Effect]:
        """Leave an epoch that was not opened yet to a node that has newer data (rule 18)."""
        if not Phase.CONFIRMING <= self.phase <= Phase.GATHERING or self.hard.config.slot(successor) is None:
            return []
        return self._release(successor, now)

    def _release(self, successor: str, now: Moment) -> list[Effect]:
        epoch = self._epoch
        names = [name for name in self._voters() if name != self.me]
        lease = self.hard.config.lease_ns
        self._wait = (now, 2 * lease)  # S7
        self._end(now)
        self.released = (epoch, successor)  # my own voter's promise to me
        out: list[Effect] = [Fence(f"epoch {epoch} was released to {successor}")]
        out += [Send(name, Release(epoch, successor)) for name in names]
        return [*out, Say(f"Epoch {epoch} was released to {successor}.")]

    def abandon(self, why: str, now: Moment) -> list[Effect]:
        """Leave an epoch that was not opened: this node cannot serve in it. Others may, when what was
        promised has run out."""
        if not Phase.CONFIRMING <= self.phase <= Phase.OPENING:
            return []
        lease = self.hard.config.lease_ns
        out = self._fence(why, now)
        self._wait = (now, 2 * lease + int(lease * self._chance()))
        return out

    def _fence(self, why: str, now: Moment) -> list[Effect]:
        epoch = self._epoch
        self._end(now)
        return [Fence(why), Say(f"Epoch {epoch} is over here: {why}.")]

    def _end(self, now: Moment) -> None:
        """Whatever it was, it is over; the epoch is never held again (H6). What this node promised itself is
        relied on by nobody when the lease would have ended."""
        if self.hard.to == self.me and self._promise is not None:
            self._promise = (now, min(max(0, self.left(now)), self.promise_left(now)))
        self.phase = Phase.STANDBY
        self._epoch = NO_EPOCH
        self._held, self._configs, self._marks, self._sent = {}, {}, set(), {}
        self._no, self._yes = set(), set()
        self._doubted = {}
        self._begun = self._renewed = self._doubt = self._before = None
        self._successor = ""

    def _begin_doubt(self, why: str, now: Moment) -> list[Effect]:
        if self._doubt is not None:
            return []
        self._doubt = now
        out: list[Effect] = [AddressOff(why)] if self.phase is Phase.ACTIVE else []
        return [*out, *self._ask_all(now)]

    # -- configuration

    def change(self, config: Config, now: Moment) -> list[Effect] | str:
        """Add or remove one voter, or change anything else (M1, M2). `config` has any id; a sentence says why
        it may not be."""
        held = self.hard.config
        if self.phase is not Phase.ACTIVE or self.left(now) <= self.timers.stop_ns:
            return "Only the active node changes who votes."
        back = self._before is not None and config.voters == self._before.voters
        if not back and not self.is_settled:
            return "The last change is not complete yet."
        if len(set(config.voters) ^ set(held.voters)) > 1:
            return "Voters are added and removed one at a time."
        if config.incarnation(self.me) != self.hard.incarnation or config.slot(self.me) is None:
            return "The active node cannot take itself out; hand over first."
        if len(config.voters) > MOST_VOTERS:
            return f"There are at most {MOST_VOTERS} voters."
        slots = dict(held.slots)
        if any(slots.get(name, slot) != slot for name, slot in config.slots):
            return "The slot of a candidate never changes."
        version = held.id.version + 1
        config = config._replace(id=ConfigId(held.id.generation, self._epoch, version))
        self._before = self._counting
        for voter in set(config.voters) - set(held.voters):
            if self._before.incarnation(voter.name) != voter.incarnation:  # somebody else had that name
                self._held.pop(voter.name, None)
                self._configs.pop(voter.name, None)
        longest = max(self.hard.longest_ns, config.lease_ns)
        self.hard = self.hard._replace(config=config, longest_ns=longest)
        return [Save(self.hard), *self._ask_all(now)]


__all__ = ["Lease", "Phase"]
