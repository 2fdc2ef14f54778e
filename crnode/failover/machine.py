"""When a candidate tries to become active, and who votes: what stands above the lease. Pure.

The lease keeps two from being active; this decides when one should be. Each refusal is a sentence, because
people ask why nothing takes over, and the journal has to say.
"""

from __future__ import annotations

from typing import NamedTuple

from crnode.failover.lease import Lease, Phase
from crnode.failover.terms import NO_EPOCH, SECOND, Config, Moment, Voter, at_least

COLD_WAIT_NS = {"lan": 120 * SECOND, "wan": 600 * SECOND}
"""After its start a candidate leaves this much time to the node that was active last (rule 16)."""
MAJORITY_FROM = 3  # voters of whom one may be lost
RATE_NS = 3600 * SECOND
RATE_MOST = 2  # takeovers that nobody asked for within that time (rule 24)


class Facts(NamedTuple):
    """What a keeper knows when it asks itself whether to campaign."""

    me: str
    network: str  # lan or wan
    started: Moment  # of this keeper
    able: str  # '' when this node could serve; else why it cannot
    owner_able: bool  # the node that opened the newest epoch has not said that it cannot serve
    takeovers: tuple[Moment, ...]  # that this node made by itself, in this life
    asked: bool  # a person wants this node to be active
    cut_off: str = ""  # why it may be cut off from its users


def hindrance(facts: Facts, lease: Lease, now: Moment) -> str:
    """Why this node does not campaign now; '' when it does. What the lease itself forbids is not asked
    here."""
    config, mark = lease.hard.config, lease.hard.mark
    slot = config.slot(facts.me)
    if slot is None:
        return "It is no candidate."
    if facts.able:
        return f"It cannot serve: {facts.able}"
    if facts.asked:
        return ""
    if facts.cut_off:
        return f"It leaves it to others: {facts.cut_off}."
    recent = [at for at in facts.takeovers if at_least(at, now) < RATE_NS]
    if len(recent) >= RATE_MOST:
        return f"It has taken over {len(recent)} times within the hour; a person has to say what is wrong."
    waited = at_least(facts.started, now)
    cold = COLD_WAIT_NS[facts.network]
    somebody_else = mark not in (NO_EPOCH, mark._replace(slot=slot)) and facts.owner_able
    if somebody_else and waited < cold and not lease.promised_here:  # else the cluster did not just start
        left = (cold - waited) // SECOND
        return f"It has just started, and leaves {left} s to the node that was active last."
    return ""


def next_voters(
    config: Config, wanted: tuple[str, ...], heard: dict[str, bytes], active: str
) -> Config | None:
    """The configuration that comes one voter nearer to `wanted`; None when it is that, or nothing can be done
    now. `heard`: incarnation of each keeper that answers. A voter that came back as somebody else is taken
    out first, then added. Two voters are worse than one (rule 12): where no more are wanted the active node
    votes alone, and from one to three the second is added only when the third is there as well."""
    if len(wanted) < MAJORITY_FROM:
        wanted = (active,)
    have = {voter.name: voter.incarnation for voter in config.voters}
    gone = [name for name in have if name not in wanted or heard.get(name, have[name]) != have[name]]
    gone.sort(key=lambda name: name in heard)  # who is away first: the others are needed to confirm it
    if gone:
        voters = tuple(voter for voter in config.voters if voter.name != gone[0])
        return config._replace(voters=voters) if voters else None
    new = [name for name in wanted if name not in have and name in heard]
    if not new or (len(have) == 1 and len(new) == 1 and len(wanted) > 2):
        return None
    return config._replace(voters=tuple(sorted((*config.voters, Voter(new[0], heard[new[0]])))))


def sentence(lease: Lease, now: Moment) -> str:
    """What this node is, for people."""
    if lease.phase is Phase.ACTIVE:
        doubt = ", and has its address off until a majority answers" if lease.doubts else ""
        return f"active in epoch {lease.epoch}, the lease holds for {lease.left(now) / SECOND:.1f} s{doubt}"
    if lease.phase is Phase.STANDBY:
        if lease.promised(now) and lease.hard.to:
            return f"standby; it has promised epoch {lease.hard.epoch} to {lease.hard.to}"
        return "standby; nobody holds a lease that it knows of"
    return f"{lease.phase.name.lower()} for epoch {lease.epoch}"


__all__ = ["COLD_WAIT_NS", "RATE_MOST", "RATE_NS", "Facts", "hindrance", "next_voters", "sentence"]
