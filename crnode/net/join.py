"""Joining over the network: first ask an unknown machine for its CA, then ask the proven master for a
certificate.

The secret of the token leaves this machine only on the second connection, which is verified against the CA
that the token pins and must be the master's own (its certificate names it): another node of the cluster
cannot collect it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from crnode.cluster.create import choose_places
from crnode.cluster.identity import certificate_name
from crnode.cluster.join import JoinDesk, Joined, Joiner
from crnode.errors import CrnodeError, ExitCode
from crnode.net.dial import dial
from crnode.net.hello import joining_hello
from crnode.net.peer import Peer, PeerClosed
from crnode.net.tls import joining_context
from crproto.connection import Connected
from crproto.messages import CaReply, CaRequest, JoinReply, JoinRequest

ANSWER_S = 30.0
"""For the master to write the token book and the document to its disk."""

log = logging.getLogger(__name__)
Reply = TypeVar("Reply", CaReply, JoinReply)


async def serve_joiner(peer: Peer, desk: JoinDesk) -> None:
    """The master's side of one connection without a certificate, until it is closed."""
    async for received in peer.events():
        message = received.message
        if not isinstance(message, CaRequest | JoinRequest):
            peer.fail("protocol", "Without a certificate a machine can only join.")
            return
        try:
            reply = await desk.answer(message)
        except CrnodeError as error:
            log.warning("a machine at %s was not admitted: %s", peer.remote_address, error)
            peer.fail("denied", str(error))
            return
        await peer.send(reply)


def join_cluster(
    data: Path, token: str, listen: str, advertise: str | None, report: Callable[[dict[str, Any]], None]
) -> Joined:
    """All of `crnode join`, with an event loop of its own. CrnodeError says what is wrong and what to do."""
    joiner = Joiner(data, token)
    choose_places(listen, advertise, "127.0.0.1")  # a wrong address is said before anything is written
    if (done := joiner.already()) is not None:
        return done
    with joiner.prepare():
        return asyncio.run(_join(joiner, listen, advertise, report))


async def _join(
    joiner: Joiner, listen: str, advertise: str | None, report: Callable[[dict[str, Any]], None]
) -> Joined:
    failures: list[CrnodeError] = []
    for address in joiner.token.addresses:
        try:
            return await join_at(joiner, address, listen, advertise, report)
        except PeerClosed as error:
            if error.exit_code is not ExitCode.UNREACHABLE:
                raise
            failures.append(error)
    raise failures[0]


async def join_at(
    joiner: Joiner, address: str, listen: str, advertise: str | None, report: Callable[[dict[str, Any]], None]
) -> Joined:
    """Join by way of the master at `address`."""
    report({"text": f"asking {address} who it is"})
    peer, _ = await _call(address, joining_context(None))
    try:
        ca = joiner.check_ca(await _ask(peer, CaRequest(), CaReply))
    finally:
        await peer.close()
    report({"text": f"asking {address} for a certificate"})
    peer, connected = await _call(address, joining_context(ca))
    try:
        master = joiner.token.master
        if connected.hello.node != master or certificate_name(peer.certificate or b"") != master:
            raise CrnodeError(
                f"Not the master '{master}' answers at {address}.",
                f"It is '{connected.hello.node[:63]}' there.",
                "Check the address of the master, and make a new token if the master changed.",
                ExitCode.REFUSED,
            )
        own_clock, master_clock = time.time_ns(), connected.hello.time_ns
        places = choose_places(listen, advertise, peer.local_host)
        reply = await _ask(peer, joiner.request(places.advertise), JoinReply)
    finally:
        await peer.close()
    report({"text": "writing the node's files"})
    return joiner.finish(ca, reply, places, master_clock, own_clock)


async def _call(address: str, tls: ssl.SSLContext) -> tuple[Peer, Connected]:
    return await dial(address, tls, joining_hello(time.time_ns()), None)


async def _ask(peer: Peer, question: CaRequest | JoinRequest, kind: type[Reply]) -> Reply:
    await peer.send(question)
    try:
        async with asyncio.timeout(ANSWER_S):
            received = await peer.receive()
    except TimeoutError:
        raise PeerClosed(
            "lost", "The master does not answer.", f"It was silent for {ANSWER_S:.0f} s."
        ) from None
    if received is None:
        assert peer.close_reason is not None
        raise peer.close_reason.again()
    if not isinstance(received.message, kind):
        raise CrnodeError(
            "The master's answer was not understood.", "", "Install the same version on both machines."
        )
    return received.message
