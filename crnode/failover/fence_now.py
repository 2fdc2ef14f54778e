"""`crnode fence`: end what a keeper's node serves, without a keeper: systemd runs it when that one has ended.

It reads the cluster document as plain JSON and imports next to nothing: it has to work when little else does.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import NamedTuple

from crnode.platform.cgroups import Group

GATES = Path("/run/crnode/active")
DOCUMENT, NODE = "cluster.json", "node.json"


class Fenced(NamedTuple):
    """What was done, and what could not be, as sentences."""

    done: list[str]
    left: list[str]


def fence(data: Path, gates: Path = GATES) -> Fenced:
    """Take the address off, close the gates of the units, and end what is in their control groups and in
    those of programs that a keeper runs. OSError or ValueError when the document cannot be read."""
    document, node = json.loads((data / DOCUMENT).read_bytes()), json.loads((data / NODE).read_bytes())
    takeover = document.get("takeover") or {}
    said: list[str] = []
    left: list[str] = []
    if node.get("name") not in takeover.get("candidates", ()):
        return Fenced(said, left)  # a witness has units of its own, maybe
    if (address := takeover.get("address")) and (interface := takeover.get("interface")):
        words = ["ip", "address", "del", address, "dev", interface]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(words, capture_output=True, timeout=2.0, check=False)
            if done.returncode == 0:
                said.append(f"The address {address} was taken off.")
    for service in takeover.get("services") or ():
        name, unit = str(service.get("name")), str(service.get("unit") or "")
        if not unit:
            group = None
            with contextlib.suppress(OSError):
                group = Group.named(f"crnode.{str(document.get('id'))[:8]}-{node['name']}.{name}")
                if group is not None and not group.is_empty:
                    group.kill()
                    said.append(f"{name} was ended.")
            if group is None:
                left.append(f"{name} is run by the keeper: it ends when the keeper does.")
            continue
        if "/" in unit:
            continue
        with contextlib.suppress(OSError):
            (gates / unit).unlink(missing_ok=True)
        try:
            group = Group.find_unit(unit)
            if group is not None and not group.is_empty:
                group.kill()
                said.append(f"{unit} was ended.")
        except OSError as error:
            left.append(f"{unit} could not be ended: {error.strerror or error}.")
    return Fenced(said, left)


__all__ = ["Fenced", "fence"]
