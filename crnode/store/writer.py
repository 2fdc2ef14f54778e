"""The one writer thread: every append, delete and catalog commit of a node happens in it, in the order it was
asked.

Work arrives as callables; their results come back to the event loop, many at a time. Between two pieces of
work the thread commits the index and checkpoints catalogs when they are due, so neither is ever in the way of
an acknowledgement."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, ParamSpec, TypeVar

from crnode.store.catalog import is_damage
from crnode.store.packs import StoreFailed

P = ParamSpec("P")
T = TypeVar("T")

_IDLE_SECONDS = 0.5  # how long the thread waits for work before it looks after index and checkpoints
_FLUSH_SECONDS = 0.002  # results are handed back at least this often while work keeps coming

_Job = tuple[Callable[[], Any], "asyncio.Future[Any] | futures.Future[Any] | None"]


class Writer:
    """A thread that runs jobs in order. `housekeeping` is called in it between jobs, at most every half
    second; `failed` is called once, in the event loop, when the disk failed and the process has to end (rule
    33). `damaged` is called there for each job that met a damaged catalog, whatever else hears of it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        housekeeping: Callable[[], None],
        failed: Callable[[BaseException], None],
        name: str = "writer",
        damaged: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._loop = loop
        self._housekeeping = housekeeping
        self._failed = failed
        self._damaged = damaged
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        self._broken: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Queue `work`; the future resolves in the event loop. Order of submission is order of execution."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            future.set_exception(StoreFailed("the writer has ended"))
            return future
        self._jobs.put(((lambda: work(*args, **kwargs)), future))
        return future

    def submit_from_thread(
        self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> futures.Future[T]:
        """The same for another thread than the event loop's, which may wait for the result."""
        future: futures.Future[T] = futures.Future()
        if self._closed:
            future.set_exception(StoreFailed("the writer has ended"))
            return future
        self._jobs.put(((lambda: work(*args, **kwargs)), future))
        return future

    def depth(self) -> int:
        """Jobs waiting."""
        return self._jobs.qsize()

    async def close(self) -> None:
        """Finish what is queued, then end the thread. What is submitted later fails at once."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        done, self._done = self._done, []
        self._deliver(done)

    def _run(self) -> None:
        last_flush = last_keeping = time.monotonic()
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                job = (self._housekeeping, None)
                last_keeping = time.monotonic()
            if job is None:
                return
            self._perform(job)
            now = time.monotonic()
            if self._done and (self._jobs.empty() or now - last_flush >= _FLUSH_SECONDS):
                self._flush()
                last_flush = now
            if now - last_keeping >= _IDLE_SECONDS:
                self._perform((self._housekeeping, None))
                last_keeping = time.monotonic()

    def _perform(self, job: _Job) -> None:
        work, future = job
        result: Any = None
        error: BaseException | None = None
        try:
            if self._broken is not None:
                raise StoreFailed(f"the store stopped after: {self._broken}")
            result = work()
        except StoreFailed as failure:
            error = failure
            if self._broken is None:
                self._broken = failure
                self._loop.call_soon_threadsafe(self._failed, failure)
        except BaseException as failure:  # noqa: BLE001 - it belongs to whoever asked
            error = failure
            if self._damaged is not None and is_damage(failure):
                self._loop.call_soon_threadsafe(self._damaged, failure)
            elif future is None:  # housekeeping: nobody else would hear of it
                self._loop.call_soon_threadsafe(self._failed, failure)
        if isinstance(future, futures.Future):
            if future.set_running_or_notify_cancel():
                self._settle(future, result, error)
        elif future is not None:
            self._done.append((future, result, error))

    @staticmethod
    def _settle(
        future: asyncio.Future[Any] | futures.Future[Any], result: Any, error: BaseException | None
    ) -> None:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _flush(self) -> None:
        done, self._done = self._done, []
        self._loop.call_soon_threadsafe(self._deliver, done)

    def _deliver(self, done: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
        for future, result, error in done:
            if not future.done():
                self._settle(future, result, error)
