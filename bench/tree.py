"""Making the files of the workloads, seeing when a copy is complete, and comparing it."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterable
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
        self._wanted = []
        for path in paths:
            info = path.stat()
            self._wanted.append((target / path.relative_to(source), info.st_size, info.st_mtime_ns))

    def wait(self, pause: float = 0.0005, most: float = GIVE_UP_SECONDS) -> float:
        """Returns the time (perf_counter) at which the last one was complete. Raises NotComplete."""
        deadline = time.monotonic() + most
        for path, size, mtime_ns in self._wanted:
            while True:
                try:
                    info = os.stat(path)
                    # To the microsecond: not every tool keeps nanoseconds.
                    if info.st_size == size and info.st_mtime_ns // 1000 == mtime_ns // 1000:
                        break
                except FileNotFoundError:
                    pass
                if time.monotonic() > deadline:
                    raise NotComplete(f"{path} did not come within {most:.0f} s")
                time.sleep(pause)
        return time.perf_counter()


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
