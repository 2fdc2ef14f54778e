"""W1: the first copy of 10,000 files of 1 to 16 KiB."""

from __future__ import annotations

from bench.run import Bench, Result
from bench.tools import Tool
from bench.tree import Watch, small_files

NAME, TITLE = "W1", "first copy of 10,000 files of 1-16 KiB"
TOOLS = ("crnode", "rsync", "rsync --fsync", "rsync ssh", "lsyncd", "syncthing")


def measure(host: Bench, tool: Tool) -> list[Result]:
    source, target = tool.pairs[0]
    made = host.copy_of(host.prepared("small", lambda place: small_files(place, host.count(10_000), 1)))
    paths = sorted(path for path in made.rglob("f*") if path.is_file())
    watch = Watch(made, target / "tree", paths)
    moved = [source / "tree" / path.relative_to(made) for path in paths]
    return [
        host.timed(NAME, tool, lambda: made.rename(source / "tree"), lambda: watch, [(source, target, moved)])
    ]
