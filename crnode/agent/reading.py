"""Images that somebody reads: roots of pruning until the reader is done (rule 38)."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from crnode.store.catalog import Catalog
from crnode.store.reader import Image

if TYPE_CHECKING:
    from crnode.agent.node import Agent


class Readers:
    """Who reads which image. Counted, because two readers may read the same one."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._count: Counter[tuple[str, int]] = Counter()  # (set uuid, ordinal); of the writer thread alone

    @contextlib.asynccontextmanager
    async def hold(self, uuid: str, image: bytes) -> AsyncIterator[Image | None]:
        """The image with this id, whose rows stay as they are meanwhile; None when it is not here (any more).

        It is looked up and held in one turn of the writer, so that no pruning comes in between.
        """
        catalog = self.agent.sets.catalogs.get(uuid)
        if catalog is None:
            yield None
            return
        held: list[int] = []
        try:
            yield await self.agent.writer.submit(self._take, catalog, uuid, image, held)
        finally:
            # Submitted after the look-up, hence done after it, also when this task was cancelled meanwhile.
            dropped = self.agent.writer.submit(self._drop, uuid, held)
            dropped.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _take(self, catalog: Catalog, uuid: str, image_id: bytes, held: list[int]) -> Image | None:
        image = catalog.image(image_id)
        if image is not None:
            held.append(image.ordinal)
            self._count[(uuid, image.ordinal)] += 1
            self.agent.sets.readers_roots.setdefault(uuid, set()).add(image.ordinal)
        return image

    def _drop(self, uuid: str, held: list[int]) -> None:
        for ordinal in held:
            self._count[(uuid, ordinal)] -= 1
            if self._count[(uuid, ordinal)] <= 0:
                del self._count[(uuid, ordinal)]
                self.agent.sets.readers_roots.get(uuid, set()).discard(ordinal)
