"""Work for a set's capture thread, asked for by tasks that do not end with the set."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from crnode.errors import CrnodeError

T = TypeVar("T")


async def in_pool(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """`work()` in a thread of `pool`. Raises CrnodeError when the pool is shut down before its turn: for who
    asked that is a failure like others, while a CancelledError would look like an end of its own."""
    try:
        future = asyncio.get_running_loop().run_in_executor(pool, work)
    except RuntimeError:  # what a pool that is shut down says
        raise _stopped() from None
    try:
        return await future
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _stopped() from None


def _stopped() -> CrnodeError:
    return CrnodeError("The set was stopped.", "Its files were being read.", "Try it again if it is there.")
