"""A member of the cluster with a valid certificate that lies: every lie is refused, nothing is shown, nothing
dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from harness import Cluster, Node, wait_for

from crnode.cluster.document import parse_document
from crnode.cluster.node_file import DOCUMENT_FILE, read_node_file
from crnode.net.dial import dial
from crnode.net.hello import node_hello
from crnode.net.peer import Peer, PeerClosed
from crnode.net.tls import client_context
from crproto import delta
from crproto.content import RecipeBuilder
from crproto.entries import DIRECTORY, FILE, SYMLINK, Entry, Extra, LtHash, entry_bytes, image_digest
from crproto.ids import chunk_id, image_id
from crproto.limits import DIGEST_SCHEME
from crproto.messages import (
    Ack,
    Entries,
    ImageBegin,
    ImageCommit,
    Missing,
    Objects,
    Refused,
    SetOpen,
    SetState,
)
from crproto.shapes import Message

DATA = b"some bytes of a file" * 100


def file(path: bytes, data: bytes = DATA) -> Entry:
    return Entry(path, FILE, 0o644, "root", 0, "root", 0, 1, len(data), chunk_id(data), 0, b"")


def directory(path: bytes) -> Entry:
    return Entry(path, DIRECTORY, 0o755, "root", 0, "root", 0, 1, 0, None, 0, b"")


def link(path: bytes, target: bytes) -> Entry:
    extra = Extra(target, (), None, None, None, False).encode()
    return Entry(path, SYMLINK, 0o777, "root", 0, "root", 0, 1, 0, None, 0, extra)


class Liar:
    """Speaks with the keys of `node`, whose own agent is not running."""

    def __init__(self, node: Node, set_uuid: str) -> None:
        self.data = node.data
        self.set = bytes.fromhex(set_uuid)

    @asynccontextmanager
    async def session(self, target: str) -> AsyncIterator[Peer]:
        own = read_node_file(self.data)
        document = parse_document((self.data / DOCUMENT_FILE).read_bytes())
        node = document.node(target)
        assert node is not None
        hello = node_hello(own, document, time.time_ns())
        peer, _ = await dial(node.address, client_context(self.data), hello, node.fingerprint, target)
        try:
            await peer.send(SetOpen(self.set, "stolen", bytes.fromhex(own.incarnation), 0, 1, b""))
            yield peer
        finally:
            await peer.close()

    def header(
        self, entries: list[Entry], *, digest: bytes | None = None, name: bytes | None = None
    ) -> ImageBegin:
        state = LtHash()
        state.update(entry_bytes(e) for e in entries)
        size = sum(e.size for e in entries)
        own = bytes.fromhex(read_node_file(self.data).incarnation)
        digest = digest or image_digest(self.set, len(entries), size, state)
        at = time.time_ns()
        name = name or image_id(bytes(32), self.set, own, 0, 1, at, digest)
        return ImageBegin(
            name, bytes(32), b"", own, 0, 1, at, digest, 1, len(entries), size, DIGEST_SCHEME, False, False
        )


async def answer(peer: Peer) -> Message:
    """What the target says to an image."""
    async with asyncio.timeout(10):
        while (received := await peer.receive()) is not None:
            peer.consumed(received.cost)
            if isinstance(received.message, Ack | Refused | Missing):
                return received.message
    assert peer.close_reason is not None
    raise peer.close_reason.again()


async def push(
    peer: Peer, header: ImageBegin, entries: list[Entry], objects: dict[bytes, bytes], kind: int = 0
) -> Message:
    """Send an image as an honest source would."""
    async with asyncio.timeout(10):
        received = await peer.receive()
        if received is None:
            assert peer.close_reason is not None
            raise peer.close_reason.again()
        assert isinstance(received.message, SetState)
        header = replace(header, base=received.message.newest, skips=bool(received.message.newest))
        await peer.send(header)
        if objects:
            records = tuple(
                (name, kind, delta.RAW, len(data), len(data), b"") for name, data in objects.items()
            )
            await peer.send(Objects(records), list(objects.values()))
        await peer.send(Entries(tuple(entries), ()))
        await peer.send(ImageCommit(header.id))
    return await answer(peer)


@pytest.fixture
def liar(cluster: Cluster, tmp_path: Path) -> Liar:
    """A cluster in which node `liar` is the source of a set of `box2`, and only pretends to be."""
    cluster.init()
    cluster.join("box2")
    node = cluster.join("liar", "repli-master")
    (tmp_path / "source").mkdir()
    uuid = cluster.add_set("stolen", "liar", tmp_path / "source", [f"box2:{tmp_path}/live"], privileged=False)
    wait_for(lambda: any(s["uuid"] == uuid for s in cluster.nodes["box2"].call("set.list")["sets"]))
    wait_for(lambda: any(s["uuid"] == uuid for s in node.call("set.list")["sets"]))
    node.kill()
    return Liar(node, uuid)


def lie(liar: Liar, what: Callable[[Peer], Awaitable[Message]]) -> Message | PeerClosed:
    """The target's answer to a lie: a message, or the end of the connection."""

    async def run() -> Message | PeerClosed:
        try:
            async with liar.session("box2") as peer:
                return await what(peer)
        except PeerClosed as error:
            return error

    return asyncio.run(run())


def test_lies_are_refused_and_the_truth_still_works(cluster: Cluster, tmp_path: Path, liar: Liar) -> None:
    good = {chunk_id(DATA): DATA}
    live = tmp_path / "live"
    outside = tmp_path / "outside"
    outside.mkdir()

    def refused_by_protocol(
        entries: list[Entry], words: str, objects: dict[bytes, bytes] | None = None
    ) -> None:
        said = lie(
            liar, lambda peer: push(peer, liar.header(entries), entries, good if objects is None else objects)
        )
        assert isinstance(said, PeerClosed), said
        assert said.code == "protocol"
        assert words in str(said)

    root = directory(b"")
    refused_by_protocol([root, file(b"../escape")], "..")
    refused_by_protocol([root, file(b"/etc/escape")], "path")
    refused_by_protocol([root, file(b".crnode/tmp/x")], ".crnode")
    refused_by_protocol([root, link(b"d", bytes(outside)), file(b"d/x")], "is no directory")
    refused_by_protocol([root, file(b"orphan/x")], "is no directory")
    refused_by_protocol([root, file(b"x")], "another id", {chunk_id(DATA): b"y" * len(DATA)})

    entries = [root, file(b"x")]
    said = lie(liar, lambda peer: push(peer, liar.header(entries, digest=b"d" * 32), entries, good))
    assert isinstance(said, Refused)
    assert said.code == "digest"
    said = lie(liar, lambda peer: push(peer, liar.header(entries, name=b"n" * 32), entries, good))
    assert isinstance(said, PeerClosed)
    assert "id does not follow" in str(said)
    said = lie(
        liar,
        lambda peer: push(
            peer, liar.header([root, file(b"z", b"unseen")]), [root, file(b"z", b"unseen")], {}
        ),
    )
    assert isinstance(said, Missing)

    builder = RecipeBuilder(1)
    for _ in range(3):
        builder.add(len(DATA), chunk_id(DATA))
    content, level = builder.finish()
    recipe = dict(builder.take())[content]
    wrong = file(b"r")._replace(size=12345, content=content, level=level)

    async def wrong_size(peer: Peer) -> Message:
        return await push(peer, liar.header([root, wrong]), [root, wrong], {content: recipe}, kind=1)

    said = lie(liar, wrong_size)
    assert isinstance(said, PeerClosed)
    assert said.code == "protocol"

    bomb = zstandard.compress(bytes(64 << 20))

    async def explode(peer: Peer) -> Message:
        await peer.receive()
        await peer.send(Objects(((b"b" * 32, 0, delta.ZSTD, 4096, len(bomb), b""),)), [bomb])
        return await answer(peer)

    said = lie(liar, explode)
    assert isinstance(said, PeerClosed)
    assert said.code == "protocol"

    assert not any(live.iterdir())
    assert list(outside.iterdir()) == []
    box2 = cluster.nodes["box2"]
    assert box2.process is not None
    assert box2.process.poll() is None
    assert "Traceback" not in box2.log.read_text()
    assert any("broke the protocol" in text for text in box2.events())

    # the truth, from the same node, works at once
    (tmp_path / "source" / "honest").write_bytes(DATA)
    cluster.nodes["liar"].start()
    out = cluster.sync("stolen", node="liar")
    assert {t["digest"] for t in out["targets"]} == {out["digest"]}
    assert (live / "honest").read_bytes() == DATA


def test_a_node_that_is_not_the_source_may_not_push_or_read(
    cluster: Cluster, tmp_path: Path, liar: Liar
) -> None:
    cluster.join("other")
    stranger = Liar(cluster.nodes["other"], liar.set.hex())
    entries = [directory(b"")]
    said = lie(stranger, lambda peer: push(peer, stranger.header(entries), entries, {}))
    assert isinstance(said, PeerClosed)
    assert said.code == "denied"
    assert "may not push" in str(said)
