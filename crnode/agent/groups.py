"""What people ask of groups: add one, change its members, see what it hides, wait until it has everything."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from crnode.agent import status
from crnode.cluster.document import Mode, ReplicationSet
from crnode.cluster.membership import GroupSpec, add_group, change_members, need_group
from crnode.errors import CrnodeError, ExitCode

if TYPE_CHECKING:
    from crnode.agent.node import Agent

Args = dict[str, Any]
Progress = Callable[[Args], None]
CONFLICTS_SHOWN = 200
EXAMPLES = 5  # paths that an answer names of many


class Groups:
    """The groups, asked for at any node.

    Args:
        forward: call a method of another node.
        sync_set: sync one set, as the control call does.
        settle: answer a source that waits for this target.
        master_only: refuses on every node but the master, naming what is done there.
    """

    def __init__(
        self,
        agent: Agent,
        forward: Callable[[str, str, Args, float | None], Awaitable[Args]],
        sync_set: Callable[[Args, Progress], Awaitable[Args]],
        settle: Callable[[str, Args], Awaitable[Args]],
        master_only: Callable[[str], None],
    ) -> None:
        self.agent = agent
        self._forward = forward
        self._sync_set = sync_set
        self._settle = settle
        self._master_only = master_only

    async def add(self, args: Args, progress: Progress) -> Args:
        self._master_only("Adding a group")
        spec, uuid = GroupSpec.parse(args), secrets.token_hex(16)
        await self.agent.change(lambda said: add_group(said, spec, time.time_ns(), uuid))
        said = f"Group {spec.name} of {', '.join(spec.members)} was added."
        self.agent.journal.add("cluster", said, spec.name)
        return {"name": spec.name, "uuid": uuid, "problem": self.agent.sets.refused.get(uuid)}

    async def members(self, args: Args, progress: Progress) -> Args:
        name = str(args["name"])
        add, drop = ([str(member) for member in args.get(key) or []] for key in ("add", "drop"))
        if add or drop:
            self._master_only("Changing the members of a group")
            await self.agent.change(lambda said: change_members(said, name, add, drop))
            now = self.agent.document.need_set(name).members
            said = f"Group {name} has the members {', '.join(now)} from now on."
            self.agent.journal.add("cluster", said, name)
        return {"group": name, "members": list(need_group(self.agent.document, name).members)}

    async def conflicts(self, args: Args, progress: Progress) -> Args:
        """Paths that several members have, with what is shown and what is hidden, at each target."""
        spec = need_group(self.agent.document, str(args["name"]))
        question = {"set": spec.uuid}

        async def ask(name: str) -> Args:
            try:
                if name == self.agent.node.name:
                    return {"node": name, **await self.peer_conflicts(name, question)}
                return {"node": name, **await self._forward(name, "conflicts", question, 10)}
            except CrnodeError as error:
                return {"node": name, "conflicts": [], "error": str(error)}

        return {"group": spec.name, "targets": list(await asyncio.gather(*map(ask, spec.targets)))}

    async def peer_conflicts(self, sender: str, args: Args) -> Args:
        uuid = str(args["set"])
        running = self.agent.sets.targets.get(uuid)
        if sender != self.agent.node.name and not self.agent.server.may_read(sender, uuid):
            raise CrnodeError("You have no part in that group.", "", "", ExitCode.REFUSED)
        if running is None or running.feed is None:
            raise CrnodeError("That group does not run here.", self.agent.sets.refused.get(uuid, ""))
        return {
            "conflicts": status.named(running.feed.conflicts[:CONFLICTS_SHOWN]),
            "count": len(running.feed.conflicts),
        }

    async def sync(self, spec: ReplicationSet, seconds: float, progress: Progress) -> Args:
        """Sync every member, then wait until each target has made the group of what it received."""
        begun = time.monotonic()
        left_out, examples = 0, []
        for name in spec.members:
            left = max(1.0, seconds - (time.monotonic() - begun))
            answer = await self._sync_set({"set": name, "timeout_s": left}, progress)
            left_out += answer["left_out"]
            examples += answer["left_out_examples"]
        question = {"set": spec.uuid, "members": list(spec.members)}
        results: list[Args] = []
        for node in spec.targets:
            left = max(1.0, seconds - (time.monotonic() - begun))
            try:
                if node == self.agent.node.name:
                    async with asyncio.timeout(left):
                        answer = await self._settle(node, question)
                else:
                    answer = await self._forward(node, "settle", question, left)
            except TimeoutError:
                results.append({"node": node, "ok": False, "reason": "it has not answered in time"})
            except CrnodeError as error:
                results.append({"node": node, "ok": False, "reason": str(error)})
            else:
                results.append(settled(node, answer, spec.targets[node].mode))
        missing = [r for r in results if not r["ok"] and not r.get("unapplied")]
        if missing or not results:
            said = "; ".join(f"{r['node']}: {r['reason']}" for r in missing) or "It has no target"
            raise CrnodeError(
                f"Group {spec.name}: not every target has everything.",
                said if said.endswith(".") else f"{said}.",
                "Its members are in sync. See crnode status.",
                ExitCode.BEHIND,
            )
        return {
            "set": spec.name,
            "targets": results,
            "sequence": max(int(r["version"]) for r in results),
            "digest": results[0]["digest"] if len({r["digest"] for r in results}) == 1 else "",
            "seconds": time.monotonic() - begun,
            "ok": all(r["ok"] for r in results),
            "left_out": left_out,
            "left_out_examples": examples[:EXAMPLES],
        }


def settled(node: str, answer: Args, mode: Mode) -> Args:
    """What a target's answer to `settle` comes to."""
    said = []
    if put_right := int(str(answer.get("put_right", 0))):
        said.append(f"{put_right} local changes were put right")
    if unapplied := int(str(answer.get("unapplied", 0))):
        said.append(f"{counted(unapplied)} cannot be held there, see crnode status")
    return {
        "node": node,
        # An archive is there for its versions, which have all; a mirror shall show what the source has.
        "ok": not unapplied or mode is not Mode.MIRROR,
        "reason": "; ".join(said),
        "digest": answer.get("digest"),
        "version": answer.get("sequence"),
        "unapplied": unapplied,
        "unapplied_examples": answer.get("problems", []),
    }


def counted(paths: int) -> str:
    """'1 path', '2 paths'."""
    return f"{paths} path{'' if paths == 1 else 's'}"
