"""One large file: W2 copies it, W3 to W5 change it."""

from __future__ import annotations

import os
import random
from pathlib import Path

from bench.run import Bench, Result
from bench.tools import Tool
from bench.tree import Watch, large_file

SIZE = 1 << 30
PAGES, PAGE = 100, 8 << 10


def first_copy(host: Bench, tool: Tool, name: str) -> tuple[Path, Result]:
    """Put the file into the source and time its copy."""
    source, target = tool.pairs[0]
    size = host.size(SIZE)
    made = host.copy_of(host.prepared("large", lambda place: large_file(place / "large", size, 2))) / "large"
    path = source / "large"
    watch = Watch(made.parent, target, [made])
    return path, host.timed(name, tool, lambda: made.rename(path), lambda: watch, [(source, target, [path])])


def change(host: Bench, tool: Tool, name: str, path: Path, how: str) -> Result:
    """Change the file in the way named, and time until the copy has it."""
    source, target = tool.pairs[0]
    chance = random.Random(f"change {host.run}")
    acts = {"pages": _pages, "insert": _insert, "append": _append}
    return host.timed(
        name,
        tool,
        lambda: acts[how](path, chance),
        lambda: Watch(source, target, [path]),
        [(source, target, [path])],
    )


def _pages(path: Path, chance: random.Random) -> None:
    size = path.stat().st_size
    with open(path, "r+b", buffering=0) as file:
        for _ in range(PAGES):
            os.pwrite(file.fileno(), chance.randbytes(PAGE), chance.randrange(size // PAGE) * PAGE)


def _insert(path: Path, chance: random.Random) -> None:
    """100 bytes at 1 MiB, as an editor does it: a new file that replaces the old one."""
    beside = path.parent.parent / f"{path.name}.new"
    with open(path, "rb") as old, open(beside, "wb") as new:
        new.write(old.read(1 << 20) + chance.randbytes(100))
        while data := old.read(1 << 20):
            new.write(data)
    beside.rename(path)


def _append(path: Path, chance: random.Random) -> None:
    with open(path, "ab") as file:
        file.write(chance.randbytes(1 << 20))
