"""W2: first copy of 1 GiB, half compressible."""

from __future__ import annotations

from bench.large import first_copy
from bench.run import Bench, Result
from bench.tools import Tool

NAME, TITLE = "W2", "first copy of 1 GiB, half compressible"
TOOLS = ("crnode", "rsync", "rsync --fsync", "rsync ssh", "lsyncd", "syncthing")


def measure(host: Bench, tool: Tool) -> list[Result]:
    return [first_copy(host, tool, NAME)[1]]
