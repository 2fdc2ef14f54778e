"""Bytes that differ under an unchanged fingerprint: what is damage, what is a change, and what capture makes
of each."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from rot_samples import Capturing, Rotting, capturing, memory

from crnode.agent import deep
from crnode.capture import guard as guard_module
from crnode.capture import source as source_module
from crnode.capture.guard import RotGuard
from crnode.capture.openers import has_writer
from crnode.capture.rot import YOUNG_NS, Look, Stretch, Suspicions, Verdict, Verified, judge, ranges
from crnode.replicate.mend import mend
from crnode.store.reader import SPOOL_GIVEN_UP, Fingerprint
from crnode.store.writer import Writer

__all__ = ["memory"]
WAIT = 60 * 10**9
OLD = 10 * YOUNG_NS  # the files' times are 0: looks at this time and later are at old files


def look(
    at: int,
    *,
    found: bytes = b"x",
    written: bool | None = False,
    event: bool = False,
    inode: int = 1,
    good: int = YOUNG_NS,
) -> Look:
    return Look(Fingerprint(1, inode, 9, 0, 0), found, (), written, event, at, good)


def test_damage_needs_two_looks_and_no_writer() -> None:
    first = look(OLD)
    assert judge(None, first, WAIT) is Verdict.WAIT
    assert judge(first, look(OLD + WAIT - 1), WAIT) is Verdict.WAIT
    assert judge(first, look(OLD + WAIT), WAIT) is Verdict.DAMAGE
    assert judge(first, look(OLD + WAIT, written=True), WAIT) is Verdict.CHANGE
    assert judge(first, look(OLD + WAIT, event=True), WAIT) is Verdict.CHANGE
    assert judge(None, look(OLD, written=True), WAIT) is Verdict.CHANGE
    assert judge(None, look(OLD, event=True), WAIT) is Verdict.CHANGE


def test_what_is_not_certain_is_a_change() -> None:
    late = OLD + WAIT
    assert judge(look(OLD), look(late, written=None), WAIT) is Verdict.CHANGE  # not all could be looked at
    # A second write to a page that was dirty already moves no time, and may be met at any time later. Only
    # that the good bytes were read when no page could be dirty any more says that it was none.
    for never in (0, YOUNG_NS - 1, late + 1):
        assert judge(None, look(OLD, good=never), WAIT) is Verdict.CHANGE
        assert judge(look(OLD), look(late, good=never), WAIT) is Verdict.CHANGE
    assert judge(look(OLD), look(late, found=b"y"), WAIT) is Verdict.WAIT
    assert judge(look(OLD), look(late, inode=2), WAIT) is Verdict.WAIT


def test_what_a_pass_has_proved() -> None:
    verified = Verified(100, 7, frozenset([b"unread"]))
    assert verified.since(b"f", 7) == 100
    assert verified.since(b"f", 8) == 0  # captured since
    assert verified.since(b"f", 0) == verified.since(b"unread", 7) == 0
    assert Verified.decode(verified.encode()) == verified
    assert Verified.decode(None).since(b"f", 1) == 0


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
    own = os.open(path, os.O_RDONLY)
    assert has_writer(own) is not True

    async def held(*how: str) -> bool | None:
        process = await asyncio.create_subprocess_exec(
            *how, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None and process.stdout is not None
        await process.stdout.readline()
        try:
            return has_writer(own)
        finally:
            process.stdin.close()
            await process.wait()

    code = "import sys, mmap; f = open({0!r}, {1!r}); {2}; print(flush=True); sys.stdin.read()"
    mapped = "m = mmap.mmap(f.fileno(), 0); f.close()"
    for mode, more, seen in (("r+b", "0", True), ("r+b", mapped, True), ("rb", "0", False)):
        got = asyncio.run(held("python3", "-c", code.format(str(path), mode, more)))
        assert (got is True) is seen, (mode, more)
    os.close(own)


@pytest.mark.parametrize("size", [5000, 3 << 20])
def test_damage_keeps_the_old_entry_and_is_told(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(source_module, "POLL_SECONDS", 0.05)
    rotting = Rotting(memory / "f", os.urandom(size))

    async def work(here: Capturing) -> None:
        good = here.content(b"f")
        await deep.compare(here.source)  # it has read the good bytes
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
        capturing(tmp_path, memory, 3.0, work)
    finally:
        rotting.close()


def test_a_write_with_an_event_or_a_writer_is_a_change(tmp_path: Path, memory: Path) -> None:
    rotting = Rotting(memory / "f", os.urandom(5000))

    async def work(here: Capturing) -> None:
        good = here.content(b"f")
        await deep.compare(here.source)
        rotting.flip(100)
        here.source.guard.written(b"f")  # as two writes within one tick of the clock look
        await here.looked(b"f")
        changed = here.content(b"f")
        assert changed != good
        await deep.compare(here.source, anew=True)
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


def test_a_change_that_capture_comes_to_after_the_pass_is_a_change(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that found a file to differ has not read it as it was captured, whenever that is looked at."""
    rotting = Rotting(memory / "f", os.urandom(300_000))

    async def work(here: Capturing) -> None:
        good = here.content(b"f")
        rotting.flip(4321)
        with monkeypatch.context() as patch:
            patch.setattr(here.source, "look_at", lambda path: None)  # a full disk, or a busy thread
            found = await deep.compare(here.source, anew=True)
        assert (found.differing, found.changed, found.ended) == ([], 1, True)
        await here.looked(b"f")
        assert here.content(b"f") not in (None, good)
        assert not here.source.lost

    try:
        capturing(tmp_path, memory, 0.3, work)
    finally:
        rotting.close()


def test_what_no_pass_has_verified_is_a_change(tmp_path: Path, memory: Path) -> None:
    """A page that was dirty when it was captured is written once more through a mapping: no time moves, and
    the program has ended when, long after, somebody comes upon it."""
    rotting = Rotting(memory / "f", os.urandom(300_000))

    async def work(here: Capturing) -> None:
        good = here.content(b"f")
        rotting.flip(4321)
        found = await deep.compare(here.source, anew=True)
        assert (found.differing, found.changed) == ([], 1)
        await here.source.scan_now()
        changed = here.content(b"f")
        assert changed not in (None, good)
        # That pass has not read what is captured now.
        rotting.flip(4321)
        await here.looked(b"f")
        assert here.content(b"f") == good
        assert not here.source.lost
        assert not [text for kind, text in here.events if kind == "damage"]

    try:
        capturing(tmp_path, memory, 3.0, work)
    finally:
        rotting.close()


def test_examining_a_file_holds_no_capture_up(tmp_path: Path, memory: Path) -> None:
    rotting = Rotting(memory / "f", os.urandom(3 << 20))
    (memory / "small").write_bytes(b"a")

    async def work(here: Capturing) -> None:
        await deep.compare(here.source)
        rotting.flip(2 << 20)
        guard, load, go_on = here.source.guard, here.source.guard.load, threading.Event()
        entered = threading.Event()

        def slow(name: bytes) -> bytes:
            entered.set()
            go_on.wait(20)
            return load(name)

        guard.load = slow
        examined = asyncio.create_task(here.source.examine(b"f"))
        assert await asyncio.to_thread(entered.wait, 10)
        before = here.content(b"small")
        (memory / "small").write_bytes(b"b")
        async with asyncio.timeout(10):
            while here.content(b"small") == before:
                await asyncio.sleep(0.01)
        assert not examined.done()
        go_on.set()
        stretches = await examined
        assert stretches is not None
        (one,) = stretches
        assert one.start <= 2 << 20 < one.end

    try:
        capturing(tmp_path, memory, 60.0, work)
    finally:
        rotting.close()


def test_capture_looks_at_what_the_recipes_say_to_differ(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "LOOK_BYTES", 1)  # a chunk
    rotting = Rotting(memory / "f", os.urandom(3 << 20))

    async def work(here: Capturing) -> None:
        good = here.content(b"f")
        await deep.compare(here.source)
        rotting.flip((3 << 20) - 10)
        await here.looked(b"f")
        assert here.content(b"f") == good
        assert here.source.guard.suspicions.verdict(b"f") is Verdict.WAIT

    try:
        capturing(tmp_path, memory, 60.0, work)
    finally:
        rotting.close()


def test_events_of_a_set_that_is_not_captured_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "EVENTS_MOST", 3)
    guard = RotGuard(lambda _: b"", lambda: 0)
    for number in (0, 1, 2, 0, 3):
        guard.written(b"%d" % number)
    assert [guard.take_event(b"%d" % n) for n in range(4)] == [True, False, True, True]


@pytest.mark.parametrize("damaged", [True, False])
def test_a_push_that_meets_other_bytes(tmp_path: Path, memory: Path, damaged: bool) -> None:
    data = os.urandom(300_000)
    rotting = Rotting(memory / "f", data)
    asked: list[int] = []

    async def work(here: Capturing) -> None:
        good = here.content(b"f")
        if damaged:
            await deep.compare(here.source)
        rotting.flip(4321)

        async def heal(_: str, wanted: set[bytes]) -> set[bytes]:
            asked.append(len(wanted))
            return wanted

        commit = here.source.commit
        journal: list[str] = []
        mended = await mend(here.source, commit, b"f", "box2", heal, lambda _, text: journal.append(text))
        assert mended is damaged
        await here.source.scan_now()
        assert (here.content(b"f") == good) is damaged
        assert asked == ([1] if damaged else [])
        assert any("'f'" in text for text in journal) is damaged

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
