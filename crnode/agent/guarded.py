"""What `crnode doctor` says of a keeper's machine: which layers end its services, and what would undermine
them (rules 4, 5 and 13)."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import subprocess
from typing import TYPE_CHECKING, Any

from crnode.agent.moving import ask_keeper
from crnode.cluster.document import ClusterDocument, Takeover
from crnode.errors import CrnodeError
from crnode.failover.controls import has_drop_in

if TYPE_CHECKING:
    from crnode.agent.node import Agent

Check = dict[str, Any]
FOREVER = 0xFFFFFFFF  # seconds, as ip(8) writes a lifetime without an end
ASK_SECONDS = 5.0


async def guarded(agent: Agent) -> list[Check]:
    """Checks of this node, when it is a voter."""
    document = agent.document
    takeover = document.takeover
    if takeover is None or agent.node.name not in takeover.voters:
        return []
    out = list(together(document, takeover))
    try:
        state = await ask_keeper(agent, "status", {})
    except CrnodeError as error:
        return [*out, _check("keeper", False, f"{error.what} {error.why}".strip(), error.hint)]
    if agent.node.name in takeover.candidates:
        out += [
            _check(f"keeper: {row['name']}", True if row["live"] else None, row["text"])
            for row in state["layers"]
        ]
        out += await asyncio.to_thread(undermined, takeover, active=state["phase"] == "active")
    return out


def together(document: ClusterDocument, takeover: Takeover) -> list[Check]:
    """Voters that are on one machine, and fail together."""
    machines: dict[str, list[str]] = {}
    for name in takeover.voters:
        if (node := document.node(name)) is not None and node.machine:
            machines.setdefault(node.machine, []).append(name)
    return [
        _check(
            "voters",
            None,
            f"{' and '.join(names)} are on one machine: they fail together.",
            "Let voters be on machines of their own.",
        )
        for names in machines.values()
        if len(names) > 1
    ]


def undermined(takeover: Takeover, *, active: bool) -> list[Check]:
    """What serves here by another's word than the keeper's. In a thread."""
    out = []
    for service in takeover.services:
        if not service.unit:
            continue
        if not has_drop_in(service.unit):
            out.append(
                _check(
                    f"unit {service.unit}",
                    False,
                    f"systemd may start {service.unit} by itself: its drop-in is not there.",
                    "Start the keeper as root; it writes it.",
                )
            )
        elif not active and _asked("systemctl", "is-active", service.unit).strip() == "active":
            text = f"{service.unit} runs here, and this node is not active."
            out.append(_check(f"unit {service.unit}", False, text, f"systemctl stop {service.unit}"))
    if takeover.address and (where := permanent(takeover.address, _asked("ip", "-j", "address", "show"))):
        text = f"The address {takeover.address} is on {where} for ever: somebody else has configured it."
        hint = "Take it out of the network's configuration; the keeper takes it when it may."
        out.append(_check("address", False, text, hint))
    return out


def permanent(address: str, shown: str) -> str:
    """The interface that has the address without an end, by what `ip -j address show` printed; '' for
    none."""
    wanted = ipaddress.ip_interface(address).ip
    try:
        links = json.loads(shown or "[]")
    except ValueError:
        return ""
    for link in links:
        for one in link.get("addr_info", ()):
            forever = one.get("valid_life_time") == FOREVER
            if forever and "local" in one and ipaddress.ip_address(one["local"]) == wanted:
                return str(link.get("ifname"))
    return ""


def _asked(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ASK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _check(name: str, ok: bool | None, text: str, hint: str = "") -> Check:
    return {"name": name, "ok": ok, "text": text, "hint": hint}


__all__ = ["guarded", "permanent", "together", "undermined"]
