"""W8: 64 versions of a file of 256 MiB, of which 320 random pages of 8 KiB (1 %) are overwritten each time;
then the newest and the oldest are brought back. Beside tools that keep snapshots."""

from __future__ import annotations

import os
import random
import statistics
import time
from pathlib import Path

from bench.large import PAGE
from bench.run import Bench, Result
from bench.snapshots import Snapshots, private_copy
from bench.tools import Crnode, Tool
from bench.tree import NotComplete, Watch, compare, large_file

NAME, TITLE = "W8", "64 versions of 256 MiB, 1 % changed each"
TOOLS = ("crnode", "restic", "borg", "casync")
MOST_RUNS = 1  # of this length
VERSIONS, SIZE, PAGES = 64, 256 << 20, 320
PAUSE = 1.2  # seconds before each version, for all: crnode keeps what a second of quiet follows


def measure(host: Bench, tool: Tool) -> list[Result]:
    assert isinstance(tool, Crnode | Snapshots)
    source, target = tool.pairs[0]
    prepared = host.prepared("versions", lambda place: large_file(place / "large", host.size(SIZE), 8))
    path = source / "large"
    tool.keep_all()
    made = host.copy_of(prepared) / "large"
    oldest = host.fresh("oldest")
    private_copy(made, oldest)
    watch = Watch(made.parent, target, [made])
    made.rename(path)
    if tool.watches:
        watch.wait()
    tool.snapshot(0)
    first = tool.store_bytes()
    chance = random.Random(f"versions {host.run}")
    times = []
    count = max(int(VERSIONS * host.scale), 3)
    host.settle()
    meter, spent = tool.meter(), tool.spent
    for number in range(1, count):
        time.sleep(PAUSE)
        _change(path, chance)
        begun = time.perf_counter()
        if tool.watches:
            times.append(Watch(source, target, [path]).wait() - begun)
            tool.snapshot(number)
        else:
            tool.snapshot(number)
            times.append(time.perf_counter() - begun)
    cost = tool.cost(meter, spent)
    more = {"store_mib": tool.store_bytes() / 2**20, "first_mib": first / 2**20}
    found = [host.result(NAME, tool, statistics.median(times), cost, times, **more)]
    newest = host.fresh("newest")
    private_copy(path, newest)
    for name, number, kept in (("newest", count - 1, newest), ("oldest", 0, oldest)):
        to = host.fresh(f"back-{name}") / "to"
        to.mkdir()
        host.settle()
        host.warm(2 * host.size(SIZE))
        meter, spent = tool.meter(), tool.spent
        begun = time.perf_counter()
        tool.restore(number, to)
        took = time.perf_counter() - begun
        found.append(host.result(f"{NAME} {name}", tool, took, tool.cost(meter, spent)))
        _compare(kept, to)
    return found


def _change(path: Path, chance: random.Random) -> None:
    size = path.stat().st_size
    with open(path, "r+b", buffering=0) as file:
        for _ in range(PAGES):
            os.pwrite(file.fileno(), chance.randbytes(PAGE), chance.randrange(size // PAGE) * PAGE)


def _compare(kept: Path, to: Path) -> None:
    back = next(to.rglob("large"), None)  # some write the whole path below the folder that they are given
    if back is None:
        raise NotComplete(f"{to} has not what was kept")
    compare(kept, back.parent, [kept / "large"])
