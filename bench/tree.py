"""Making the files of the workloads, seeing when a copy is complete, and comparing it."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

GIVE_UP_SECONDS = 180.0
CHUNK = 1 << 20


class NotComplete(Exception):
    """The copy did not become complete in time, or is not the same."""


def small_files(place: Path, count: int, seed: int, fill: int = 100) -> list[Path]:
    """`count` files of 1 to 16 KiB, `fill` to a folder."""
    chance = random.Random(seed)
    out = []
    for number in range(count):
        if number % fill == 0:
            (place / f"{number // fill:04}").mkdir(parents=True, exist_ok=True)
        path = place / f"{number // fill:04}" / f"f{number:06}"
        path.write_bytes(chance.randbytes(chance.randint(1 << 10, 16 << 10)))
        out.append(path)
    return out


def large_file(path: Path, size: int, seed: int) -> Path:
    """A file whose bytes are half compressible: random and repeated stretches of 64 KiB take turns."""
    chance = random.Random(seed)
    with open(path, "wb") as file:
        for _ in range(0, size, 128 << 10):
            file.write(chance.randbytes(64 << 10))
            file.write(chance.randbytes(64) * 1024)
    return path


class Watch:
    """Waits until paths of `source` are at `target` with equal size and time: polled one after the other, so
    that a poll costs one stat."""

    def __init__(self, source: Path, target: Path, paths: Iterable[Path]) -> None:
        self._wanted = [(target / path.relative_to(source), path.stat()) for path in paths]

    def wait(
        self,
        pause: float = 0.0005,
        most: float = GIVE_UP_SECONDS,
        failed: Callable[[], None] = lambda: None,
    ) -> float:
        """Returns the time (perf_counter) at which the last one was complete. Raises NotComplete, and what
        `failed` raises, which is asked while it waits."""
        deadline = time.monotonic() + most
        for path, wanted in self._wanted:
            while not is_complete(path, wanted):
                failed()
                if time.monotonic() > deadline:
                    raise NotComplete(f"{path} did not come within {most:.0f} s")
                time.sleep(pause)
        return time.perf_counter()

    def is_over(self) -> bool:
        """Whether all of them are complete now."""
        return all(is_complete(path, wanted) for path, wanted in self._wanted)


def is_complete(path: Path, wanted: os.stat_result) -> bool:
    """Whether a file is there with this size and time, to the microsecond: not all tools keep nanoseconds."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return False
    return info.st_size == wanted.st_size and info.st_mtime_ns // 1000 == wanted.st_mtime_ns // 1000


def latency(
    source: Path, targets: Sequence[Path], name: str, failed: Callable[[], None] = lambda: None
) -> float:
    """Write a file of 4 KiB; seconds from its close to visible and complete at the last of the targets,
    polled five thousand times a second. Raises as Watch.wait does."""
    data = os.urandom(4096)
    with open(source / name, "wb", buffering=0) as file:
        file.write(data)
        wanted = os.fstat(file.fileno())
    closed = time.perf_counter()
    deadline = closed + GIVE_UP_SECONDS
    for target in targets:
        while not is_complete(target / name, wanted):
            failed()
            if time.perf_counter() > deadline:
                raise NotComplete(f"{target / name} did not come within {GIVE_UP_SECONDS:.0f} s")
            time.sleep(0.0002)
    return time.perf_counter() - closed


def compare(source: Path, target: Path, paths: Iterable[Path]) -> None:
    """Compare contents. Raises NotComplete."""
    for path in paths:
        copy = target / path.relative_to(source)
        if _digest(path) != _digest(copy):
            raise NotComplete(f"{copy} is not what {path} is")


def _digest(path: Path) -> bytes:
    out = hashlib.blake2b()
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            out.update(data)
    return out.digest()
