"""Joining over the network: first ask an unknown machine for its CA, then ask the proven master for a
certificate.

The secret of the token leaves this machine only on the second connection, which is verified against the CA
that the token pins and must be the master's own (its certificate names it): another node of the cluster
cannot collect it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from crnode.cluster.create import DEFAULT_LISTEN, check_places, choose_places
from crnode.cluster.document import join_address, split_address
from crnode.cluster.identity import certificate_name
from crnode.cluster.join import JoinDesk, Joined, Joiner
from crnode.errors import CrnodeError, ExitCode
from crnode.net.dial import dial
from crnode.net.hello import joining_hello, node_hello
from crnode.net.peer import Peer, PeerClosed
from crnode.net.tls import client_context, joining_context
from crproto.connection import Connected
from crproto.messages import CaReply, CaRequest, DocumentRequest, JoinReply, JoinRequest

ANSWER_S = 30.0
"""For the master to write the token book and the document to its disk."""

BELONGS_S = 5.0
"""For the master to answer a node of its own at all."""

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
    data: Path,
    token: str,
    listen: str | None,
    advertise: str | None,
    report: Callable[[dict[str, Any]], None],
) -> Joined:
    """All of `crnode join`, with an event loop of its own. CrnodeError says what is wrong and what to do.

    Where this node has joined already, the master is asked whether it still belongs to the cluster, and an
    address that was given and is another one than before is made the node's new one.
    """
    joiner = Joiner(data, token)
    # A wrong address is said before anything is written, and before the token is used for it.
    choose_places(listen or DEFAULT_LISTEN, advertise, "127.0.0.1")
    check_places(listen or DEFAULT_LISTEN, advertise)
    done = joiner.already()
    if done is None:
        with joiner.prepare():
            return asyncio.run(_join(joiner, listen or DEFAULT_LISTEN, advertise, report))
    doubt = asyncio.run(_still_belongs(joiner, done, report))
    moved = listen is not None and join_address(*split_address(listen)) != done.node.listen
    called = advertise is not None and join_address(*split_address(advertise)) != done.node.advertise
    if not moved and not called:
        return done._replace(warnings=(doubt,) if doubt else ())
    try:
        with joiner.prepare():
            return asyncio.run(_join(joiner, listen or done.node.listen, advertise, report))
    except CrnodeError as error:
        way = (
            "To change it, stop this node's agent and repeat 'crnode join' with the token that it joined"
            " with, while that is good and the master answers. Where the agent listens, but not where it is"
            f" called, can also be said with: crnode --role {done.node.role.value} --listen HOST:PORT"
        )
        raise CrnodeError(
            f"'{done.node.name}' has joined already, and its new address was not taken: it listens at"
            f" {done.node.listen} and is called at {done.node.advertise} as before. {error.what}",
            error.why,
            f"{error.hint} {way}".strip(),
            error.exit_code,
        ) from error


async def _still_belongs(joiner: Joiner, done: Joined, report: Callable[[dict[str, Any]], None]) -> str:
    """Ask the master whether the node that joined here before is still in the cluster: a new token for it can
    only have been made after it was removed. CrnodeError(REFUSED) when it is not; a warning where nobody can
    say, '' when all is well. The token stays unused.
    """
    master = done.document.master
    report({"text": f"asking {master.name} whether '{done.node.name}' still belongs to the cluster"})
    hello = node_hello(done.node, done.document, time.time_ns())
    doubt = ""
    for address in dict.fromkeys((master.address, *joiner.token.addresses)):
        try:
            peer, _ = await dial(
                address, client_context(joiner.data), hello, master.fingerprint, master.name
            )
            try:
                # A refusal may come right behind the hello: only an answer says that we are let in.
                await peer.send(DocumentRequest())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BELONGS_S):
                        if await peer.receive() is None and peer.close_reason is not None:
                            raise peer.close_reason.again()
            finally:
                await peer.close()
        except PeerClosed as error:
            if error.code == "unknown" or (error.code == "denied" and not error.retry):
                raise CrnodeError(
                    f"'{done.node.name}' did not join: the node in '{joiner.data}' was removed from the"
                    f" cluster '{done.document.name}'.",
                    "A node that was removed does not come back; the token was not used.",
                    "Give --data an empty directory, or move this one away, and use the same token.",
                    ExitCode.REFUSED,
                ) from error
            doubt = (
                f"Whether '{done.node.name}' still belongs to the cluster could not be asked:"
                f" {error.what} {error.why}"
            ).rstrip()
        else:
            return ""
    return doubt


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
