"""Going on by force: the word of a person in place of a majority's (rule 28).

Where too few voters are left to elect anybody, a person may say that the others are switched off, and one
node goes on alone. It refuses while any of them answers, to it or to whoever it reaches; then its keeper
begins a generation in which it alone votes, and the cluster document follows: those nodes' certificates
count no more, and where one of them was the master this node is it now. They come back by joining, as new
ones.

For that a candidate holds a copy of the key of the cluster's CA, which the master gives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from crnode.agent.moving import Moving, ask_keeper
from crnode.cluster.document import MAX_NODES, ClusterDocument
from crnode.cluster.membership import go_on_without
from crnode.cluster.node_file import CA_KEY_FILE
from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import atomic_write

if TYPE_CHECKING:
    from crnode.agent.node import Agent

Args = dict[str, Any]
Progress = Callable[[Args], None]

ASK_SECONDS = 5.0  # for an answer
KEY_SECONDS = 1.0  # between two questions for the key
TELL_TIMES = 24  # a new generation is told anew, every ASK_SECONDS


class Forced:
    """See the module's text.

    Args:
        forward: call a method of another node.
    """

    def __init__(self, agent: Agent, moving: Moving, forward: Callable[..., Any]) -> None:
        self.agent = agent
        self._moving = moving
        self._forward = forward
        self._tasks: set[asyncio.Task[None]] = set()

    async def force(self, args: Args, progress: Progress) -> Args:
        """Control call: go on alone. `off`: the nodes that are switched off, as a person says;
        `accept_loss`: even with data that is older than what was served last. Raises CrnodeError, and nothing
        has changed; or where the document was changed meanwhile: asked again, it goes on from there."""
        off = sorted({str(name) for name in args["off"]})
        me = self.agent.node.name
        document = self.agent.said
        for name in off:
            document.need_node(name)
        if me in off:
            raise _refused(f"{me} is this very node.", "Name those that are switched off.")
        seen = await self._moving.would({}, progress)
        mine = await ask_keeper(self.agent, "status", {})
        # Its keeper went on already, and the agent died before the document said so.
        half_done = mine["voters"] == [me] and int(mine["generation"]) >= document.version.generation
        if seen["active"] is not None and not half_done:
            hint = f"To let this node be active instead: crnode switch-to {me}"
            raise _refused(f"{seen['active']} is active, and answers.", hint)
        await self._check_off(off, mine, half_done=half_done)
        if document.master.name in off and not (self.agent.data / CA_KEY_FILE).exists():
            raise _refused(
                f"This node cannot go on as the master in place of {document.master.name}.",
                "It has never got the key of the cluster's CA, which the master gives to each candidate.",
            )
        voids = {name: secrets.token_hex(32) for name in off}

        def make(said: ClusterDocument) -> ClusterDocument:
            return go_on_without(said, me, voids, time.time_ns(), int(mine["generation"]))

        make(document)  # refused before anything happens
        if not half_done:
            await ask_keeper(self.agent, "force", {"accept_loss": bool(args.get("accept_loss")), "off": off})
        elif seen["active"] != me:
            await ask_keeper(self.agent, "alone", {})
        await self.agent.change(make)
        self.agent.renew_desk()
        self._later(self._tell())
        self.agent.journal.add(
            "takeover",
            f"{me} goes on by force, without {_named(off)}, which a person says to have switched off."
            " At most one node is active as long as that is so.",
        )
        return {"node": me, "off": off}

    async def _check_off(self, off: list[str], mine: Args, *, half_done: bool) -> None:
        """What is said to be off does not answer anybody, and all that does not answer is said to be off."""
        takeover = self.agent.said.takeover
        me = self.agent.node.name
        if takeover is None or me not in takeover.candidates:
            raise _refused(f"{me} may not become active.", "It is no candidate: crnode takeover show")
        hears = {me: {name for name, there in mine["keepers"].items() if there}}
        answering = {me}
        known: list[list[str]] = []  # who votes, as the others know it: this node may have missed a change
        for name in [node.name for node in self.agent.document.nodes if node.name != me]:
            if not await self.agent.answers(name):
                continue
            answering.add(name)
            if name in off:
                continue
            try:
                answer = await self._forward(name, "takeover.hears", {"names": off}, 2 * ASK_SECONDS)
                hears[name] = {str(other) for other in answer["hears"]}
                known.append([str(voter) for voter in answer["voters"]])
            except (CrnodeError, TimeoutError) as error:
                raise _refused(
                    f"{name} does not say whether it hears {_named(off)}.",
                    str(error) or "It did not answer in time.",
                ) from error
        for name in off:
            who = [one for one, others in hears.items() if name in others]
            if name in answering or who:
                raise _refused(
                    f"{name} is not switched off.",
                    f"It answers {_named(sorted(who) or [me])}.",
                    "Switch it off first, or cut it from the others and from its users.",
                )
        silent = sorted(set(takeover.voters) - answering - hears[me] - set(off))
        if silent:
            raise _refused(
                f"{_named(silent)} {'do' if len(silent) > 1 else 'does'} not answer either.",
                "It may be active, and nobody here could know it.",
                f"Switch it off as well, and say so: --i-switched-off {' --i-switched-off '.join(silent)}",
            )
        for voters in [mine["voters"] or [me], *known]:
            left = [name for name in voters if name in answering or name in hears[me]]
            if len(left) > len(voters) // 2 and not half_done:
                raise _refused(
                    f"{_named(left)} are a majority of those who vote.",
                    "They can make a node active without force, and may be about to.",
                    "Run: crnode failover; or switch off more of them, and say so, where their data is lost.",
                )

    async def hears_peer(self, sender: str, args: Args) -> Args:
        """Another node asks which of `names` answer here, and who votes as far as is known: {"hears": names,
        "voters": names}."""
        state: Args = {"keepers": {}, "voters": []}
        with contextlib.suppress(CrnodeError):
            state = await ask_keeper(self.agent, "status", {})
        names = [str(name) for name in args["names"]][:MAX_NODES]
        hears = [n for n in names if state["keepers"].get(n) or await self.agent.answers(n)]
        return {"hears": hears, "voters": state["voters"]}

    async def _tell(self) -> None:
        """Who refuses the document at first, because it takes the lost ones for alive, may take it later."""
        for _ in range(TELL_TIMES):
            await asyncio.sleep(ASK_SECONDS)
            for link in list(self.agent.links.values()):
                await link.send_document(self.agent.said)

    # -- the key of the CA

    def begin(self) -> None:
        """At start: a candidate asks for the key until it has it."""
        self._later(self._ask())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self) -> None:
        path = self.agent.data / CA_KEY_FILE
        while not path.exists():
            document = self.agent.document
            takeover, master = document.takeover, document.master.name
            if takeover is not None and self.agent.node.name in takeover.candidates:
                try:
                    answer = await self._forward(master, "takeover.authority", {}, ASK_SECONDS)
                    await asyncio.to_thread(atomic_write, path, str(answer["key"]).encode())
                except (CrnodeError, TimeoutError, OSError, KeyError):
                    pass  # it is asked again
            await asyncio.sleep(KEY_SECONDS)

    async def authority_peer(self, sender: str, args: Args) -> Args:
        """A candidate asks for the key of the CA: {"key": PEM}."""
        takeover = self.agent.document.takeover
        if takeover is None or sender not in takeover.candidates:
            raise CrnodeError(f"{sender} is no candidate.", "", "", ExitCode.REFUSED)
        try:
            return {"key": await asyncio.to_thread((self.agent.data / CA_KEY_FILE).read_text)}
        except OSError as error:
            raise CrnodeError("The cluster's CA key is not here.", f"{error.strerror}.", "") from error

    def close(self) -> None:
        """The agent ends."""
        for task in self._tasks:
            task.cancel()


def _named(names: list[str]) -> str:
    return " and ".join(names)


def _refused(what: str, why: str, hint: str = "Nothing was changed.") -> CrnodeError:
    return CrnodeError(what, why, hint, ExitCode.REFUSED)


__all__ = ["Forced"]
