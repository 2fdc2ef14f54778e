"""What an active keeper does about its services: start them again, let another node serve, hand back home.

It decides when; the lease decides whether it may be, and the keeper does it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from crnode.cluster.moves import epoch_number
from crnode.errors import CrnodeError
from crnode.failover.clocks import moment
from crnode.failover.lease import Phase
from crnode.failover.terms import SECOND, Effect, Voter

if TYPE_CHECKING:
    from crnode.failover.keeper import Keeper

FORGIVEN_SECONDS = 600.0  # after which a failure of a service counts no more
HAND_OVERS, HAND_OVER_SECONDS = 2, 3600.0  # that a service may cause, within so long (rule 24)
VOTE_SECONDS = 5.0  # for a node that is to vote to be one of the voters
PROMISE_SECONDS = 0.05  # between two looks whether the successor has promised the epoch
READY_SECONDS = 2.0  # for the agent to say whether another node has all


class Tending:
    """See the module's text."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.voting = ""  # who is given a vote, to be able to take over (rule 12)
        self.settled = asyncio.Event()  # no change of the voters is under way
        self._failures: dict[str, list[float]] = {}  # service -> when it failed
        self._handed: list[float] = []  # when a service made another node serve
        self._mending = False  # a service is being started again
        self._going = False  # home, by itself
        self._home_since: float | None = None  # when the node that is home was able, and has been since

    def forget(self) -> None:
        """A new start: what failed before counts no more."""
        self._failures.clear()

    def go_home(self, clock: float) -> None:
        """Hand back by itself, when the owner wants that and home has been able for so long."""
        wait, home = self.keeper.takeover().failback_s, self._home()
        link = self.keeper.links.get(home)
        if wait is None or link is None or not (link.is_there and link.able) or not self.keeper.is_up:
            self._home_since = None
        elif self._home_since is None:
            self._home_since = clock
        elif clock - self._home_since >= wait and not self._going and not self._mending:
            self._home_since = clock  # if it comes to nothing, as long again
            self._going = True
            self.keeper.later(self._hand_back(home))

    def _home(self) -> str:
        """The node that is active when all is well: whose the sets are that move, else the master."""
        names = self.keeper.takeover().sets
        homes = {spec.source for spec in self.keeper.document.sets if spec.name in names}
        return homes.pop() if len(homes) == 1 else self.keeper.document.master.name

    async def _hand_back(self, home: str) -> None:
        try:
            await self._try_home(home)
        finally:
            self._going = False

    def _too_often(self) -> bool:
        now = time.monotonic()
        self._handed = [at for at in self._handed if now - at < HAND_OVER_SECONDS]
        return len(self._handed) >= HAND_OVERS

    async def _try_home(self, home: str) -> None:
        if self._too_often():
            self.keeper.say_once("home", f"{home} was handed back to {HAND_OVERS} times within the hour.")
            return
        if self.keeper.takeover().sets:
            try:
                await self._ready_for(home)
            except CrnodeError as error:
                self.keeper.say_once("home", f"{home} is not handed back to yet: {error}")
                return
        answer = await self.with_vote(home)
        if isinstance(answer, str):
            self.keeper.say_once("home", f"{home} is not handed back to yet: {answer}")
            return
        waited = self.keeper.takeover().failback_s
        self.keeper.tell(f"{home} has been able for {waited} s, and is to serve again.")
        self._handed.append(time.monotonic())
        self.keeper.do(answer)

    def watch(self) -> None:
        """A service that does not serve is started again; one that goes on like that makes another node
        serve, if there is one that is able."""
        if not self.keeper.is_up or self._mending:
            return
        now = time.monotonic()
        if self.keeper.services.fresh:
            self._mending = True
            self.keeper.later(self._begin())
            return
        for name, why in self.keeper.services.unsure():
            self.keeper.say_once(f"unsure {name}", f"The service {name}: {why}.")
        for spec, why in self.keeper.services.failed():
            recent = [at for at in self._failures.get(spec.name, []) if now - at < FORGIVEN_SECONDS]
            self._failures[spec.name] = [*recent, now]
            self._mending = True
            self.keeper.later(self._mend(spec.name, why, len(recent), again=len(recent) < spec.restarts))
            return

    async def _mend(self, name: str, why: str, before: int, *, again: bool) -> None:
        """Start a service again, or let another node serve, when that has everything and could."""
        epoch = self.keeper.lease.epoch
        try:
            if not again:
                held = await self._move_away(name, why)
                if not held:
                    return
                self.keeper.say_once("service", f"The service {name} fails again and again, and {held}.")
            self.keeper.tell(f"The service {name} does not serve: {why}; it is started again.")
            if before:
                await asyncio.sleep(min(0.1 * 2**before, 5.0))
            if self.keeper.still(epoch) and name in self.keeper.services.running:
                await self.keeper.services.end(name)
            if self.keeper.still(epoch):
                await self.keeper.start_services(epoch)
        finally:
            self._mending = False

    async def _begin(self) -> None:
        """Start what is new among the services."""
        try:
            await self.keeper.start_services(self.keeper.lease.epoch)
        finally:
            self._mending = False

    @property
    def is_busy(self) -> bool:
        """Whether a service is being started."""
        return self._mending

    async def idle(self) -> None:
        """Return when none is."""
        while self._mending:  # noqa: ASYNC110 (nobody waits for it but a switch)
            await asyncio.sleep(0.02)

    async def _move_away(self, name: str, why: str) -> str:
        """Begin to hand over, because a service fails here; else why not."""
        now = time.monotonic()
        if self._too_often():
            return f"it moved {HAND_OVERS} times within the hour"
        others = [n for n, link in self.keeper.links.items() if link.is_there and link.able]
        slot, wanted = self.keeper.lease.hard.config.slot, self.keeper.takeover().candidates
        able = [n for n in others if n in wanted and slot(n) is not None]
        if not able:
            return "no other node is able"
        if self.keeper.takeover().sets:
            try:
                await self._ready_for(able[0])
            except CrnodeError as error:
                return f"{able[0]} cannot serve yet: {error}"
        answer = await self.with_vote(able[0])
        if isinstance(answer, str):
            return answer
        self.keeper.is_unable(f"its service {name} fails again and again: {why}")
        self._handed.append(now)
        self.keeper.tell(f"The service {name} fails again and again: {why}. {able[0]} is to serve.")
        self.keeper.do(answer)
        return ""

    async def _ready_for(self, to: str) -> None:
        """Raises CrnodeError where that node does not have nearly all."""
        args = {"to": to, "epoch": epoch_number(*self.keeper.lease.epoch)}
        await self.keeper.ask_agent("takeover.ready-for", args, READY_SECONDS)

    async def with_vote(self, successor: str) -> list[Effect] | str:
        """Begin to hand over to a node; where the active one votes alone, that one gets a vote before."""
        lease, link = self.keeper.lease, self.keeper.links[successor]
        if lease.phase is not Phase.ACTIVE or lease.hard.config.incarnation(successor) is not None:
            return await self._when_promised(successor)
        self.voting = successor
        try:
            config = lease.hard.config
            voters = tuple(sorted((*config.voters, Voter(successor, link.incarnation))))
            answer = lease.change(config._replace(voters=voters), moment())
            if isinstance(answer, str):
                return answer
            self.keeper.do(answer)
            async with asyncio.timeout(VOTE_SECONDS):
                self.settled.clear()
                await self.settled.wait()
            return await self._when_promised(successor)
        except TimeoutError:
            return f"{successor} was to vote, and did not answer in time."
        finally:
            self.voting = ""

    async def _when_promised(self, successor: str) -> list[Effect] | str:
        """A keeper that has just started promises nothing until what it may have promised before is over."""
        lease = self.keeper.lease
        seconds = lease.hard.longest_ns / SECOND + VOTE_SECONDS
        for _ in range(int(seconds / PROMISE_SECONDS)):
            if lease.phase is not Phase.ACTIVE or lease.relies_on(successor):
                break
            await asyncio.sleep(PROMISE_SECONDS)
        return lease.hand_over(successor)


__all__ = ["Tending"]
