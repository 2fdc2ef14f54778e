"""Sets that move with the lease: what the keeper asks this agent to do with the data.

The keeper decides who is active, this makes the data fit. **Gather**: nobody commits anything older any
more (rule 20), what others have and we lack is fetched (rule 21), a newest version that was found bad is
walked back from (rule 45), and the live tree is whole, durable and at the newest image. **Open**: the image
that begins the epoch is committed, and the set has its source here from now on. **Hand over**: all that was
written is at the successor, applied and durable there. Whoever hears that a later epoch has begun **steps
down**: what it wrote and nobody has becomes a version (rule 46), and its folder the live tree of a target.

Every step may be repeated, also by a process that knows nothing of the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Container, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from crnode.agent.proof import found_well
from crnode.agent.restore import AGAIN, Chosen, Restore
from crnode.agent.sets import RunningSource, RunningTarget
from crnode.agent.threads import in_thread
from crnode.capture.commit import Point
from crnode.cluster.document import ReplicationSet
from crnode.cluster.moves import Move, epoch_number, epoch_parts, is_plausible
from crnode.errors import CrnodeError, ExitCode
from crnode.failover.forecast import forecast
from crnode.net.control import call
from crnode.replicate.brake import Held
from crnode.replicate.commit import FENCE, Refusal
from crnode.store.catalog import Catalog
from crnode.store.reader import BAD, FUZZY, GOOD, ROLLING, SUSPECT, UNTESTED, Image, Reader
from crproto.entries import Entry
from crproto.errors import RemoteProtocolError
from crproto.limits import DIGEST_SCHEME
from crproto.messages import ImageBegin

if TYPE_CHECKING:
    from crnode.agent.node import Agent

Args = dict[str, Any]
Progress = Callable[[Args], None]

GATHER_SECONDS = {"lan": 3.0, "wan": 15.0}  # for the answers of the others (rule 21)
LOOK_SECONDS = 5.0  # for what somebody changed in the live tree, which is put right before it is served
SILENT_SECONDS = 0.1  # ... for that of a node that was not heard of for a while
FETCH_SECONDS = 30.0  # for what one of them has and we lack
READY_SECONDS = 120.0  # for the live tree to be whole
LAST_SCAN_SECONDS = 60.0  # for what was written last to be captured
HAND_OVER_SECONDS = 60.0
SWITCH_SECONDS = 240.0
UP_SECONDS = 1.0  # a node that is not connected may be about to be
STATE_SECONDS = 5.0
KEEPER_SECONDS = 30.0  # for its answer: before a switch it asks this agent
TELL_SECONDS = 2.0  # who has not heard who is active is told again
NAMED = 20  # paths that a report names
NOTE_BYTES = 2000


class Moving:
    """See the module's text.

    Args:
        forward: call a method of another node.
    """

    def __init__(self, agent: Agent, restore: Restore, forward: Callable[..., Any]) -> None:
        self.agent = agent
        self._restore = restore
        self._forward = forward
        self._turn = asyncio.Lock()
        self._telling: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._handing: asyncio.Task[None] | None = None

    # -- what moves

    def specs(self) -> list[ReplicationSet]:
        """The sets that move, as they are read now."""
        takeover = self.agent.document.takeover
        names = takeover.sets if takeover is not None else ()
        return [self.agent.document.need_set(name) for name in names]

    def _may_lead(self, node: str) -> bool:
        takeover = self.agent.document.takeover
        return takeover is not None and node in takeover.candidates

    def _catalog(self, spec: ReplicationSet) -> Catalog:
        catalog = self.agent.sets.catalogs.get(spec.uuid)
        if catalog is None:
            why = self.agent.sets.refused.get(spec.uuid, "It is being started.")
            raise CrnodeError(f"Set {spec.name} does not run on {self.agent.node.name}.", why)
        return catalog

    async def state(self, args: Args, progress: Progress) -> Args:
        """Control call of the keeper: {"data": the epoch that all sets descend from, "is_new": whether there
        is none because none of them was ever opened, as far as this node knows, "why_not": why this node
        could not be active, "sets": [what a takeover now would show]}."""
        rows: list[Args] = []
        counted: list[int] = []
        why_not = ""
        for spec in self.specs():
            row, why = await self._one_state(spec)
            rows.append(row)
            # One that began to move a moment ago, and that nobody opened yet, is where it was: at home.
            is_new = not row["epoch"] and not row["fence"] and spec.uuid not in self.agent.moves
            if not is_new or spec.source != self.agent.node.name:
                counted.append(int(row["epoch"]))
            why_not = why_not or why
        fence = max((row.pop("fence") for row in rows), default=0)
        why_not = self._put_out() or why_not
        return {
            "data": list(epoch_parts(min(counted, default=0))),
            "is_new": bool(rows) and not counted,
            "fence": list(epoch_parts(fence)),
            "why_not": why_not,
            "sets": rows,
        }

    def _put_out(self) -> str:
        """Whether another candidate turned this node away: it goes on as the cluster, without this one."""
        links = self.agent.links
        denying = sorted(name for name, link in links.items() if link.denied and self._may_lead(name))
        if not denying:
            return ""
        return f"{denying[0]} has turned this node away: it was put out of the cluster, and has to join anew."

    def check_not_put_out(self, what: str) -> None:
        """Raises CrnodeError, about `what` was not done, where the cluster goes on without this node."""
        if why := self._put_out():
            hint = "Join with an empty data directory: crnode invite there, crnode join here."
            raise CrnodeError(what, why, hint, ExitCode.REFUSED)

    async def alone(self, args: Args, progress: Progress) -> Args:
        """Control call: a person says that no other node was made active by force."""
        self.check_not_put_out(f"{self.agent.node.name} does not serve.")
        return await ask_keeper(self.agent, "alone", {})

    async def campaign(self, args: Args, progress: Progress) -> Args:
        """Control call: a person wants this node to be active as soon as nobody holds the lease."""
        self.check_not_put_out(f"{self.agent.node.name} does not serve.")
        return await ask_keeper(self.agent, "campaign", {})

    async def note(self, args: Args, progress: Progress) -> Args:
        """Control call of the keeper: what people should find in the journal."""
        self.agent.journal.add("takeover", str(args["text"])[:NOTE_BYTES])
        return {}

    async def _one_state(self, spec: ReplicationSet) -> tuple[Args, str]:
        row: Args = {"name": spec.name, "epoch": 0, "version": None, "time_ns": None, "source": spec.source}
        row["fence"] = 0  # the newest epoch that anybody began, as far as this catalog knows
        try:
            catalog = self._catalog(spec)
        except CrnodeError as error:
            return row, str(error)

        def look() -> tuple[Image | None, bool, int]:
            fence = int.from_bytes(catalog.meta(FENCE) or b"", "big")
            return catalog.newest(), catalog.staging() is not None, fence

        newest, staging, row["fence"] = await self.agent.writer.submit(look)
        if newest is None:
            return row, f"Set {spec.name} has no version here yet."
        row |= {"epoch": newest.epoch, "version": newest.sequence, "time_ns": newest.at_ns}
        if spec.uuid in self.agent.sets.sources:
            return row, f"Set {spec.name} has no whole copy yet." if staging and not newest.entries else ""
        running = self.agent.sets.targets.get(spec.uuid)
        if running is None:
            return row, f"Set {spec.name} does not run here."
        status = running.target.status
        if status.unapplied:
            return row, f"{status.unapplied} paths of set {spec.name} cannot be held here."
        if status.live and not status.held:
            return row, f"Set {spec.name}: {status.live}"
        return row, ""

    async def state_peer(self, sender: str, args: Args) -> Args:
        """The same for another node, with what this node's keeper says."""
        return {**await self.state({}, lambda _: None), "keeper": await ask_keeper(self.agent, "status", {})}

    async def would(self, args: Args, progress: Progress) -> Args:
        """Control call: what a takeover now would be, see :func:`forecast`. `at_once`: who is not connected
        now is not waited for."""
        takeover = self.agent.document.takeover
        if takeover is None:
            raise _nobody_said()

        async def ask(name: str) -> Args:
            try:
                if name == self.agent.node.name:
                    return {"node": name, **await self.state_peer(name, {})}
                link = self.agent.links.get(name)
                if link is not None and not await link.wait_up(0.0 if args.get("at_once") else UP_SECONDS):
                    return {"node": name, "error": link.reason}
                return {"node": name, **await self._forward(name, "takeover.state", {}, STATE_SECONDS)}
            except (CrnodeError, TimeoutError) as error:
                return {"node": name, "error": str(error) or "it did not answer in time"}

        rows = list(await asyncio.gather(*(ask(name) for name in takeover.voters)))
        return forecast(takeover, rows)

    async def switch(self, args: Args, progress: Progress) -> Args:
        """Control call: let node `to` be active ('home': where the sets that move are at home), wherever this
        is asked."""
        to = str(args["to"])
        if self.agent.document.takeover is None:
            raise _nobody_said()
        if to == "home":
            homes = {spec.source for spec in self.agent.said.sets if spec.name in self._names()}
            to = homes.pop() if len(homes) == 1 else self.agent.document.master.name
        self.agent.document.need_node(to)
        if not self._may_lead(to):
            raise CrnodeError(
                f"{to} may not become active.",
                "It is no candidate.",
                "Who may be: crnode takeover show",
                ExitCode.REFUSED,
            )
        seen = await self.would({}, progress)
        active = seen["active"]
        if active is None:
            hint = "See: crnode failover --dry-run"
            raise CrnodeError("No node is active, so none can hand over.", "", hint, ExitCode.REFUSED)
        if active == to:
            return {"to": to, "from": active, "already": True}
        if active == self.agent.node.name:
            return {"from": active, **await self.switch_peer(active, {"to": to})}
        return {"from": active, **await self._forward(active, "takeover.switch", {"to": to}, SWITCH_SECONDS)}

    def _names(self) -> tuple[str, ...]:
        takeover = self.agent.document.takeover
        return takeover.sets if takeover is not None else ()

    async def switch_peer(self, sender: str, args: Args) -> Args:
        """The active node is asked to hand over, by its owner, the master or a candidate; returns when that
        has ended. Raises CrnodeError when it serves as before."""
        takeover = self.agent.document.takeover
        if takeover is None or (sender not in takeover.voters and sender != self.agent.document.master.name):
            why = "Only the master and those who vote may."
            raise CrnodeError(f"{sender} may not ask for a switch.", why, "Ask there.", ExitCode.REFUSED)
        to = str(args["to"])
        await ask_keeper(self.agent, "switch", {"to": to})
        deadline = time.monotonic() + SWITCH_SECONDS
        while True:
            state = await ask_keeper(self.agent, "status", {})
            if state["phase"] != "handing" or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        if state["phase"] == "standby" and state["handed_to"] != to:
            why = "Its lease ended before all was handed over: whoever can takes over, as after a failure."
            hint = "See: crnode takeover status"
            raise CrnodeError(f"There was no switch to {to} in good order.", why, hint)
        if state["phase"] != "standby" or state["taken_back"]:
            raise CrnodeError(
                f"There was no switch to {to}; {self.agent.node.name} serves as before.",
                state["taken_back"] or f"It is {state['phase']} still.",
                "See: crnode takeover status",
            )
        self.agent.journal.add("takeover", f"It handed over to {to}, as {sender} asked.")
        return {"to": to, "already": False}

    # -- becoming active

    async def gather(self, args: Args, progress: Progress) -> Args:
        """Control call of the keeper: everything is here, and the live trees show it. `epoch`: the one that
        it holds and has not opened; `there`: names of nodes that were heard of just now. Returns {"said":
        [sentences]}. Raises CrnodeError when this node cannot serve."""
        return await _ticking(progress, self._gather(args))

    async def _gather(self, args: Args) -> Args:
        epoch = int(args["epoch"])
        async with self._turn:
            specs = self.specs()
            for spec in specs:
                catalog = self._catalog(spec)
                fence = await self.agent.writer.submit(raise_fence, catalog, epoch, force=True)
                if fence > epoch:
                    raise CrnodeError(
                        f"Epoch {_spoken(fence)} of {spec.name} has begun, and this would be"
                        f" {_spoken(epoch)}.",
                        "Its keeper had not heard of it.",
                        "It tries again, with a later one.",
                    )
                if (target := self.agent.sets.targets.get(spec.uuid)) is not None:
                    await target.target.leave_source("This node takes the set over.")
            there = {str(name) for name in args.get("there", ())}
            said = await self._ask_others(specs, epoch, there)
            takeover = self.agent.document.takeover
            judged_by = time.monotonic() + (takeover.validate_s if takeover is not None else 0.0)
            for spec in specs:
                if spec.uuid in self.agent.sets.targets:
                    said += await self._judge(spec, judged_by)
                    said += await self._make_ready(spec, epoch)
        for text in said:
            self.agent.journal.add("takeover", text)
        return {"said": said}

    async def _ask_others(
        self, specs: list[ReplicationSet], epoch: int, there: Container[str]
    ) -> list[str]:
        takeover = self.agent.document.takeover
        assert takeover is not None
        members = {name for spec in specs for name in (spec.source, *spec.targets)} - {self.agent.node.name}

        async def ask(name: str) -> tuple[str, Args | None]:
            # Who is dead, most likely, is what all of this is for: customers do not wait for it.
            seconds = GATHER_SECONDS[takeover.network] if name in there else SILENT_SECONDS
            try:
                async with asyncio.timeout(seconds):
                    return name, await self._forward(name, "takeover.fence", {"epoch": epoch}, seconds)
            except (CrnodeError, TimeoutError):
                return name, None

        answers = dict(await asyncio.gather(*(ask(name) for name in sorted(members))))
        silent = [name for name, answer in answers.items() if answer is None]
        said = []
        if silent:
            said.append(
                f"{', '.join(silent)} did not answer in time: what they have and nobody else has is kept"
                " there, and becomes a version when they are back."
            )
        for spec in specs:
            running = self.agent.sets.targets.get(spec.uuid)
            if running is None:
                continue  # the source had all of it first
            best: tuple[int, int] = await self._newest(running)
            holder, header = "", None
            for name, answer in answers.items():
                newest = (answer or {}).get("newest", {}).get(spec.uuid)
                if newest and newest["epoch"] == best[0] and newest["sequence"] > best[1]:
                    best, holder, header = (best[0], int(newest["sequence"])), name, newest
            if header is not None:
                said.append(await self._fetch(spec, running, holder, header))
        return said

    async def _newest(self, running: RunningTarget) -> tuple[int, int]:
        newest = await self.agent.writer.submit(running.commit.catalog.newest)
        return (newest.epoch, newest.sequence) if newest is not None else (0, 0)

    async def _fetch(self, spec: ReplicationSet, running: RunningTarget, holder: str, header: Args) -> str:
        """Take an image that `holder` acknowledged and we never had."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                await self._take(spec, running, holder, header)
        except (CrnodeError, TimeoutError, Refusal, RemoteProtocolError) as error:
            why = str(error) or f"it took longer than {FETCH_SECONDS:g} s"
            return (
                f"{holder} has version {header['sequence']} of {spec.name}, which could not be fetched:"
                f" {why}. It is kept there."
            )
        return f"Version {header['sequence']} of {spec.name} was fetched from {holder}."

    async def _take(self, spec: ReplicationSet, running: RunningTarget, holder: str, header: Args) -> None:
        names = ("id", "parent", "incarnation", "digest")
        name, parent, incarnation, digest = (bytes.fromhex(header[key]) for key in names)
        entries, size = int(header["entries"]), int(header["bytes"])
        wanted = Chosen(name, int(header["sequence"]), digest, entries, size, holder)
        found: dict[bytes, Entry] = {}
        await self._restore.pages(spec, wanted, b"", lambda page: found.update((e.path, e) for e in page))
        catalog = running.commit.catalog
        with await in_thread(catalog.reader) as reader:
            newest, changed, removed = await in_thread(partial(_differences, reader, found))
        healer = self.agent.healer
        healer.first[spec.uuid] = holder  # who has died may be asked for long
        base = newest.id if newest is not None and newest.id is not None else b""
        begin = ImageBegin(
            name, parent, base, incarnation, int(header["epoch"]), int(header["sequence"]),
            int(header["at_ns"]), digest, int(header["flags"]), entries, size, DIGEST_SCHEME, False,
            bool(base) and parent != base,
        )  # fmt: skip
        try:
            with healer.spared():
                for _ in range(AGAIN):  # a collection may have taken what was here and named by nothing
                    await self._restore.have(spec, changed)
                    missing = await self.agent.writer.submit(_commit, running, begin, changed, removed)
                    if not missing:
                        break
        finally:
            healer.first.pop(spec.uuid, None)
        if missing:
            raise CrnodeError(f"{len(missing)} objects of it are nowhere.", "")
        running.target.look_again()

    async def _judge(self, spec: ReplicationSet, deadline: float) -> list[str]:
        """Where this node has a command that judges versions of the set, let it judge the newest one now,
        and as long as it finds them bad an older one, within what is left of the time for it (rule 80)."""
        schedule = self.agent.calls.schedule
        running = self.agent.sets.targets[spec.uuid]
        if not schedule.plan(spec.name).command:
            return []
        images = await self.agent.writer.submit(running.commit.catalog.images)
        for image in reversed(images):
            left = deadline - time.monotonic()
            if image.verdict in (UNTESTED, SUSPECT) and left > 0:
                try:
                    async with asyncio.timeout(left):
                        verdict = await schedule.judge(running, image)
                except (TimeoutError, CrnodeError, OSError):  # no room, no process to be had
                    verdict = UNTESTED
                if verdict == UNTESTED:
                    return [f"Version {image.sequence} of {spec.name} could not be judged in time."]
                image = image._replace(verdict=verdict)
            if image.verdict == BAD:
                continue
            if image.verdict == GOOD:
                return [f"Version {image.sequence} of {spec.name} was found good."]
            break
        return []

    async def _make_ready(self, spec: ReplicationSet, epoch: int) -> list[str]:
        """The live tree shows the newest image that is fit, and is durable."""
        running = self.agent.sets.targets[spec.uuid]
        said = []
        if text := await self._walk_back(spec, running, epoch):
            said.append(text)
        if (found := await running.target.held_back()) is not None:
            said.append(await self._held(spec, running, epoch, found))
        await self._wait_whole(spec, running)
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                changed = await running.target.look_over()
        except (TimeoutError, CrnodeError) as error:
            late = f"That takes more than {LOOK_SECONDS:g} s."
            why = error.what if isinstance(error, CrnodeError) else late
            said.append(f"What somebody changed in {spec.name} here was not looked for: it is served. {why}")
        else:
            if changed:
                await self._wait_whole(spec, running)
        return said

    async def _held(self, spec: ReplicationSet, running: RunningTarget, epoch: int, found: Held) -> str:
        """A set that the brake holds (rule 82): nobody serves what may be spoiled where what was before is
        not much older, and nobody loses hours of work to a suspicion. Both states stay."""
        catalog, takeover = running.commit.catalog, self.agent.document.takeover
        assert takeover is not None
        images = await self.agent.writer.submit(catalog.images)
        newest = images[-1]
        if any(one.digest == newest.digest for one in images if one.ordinal < found.ordinal):
            running.target.judge_again()
            return f"Set {spec.name} was held at version {found.before}; it is again as it was."
        before = next((one for one in images if one.ordinal == found.from_), None)
        command = self.agent.calls.schedule.plan(spec.name).command
        is_fit = bool(command) and newest.verdict == GOOD and found_well(command) in (newest.evidence or "")
        lost_s = (newest.at_ns - before.at_ns) / 1e9 if before is not None else 0.0
        is_near = before is not None and lost_s <= takeover.max_loss_s and not _is_refuted(before)
        if before is not None and is_near and not is_fit:
            to, here = before.ordinal, self.agent.node.name
            name = f"held when {here} took over, version {newest.sequence}"

            def back() -> None:
                commit = self.agent.sets.source_commit(catalog, spec)
                commit.walk_back(to, epoch, name, "the brake held it when this node took over")

            await self.agent.writer.submit(back)
            running.target.judge_again()
            return (
                f"Set {spec.name} was held at version {found.before}: {found.why} It serves that one, which"
                f" is {lost_s:.1f} s older. If what came since is meant: crnode restore {spec.name}"
                f" --in-place --version '{name}'"
            )
        await running.target.held_back(shown=True)
        await running.target.accept_changes()
        return (
            f"Set {spec.name} was held at version {found.before}: {found.why} It serves what came since;"
            f" to go back: crnode restore {spec.name} --in-place --version {found.before}"
        )

    async def _wait_whole(self, spec: ReplicationSet, running: RunningTarget) -> None:
        catalog = running.commit.catalog

        def whole() -> bool:
            live, newest = catalog.live(), catalog.newest()
            if live is None or newest is None or live.state != "clean":
                return False
            return live.at == live.synced == newest.ordinal

        deadline = time.monotonic() + READY_SECONDS
        while not await self.agent.writer.submit(whole):
            why = running.target.status.live
            if (why and not running.target.status.held) or time.monotonic() > deadline:
                raise CrnodeError(
                    f"The live tree of {spec.name} is not whole.",
                    why or f"It did not become so within {READY_SECONDS:g} s.",
                    "Another node may serve meanwhile. See: crnode status",
                )
            running.target.look_again()
            await asyncio.sleep(0.05)

    async def _walk_back(self, spec: ReplicationSet, running: RunningTarget, epoch: int) -> str:
        """Leave a newest version that was found bad, for the newest that was not (rules 45 and 80)."""
        catalog = running.commit.catalog
        takeover = self.agent.document.takeover
        assert takeover is not None
        images = await self.agent.writer.submit(catalog.images)
        if not images or not _is_refuted(images[-1]):
            return ""
        newest = images[-1]
        fit = [one for one in images[:-1] if not _is_refuted(one) and not one.flags & (ROLLING | FUZZY)]
        within = [one for one in fit if (newest.at_ns - one.at_ns) / 1e9 <= takeover.max_loss_s]
        fit = [one for one in within if one.verdict == GOOD] or fit
        lost_s = (newest.at_ns - fit[-1].at_ns) / 1e9 if fit else 0.0
        if not fit or lost_s > takeover.max_loss_s:
            raise CrnodeError(
                f"The newest version of {spec.name}, {newest.sequence}, was found bad: {newest.evidence}.",
                "No older one that was not is within the loss that is allowed"
                f" ({takeover.max_loss_s} s); the next one is {lost_s:.0f} s older." if fit
                else "There is no older one that was not.",
                "Allow a greater loss with crnode takeover set --max-loss, or verify it again.",
                ExitCode.DAMAGE,
            )  # fmt: skip
        to = fit[-1]

        def back() -> None:
            commit = self.agent.sets.source_commit(catalog, spec)
            why = "it was found bad when this node took over"
            commit.walk_back(to.ordinal, epoch, f"walked back from, version {newest.sequence}", why)

        await self.agent.writer.submit(back)
        running.target.judge_again()
        return (
            f"Version {newest.sequence} of {spec.name} was found bad ({newest.evidence}): it serves version"
            f" {to.sequence}, which is {lost_s:.1f} s older. What came since is kept."
        )

    async def open(self, args: Args, progress: Progress) -> Args:
        """Control call of the keeper: commit the images that open `epoch`, and be the source."""
        return await _ticking(progress, self._open_all(args))

    async def _open_all(self, args: Args) -> Args:
        epoch = int(args["epoch"])
        async with self._turn:
            for spec in self.specs():
                await self._open(spec, epoch)
            move = Move(epoch, self.agent.node.name)
            await self.agent.move({spec.uuid: move for spec in self.specs()})
            self._tell_others(epoch)
        self.agent.journal.add("takeover", f"{self.agent.node.name} is active in epoch {_spoken(epoch)}.")
        return {}

    async def _open(self, spec: ReplicationSet, epoch: int) -> None:
        catalog = self._catalog(spec)
        newest = await self.agent.writer.submit(catalog.newest)
        if newest is not None and newest.epoch == epoch:
            return
        running = self.agent.sets.sources.get(spec.uuid)
        if running is not None:
            await running.source.publish(running.commit.open_epoch, epoch)
            return

        def work() -> Point:
            return self.agent.sets.source_commit(catalog, spec).open_epoch(epoch)

        await self.agent.writer.submit(work)

    # -- giving it up

    async def ready_for(self, args: Args, progress: Progress) -> Args:
        """Control call of the keeper: whether node `to` has nearly all, so that a switch to it is short.
        Raises CrnodeError when it has not."""
        to = str(args["to"])
        for spec in self.specs():
            self._check_opened(spec, int(args["epoch"]))
            self._check_no_restore(spec)
            push = self._push(spec, to)
            if push.state != "in sync":
                raise CrnodeError(
                    f"{to} does not have all of {spec.name}.",
                    f"It is {push.state}. {push.reason}".strip(),
                    "Wait until crnode status says that it is in sync.",
                    ExitCode.BEHIND,
                )
        return {}

    async def hand_over(self, args: Args, progress: Progress) -> Args:
        """Control call of the keeper, when the services have stopped: return when node `to` has everything,
        applied and durable: {"versions": {set: number}}. Raises CrnodeError, and nothing is handed over."""
        return await _ticking(progress, self._hand_over(args))

    async def _hand_over(self, args: Args) -> Args:
        to = str(args["to"])
        out: Args = {}
        specs = self.specs()
        for spec in specs:
            self._check_opened(spec, int(args["epoch"]))
            self._check_no_restore(spec)
        if self._handing is not None:
            self._handing.cancel()
        uuids = [spec.uuid for spec in specs]
        self._handing = asyncio.create_task(self._keep_closed(uuids, to), name="handing over")
        for spec in specs:
            running = self._source(spec)
            try:
                async with asyncio.timeout(HAND_OVER_SECONDS):
                    await running.source.scan_now()
                    newest = await self._push(spec, to).shown()
            except TimeoutError:
                what = f"{to} did not get all of {spec.name} within {HAND_OVER_SECONDS:g} s."
                raise CrnodeError(what, "", "", ExitCode.BEHIND) from None
            out[spec.name] = newest.sequence
        return {"versions": out}

    async def _keep_closed(self, uuids: list[str], to: str) -> None:
        """Nothing is brought back to a version from the last scan until the successor is the source, or it is
        clear that nobody took over."""
        closed = self.agent.calls.in_place.closed(uuids, f"It is being handed over to {to}.")
        with closed, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SWITCH_SECONDS):
                while any(uuid in self.agent.sets.sources for uuid in uuids):
                    await asyncio.sleep(1.0)
                    with contextlib.suppress(CrnodeError):
                        if (await ask_keeper(self.agent, "status", {}))["phase"] == "active":
                            return  # it was taken back

    def _check_opened(self, spec: ReplicationSet, epoch: int) -> None:
        """A set that was not opened in the epoch that is held does not descend from it: nobody could be
        active with it."""
        if self.agent.moves.get(spec.uuid) != Move(epoch, self.agent.node.name):
            raise CrnodeError(
                f"{spec.name} begins to move just now, and is not opened yet.",
                "",
                "Repeat it in a moment.",
                ExitCode.BEHIND,
            )

    def _check_no_restore(self, spec: ReplicationSet) -> None:
        if self.agent.calls.in_place.is_under_way(spec.uuid):
            raise CrnodeError(
                f"{spec.name} is being brought back to an older version.",
                "Handed over now it would be neither that nor what it was.",
                "Wait until the restore has ended.",
                ExitCode.REFUSED,
            )

    def _source(self, spec: ReplicationSet) -> RunningSource:
        running = self.agent.sets.sources.get(spec.uuid)
        if running is None:
            raise CrnodeError(f"Set {spec.name} does not have its source here.", "", "", ExitCode.REFUSED)
        return running

    def _push(self, spec: ReplicationSet, to: str) -> Any:
        pushes = self._source(spec).pushes
        if to not in pushes:
            raise CrnodeError(f"Set {spec.name} does not go to {to}.", "", "", ExitCode.REFUSED)
        return pushes[to][0]

    # -- hearing of it

    async def fence_peer(self, sender: str, args: Args) -> Args:
        """A node that won the lease: nothing older than its epoch is committed here any more. Answers what
        the newest images are: {"newest": {uuid: header}}."""
        self._check(sender)
        epoch = int(args["epoch"])
        out: Args = {}
        for spec in self.specs():
            catalog = self.agent.sets.catalogs.get(spec.uuid)
            if catalog is None:
                continue
            newest = await self.agent.writer.submit(_fence_and_look, catalog, epoch)
            if newest is not None and newest.id is not None:
                out[spec.uuid] = _header(newest)
        return {"newest": out}

    async def moved_peer(self, sender: str, args: Args) -> Args:
        """A node that opened an epoch: it is the source of what moves. Answers {"heard": whether that counts
        here}."""
        self._check(sender)
        epoch = int(args["epoch"])
        known = [self.agent.moves[s.uuid].epoch for s in self.specs() if s.uuid in self.agent.moves]
        if any(epoch < one for one in known):
            return {"heard": False}
        if self._leaving is None or self._leaving.done():
            self._leaving = asyncio.create_task(self._follow(sender, epoch), name="stepping down")
            self._leaving.add_done_callback(self._left)
        done, _ = await asyncio.wait([self._leaving], timeout=1.0)
        at = [self.agent.moves.get(s.uuid) for s in self.specs()]
        return {"heard": bool(done) and all(move == Move(epoch, sender) for move in at)}

    def _left(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.agent.journal.add("takeover", f"It could not step down: {error}")

    def _check(self, sender: str) -> None:
        if not self._may_lead(sender):
            raise CrnodeError(f"{sender} may not become active.", "", "", ExitCode.REFUSED)

    async def _follow(self, leader: str, epoch: int) -> None:
        closed = self.agent.calls.in_place.closed
        async with self._turn:
            with closed([spec.uuid for spec in self.specs()], f"{leader} serves it now."):
                await self._follow_now(leader, epoch)

    async def _follow_now(self, leader: str, epoch: int) -> None:
        moves: dict[str, Move] = {}
        for spec in self.specs():
            before = self.agent.moves.get(spec.uuid)
            if before is not None and before.epoch >= epoch:
                continue
            catalog = self.agent.sets.catalogs.get(spec.uuid)
            if catalog is not None:
                fence = await self.agent.writer.submit(raise_fence, catalog, epoch)
                if fence > epoch:
                    continue
            running = self.agent.sets.sources.get(spec.uuid)
            if running is not None:
                await self._step_down(spec, running, leader)
            moves[spec.uuid] = Move(epoch, leader)
        if moves:
            if self._telling is not None:
                self._telling.cancel()
            await self.agent.move(moves)
            text = f"{leader} is active in epoch {_spoken(epoch)}; this node follows it."
            self.agent.journal.add("takeover", text)

    async def _step_down(self, spec: ReplicationSet, running: RunningSource, leader: str) -> None:
        """Capture what was written last, and say what of it nobody has (rule 46). Its bytes are in the store:
        a set that moves keeps them from the beginning."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_SCAN_SECONDS):
                    await self.agent.calls.in_place.end(spec.uuid)
            async with asyncio.timeout(LAST_SCAN_SECONDS):
                await running.source.scan_now()
        except TimeoutError:
            self.agent.journal.add(
                "takeover",
                f"Set {spec.name}: what was written last could not be captured ({running.source.state}. "
                f"{running.source.detail}). Where it differs from what {leader} has it is set aside.",
                spec.name,
            )
        catalog = running.commit.catalog

        def unacknowledged() -> tuple[list[bytes], int]:
            newest = catalog.newest()
            cursors = {cursor.target: cursor.ordinal for cursor in catalog.cursors()}
            at = cursors.get(leader, 0)
            if newest is None or at >= newest.ordinal:
                return [], 0
            paths = _changed_paths(catalog, at, newest.ordinal)
            return paths[:NAMED], len(paths)

        paths, count = await self.agent.writer.submit(unacknowledged)
        if count:
            shown = ", ".join(path.decode(errors="replace") for path in paths)
            more = f" and {count - len(paths)} more" if count > len(paths) else ""
            self.agent.journal.add(
                "diverged",
                f"Set {spec.name}: {leader} took over without {count} changes of this node: {shown}{more}."
                " They are kept here as a version called 'diverged …'.",
                spec.name,
            )

    # -- saying it

    async def resume(self) -> None:
        """At start: who is active says so until all have heard it. What this node forgot of that its keeper
        knows."""
        me = self.agent.node.name
        if self.specs():
            with contextlib.suppress(CrnodeError):
                state = await ask_keeper(self.agent, "status", {})
                if state["phase"] == "active":
                    epoch = epoch_number(*map(int, str(state["epoch"]).split(".")))
                    known = self.agent.moves
                    late = [s for s in self.specs() if s.uuid not in known or known[s.uuid].epoch < epoch]
                    late = [spec for spec in late if await self._is_opened(spec, epoch)]
                    if late:
                        await self.agent.move({spec.uuid: Move(epoch, me) for spec in late})
        mine = {move.epoch for move in self.agent.moves.values() if move.active == me}
        if mine:
            self._tell_others(max(mine))

    async def _is_opened(self, spec: ReplicationSet, epoch: int) -> bool:
        """Whether it was opened here in that epoch."""
        catalog = self.agent.sets.catalogs.get(spec.uuid)
        newest = await self.agent.writer.submit(catalog.newest) if catalog is not None else None
        return newest is not None and newest.epoch == epoch

    def _tell_others(self, epoch: int) -> None:
        if self._telling is not None:
            self._telling.cancel()
        self._telling = asyncio.create_task(self._tell(epoch), name="telling who is active")

    async def _tell(self, epoch: int) -> None:
        heard: set[str] = set()
        while True:
            nodes = self.agent.document.nodes
            names = {n.name for n in nodes if n.name != self.agent.node.name and not n.lost} - heard
            for name in sorted(names):
                with contextlib.suppress(CrnodeError, TimeoutError):
                    answer = await self._forward(name, "takeover.moved", {"epoch": epoch}, 5.0)
                    if answer["heard"]:
                        heard.add(name)
            await asyncio.sleep(TELL_SECONDS)

    def close(self) -> None:
        """The agent ends."""
        for task in (self._telling, self._leaving, self._handing):
            if task is not None:
                task.cancel()


async def _ticking(progress: Progress, work: Coroutine[Any, Any, Args]) -> Args:
    """Do it, and say each second that it is being done: an agent that stands still is silent."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait([task], timeout=1.0))[0]:
            progress({"text": "making ready"})
        return task.result()
    finally:
        task.cancel()


def _nobody_said() -> CrnodeError:
    hint = "Say it at the master: crnode takeover set"
    return CrnodeError("Nobody has said yet who votes.", "", hint, ExitCode.REFUSED)


async def ask_keeper(agent: Agent, what: str, args: Args) -> Args:
    """A call of this node's keeper. Raises CrnodeError."""
    try:
        return await in_thread(lambda: call(agent.data / "keeper.sock", what, args, None, KEEPER_SECONDS))
    except CrnodeError as error:
        if error.exit_code is ExitCode.UNREACHABLE:
            what = f"No keeper answers on {agent.node.name}."
            raise CrnodeError(what, error.why, "Start it: crnode keeper", ExitCode.UNREACHABLE) from error
        raise


def raise_fence(catalog: Catalog, epoch: int, *, force: bool = False) -> int:
    """From now on no image of an older epoch is committed to this catalog (rule 20); returns the epoch
    that counts. Raises CrnodeError for an epoch that nobody can have come to (rule 19), unless this node's
    own keeper says so. In the writer thread."""
    held = int.from_bytes(catalog.meta(FENCE) or b"", "big")
    if epoch <= held:
        return held
    if not force and not is_plausible(epoch, held):
        what = f"Epoch {_spoken(epoch)} is too far ahead of {_spoken(held)}."
        raise CrnodeError(what, "", "", ExitCode.REFUSED)
    with catalog.transaction():
        catalog.set_meta(FENCE, epoch.to_bytes(8, "big"))
    return epoch


def _fence_and_look(catalog: Catalog, epoch: int) -> Image | None:
    raise_fence(catalog, epoch)
    return catalog.newest()


def _spoken(epoch: int) -> str:
    counter, slot = epoch_parts(epoch)
    return f"{counter}.{slot}"


def _is_refuted(image: Image) -> bool:
    return image.verdict == BAD


def _header(image: Image) -> Args:
    assert image.id is not None
    return {
        "id": image.id.hex(), "parent": image.parent.hex(), "incarnation": image.incarnation.hex(),
        "epoch": image.epoch, "sequence": image.sequence, "at_ns": image.at_ns, "digest": image.digest.hex(),
        "flags": image.flags, "entries": image.entries, "bytes": image.bytes,
    }  # fmt: skip


def _differences(reader: Reader, found: dict[bytes, Entry]) -> tuple[Image | None, list[Entry], list[bytes]]:
    """(our newest image, what of `found` it has not so, what it has and `found` has not)."""
    newest = reader.newest()
    if newest is None:
        return None, list(found.values()), []
    changed, removed = dict(found), []
    for entry in reader.subtree(b"", newest.ordinal):
        other = changed.get(entry.path)
        if other is None:
            removed.append(entry.path)
        elif other == entry:
            del changed[entry.path]
    return newest, list(changed.values()), removed


def _changed_paths(catalog: Reader, base: int, to: int) -> list[bytes]:
    out = set(catalog.went(base, to)) if base else set()
    after: tuple[int, int, bytes] | None = None
    while page := catalog.came(base, to, after, 1000):
        out.update(entry.path for _, entry in page)
        after = page[-1][0]
    return sorted(path for path in out if path)


def _commit(
    running: RunningTarget, begin: ImageBegin, changed: list[Entry], removed: list[bytes]
) -> list[bytes]:
    incoming = running.commit.begin(begin, gathered=True)
    running.commit.add(incoming, changed, removed)
    return running.commit.commit(incoming)


__all__ = ["Moving", "raise_fence"]
