"""A source that really captures, and files whose bytes change without their times moving, as on a rotting
disk: on tmpfs a mapping does so, whose pages stay dirty for ever."""

from __future__ import annotations

import asyncio
import mmap
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_samples import SET, small_store

from crnode.capture.commit import Point, SourceCommit
from crnode.capture.openers import has_writer
from crnode.capture.source import SourceSet
from crnode.cluster.document import ReplicationSet, Target
from crnode.store.catalog import Catalog
from crnode.store.writer import Writer

LATER = 3600 * 10**9


class Rotting:
    """A file whose bytes can be changed without its times moving."""

    def __init__(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)
        self.path = path
        fd = os.open(path, os.O_RDWR)
        self.map = mmap.mmap(fd, len(data))
        os.close(fd)
        for at in range(0, len(data), mmap.PAGESIZE):
            self.map[at] = data[at]  # a first write to a page moves the times; later ones do not

    def flip(self, at: int) -> None:
        before = self.path.stat()
        self.map[at] ^= 0xFF
        after = self.path.stat()
        assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)

    def close(self) -> None:
        self.map.close()


@pytest.fixture
def memory() -> Iterator[Path]:
    place = Path("/dev/shm") / f"crnode-rot-{os.getpid()}"
    if not place.parent.is_dir():
        pytest.skip("no tmpfs here")
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


class Capturing:
    """A source set with all that it needs, and the images it made."""

    def __init__(self, place: Path, root: Path, writer: Writer, wait: float) -> None:
        self.catalog = Catalog(place / "sets" / "one.db", SET)
        self.store = small_store(place / "store", 8 << 20)
        now: Callable[[], int] = lambda: time.time_ns() + LATER  # noqa: E731 - the files are old
        spec = ReplicationSet(
            uuid=SET.hex(), name="web", source="shop1", paths=(str(root),), template="files", term=1,
            targets={"box2": Target(node="box2")}, created_at_ns=1,
        )  # fmt: skip
        commit = SourceCommit(self.catalog, self.store, bytes(16), 0, 1, now, set)
        self.events: list[tuple[str, str]] = []
        self.points: list[Point] = []
        self.source = SourceSet(
            spec, self.catalog, self.store, writer, commit, cookie_dir=place / "cookies", seed=7, now_ns=now,
            on_point=self.points.append, journal=lambda k, t: self.events.append((k, t)), rot_wait=wait,
            writers=lambda fd: bool(has_writer(fd)),  # as where all processes may be looked at
        )  # fmt: skip

    def content(self, path: bytes) -> bytes | None:
        newest = self.catalog.newest()
        assert newest is not None
        entry = self.catalog.entry(path, newest.ordinal)
        return entry.content if entry is not None else None

    async def looked(self, path: bytes) -> None:
        """Capture `path` again, and wait for it."""
        self.source.look_at(path)
        await self.source.scan_now()


async def until(what: Callable[[], Any], seconds: float = 10.0) -> bool:
    """Whether `what` gives something true within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        await asyncio.sleep(0.02)
    return bool(what())


def capturing(
    place: Path, root: Path, wait: float, work: Callable[[Capturing], Awaitable[Any]]
) -> None:
    async def main() -> None:
        failures: list[BaseException] = []
        writer = Writer(asyncio.get_running_loop(), lambda: None, failures.append)
        here = Capturing(place, root, writer, wait)
        task = asyncio.create_task(here.source.run())
        try:
            await here.source.scan_now()
            await work(here)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await writer.close()
            here.catalog.close()
            here.store.close()
        assert not failures

    asyncio.run(main())
