"""Sizes as people write them, and the node's own quota."""

from __future__ import annotations

import re
from pathlib import Path

from crnode.cluster.node_file import MINIMUM_QUOTA, read_node_file
from crnode.errors import CrnodeError, ExitCode

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,18})(|B|KiB|MiB|GiB|TiB)", re.ASCII)


def parse_quota(text: str) -> int:
    """'50GiB' -> bytes. CrnodeError(USAGE) for anything that is not exactly so, or too little to work
    with."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise CrnodeError(
            f"'{text}' is no size.",
            "A size is a whole number and B, KiB, MiB, GiB or TiB, without a space.",
            "Write it like 50GiB.",
            ExitCode.USAGE,
        )
    size = int(match[1]) * _UNITS[match[2]]
    if not MINIMUM_QUOTA <= size < 1 << 62:
        raise CrnodeError(
            f"A quota of {text} cannot be used.",
            f"A node needs at least {MINIMUM_QUOTA >> 20} MiB for its packs and catalogs.",
            "Write it like 50GiB.",
            ExitCode.USAGE,
        )
    return size


def set_quota(data: Path, quota: int) -> None:
    """Write the quota into DATA/node.json; the agent follows it from its next start."""
    read_node_file(data).model_copy(update={"quota": quota}).write(data)
