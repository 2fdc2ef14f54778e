"""The document first, then the sets: what a node asks the master before it opens anything (rule 88)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from crnode.cluster.document import ClusterDocument, Node
from crnode.net.peer import Peer, PeerClosed
from crproto.messages import Document, DocumentRequest

ASK_SECONDS = 2.0  # a master that is down costs a start so much, one that answers nothing


async def newer_document(
    mine: ClusterDocument, dial: Callable[[Node], Awaitable[Peer]], seconds: float = ASK_SECONDS
) -> bytes | None:
    """The master's document if it has a newer one than ours, None if not or if it does not answer in time:
    then we go on with ours, and targets refuse what is older than theirs."""
    try:
        async with asyncio.timeout(seconds):
            peer = await dial(mine.master)
            try:
                hello = peer.hello
                if hello is None or tuple(hello.document) <= tuple(mine.version):
                    return None
                await peer.send(DocumentRequest())
                while (received := await peer.receive()) is not None:
                    peer.consumed(received.cost)
                    if isinstance(received.message, Document):
                        return received.message.body
            finally:
                await peer.close()
    except (PeerClosed, TimeoutError):
        return None
    return None
