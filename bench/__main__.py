"""`python -m bench`: see --help. Needs root (network namespaces) and the peers' Debian packages."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from bench import limits, report
from bench.network import Failed, Network
from bench.run import Bench, NotComplete, Result, Workload, shuffled
from bench.snapshots import SNAPSHOTS
from bench.tools import TOOLS

WORKLOADS = (
    "w1_small_files",
    "w2_large_copy",
    "w3_pages",
    "w4_insert",
    "w5_append",
    "w6_latency",
    "w7_rewritten",
    "w8_versions",
)


def load(names: list[str]) -> list[Workload]:
    modules = [importlib.import_module(f"bench.{name}") for name in WORKLOADS]
    unknown = set(names) - {m.NAME for m in modules}
    if unknown:
        raise SystemExit(f"bench: no such workload: {', '.join(sorted(unknown))}. There are W1 to W8.")
    return [m for m in modules if not names or m.NAME in names]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench", description="crnode beside rsync, lsyncd, Syncthing, restic and borg, in one run."
    )
    parser.add_argument("workloads", nargs="*", metavar="W", help="W1 … W8 (default: all)")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each (default: 5)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="part of the sizes, for a quick look (default: 1)"
    )
    parser.add_argument("--tools", default="", help="comma-separated names; crnode always runs")
    parser.add_argument(
        "--place", type=Path, help="folder on the disk to measure (default: the temporary one)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("bench/results"), help="where JSON lines and picture go"
    )
    args = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: network namespaces take root.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended and removed, too
    work = load(args.workloads)
    chosen = {name.strip() for name in args.tools.split(",") if name.strip()}
    args.out.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="crnode-bench-", dir=args.place))
    results: list[Result] = []
    failed = 0
    network = Network()
    host = Bench(place, args.scale)
    try:
        with open(args.out / "results.jsonl", "w") as lines:

            def keep(result: Result) -> None:
                results.append(result)
                lines.write(result.line() + "\n")
                lines.flush()
                print(result.text(), flush=True)

            for workload in work:
                kinds = [
                    t
                    for t in (*TOOLS, *SNAPSHOTS)
                    if t.name in workload.TOOLS and (not chosen or t.name in chosen | {"crnode"})
                ]
                for host.run in range(1, min(args.runs, getattr(workload, "MOST_RUNS", args.runs)) + 1):
                    keep(limits.measure(host, workload.NAME))
                    for kind in shuffled(kinds, host.run):
                        try:
                            with host.running(kind, network, getattr(workload, "FOLDERS", 1)) as tool:
                                found = workload.measure(host, tool)
                        except (NotComplete, Failed) as error:
                            print(f"bench: {workload.NAME} {kind.name}: {error}", file=sys.stderr)
                            failed += 1
                            continue
                        for result in found:
                            keep(result)
    finally:
        network.close()
        shutil.rmtree(place, ignore_errors=True)
    titles = {workload.NAME: workload.TITLE for workload in work}
    report.show(results, titles)
    (args.out / "results.svg").write_text(report.picture(results, titles))
    print(f"JSON lines and a picture are in {args.out}.")
    if failed:
        print(f"bench: {failed} measurements did not come to an end; they are in no row.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
