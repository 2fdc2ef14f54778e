"""What ends a node's services when its keeper cannot, in sentences (rules 2 and 4). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def layers(
    *,
    has_address: bool,
    units: Sequence[str],
    bound: str,
    watched: bool,
    device: str,
    fence: str,
    guards: Mapping[str, bool],
) -> list[dict[str, Any]]:
    """[{"name", "live", "text"}]: `bound` is the keeper's own unit, '' for none; `watched`, whether systemd
    ends it when it is silent; `guards`, what the system allowed the keeper."""
    out = [
        _layer(
            "address",
            has_address,
            "The kernel ends the address with the lease."
            if has_address
            else "No address is moved here, so the kernel ends none.",
        )
    ]
    if units:
        out.append(_layer("gates", True, f"systemd starts {_and(units)} only where the lease is."))
        out.append(
            _layer(
                "binding",
                bool(bound),
                f"systemd ends {_and(units)} when {bound} ends."
                if bound
                else "The keeper is no service of systemd: its end does not end the units. See"
                " examples/crnode-keeper.service.",
            )
        )
    out.append(
        _layer(
            "systemd watchdog",
            watched,
            "systemd ends the keeper, and what it runs, when it is silent for half a lease."
            if watched
            else "Nobody ends a keeper that hangs, but the address with its lease; run it as a service"
            " of systemd.",
        )
    )
    out.append(
        _layer(
            "machine watchdog",
            bool(device),
            f"{device} starts the machine again when the keeper cannot end its services."
            if device
            else "No watchdog of the machine is used: crnode takeover set --watchdog /dev/watchdog.",
        )
    )
    out.append(
        _layer(
            "fence command",
            bool(fence),
            "The other machine is switched off before this one serves: at most one is active, whatever stands"
            " still."
            if fence
            else "No command switches the other machine off: one that was paused as a whole may serve"
            " for the rest"
            " of its lease when it goes on.",
        )
    )
    kept = [
        text
        for name, text in (
            ("locked", "its memory is locked"),
            ("spared", "it is spared when memory runs out"),
            ("first", "it runs before ordinary programs"),
        )
        if guards.get(name)
    ]
    text = f"Of the keeper: {', '.join(kept)}." if kept else "It runs as any program."
    out.append(_layer("keeper", len(kept) == 3, text))
    return out


def _layer(name: str, live: bool, text: str) -> dict[str, Any]:
    return {"name": name, "live": live, "text": text}


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


__all__ = ["layers"]
