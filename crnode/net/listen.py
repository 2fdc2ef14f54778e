"""The listening socket: who may come in, and a task for each who did."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable

from crnode.cluster.document import ClusterDocument, join_address
from crnode.errors import CrnodeError, ExitCode
from crnode.net.peer import CLOSE_S, HANDSHAKE_S, Admission, Peer, PeerClosed
from crnode.net.tls import PeerRefused, peer_name
from crproto.connection import SERVER, Connected, Connection
from crproto.messages import Hello

OnPeer = Callable[[Peer, Connected], Awaitable[None]]

MAX_STRANGERS = 16
"""Machines without a certificate at one time: joining takes a second and happens a few times in a cluster's
life.
"""
STRANGER_S = 60.0
"""How long a machine without a certificate may stay."""

log = logging.getLogger(__name__)


class Listener:
    """A bound port. Close it to stop; the tasks of its peers end with it."""

    def __init__(
        self, make_hello: Callable[[], Hello], on_peer: OnPeer, document: Callable[[], ClusterDocument]
    ) -> None:
        self._make_hello = make_hello
        self._on_peer = on_peer
        self._document = document
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers = 0
        self.port = 0

    async def _start(self, host: str, port: int, tls: ssl.SSLContext) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Peer(self._admit, self._made),
            None if host in ("", "*") else host,
            port,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_S,
            ssl_shutdown_timeout=CLOSE_S,
            backlog=128,
            reuse_address=True,
        )
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Take nobody in any more, tell all peers that we stop, and wait until they are gone."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _admit(self, certificate: bytes | None) -> Admission:
        hello = self._make_hello()
        if certificate is None:
            stranger = Connection(SERVER, hello, authenticated=False)
            if self._strangers >= MAX_STRANGERS:
                text = "Too many machines try to join at the same moment."
                return Admission(stranger, None, PeerClosed("busy", text, "", "Try again in a minute."))
            return Admission(stranger, None)
        try:
            name = peer_name(self._document(), certificate)
        except PeerRefused as error:
            log.warning("%s", error)
            refusal = PeerClosed(error.code, error.what, error.why, error.hint, retry=error.code == "unknown")
            return Admission(Connection(SERVER, hello, authenticated=False), None, refusal)
        return Admission(Connection(SERVER, hello, authenticated=True), name)

    def _made(self, peer: Peer) -> None:
        if peer.closed:
            return
        task = asyncio.get_running_loop().create_task(self._serve(peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, peer: Peer) -> None:
        stranger = peer.name is None
        self._strangers += stranger
        try:
            connected = await peer.handshake()
            if connected.hello.node != (peer.name or ""):
                said = connected.hello.node or "nobody"
                peer.fail(
                    "denied",
                    f"The certificate shown belongs to '{peer.name}', but the peer says it is '{said}'.",
                )
                return
            async with asyncio.timeout(STRANGER_S if stranger else None):
                await self._on_peer(peer, connected)
        except PeerClosed as error:
            log.info("%s", error)
        except CrnodeError as error:
            log.info("%s: %s", peer, error)  # the peer is told, and tells its own people
            peer.fail("denied" if error.exit_code is ExitCode.REFUSED else "internal", str(error), retry=True)
        except TimeoutError:
            peer.fail("limit", "Joining took too long.", retry=True)
        except asyncio.CancelledError:
            peer.fail("shutdown", "This node stops.", retry=True)
            raise
        except Exception as error:
            log.exception("a session with %s failed", peer)
            peer.fail("internal", f"A defect: {type(error).__name__}.", retry=True)
        finally:
            self._strangers -= stranger
            await peer.close()


async def listen(
    host: str,
    port: int,
    tls: ssl.SSLContext,
    make_hello: Callable[[], Hello],
    on_peer: OnPeer,
    document: Callable[[], ClusterDocument],
) -> Listener:
    """Listen at host:port (0: any free port, see Listener.port) and run `on_peer` for everyone who may come
    in.

    `peer.name` is the node of the document in force whose certificate was shown, or None for a machine that
    wants to join. The connection is closed when `on_peer` returns. CrnodeError when the address cannot be
    used.
    """
    listener = Listener(make_hello, on_peer, document)
    try:
        await listener._start(host, port, tls)
    except OSError as error:
        place = join_address(host, port)
        if isinstance(error, socket.gaierror):
            why = "No machine of that name is known here."
            hint = "Give an IP address of this machine with --listen, or 0.0.0.0 for all of them."
        elif error.errno == errno.EADDRINUSE:
            why, hint = "Another program listens there.", "Stop it, or choose another port with --listen."
        elif error.errno == errno.EACCES:
            why, hint = "Ports below 1024 are for root alone.", "Choose another port with --listen."
        elif error.errno == errno.EADDRNOTAVAIL:
            why, hint = "This machine does not have that address.", "Choose one of its own with --listen."
        else:
            why, hint = (
                f"The system says: {error.strerror or error}.",
                "Choose another address with --listen.",
            )
        raise CrnodeError(f"crnode cannot listen at {place}.", why, hint) from error
    return listener
