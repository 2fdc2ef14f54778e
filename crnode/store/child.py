"""Child processes of the store: what would keep one thread of Python busy for longer than a moment runs in
them.

A child reads one JSON request, a line, from its input (an argument may not be longer than 128 KiB). It
answers in frames on its output: lengths of the two parts, a JSON header, and bytes; the agent replies in JSON
lines. A child whose agent is gone ends by itself, at its next frame or line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import sys
from typing import Any, NamedTuple, Self

from crnode.platform.python import python

_LENGTHS = struct.Struct(">II")
_NICE = 10  # of children: anything that serves somebody goes first


class ChildFailed(Exception):
    """The child ended early; the text is the last thing it said."""


class Frame(NamedTuple):
    """What a child sent."""

    header: dict[str, Any]
    blob: bytes


class Child:
    """The agent's end. Use it as an async context manager; leaving it ends the process."""

    def __init__(self, module: str, request: dict[str, Any]) -> None:
        self._module = module
        self._request = request
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *python("-m", self._module),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # whoever reads is told why
                self._process.stdin.write(json.dumps(self._request).encode() + b"\n")
                await self._process.stdin.drain()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        assert process is not None and process.stdin is not None
        process.stdin.close()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        with contextlib.suppress(OSError):
            await process.communicate()

    async def read(self) -> Frame:
        """The next frame. Raises ChildFailed when there is none."""
        assert self._process is not None and self._process.stdout is not None
        out = self._process.stdout
        try:
            first, second = _LENGTHS.unpack(await out.readexactly(_LENGTHS.size))
            header = json.loads(await out.readexactly(first))
            return Frame(header, await out.readexactly(second) if second else b"")
        except asyncio.IncompleteReadError:
            raise await self._failed() from None

    async def line(self) -> dict[str, Any] | None:
        """The next JSON line of a child that writes lines; None at the end of a child that ended well."""
        assert self._process is not None and self._process.stdout is not None
        text = await self._process.stdout.readline()
        if text.endswith(b"\n"):
            found: dict[str, Any] = json.loads(text)
            return found
        if await self._process.wait() == 0:
            return None
        raise await self._failed()

    async def answer(self, body: dict[str, Any]) -> None:
        """Send the child a line."""
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(body).encode() + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise await self._failed() from None

    async def _failed(self) -> ChildFailed:
        assert self._process is not None and self._process.stderr is not None
        text = (await self._process.stderr.read()).decode(errors="replace").strip().splitlines()
        code = await self._process.wait()
        return ChildFailed(f"{self._module} ended early: {text[-1] if text else f'exit code {code}'}")


# -- the child's end


def request() -> dict[str, Any]:
    """What this child was asked, with its priority lowered."""
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    return receive()


def send(header: dict[str, Any], blob: bytes | bytearray = b"") -> None:
    """Send a frame to the agent."""
    text = json.dumps(header).encode()
    out = sys.stdout.buffer
    out.write(_LENGTHS.pack(len(text), len(blob)) + text)
    out.write(blob)
    out.flush()


def say(**body: Any) -> None:
    """Send the agent a line (a child writes either lines or frames)."""
    print(json.dumps(body), flush=True)  # noqa: T201 - its output is the answer


def receive() -> dict[str, Any]:
    """Wait for the agent's next line; ends the process when the agent is gone."""
    text = sys.stdin.buffer.readline()
    if not text.endswith(b"\n"):
        raise SystemExit(0)
    found: dict[str, Any] = json.loads(text)
    return found
