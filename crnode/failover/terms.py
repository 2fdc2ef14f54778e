"""The values that keepers pass to each other and keep. Pure.

Times are in nanoseconds. A moment is a pair of readings, because no single clock can be trusted with a
lease: one of them stands still while the machine sleeps, the other may be slewed (rule 3). What passed
since a moment is the greater of the two differences to whoever holds a lease, and the smaller to whoever
promised one.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

SECOND = 1_000_000_000
DRIFT_PARTS = 100  # a clock is off by one part of so many at most
MOST_VOTERS = 5
EPOCH_JUMP = 1 << 20  # an epoch that is so much greater than the one known is refused (rule 19)
FORCED_AHEAD = 1 << 10  # epochs that others may have come to unheard; a forced generation begins after them


class Moment(NamedTuple):
    """Two readings of the machine's own clocks, ns: BOOTTIME and MONOTONIC_RAW."""

    boot: int
    raw: int


def at_most(since: Moment, now: Moment) -> int:
    """What passed, as a holder counts it: ns, the greater of the two."""
    return max(now.boot - since.boot, now.raw - since.raw)


def at_least(since: Moment, now: Moment) -> int:
    """What passed, as a voter counts it: ns, the smaller of the two."""
    return min(now.boot - since.boot, now.raw - since.raw)


class Epoch(NamedTuple):
    """One time of one node being active. The slot is the candidate's own, and never anybody else's, so that
    two candidates never own one epoch (rule 8)."""

    counter: int
    slot: int

    def __str__(self) -> str:
        return f"{self.counter}.{self.slot}"


NO_EPOCH = Epoch(0, 0)


class ConfigId(NamedTuple):
    """Orders configurations: a later generation (forced by a person), then epoch, then version wins."""

    generation: int
    epoch: Epoch
    version: int


GENERATION_BITS = 8


def next_generation(known: int, slot: int) -> int:
    """The generation that the candidate of that slot begins by force: a counter, and the slot below it, so
    that two which do not know of each other never begin the same."""
    return ((known >> GENERATION_BITS) + 1) << GENERATION_BITS | slot


class Voter(NamedTuple):
    """A voter is its state: one that lost it comes back under another incarnation, as nobody (rule 8)."""

    name: str
    incarnation: bytes


class Config(NamedTuple):
    """Who votes, who may hold the lease, and for how long it is promised."""

    id: ConfigId
    voters: tuple[Voter, ...]
    slots: tuple[tuple[str, int], ...]  # of the candidates; a slot is never given to another node
    lease_ns: int

    @property
    def majority(self) -> int:
        return len(self.voters) // 2 + 1

    def incarnation(self, name: str) -> bytes | None:
        """Of the voter of that name; None when it is none."""
        return next((voter.incarnation for voter in self.voters if voter.name == name), None)

    def slot(self, name: str) -> int | None:
        """Of the candidate of that name; None when it is none."""
        return next((slot for candidate, slot in self.slots if candidate == name), None)


class Timers(NamedTuple):
    """How often a holder renews, and how long before its lease ends it has to be silent; ns."""

    renew_ns: int
    stop_ns: int


LAN = Timers(SECOND // 2, 3 * SECOND // 10)
LAN_LEASE_NS = 5 * SECOND // 2
WAN = Timers(2 * SECOND, 3 * SECOND // 10)
WAN_LEASE_NS = 10 * SECOND


def timers_of(lease_ns: int) -> Timers:
    """How often a lease of that length is renewed, and how long before its end its holder is silent."""
    return WAN if lease_ns >= WAN_LEASE_NS else LAN


def margin(lease_ns: int) -> int:
    """What a holder takes off besides the drift: ns."""
    return max(SECOND // 20, lease_ns // 20)


def held_for(promised_ns: int) -> int:
    """How long after the sending of what a voter answered its promise is relied on: both clocks may be off,
    one this way and one that."""
    return promised_ns - 2 * promised_ns // DRIFT_PARTS - margin(promised_ns)


def check_timers(timers: Timers, lease_ns: int) -> None:
    """ValueError, a sentence, for a lease that could not be renewed in time, or not be given up in time."""
    if 4 * timers.renew_ns > lease_ns:
        raise ValueError("A lease has to be at least four times as long as the time between two renewals.")
    if 3 * (timers.stop_ns + margin(lease_ns)) >= lease_ns:
        raise ValueError("Of a lease less than a third may be left for stopping and the margin.")


class Hard(NamedTuple):
    """What a keeper must never forget: saved before anything is said that depends on it."""

    incarnation: bytes  # 16 random bytes, drawn when this state was made
    epoch: Epoch  # the highest that was promised
    to: str  # and to whom; '' for nobody
    config: Config
    longest_ns: int  # the longest promise that was ever given
    mark: Epoch  # the newest epoch that is known to have been opened


# -- messages; each answer repeats the nonce of what it answers


class PreVote(NamedTuple):
    """Would you grant me a lease? Changes nothing."""

    nonce: int
    data: Epoch  # the newest opened epoch that the sender's data descends from
    config: Config  # a voter that was added last may not know it yet


class PreVoted(NamedTuple):
    nonce: int
    yes: bool
    epoch: Epoch  # the answerer's, so that the next one is greater


class Grant(NamedTuple):
    """Promise me the lease of this epoch."""

    nonce: int
    epoch: Epoch
    data: Epoch
    config: Config


class Renew(NamedTuple):
    """Promise it to me again."""

    nonce: int
    epoch: Epoch
    config: Config


class Ok(NamedTuple):
    nonce: int
    epoch: Epoch
    promised_ns: int
    config: ConfigId


class No(NamedTuple):
    nonce: int
    epoch: Epoch  # what the voter has promised,
    to: str  # ... and to whom
    config: Config


class Open(NamedTuple):
    """This epoch begins: no data that does not descend from it is ever to be active again (rule 1)."""

    nonce: int
    epoch: Epoch


class Opened(NamedTuple):
    nonce: int
    epoch: Epoch


class Release(NamedTuple):
    """The sender has stopped for good in this epoch; `successor` need not wait for its end."""

    epoch: Epoch
    successor: str


class Alive(NamedTuple):
    """What every keeper tells every other one now and then: it is there, whether it could serve, the newest
    configuration that it knows of, and the epoch that it opened and is active in, else none."""

    nonce: int
    able: bool
    config: Config
    mark: Epoch


Message: TypeAlias = PreVote | PreVoted | Grant | Renew | Ok | No | Open | Opened | Release | Alive


# -- what is to be done, in the order in which it is given


class Save(NamedTuple):
    """Write this to the vote file, durably, before anything that follows."""

    hard: Hard


class Send(NamedTuple):
    to: str
    message: Message


class Fence(NamedTuple):
    """Nothing of this node may serve any more: address, gates, processes, at once."""

    why: str


class AddressOff(NamedTuple):
    """Serve nobody until it is sure that the lease is still held; the services go on."""

    why: str


class AddressOn(NamedTuple):
    """It is sure."""


class Extend(NamedTuple):
    """The lease is held for so many ns from now: what the kernel does by itself ends then."""

    left_ns: int


class Gather(NamedTuple):
    """Ask every member to commit nothing older than this epoch, and for what it has newer than we (rules 20
    and 21)."""

    epoch: Epoch


class CommitOpening(NamedTuple):
    """Commit the image that opens this epoch."""

    epoch: Epoch


class Serve(NamedTuple):
    """Start the services, take the address."""

    epoch: Epoch


class Stop(NamedTuple):
    """Stop the services in good order; the lease is held meanwhile."""

    successor: str


class Say(NamedTuple):
    """A sentence for the journal."""

    text: str


Effect: TypeAlias = (
    Save | Send | Fence | AddressOff | AddressOn | Extend | Gather | CommitOpening | Serve | Stop | Say
)
