"""Running workloads: fresh folders and fresh processes for each run, tools taking turns."""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from bench.meter import Cost
from bench.network import Failed, Network
from bench.tools import Pair, Tool
from bench.tree import NotComplete, Watch, compare

LARGE = 1 << 20  # bytes of a file that does not wait for the end
FLOOR = 0.05  # of a disk: what crnode leaves free
ROOM = 8 << 30  # bytes that one measurement may take: source, target, stores, one copy more


@dataclass
class Result:
    """One measurement. `seconds` from the last write to visible and complete at the target, and the cost
    until then; `times` are the seconds of its single files, of which `seconds` is the median; `more` has
    further figures in the units that their names say."""

    workload: str
    tool: str
    run: int
    seconds: float
    cpu: float
    memory: int
    there: int
    back: int
    more: dict[str, float] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)

    def line(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self))

    def text(self) -> str:
        """One line for a person who waits."""
        return (
            f"{self.workload:8} run {self.run}  {self.tool:16} {self.seconds:9.4f} s  cpu {self.cpu:6.2f}"
            f"  {self.memory >> 20:5} MiB  wire {self.there / 2**20:9.2f} MiB"
        )


class Workload(Protocol):
    """What a file of bench/ offers that is named `w*.py`."""

    NAME: str
    TITLE: str
    TOOLS: tuple[str, ...]

    def measure(self, host: Bench, tool: Tool) -> list[Result]: ...


class Bench:
    """The scratch place and the sizes of a run.

    Args:
        place: on the disk that is to be measured; small files in it go at the end, not between runs, because
            ext4 without a journal is slow for minutes after many files were deleted. Large ones go after each
            tool.
        scale: 1.0 for the sizes that the workloads say; less for a quick look.
    """

    def __init__(self, place: Path, scale: float) -> None:
        self.place = place
        self.scale = scale
        self.run, self.runs = 0, 1
        self._number = 0
        self._prepared: dict[str, Path] = {}

    def count(self, wanted: int) -> int:
        return max(int(wanted * self.scale), 10)

    def size(self, wanted: int) -> int:
        return max(int(wanted * self.scale) >> 20, 4) << 20

    def fresh(self, name: str) -> Path:
        """A new empty folder."""
        self._number += 1
        out = self.place / f"{self._number:04}-{name}"
        out.mkdir(parents=True)
        return out

    def prepared(self, key: str, make: Callable[[Path], object]) -> Path:
        """Files that are the same for every run, made once."""
        if key not in self._prepared:
            place = self.fresh(f"prepared-{key}")
            make(place)
            self._prepared[key] = place
        return self._prepared[key]

    def moved(self, key: str) -> None:
        """The files made for `key` are somewhere else now: they are made again for the next who asks."""
        del self._prepared[key]

    def copy_of(self, prepared: Path) -> Path:
        """A copy to work on, beside the sources, so that a rename puts it into one."""
        place = self.fresh("copy") / "tree"
        shutil.copytree(prepared, place)
        return place

    @contextmanager
    def running(self, kind: type[Tool], network: Network, folders: int = 1, **options: Any) -> Any:
        """The tool, started on that many empty pairs of folders. Raises Failed when the disk has no room."""
        self._check_room()
        place = self.fresh(kind.name.replace(" ", "-"))
        pairs = [(place / f"source{n}", place / f"target{n}") for n in range(folders)]
        for pair in pairs:
            for folder in pair:
                folder.mkdir()
        tool = kind(network, place / "tool", **options)
        try:
            tool.begin(pairs)
            yield tool
        finally:
            tool.close()
            _remove_large(place)

    def settle(self) -> None:
        """What was written before is on disk: nobody waits for others' pages while he is measured."""
        subprocess.run(["sync", "-f", str(self.place)], check=True)

    def warm(self, size: int) -> None:
        """Use `size` bytes of memory and give them back. A virtual machine returns free pages to its host
        within seconds, and whoever needs them next waits for each (2 s for 256 MiB, measured): that is no
        tool's doing, and else hits the one that was idle before."""
        with mmap.mmap(-1, size) as memory:
            for at in range(0, size, mmap.PAGESIZE):
                memory[at] = 1

    def _check_room(self) -> None:
        disk = os.statvfs(self.place)
        free = disk.f_bavail * disk.f_frsize - FLOOR * disk.f_blocks * disk.f_frsize
        if free < ROOM * self.scale:
            raise Failed(
                f"{self.place} has {max(free, 0) / 2**30:.1f} GiB free beyond {FLOOR:.0%} of its disk;"
                f" {ROOM * self.scale / 2**30:.1f} are needed. Another folder: --place FOLDER"
            )

    def timed(
        self,
        name: str,
        tool: Tool,
        act: Callable[[], object],
        watch: Callable[[], Watch],
        check: Iterable[tuple[Path, Path, list[Path]]],
    ) -> Result:
        """Do `act`, let the tool carry it over, wait until `watch` is complete, then compare."""
        self.settle()
        meter, spent = tool.meter(), tool.spent
        act()
        begun = time.perf_counter()
        waiting = watch()
        if tool.watches:
            ended = waiting.wait()
        else:
            begun = time.perf_counter()  # it is told to go, and may be told when the clock is ready
            with Carrying(tool) as carrying:
                ended = waiting.wait(failed=carrying.failed)
        cost = tool.cost(meter, spent)
        for source, target, paths in check:
            compare(source, target, paths)
        return self.result(name, tool, ended - begun, cost)

    def result(
        self, name: str, tool: Tool, seconds: float, cost: Cost, times: Iterable[float] = (), **more: float
    ) -> Result:
        cpu, memory, there, back = cost.cpu, cost.memory, cost.there, cost.back
        return Result(name, tool.name, self.run, seconds, cpu, memory, there, back, more, [*times])


class Carrying:
    """A tool that does not watch, at work beside the measurement: once, or over and over until the end, for
    each pair of folders by itself."""

    def __init__(self, tool: Tool, *, over_and_over: bool = False) -> None:
        self._errors: list[BaseException] = []
        self._ended = threading.Event()
        self._again = over_and_over
        self._threads = [
            threading.Thread(target=self._carry, args=(tool, pair), daemon=True)
            for pair in range(len(tool.pairs))
            if not tool.watches
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def failed(self) -> None:
        """Raises what it ended with, if it did not end well."""
        if self._errors:
            raise self._errors[0]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if kind is None:
            self.failed()

    def _carry(self, tool: Tool, pair: int) -> None:
        try:
            tool.carry(pair)
            while self._again and not self._ended.is_set():
                tool.carry(pair)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            self._errors.append(error)


def shuffled(tools: list[type[Tool]], run: int) -> list[type[Tool]]:
    """Another order each run, the same for the same run."""
    out = list(tools)
    random.Random(run).shuffle(out)
    return out


def _remove_large(place: Path) -> None:
    for top, _, files in os.walk(place):
        for name in files:
            path = os.path.join(top, name)
            if os.lstat(path).st_size >= LARGE:
                os.unlink(path)


def percentile(times: list[float], share: float) -> float:
    """The time that this share of them does not exceed."""
    return sorted(times)[min(int(len(times) * share), len(times) - 1)]


def compare_all(pairs: Iterable[Pair]) -> None:
    """Compare every file of these folders. Raises NotComplete."""
    for source, target in pairs:
        # Syncthing's mark in a folder is its own.
        compare(source, target, (p for p in source.rglob("*") if p.is_file() and ".stfolder" not in p.parts))


__all__ = ["Bench", "Carrying", "NotComplete", "Result", "Workload", "shuffled"]
