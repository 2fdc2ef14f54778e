"""The deep pass over a source's files: what it finds, and that it goes on where it stopped."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rot_samples import Capturing, Rotting, capturing, memory

from crnode.agent import deep
from crnode.agent import idle as idle_module
from crnode.agent.idle import Idle
from crnode.capture.deep import request_for

__all__ = ["memory"]


class NothingDue:
    """Stands where versions are proved."""

    async def step(self, now_ns: int, *, idle: bool, pace: int) -> str:
        return ""


def tree(root: Path) -> int:
    """Files of all kinds; returns the bytes in them."""
    (root / "d" / "below").mkdir(parents=True)
    sizes = {"a": 10, "d/b": 40_000, "d/below/c": 3 << 20, "z": 100_000, "empty": 0}
    for name, size in sizes.items():
        (root / name).write_bytes(os.urandom(size))
    for number in range(450):  # more than two pages
        (root / "d" / f"n{number}").write_bytes(b"%d" % number)
    return sum(p.stat().st_size for p in root.rglob("*") if p.is_file())


def test_a_sound_source_is_compared_whole_and_once_a_week(tmp_path: Path, memory: Path) -> None:
    size = tree(memory)

    async def work(here: Capturing) -> None:
        agent = SimpleNamespace(
            sets=SimpleNamespace(
                sources={"1": SimpleNamespace(source=here.source, spec=here.source.spec)}, targets={}
            ),
            calls=SimpleNamespace(maintenance=SimpleNamespace(busy=True), schedule=NothingDue()),
        )
        idle = Idle(agent)  # type: ignore[arg-type]
        assert await idle.step(idle=False) == "deep web"  # due since 1970: even a busy node does it
        state = await deep.state_of(here.source)
        assert not state.running
        assert await idle.step(idle=True) == ""
        found = await deep.compare(here.source, anew=True)
        assert (found.files, found.size, found.ended) == (454, size, True)
        assert (found.differing, found.changed, found.unread) == ([], 0, 0)

    capturing(tmp_path, memory, 60.0, work)


def test_a_pass_goes_on_where_it_stopped_also_inside_a_file(tmp_path: Path, memory: Path) -> None:
    size = tree(memory)

    async def work(here: Capturing) -> None:
        slices = 0
        files = bytes_ = 0
        inside = False
        while True:
            found = await deep.compare(here.source, pace=4 << 20, seconds=0.25)
            slices += 1
            files, bytes_ = files + found.files, bytes_ + found.size
            state = await deep.state_of(here.source)
            inside = inside or (state.place is not None and "offset" in state.place)
            if found.ended:
                break
            assert slices < 20
        assert slices > 2
        assert inside
        assert (files, bytes_) == (454, size)

    capturing(tmp_path, memory, 60.0, work)


def test_damage_is_found_and_named(tmp_path: Path, memory: Path) -> None:
    tree(memory)
    rotting = Rotting(memory / "d" / "rots", os.urandom(200_000))

    async def work(here: Capturing) -> None:
        good = here.content(b"d/rots")
        await deep.compare(here.source)
        rotting.flip(70_000)
        found = await deep.compare(here.source)
        (row,) = deep.rows("web", found)
        assert row["path"] == "d/rots" and row["bytes"].startswith("bytes ")
        low, high = (int(word) for word in row["bytes"].split()[1::2])
        assert low <= 70_000 <= high < 200_000
        assert here.content(b"d/rots") == good
        assert await here.source.certain(b"d/rots")
        assert [path for path, _ in here.source.lost] == [b"d/rots"]

    try:
        capturing(tmp_path, memory, 0.3, work)
    finally:
        rotting.close()


def test_checks_at_idle_go_on_when_a_set_is_stopped(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_module, "CHECK_SECONDS", 0.0)
    rotting = Rotting(memory / "f", os.urandom(200_000))
    told: list[str] = []

    async def work(here: Capturing) -> None:
        rotting.flip(70_000)
        running = SimpleNamespace(source=here.source, spec=here.source.spec)
        agent = SimpleNamespace(
            sets=SimpleNamespace(sources={"1": running}, targets={}),
            calls=SimpleNamespace(maintenance=SimpleNamespace(busy=True), schedule=NothingDue()),
            store=here.store,
            journal=SimpleNamespace(add=lambda kind, text: told.append(text)),
        )
        held = threading.Event()
        holds = asyncio.ensure_future(here.source._in_thread(held.wait))
        task = asyncio.create_task(Idle(agent).run())  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            while here.source._thread._work_queue.qsize() == 0:  # it waits for its turn to examine the file
                await asyncio.sleep(0.01)
            here.source._thread.shutdown(wait=False, cancel_futures=True)
            while len(told) < 2 and not task.done():  # in the queue, and when the pool takes nothing more
                await asyncio.sleep(0.01)
        held.set()
        await holds
        assert not task.done()
        assert all("was stopped" in text for text in told)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    try:
        capturing(tmp_path, memory, 60.0, work)
    finally:
        rotting.close()


def test_what_capture_has_not_seen_is_handed_to_it(tmp_path: Path, memory: Path) -> None:
    tree(memory)
    places: list[Capturing] = []

    async def work(here: Capturing) -> None:
        places.append(here)
        await here.source.writer.submit(here.store.flush_index)

    capturing(tmp_path, memory, 60.0, work)
    (memory / "z").write_bytes(b"while nobody watched")
    (memory / "a").unlink()
    (here,) = places
    request = request_for([str(memory)], here.catalog.path, here.store.directory, None, 0, 0)
    done = subprocess.run(
        [sys.executable, "-m", "crnode.capture.deep"],
        input=json.dumps(request).encode() + b"\n",
        capture_output=True,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {bytes.fromhex(x["path"]) for x in lines if x["event"] == "changed"} == {b"a", b"z"}
    assert not any(x["event"] == "differs" for x in lines)


def test_the_pace_is_kept(tmp_path: Path, memory: Path) -> None:
    (memory / "f").write_bytes(os.urandom(3 << 20))

    async def work(here: Capturing) -> None:
        begun = time.monotonic()
        await deep.compare(here.source, pace=2 << 20)
        assert 0.7 < time.monotonic() - begun < 5

    capturing(tmp_path, memory, 60.0, work)


@pytest.mark.parametrize("running", [False, True])
def test_when_a_pass_is_due(running: bool) -> None:
    assert deep.State(10, None, running).due(deep.PERIOD_NS + 9) is running
    assert deep.State(10, None, running).due(deep.PERIOD_NS + 10)
    assert deep.State(deep.PERIOD_NS).due(0)  # a clock that was set back is no reason to wait for weeks
