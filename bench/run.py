"""Running workloads: fresh folders and fresh processes for each run, tools taking turns."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.meter import Cost
from bench.network import Network
from bench.tools import Tool
from bench.tree import NotComplete, Watch, compare


@dataclass
class Result:
    """One measurement. `seconds` from the last write to visible and complete at the target; `more` has
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
        place: on the disk that is to be measured; everything in it goes at the end, not between runs, because
            ext4 without a journal is slow for minutes after many files were deleted.
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

    def copy_of(self, prepared: Path) -> Path:
        """A copy to work on, beside the sources, so that a rename puts it into one."""
        place = self.fresh("copy") / "tree"
        shutil.copytree(prepared, place)
        return place

    @contextmanager
    def running(self, kind: type[Tool], network: Network, folders: int = 1, **options: Any) -> Any:
        """The tool, started on that many empty pairs of folders."""
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

    def timed(
        self,
        name: str,
        tool: Tool,
        act: Callable[[], object],
        watch: Callable[[], Watch],
        check: Iterable[tuple[Path, Path, list[Path]]],
    ) -> Result:
        """Do `act`, let the tool carry it over, wait until `watch` is complete, then compare."""
        meter, spent = tool.meter(), tool.spent
        act()
        begun = time.perf_counter()
        waiting = watch()
        if not tool.watches:
            tool.carry()
        ended = waiting.wait()
        cost = tool.cost(meter, spent)
        for source, target, paths in check:
            compare(source, target, paths)
        return self.result(name, tool, ended - begun, cost)

    def result(self, name: str, tool: Tool, seconds: float, cost: Cost, **more: float) -> Result:
        return Result(name, tool.name, self.run, seconds, cost.cpu, cost.memory, cost.there, cost.back, more)


class Looping:
    """A tool that does not watch, run over and over beside the measurement."""

    def __init__(self, tool: Tool) -> None:
        self._tool = tool
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        if not tool.watches:
            self._thread.start()

    def _loop(self) -> None:
        while not self._ended.is_set():
            self._tool.carry()

    def close(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()


def shuffled(tools: list[type[Tool]], run: int) -> list[type[Tool]]:
    """Another order each run, the same for the same run."""
    out = list(tools)
    random.Random(run).shuffle(out)
    return out


__all__ = ["Bench", "Looping", "NotComplete", "Result", "Workload", "shuffled"]
