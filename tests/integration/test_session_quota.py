"""A peer that stages more than it may: refused with a reason, the disk is not filled, and what it left is
garbage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import Cluster, wait_for
from test_lying_peer import DATA, Liar, answer, file, lie, push

from crnode.net.peer import Peer, PeerClosed
from crproto import delta
from crproto.ids import chunk_id
from crproto.messages import Ack, Entries, ImageCommit, Objects, Refused, SetState
from crproto.shapes import Message


def test_a_session_stages_a_quarter_of_the_free_space_at_most(
    cluster: Cluster, tmp_path: Path, small_disk: Path
) -> None:
    cluster.init()
    box2 = cluster.join("box2", data=small_disk / "data")
    node = cluster.join("liar", "repli-master")
    (tmp_path / "source").mkdir()
    uuid = cluster.add_set("stolen", "liar", tmp_path / "source", [f"box2:{tmp_path}/live"], privileged=False)
    wait_for(lambda: all(n.call("set.list")["sets"] for n in (box2, node)))
    node.kill()
    liar = Liar(node, uuid)
    packs = box2.data / "store" / "packs"
    entry = file(b"a")
    free = os.statvfs(small_disk)

    async def greedy(peer: Peer) -> Message:
        received = await peer.receive()
        assert received is not None and isinstance(received.message, SetState)
        header = liar.header([entry])  # it says that the set has two kilobytes
        await peer.send(header)
        for _ in range(60):
            data = os.urandom(1 << 20)
            record = (chunk_id(data), 0, delta.RAW, len(data), len(data), b"")
            await peer.send(Objects((record,)), [data])
        await peer.send(Entries((entry,), ()))
        said = await answer(peer)  # before it says that this is all
        await peer.send(ImageCommit(header.id))
        return said

    said = lie(liar, greedy)
    assert isinstance(said, Refused), said
    assert said.code == "full"
    assert "granted" in said.text
    staged = sum(path.stat().st_size for path in packs.iterdir())
    assert 1 << 20 < staged <= free.f_bavail * free.f_frsize // 4
    report = box2.call("gc", {"plan": False}, 120)
    assert report["removed_bytes"] >= staged - (1 << 20)

    async def modest(peer: Peer) -> Message:
        return await push(peer, liar.header([entry]), [entry], {chunk_id(DATA): DATA})

    assert isinstance(lie(liar, modest), Ack)


def test_what_goes_ahead_of_an_image_is_bounded_too(
    cluster: Cluster, tmp_path: Path, small_disk: Path
) -> None:
    """Objects of no image: dropped where they are too many, and the session goes on."""
    cluster.init()
    box2 = cluster.join("box2", data=small_disk / "data")
    node = cluster.join("liar", "repli-master")
    (tmp_path / "source").mkdir()
    uuid = cluster.add_set("stolen", "liar", tmp_path / "source", [f"box2:{tmp_path}/live"], privileged=False)
    wait_for(lambda: all(n.call("set.list")["sets"] for n in (box2, node)))
    node.kill()
    liar = Liar(node, uuid)
    free = os.statvfs(small_disk)
    staged: list[int] = []

    header = liar.header([file(b"a")])

    async def image(peer: Peer) -> Message:
        await peer.send(header)
        await peer.send(Objects(((chunk_id(DATA), 0, delta.RAW, len(DATA), len(DATA), b""),)), [DATA])
        await peer.send(Entries((file(b"a"),), ()))
        await peer.send(ImageCommit(header.id))
        return await answer(peer)

    async def ahead(peer: Peer) -> Message:
        received = await peer.receive()
        assert received is not None and isinstance(received.message, SetState)
        for _ in range(60):
            data = os.urandom(1 << 20)
            await peer.send(Objects(((chunk_id(data), 0, delta.RAW, len(data), len(data), b""),)), [data])
        said = await image(peer)
        staged.append(sum(path.stat().st_size for path in (box2.data / "store" / "packs").iterdir()))
        return said

    said = lie(liar, ahead)
    if isinstance(said, PeerClosed) and "newer connection" in str(said):
        said = lie(liar, ahead)  # that of the process which was killed had been on its way
    assert isinstance(said, Ack), said
    assert 1 << 20 < staged[0] <= free.f_bavail * free.f_frsize // 4


def test_a_file_is_written_anew_that_is_larger_than_a_quarter_of_the_free_space(
    cluster: Cluster, tmp_path: Path, small_disk: Path
) -> None:
    cluster.init()
    box2 = cluster.join("box2", data=small_disk / "data")
    source = tmp_path / "source"
    source.mkdir()
    dump, copy = source / "dump", tmp_path / "live" / "dump"
    dump.write_bytes(os.urandom(24 << 20))
    cluster.add_set("dumps", "shop1", source, [f"box2:{tmp_path}/live"], privileged=False)
    cluster.sync("dumps")
    free = os.statvfs(small_disk)
    assert (free.f_bavail * free.f_frsize) // 4 < 20 << 20
    dump.write_bytes(os.urandom(24 << 20))  # the set does not grow by it
    wait_for(lambda: copy.read_bytes() == dump.read_bytes(), 30)
    assert not [text for text in box2.events() if "was not taken" in text]
    dump.write_bytes(os.urandom(60 << 20))  # there is no room for this one
    wait_for(lambda: [text for text in box2.events() if "was not taken" in text], 30)
    dump.write_bytes(b"a small one")  # for which the other one has left some
    wait_for(lambda: copy.read_bytes() == dump.read_bytes(), 30)


pytestmark = pytest.mark.timeout(120)
