"""What a node looks through when it is idle, one thing at a time: its sources' files, its live trees, the
newest versions, its catalogs, its packs.

Nothing here answers anybody, so everything gives way: it begins only in a minute in which nothing was
captured or received, works in children of low priority at a set pace, and a person's command never waits for
it. What was not looked at for two periods is looked at even by a node that is never idle."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from crnode.agent import audit, deep
from crnode.agent.maintenance import FAILURES
from crnode.capture.source import SourceSet
from crnode.replicate.receive import TargetSet

if TYPE_CHECKING:
    from crnode.agent.node import Agent

CHECK_SECONDS = 60.0
SLICE_SECONDS = 50.0  # of one piece of work: the next one asks anew whether the node is idle
PACE = 20 << 20  # bytes a second


class Idle:
    """See the module's text."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._seen: object = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.step(idle=await self._idle())
            except FAILURES as error:  # the next minute tries again
                self.agent.journal.add("store", f"A check at idle did not end well: {error}")
            except LookupError as error:  # a set was removed, or its catalog set aside, meanwhile
                text = f"A check at idle ended early; what it looked at may have been removed ({error!r})."
                self.agent.journal.add("store", text)

    async def _idle(self) -> bool:
        """Whether nothing was written to the store and no image was made since the last call."""
        sources = [r.source for r in self.agent.sets.sources.values()]
        now = (
            await asyncio.to_thread(self.agent.store.packs.total),
            [(s.newest.id if s.newest is not None else None, s.state) for s in sources],
        )
        before, self._seen = self._seen, now
        return before == now

    async def step(self, *, idle: bool) -> str:
        """Do one piece of what is due; returns what it was, '' when nothing is."""
        for running in list(self.agent.sets.sources.values()):
            if await self._deep(running.source, idle):
                return f"deep {running.spec.name}"
        for target in list(self.agent.sets.targets.values()):
            if await self._live(target.target, idle):
                return f"live tree {target.spec.name}"
        now = time.time_ns()
        if done := await self.agent.calls.schedule.step(now, idle=idle, pace=PACE):
            return done
        return await self._stored(now, idle)

    async def _stored(self, now: int, idle: bool) -> str:
        """One catalog, or some packs, if due."""
        if self.agent.calls.maintenance.busy:
            return ""
        looks = self.agent.calls.maintenance.audit
        period = audit.PERIOD_NS if idle else 2 * audit.PERIOD_NS
        uuid = await asyncio.to_thread(looks.due_catalog, now, period)
        if uuid is not None:
            await looks.catalog(uuid, now)
            return f"catalog {uuid}"
        budget = int(PACE * SLICE_SECONDS)
        packs = await asyncio.to_thread(looks.due_packs, now, budget, period)
        if packs:
            await looks.packs(packs, PACE, now)
            return f"packs {', '.join(map(str, packs))}"
        return ""

    async def _live(self, target: TargetSet, idle: bool) -> bool:
        if target.live is None or target.status.live:
            return False
        state, now = await deep.live_state_of(target), time.time_ns()
        overdue = now - state.begun_ns >= 2 * deep.PERIOD_NS
        if not state.due(now) or not (idle or overdue):
            return False
        await deep.compare_live(target, pace=PACE, seconds=SLICE_SECONDS)
        return True

    async def _deep(self, source: SourceSet, idle: bool) -> bool:
        if source.state != "ok" or source.newest is None:
            return False
        state, now = await deep.state_of(source), source.now_ns()
        overdue = now - state.begun_ns >= 2 * deep.PERIOD_NS
        if not state.due(now) or not (idle or overdue):
            return False
        await deep.compare(source, pace=PACE, seconds=SLICE_SECONDS)
        return True
