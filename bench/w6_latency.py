"""W6: from the close of one 4 KiB file to visible and complete at the target: alone, while 1 GiB is copied
beside it, and at 200 files a second for ten seconds, where the lag after the last one counts."""

from __future__ import annotations

import os
import statistics
import time

from bench.large import SIZE
from bench.run import Bench, Carrying, Result, compare_all
from bench.tools import Tool
from bench.tree import NotComplete, Watch, large_file, latency

NAME, TITLE = "W6", "one 4 KiB file, close to visible"
TOOLS = ("crnode", "rsync", "lsyncd", "syncthing")
FOLDERS = 2  # bulk and single files are different sets, as an owner would have them
SINGLE, BESIDE, RATE, SECONDS = 60, 1000, 200, 10


def measure(host: Bench, tool: Tool) -> list[Result]:
    with Carrying(tool, over_and_over=True) as carrying:
        found = [_alone(host, tool, carrying), _beside(host, tool, carrying), _rate(host, tool, carrying)]
    compare_all(tool.pairs)
    return found


def _alone(host: Bench, tool: Tool, carrying: Carrying) -> Result:
    source, target = tool.pairs[0]
    host.settle()
    meter, spent = tool.meter(), tool.spent
    times = []
    for number in range(host.count(SINGLE)):
        times.append(latency(source, [target], f"alone{number}", carrying.failed))
        time.sleep(0.05)
    return host.result(NAME, tool, statistics.median(times), tool.cost(meter, spent), times)


def _beside(host: Bench, tool: Tool, carrying: Carrying) -> Result:
    """Single files while the other folder's bulk is on its way: from its coming to its being complete."""
    source, target = tool.pairs[0]
    bulk, there = tool.pairs[1]
    prepared = host.prepared("large", lambda place: large_file(place / "large", host.size(SIZE), 2))
    made = host.copy_of(prepared) / "large"
    watch = Watch(made.parent, there, [made])
    host.settle()
    meter, spent = tool.meter(), tool.spent
    begun = time.perf_counter()
    made.rename(bulk / "large")
    times: list[float] = []
    while not watch.is_over() and len(times) < BESIDE:
        times.append(latency(source, [target], f"beside{len(times)}", carrying.failed))
        time.sleep(0.02)
    took = watch.wait(failed=carrying.failed) - begun
    if not times:
        raise NotComplete(f"{there} had the bulk before a single file was written beside it")
    cost = tool.cost(meter, spent)
    return host.result(f"{NAME} bulk", tool, statistics.median(times), cost, times, bulk_s=took)


def _rate(host: Bench, tool: Tool, carrying: Carrying) -> Result:
    source, target = tool.pairs[0]
    host.settle()
    meter, spent = tool.meter(), tool.spent
    begun = time.perf_counter()
    paths = []
    for number in range(RATE * SECONDS):
        paths.append(source / f"rate{number:05}")
        paths[-1].write_bytes(os.urandom(4096))
        time.sleep(max(begun + (number + 1) / RATE - time.perf_counter(), 0))
    last = time.perf_counter()
    lag = Watch(source, target, reversed(paths)).wait(failed=carrying.failed) - last
    return host.result(f"{NAME} rate", tool, lag, tool.cost(meter, spent))
