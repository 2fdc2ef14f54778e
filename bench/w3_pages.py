"""W3: 100 random 8 KiB pages overwritten in 1 GiB."""

from __future__ import annotations

from bench.large import change, first_copy
from bench.run import Bench, Result
from bench.tools import Tool

NAME, TITLE = "W3", "100 random 8 KiB pages overwritten in 1 GiB"
TOOLS = ("crnode", "rsync", "rsync --inplace", "rsync ssh", "lsyncd", "syncthing")


def measure(host: Bench, tool: Tool) -> list[Result]:
    path, _ = first_copy(host, tool, "-")
    return [change(host, tool, NAME, path, "pages")]
