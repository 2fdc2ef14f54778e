"""W7: 2,000 of 10,000 small files rewritten."""

from __future__ import annotations

import random
from pathlib import Path

from bench import w1_small_files
from bench.run import Bench, Result
from bench.tools import Tool
from bench.tree import Watch

NAME, TITLE = "W7", "2,000 of 10,000 files rewritten"
TOOLS = w1_small_files.TOOLS


def measure(host: Bench, tool: Tool) -> list[Result]:
    w1_small_files.measure(host, tool)
    source, target = tool.pairs[0]
    chance = random.Random(f"change {host.run}")
    paths: list[Path] = sorted(path for path in (source / "tree").rglob("f*") if path.is_file())
    chosen = chance.sample(paths, len(paths) // 5)

    def rewrite() -> None:
        for path in chosen:
            path.write_bytes(chance.randbytes(path.stat().st_size))

    return [
        host.timed(NAME, tool, rewrite, lambda: Watch(source, target, chosen), [(source, target, chosen)])
    ]
