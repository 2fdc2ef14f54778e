"""W9 under load: whether the active node keeps its lease when it has much else to do, and how late it is.

Three nodes as in :mod:`bench.takeover`, without PostgreSQL. On the active one every core is busy with
processes of normal priority, and large random files are written into the set that moves, deleted and written
again, so that both agents copy all the time; all nodes share the cores of this machine. Nothing is wrong, so
nothing may take over: exit code 1 if another node was active, or this one in another epoch.

How late ticks are is from tick to tick, beyond what was asked; answers are counted from when a renewal was
sent. Both are what the keepers say at the end, of their last ten minutes; in a shorter run the set-up of the
nodes is among it. What is left of the lease of 2.5 s, renewed twice a second, is looked at before each tick.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.takeover import Site, crnode

NODES = ("a", "b", "c")
BUSY = "while True: pass"
FILES, FILE_MIB = 3, 256  # less than 1 GiB in all
ROOM_BYTES = 16 << 30  # nothing is written while the disk has less: versions go later than they come
COPY = f"""
import os, shutil, sys, time
folder, told = sys.argv[1:]
written = 0
while True:
    for number in range({FILES}):
        path = os.path.join(folder, f"bulk-{{number}}")
        if os.path.exists(path):
            os.unlink(path)
        with open(path, "wb") as file:
            for _ in range({FILE_MIB}):
                while shutil.disk_usage(folder).free < {ROOM_BYTES}:
                    time.sleep(0.1)
                file.write(os.urandom(1 << 20))
                written += 1
                with open(told + ".new", "w") as out:
                    out.write(str(written))
                os.replace(told + ".new", told)  # whoever reads it when this is killed finds a number
"""
TOLD = {
    "active again or elsewhere": "is active in epoch",
    "fenced": "Fence: ",
    "address off": "The address is taken off",
    "services started again": "it is started again",
}


def counted(site: Site) -> dict[str, int]:
    """How often the keepers have said something since they run."""
    text = "".join((site.place / f"{name}.log").read_text() for name in NODES)
    return {what: text.count(words) for what, words in TOLD.items()}


def status(site: Site, name: str) -> dict[str, Any]:
    words = ["takeover", "status", "--json", "--data", str(site.place / f"data-{name}")]
    found: dict[str, Any] = json.loads(site.run(name, sys.executable, "-m", "crnode", *words))
    return found


def spread(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in found.items()) + " ms" if found else "none"


def measure(seconds: float, logs: Path | None) -> int:
    """Keep the load up for so long; how often the active node changed."""
    site = Site(NODES)
    try:
        crnode(site)
        keep = ["set", "keep", "site", "newest:2", "--data", str(site.place / "data-a")]
        site.run("a", sys.executable, "-m", "crnode", *keep)
        before, epoch = counted(site), status(site, "a")["epoch"]
        begun = time.monotonic()
        for _ in range(os.cpu_count() or 1):
            site.start("a", sys.executable, "-c", BUSY)
        told = site.place / "written"
        site.start("a", sys.executable, "-c", COPY, str(site.place / "site-a"), str(told))
        time.sleep(seconds)
        answers = [(at, who) for at, who in site.answers() if at >= begun]
        ended = time.monotonic()
        found = {name: status(site, name) for name in NODES}
        since = {what: count - before[what] for what, count in counted(site).items()}
        names = ["a", *(who for _, who in answers)]
        changes = sum(one != other for one, other in pairwise(names))
        changes = max(changes, since.pop("active again or elsewhere"), int(found["a"]["epoch"] != epoch))
        times = [begun, *(at for at, _ in answers), ended]
        gap = max(other - one for one, other in pairwise(times))
        written = int(told.read_text() or 0) / 1024 if told.exists() else 0.0
        du = site.run("b", "sh", "-c", f"du -sk {site.place}/data-b/store 2>/dev/null || true")
        kept = int(du.split()[0]) / (1 << 20)
        busy = f"{os.cpu_count()} busy processes, {written:.1f} GiB written, {kept:.1f} GiB kept at b"
        print(f"Heartbeats, {seconds:g} s under load ({busy}): the active node changed {changes} times")
        print("; ".join(f"{what}: {count}" for what, count in since.items()))
        for name in NODES:
            print(f"ticks of {name} late by {spread(found[name]['late_ms'])}")
        least = found["a"]["least_left_s"]
        print(f"answers to renewals of a after {spread(found['a']['answers_ms'])}")
        print(f"least left of its lease: {f'{least:.2f} s' if least is not None else 'it has none'}")
        print(f"client: {len(answers)} pages, longest without one {gap:.2f} s")
        return changes
    finally:
        if logs is not None:
            site.keep_logs(logs)
        site.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.heartbeats", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--logs", type=Path, help="a folder into which what the nodes said is copied")
    args = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print("It takes root, and ip: apt-get install iproute2", file=sys.stderr)
        return 2
    return 1 if measure(args.seconds, args.logs) else 0


if __name__ == "__main__":
    sys.exit(main())
