"""/active: what a load balancer asks, answered by the keeper and by nobody's memory (rule 23).

`GET /active?interval=2` is answered with 200 while this node is active and its lease lasts longer than the
balancer's next question is away (RFC 9110; one second unless it says otherwise), else with 503. Nothing may
keep the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import urllib.parse
from collections.abc import Callable

QUESTION_BYTES = 4096
QUESTION_SECONDS = 2.0
CONNECTIONS_MOST = 64


class ActiveAnswer:
    """Listens on `port` of all addresses. `left` gives the seconds for which this node is active yet."""

    def __init__(self, port: int, left: Callable[[], float], say: Callable[[str], None]) -> None:
        self.port = port
        self._left, self._say = left, say
        self._server: asyncio.Server | None = None
        self._closed = False
        self._open = 0

    async def run(self) -> None:
        """Begin to listen."""
        try:
            self._server = await asyncio.start_server(self._connected, None, self.port, limit=QUESTION_BYTES)
        except OSError as error:
            self._say(f"/active cannot be answered on port {self.port}: {error.strerror or error}.")
            return
        if self._closed:
            self._server.close()

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > CONNECTIONS_MOST:
                return
            with contextlib.suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
                async with asyncio.timeout(QUESTION_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(answer(head, self._left()))
                    await writer.drain()
        except (asyncio.LimitOverrunError, asyncio.CancelledError):
            return
        finally:
            self._open -= 1
            writer.close()


def answer(head: bytes, left_s: float) -> bytes:
    """The whole answer to a request that begins with `head`, while this node is active for `left_s` yet."""
    method, _, rest = head.decode("latin-1").partition(" ")
    target = urllib.parse.urlsplit(rest.partition(" ")[0])
    if method not in ("GET", "HEAD"):
        return _response("405 Method Not Allowed", "", method)
    if target.path != "/active":
        return _response("404 Not Found", "", method)
    try:
        interval = float(urllib.parse.parse_qs(target.query).get("interval", ["1"])[0])
    except ValueError:
        return _response("400 Bad Request", "interval is a number of seconds\n", method)
    if left_s > interval >= 0:
        return _response("200 OK", "active\n", method)
    return _response("503 Service Unavailable", "standby\n", method)


def _response(status: str, body: str, method: str) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return (head + (body if method != "HEAD" else "")).encode()


__all__ = ["ActiveAnswer", "answer"]
