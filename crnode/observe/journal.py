"""The journal: decisions, refusals and incidents as sentences, one JSON object a line, kept over restarts."""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

KEPT = 1000  # events kept in memory for `crnode events`
ROTATE_BYTES = 8 << 20
REPEAT_NS = 60 * 10**9  # the same sentence is not written again within this time


class Journal:
    """Append-only and bounded: a file that grows past 8 MiB is renamed to `.1`, replacing the one before."""

    def __init__(self, path: Path, node: str, now_ns: Callable[[], int]) -> None:
        self.path = path
        self.node = node
        self._now_ns = now_ns
        self._events: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._last: dict[str, int] = {}
        self._followers: set[asyncio.Queue[dict[str, Any]]] = set()
        self._load()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _load(self) -> None:
        try:
            lines = self.path.read_bytes().splitlines()[-KEPT:]
        except FileNotFoundError:
            return
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a line that a crash or a full disk cut short
            if isinstance(event, dict):
                self._events.append(event)

    def add(self, kind: str, text: str, set_name: str | None = None) -> None:
        """Write one sentence. A journal that cannot be written never stops the node; memory still has it."""
        now = self._now_ns()
        # (A clock that was set back silences nothing.)
        if 0 <= now - self._last.get(text, -REPEAT_NS) < REPEAT_NS:
            return
        if len(self._last) > 2000:
            self._last.clear()
        self._last[text] = now
        event = {"time_ns": now, "kind": kind, "text": text, "set": set_name, "node": self.node}
        self._events.append(event)
        try:
            os.write(self._fd, json.dumps(event, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            if os.fstat(self._fd).st_size > ROTATE_BYTES:
                self._rotate()
        except OSError:
            event["kept"] = "in memory only"
        for queue in self._followers:
            queue.put_nowait(event)

    def _rotate(self) -> None:
        os.rename(self.path, self.path.with_name(self.path.name + ".1"))
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.close(self._fd)
        self._fd = fd

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """The newest `limit` events, oldest first."""
        return list(self._events)[-limit:] if limit > 0 else []

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Every event from now on."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._followers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._followers.discard(queue)

    def close(self) -> None:
        os.close(self._fd)
