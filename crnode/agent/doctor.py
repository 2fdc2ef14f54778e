"""`crnode doctor`: what stands in the way of the promises on this node, each with what to do about it."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

from crnode.agent.guarded import guarded
from crnode.agent.links import OFFSET_WARNING_S
from crnode.agent.remaking import asides
from crnode.agent.status import FOLLOWING, advice, cluster, named, shown_state
from crnode.cluster.identity import valid_until_ns
from crnode.cluster.node_file import CERTIFICATE_FILE
from crnode.errors import CrnodeError
from crnode.store.reader import MINIMUM_SQLITE

if TYPE_CHECKING:
    from crnode.agent.node import Agent
    from crnode.agent.sets import RunningSource, RunningTarget

Check = dict[str, Any]
LOST_KNOWN = 100  # paths that are left out and that a source keeps at hand


def _check(name: str, ok: bool | None, text: str, hint: str = "") -> Check:
    return {"name": name, "ok": ok, "text": text, "hint": hint}


async def checks(agent: Agent) -> list[Check]:
    """All checks, in the order in which a person should read them; `ok` is None for 'worth knowing'."""
    out = [_space(agent), _sqlite(), _root(), _watches(agent)]
    out += _network(agent)
    out += _clocks(agent)
    out += await asyncio.to_thread(_catalogs, agent)
    out += await asyncio.to_thread(_catalogs_kept, agent)
    out += _sets(agent)
    out += await _held_elsewhere(agent)
    if agent.document.takeover is not None:
        out += await _takeover(agent)
        out += await guarded(agent)
    out += [_check(name, False, text) for name, text in agent.problems.items()]
    out.append(_certificate(agent))
    return out


def _space(agent: Agent) -> Check:
    try:
        agent.store.room.check_last()
    except CrnodeError as error:
        return _check("room", False, error.what + " " + error.why, error.hint)
    return _check("room", True, "The object store has room.")


def _sqlite() -> Check:
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    fine = version >= MINIMUM_SQLITE
    return _check(
        "sqlite",
        fine,
        f"The catalog uses SQLite {apsw.sqlite_lib_version()}.",
        "" if fine else "Versions before 3.51.3 can damage a database in WAL mode: install a newer apsw.",
    )


def _root() -> Check:
    if os.geteuid() == 0:
        return _check("owner", True, "The agent runs as root and can keep owners and modes of files.")
    return _check(
        "owner",
        None,
        "The agent does not run as root: files in live trees belong to its own user.",
        "Run it as root where owners of files matter.",
    )


def _watches(agent: Agent) -> Check:
    try:
        limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    except (OSError, ValueError):
        return _check("watches", None, "The system's limit of inotify watches is not known.")
    scanning = [
        r.spec.name
        for r in agent.sets.sources.values()
        if r.source.watch_kind == "scan" and r.source.state == "ok"
    ]
    if scanning:
        return _check(
            "watches",
            False,
            f"Too few inotify watches (limit {limit}): scanned instead: {', '.join(scanning)}.",
            "sysctl -w fs.inotify.max_user_watches=1048576",
        )
    return _check("watches", True, f"The system allows {limit} inotify watches.")


def _network(agent: Agent) -> list[Check]:
    out = []
    for name, link in agent.links.items():
        up = link.peer is not None
        out.append(
            _check(
                f"node {name}",
                up,
                f"{name} is connected." if up else f"{name} is not reachable: {link.reason}",
            )
        )
    return out


def _clocks(agent: Agent) -> list[Check]:
    out = []
    for name, link in agent.links.items():
        if link.peer is not None and link.peer.clock_offset_ns is not None:
            offset = link.peer.clock_offset_ns / 1e9
            if abs(offset) > OFFSET_WARNING_S:
                out.append(
                    _check(
                        f"clock {name}",
                        False,
                        f"Its clock differs by {offset:.1f} s.",
                        "Set both clocks by NTP.",
                    )
                )
    return out


def _catalogs(agent: Agent) -> list[Check]:
    out = []
    for uuid, catalog in list(agent.sets.catalogs.items()):
        spec = agent.document.set_by_uuid(uuid)
        with catalog.reader() as reader:
            said = reader.quick_check()
        if said != "ok":
            out.append(
                _check(
                    f"catalog {spec.name if spec else uuid}",
                    False,
                    said,
                    "Stop the agent and move the file away; it is made anew.",
                )
            )
    return out or [_check("catalogs", True, "All catalogs pass SQLite's check.")]


def _catalogs_kept(agent: Agent) -> list[Check]:
    """What is left of damaged catalogs. Their sets may be whole again, and yet have lost versions for ever:
    worth knowing until a person has decided that nobody wants them any more."""
    out = []
    for path, uuid, second, kept, part in asides(agent.data / "sets"):
        if part or (not kept and uuid in agent.sets.refused):  # its set waits for it, and is said to
            continue
        spec = agent.document.set_by_uuid(uuid)
        name = spec.name if spec else uuid
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(second))
        out.append(
            _check(
                f"old catalog {name}",
                None,
                f"{path} is what is left of a catalog that was damaged on {day}. Versions of set {name} from"
                " before that may be missing: only those that could be read are there.",
                f"Compare with 'crnode versions {name}' and 'crnode events'. When nobody wants it any more,"
                f" remove it: rm {path}*",
            )
        )
    return out


def _sets(agent: Agent) -> list[Check]:
    out = []
    for uuid, reason in agent.sets.refused.items():
        spec = agent.document.set_by_uuid(uuid)
        out.append(_check(f"set {spec.name if spec else uuid}", False, reason))
    for running in agent.sets.sources.values():
        fine = running.source.state in ("ok", "scanning", "capturing")
        out.append(
            _check(
                f"set {running.spec.name}",
                fine,
                f"Source: {running.source.state}. {running.source.detail}".strip(),
                advice(running.spec.name, running.source.state),
            )
        )
        if running.source.lost:
            out.append(_left_out(running))
        for name, (push, _) in running.pushes.items():
            well: bool | None = push.state in ("in sync", "behind", "copying", "waiting")
            text = f"{push.state}. {push.reason}".strip()
            if push.state == "in sync" and running.source.state not in FOLLOWING:
                well = None
                text = f"{shown_state(running.source.state)}. {name} has all that was captured before."
            out.append(_check(f"set {running.spec.name} to {name}", well, text))
    for target in agent.sets.targets.values():
        if (mount := _mount_options(target)) is not None:
            out.append(mount)
        status = target.target.status
        if status.lacking or status.live:
            out.append(
                _check(
                    f"set {target.spec.name} here",
                    False if status.damaged or status.live else None,
                    status.lacking or f"The live tree waits: {status.live}",
                )
            )
        if target.target.status.unapplied:
            out.append(
                _check(
                    f"live tree {target.spec.name}",
                    None,
                    f"{target.target.status.unapplied} paths cannot be held here.",
                    "See crnode status.",
                )
            )
    return out


async def _held_elsewhere(agent: Agent) -> list[Check]:
    """Sets of this source whose live tree a brake holds at a target: people there see what was before."""
    mine = {running.spec.name for running in agent.sets.sources.values()}
    if not mine:
        return []
    seen = await cluster(agent)
    return [
        _check(f"set {item['name']} to {target['node']}", False, target["reason"])
        for item in seen["sets"]
        for target in item["targets"]
        if item["name"] in mine and target["state"] == "held"
    ]


async def _takeover(agent: Agent) -> list[Check]:
    """Whether a takeover would work now, and what it would cost."""
    found = await agent.calls.moving.would({}, lambda _: None)
    hint = "" if found["ok"] else "See: crnode failover --dry-run"
    return [_check("takeover", found["ok"], " ".join(found["says"]), hint)]


def _left_out(running: RunningSource) -> Check:
    """Paths that are in no copy; `lost` holds the first ones."""
    lost = running.source.lost
    first = named(lost[:1])[0]
    many = f"{len(lost)} paths are" if len(lost) > 1 else "1 path is"
    return _check(
        f"set {running.spec.name} left out",
        None,
        f"{many if len(lost) < LOST_KNOWN else f'At least {many}'} in no copy. {first['path']}:"
        f" {first['reason']}.".replace("..", "."),
        "See crnode status; exclude what need not be copied.",
    )


def _mount_options(target: RunningTarget) -> Check | None:
    """Foreign files need neither set-id bits nor devices; a set that is privileged may (rule 66)."""
    place = target.target.destination
    try:
        flags = os.statvfs(place).f_flag
    except OSError:
        return None
    lacking = [n for n, flag in (("nosuid", os.ST_NOSUID), ("nodev", os.ST_NODEV)) if not flags & flag]
    if target.spec.privileged or not lacking or not os.path.ismount(place):
        return None  # only where the destination is a file system of its own can somebody set it so
    options = " and ".join(lacking)
    return _check(
        f"mount {target.spec.name}",
        None,
        f"{place} is mounted without {options}.",
        f"Mount it with {','.join(lacking)}: files from other machines need neither.",
    )


def _certificate(agent: Agent) -> Check:
    place = agent.data / CERTIFICATE_FILE
    try:
        days = (valid_until_ns(ssl.PEM_cert_to_DER_cert(place.read_text())) / 1e9 - time.time()) / 86400
    except (OSError, ValueError) as error:
        return _check(
            "certificate",
            False,
            f"This node's certificate {place} cannot be read: {error}.",
            "The agent goes on with what it has read and will not start again: put it back, or join anew.",
        )
    return _check(
        "certificate",
        days > 60,
        f"This node's certificate ends in {days:.0f} days.",
        "" if days > 60 else "Join anew before it ends.",
    )
