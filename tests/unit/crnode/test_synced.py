"""A live tree that was shown and not made durable when its node stopped is made so by the next start."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from store_samples import SET, commit, directory, file, put_file, small_store

from crnode.cluster.document import Target
from crnode.platform.files import boot_id
from crnode.replicate.commit import TargetCommit
from crnode.replicate.place import prepare
from crnode.replicate.receive import TargetSet
from crnode.store.catalog import Catalog
from crnode.store.reader import Image, Live
from crnode.store.writer import Writer


def test_what_a_node_showed_right_before_it_stopped_is_durable_soon_after_its_start(tmp_path: Path) -> None:
    """Nothing came afterwards: a takeover waited for it, and gave up."""
    store, catalog = small_store(tmp_path / "store"), Catalog(tmp_path / "sets" / "one.db", SET)
    spec: Any = SimpleNamespace(name="web", uuid=SET.hex(), privileged=False, brake_percent=50, members=())

    def another(data: bytes) -> Image:
        image = commit(catalog, [directory(b""), file(b"page", put_file(store, data), len(data))])
        with catalog.transaction():
            live = catalog.live() or Live(0, 0, 0, "clean", boot_id())
            catalog.set_live(live._replace(target=image.ordinal, state="moving"))
        return image

    async def heal(*_: object) -> set[bytes]:
        return set()

    def target(writer: Writer) -> TargetSet:
        return TargetSet(
            spec, Target(node="b", destination=str(tmp_path / "live")), catalog, store, writer,
            TargetCommit(catalog, store, archive=False, now_ns=time.time_ns, retain_roots=set),
            lambda before, adopt: prepare(tmp_path / "live", SET, before, adopt=adopt), tmp_path / "live",
            heal=heal, journal=lambda *_: None, root=False,
        )  # fmt: skip

    async def run() -> None:
        writer = Writer(asyncio.get_running_loop(), lambda: None, lambda error: None)

        async def until(ordinal: int, *, synced: bool) -> Live:
            async with asyncio.timeout(30):
                while True:
                    live = await writer.submit(catalog.live)
                    if live is not None and (live.synced if synced else live.at) == ordinal:
                        return live
                    await asyncio.sleep(0.02)

        image = await writer.submit(another, b"one")
        one = target(writer)
        running = asyncio.create_task(one.run())
        await until(image.ordinal, synced=True)
        image = await writer.submit(another, b"two")
        one.look_again()
        live = await until(image.ordinal, synced=False)
        running.cancel()  # the agent stops
        await asyncio.wait([running])
        assert live.synced < live.at  # within the second after the move
        running = asyncio.create_task(target(writer).run())
        await until(image.ordinal, synced=True)
        running.cancel()
        await asyncio.wait([running])
        await writer.close()

    asyncio.run(run())
