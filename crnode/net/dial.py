"""Calling another node."""

from __future__ import annotations

import asyncio
import socket
import ssl

from crnode.cluster.document import fingerprint, split_address
from crnode.net.peer import CLOSE_S, HANDSHAKE_S, Admission, Peer, PeerClosed
from crproto.connection import CLIENT, Connected, Connection
from crproto.messages import Hello


async def dial(
    address: str,
    tls: ssl.SSLContext,
    hello: Hello,
    expect_fingerprint: str | None,
    expect_name: str | None = None,
    timeout_s: float = HANDSHAKE_S,
) -> tuple[Peer, Connected]:
    """Connect to `address` ('host:port'), make sure of who answers, and exchange hellos.

    `expect_fingerprint` is the SHA-256 (hex) of the certificate that the cluster document has for that node;
    None is for joining only, where `tls` (and the token) say whom to trust. PeerClosed, with what to do, when
    nobody answers in `timeout_s` seconds, somebody else answers, or the node refuses us.
    """
    if expect_fingerprint is None and hello.cluster:
        raise ValueError("a node calls other nodes by their fingerprint")

    def admit(certificate: bytes | None) -> Admission:
        connection = Connection(CLIENT, hello, authenticated=bool(hello.cluster))
        if expect_fingerprint is not None and (
            certificate is None or fingerprint(certificate) != expect_fingerprint
        ):
            return Admission(connection, None, _somebody_else(address, expect_name))
        return Admission(connection, expect_name)

    try:
        host, port = split_address(address)
    except ValueError as error:
        raise PeerClosed("lost", f"'{address}' cannot be called.", str(error)) from error
    try:
        async with asyncio.timeout(timeout_s):
            _, peer = await asyncio.get_running_loop().create_connection(
                lambda: Peer(admit),
                host,
                port,
                ssl=tls,
                server_hostname="",
                ssl_handshake_timeout=timeout_s,
                ssl_shutdown_timeout=CLOSE_S,
            )
    except (OSError, TimeoutError) as error:
        raise _unreachable(address, expect_name, error) from error
    try:
        connected = await peer.handshake(timeout_s)
    except asyncio.CancelledError:
        peer.fail("shutdown", "This node stops.", retry=True)
        raise
    if peer.closed and peer.close_reason is not None:  # a refusal that came together with the hello
        raise peer.close_reason.again()
    if expect_name is not None and connected.hello.node != expect_name:
        peer.fail("denied", f"'{expect_name}' was called, '{connected.hello.node}' answered.")
        raise _somebody_else(address, expect_name)
    return peer, connected


def _somebody_else(address: str, name: str | None) -> PeerClosed:
    whom = f"'{name}'" if name else "the node expected there"
    return PeerClosed(
        "denied",
        f"Not {whom} but another node answers at {address}.",
        "Its certificate is not the one that the cluster document names.",
        "Check the addresses with: crnode node list",
        retry=True,
    )


def _unreachable(address: str, name: str | None, error: BaseException) -> PeerClosed:
    whom = f"'{name}' at {address}" if name else address
    check = "Check the address, the network and the firewall."
    if isinstance(error, ssl.SSLCertVerificationError):
        why = "The certificate shown is not of this cluster."
        return PeerClosed("cluster", f"{whom} was not trusted.", why, "Check the address.", retry=True)
    if isinstance(error, ssl.SSLError):
        return PeerClosed(
            "lost", f"{whom} is no crnode.", "It does not speak TLS 1.3 as crnode does.", "Check the address."
        )
    if isinstance(error, socket.gaierror):
        return PeerClosed(
            "lost",
            f"{whom} was not found.",
            "No machine of that name is known.",
            "Check the name, or use the IP address.",
        )
    if isinstance(error, ConnectionRefusedError):
        why = "Nobody listens there."
        return PeerClosed(
            "lost", f"{whom} does not answer.", why, "Start the agent on that machine, or check the address."
        )
    if isinstance(error, TimeoutError):
        return PeerClosed("lost", f"{whom} does not answer.", "Nothing came back in time.", check)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return PeerClosed("lost", f"{whom} cannot be reached.", f"The system says: {text}.", check)
