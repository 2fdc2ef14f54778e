"""What people say about a brake: show it, accept what it holds, roll the source back, set its percentage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from crnode.cluster.document import ReplicationSet
from crnode.cluster.membership import set_brake
from crnode.errors import CrnodeError, ExitCode

if TYPE_CHECKING:
    from crnode.agent.node import Agent

Args = dict[str, Any]
Progress = Callable[[Args], None]
ANSWER_SECONDS = 10.0
RELEASE_SECONDS = 60.0  # within which a target that is there has what its source got back


class Brakes:
    """The brakes of all sets, asked for at any node.

    Args:
        forward: call a method of another node.
        restore: carry out a restore, as the control call does.
    """

    def __init__(
        self,
        agent: Agent,
        forward: Callable[[str, str, Args, float | None], Awaitable[Args]],
        restore: Callable[[Args, Progress], Awaitable[Args]],
    ) -> None:
        self.agent = agent
        self._forward = forward
        self._restore = restore

    async def run(self, args: Args, progress: Progress) -> Args:
        """Control call: `do` is show, accept, roll-back or percent."""
        spec = self.agent.document.need_set(str(args["set"]))
        do = str(args.get("do") or "show")
        if do == "percent":
            return await self._set_percent(spec, int(args["percent"]))
        if do not in ("show", "accept", "roll-back"):
            raise CrnodeError(
                f"A brake cannot '{do}'.", "", "show, accept, roll-back, percent.", ExitCode.USAGE
            )
        before = await self._ask(spec, {"set": spec.name, "shown": do == "show"})
        if do == "show":
            return {"set": spec.name, "percent": spec.brake_percent, "targets": before}
        holding = [row for row in before if row.get("held")]
        if not holding:
            raise CrnodeError(f"No brake holds {spec.name} now.", _silence(before), "", ExitCode.REFUSED)
        out: Args = {"set": spec.name, "percent": spec.brake_percent}
        if do == "accept":
            return {**out, "targets": await self._ask(spec, {"set": spec.name, "accept": True})}
        version = min(int(row["held"]["before"]) for row in holding)
        restored = await self._restore(
            {"set": spec.name, "version": str(version), "in_place": True}, progress
        )
        # Nothing is accepted: a target lets go when it has what the source has now. Were it told to, it would
        # show what was undone.
        return {
            **out,
            "version": version,
            "restored": restored,
            "targets": await self._let_go(spec, progress),
        }

    async def _let_go(self, spec: ReplicationSet, progress: Progress) -> list[Args]:
        """Wait until what the source got back is at its targets, and they hold nothing any more; not for
        ever: a target may be away, or the source may have been changed further."""
        deadline = time.monotonic() + RELEASE_SECONDS
        while True:
            rows = await self._ask(spec, {"set": spec.name})
            if not any(row.get("held") for row in rows) or time.monotonic() > deadline:
                return rows
            progress({"text": "waiting until the copies have it"})
            await asyncio.sleep(0.3)

    async def _set_percent(self, spec: ReplicationSet, percent: int) -> Args:
        master = self.agent.document.master.name
        if self.agent.node.name != master:
            raise CrnodeError(
                "A brake is set at the master.", f"That is {master}.", "Run it there.", ExitCode.REFUSED
            )
        await self.agent.change(lambda said: set_brake(said, spec.name, percent))
        said = f"holds from {percent} % of the files on" if percent else "is off"
        self.agent.journal.add("cluster", f"The brake of set {spec.name} {said}.", spec.name)
        for running in self.agent.sets.targets.values():
            running.target.look_again()
        return {"set": spec.name, "percent": percent, "targets": await self._ask(spec, {"set": spec.name})}

    async def _ask(self, spec: ReplicationSet, question: Args) -> list[Args]:
        async def ask(name: str) -> Args:
            try:
                if name == self.agent.node.name:
                    return {"node": name, **await self.peer(name, question)}
                return {"node": name, **await self._forward(name, "brake", question, ANSWER_SECONDS)}
            except CrnodeError as error:
                return {"node": name, "held": None, "error": str(error)}

        return list(await asyncio.gather(*(ask(name) for name in spec.targets)))

    async def peer(self, sender: str, args: Args) -> Args:
        """Another node's question, or its order, which only the master and this node itself give."""
        spec = self.agent.document.need_set(str(args["set"]))
        running = self.agent.sets.targets.get(spec.uuid)
        if running is None:
            raise CrnodeError(f"Set {spec.name} does not run on {self.agent.node.name}.", "")
        if not args.get("accept"):
            if sender != self.agent.node.name and not self.agent.server.may_read(sender, spec.uuid):
                raise CrnodeError("You have no part in that set.", "", "", ExitCode.REFUSED)
            trusted = sender in (self.agent.node.name, self.agent.document.master.name)
            found = await running.target.held_back(shown=bool(args.get("shown")) and trusted)
            return {"held": found._asdict() if found is not None else None}
        if sender not in (self.agent.node.name, self.agent.document.master.name):
            raise CrnodeError(
                "What a brake holds is accepted at the master, or at the node itself.",
                "",
                "",
                ExitCode.REFUSED,
            )
        found = await running.target.accept_changes()
        if found is not None:
            self.agent.journal.add(
                "brake",
                f"Set {spec.name}: a person accepted what the brake held from version {found.sequence} on.",
                spec.name,
            )
        return {"held": None, "accepted": found._asdict() if found is not None else None}


def _silence(rows: list[Args]) -> str:
    return " ".join(f"{row['node']}: {row['error']}" for row in rows if row.get("error"))
