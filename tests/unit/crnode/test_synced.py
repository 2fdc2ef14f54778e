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
from crnode.store.reader import Live
from crnode.store.writer import Writer


def test_what_a_node_showed_right_before_it_stopped_is_durable_soon_after_its_start(tmp_path: Path) -> None:
    """Nothing came afterwards: a takeover waited for it, and gave up."""
    store, catalog = small_store(tmp_path / "store"), Catalog(tmp_path / "sets" / "one.db", SET)
    spec: Any = SimpleNamespace(name="web", uuid=SET.hex(), privileged=False, brake_percent=50, members=())
    image = commit(catalog, [directory(b""), file(b"page", put_file(store, b"page"), 4)])
    place, _ = prepare(tmp_path / "live", SET)
    (tmp_path / "live" / "page").write_bytes(b"page")
    with catalog.transaction():  # shown in this boot of the machine, and not synced
        catalog.set_live(Live(image.ordinal, image.ordinal, 0, "clean", boot_id()))

    async def run() -> Live | None:
        writer = Writer(asyncio.get_running_loop(), lambda: None, lambda error: None)

        async def heal(*_: object) -> set[bytes]:
            return set()

        target = TargetSet(
            spec, Target(node="b", destination=str(tmp_path / "live")), catalog, store, writer,
            TargetCommit(catalog, store, archive=False, now_ns=time.time_ns, retain_roots=set),
            lambda before, adopt: (place, True), tmp_path / "live", heal=heal, journal=lambda *_: None,
            root=False,
        )  # fmt: skip
        running = asyncio.create_task(target.run())
        try:
            async with asyncio.timeout(20):
                while (live := await writer.submit(catalog.live)) is None or live.synced != live.at:
                    await asyncio.sleep(0.05)
        finally:
            running.cancel()
            await asyncio.wait([running])
            await writer.close()
        return live

    live = asyncio.run(run())
    assert live is not None and live.synced == image.ordinal
