"""What a tool's processes cost: CPU seconds and peak private memory of all of them, and bytes on the wire."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.1
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """CPU in seconds, private memory in bytes at its peak, wire in bytes there and back."""

    cpu: float
    memory: int
    there: int
    back: int


def _children(roots: Iterable[int]) -> list[int]:
    """The processes with these pids and everything below them."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(entry))
    out, todo = [], list(roots)
    while todo:
        pid = todo.pop()
        out.append(pid)
        todo += parents.get(pid, [])
    return out


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; [] for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(roots: Iterable[int]) -> float:
    """User and system time of these processes, of all below them, and of those below that have ended."""
    total = 0
    for pid in _children(roots):
        fields = _stat(pid)
        if fields:
            total += sum(int(fields[n]) for n in (11, 12, 13, 14))
    return total / _TICK


def private_bytes(roots: Iterable[int]) -> int:
    """Memory that is these processes' alone (and everything's below them): anonymous pages. Pages of
    files that are mapped, as LMDB's are, belong to the kernel's cache and can be dropped at any time."""
    total = 0
    for pid in _children(roots):
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Anonymous:"):
                    total += int(line.split()[1]) << 10
        except OSError:
            continue
    return total


class Meter:
    """Measures from its making to :meth:`stop`. `pids`: the tool's processes now, asked again and again."""

    def __init__(self, pids: Callable[[], list[int]], wire: Callable[[], tuple[int, int]]) -> None:
        self._pids, self._wire = pids, wire
        self._peak = 0
        self._ended = threading.Event()
        self._cpu, self._before = cpu_seconds(pids()), wire()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, private_bytes(self._pids()))

    def stop(self) -> Cost:
        """What was spent so far; of the peak nothing more is learned from now on."""
        self._ended.set()
        self._thread.join()
        self._peak = max(self._peak, private_bytes(self._pids()))
        there, back = (now - before for now, before in zip(self._wire(), self._before, strict=True))
        return Cost(cpu_seconds(self._pids()) - self._cpu, self._peak, there, back)
