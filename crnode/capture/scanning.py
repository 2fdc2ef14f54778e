"""One scan of a whole set, in a process of its own, while points of the set go on being taken."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import Callable, Iterable

import apsw

from crnode.capture import scan
from crnode.capture.read import Gone, PathReader, Unreadable
from crnode.platform.python import python
from crnode.store.catalog import CatalogDamaged

TOLD_MOST = 100_000  # paths that are remembered to tell what a scan found from what events told meanwhile


class Scanning:
    """A scan under way. It compares with the image that was newest when it began: what points have taken
    since looks different to it and is looked at once more, which costs a stat; nothing is missed, because
    whatever changes after the scan has passed makes an event.

    Args:
        request: :func:`crnode.capture.scan.encode_request`.
        serving: number of the newest request for a scan that this one answers.
        reason: why, for people.
        wake: called when it has ended.
    """

    def __init__(self, request: str, serving: int, reason: str, wake: Callable[[], None]) -> None:
        self.serving = serving
        self.reason = reason
        self._told: set[bytes] | None = set()
        self._task = asyncio.create_task(scan_set(request))
        self._task.add_done_callback(lambda _: wake())

    @property
    def done(self) -> bool:
        return self._task.done()

    def note(self, paths: Iterable[bytes]) -> None:
        """These were taken because of events while the scan ran."""
        if self._told is not None:
            self._told.update(paths)
            if len(self._told) > TOLD_MOST:
                self._told = None

    def unannounced(self, dirty: Iterable[bytes]) -> list[bytes]:
        """Those of `dirty` that no event told of. Empty when too much happened meanwhile to say."""
        told = self._told
        if told is None:
            return []
        return [path for path in dirty if not any(above in told for above in _upwards(path))]

    async def result(self) -> list[bytes]:
        """Paths that differ. Raises OSError when the scan could not be made, CatalogDamaged."""
        return await self._task

    async def cancel(self) -> None:
        """End it; nothing of it is left."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _upwards(path: bytes) -> Iterable[bytes]:
    yield path
    while b"/" in path:
        path = path[: path.rindex(b"/")]
        yield path


def any_folder(paths: PathReader, found: Iterable[bytes]) -> bool:
    """Whether one of the paths is a directory."""
    try:
        for path in found:
            with contextlib.suppress(Gone, Unreadable):
                if stat.S_ISDIR(paths.stat(path).st_mode):
                    return True
        return False
    finally:
        paths.close()


async def scan_set(request: str) -> list[bytes]:
    """Scan, and return the paths that differ. Raises OSError when the scan ended early, CatalogDamaged."""
    process = await asyncio.create_subprocess_exec(
        *python("-m", "crnode.capture.scan"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    dirty: list[bytes] = []
    rest, ended = b"", False
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its output says why
            process.stdin.write(request.encode())
            await process.stdin.drain()
        process.stdin.close()
        while data := await process.stdout.read(1 << 20):
            paths, rest, ended = scan.decode_paths(rest + data)
            dirty += paths
        text = await process.stderr.read()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if not ended:
        lines = text.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else str(process.returncode)
        if process.returncode == scan.CATALOG_DAMAGED:
            raise CatalogDamaged(scan.catalog_of(request), last) from apsw.CorruptError(last)
        raise OSError(5, f"the scan ended early: {last}")
    return dirty
