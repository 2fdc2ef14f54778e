"""Errands: work that takes long and that another node carries out for whoever asked here. How far it is comes
back while it goes on, and who gives up here stops it there."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from crnode.errors import CrnodeError

Args = dict[str, Any]
Progress = Callable[[Args], None]

LOOK_SECONDS = 1.0  # between two questions how far it is
ANSWER_SECONDS = 10.0
STOP_SECONDS = 2.0  # whoever gives up, or ends, waits no longer for a node that hangs


class Errands:
    """Those of one agent: sent, and carried out."""

    def __init__(self, forward: Callable[[str, str, Args, float | None], Awaitable[Args]]) -> None:
        self._forward = forward
        self._carried: dict[tuple[str, str], tuple[asyncio.Task[Args], Args]] = {}  # by sender and name

    async def send(self, node: str, method: str, args: Args, progress: Progress) -> Args:
        """Let `node` do it, and wait for that as long as it takes. Raises CrnodeError as the other node said
        it."""
        errand = secrets.token_hex(8)
        work = asyncio.ensure_future(self._forward(node, method, {**args, "errand": errand}, None))
        try:
            while not (await asyncio.wait({work}, timeout=LOOK_SECONDS))[0]:
                with contextlib.suppress(CrnodeError):  # the end of the work says what there is to say
                    if said := await self._forward(node, "errand", {"errand": errand}, ANSWER_SECONDS):
                        progress(said)
            return work.result()
        except asyncio.CancelledError:
            work.cancel()
            question = {"errand": errand, "stop": True}
            stop = asyncio.ensure_future(self._forward(node, "errand", question, STOP_SECONDS))
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({stop}, timeout=STOP_SECONDS)
            stop.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    async def carry(self, sender: str, args: Args, work: Callable[[Args, Progress], Awaitable[Args]]) -> Args:
        """Do what `sender` asked for: work(args, progress)."""
        errand = str(args.get("errand") or "")
        args = {key: value for key, value in args.items() if key != "errand"}
        if not errand:
            return await work(args, lambda _: None)
        said: Args = {}

        def progress(latest: Args) -> None:
            said.clear()
            said.update(latest)

        async def run() -> Args:
            return await work(args, progress)

        task = asyncio.ensure_future(run())
        self._carried[sender, errand] = (task, said)
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled() and not _is_being_cancelled():
                raise CrnodeError("It was stopped.", f"{sender} asked for that.") from None
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            del self._carried[sender, errand]

    async def peer(self, sender: str, args: Args) -> Args:
        """How far an errand of the sender's is; with "stop" it ends."""
        task, said = self._carried.get((sender, str(args.get("errand"))), (None, {}))
        if task is not None and args.get("stop"):
            task.cancel()
            await asyncio.wait({task}, timeout=STOP_SECONDS)
        return dict(said)


def _is_being_cancelled() -> bool:
    """Whether it is the running task itself that ends, not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


__all__ = ["Errands"]
