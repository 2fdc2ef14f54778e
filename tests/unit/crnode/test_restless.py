"""Files that somebody has mapped or holds open: what is written to them without any event is found."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rot_samples import Capturing, capturing, memory
from store_samples import SET

from crnode.capture import restless as module
from crnode.capture import source as source_module
from crnode.capture.openers import FileSystems, Round
from crproto.ids import chunk_id

__all__ = ["SET", "memory"]

CODE = """
import mmap, sys
file = open(sys.argv[1], 'r+b')
mapped = mmap.mmap(file.fileno(), 0)
file.close()
for at in range(0, len(mapped), mmap.PAGESIZE):
    mapped[at] = mapped[at]
print(flush=True)
for line in sys.stdin:
    at = int(line)
    mapped[at] ^= 255
    print(flush=True)
"""


@contextlib.asynccontextmanager
async def mapping(path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process that has `path` mapped and flips the bytes that it is told to, unseen by stat."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CODE, str(path), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def flip(process: asyncio.subprocess.Process, path: Path, at: int) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    before = os.stat(path)
    process.stdin.write(b"%d\n" % at)
    await process.stdout.readline()
    assert os.stat(path).st_ctime_ns == before.st_ctime_ns
    return await asyncio.to_thread(path.read_bytes)


async def captured(here: Capturing, path: bytes, data: bytes, seconds: float = 15.0) -> None:
    """Wait until the newest image has `data` at `path`."""
    async with asyncio.timeout(seconds):
        while here.content(path) != chunk_id(data):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("closes", [False, True])
def test_writes_through_a_mapping_are_found(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    monkeypatch.setattr(source_module, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(module, "CONTENT_SECONDS", 0.2)
    path = memory / "f"
    path.write_bytes(os.urandom(20_000))

    async def work(here: Capturing) -> None:
        async with mapping(path) as process:
            await here.source.scan_now()
            restless = here.source._restless
            async with asyncio.timeout(10):
                while b"f" not in restless.mapped:
                    await asyncio.sleep(0.05)
            if closes:  # the last write comes and the process goes between two looks
                monkeypatch.setattr(module, "CONTENT_SECONDS", 1.0)
                await asyncio.sleep(0.3)
            data = await flip(process, path, 12_345)
            if not closes:
                await captured(here, b"f", data)
                await captured(here, b"f", await flip(process, path, 7))
        await captured(here, b"f", path.read_bytes())
        async with asyncio.timeout(10):
            while restless.mapped or restless._turns:
                await asyncio.sleep(0.05)
        assert not here.source.lost

    capturing(tmp_path, memory, 60.0, work)


def test_a_large_mapped_file_is_compared_in_turns(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONTENT_BYTES", 1 << 20)
    path = memory / "f"
    path.write_bytes(os.urandom(4 << 20))

    async def work(here: Capturing) -> None:
        async with mapping(path) as process:
            await here.source.scan_now()
            newest = here.catalog.newest()
            roots = here.source.open_roots
            assert newest is not None and roots is not None
            own = module.Restless(here.store.load)
            with here.catalog.reader() as reader:
                for _ in range(500):  # a step is 20 ms at most
                    own.step(roots, reader, 100.0)
                    if own.open:
                        break
                assert own.open == own.mapped == {b"f"}
                await flip(process, path, (4 << 20) - 10)
                assert own.changed(roots, reader, newest.ordinal, 100.0) == []
                assert own.changed(roots, reader, newest.ordinal, 100.5) == []  # not yet
                assert own._turns[b"f"] >= 1 << 20
                later = [own.changed(roots, reader, newest.ordinal, 200.0 + 100 * n) for n in range(5)]
                assert [b"f"] in later

    capturing(tmp_path, memory, 60.0, work)


def test_a_look_goes_on_in_steps(memory: Path) -> None:
    """What the machine's processes have open comes and goes between two looks; one of ours stays."""
    root = os.open(memory, os.O_RDONLY)
    ours = FileSystems([root])
    code = "import sys; f = open(sys.argv[1], 'w'); print(flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(memory / "f")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None
    holder.stdout.readline()
    info = os.stat(memory / "f")
    mine = {(info.st_dev, info.st_ino)}
    look = Round(ours)
    steps = 0
    while not look.step(0.0002):
        steps += 1
    begun = time.monotonic()
    whole = Round(ours)
    assert whole.step(60.0)
    print(f"a whole look took {time.monotonic() - begun:.4f} s, {steps} steps of 0.2 ms")
    assert look.found.keys() >= mine and whole.found.keys() >= mine
    os.close(root)
    holder.communicate()
