"""What the machine itself can do, in the same run: the last column of the table."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.large import SIZE
from bench.run import Bench
from bench.tree import large_file, small_files


def measure(host: Bench) -> dict[str, float]:
    """Workload -> seconds of the plainest thing that could do its work: copying and syncing local files for
    W1, W2 and W7, sending the bytes over loopback for W2, writing and syncing what changed for W3 to W6."""
    small = host.prepared("small", lambda place: small_files(place, host.count(10_000), 1))
    large = host.prepared("large", lambda place: large_file(place / "large", host.size(SIZE), 2)) / "large"
    copied = _timed(lambda: _copy_and_sync(small, host.fresh("limit") / "tree"))
    one = _timed(lambda: _copy_and_sync(large.parent, host.fresh("limit") / "tree"))
    return {
        "W1": copied,
        "W2": max(one, _timed(lambda: _loopback(large))),
        "W3": _timed(lambda: _write(host.fresh("limit") / "pages", 100 * (8 << 10))),
        "W4": _timed(lambda: _write(host.fresh("limit") / "insert", 64 << 10)),
        "W5": _timed(lambda: _write(host.fresh("limit") / "append", 1 << 20)),
        "W6": _timed(lambda: _write(host.fresh("limit") / "one", 4096)),
        "W7": copied / 5,
    }


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _copy_and_sync(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    fd = os.open(target, os.O_RDONLY)
    try:
        os.sync()
    finally:
        os.close(fd)


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
