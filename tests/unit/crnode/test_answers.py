"""Questions between nodes: each one gets an answer, whatever goes wrong, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_samples import SET, chunk, commit, file, file_records, put_file, small_store, with_writer

from crnode.agent import links
from crnode.agent.links import Link
from crnode.agent.search import ContentSearch
from crnode.agent.serve import Server
from crnode.errors import CrnodeError, ExitCode
from crnode.net.peer import PeerClosed
from crnode.store.catalog import Catalog
from crnode.store.packs import Lane
from crproto.connection import Received
from crproto.messages import (
    Call,
    Entries,
    EntriesEnd,
    EntriesRequest,
    Fetch,
    FetchDone,
    Images,
    ImagesRequest,
    Objects,
    Result,
)

UUID = SET.hex()


class FakePeer:
    """The other end of a connection, as Server and Link see it."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, bytes]] = []
        self.given_back: list[int] = []
        self.failed = ""
        self.incoming: asyncio.Queue[Received | None] = asyncio.Queue()
        self.hello = None
        self.close_reason: PeerClosed | None = None

    async def send(self, message: Any, payload: Any = ()) -> None:
        self.sent.append((message, b"".join(payload)))

    def consumed(self, cost: int) -> None:
        self.given_back.append(cost)

    def fail(self, code: str, text: str, retry: bool = False) -> None:
        self.failed = code
        self.close_reason = PeerClosed(code, text)
        self.incoming.put_nowait(None)

    async def events(self) -> Any:
        while (item := await self.incoming.get()) is not None:
            yield item

    async def close(self) -> None: ...

    def bring(self, message: Any, payload: bytes = b"", cost: int = 0) -> None:
        self.incoming.put_nowait(Received(message, memoryview(payload), cost))


class FakeAgent(SimpleNamespace):
    """What Server needs of an agent; everything that is not given raises, as a defect would."""

    def __init__(self, **more: Any) -> None:
        self.events: list[tuple[str, str]] = []
        in_force = asyncio.Event()
        in_force.set()
        super().__init__(
            in_force=in_force,
            node=SimpleNamespace(name="box1"),
            document=SimpleNamespace(master=SimpleNamespace(name="m"), set_by_uuid=lambda _: None),
            journal=SimpleNamespace(add=lambda kind, text, *_: self.events.append((kind, text))),
            **more,
        )


def ask(agent: Any, message: Any, payload: bytes = b"", methods: Any = None) -> FakePeer:
    """Let a server answer one message of the master."""

    async def main() -> FakePeer:
        server, peer = Server(agent), FakePeer()
        server.methods = methods or {}
        await server._other(peer, "m", Received(message, memoryview(payload), 7))  # type: ignore[arg-type]
        return peer

    return asyncio.run(main())


async def _defect(_name: str, _body: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("nobody thought of this")


async def _no_json(_name: str, _body: dict[str, Any]) -> dict[str, Any]:
    return {"a": object()}


@pytest.mark.parametrize("method", [_defect, _no_json])
def test_a_call_that_meets_a_defect_is_answered_and_told(method: Any) -> None:
    agent = FakeAgent()
    peer = ask(agent, Call(4, "x", b"{}"), methods={"x": method})
    (result, _), *rest = peer.sent
    assert isinstance(result, Result) and result.number == 4 and not result.ok and not rest
    error = CrnodeError.from_dict(json.loads(result.body))
    assert "defect" in error.what and error.why.startswith(("KeyError", "TypeError"))
    assert [kind for kind, _ in agent.events] == ["defect"]
    assert peer.given_back == [7]


def test_a_fetch_that_meets_a_defect_names_all_that_was_not_sent() -> None:
    def get(name: bytes) -> bytes:
        if name[0] == 1:
            raise RuntimeError("nobody thought of this")
        return b"data"

    store = SimpleNamespace(get=get, locate=lambda _: None)
    agent = FakeAgent(store=store, sets=SimpleNamespace(sources={}))
    ids = bytes(32) + bytes([1]) * 32 + bytes([2]) * 32
    peer = ask(agent, Fetch(9, SET), ids)
    message, payload = peer.sent[-1]
    assert isinstance(message, FetchDone) and message.number == 9 and payload == ids
    assert [kind for kind, _ in agent.events] == ["defect"]


@pytest.mark.parametrize("message", [EntriesRequest(3, SET, bytes(32), b""), ImagesRequest(3, SET)])
def test_other_questions_that_meet_a_defect_end_the_connection(message: Any) -> None:
    agent = FakeAgent()  # it has no sets: AttributeError
    peer = ask(agent, message)
    assert peer.failed == "internal" and not peer.sent
    assert [kind for kind, _ in agent.events] == ["defect"]


def test_a_search_goes_on_behind_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "set.db", SET)
    broken = bytes(range(256)) * 20
    name, level, records = file_records(broken)
    store.put(records[:-1], Lane.BULK)  # its top recipe is nowhere
    whole = b"w" * 1500 + b"v" * 1000
    kept = put_file(store, whole)
    image = commit(
        catalog, [file(b"a", (name, level), len(broken)), file(b"b", kept, len(whole)), file(b"c", None, 0)]
    )
    wanted = {chunk(b"w" * 512).id, chunk(b"nowhere").id}
    search = ContentSearch(catalog, store, image.ordinal, lambda: None, wanted)
    found = []
    while (page := search.page()) is not None:
        found += page
    search.close()
    assert found == [(chunk(b"w" * 512).id, b"w" * 512)]
    assert search.unreadable == 1
    catalog.close()
    store.close()


def test_an_image_is_a_root_of_pruning_while_another_node_lists_it(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "set.db", SET)
    image = commit(catalog, [file(b"%04d" % n, None, 0) for n in range(1200)])
    assert image.id is not None
    roots: dict[str, set[int]] = {}
    seen: list[set[int]] = []

    class Watching(FakePeer):
        async def send(self, message: Any, payload: Any = ()) -> None:
            seen.append(set(roots[UUID]))
            await super().send(message, payload)

    async def work(writer: Any) -> tuple[FakePeer, set[int]]:
        sets = SimpleNamespace(catalogs={UUID: catalog}, readers_roots=roots)
        server = Server(FakeAgent(sets=sets, writer=writer))  # type: ignore[arg-type]
        peer = Watching()
        async with server.readers.hold(UUID, image.id):  # type: ignore[arg-type]
            request = EntriesRequest(1, SET, image.id, b"")  # type: ignore[arg-type]
            await server._other(peer, "m", Received(request, memoryview(b""), 0))  # type: ignore[arg-type]
            await writer.submit(lambda: None)
            held = set(roots[UUID])  # the other reader is still there
        await writer.submit(lambda: None)
        return peer, held

    peer, held = with_writer(work)
    entries = [e for m, _ in peer.sent if isinstance(m, Entries) for e in m.changed]
    assert len(entries) == 1200 and peer.sent[-1][0] == EntriesEnd(1, 1200)
    assert seen[:-1] and all(s == {image.ordinal} for s in seen) and held == {image.ordinal}
    assert roots == {UUID: set()}
    catalog.close()


# -- who asks


def link_with(peer: FakePeer) -> tuple[Link, asyncio.Task[None]]:
    async def dial(_: Any) -> Any:
        return peer

    async def on_document(_name: str, _body: bytes) -> None: ...

    node: Any = SimpleNamespace(name="box2", address="")
    link = Link(node, dial, on_document, lambda: None, lambda: False)  # type: ignore[arg-type, return-value]
    return link, asyncio.create_task(link.run())


async def until_asked(peer: FakePeer, count: int) -> int:
    """The number of the `count`th question."""
    while len(peer.sent) < count:
        await asyncio.sleep(0.001)
    return int(peer.sent[count - 1][0].number)


def test_a_node_that_falls_silent_is_given_up_and_the_turn_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "SILENCE_SECONDS", 0.1)

    async def main() -> None:
        peer = FakePeer()
        link, task = link_with(peer)
        assert await link.wait_up(1)

        async def take(_message: Any, _payload: Any) -> None: ...

        with pytest.raises(CrnodeError) as caught:
            async with asyncio.timeout(2):
                await link.fetch(UUID, [bytes(32)], take)
        assert caught.value.exit_code == ExitCode.UNREACHABLE
        assert not peer.failed  # what comes late of a fetch does no harm
        peer.bring(Objects(()), cost=5)
        again = asyncio.create_task(link.fetch(UUID, [bytes(32)], take))
        number = await until_asked(peer, 2)
        peer.bring(FetchDone(number), bytes(32))
        assert await asyncio.wait_for(again, 10) == [bytes(32)]
        assert peer.given_back == [5, 0] or peer.given_back == [5]

        async def take_entries(_message: Any) -> None: ...

        with pytest.raises(CrnodeError):
            async with asyncio.timeout(2):
                await link.entries(UUID, bytes(32), b"", take_entries)
        assert peer.failed  # late entries would be taken for the next listing's
        task.cancel()

    asyncio.run(main())


def test_credit_is_given_back_only_when_a_part_was_taken() -> None:
    """So no more than a window of parts waits here, however slow the disk."""

    async def main() -> None:
        peer = FakePeer()
        link, task = link_with(peer)
        assert await link.wait_up(1)
        go = asyncio.Semaphore(0)

        async def take(_message: Any, _payload: Any) -> None:
            await go.acquire()

        asking = asyncio.create_task(link.fetch(UUID, [bytes(32)], take))
        number = await until_asked(peer, 1)
        for _ in range(3):
            peer.bring(Objects(()), cost=100)
        await asyncio.sleep(0.05)
        assert peer.given_back == []
        go.release()
        await asyncio.sleep(0.05)
        assert peer.given_back == [100]
        go.release()
        go.release()
        peer.bring(FetchDone(number))
        assert await asyncio.wait_for(asking, 10) == []
        assert sum(peer.given_back) == 300
        # what nobody waits for any more is given back at once, also when its reader gives up half way
        lost = asyncio.create_task(link.fetch(UUID, [bytes(32)], take))
        await until_asked(peer, 2)
        for _ in range(3):
            peer.bring(Objects(()), cost=100)
        await asyncio.sleep(0.05)
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
        peer.bring(Objects(()), cost=100)
        await asyncio.sleep(0.05)
        assert sum(peer.given_back) == 700
        task.cancel()

    asyncio.run(main())


def test_questions_beside_a_listing_are_answered() -> None:
    async def main() -> None:
        peer = FakePeer()
        link, task = link_with(peer)
        assert await link.wait_up(1)
        asking = asyncio.create_task(link.images(UUID))
        number = await until_asked(peer, 1)
        peer.bring(Images(number, ()))
        assert await asyncio.wait_for(asking, 10) == ()
        task.cancel()

    asyncio.run(main())


def test_who_starts_is_not_without_data() -> None:
    """What is asked about sets that do not run yet is answered once they do; other questions at once."""

    async def moved(_name: str, _body: dict[str, Any]) -> dict[str, Any]:
        return {"heard": True}

    async def main() -> None:
        agent = FakeAgent(sets=SimpleNamespace(catalogs={}))
        agent.in_force.clear()
        server = Server(agent)
        server.methods = {"takeover.moved": moved, "status": moved}
        server.may_read = lambda *_: True  # type: ignore[method-assign]
        waiting: dict[str, FakePeer] = {}
        tasks = []
        for message in (Call(1, "takeover.moved", b"{}"), ImagesRequest(3, SET), Call(2, "status", b"{}")):
            peer = FakePeer()
            waiting[getattr(message, "method", "images")] = peer
            received = Received(message, memoryview(b""), 7)
            tasks.append(asyncio.create_task(server._other(peer, "m", received)))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        assert {name: len(peer.sent) for name, peer in waiting.items()} == {
            "takeover.moved": 0, "images": 0, "status": 1,
        }  # fmt: skip
        agent.in_force.set()
        await asyncio.gather(*tasks)
        assert all(len(peer.sent) == 1 for peer in waiting.values())

    asyncio.run(main())
