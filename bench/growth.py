"""`python -m bench.growth`: crnode alone, as sets and files grow, and its latency while it is busy otherwise.

`files`    the same single change in sets of 10,000, 100,000 and 1,000,000 files; first copy, start, memory
`sizes`    8 KiB changed in page files of 1, 4 and 16 GiB
`targets`  one 4 KiB file to 1, 3 and 7 targets
`busy`     W6 while a first copy, a scan of 1,000,000 files, a collection and a scrub run
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.meter import Meter
from bench.network import Failed, Network
from bench.report import MANY
from bench.run import Bench, NotComplete, Result, compare_all, percentile
from bench.tools import Crnode
from bench.tree import Watch, compare, large_file, latency

FILES = (10_000, 100_000, 1_000_000)
GIB = (1, 4, 16)
TARGETS = (1, 3, 7)
PAGE = 8 << 10
CHANGES = 100  # of which the slowest hundredth is one
COMPARED = 1000  # of a million files
PATIENCE = 1800.0  # seconds for the first copies


class Bencher:
    """Runs the parts and keeps their results."""

    def __init__(self, host: Bench, network: Network, out: Path) -> None:
        self.host, self.network, self.out = host, network, out
        self.results: list[Result] = []

    @contextmanager
    def agents(self, folders: int = 1, targets: int = 1) -> Iterator[Crnode]:
        with self.host.running(Crnode, self.network, folders, targets=targets) as tool:
            yield tool

    def note(
        self, name: str, tool: Crnode, seconds: float, meter: Meter, times: list[float] | None = None,
        **more: float,
    ) -> None:  # fmt: skip
        """Keep one result, with the private memory that each side has now."""
        cost = meter.stop()
        source, target = tool.memory()
        more |= {"source_mib": source / 2**20, "target_mib": target / 2**20}
        if times:
            more |= {f"p{n}_ms": 1e3 * percentile(times, n / 100) for n in (50, 95, 99)}
            more |= {"max_ms": 1e3 * max(times), "count": len(times)}
        found = self.host.result(name, tool, seconds, cost, times or (), **more)
        self.results.append(found)
        with open(self.out, "a") as lines:
            lines.write(found.line() + "\n")
        print(found.text() + "".join(f"  {k} {v:.2f}" for k, v in found.more.items()), flush=True)

    # -- the parts

    def files(self) -> None:
        for wanted in FILES:
            count = self.host.count(wanted)
            made = self.host.prepared(f"{count}", lambda place, n=count: tiny_files(place, n))  # type: ignore[misc]
            with self.agents() as tool:
                source, target = tool.pairs[0]
                tree = made
                if self.host.run < self.host.runs:
                    tree = self.host.copy_of(made)
                else:
                    self.host.moved(f"{count}")
                paths = sorted(path for path in tree.rglob("f*") if path.is_file())
                watch = Watch(tree, target / "tree", paths)
                meter = tool.meter()
                begun = time.perf_counter()
                tree.rename(source / "tree")
                self.note(f"first copy of {count:,} files", tool, watch.wait(most=PATIENCE) - begun, meter)
                inside = [source / "tree" / path.relative_to(tree) for path in paths]
                del watch, paths
                tool.sync()
                compare(source, target, random.Random(1).sample(inside, min(COMPARED, len(inside))))
                self._changes(f"a change among {count:,} files", tool, inside)
                self._restart(f"start with {count:,} files", tool, inside)

    def _changes(self, name: str, tool: Crnode, paths: list[Path]) -> None:
        source, target = tool.pairs[0]
        chance = random.Random(7)
        meter = tool.meter()
        times = []
        chosen = chance.sample(paths, min(CHANGES, len(paths)))
        for path in chosen:
            times.append(latency(source, [target], str(path.relative_to(source))))
            time.sleep(0.05)
        self.note(name, tool, statistics.median(times), meter, times)
        compare(source, target, chosen)

    def _restart(self, name: str, tool: Crnode, paths: list[Path]) -> None:
        """From the start of the source's agent to a change that was made before it is visible."""
        source, target = tool.pairs[0]
        tool.stop_source()
        paths[0].write_bytes(os.urandom(4000))
        begun = time.perf_counter()
        tool.start_source()
        meter = tool.meter()
        answers = time.perf_counter() - begun
        seconds = Watch(source, target, [paths[0]]).wait(most=PATIENCE) - begun
        self.note(name, tool, seconds, meter, answers_ms=1e3 * answers)

    def sizes(self) -> None:
        for gib in GIB:
            size = self.host.size(gib << 30)
            with self.agents() as tool:
                source, target = tool.pairs[0]
                made = large_file(source.parent / "x.db", size, 3)
                watch = Watch(made.parent, target, [made])
                meter = tool.meter()
                begun = time.perf_counter()
                made.rename(source / "x.db")
                seconds = watch.wait(most=PATIENCE) - begun
                self.note(f"first copy of {size / 2**30:g} GiB", tool, seconds, meter)
                tool.sync()
                chance = random.Random(3)
                meter = tool.meter()
                times = []
                for _ in range(10):
                    with open(source / "x.db", "r+b", buffering=0) as file:
                        os.pwrite(
                            file.fileno(), chance.randbytes(PAGE), chance.randrange(size // PAGE) * PAGE
                        )
                    closed = time.perf_counter()
                    times.append(Watch(source, target, [source / "x.db"]).wait() - closed)
                    time.sleep(0.3)
                self.note(
                    f"8 KiB changed in {size / 2**30:g} GiB", tool, statistics.median(times), meter, times
                )
                compare_all(tool.pairs)

    def targets(self) -> None:
        for number in TARGETS:
            with self.agents(targets=number) as tool:
                source = tool.pairs[0][0]
                meter = tool.meter()
                times = []
                for change in range(CHANGES):
                    times.append(latency(source, tool.places(0), f"one{change}"))
                    time.sleep(0.05)
                self.note(f"one 4 KiB file to {number} targets", tool, statistics.median(times), meter, times)
                compare_all((source, place) for place in tool.places(0))

    def busy(self) -> None:
        """Single files in one set while something large goes on in the other, and in the same one."""
        count = self.host.count(1_000_000)
        made = self.host.prepared(f"{count}", lambda place: tiny_files(place, count))
        with self.agents(folders=2) as tool:
            bulk = tool.pairs[1]
            self._beside("W6 alone", tool, lambda: time.sleep(5))
            paths = sorted(path for path in made.rglob("f*") if path.is_file())
            watch = Watch(made, bulk[1] / "tree", paths)

            def first() -> None:
                made.rename(bulk[0] / "tree")
                self.host.moved(f"{count}")
                watch.wait(most=PATIENCE)

            self._beside(f"W6 while {count:,} files are copied", tool, first)
            tool.sync(1)
            self._beside(f"W6 while {count:,} files are scanned", tool, lambda: tool.sync(1))
            self._beside("W6 in the set that is scanned", tool, lambda: tool.sync(1), pair=1)
            self._beside("W6 while both stores are scrubbed", tool, lambda: tool.everywhere("scrub"))
            for path in paths[:: max(1, len(paths) // 100_000)]:
                (bulk[0] / "tree" / path.relative_to(made)).write_bytes(os.urandom(500))
            tool.sync(1)
            self._beside("W6 while both stores are collected", tool, lambda: tool.everywhere("gc"))
            compare_all(tool.pairs[:1])
            inside = [bulk[0] / "tree" / path.relative_to(made) for path in paths]
            compare(*bulk, random.Random(1).sample(inside, min(COMPARED, len(inside))))

    def _beside(self, name: str, tool: Crnode, act: Callable[[], object], pair: int = 0) -> None:
        source, target = tool.pairs[pair]
        failed: list[BaseException] = []

        def run() -> None:
            try:
                act()
            except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for the thread
                failed.append(error)

        thread = threading.Thread(target=run)
        meter = tool.meter()
        begun = time.perf_counter()
        thread.start()
        times: list[float] = []
        while thread.is_alive():
            one = f"{name.replace(' ', '-').replace(',', '')}-{len(times)}"
            times.append(latency(source, [target], one))
            time.sleep(0.03)
        thread.join()
        if failed:
            raise failed[0]
        took = time.perf_counter() - begun
        self.note(name, tool, statistics.median(times), meter, times, lasted_s=took)


def tiny_files(place: Path, count: int) -> None:
    """`count` files of 100 to 1,000 bytes, 100 to a folder and 100 folders to a folder."""
    chance = random.Random(count)
    block = chance.randbytes(1 << 20)
    for number in range(count):
        folder = place / f"{number // 10_000:03}" / f"{number // 100 % 100:02}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
        at = chance.randrange(len(block) - 1000)
        with open(folder / f"f{number:07}", "wb", buffering=0) as file:
            file.write(number.to_bytes(8, "big") + block[at : at + chance.randrange(92, 992)])


def table(results: list[Result]) -> Table:
    out = Table(title="crnode as things grow: medians \\[least-most] over the runs")
    for column in ("what", "seconds", "p99 ms", "CPU s", "there MiB", "peak MiB", "source MiB", "target MiB"):
        out.add_column(column, justify="left" if column == "what" else "right")
    for name in dict.fromkeys(result.workload for result in results):
        mine = [result for result in results if result.workload == name]
        seconds = [result.seconds for result in mine]
        times = [time for result in mine for time in result.times]
        peak = f"{1e3 * percentile(times, 0.99):.1f}" if len(times) >= MANY else ""
        if times and not peak:
            peak = f"most {1e3 * max(times):.1f}"
        out.add_row(
            name,
            f"{statistics.median(seconds):.4f} [{min(seconds):.4f}-{max(seconds):.4f}]",
            peak,
            f"{statistics.median(r.cpu for r in mine):.2f}",
            f"{statistics.median(r.there for r in mine) / 2**20:.2f}",
            f"{statistics.median(r.memory for r in mine) / 2**20:.0f}",
            f"{statistics.median(r.more['source_mib'] for r in mine):.0f}",
            f"{statistics.median(r.more['target_mib'] for r in mine):.0f}",
        )
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("files", "sizes", "targets", "busy")
    parser.add_argument("parts", nargs="*", metavar="PART", help="files, sizes, targets, busy (default: all)")
    parser.add_argument("--runs", type=int, default=1, help="runs of each (default: 1)")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the sizes, for a quick look")
    parser.add_argument(
        "--place", type=Path, help="folder on the disk to measure (default: the temporary one)"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="where JSON lines go")
    args = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: network namespaces take root.", file=sys.stderr)
        return 1
    if unknown := set(args.parts) - set(names):
        print(f"bench: no such part: {', '.join(unknown)}. There are {', '.join(names)}.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended and removed, too
    args.out.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="crnode-bench-", dir=args.place))
    network = Network()
    host = Bench(place, args.scale)
    host.runs = args.runs
    bencher = Bencher(host, network, args.out / "growth.jsonl")
    bencher.out.write_text("")
    try:
        for host.run in range(1, args.runs + 1):
            for part in args.parts or names:
                {"files": bencher.files, "sizes": bencher.sizes, "targets": bencher.targets,
                 "busy": bencher.busy}[part]()  # fmt: skip
    except (NotComplete, Failed) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        network.close()
        shutil.rmtree(place, ignore_errors=True)
        if bencher.results:
            Console(width=150).print(table(bencher.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
