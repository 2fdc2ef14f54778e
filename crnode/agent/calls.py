"""What people and programs may ask the agent: the control socket's calls, and those that nodes pass on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from crnode.agent import doctor, status
from crnode.agent.brake import Brakes
from crnode.agent.errands import Errands
from crnode.agent.forced import Forced
from crnode.agent.groups import Groups, settled
from crnode.agent.in_place import InPlace
from crnode.agent.looking import Looking
from crnode.agent.maintenance import Maintenance
from crnode.agent.moving import Moving
from crnode.agent.past import past
from crnode.agent.proof import Proof
from crnode.agent.restore import Restore
from crnode.agent.schedule import Schedule
from crnode.agent.sets import RunningSource
from crnode.agent.takeover import Takeovers
from crnode.cluster.document import ClusterDocument, ReplicationSet, Role, sentence
from crnode.cluster.keep import DEFAULT
from crnode.cluster.membership import (
    SetSpec,
    add_set,
    keep_versions,
    parse_rungs,
    remove_node,
    remove_set,
    set_thresholds,
)
from crnode.cluster.node_file import ProofPlan
from crnode.errors import CrnodeError, ExitCode
from crnode.net.peer import PeerClosed
from crnode.replicate.brake import Held, held
from crnode.store.reader import BAD, FUZZY, ROLLING, SUSPECT, VERDICTS, Image
from crnode.versions.retention import Ladder, candidates, ladder_of, plan, retain

if TYPE_CHECKING:
    from crnode.agent.node import Agent

Args = dict[str, Any]
Progress = Callable[[Args], None]
Handler = Callable[[Args, Progress], Awaitable[Args]]

SYNC_SECONDS = 60.0
BEGIN_WAITS, BEGIN_WAIT_SECONDS = 400, 0.05
SETTLE_SECONDS = 10.0  # a target that has the image and cannot show it gets so long for what passes by itself
GRACE_SECONDS = 2.5  # a source that is missing or emptied for so long is not only passing by
WAITS_FOR_A_PERSON = ("root missing", "emptied")
EXAMPLES = 5  # paths that an answer names of many
ALL = 1_000_000  # paths that are counted
GOES = "goes next: no rule keeps it"


class Calls:
    """The calls of one agent."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.restore = Restore(agent)
        self.maintenance = Maintenance(agent)
        self.looking = Looking(agent, self.restore, self._forward)
        self.errands = Errands(self._forward)
        self.proof = Proof(agent, self.restore, self.errands)
        self.schedule = Schedule(agent, self.proof)
        self.brakes = Brakes(agent, self._forward, self._restore)
        self.groups = Groups(agent, self._forward, self._sync, self._peer_settle, self._master_only)
        self.takeovers = Takeovers(agent, self._master_only)
        self.moving = Moving(agent, self.restore, self._forward)
        self._asked: set[asyncio.Future[Args]] = set()  # what a takeover would be
        self.forced = Forced(agent, self.moving, self._forward)
        self.in_place = InPlace(agent, self.restore, self._captured, self._forward)
        self._accepted: dict[str, float] = {}  # set uuid -> when a person accepted its source (monotonic s)

    def control_handlers(self) -> dict[str, Handler]:
        """For the control socket: whoever can open it owns the node."""
        return {
            "status": self._status,
            "node.list": self._node_list,
            "node.remove": self._node_remove,
            "set.list": self._set_list,
            "set.show": self._set_show,
            "set.add": self._set_add,
            "takeover.set": self.takeovers.set,
            "takeover.force": self.forced.force,
            "takeover.alone": self.moving.alone,
            "takeover.campaign": self.moving.campaign,
            "takeover.note": self.moving.note,
            "takeover.show": self.takeovers.show,
            "takeover.state": self.moving.state,
            "takeover.would": self.moving.would,
            "takeover.switch": self.moving.switch,
            "takeover.gather": self.moving.gather,
            "takeover.open": self.moving.open,
            "takeover.ready-for": self.moving.ready_for,
            "takeover.hand-over": self.moving.hand_over,
            "group.add": self.groups.add,
            "group.members": self.groups.members,
            "group.conflicts": self.groups.conflicts,
            "set.remove": self._set_remove,
            "set.keep": self._set_keep,
            "set.rebase": self._set_rebase,
            "invite": self._invite,
            "sync": self._sync,
            "versions": self._versions,
            "restore": self._restore,
            "verify": self._verify,
            "drill": self._drill,
            "drill.end": self._drill_end,
            "drill.plan": self._drill_plan,
            "events": self._events,
            "doctor": self._doctor,
            "brake": self.brakes.run,
            "thresholds": self._thresholds,
            "scrub": self.maintenance.scrub,
            "gc": self.maintenance.collect,
            **self.looking.control_handlers(),
        }

    def peer_methods(self) -> dict[str, Callable[[str, Args], Awaitable[Args]]]:
        """For other nodes: questions that any node may ask, and orders that only the master gives."""
        return {
            "status": self._peer_status,
            "settle": self._peer_settle,
            "sync": self._peer_sync,
            "versions": self._peer_versions,
            "rebase": self._peer_rebase,
            "grant": self._peer_grant,
            "conflicts": self.groups.peer_conflicts,
            "restore": self._peer_restore,
            "verify": self._peer_verify,
            "errand": self.errands.peer,
            "brake": self.brakes.peer,
            "takeover.state": self.moving.state_peer,
            "takeover.authority": self.forced.authority_peer,
            "takeover.hears": self.forced.hears_peer,
            "takeover.switch": self.moving.switch_peer,
            "takeover.fence": self.moving.fence_peer,
            "takeover.moved": self.moving.moved_peer,
            **self.looking.peer_methods(),
        }

    # -- helpers

    def _set(self, name: str) -> ReplicationSet:
        return self.agent.document.need_set(name)

    def _master_only(self, what: str) -> None:
        master = self.agent.document.master.name
        if self.agent.node.name != master:
            raise CrnodeError(
                f"{what} is done at the master.",
                f"This node is {self.agent.node.name}; the cluster document belongs to {master}.",
                f"Run the same command on {master}.",
                ExitCode.REFUSED,
            )
        self.moving.check_not_put_out(f"{what} is not done here: {master} is the master no more.")

    async def _forward(self, node: str, method: str, args: Args, seconds: float | None = None) -> Args:
        link = self.agent.links.get(node)
        if link is None or not await link.wait_up(5.0):
            reason = link.reason if link is not None else "it is not in the cluster"
            raise CrnodeError(f"{node} is not reachable.", reason, "Start its agent.", ExitCode.UNREACHABLE)
        return await link.call(method, args, seconds)

    # -- cluster

    async def _status(self, args: Args, progress: Progress) -> Args:
        if self.agent.document.takeover is None:
            return await status.cluster(self.agent)
        asked = asyncio.ensure_future(self.moving.would({"at_once": True}, progress))
        self._asked.add(asked)  # a keeper that hangs is not waited for, and its thread goes on
        asked.add_done_callback(self._asked.discard)
        seen = await status.cluster(self.agent)
        done, _ = await asyncio.wait([asked], timeout=status.ANSWER_SECONDS)
        found: Args = {"active": None, "ok": False, "says": ["Not all keepers answer: crnode doctor"]}
        if done:
            found = asked.result()
        return {**seen, "takeover": {key: found[key] for key in ("active", "ok", "says")}}

    async def _peer_status(self, sender: str, args: Args) -> Args:
        return await status.local(self.agent)

    async def _node_list(self, args: Args, progress: Progress) -> Args:
        desk = self.agent.desk  # of the master
        return {"nodes": status.nodes(self.agent), "invited": desk.invited() if desk is not None else []}

    async def _node_remove(self, args: Args, progress: Progress) -> Args:
        self._master_only("Removing a node")
        name = str(args["name"])
        lose = bool(args.get("lose"))
        await self.agent.change(lambda said: remove_node(said, name, time.time_ns(), lose))
        self.agent.journal.add("cluster", f"{name} was removed from the cluster.")
        return {"removed": name}

    async def _invite(self, args: Args, progress: Progress) -> Args:
        self._master_only("Inviting")
        if self.agent.desk is None:
            raise CrnodeError("The cluster's CA key is not here.", "", "Invite where the cluster was made.")
        if args.get("withdraw"):
            gone = self.agent.desk.withdraw(str(args["name"]))
            self.agent.journal.add("cluster", f"The invitation of {gone['name']} was withdrawn.")
            return gone
        out = self.agent.desk.invite(str(args["name"]), str(args["role"]), int(args.get("ttl_s") or 86400))
        self.agent.journal.add("cluster", f"{args['name']} was invited as {args['role']}.")
        return out

    async def _thresholds(self, args: Args, progress: Progress) -> Args:
        self._master_only("Setting thresholds")
        warn, error = (float(args[key]) if args.get(key) is not None else None for key in ("warn", "error"))
        await self.agent.change(lambda said: set_thresholds(said, warn, error))
        now = self.agent.document.thresholds
        said = f"{now.safe_lag_s:g} s behind is a warning, {now.error_lag_s:g} s an error"
        self.agent.journal.add("cluster", f"A target that is {said}.")
        return {"warn_s": now.safe_lag_s, "error_s": now.error_lag_s}

    # -- sets

    async def _set_list(self, args: Args, progress: Progress) -> Args:
        return {"sets": [_shown(spec) for spec in self.agent.document.sets]}

    async def _set_show(self, args: Args, progress: Progress) -> Args:
        return {"set": _shown(self._set(str(args["name"])))}

    async def _set_add(self, args: Args, progress: Progress) -> Args:
        self._master_only("Adding a set")
        spec = SetSpec.parse(args)
        uuid = secrets.token_hex(16)

        def make(said: ClusterDocument) -> ClusterDocument:
            document = add_set(said, spec, time.time_ns(), uuid)
            if spec.source == self.agent.node.name:
                added = document.set_by_uuid(uuid)
                assert added is not None
                self.agent.sets.check_new_source(added)
            return document

        await self.agent.change(make)
        self.agent.journal.add("cluster", f"Set {spec.name} was added.", spec.name)
        return {"name": spec.name, "uuid": uuid, "problem": self.agent.sets.refused.get(uuid)}

    async def _set_remove(self, args: Args, progress: Progress) -> Args:
        self._master_only("Removing a set")
        name = str(args["name"])
        now = bool(args.get("now"))
        await self.agent.change(lambda said: remove_set(said, name, time.time_ns(), now))
        self.agent.journal.add("cluster", f"Set {name} was removed.", name)
        return {"removed": name}

    async def _set_keep(self, args: Args, progress: Progress) -> Args:
        self._master_only("Saying what is kept")
        name, rungs = str(args["name"]), [str(text) for text in args.get("keep") or []]
        node = str(args["node"]) if args.get("node") else None
        document = keep_versions(self.agent.said, name, rungs, node)
        spec = document.need_set(name)
        said = {target: _rungs(spec, target) for target in spec.targets}
        own = [target for target in spec.targets if node is None and spec.targets[target].keep is not None]
        goes = {target: await self._goes(spec, target) for target in said if target in (node or target,)}
        await self.agent.change(lambda said: keep_versions(said, name, rungs, node))
        where = f" at {node}" if node else ""
        what = ", ".join(rungs) or "as usual"
        self.agent.journal.add("cluster", f"Set {name} keeps its versions{where} {what} from now on.", name)
        return {"set": name, "keep": said, "own": own, "goes": {n: goes[n] for n in goes if n not in own}}

    async def _goes(self, spec: ReplicationSet, node: str) -> int | None:
        """How many versions a target thins out by these rungs at once; None: it does not answer."""
        question = {"set": spec.name, "plan": True, "keep": _rungs(spec, node)}
        try:
            if node == self.agent.node.name:
                answer = await self._peer_versions(node, question)
            else:
                answer = await self._forward(node, "versions", question, 10)
        except CrnodeError:
            return None
        return sum(not row["keep"] for row in answer["versions"])

    async def _set_rebase(self, args: Args, progress: Progress) -> Args:
        spec = self._set(str(args["name"]))
        node = str(args.get("node") or spec.source)
        if spec.members and node not in spec.targets:
            raise CrnodeError(
                f"{spec.name} is a group, which has no source of its own.",
                f"Its members are {', '.join(spec.members)}, its targets {', '.join(spec.targets)}.",
                "Name a member, or with --node one of the targets.",
                ExitCode.USAGE,
            )
        if node != spec.source and node not in spec.targets:
            raise CrnodeError(
                f"{node} has no part in set {spec.name}.",
                f"Its source is {spec.source}, its targets are {', '.join(spec.targets)}.",
                "Name the source or one of its targets.",
                ExitCode.USAGE,
            )
        if node == self.agent.node.name:
            return await self._peer_rebase(node, {"set": spec.name})
        return await self._forward(node, "rebase", {"set": spec.name})

    async def _peer_rebase(self, sender: str, args: Args) -> Args:
        if sender not in (self.agent.node.name, self.agent.document.master.name):
            raise CrnodeError(
                "A rebase is asked for at the node itself or at the master.", "", "", ExitCode.REFUSED
            )
        spec = self._set(str(args["set"]))
        target = self.agent.sets.targets.get(spec.uuid)
        if target is not None:
            text = await asyncio.to_thread(_what_is_accepted, spec.name, target.target.destination)
            target.target.accept()
            self.agent.journal.add("live", f"Set {spec.name}: a person accepted the destination as it is.")
            return {"accepted": spec.name, "text": text}
        if spec.source != self.agent.node.name:
            why = self.agent.sets.refused.get(spec.uuid, "It is being started.")
            raise CrnodeError(f"Set {spec.name} cannot be received by {self.agent.node.name}.", why)
        running = self._source(spec)
        await asyncio.to_thread(_check_source, spec)
        if running.source.state in WAITS_FOR_A_PERSON:
            self._accepted[spec.uuid] = time.monotonic()
        running.source.accept()
        self.agent.journal.add("source", f"Set {running.spec.name}: a person accepted the source as it is.")
        return {"accepted": running.spec.name}

    async def _begun(self, name: str) -> None:
        """Wait a little for a set that the master has just added: the document may be on its way, and the set
        be starting."""
        for _ in range(BEGIN_WAITS):
            spec = self.agent.document.set_named(name)
            if spec is not None and (
                spec.uuid in self.agent.sets.sources or spec.uuid in self.agent.sets.refused
            ):
                return
            await asyncio.sleep(BEGIN_WAIT_SECONDS)

    def _source(self, spec: ReplicationSet) -> RunningSource:
        running = self.agent.sets.sources.get(spec.uuid)
        if running is None:
            why = self.agent.sets.refused.get(spec.uuid, "It is not running on this node.")
            raise CrnodeError(f"Set {spec.name} has no running source here.", why)
        return running

    # -- sync

    async def _sync(self, args: Args, progress: Progress) -> Args:
        spec = self._set(str(args["set"]))
        seconds = float(args.get("timeout_s") or SYNC_SECONDS)
        if spec.members:
            return await self.groups.sync(spec, seconds, progress)
        if spec.source == self.agent.node.name:
            return await self.sync(spec, seconds, progress)
        return await self._forward(
            spec.source, "sync", {"set": spec.name, "timeout_s": seconds}, seconds + 10
        )

    async def _peer_sync(self, sender: str, args: Args) -> Args:
        await self._begun(str(args["set"]))
        return await self.sync(self._set(str(args["set"])), float(args["timeout_s"]), lambda _: None)

    async def sync(self, spec: ReplicationSet, seconds: float, progress: Progress) -> Args:
        """Scan now; return when every target has acknowledged and shows all that was written before the
        call."""
        running = self._source(spec)
        if not spec.targets:
            raise CrnodeError(
                f"Set {spec.name} has no target.",
                "The nodes that it went to were removed from the cluster.",
                "Remove the set and add it again with targets.",
                ExitCode.BEHIND,
            )
        begun = time.monotonic()
        deadline = begun + seconds
        try:
            async with asyncio.timeout(seconds):
                await self._captured(running)
        except TimeoutError:
            state, detail = running.source.state, running.source.detail
            raise CrnodeError(
                f"Set {spec.name} could not be captured within {seconds:.0f} s.",
                f"Its source is in state '{state}'. {detail}".strip(),
                status.advice(spec.name, state, detail) or "See crnode status.",
                ExitCode.BEHIND,
            ) from None
        lost = await self.agent.writer.submit(running.source.catalog.lost, ALL)
        newest = running.source.newest
        sequence = newest.sequence if newest is not None else 0
        results = await asyncio.gather(
            *(self._sync_target(running, name, sequence, deadline, progress) for name in spec.targets)
        )
        out: Args = {
            "set": spec.name,
            "targets": results,
            "sequence": sequence,
            "digest": newest.digest.hex() if newest is not None else "",
            "seconds": time.monotonic() - begun,
            "ok": all(r["ok"] for r in results),
            "left_out": len(lost),
            "left_out_examples": status.named(lost[:EXAMPLES]),
        }
        # A mirror that shows all but some paths is no failure of the call: the answer says what it lacks.
        missing = [r for r in results if not r["ok"] and not r.get("unapplied")]
        if missing:
            said = "; ".join(f"{r['node']}: {r['reason']}" for r in missing)
            raise CrnodeError(
                f"Set {spec.name}: not every target has everything.",
                said if said.endswith(".") else f"{said}.",
                "See crnode status; repeat it when that is mended.",
                ExitCode.BEHIND,
            )
        return out

    async def _captured(self, running: RunningSource) -> None:
        """Wait until everything written before the call is in an image. CrnodeError(BEHIND) as soon as it is
        sure that a person has to do something first: that the source is missing may pass by within seconds,
        but waiting longer brings nothing."""
        spec, source = running.spec, running.source
        scan = asyncio.ensure_future(source.scan_now())
        since: float | None = None
        try:
            while not scan.done():
                await asyncio.wait((scan,), timeout=0.1)
                now = time.monotonic()
                # What a person has just accepted shows so only after a scan, which takes its time.
                accepted = now - self._accepted.get(spec.uuid, -SYNC_SECONDS) < SYNC_SECONDS
                if source.state == "ok":
                    self._accepted.pop(spec.uuid, None)
                if source.state not in WAITS_FOR_A_PERSON or accepted:
                    since = None
                elif since is None:
                    since = now
                elif now - since >= GRACE_SECONDS:
                    raise CrnodeError(
                        f"Set {spec.name} cannot be captured: {status.shown_state(source.state)}.",
                        source.detail,
                        status.advice(spec.name, source.state, source.detail),
                        ExitCode.BEHIND,
                    )
            scan.result()
            self._accepted.pop(spec.uuid, None)
        finally:
            scan.cancel()

    async def _sync_target(
        self, running: RunningSource, name: str, sequence: int, deadline: float, progress: Progress
    ) -> Args:
        pushing = running.pushes.get(name)
        if pushing is None:
            return {"node": name, "ok": False, "reason": "it is paused"}
        push = pushing[0]
        refused = ""
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0.01)):
                await push.reached(sequence)
                progress({"text": f"{name} has acknowledged image {sequence}"})
                patience = time.monotonic() + SETTLE_SECONDS
                while True:
                    try:
                        answer = await push.settle()
                        break
                    except PeerClosed:
                        await asyncio.sleep(0.2)
                    except CrnodeError as error:
                        # It has the image and cannot show it. What passes by itself does so soon.
                        refused = str(error)
                        if time.monotonic() > patience:
                            return {"node": name, "ok": False, "reason": refused}
                        await asyncio.sleep(0.5)
        except TimeoutError:
            reason = refused or push.reason
            if not reason and push.lag.acknowledged >= sequence:
                reason = "it has everything, and does not answer whether it shows it"
            elif not reason:
                reason = f"it is {push.state}, at image {push.lag.acknowledged} of {sequence}"
            return {"node": name, "ok": False, "reason": reason}
        return settled(name, answer, running.spec.targets[name].mode)

    async def _has_members(self, uuid: str, members: tuple[str, ...]) -> None:
        for _ in range(BEGIN_WAITS):
            running = self.agent.sets.targets.get(uuid)
            if (running is not None and running.spec.members == members) or uuid in self.agent.sets.refused:
                return
            await asyncio.sleep(BEGIN_WAIT_SECONDS)

    async def _peer_settle(self, sender: str, args: Args) -> Args:
        if args.get("members"):  # the document that says so may be on its way
            await self._has_members(str(args["set"]), tuple(args["members"]))
        running = self.agent.sets.targets.get(str(args.get("set")))
        if running is None or not (running.spec.members or running.spec.source == sender):
            why = self.agent.sets.refused.get(str(args.get("set")), "")
            raise CrnodeError("This node does not receive that set from you.", why, "", ExitCode.REFUSED)
        if running.feed is not None:
            await running.feed.made()
        report = await running.target.check_live()
        await running.target.settled()
        if running.target.status.damaged:
            await self.maintenance.inventory.run(lambda _: None)
            report = await running.target.check_live()
            if running.target.status.damaged:
                raise CrnodeError(
                    "The image is received, but not all of its content is here any more.",
                    running.target.status.lacking,
                    "See crnode scrub there.",
                    ExitCode.DAMAGE,
                )
        newest = await self.agent.writer.submit(running.target.catalog.newest)
        return {
            "put_right": len(report.put_right),
            "digest": newest.digest.hex() if newest is not None else "",
            "sequence": newest.sequence if newest is not None else 0,
            "unapplied": running.target.status.unapplied,
            "problems": status.named(running.target.status.problems[:EXAMPLES]),
        }

    # -- versions

    async def _versions(self, args: Args, progress: Progress) -> Args:
        spec = self._set(str(args["set"]))
        path = str(args.get("path") or "").strip("/") or None
        question = {"set": spec.name, "path": path}
        question |= {key: args[key] for key in ("plan", "keep") if args.get(key)}
        _wanted_ladder(args)  # what makes no sense is told by this node
        answers: list[Args] = []
        silent: dict[str, str] = {}

        async def ask(name: str) -> None:
            try:
                if name == self.agent.node.name:
                    answers.append(await self._peer_versions(name, question))
                else:
                    answers.append(await self._forward(name, "versions", question, 10))
            except CrnodeError as error:
                silent[name] = str(error)

        await asyncio.gather(*(ask(name) for name in self.agent.document.keepers(spec)))
        rows = [row for answer in answers for row in answer["versions"]]
        rows.sort(key=lambda r: (r["number"], r["node"]))
        if not rows:
            _check_known(spec.name, path, answers, silent)
        return {"versions": rows}

    async def _peer_versions(self, sender: str, args: Args) -> Args:
        spec = self._set(str(args["set"]))
        if not (sender == self.agent.node.name or self.agent.server.may_read(sender, spec.uuid)):
            raise CrnodeError("You have no part in that set.", "", "", ExitCode.REFUSED)
        catalog = self.agent.sets.catalogs.get(spec.uuid)
        path = args.get("path")
        here = self.agent.node.name
        if catalog is None or here not in self.agent.document.keepers(spec):
            return {"versions": []}

        ladder = _wanted_ladder(args) or ladder_of(self.agent.kept(spec, here))

        def look() -> list[Args]:
            images = catalog.images()
            if args.get("plan"):
                return _planned(images, ladder, self.agent.node.name)
            why = retain(candidates(images), ladder)
            brake = held(catalog)
            if brake is not None:
                images = [_doubted(image, brake) for image in images]
            if path is None:
                rows = [_version(i, why.get(i.ordinal, GOES), self.agent.node.name) for i in images]
                if spec.members:  # of a group: which versions of its members it was made of
                    for row, image in zip(rows, images, strict=True):
                        row["members"] = json.loads(catalog.meta(f"members/{image.ordinal}") or b"{}")
                return rows
            return [
                {**_version(image, why.get(image.ordinal, ""), self.agent.node.name), **row}
                for image, row in past(self.agent, spec, catalog, wanted, images)
            ]

        wanted = str(path or "").encode("utf-8", "surrogateescape").strip(b"/")

        def answer() -> Args:
            out: Args = {"versions": look()}
            if path is not None:  # a path that was deleted is known, one that never was is not
                out |= {"any": catalog.newest() is not None, "known": bool(catalog.history(wanted))}
            return out

        return await self.agent.writer.submit(answer)

    # -- restore

    async def _restore(self, args: Args, progress: Progress) -> Args:
        spec = self._set(str(args["set"]))
        if args.get("in_place"):
            if spec.members:
                raise CrnodeError(
                    f"{spec.name} is a group, which has no place of its own at a source.",
                    f"Its members are {', '.join(spec.members)}.",
                    f"Bring back what one of them had: crnode restore {spec.members[0]} --in-place --at …",
                    ExitCode.USAGE,
                )
            if spec.source == self.agent.node.name:
                return await self.in_place.run(spec, args, progress)
            return await self.errands.send(spec.source, "restore", args, progress)
        node = str(args.get("node") or self.agent.node.name)
        if node == self.agent.node.name:
            return await self.restore.run(spec, args, progress)
        self.agent.document.need_node(node)
        self._master_only("A restore on another node")
        for holder in filter(None, (spec.source, *spec.targets)):
            if holder == self.agent.node.name:
                self.agent.server.grant(node, spec.uuid)
            elif holder != node:
                with contextlib.suppress(CrnodeError):
                    await self._forward(holder, "grant", {"node": node, "set": spec.uuid}, 10)
        question = {key: value for key, value in args.items() if key != "node"}
        return await self.errands.send(node, "restore", question, progress)

    async def _peer_restore(self, sender: str, args: Args) -> Args:
        if args.get("in_place"):
            spec = self._set(str(args["set"]))
            if sender != self.agent.document.master.name and sender not in spec.targets:
                raise CrnodeError("You have no part in that set.", "", "", ExitCode.REFUSED)
            run = partial(self.in_place.run, spec, ordered_by=sender)
            return await self.errands.carry(sender, args, run)
        if sender != self.agent.document.master.name:
            raise CrnodeError("Only the master orders a restore on another node.", "", "", ExitCode.REFUSED)
        run = partial(self.restore.run, self._set(str(args["set"])), ordered_by=sender)
        return await self.errands.carry(sender, args, run)

    async def _verify(self, args: Args, progress: Progress) -> Args:
        return await self.proof.verify(self._set(str(args["set"])), args, progress)

    async def _peer_verify(self, sender: str, args: Args) -> Args:
        spec = self._set(str(args["set"]))
        if not self.agent.server.may_read(sender, spec.uuid):
            raise CrnodeError("You have no part in that set.", "", "", ExitCode.REFUSED)
        question = {**args, "node": self.agent.node.name}
        return await self.errands.carry(sender, question, partial(self.proof.verify, spec))

    async def _drill(self, args: Args, progress: Progress) -> Args:
        return await self.proof.drill(self._set(str(args["set"])), args, progress)

    async def _drill_end(self, args: Args, progress: Progress) -> Args:
        return await self.proof.end(self._set(str(args["set"])), args)

    async def _drill_plan(self, args: Args, progress: Progress) -> Args:
        """How this node proves a set's versions from now on; without "every_s" only how it does."""
        spec = self._set(str(args["set"]))
        if self.agent.node.name not in spec.targets:
            raise CrnodeError(
                f"{self.agent.node.name} keeps no versions of {spec.name}.",
                f"They are kept by: {', '.join(spec.targets)}.",
                "Run it there: each node proves what it keeps.",
                ExitCode.REFUSED,
            )
        if args.get("usual"):
            self.schedule.change(spec.name, None)
        elif "every_s" in args:
            try:
                plan = ProofPlan(command=str(args.get("run") or ""), every_s=int(args["every_s"]))
            except ValidationError as error:
                raise CrnodeError("The plan was not made.", sentence(error), "", ExitCode.USAGE) from error
            self.schedule.change(spec.name, plan)
            said = f"each {plan.every_s} s" if plan.every_s else "never"
            self.agent.journal.add("proof", f"Versions of {spec.name} are proved {said} here.", spec.name)
        plan = self.schedule.plan(spec.name)
        if args.get("now"):
            return {"set": spec.name, "run": plan.command, **await self.schedule.now(spec)}
        return {"set": spec.name, "run": plan.command, "every_s": plan.every_s, "timeout_s": plan.timeout_s}

    async def _peer_grant(self, sender: str, args: Args) -> Args:
        if sender != self.agent.document.master.name:
            raise CrnodeError("Only the master grants reading.", "", "", ExitCode.REFUSED)
        self.agent.server.grant(str(args["node"]), str(args["set"]))
        return {}

    # -- the rest

    async def _events(self, args: Args, progress: Progress) -> Args:
        limit = args.get("limit")
        events = self.agent.journal.latest(50 if limit is None else int(limit))
        if not args.get("follow"):
            return {"events": events}
        for event in events:
            progress({"event": event})
        async for event in self.agent.journal.follow():
            progress({"event": event})
        return {"events": []}

    async def _doctor(self, args: Args, progress: Progress) -> Args:
        return {"checks": await doctor.checks(self.agent)}


def _check_source(spec: ReplicationSet) -> None:
    """CrnodeError(REFUSED) when a path of the source is no directory: what is accepted has to be there, or
    the consent would be used for whatever appears there later, the bare mount point of a disk for one."""
    for path in spec.paths:
        if not os.path.isdir(path):
            raise CrnodeError(
                f"The source of set {spec.name} was not accepted.",
                f"There is no folder {path} that could count as it is.",
                "Mount the disk or bring the folder back; if the set is to be emptied, make an empty folder"
                " there and repeat this.",
                ExitCode.REFUSED,
            )


def _what_is_accepted(name: str, destination: Path) -> str:
    """What accepting a destination will do, for the person who does. CrnodeError(REFUSED) while it is nothing
    that could become one: the consent would wait and be used for what comes later."""
    what = f"The destination of set {name} was not accepted."
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        kind = "a symbolic link" if destination.is_symlink() else "not a folder"
        raise CrnodeError(
            what,
            f"{destination} is {kind}, and crnode writes only into real folders.",
            "Move it away and repeat this; without anything there the folder is made anew.",
            ExitCode.REFUSED,
        )
    try:
        there = sum(1 for child in destination.iterdir() if child.name != ".crnode")
    except FileNotFoundError:
        above = next(place for place in destination.parents if place.exists())
        if not above.is_dir():
            raise CrnodeError(
                what,
                f"{destination} cannot be made: {above} is not a folder.",
                "Move that away and repeat this.",
                ExitCode.REFUSED,
            ) from None
        return f"There is no {destination}: it is made, and everything of the newest image is written there."
    except OSError as error:
        raise CrnodeError(
            what,
            f"{destination} cannot be looked into: {error.strerror or error}.",
            "Let the agent's user read it, and repeat this.",
            ExitCode.REFUSED,
        ) from error
    if not there:
        return f"{destination} is empty: everything of the newest image is written there."
    return (
        f"{destination} is brought to the newest image; where it is another folder than the one that was"
        " prepared, what it holds now is first moved aside, to '.crnode"
        f"-{destination.name}/aside' beside it (in '.crnode/aside' where it is a mount point)."
    )


def _check_known(name: str, path: str | None, answers: list[Args], silent: dict[str, str]) -> None:
    """No node named a version: CrnodeError unless that is the truth, and the path one that was there once."""
    if any(answer.get("known") for answer in answers):
        return
    if silent:
        raise CrnodeError(
            f"No version of {name} can be reached"
            + (f" that has anything at '{path}'." if path is not None else "."),
            " ".join(f"{node}: {why}" for node, why in sorted(silent.items())),
            "",
            ExitCode.UNREACHABLE,
        )
    if any(answer.get("any") for answer in answers):
        raise CrnodeError(
            f"No version of {name} has anything at '{path}'.",
            "It never was there, or all versions that had it were thinned out.",
            f"Name it as it stands below the set's own folder; what there is: crnode ls {name}",
            ExitCode.USAGE,
        )


def _version(image: Image, why: str, node: str) -> Args:
    quality = "fuzzy" if image.flags & FUZZY else "rolling" if image.flags & ROLLING else "clean"
    return {
        "number": image.sequence,
        "id": (image.id or b"").hex(),
        "time_ns": image.at_ns,
        "entries": image.entries,
        "bytes": image.bytes,
        "digest": image.digest.hex(),
        "quality": quality,
        "verdict": VERDICTS[image.verdict],
        "evidence": image.evidence,
        "name": image.name,
        "why": image.why or why,
        "node": node,
    }


def _doubted(image: Image, brake: Held) -> Image:
    """A version as people see it while the brake holds: suspect until they have said what the change is."""
    if image.ordinal < brake.ordinal or image.verdict == BAD:
        return image
    was = f" {image.evidence}" if image.evidence else ""
    return image._replace(verdict=SUSPECT, evidence=f"the brake holds it: {brake.why}{was}")


def _rungs(spec: ReplicationSet, node: str | None = None) -> list[str]:
    """The rungs in force at a target, or at those that have none of their own."""
    rungs = spec.keep if node is None else spec.kept_at(node)
    return [rung.text for rung in rungs or DEFAULT]


def _shown(spec: ReplicationSet) -> Args:
    """A set for people and scripts: as the document has it, but rungs as they are written."""
    out = spec.model_dump(mode="json")
    out["keep"] = _rungs(spec)
    for node, target in out["targets"].items():
        target["keep"] = _rungs(spec, node)
    return out


def _wanted_ladder(args: Args) -> Ladder | None:
    """The ladder that a plan is asked for by; None: the one in force. Raises CrnodeError(USAGE)."""
    rungs = parse_rungs("The plan was not made.", [str(text) for text in args.get("keep") or []])
    return ladder_of(rungs) if rungs else None


def _planned(images: list[Image], ladder: Ladder, node: str) -> list[Args]:
    """All images, each with what thinning by `ladder` does with it now."""
    numbers = {image.ordinal: image.sequence for image in images}
    rows = []
    for image, decision in zip(images, plan(candidates(images), ladder), strict=True):
        instead = f" (version {numbers[decision.instead]})" if decision.instead else ""
        rows.append({**_version(image, decision.why + instead, node), "keep": decision.keep})
    return rows


__all__ = ["Calls", "Role"]
