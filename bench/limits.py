"""What the machine itself can do, in each of the runs: the last columns of the table."""

from __future__ import annotations

import os
import random
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.large import PAGE, PAGES, SIZE
from bench.run import Bench, Result
from bench.tree import large_file, small_files

NAME = "limit"  # as the tool of such a result


def measure(host: Bench, workload: str) -> Result:
    """Time the plainest thing that could do the work of `workload`: for W1, W2 and W7 copying local files and
    syncing them (or for W2 sending them over loopback, whichever is slower), for W3 to W6 and W8 writing and
    syncing what changed. Nothing in it finds out what changed, encrypts, verifies or keeps versions."""
    host.settle()
    plainest = {
        "W1": _small, "W2": _large, "W3": _pages, "W4": _insert, "W5": _append, "W6": _one, "W7": _fifth,
        "W8": _version,
    }  # fmt: skip
    return Result(workload, NAME, host.run, plainest[workload](host), 0.0, 0, 0, 0)


def _small(host: Bench) -> float:
    tree = host.prepared("small", lambda place: small_files(place, host.count(10_000), 1))
    return _timed(lambda: _copy_and_sync(tree, host.fresh("limit")))


def _fifth(host: Bench) -> float:
    return _small(host) / 5


def _large(host: Bench) -> float:
    tree = host.prepared("large", lambda place: large_file(place / "large", host.size(SIZE), 2))
    copied = _timed(lambda: _copy_and_sync(tree, host.fresh("limit")))
    return max(copied, _timed(lambda: _loopback(tree / "large")))


def _pages(host: Bench) -> float:
    """The pages where they stand, in a file of that size."""
    tree = host.prepared("large", lambda place: large_file(place / "large", host.size(SIZE), 2))
    path = host.copy_of(tree) / "large"
    host.settle()
    chance = random.Random(host.run)

    def act() -> None:
        with open(path, "r+b", buffering=0) as file:
            for _ in range(PAGES):
                at = chance.randrange(path.stat().st_size // PAGE) * PAGE
                os.pwrite(file.fileno(), chance.randbytes(PAGE), at)
            os.fdatasync(file.fileno())

    return _timed(act)


def _insert(host: Bench) -> float:
    return _timed(lambda: _write(host.fresh("limit") / "insert", 64 << 10))


def _append(host: Bench) -> float:
    return _timed(lambda: _write(host.fresh("limit") / "append", 1 << 20))


def _version(host: Bench) -> float:
    return _timed(lambda: _write(host.fresh("limit") / "version", 320 * PAGE))


def _one(host: Bench) -> float:
    place = host.fresh("limit")
    return statistics.median(_timed(lambda n=n: _write(place / f"one{n}", 4096)) for n in range(60))  # type: ignore[misc]


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _copy_and_sync(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target / "tree")], check=True)
    subprocess.run(["sync", "-f", str(target)], check=True)


def _write(path: Path, size: int) -> None:
    """Write, sync and rename a file of random bytes."""
    beside = path.with_suffix(".tmp")
    with open(beside, "wb") as file:
        file.write(os.urandom(size))
        os.fdatasync(file.fileno())
    beside.rename(path)


def _loopback(path: Path) -> None:
    """Send a file through a TCP connection on loopback, to be thrown away."""
    listener = socket.create_server(("127.0.0.1", 0))

    def swallow() -> None:
        peer, _ = listener.accept()
        buffer = bytearray(1 << 20)
        while peer.recv_into(buffer):
            continue
        peer.close()

    thread = threading.Thread(target=swallow)
    thread.start()
    with socket.create_connection(listener.getsockname()) as out, open(path, "rb") as file:
        out.sendfile(file)
        out.shutdown(socket.SHUT_WR)
        thread.join()
    listener.close()
