"""The writer thread: in order, one at a time, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent import futures

import pytest

from crnode.store.packs import StoreFailed
from crnode.store.writer import Writer


def _fail(error: BaseException) -> None:
    raise error


def test_order_results_and_errors() -> None:
    async def main() -> None:
        writer = Writer(asyncio.get_running_loop(), lambda: None, lambda _: None)
        seen: list[int] = []
        threads: set[int] = set()

        def work(number: int) -> int:
            seen.append(number)
            threads.add(threading.get_ident())
            return number * 2

        results = await asyncio.gather(*(writer.submit(work, n) for n in range(500)))
        assert results == [n * 2 for n in range(500)]
        assert seen == list(range(500))
        assert len(threads) == 1
        assert threads != {threading.get_ident()}
        with pytest.raises(ValueError, match="no"):
            await writer.submit(_fail, ValueError("no"))
        assert await asyncio.to_thread(lambda: writer.submit_from_thread(work, 7).result(5)) == 14
        with pytest.raises(KeyError):
            await asyncio.to_thread(lambda: writer.submit_from_thread(_fail, KeyError("x")).result(5))
        await writer.close()

    asyncio.run(main())


def test_a_cancelled_wait_does_not_stop_the_work_or_the_rest() -> None:
    async def main() -> None:
        writer = Writer(asyncio.get_running_loop(), lambda: None, lambda _: None)
        done: list[int] = []
        slow = writer.submit(lambda: (time.sleep(0.05), done.append(1)))
        slow.cancel()
        assert await writer.submit(lambda: 3) == 3
        assert done == [1]
        await writer.close()

    asyncio.run(main())


def test_close_finishes_what_is_queued_and_refuses_what_comes_later() -> None:
    async def main() -> None:
        writer = Writer(asyncio.get_running_loop(), lambda: None, lambda _: None)
        done: list[int] = []
        waiting = [writer.submit(lambda n=n: done.append(n)) for n in range(50)]
        await writer.close()
        assert done == list(range(50))
        assert all(future.done() for future in waiting)
        with pytest.raises(StoreFailed):
            await asyncio.wait_for(writer.submit(lambda: 1), 1)
        with pytest.raises(StoreFailed):
            writer.submit_from_thread(lambda: 1).result(1)
        await writer.close()

    asyncio.run(main())


def test_a_failed_disk_stops_everything_once() -> None:
    async def main() -> None:
        failures: list[BaseException] = []
        ran: list[int] = []
        writer = Writer(asyncio.get_running_loop(), lambda: None, failures.append)
        first = writer.submit(_fail, StoreFailed("EIO"))
        second = writer.submit(lambda: ran.append(1))
        third: futures.Future[None] = await asyncio.to_thread(
            writer.submit_from_thread, lambda: ran.append(2)
        )
        for future in (first, second):
            with pytest.raises(StoreFailed):
                await asyncio.wait_for(future, 2)
        with pytest.raises(StoreFailed):
            await asyncio.to_thread(third.result, 2)  # another thread that waits hears of it as well
        assert not ran
        await asyncio.sleep(0.7)
        assert len(failures) == 1
        await writer.close()

    asyncio.run(main())


def test_housekeeping_runs_idle_and_busy_and_its_failure_is_told() -> None:
    async def main() -> None:
        failures: list[BaseException] = []
        kept: list[float] = []

        def keep() -> None:
            kept.append(time.monotonic())
            if len(kept) == 2:
                raise ValueError("a defect")

        writer = Writer(asyncio.get_running_loop(), keep, failures.append)
        until = time.monotonic() + 0.8
        while time.monotonic() < until:
            await writer.submit(time.sleep, 0.001)
        assert kept  # although there was always work
        await asyncio.sleep(1.3)
        assert [str(f) for f in failures] == ["a defect"]
        assert len(kept) > 2  # and it goes on
        await writer.close()

    asyncio.run(main())
