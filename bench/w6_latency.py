"""W6: from the close of one 4 KiB file to visible and complete at the target: alone, while 1 GiB is copied
beside it, and at 200 files a second for ten seconds, where the lag after the last one counts."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.large import SIZE
from bench.run import Bench, Looping, Result
from bench.tools import Tool
from bench.tree import Watch, large_file

NAME, TITLE = "W6", "one 4 KiB file, close to visible"
TOOLS = ("crnode", "rsync", "lsyncd", "syncthing")
FOLDERS = 2  # bulk and single files are different sets, as an owner would have them
SINGLE, BESIDE, RATE, SECONDS = 60, 40, 200, 10


def measure(host: Bench, tool: Tool) -> list[Result]:
    looping = Looping(tool)
    try:
        return [_alone(host, tool), _beside(host, tool), _rate(host, tool)]
    finally:
        looping.close()


def _one(source: Path, target: Path, name: str) -> float:
    path = source / name
    path.write_bytes(os.urandom(4096))
    closed = time.perf_counter()
    return Watch(source, target, [path]).wait(0.0002) - closed


def spread(times: list[float]) -> dict[str, float]:
    """Seconds -> percentiles in milliseconds."""
    times = sorted(times)
    return {
        "p50_ms": 1e3 * times[len(times) // 2],
        "p95_ms": 1e3 * times[int(len(times) * 0.95)],
        "p99_ms": 1e3 * times[int(len(times) * 0.99)],
        "max_ms": 1e3 * times[-1],
    }


def _alone(host: Bench, tool: Tool) -> Result:
    source, target = tool.pairs[0]
    meter, spent = tool.meter(), tool.spent
    times = []
    for number in range(host.count(SINGLE)):
        times.append(_one(source, target, f"alone{number}"))
        time.sleep(0.05)
    found = spread(times)
    return host.result(NAME, tool, found["p50_ms"] / 1e3, tool.cost(meter, spent), **found)


def _beside(host: Bench, tool: Tool) -> Result:
    """Single files while the other folder's bulk is on its way."""
    source, target = tool.pairs[0]
    bulk, there = tool.pairs[1]
    made = (
        host.copy_of(host.prepared("large", lambda place: large_file(place / "large", host.size(SIZE), 2)))
        / "large"
    )
    watch = Watch(made.parent, there, [made])
    meter, spent = tool.meter(), tool.spent
    made.rename(bulk / "large")
    times = []
    done = there / "large"
    while len(times) < BESIDE:
        times.append(_one(source, target, f"beside{len(times)}"))
        if done.exists() and done.stat().st_size == host.size(SIZE) and len(times) >= 5:
            break
        time.sleep(0.02)
    watch.wait()
    found = spread(times)
    return host.result(f"{NAME} bulk", tool, found["p50_ms"] / 1e3, tool.cost(meter, spent), **found)


def _rate(host: Bench, tool: Tool) -> Result:
    source, target = tool.pairs[0]
    meter, spent = tool.meter(), tool.spent
    begun = time.perf_counter()
    paths = []
    for number in range(RATE * SECONDS):
        paths.append(source / f"rate{number:05}")
        paths[-1].write_bytes(os.urandom(4096))
        time.sleep(max(begun + (number + 1) / RATE - time.perf_counter(), 0))
    last = time.perf_counter()
    lag = Watch(source, target, reversed(paths)).wait() - last
    return host.result(f"{NAME} rate", tool, lag, tool.cost(meter, spent))
