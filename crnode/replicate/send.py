"""Sending a difference: objects, and behind them the entries that need them, as messages of a good size.

While one batch is being sent the next is walked, offered to the target and read from disk; objects that the
target answers to have do not travel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial

from crnode.net.peer import Peer
from crnode.replicate.difference import ObjectReader, Part, Wanted
from crnode.replicate.lag import Throttle
from crproto.messages import Entries, Objects

FRAME_BYTES = 512 << 10  # payload of one Objects message, about
AHEAD = 2  # batches walked and offered before the one that is sent

Records = list[tuple[bytes, int, int, int, int, bytes]]
Frame = tuple[Records, list[bytes]]
Offering = Callable[[Part], Awaitable[memoryview]]
"""Asks the target which objects of a batch it lacks; the answer is a bitmap, lowest bit first."""


class Sender:
    """Sends differences over one connection.

    Args:
        thread: where batches are walked and files are read.
        offer: how to ask the target.
        throttle: the pace to keep.
        over: whether the target has refused already what is being sent: nothing more of it is.
    """

    def __init__(
        self, peer: Peer, thread: Executor, offer: Offering, throttle: Throttle, over: Callable[[], bool]
    ) -> None:
        self.peer = peer
        self._thread = thread
        self._offer = offer
        self._throttle = throttle
        self._over = over
        self._loop = asyncio.get_running_loop()

    async def send(
        self, parts: Iterator[Part], objects: ObjectReader, *, offer: bool, patches: bool
    ) -> None:
        """Send all of `parts`. Without `offer` nothing is asked and nothing runs beside: for small images,
        whose every byte is in memory. Raises Abandoned when the source's bytes are gone, PeerClosed."""
        if not offer:
            for part in parts:
                await self._part(part, part.objects, objects, patches)
            return
        async with contextlib.aclosing(self._offered(parts)) as offered:
            async for part, bitmap in offered:
                if self._over():
                    return
                wanted = part.objects if bitmap is None else _chosen(part.objects, bitmap)
                await self._part(part, wanted, objects, patches)

    async def objects(self, wanted: Sequence[Wanted], objects: ObjectReader) -> None:
        """Send just these objects, whole."""
        await self._part(Part(), wanted, objects, patches=False)

    async def _part(
        self, part: Part, wanted: Sequence[Wanted], objects: ObjectReader, patches: bool
    ) -> None:
        async for records, stored in self._frames(wanted, objects, patches):
            if self._over():
                return
            await self.peer.send(Objects(tuple(records)), stored)
            delay = self._throttle.delay(sum(map(len, stored)), self._loop.time())
            if delay > 0:
                await asyncio.sleep(delay)
        if part.entries or part.removed:
            await self.peer.send(Entries(tuple(part.entries), tuple(part.removed)))

    async def _offered(self, parts: Iterator[Part]) -> AsyncGenerator[tuple[Part, memoryview | None], None]:
        """Batches with the target's answer, walked and asked ahead."""
        ahead: asyncio.Queue[tuple[Part, asyncio.Task[memoryview] | None] | Exception | None] = asyncio.Queue(
            AHEAD
        )
        asked: set[asyncio.Task[memoryview]] = set()

        async def walk() -> None:
            try:
                while (part := await self._in_thread(lambda: next(parts, None))) is not None:
                    answer = None
                    if part.objects:
                        answer = asyncio.ensure_future(self._offer(part))
                        assert isinstance(answer, asyncio.Task)
                        asked.add(answer)
                    await ahead.put((part, answer))
                await ahead.put(None)
            except Exception as error:  # noqa: BLE001 - raised again by whoever reads the queue
                await ahead.put(error)

        task = asyncio.create_task(walk())
        try:
            while (item := await ahead.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                part, answer = item
                bitmap = None
                if answer is not None:
                    bitmap = await answer
                    asked.discard(answer)
                yield part, bitmap
        finally:
            for pending in (task, *asked):
                pending.cancel()
            await asyncio.gather(task, *asked, return_exceptions=True)

    async def _in_thread(self, work: Callable[[], Part | None]) -> Part | None:
        return await self._loop.run_in_executor(self._thread, work)

    async def _frames(
        self, wanted: Sequence[Wanted], objects: ObjectReader, patches: bool
    ) -> AsyncIterator[Frame]:
        at = 0
        while at < len(wanted):
            end, size = at, 0
            while end < len(wanted) and (end == at or size + wanted[end].length <= FRAME_BYTES):
                size += wanted[end].length
                end += 1
            group = wanted[at:end]
            # Compressing costs more than all the rest together: only when the link is the bottleneck.
            read = partial(objects.read, group, compress=self.peer.congested, patches=patches)
            if all(objects.held(wanted.id) is not None for wanted in group):
                records, stored = read()  # all in memory: a hop to a thread would cost more than it saves
            else:
                records, stored = await self._loop.run_in_executor(self._thread, read)
            at = end
            yield records, ([b"".join(stored)] if len(stored) > 1 else stored)


def _chosen(wanted: Sequence[Wanted], bitmap: memoryview) -> list[Wanted]:
    return [w for i, w in enumerate(wanted) if bitmap[i // 8] >> (i % 8) & 1]
