"""The connections on which keepers speak to each other: one each way, proved by certificates."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from typing import Protocol

from crnode.cluster.document import ClusterDocument, split_address
from crnode.errors import CrnodeError
from crnode.net.tls import peer_name

PORT_ABOVE = 1  # the keeper listens one port above its node's agent
HEARD_SECONDS = 3.0  # a keeper that was not heard for so long is away
DIAL_SECONDS = 1.0
REDIAL_SECONDS = 0.3
USER_TIMEOUT_MS = 2000  # what the other side has not acknowledged for so long ends a connection (RFC 5482)
RENEWALS_MOST = 100  # to one node, that are waited for
UNSENT_MOST = 64 << 10  # what is to be sent is dropped beyond that: it would come too late to be of use


def keeper_address(agent_address: str) -> tuple[str, int]:
    """Where the keeper of a node is reached whose agent is reached there."""
    host, port = split_address(agent_address)
    return host, port + PORT_ABOVE


class Owner(Protocol):
    """What a connection needs of its keeper."""

    document: ClusterDocument
    client: ssl.SSLContext


class Link:
    """The connection on which this keeper speaks to another one. What cannot be sent is dropped: every
    question is asked again."""

    def __init__(self, keeper: Owner, name: str) -> None:
        self.keeper = keeper
        self.name = name
        self.heard = 0.0  # monotonic
        self.able = False
        self.incarnation = b""
        self.renewals: dict[int, float] = {}  # nonce of one that is not answered yet -> when it was sent
        self._writer: asyncio.StreamWriter | None = None

    @property
    def is_there(self) -> bool:
        return time.monotonic() - self.heard < HEARD_SECONDS

    def send(self, data: bytes) -> None:
        writer = self._writer
        if writer is None or writer.transport.get_write_buffer_size() > UNSENT_MOST:
            return
        writer.write(len(data).to_bytes(4, "big") + data)

    def note_renewal(self, nonce: int) -> None:
        """Remember when it was sent. Some are never answered: the oldest are forgotten."""
        self.renewals[nonce] = time.monotonic()
        if len(self.renewals) > RENEWALS_MOST:
            del self.renewals[next(iter(self.renewals))]

    async def run(self) -> None:
        """Keep the connection up until cancelled."""
        while True:
            with contextlib.suppress(OSError, TimeoutError, ssl.SSLError, CrnodeError):
                await self._once()
            self._writer = None
            await asyncio.sleep(REDIAL_SECONDS)

    async def _once(self) -> None:
        node = self.keeper.document.node(self.name)
        if node is None:
            await asyncio.sleep(1.0)
            return
        host, port = keeper_address(node.address)
        async with asyncio.timeout(DIAL_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=self.keeper.client)
        try:
            certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            if certificate is None or peer_name(self.keeper.document, certificate) != self.name:
                return
            tune(writer)
            self._writer = writer
            await reader.read()  # nothing comes on it but its end
        finally:
            writer.close()


def tune(writer: asyncio.StreamWriter) -> None:
    """A connection whose other side is gone ends soon, so that a new one is made when it is back."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


__all__ = ["Link", "keeper_address", "tune"]
