"""Bytes that differ under an unchanged fingerprint: what is damage, what is a change, and what capture makes
of each."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from rot_samples import Capturing, Rotting, capturing, memory

from crnode.capture import source as source_module
from crnode.capture.openers import has_writer
from crnode.capture.rot import YOUNG_NS, Look, Stretch, Suspicions, Verdict, judge, ranges
from crnode.store.reader import SPOOL_GIVEN_UP, Fingerprint
from crnode.store.writer import Writer

__all__ = ["memory"]
WAIT = 60 * 10**9
OLD = 10 * YOUNG_NS  # the files' times are 0: looks at this time and later are at old files


def look(
    at: int, *, found: bytes = b"x", written: bool | None = False, event: bool = False, inode: int = 1
) -> Look:
    return Look(Fingerprint(1, inode, 9, 0, 0), found, (), written, event, at)


def test_damage_needs_two_looks_and_no_writer() -> None:
    first = look(OLD)
    assert judge(None, first, WAIT) is Verdict.WAIT
    assert judge(first, look(OLD + WAIT - 1), WAIT) is Verdict.WAIT
    assert judge(first, look(OLD + WAIT), WAIT) is Verdict.DAMAGE
    assert judge(first, look(OLD + WAIT, written=None), WAIT) is Verdict.DAMAGE
    assert judge(first, look(OLD + WAIT, written=True), WAIT) is Verdict.CHANGE
    assert judge(None, look(OLD, written=True), WAIT) is Verdict.CHANGE
    assert judge(None, look(OLD, event=True), WAIT) is Verdict.CHANGE


def test_what_is_not_certain_is_a_change() -> None:
    young = look(YOUNG_NS - 1)  # a second write to a page that was dirty already moves no time
    assert judge(young, look(OLD), WAIT) is Verdict.CHANGE
    assert judge(look(OLD), look(OLD + WAIT, found=b"y", written=None), WAIT) is Verdict.CHANGE
    assert judge(look(OLD), look(OLD + WAIT, found=b"y"), WAIT) is Verdict.WAIT
    assert judge(look(OLD), look(OLD + WAIT, inode=2), WAIT) is Verdict.WAIT


def test_suspicions_are_due_once_and_forgotten() -> None:
    known = Suspicions(WAIT)
    assert known.meet(b"a", look(OLD)) is Verdict.WAIT
    assert known.due(OLD + WAIT - 1) == []
    assert known.due(OLD + WAIT) == [b"a"]
    assert known.meet(b"a", look(OLD + 5, found=b"y")) is Verdict.WAIT  # it moved: the time runs anew
    assert known.due(OLD + WAIT) == []
    assert known.meet(b"a", look(OLD + 5 + WAIT, found=b"y")) is Verdict.DAMAGE
    assert known.due(OLD + 10 * WAIT) == []
    assert known.verdict(b"a") is Verdict.DAMAGE
    known.clear(b"a")
    assert known.verdict(b"a") is None


def test_ranges_are_named_for_people() -> None:
    parts = [Stretch(n * 10, n * 10 + 10, b"") for n in (0, 1, 3, 5, 7)]
    assert ranges(parts) == "bytes 0 to 19, 30 to 39, 50 to 59 and 1 more stretches"


def test_writers_are_seen_in_proc(memory: Path) -> None:
    path = memory / "f"
    path.write_bytes(b"x")
    info = path.stat()
    assert has_writer((info.st_dev, info.st_ino)) is not True

    async def held(*how: str) -> bool | None:
        process = await asyncio.create_subprocess_exec(
            *how, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None and process.stdout is not None
        await process.stdout.readline()
        try:
            return has_writer((info.st_dev, info.st_ino))
        finally:
            process.stdin.close()
            await process.wait()

    code = "import sys, mmap; f = open({0!r}, {1!r}); {2}; print(flush=True); sys.stdin.read()"
    mapped = "m = mmap.mmap(f.fileno(), 0); f.close()"
    for mode, more, seen in (("r+b", "0", True), ("r+b", mapped, True), ("rb", "0", False)):
        got = asyncio.run(held("python3", "-c", code.format(str(path), mode, more)))
        assert (got is True) is seen, (mode, more)


@pytest.mark.parametrize("size", [5000, 3 << 20])
def test_damage_keeps_the_old_entry_and_is_told(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(source_module, "POLL_SECONDS", 0.05)
    rotting = Rotting(memory / "f", os.urandom(size))

    async def work(here: Capturing) -> None:
        good = here.content(b"f")
        rotting.flip(4321)
        await here.looked(b"f")
        assert here.content(b"f") == good
        assert not here.source.lost
        assert await here.source.certain(b"f")  # the second look comes by itself
        assert here.content(b"f") == good
        (told,) = [text for kind, text in here.events if kind == "damage"] or [""]
        assert "'f'" in told and "bytes" in told
        assert [path for path, _ in here.source.lost] == [b"f"]
        rotting.flip(4321)  # the disk gives the right bytes again
        await here.looked(b"f")
        assert not here.source.lost
        rotting.path.write_bytes(b"a new file")
        await here.source.scan_now()
        assert here.content(b"f") != good

    try:
        capturing(tmp_path, memory, 0.3, work)
    finally:
        rotting.close()


def test_a_write_with_an_event_or_a_writer_is_a_change(tmp_path: Path, memory: Path) -> None:
    rotting = Rotting(memory / "f", os.urandom(5000))

    async def work(here: Capturing) -> None:
        good = here.content(b"f")
        rotting.flip(100)
        here.source.guard.written(b"f")  # as two writes within one tick of the clock look
        await here.looked(b"f")
        changed = here.content(b"f")
        assert changed != good
        rotting.flip(200)
        code = f"import sys; f = open({str(rotting.path)!r}, 'r+b'); print(flush=True); sys.stdin.read()"
        process = await asyncio.create_subprocess_exec(
            "python3", "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None and process.stdout is not None
        await process.stdout.readline()
        try:
            await here.looked(b"f")
            assert here.content(b"f") not in (good, changed)
        finally:
            process.stdin.close()
            await process.wait()
        assert not here.source.lost

    try:
        capturing(tmp_path, memory, 60.0, work)
    finally:
        rotting.close()


def test_a_spooling_source_over_its_quota_gives_the_spool_up(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "FULL_RETRY_SECONDS", 0.05)
    (memory / "a").write_bytes(os.urandom(100_000))

    async def work(here: Capturing) -> None:
        here.source.spool = True
        (memory / "b").write_bytes(os.urandom(100_000))
        await here.source.scan_now()
        assert here.store.packs.used > 100_000  # b is in the spool
        here.store.room.quota = here.store.room.used() + 1000
        (memory / "c").write_bytes(os.urandom(100_000))
        async with asyncio.timeout(10):
            while here.source.spool:
                await asyncio.sleep(0.02)
        await here.source.scan_now()  # without a spool there is room for the image itself
        assert here.content(b"c") is not None
        assert here.catalog.meta(SPOOL_GIVEN_UP) is not None
        assert any(kind == "full" and "quota" in text for kind, text in here.events)

    capturing(tmp_path, memory, 60.0, work)


@pytest.mark.parametrize("steps", range(4))
def test_a_source_stops_also_in_the_moment_it_is_woken(tmp_path: Path, memory: Path, steps: int) -> None:
    (memory / "a").write_bytes(b"x")

    async def work(here: Capturing) -> None:
        task = asyncio.create_task(here.source.run())
        await asyncio.sleep(0.3)  # until it waits
        here.source.look_at(b"a")
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(task, return_exceptions=True)

    async def main() -> None:
        writer = Writer(asyncio.get_running_loop(), lambda: None, lambda _: None)
        here = Capturing(tmp_path, memory, writer, 60.0)
        await work(here)
        await writer.close()
        here.catalog.close()
        here.store.close()

    asyncio.run(main())
