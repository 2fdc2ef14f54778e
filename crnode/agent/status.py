"""What `crnode status` shows: this node's own view, and the cluster's put together from all that answer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from crnode.agent.links import OFFSET_WARNING_S
from crnode.cluster.document import ReplicationSet
from crnode.errors import CrnodeError
from crnode.store.reader import FUZZY, ROLLING

if TYPE_CHECKING:
    from crnode.agent.node import Agent
    from crnode.agent.sets import RunningSource, RunningTarget

Out = dict[str, Any]
ANSWER_SECONDS = 2.0
FOLLOWING = ("ok", "scanning", "capturing", "starting", None)
"""States of a source that follows its files, or of which nothing is known here."""
_QUOTED = re.compile(r"""(?:the \w+ )?\bb(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")


def nodes(agent: Agent) -> list[Out]:
    """All nodes of the cluster as this one sees them."""
    out: list[Out] = []
    for node in agent.document.nodes:
        link = agent.links.get(node.name)
        offset = None
        problems: list[str] = []
        if link is not None and link.peer is not None and link.peer.clock_offset_ns is not None:
            offset = link.peer.clock_offset_ns / 1e9
            if abs(offset) > OFFSET_WARNING_S:
                problems.append(f"Its clock differs by {offset:.1f} s; set both clocks by NTP.")
        state = "self" if node.name == agent.node.name else (link.state if link is not None else "down")
        if node.lost:
            state = "lost"
            role = "repli-master" if agent.said.sets_from(node.name) else "replica"
            problems.append(
                "It was switched off; it comes back by joining with an empty data directory:"
                f" crnode invite {node.name} --role {role}"
            )
        elif link is not None and link.state == "down":
            problems.append(link.reason)
        out.append(
            {
                "name": node.name,
                "role": node.role.value,
                "address": node.address,
                "state": state,
                "seen_s_ago": agent.heard_ago(node.name),
                "clock_offset_s": offset,
                "problems": problems,
            }
        )
    return out


async def local(agent: Agent) -> Out:
    """Sets as this node has them, as their source or their target."""
    sources = {u: _source(agent, r) for u, r in list(agent.sets.sources.items())}
    targets = {u: await _target(agent, r) for u, r in list(agent.sets.targets.items())}
    return {
        "node": agent.node.name,
        "sources": sources,
        "targets": targets,
        "refused": dict(agent.sets.refused),
        "damage": [f"{agent.node.name}: {name}: {text}" for name, text in agent.problems.items()],
    }


def _source(agent: Agent, running: RunningSource) -> Out:
    source = running.source
    newest = source.newest
    now = time.time_ns()
    problems = named(source.lost[:20])
    return {
        "state": source.state,
        "detail": source.detail,
        "files": newest.entries if newest else 0,
        "bytes": newest.bytes if newest else 0,
        "sequence": newest.sequence if newest else 0,
        "digest": newest.digest.hex() if newest else "",
        "point_age_s": (now - newest.at_ns) / 1e9 if newest else None,
        "quality": _quality(newest.flags) if newest else None,
        "watch": source.watch_kind,
        "problems": problems,
        "problem_count": len(source.lost),
        "targets": {name: _push(running, name) for name in running.pushes},
    }


def shown_state(state: str) -> str:
    """What a target's row shows while its source does not follow its files: that the target has all which
    was captured is true then, and no comfort."""
    return "source missing" if state == "root missing" else f"source {state}"


def advice(name: str, state: str, detail: str = "") -> str:
    """What a person can do about a source in `state`, '' where nothing is known that helps or `detail`, which
    is shown before it, says so already."""
    if f"crnode set rebase {name}" in detail:
        return ""
    if state == "root missing":
        return (
            "Mount the disk or bring the folder back; if what is there now is meant:"
            f" crnode set rebase {name}"
        )
    if state == "emptied":
        return f"Bring the files back; if they were deleted on purpose: crnode set rebase {name}"
    return ""


def named(problems: Iterable[tuple[bytes, str]]) -> list[Out]:
    """Paths with the reason of each, as answers carry them."""
    return [{"path": path.decode("utf-8", "replace"), "reason": _plain(reason)} for path, reason in problems]


def _plain(reason: str) -> str:
    """The protocol's own words name the path as Python does; it stands beside the reason already. And no
    file system gives a mode or a number of an owner that is out of bounds."""
    said = _QUOTED.sub("it", reason)
    return said.replace("mode, owner or time of it is", "its time of last change, or its owner's name, is")


def _quality(flags: int) -> str:
    return "fuzzy" if flags & FUZZY else "rolling" if flags & ROLLING else "clean"


def _push(running: RunningSource, name: str) -> Out:
    push = running.pushes[name][0]
    newest = running.source.newest
    state = push.state
    clock = asyncio.get_running_loop().time()
    rpo = push.lag.rpo(clock)
    if state == "in sync" and newest is not None and push.acked != newest.id:
        state = "behind"
    return {
        "state": state,
        "lag_s": push.lag.seconds(clock),
        "rpo": {"p50_s": rpo.p50, "p95_s": rpo.p95, "max_s": rpo.max, "over_s": rpo.over},
        "behind_points": push.lag.behind(),
        "sequence": push.lag.acknowledged,
        "applied": push.applied == push.acked and bool(push.acked),
        "synced": push.synced,
        "unapplied": push.unapplied,
        "sent_bytes": push.total_sent(),
        "reason": push.reason,
        "last_lag_s": push.lag.last_seconds,
    }


async def _target(agent: Agent, running: RunningTarget) -> Out:
    target = running.target
    newest = await agent.writer.submit(target.catalog.newest)
    state, reason = target.status.state, target.status.reason or target.status.live
    if target.status.damaged:
        state, reason = "damaged", target.status.lacking
    elif target.status.live:
        state = "held" if target.status.held else "live tree waits"
    return {
        "state": state,
        "reason": reason,
        "sequence": newest.sequence if newest else 0,
        "digest": newest.digest.hex() if newest else "",
        "files": newest.entries if newest else 0,
        "bytes": newest.bytes if newest else 0,
        "lacking": target.status.lacking,
        "unapplied": target.status.unapplied,
        "problems": named(target.status.problems),
        "set_aside": target.status.set_aside,
        "conflicts": len(running.feed.conflicts) if running.feed is not None else 0,
    }


async def cluster(agent: Agent) -> Out:
    """The whole cluster: every node is asked at once; who does not answer is shown as this node knows it."""
    views = {agent.node.name: await local(agent)}

    async def ask(name: str) -> None:
        link = agent.links[name]
        if link.peer is not None:
            try:
                views[name] = await link.call("status", {}, ANSWER_SECONDS)
            except CrnodeError:
                return

    await asyncio.gather(*(ask(name) for name in agent.links))
    document = agent.document
    warnings: list[str] = []
    sets = [_set(agent, spec, views, warnings) for spec in document.sets]
    listed = nodes(agent)
    for node in listed:
        warnings += [f"{node['name']}: {problem}" for problem in node["problems"]]
    for view in views.values():
        for uuid, reason in view["refused"].items():
            spec = document.set_by_uuid(uuid)
            warnings.append(f"Set {spec.name if spec else uuid} does not run on {view['node']}: {reason}")
        warnings += view.get("damage", [])
    return {
        "cluster": {"name": document.name, "id": document.id, "version": list(document.version)},
        "node": agent.node.name,
        "role": agent.node.role.value,
        "nodes": listed,
        "sets": sets,
        "warnings": warnings,
        "thresholds": {"warn_s": document.thresholds.safe_lag_s, "error_s": document.thresholds.error_lag_s},
        "promise": "An acknowledged change is durable at its target. Copying is asynchronous:"
        " what a takeover could lose is the lag shown here.",
    }


def _group(spec: ReplicationSet, views: dict[str, Out], warnings: list[str]) -> Out:
    """A group: what its targets made of what they received of its members, whose rows have lag and source."""
    targets: list[Out] = []
    for name, target in spec.targets.items():
        there = views.get(name, {}).get("targets", {}).get(spec.uuid, {})
        if there.get("state") == "held":
            warnings.append(f"Group {spec.name} on {name}: {there['reason']}")
        if there.get("conflicts"):
            warnings.append(
                f"Group {spec.name} on {name}: several sources have {there['conflicts']} paths, and one of"
                f" each is shown: crnode group conflicts {spec.name}"
            )
        shown: Out = {key: there.get(key) for key in ("sequence", "digest", "lacking", "members")}
        targets.append(
            {
                **shown,
                "node": name,
                "mode": target.mode.value,
                "destination": target.destination,
                "state": there.get("state") or "offline",
                "reason": there.get("reason") or "",
                "lag_s": None,
                "unapplied": there.get("unapplied", 0),
                "set_aside": there.get("set_aside", 0),
                "problems": there.get("problems", []),
                "conflicts": there.get("conflicts", 0),
            }
        )
    newest = [views.get(name, {}).get("targets", {}).get(spec.uuid, {}) for name in spec.targets]
    return {
        "name": spec.name,
        "uuid": spec.uuid,
        "source": "",
        "members": list(spec.members),
        "paths": [],
        "state": "group",
        "detail": "",
        "files": max((int(one.get("files", 0)) for one in newest), default=0),
        "bytes": max((int(one.get("bytes", 0)) for one in newest), default=0),
        "quality": None,
        "problems": [],
        "targets": targets,
    }


def _set(agent: Agent, spec: ReplicationSet, views: dict[str, Out], warnings: list[str]) -> Out:
    if spec.members:
        return _group(spec, views, warnings)
    source = views.get(spec.source, {}).get("sources", {}).get(spec.uuid, {})
    targets: list[Out] = []
    thresholds = agent.document.thresholds
    for name, target in spec.targets.items():
        push = source.get("targets", {}).get(name, {})
        there = views.get(name, {}).get("targets", {}).get(spec.uuid, {})
        state = "paused" if target.paused else push.get("state") or there.get("state") or "offline"
        reason = push.get("reason") or ""
        if there.get("state") in ("damaged", "checking") or (
            state == "in sync" and there.get("state") in ("live tree waits", "held")
        ):
            state, reason = there["state"], there["reason"]
        if state == "in sync" and not reason and push.get("applied") is False:
            reason = "it is all there; the folder is still being brought to it"
        lag = push.get("lag_s")
        if state == "in sync" and source.get("state") not in FOLLOWING:
            state, lag = shown_state(source["state"]), None
            reason = source.get("detail", "")
        if there.get("state") == "held":
            warnings.append(f"Set {spec.name} on {name}: {there['reason']}")
        if there.get("lacking"):
            warnings.append(f"Set {spec.name} on {name}: {there['lacking']}")
        level = thresholds.level(lag)
        if lag is not None and level != "ok":
            limit = thresholds.safe_lag_s if level == "warning" else thresholds.error_lag_s
            said = f"Set {spec.name}: {name} is {lag:.0f} s behind (more than {limit:g} s)."
            warnings.append(said if level == "warning" else f"{said} What changed since then is not there.")
        targets.append(
            {
                "node": name,
                "mode": target.mode.value,
                "destination": target.destination,
                "state": state,
                "lag_s": lag,
                "rpo": push.get("rpo"),
                "level": level,
                "behind_entries": push.get("behind_points"),
                "behind_bytes": None,
                "sequence": there.get("sequence", push.get("sequence")),
                "digest": there.get("digest"),
                "applied": push.get("applied"),
                "synced": push.get("synced"),
                "unapplied": there.get("unapplied", push.get("unapplied", 0)),
                "set_aside": there.get("set_aside", 0),
                "sent_bytes": push.get("sent_bytes", 0),
                "last_lag_s": push.get("last_lag_s"),
                "rate_bytes_s": None,
                "reason": reason or there.get("reason") or "",
                "problems": there.get("problems", []),
            }
        )
        for problem in there.get("problems", [])[:3]:
            warnings.append(f"Set {spec.name}: {name} cannot hold {problem['path']}: {problem['reason']}")
    if not spec.targets:
        warnings.append(f"Set {spec.name} has no target: nothing of it is copied anywhere.")
    if source.get("state") not in FOLLOWING:
        detail = source.get("detail", "")
        parts = (f"Set {spec.name}: {source['state']}.", detail, advice(spec.name, source["state"], detail))
        warnings.append(" ".join(part for part in parts if part))
    return {
        "name": spec.name,
        "uuid": spec.uuid,
        "source": spec.source,
        "paths": list(spec.paths),
        "state": source.get("state", "unknown"),
        "detail": source.get("detail", "" if source else "its source does not answer"),
        "files": source.get("files"),
        "bytes": source.get("bytes"),
        "sequence": source.get("sequence"),
        "digest": source.get("digest"),
        "point_age_s": source.get("point_age_s"),
        "quality": source.get("quality"),
        "watch": source.get("watch"),
        "problems": source.get("problems", []),
        "targets": targets,
    }
