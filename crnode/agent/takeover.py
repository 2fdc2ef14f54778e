"""What people ask of takeover: say who votes and what moves, and look at what was said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from crnode.cluster.membership import TakeoverSpec, set_takeover
from crnode.errors import CrnodeError, ExitCode
from crnode.failover.vote_file import NAME, VoteFile

if TYPE_CHECKING:
    from crnode.agent.node import Agent

Args = dict[str, Any]
Progress = Callable[[Args], None]


class Takeovers:
    """See the module's text.

    Args:
        master_only: refuses on every node but the master, naming what is done there.
    """

    def __init__(self, agent: Agent, master_only: Callable[[str], None]) -> None:
        self.agent = agent
        self._master_only = master_only

    async def set(self, args: Args, progress: Progress) -> Args:
        """Control call: the wish as :class:`TakeoverSpec` has it."""
        self._master_only("Saying what takes over")
        spec = TakeoverSpec.model_validate(args)
        self._check_left(spec)
        await self._check_new(spec)
        incarnation = await asyncio.to_thread(self._incarnation)
        await self.agent.change(lambda said: set_takeover(said, spec, incarnation))
        self.agent.journal.add("cluster", f"Voters on who is active are {', '.join(spec.voters)}.")
        return await self.show({}, progress)

    async def _check_new(self, spec: TakeoverSpec) -> None:
        """A set that begins to move is opened where the lease is held: that is where its source has to be."""
        before = self.agent.said.takeover
        if before is None:
            return
        new = [self.agent.said.need_set(name) for name in spec.sets if name not in before.sets]
        seen = await self.agent.calls.moving.would({}, lambda _: None)
        active, changing = seen["active"], seen["changing"]
        allowed = set_takeover(self.agent.said, spec, before.founder_incarnation).takeover
        assert allowed is not None
        if changing is not None and (new or changing not in allowed.candidates):
            raise CrnodeError(
                f"{changing} is just becoming active, or handing over.",
                "What moves, and who may be active, does not change meanwhile.",
                "Repeat it when crnode takeover status says who is active.",
                ExitCode.REFUSED,
            )
        if active is not None and active not in allowed.candidates:
            raise CrnodeError(
                f"{active} is active, and would be no candidate any more.",
                "What it serves would end.",
                f"Let another node be active first: crnode switch-to {allowed.candidates[0]}",
                ExitCode.REFUSED,
            )
        for item in new:
            source = self.agent.sets.sources.get(item.uuid)
            if item.source == self.agent.node.name and (source is None or source.source.newest is None):
                raise CrnodeError(
                    f"The set '{item.name}' cannot begin to move yet.",
                    "It has not been captured as a whole.",
                    f"Wait until it has: crnode sync {item.name}",
                    ExitCode.BEHIND,
                )
            if active is not None and item.source != active:
                raise CrnodeError(
                    f"The set '{item.name}' cannot begin to move now.",
                    f"Its source is {item.source}, and {active} is active.",
                    f"Let {item.source} be active first: crnode switch-to {item.source}",
                    ExitCode.REFUSED,
                )

    def _check_left(self, spec: TakeoverSpec) -> None:
        """A set that was opened in an epoch is left out only when that is said, and where it was added: that
        is where its source is then."""
        before = self.agent.said.takeover
        for name in before.sets if before is not None else ():
            known = self.agent.said.need_set(name)
            move = self.agent.moves.get(known.uuid)
            if name in spec.sets or move is None:
                continue
            if name not in spec.leave:
                raise CrnodeError(
                    f"The set '{name}' moves with the lease already, and would be left out.",
                    "What is said about taking over is said anew as a whole.",
                    f"Name it again (--set {name}), or say that it is to move no more: --leave {name}",
                    ExitCode.REFUSED,
                )
            if move.active != known.source:
                raise CrnodeError(
                    f"The set '{name}' is at {move.active} now, and would be left out.",
                    f"Without the lease its source is {known.source}, which has not what came since.",
                    f"Hand back first (crnode failback), or name it again: --set {name}",
                    ExitCode.REFUSED,
                )

    def _incarnation(self) -> str:
        file = VoteFile(self.agent.data / NAME)
        try:
            return file.hard.incarnation.hex()
        finally:
            file.close()

    async def show(self, args: Args, progress: Progress) -> Args:
        """Control call: what the document says."""
        takeover = self.agent.document.takeover
        if takeover is None:
            hint = "Say it at the master: crnode takeover set"
            raise CrnodeError("Nobody has said yet who votes.", "", hint, ExitCode.REFUSED)
        return {"takeover": takeover.model_dump(mode="json")}
