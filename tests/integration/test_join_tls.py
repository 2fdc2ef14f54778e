"""Joining and calling over real sockets and real TLS: who comes in, who does not, and what each is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop
from harness import free_port

from crnode.cluster.create import choose_places, create_cluster
from crnode.cluster.document import ClusterDocument, Node, fingerprint, parse_document
from crnode.cluster.identity import CertificateAuthority, certificate_pem, create_key_and_csr, valid_until_ns
from crnode.cluster.join import JoinDesk, Joined, Joiner, clock_warning
from crnode.cluster.membership import Change, remove_node
from crnode.cluster.node_file import DataLock, NodeFile, read_node_file
from crnode.cluster.tokens import TokenError, format_token, parse_token
from crnode.errors import CrnodeError, ExitCode
from crnode.net.dial import dial
from crnode.net.hello import joining_hello, node_hello
from crnode.net.join import join_at, join_cluster, serve_joiner
from crnode.net.listen import Listener, listen
from crnode.net.peer import Peer, PeerClosed
from crnode.net.tls import client_context, joining_context, server_context
from crproto.connection import Connected
from crproto.frames import header
from crproto.messages import (
    Call,
    CaReply,
    CaRequest,
    Document,
    DocumentRequest,
    JoinRequest,
    Objects,
    Result,
    SetOpen,
    SetState,
    encode,
)

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
_loop = "asyncio"


@pytest.fixture(autouse=True, params=list(LOOPS))
def event_loop_kind(request: pytest.FixtureRequest) -> None:
    """Each test runs once on either event loop."""
    global _loop
    _loop = request.param


def quiet(body: dict[str, Any]) -> None:
    """Progress that nobody looks at."""


class Master:
    """A master with a real port, a real CA and a real token book, in this process."""

    def __init__(self, data: Path, name: str = "shop1") -> None:
        self.data = data
        self.port = free_port()  # the document wants a real one before the listener has it
        places = choose_places(f"127.0.0.1:{self.port}", None)
        self.document = create_cluster(data, name, "shop", places, time.time_ns())
        self.node = read_node_file(data)
        self.clock_ns = 0  # how far the master's clock is ahead
        self.commits = 0
        self.sessions: list[str] = []
        self.fail_commit = False
        self.desk = JoinDesk(data, lambda: self.document, self._change, self._now)
        self.listener: Listener

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _now(self) -> int:
        return time.time_ns() + self.clock_ns

    async def _change(self, make: Change) -> ClusterDocument:
        document = make(self.document)
        if document is not self.document:
            if self.fail_commit:
                raise CrnodeError("The disk is full.", "", "", ExitCode.FULL)
            self.commits += 1
            self.document = document
        return document

    async def _on_peer(self, peer: Peer, connected: Connected) -> None:
        if peer.name is None:
            await serve_joiner(peer, self.desk)
            return
        self.sessions.append(peer.name)
        async for received in peer.events():
            message = received.message
            if isinstance(message, Call):
                await peer.send(Result(message.number, True, message.body))
            elif isinstance(message, SetOpen):
                await peer.send(SetState(b"", 0, b"", b"", b"", b"", b"", ""))
            elif isinstance(message, DocumentRequest):
                await peer.send(Document(self.document.to_bytes()))
            peer.consumed(received.cost)

    async def start(self) -> None:
        tls = server_context(self.data)
        self.listener = await listen(
            "127.0.0.1",
            self.port,
            tls,
            lambda: node_hello(self.node, self.document, self._now()),
            self._on_peer,
            lambda: self.document,
        )

    def token(self, name: str = "box2", **changed: Any) -> str:
        text: str = self.desk.invite(name, "replica", 3600)["token"]
        return format_token(parse_token(text)._replace(**changed)) if changed else text


@contextlib.asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[Master]:
    master = Master(tmp_path / "master")
    await master.start()
    try:
        yield master
    finally:
        await master.listener.close()


async def join(data: Path, token: str, **more: Any) -> Joined:
    """`crnode join` as the command does it, with its own event loop, in a thread."""
    place = more.get("listen", "127.0.0.1:7999")
    return await asyncio.to_thread(join_cluster, data, token, place, more.get("advertise"), quiet)


async def call(master: Master, data: Path, mark: str | None = None) -> tuple[Peer, Connected]:
    node = read_node_file(data)
    hello = node_hello(node, parse_document((data / "cluster.json").read_bytes()), time.time_ns())
    return await dial(
        master.address, client_context(data), hello, mark or master.document.master.fingerprint, "shop1"
    )


def case(work: Callable[[Master, Path], Awaitable[None]], tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as master, asyncio.timeout(30):
            await work(master, tmp_path)

    # The agent runs on uvloop, `crnode join` on asyncio's own loop: their TLS differs, so both are tried.
    with asyncio.Runner(loop_factory=LOOPS[_loop]) as runner:
        runner.run(main())


async def refused(code: type[CrnodeError], work: Awaitable[Any], said: str) -> CrnodeError:
    with pytest.raises(code) as caught:
        await work
    assert said in str(caught.value), str(caught.value)
    return caught.value


def test_a_machine_joins_and_then_comes_back_as_a_node(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        data = tmp / "box2"
        joined = await join(data, master.token())
        assert joined.node.name == "box2" and joined.document == master.document and not joined.already
        assert master.document.nodes[1].fingerprint == fingerprint(
            ssl.PEM_cert_to_DER_cert((data / "node.pem").read_text())
        )
        assert not (data / "ca" / "ca.key").exists()
        assert data.stat().st_mode & 0o777 == 0o700 and (data / "node.key").stat().st_mode & 0o777 == 0o600
        peer, connected = await call(master, data)
        assert connected.hello.node == "shop1" and peer.name == "shop1"
        for number in range(3):
            await peer.send(Call(number, "echo", b'{"a":1}'))
            received = await peer.receive()
            assert received is not None and received.message == Result(number, True, b'{"a":1}')
        assert peer.bytes_in > 100 and peer.bytes_out > 100
        await peer.close("enough")
        assert master.sessions == ["box2"]

    case(work, tmp_path)


def test_a_used_token_is_refused_and_the_second_machine_is_no_node(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        token = master.token()
        await join(tmp / "box2", token)
        error = await refused(PeerClosed, join(tmp / "thief", token), "used already")
        assert error.exit_code is ExitCode.REFUSED
        assert not (tmp / "thief" / "node.json").exists()
        assert len(master.document.nodes) == 2

    case(work, tmp_path)


def test_an_expired_token_is_refused_by_the_masters_clock(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        token = master.token()
        master.clock_ns = 3601 * 10**9
        await refused(PeerClosed, join(tmp / "box2", token), "expired")
        assert len(master.document.nodes) == 1

    case(work, tmp_path)


def test_a_forged_token_is_refused(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        await refused(PeerClosed, join(tmp / "box2", master.token(secret=b"x" * 16)), "never made it")
        assert len(master.document.nodes) == 1 and master.commits == 0

    case(work, tmp_path)


def test_a_token_of_another_cluster_never_sends_its_secret(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        other = Master(tmp / "other")
        token = format_token(parse_token(other.token())._replace(addresses=(master.address,)))
        asked: list[str] = []
        answer = master.desk.answer

        async def listening(message: CaRequest | JoinRequest) -> Any:
            asked.append(type(message).__name__)
            return await answer(message)

        monkeypatched: Any = master.desk
        monkeypatched.answer = listening
        error = await refused(TokenError, join(tmp / "box2", token), "does not belong to the cluster")
        assert isinstance(error, TokenError) and error.code == "token-other-cluster"
        assert asked == ["CaRequest"]

    case(work, tmp_path)


def test_another_node_of_the_cluster_cannot_collect_the_secret(tmp_path: Path) -> None:
    """A replica that stands at the master's address shows a certificate of the right CA, but not the
    master's.
    """

    async def work(master: Master, tmp: Path) -> None:
        await join(tmp / "box2", master.token())
        node = read_node_file(tmp / "box2")
        secrets: list[bytes] = []

        async def collecting(peer: Peer, connected: Connected) -> None:
            async for received in peer.events():
                if isinstance(received.message, CaRequest):
                    await peer.send(await master.desk.answer(received.message))
                elif isinstance(received.message, JoinRequest):
                    secrets.append(received.message.secret)

        for pose_as in ("box2", "shop1"):
            thief = await listen(
                "127.0.0.1",
                0,
                server_context(tmp / "box2"),
                partial(
                    node_hello, node.model_copy(update={"name": pose_as}), master.document, time.time_ns()
                ),
                collecting,
                lambda: master.document,
            )
            token = master.token(f"box-{pose_as}", addresses=(f"127.0.0.1:{thief.port}",))
            await refused(CrnodeError, join(tmp / f"new-{pose_as}", token), "Not the master 'shop1' answers")
            await thief.close()
        assert secrets == []

    case(work, tmp_path)


def test_a_joiner_that_crashed_tries_again_with_the_same_key(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        token, data = master.token(), tmp / "box2"
        # Crash 1: the key is on the disk, nothing was asked.
        joiner = Joiner(data, token)
        joiner.prepare().release()
        key = (data / "node.key").read_bytes()
        # Crash 2: the master admitted us, and the answer was lost.
        with Joiner(data, token).prepare() as _:
            again = Joiner(data, token)
            again._key = key
            await master.desk.answer(again.request("127.0.0.1:7998"))
        assert len(master.document.nodes) == 2 and not (data / "node.json").exists()
        mark, version = master.document.nodes[1].fingerprint, master.document.version
        joined = await join(data, token)
        assert (data / "node.key").read_bytes() == key
        assert master.document.nodes[1].fingerprint == mark
        assert master.document.nodes[1].address == "127.0.0.1:7999"  # where it said it is the last time
        assert master.document.version.version == version.version + 1
        # Crash 3: everything was written, and nobody read the success.
        assert not joined.already
        assert (await join(data, token)).already
        peer, _ = await call(master, data)
        await peer.close()

    case(work, tmp_path)


def test_a_crash_while_the_files_are_written_leaves_no_node(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        token = master.token()
        whole = tmp / "whole"
        await join(whole, token)
        files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
        for missing in files:
            if missing.name in ("node.json", "lock", "node.key"):
                continue
            data = tmp / f"without-{missing.name}"
            (data / "ca").mkdir(parents=True)
            for name in files:
                if name not in (missing, Path("node.json")):
                    (data / name).write_bytes((whole / name).read_bytes())
            with pytest.raises(CrnodeError, match="not the data directory"):
                read_node_file(data)
            joined = await join(data, token)
            assert joined.node.name == "box2"
            peer, _ = await call(master, data)
            await peer.close()

    case(work, tmp_path)


def test_the_master_that_cannot_store_the_document_admits_nobody_until_it_can(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        token = master.token()
        master.fail_commit = True
        await refused(PeerClosed, join(tmp / "box2", token), "disk is full")
        assert len(master.document.nodes) == 1
        master.fail_commit = False
        assert (await join(tmp / "box2", token)).node.name == "box2"

    case(work, tmp_path)


def test_two_machines_joining_at_once_both_get_in(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        names = [f"box{number}" for number in range(2, 6)]
        tokens = {name: master.token(name) for name in names}

        async def one(name: str, port: int) -> Joined:
            places = (f"127.0.0.1:{port}", None)
            return await asyncio.to_thread(join_cluster, tmp / name, tokens[name], *places, quiet)

        await asyncio.gather(*(one(name, 7900 + place) for place, name in enumerate(names)))
        assert sorted(node.name for node in master.document.nodes) == [*names, "shop1"]

    case(work, tmp_path)


def test_a_data_directory_of_another_node_is_not_joined_again(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        await join(tmp / "box2", master.token())
        await refused(
            CrnodeError, join(tmp / "box2", master.token("box3")), "belongs to the node 'box2' already"
        )

    case(work, tmp_path)


def test_clocks_that_differ_are_a_warning(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        master.clock_ns = 60 * 10**9
        joined = await join(tmp / "box2", master.token(), advertise="10.0.0.2:7400")
        assert len(joined.warnings) == 1 and "60 s behind" in joined.warnings[0]

    case(work, tmp_path)
    assert clock_warning(0, 2 * 10**9) == ""
    assert "ahead" in clock_warning(0, 3 * 10**9)


def test_nobody_there(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        token = master.token()
        await master.listener.close()
        error = await refused(PeerClosed, join(tmp / "box2", token), "Nobody listens there")
        assert error.exit_code is ExitCode.UNREACHABLE and error.hint
        await master.start()
        assert (await join(tmp / "box2", token)).node.name == "box2"

    case(work, tmp_path)


def test_a_removed_node_is_turned_away_and_told_so(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        await join(tmp / "box2", master.token())
        master.document = remove_node(master.document, "box2", time.time_ns())
        error = await refused(PeerClosed, call(master, tmp / "box2"), "was removed from the cluster")
        assert error.exit_code is ExitCode.REFUSED and master.sessions == []

    case(work, tmp_path)


def test_a_removed_node_does_not_join_again_where_it_was(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        first = master.token()
        await join(tmp / "box2", first)
        master.document = remove_node(master.document, "box2", time.time_ns())
        before = (tmp / "box2" / "node.json").read_bytes()
        again = master.token()
        for token in (again, first):
            error = await refused(CrnodeError, join(tmp / "box2", token), "was removed from the cluster")
            assert error.exit_code is ExitCode.REFUSED and "empty directory" in error.hint
        assert (tmp / "box2" / "node.json").read_bytes() == before
        assert not (await join(tmp / "empty", again)).already  # the token was not used
        assert len(master.document.nodes) == 2

    case(work, tmp_path)


def test_a_join_that_is_repeated_while_the_master_is_away_says_what_it_does_not_know(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        token = master.token()
        await join(tmp / "box2", token)
        assert (await join(tmp / "box2", token)).warnings == ()
        await master.listener.close()
        joined = await join(tmp / "box2", token)
        assert joined.already and "could not be asked" in joined.warnings[0]
        error = await refused(
            CrnodeError, join(tmp / "box2", token, listen="127.0.0.1:7998"), "address was not taken"
        )
        assert error.exit_code is ExitCode.UNREACHABLE and "127.0.0.1:7999" in error.what
        assert read_node_file(tmp / "box2").listen == "127.0.0.1:7999"

    case(work, tmp_path)


def test_an_address_that_cannot_be_is_refused_before_the_token_is_used(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        token, data = master.token(), tmp / "box2"
        for more, said in (
            ({"listen": "nonsense.invalid"}, "No machine called 'nonsense.invalid' is known here"),
            ({"listen": "203.0.113.7:7400"}, "does not have that address"),
            ({"advertise": "nonsense.invalid:7400"}, "No machine called"),
            ({"advertise": "127.0.0.1:x"}, "no port number"),
        ):
            error = await refused(CrnodeError, join(data, token, **more), said)
            assert error.exit_code is ExitCode.USAGE and error.hint
            assert not data.exists() and len(master.document.nodes) == 1
        assert not (await join(data, token)).already

    case(work, tmp_path)


def test_a_repeated_join_with_another_address_takes_it(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        token, data = master.token(), tmp / "box2"
        before = (await join(data, token)).node
        joined = await join(data, token, listen="0.0.0.0:7998", advertise="10.0.0.2:7998")
        assert joined.already and joined.moved
        moved = {"listen": "0.0.0.0:7998", "advertise": "10.0.0.2:7998"}
        assert read_node_file(data) == before.model_copy(update=moved)
        assert master.document.nodes[1].address == "10.0.0.2:7998"
        assert not (await join(data, token, listen=None)).moved  # nothing was asked for, nothing changes
        assert read_node_file(data).advertise == "10.0.0.2:7998"
        assert (await join(data, token, listen=None, advertise="10.0.0.3:1")).node.listen == "0.0.0.0:7998"
        with DataLock(data):  # its agent runs
            error = await refused(
                CrnodeError, join(data, token, advertise="10.0.0.4:1"), "address was not taken"
            )
        assert error.exit_code is ExitCode.REFUSED and "is in use" in error.what
        assert read_node_file(data).advertise == master.document.nodes[1].address == "10.0.0.3:1"
        master.clock_ns = 3601 * 10**9
        await refused(CrnodeError, join(data, token, advertise="10.0.0.4:1"), "It expired")
        assert (await join(data, token, listen=None)).already

    case(work, tmp_path)


def test_a_certificate_that_the_document_does_not_know_is_turned_away(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        before = master.document
        await join(tmp / "box2", master.token())
        master.document = before
        await refused(PeerClosed, call(master, tmp / "box2"), "is not in the cluster document")
        assert master.sessions == []

    case(work, tmp_path)


def test_a_node_cannot_say_that_it_is_another(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        await join(tmp / "box2", master.token())
        node = read_node_file(tmp / "box2").model_copy(update={"name": "box3"})
        hello = node_hello(node, master.document, time.time_ns())
        mark = master.document.master.fingerprint
        with pytest.raises(PeerClosed, match="belongs to 'box2'") as caught:
            # The refusal comes with the master's hello or right after it.
            peer, _ = await dial(master.address, client_context(tmp / "box2"), hello, mark)
            assert await peer.receive() is None
            raise peer.close_reason or AssertionError
        assert caught.value.exit_code is ExitCode.REFUSED
        assert master.sessions == []

    case(work, tmp_path)


def test_a_foreign_ca_is_stopped_by_tls_on_both_sides(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        foreign = tmp / "foreign"
        create_cluster(foreign, "box2", "shop", choose_places("127.0.0.1:7997", None), time.time_ns())
        node = read_node_file(foreign).model_copy(update={"cluster": master.document.id})
        hello = node_hello(node, master.document, time.time_ns())
        mark = master.document.master.fingerprint
        error = await refused(
            PeerClosed, dial(master.address, client_context(foreign), hello, mark), "not of this cluster"
        )
        assert error.exit_code is ExitCode.REFUSED
        lenient = client_context(foreign)  # one that trusts anybody, but still shows its own certificate
        lenient.verify_mode = ssl.CERT_NONE
        await refused(
            PeerClosed, dial(master.address, lenient, hello, mark), "does not accept this node's certificate"
        )
        assert master.sessions == []

    case(work, tmp_path)


def test_a_caller_notices_that_another_node_answers(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        await join(tmp / "box2", master.token())
        await refused(PeerClosed, call(master, tmp / "box2", mark="00" * 32), "another node answers")
        peer, _ = await call(master, tmp / "box2")
        await peer.close()

    case(work, tmp_path)


def test_expired_certificates_do_not_stop_the_cluster(tmp_path: Path) -> None:
    """Rule 26: all certificates, the CA's too, ended years ago; the document's fingerprints hold."""

    async def work(master: Master, tmp: Path) -> None:
        old = time.time_ns() - 30 * 365 * 86_400 * 10**9
        authority = CertificateAuthority.create("shop", old)
        nodes: list[Node] = []
        for data, node in ((master.data, master.node), (tmp / "box2", None)):
            (data / "ca").mkdir(parents=True, exist_ok=True)
            name = "shop1" if node else "box2"
            key, csr = create_key_and_csr(name)
            certificate = authority.issue(csr, name, old)
            assert valid_until_ns(certificate) < time.time_ns()
            (data / "ca" / "ca.pem").write_bytes(authority.certificate_pem)
            (data / "node.pem").write_bytes(certificate_pem(certificate))
            (data / "node.key").write_bytes(key)
            like = master.document.master
            changes: dict[str, Any] = {"fingerprint": fingerprint(certificate)}
            if name == "box2":
                changes |= {"name": name, "role": "replica", "address": "box2:7400"}
            nodes.append(Node.model_validate({**dict(like), **changes}, strict=False))
        master.document = ClusterDocument.model_validate({**dict(master.document), "nodes": tuple(nodes)})
        await master.listener.close()
        await master.start()
        hello = node_hello(
            NodeFile.model_validate({**dict(master.node), "name": "box2"}), master.document, time.time_ns()
        )
        mark = master.document.master.fingerprint
        peer, _ = await dial(master.address, client_context(tmp / "box2"), hello, mark)
        await peer.send(Call(1, "x", b"{}"))
        assert await peer.receive() is not None
        await peer.close()

    case(work, tmp_path)


def test_garbage_and_half_frames_harm_nobody(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        good = tmp / "box2"
        await join(good, master.token())
        peer, _ = await call(master, good)
        # Bytes that are no TLS at all.
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", os.urandom(5000), b"\x16\x03\x01\xff\xff" + bytes(10)):
            reader, writer = await asyncio.open_connection("127.0.0.1", master.port)
            writer.write(garbage)
            with contextlib.suppress(ConnectionError):
                writer.write_eof()
                await asyncio.wait_for(reader.read(), 5)
            writer.close()
        # TLS without a certificate, then bytes that are no frames.
        hello = encode(joining_hello(time.time_ns()), 0)
        framed = header(len(hello), 0) + hello
        call_frame = encode(Call(1, "x", b"{}"), 0)
        lies = [
            os.urandom(4000),
            struct.pack(">II", 2**31, 10),
            framed + struct.pack(">II", 4 + 3, 3) + b"\xc1\xc1\xc1",
            framed + framed,
            framed + header(len(call_frame), 0) + call_frame,
        ]
        for lie in lies:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", master.port, ssl=joining_context(None)
            )
            writer.write(lie)
            answer = await asyncio.wait_for(reader.read(), 5)
            assert answer, "the server's hello and its last words"
            writer.close()
        # Half a frame, then silence and an end.
        reader, writer = await asyncio.open_connection("127.0.0.1", master.port, ssl=joining_context(None))
        writer.write(framed[: len(framed) // 2])
        await writer.drain()
        writer.close()
        # The node that was connected all the time is still served, and so is a new joiner.
        await peer.send(Call(7, "echo", b"{}"))
        assert (await peer.receive()) is not None
        await peer.close()
        assert master.sessions == ["box2"]

    case(work, tmp_path)


def test_a_stranger_gets_eight_frames(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        peer, _ = await dial(master.address, joining_context(None), joining_hello(time.time_ns()), None)
        answers = 0
        with contextlib.suppress(PeerClosed):
            for _ in range(20):
                await peer.send(CaRequest())
                received = await peer.receive()
                if received is None:
                    break
                assert isinstance(received.message, CaReply)
                answers += 1
        assert answers == 7  # its hello was the first frame
        assert peer.close_reason is not None and peer.close_reason.code == "limit"

    case(work, tmp_path)


def test_bulk_waits_for_credit_and_arrives_whole(tmp_path: Path) -> None:
    """Four windows of objects: the sender stops when the window is used up and goes on as the reader
    processes.
    """

    async def work(master: Master, tmp: Path) -> None:
        await join(tmp / "box2", master.token())
        got: list[int] = []
        gate = asyncio.Event()

        async def reading(peer: Peer, connected: Connected) -> None:
            async for received in peer.events():
                if isinstance(received.message, SetOpen):
                    await peer.send(SetState(b"", 0, b"", b"", b"", b"", b"", ""))
                    continue
                await gate.wait()
                assert bytes(received.payload[:8]) == len(got).to_bytes(8, "big")
                got.append(len(received.payload))
                peer.consumed(received.cost)

        window = 8 << 20
        listener = await listen(
            "127.0.0.1",
            0,
            server_context(master.data),
            lambda: node_hello(master.node, master.document, time.time_ns(), credit=window),
            reading,
            lambda: master.document,
        )
        node = read_node_file(tmp / "box2")
        hello = node_hello(node, master.document, time.time_ns())
        mark = master.document.master.fingerprint
        peer, _ = await dial(f"127.0.0.1:{listener.port}", client_context(tmp / "box2"), hello, mark)
        await peer.send(SetOpen(b"u" * 16, "web", bytes.fromhex(node.incarnation), 0, 1, b""))
        state = await peer.receive()
        assert state is not None and isinstance(state.message, SetState)
        size, sent = 1 << 20, 0

        async def sending() -> None:
            nonlocal sent
            for number in range(32):
                data = number.to_bytes(8, "big") + bytes(size - 8)
                record = (number.to_bytes(32, "big"), 0, 0, size, size, b"")
                await peer.send(Objects((record,)), [memoryview(data)[: size // 2], data[size // 2 :]])
                sent += 1

        task = asyncio.create_task(sending())
        await asyncio.sleep(0.3)
        assert 0 < sent < 8  # the window, less what the frames' own bytes take
        gate.set()
        await task
        async with asyncio.timeout(10):
            while len(got) < 32:
                await asyncio.sleep(0.01)
        assert got == [size] * 32
        await peer.close()
        with pytest.raises(PeerClosed):
            await peer.send(Call(1, "x", b"{}"))
        await listener.close()

    case(work, tmp_path)


def test_a_port_in_use_and_a_strange_address_are_said(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        for host, said in (
            ("127.0.0.1", "Another program listens"),
            ("192.0.2.7", "does not have that address"),
        ):
            with pytest.raises(CrnodeError, match=said):
                await listen(
                    host,
                    master.port,
                    server_context(master.data),
                    lambda: joining_hello(0),
                    master._on_peer,
                    lambda: master.document,
                )

    case(work, tmp_path)


def test_a_listener_that_stops_tells_its_peers(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        await join(tmp / "box2", master.token())
        peer, _ = await call(master, tmp / "box2")
        await master.listener.close()
        assert await peer.receive() is None
        assert peer.close_reason is not None
        assert (peer.close_reason.code, peer.close_reason.retry) == ("shutdown", True)
        await peer.wait_closed()

    case(work, tmp_path)


def test_join_at_uses_the_address_it_is_given(tmp_path: Path) -> None:
    async def work(master: Master, tmp: Path) -> None:
        joiner = Joiner(tmp / "box2", master.token(addresses=("unreachable.invalid:1",)))
        with joiner.prepare():
            joined = await join_at(joiner, master.address, "0.0.0.0:7990", None, quiet)
        assert joined.node.advertise == "127.0.0.1:7990" and joined.node.listen == "0.0.0.0:7990"

    case(work, tmp_path)
