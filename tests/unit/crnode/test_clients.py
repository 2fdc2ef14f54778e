"""The owner's command that brings clients and takes them away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from crnode.failover.fence import Clients


def test_what_is_taken_away_last_is_away(tmp_path: Path) -> None:
    """A command that is slow to bring them does not end after the one that took them away."""
    log = tmp_path / "log"
    slow = f'if [ "$CRNODE_ACTION" = take ]; then sleep 1; fi; echo "$CRNODE_ACTION" >> {log}'
    clients = Clients(slow, "192.0.2.10/24", "box2")

    async def run() -> str:
        taking = asyncio.create_task(clients.take())
        await asyncio.sleep(0.3)
        clients.drop()
        return await taking

    assert asyncio.run(run()) != "" and not clients.taken
    time.sleep(1.2)
    assert log.read_text() == "drop\n"
    clients.drop()  # nothing was brought since
    assert asyncio.run(clients.take()) == "" and clients.taken
    assert log.read_text() == "drop\ntake\n"


def test_why_it_failed_is_told(tmp_path: Path) -> None:
    clients = Clients("echo no route to $CRNODE_ADDRESS of $CRNODE_NODE; exit 3", "192.0.2.10/24", "box2")
    assert asyncio.run(clients.take()) == "it ended with 3: no route to 192.0.2.10/24 of box2"


def test_what_brings_them_waits_until_they_are_away(tmp_path: Path) -> None:
    """A command that is slow to take them away does not end after the one that brought them, nor does the
    command that was there before."""
    log = tmp_path / "log"
    slow = f'if [ "$CRNODE_ACTION" = drop ]; then sleep 0.5; fi; echo "$CRNODE_ACTION {{}}" >> {log}'
    first = Clients(slow.format(1), "192.0.2.10/24", "box2")

    async def run() -> None:
        assert await first.take() == ""
        first.drop()
        assert await first.take() == ""
        first.drop()
        second = Clients(slow.format(2), "192.0.2.11/24", "box2", first)
        assert await second.take() == ""

    asyncio.run(run())
    assert log.read_text() == "take 1\ndrop 1\ntake 1\ndrop 1\ntake 2\n"
