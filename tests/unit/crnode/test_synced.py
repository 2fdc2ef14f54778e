"""When what a live tree shows is durable: after a restart, and after a sync that failed."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_samples import SET, commit, directory, file, put_file, small_store

from crnode.cluster.document import Target
from crnode.platform.files import boot_id
from crnode.replicate import receive
from crnode.replicate.commit import TargetCommit
from crnode.replicate.place import prepare
from crnode.replicate.receive import TargetSet
from crnode.store.catalog import Catalog
from crnode.store.reader import Live
from crnode.store.writer import Writer


class Box:
    """A target whose images are committed by hand."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.store = small_store(place / "store")
        self.catalog = Catalog(place / "sets" / "one.db", SET)
        self.writer = Writer(asyncio.get_running_loop(), lambda: None, lambda error: None)

    def target(self) -> TargetSet:
        async def heal(*_: object) -> set[bytes]:
            return set()

        spec: Any = SimpleNamespace(
            name="web", uuid=SET.hex(), privileged=False, brake_percent=50, members=()
        )
        return TargetSet(
            spec, Target(node="b", destination=str(self.place / "live")), self.catalog, self.store,
            self.writer,
            TargetCommit(self.catalog, self.store, archive=False, now_ns=time.time_ns, retain_roots=set),
            lambda before, adopt: prepare(self.place / "live", SET, before, adopt=adopt), self.place / "live",
            heal=heal, journal=lambda *_: None, root=False,
        )  # fmt: skip

    async def another(self, data: bytes) -> int:
        def work() -> int:
            entries = [directory(b""), file(b"page", put_file(self.store, data), len(data))]
            image = commit(self.catalog, entries)
            with self.catalog.transaction():
                live = self.catalog.live() or Live(0, 0, 0, "clean", boot_id())
                self.catalog.set_live(live._replace(target=image.ordinal, state="moving"))
            return image.ordinal

        return await self.writer.submit(work)

    async def until(self, ordinal: int, *, synced: bool) -> Live:
        async with asyncio.timeout(30):
            while True:
                live = await self.writer.submit(self.catalog.live)
                if live is not None and (live.synced if synced else live.at) == ordinal:
                    return live
                await asyncio.sleep(0.02)


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def test_what_a_node_showed_right_before_it_stopped_is_durable_soon_after_its_start(tmp_path: Path) -> None:
    """Nothing came afterwards: a takeover waited for it, and gave up."""

    async def run() -> None:
        box = Box(tmp_path)
        one = box.target()
        running = asyncio.create_task(one.run())
        await box.until(await box.another(b"one"), synced=True)
        two = await box.another(b"two")
        one.look_again()
        live = await box.until(two, synced=False)
        await ended(running)  # the agent stops
        assert live.synced < live.at  # within the second after the move
        running = asyncio.create_task(box.target().run())
        await box.until(two, synced=True)
        await ended(running)
        await box.writer.close()

    asyncio.run(run())


def test_what_a_sync_did_not_make_durable_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 33: the kernel gave up those pages, and calls them clean; the next sync would succeed."""
    page, failed = tmp_path / "live" / "page", []
    real = receive._syncfs_and_close

    def sync(fd: int) -> None:
        if page.exists() and page.read_bytes() == b"two" and not failed:
            failed.append(page.stat().st_ino)
            os.close(fd)
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(receive, "_syncfs_and_close", sync)
    monkeypatch.setattr(receive, "RETRY_SECONDS", 0.2)

    async def run() -> None:
        box = Box(tmp_path)
        one = box.target()
        running = asyncio.create_task(one.run())
        await box.until(await box.another(b"one"), synced=True)
        two = await box.another(b"two")
        one.look_again()
        await box.until(two, synced=True)
        await ended(running)
        await box.writer.close()

    asyncio.run(run())
    assert failed and page.read_bytes() == b"two" and page.stat().st_ino != failed[0]  # another file
