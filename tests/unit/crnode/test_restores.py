"""Restores as one node does them: where they may write, with which rights, from an image that stays."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_samples import SET, commit, directory, file, put_file, small_store, with_writer

from crnode.agent.heal import Healer
from crnode.agent.restore import RECIPES, Restore
from crnode.agent.serve import Server
from crnode.agent.sets import Sets
from crnode.errors import CrnodeError, ExitCode
from crnode.replicate.commit import TargetCommit
from crnode.replicate.write import TreeWriter
from crnode.store.catalog import Catalog
from crproto.entries import Entry, Extra
from crproto.ids import chunk_id
from crproto.messages import Entries

UUID = SET.hex()


class Box:
    """A node with one set's catalog and store, and nothing that runs."""

    def __init__(self, tmp_path: Path, writer: Any, *, source: str = "", holder: str = "box1") -> None:
        self.tmp_path = tmp_path
        self.data = tmp_path / "data"
        self.data.mkdir()
        self.store = small_store(self.data / "store")
        self.catalog = Catalog(self.data / "sets" / f"{UUID}.db", SET)
        self.writer = writer
        self.events: list[str] = []
        self.asked: list[set[bytes]] = []
        self.node = SimpleNamespace(name="box1", destinations=())
        target = SimpleNamespace(destination=str(tmp_path / "live"))
        self.spec: Any = SimpleNamespace(
            uuid=UUID, name="docs", source="shop1", paths=("/nowhere",), targets={holder: target},
            privileged=False,
        )  # fmt: skip
        other = SimpleNamespace(
            uuid="00" * 16, name="mine", source="box1", paths=(str(tmp_path / "mine"),), targets={}
        )
        self.document = SimpleNamespace(
            sets=(self.spec, other), set_by_uuid=lambda _: self.spec, keepers=lambda spec: tuple(spec.targets)
        )
        self.journal = SimpleNamespace(add=lambda kind, text, *_: self.events.append(text))
        self.sets: Any = Sets(
            self.data, self.node, self.store, writer, dial=None, heal=None, journal=self.journal.add,
            now_ns=time.time_ns, crashed=lambda e: None, doubted=lambda: None,
        )  # type: ignore[arg-type]  # fmt: skip
        if holder == "box1":
            self.sets.catalogs[UUID] = self.catalog
            self.sets.targets[UUID] = object()
        self.links: dict[str, Any] = {}
        self.healer: Any = Healer(self)  # type: ignore[arg-type]
        self.healer.fetch = self._fetch
        self.server = Server(self)  # type: ignore[arg-type]
        self.restore = Restore(self)  # type: ignore[arg-type]

    async def _fetch(self, _uuid: str, ids: set[bytes], _paths: object = ()) -> dict[bytes, str]:
        self.asked.append(set(ids))
        return {}

    async def run(self, to: Path, progress: Any = lambda _: None, **more: Any) -> dict[str, Any]:
        ordered_by = more.pop("ordered_by", None)
        return await self.restore.run(self.spec, {"to": str(to), **more}, progress, ordered_by=ordered_by)

    def close(self) -> None:
        self.sets.catalogs.clear()
        self.catalog.close()
        self.store.close()


def on_box(tmp_path: Path, work: Callable[[Box], Awaitable[None]], **more: Any) -> None:
    async def main(writer: Any) -> None:
        box = Box(tmp_path, writer, **more)
        try:
            await work(box)
        finally:
            box.close()

    with_writer(main)


def some(box: Box) -> list[Entry]:
    """A tree with a set-id program of root."""
    mine = put_file(box.store, b"program")
    tool = file(b"bin/tool", mine, 7)._replace(mode=0o4755, owner="root", owner_id=0)
    return [directory(b"bin"), tool, file(b"note", put_file(box.store, b"note"), 4)]


def test_a_whole_version_is_proven_by_its_digest_and_a_path_is_read_back(tmp_path: Path) -> None:
    async def work(box: Box) -> None:
        commit(box.catalog, some(box))
        whole = await box.run(tmp_path / "whole")
        assert whole["digest_ok"] is True and whole["verified"] is True
        part = await box.run(tmp_path / "part", path="bin")
        assert "digest_ok" not in part and part["verified"] is True
        assert os.listdir(tmp_path / "part") == ["tool"]

    on_box(tmp_path, work)


@pytest.mark.parametrize("lost", ["count", "more", "elsewhere"])
def test_a_path_whose_listing_is_not_whole_is_refused(tmp_path: Path, lost: str) -> None:
    class Holder:
        """Another node that says what it likes."""

        async def wait_up(self, _seconds: float) -> bool:
            return True

        async def images(self, _uuid: str) -> tuple[Any, ...]:
            return ((b"i" * 32, bytes(32), 0, 5, 0, b"d" * 32, 2, 0, 1, ""),)

        async def entries(self, _uuid: str, _image: bytes, path: bytes, take: Any) -> int:
            found = {
                "count": [file(b"a/x", None, 0)],
                "more": [file(b"a/%d" % n, None, 0) for n in range(3)],
                "elsewhere": [file(b"b/x", None, 0)],
            }[lost]
            await take(Entries(tuple(found), ()))
            return 2 if lost == "count" else len(found)

    async def work(box: Box) -> None:
        box.links["box2"] = Holder()
        with pytest.raises(CrnodeError) as caught:
            await box.run(tmp_path / "to", path="a")
        assert caught.value.exit_code == ExitCode.DAMAGE
        assert not (tmp_path / "to").exists()

    on_box(tmp_path, work, holder="box2")


def test_an_image_that_is_restored_is_not_pruned_meanwhile(tmp_path: Path) -> None:
    async def work(box: Box) -> None:
        old = commit(box.catalog, some(box))
        roots = box.sets.readers_roots.setdefault(UUID, set())
        pruner = TargetCommit(
            box.catalog, box.store, archive=False, now_ns=time.time_ns, retain_roots=lambda: set(roots)
        )
        seen: list[set[int]] = []

        def progress(_: Any) -> None:
            """Between two batches: the old image is replaced and everything that may go, goes."""
            seen.append(set(roots))

            def prune() -> None:
                for n in range(3):
                    commit(box.catalog, [file(b"note", None, 0, n)], [b"bin/tool"] if n == 0 else [])
                with box.catalog.transaction():
                    box.catalog.prune(pruner.retain_roots(), 10_000)

            box.writer.submit_from_thread(prune).result()

        out = await box.run(tmp_path / "to", progress)
        assert out["digest_ok"] and (tmp_path / "to" / "note").read_bytes() == b"note"
        assert seen == [{old.ordinal}]
        await box.writer.submit(lambda: None)
        assert roots == set() and box.sets.readers_roots[UUID] is roots
        assert box.catalog.images()[0].ordinal == old.ordinal  # it was a root of that prune

    on_box(tmp_path, work)


def test_a_restore_that_fails_holds_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    async def work(box: Box) -> None:
        commit(box.catalog, [file(b"gone", (b"g" * 32, 0), 9)])
        with pytest.raises(CrnodeError) as caught:
            await box.run(tmp_path / "to")
        assert caught.value.exit_code == ExitCode.DAMAGE
        await box.writer.submit(lambda: None)
        assert box.sets.readers_roots == {UUID: set()}
        assert box.asked == [{b"g" * 32}]
        assert sorted(os.listdir(tmp_path)) == ["data"]

    on_box(tmp_path, work)


def test_another_node_restores_only_where_this_one_allows_it(tmp_path: Path) -> None:
    async def refused(box: Box, to: Path, **more: Any) -> str:
        with pytest.raises(CrnodeError) as caught:
            await box.run(to, **more)
        assert caught.value.exit_code == ExitCode.REFUSED
        return str(caught.value)

    async def work(box: Box) -> None:
        commit(box.catalog, some(box))
        assert "system's own" in await refused(box, Path("/etc/crnode-test"), ordered_by="shop1")
        (tmp_path / "link").symlink_to("/etc")
        assert "system's own" in await refused(box, tmp_path / "link" / "x", ordered_by="shop1")
        box.node.destinations = (str(tmp_path / "allowed"),)
        assert "outside what this node allows" in await refused(box, tmp_path / "x", ordered_by="shop1")
        await box.run(tmp_path / "allowed" / "x", ordered_by="shop1")
        await box.run(tmp_path / "x")  # the owner of this node, on its own socket
        for ordered_by in (None, "shop1"):
            box.node.destinations = ()
            for place in ("mine", "mine/below", "live", "live/below"):
                text = await refused(box, tmp_path / place, ordered_by=ordered_by)
                assert "of set" in text
            (tmp_path / "way").unlink(missing_ok=True)
            (tmp_path / "mine").mkdir(exist_ok=True)
            (tmp_path / "way").symlink_to(tmp_path / "mine")
            assert "of set mine" in await refused(box, tmp_path / "way" / "x", ordered_by=ordered_by)
            assert "data directory" in await refused(box, box.data / "trees" / "x", ordered_by=ordered_by)

    on_box(tmp_path, work)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_node_gives_no_more_privileges_than_the_set_has(tmp_path: Path) -> None:
    async def work(box: Box) -> None:
        commit(box.catalog, some(box))

        async def tool(name: str, **more: Any) -> tuple[int, int]:
            await box.run(tmp_path / name, **more)
            info = os.stat(tmp_path / name / "bin" / "tool")
            return stat.S_IMODE(info.st_mode), info.st_uid

        assert await tool("ordered", ordered_by="shop1") == (0o755, 65534)
        assert await tool("owner") == (0o4755, 0)
        box.spec.privileged = True
        assert await tool("service", ordered_by="shop1") == (0o4755, 0)

    on_box(tmp_path, work)


def test_nothing_long_runs_in_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests and recipes are read in threads, by pages."""
    pieces = os.urandom(64 * 300)

    async def work(box: Box) -> None:
        names = [put_file(box.store, pieces[at * 64 :] + b"%d" % at, 64) for at in range(RECIPES + 4)]
        entries = [
            file(b"%d" % at, named, len(pieces) - 64 * at + len(b"%d" % at)) for at, named in enumerate(names)
        ]
        commit(box.catalog, [*entries, *(file(b"empty%d" % n, None, 0) for n in range(3000))])
        loop_thread = threading.get_ident()
        in_loop: list[str] = []
        pages: list[int] = []

        def watched(module: str, name: str) -> None:
            import importlib

            where: Any = importlib.import_module(module)
            real = getattr(where, name)

            def instead(*args: Any, **kwargs: Any) -> Any:
                if threading.get_ident() == loop_thread:
                    in_loop.append(name)
                if name == "_children":
                    pages.append(len(args[1]))
                return real(*args, **kwargs)

            monkeypatch.setattr(where, name, instead)

        for name in ("entry_bytes", "_children", "_lacking", "_verify", "free_bytes"):
            watched("crnode.agent.restore", name)
        get = box.store.get

        def store_get(name: bytes) -> bytes:
            if threading.get_ident() == loop_thread:
                in_loop.append("get")
            return get(name)

        monkeypatch.setattr(box.store, "get", store_get)
        assert (await box.run(tmp_path / "to"))["digest_ok"]
        assert in_loop == []
        assert pages and max(pages) <= RECIPES

    on_box(tmp_path, work)


async def _no_pages(*_: object) -> int:
    raise CrnodeError("The holder is away.")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EROFS])
def test_what_the_destination_cannot_hold_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A file system without colons in names, say: there is none here, so the writer says what it would."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    async def work(box: Box) -> None:
        commit(box.catalog, [file(b"a:b", put_file(box.store, b"x"), 1)])
        monkeypatch.setattr(TreeWriter, "file", refuse)
        with pytest.raises(CrnodeError) as caught:
            await box.run(tmp_path / "to")
        assert "of 'a:b'" in caught.value.why and os.strerror(number) in caught.value.why
        assert ("another file system" in caught.value.hint) == (number == errno.EINVAL)
        assert os.listdir(tmp_path) == ["data"]

    on_box(tmp_path, work)


@pytest.mark.parametrize("harm", ["none", "cut short", "turned", "another version", "a trap"])
def test_a_restore_that_was_cut_off_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """What is there whole is not written again, what is not is, and nothing that is there is trusted."""
    monkeypatch.setattr("crnode.agent.restore.BATCH", 1)

    async def work(box: Box) -> None:
        data = {b"a": b"first" * 50, b"b": b"second" * 50, b"z": b"the last one"}
        held = [file(path, put_file(box.store, data[path]), len(data[path])) for path in (b"a", b"b")]
        last = file(b"z", (chunk_id(data[b"z"]), 0), len(data[b"z"]))
        twice = (put_file(box.store, b"linked"), Extra(link=b"0123456789").encode())
        linked = [file(path, twice[0], 6)._replace(extra=twice[1]) for path in (b"l1", b"l2")]
        commit(box.catalog, [*held, *linked, last])
        with pytest.raises(CrnodeError) as caught:
            await box.run(tmp_path / "to")
        assert "repeat it" in caught.value.hint
        (left,) = [tmp_path / name for name in os.listdir(tmp_path) if name != "data"]
        assert left.name.startswith(".crnode-restore-") and not (tmp_path / "to").exists()

        with pytest.raises(CrnodeError):  # ends before it comes to write: what was written stays
            await box.run(tmp_path / "to", version="99")
        real, box.restore.pages = box.restore.pages, _no_pages  # type: ignore[method-assign]
        with pytest.raises(CrnodeError, match="is away"):
            await box.run(tmp_path / "to")
        box.restore.pages = real  # type: ignore[method-assign]
        assert left.is_dir()

        put_file(box.store, data[b"z"])
        before = {name: (left / "tree" / name).stat().st_ino for name in ("a", "b", "l1")}
        if harm == "cut short":
            os.truncate(left / "tree" / "b", 3)
        elif harm == "turned":
            info = (left / "tree" / "b").stat()
            (left / "tree" / "b").write_bytes(b"SECOND" * 50)
            os.utime(left / "tree" / "b", ns=(info.st_atime_ns, info.st_mtime_ns))
        elif harm == "another version":
            commit(box.catalog, [file(b"new", put_file(box.store, b"new"), 3)])
        elif harm == "a trap":
            left.chmod(0o777)
        out = await box.run(tmp_path / "to")
        assert out["verified"] and out["resumed"] == (harm in ("none", "cut short", "turned"))
        after = {name: (tmp_path / "to" / name).stat().st_ino for name in before}
        same = {name for name in before if before[name] == after[name]}
        expected = {"none": {"a", "b", "l1"}, "cut short": {"a", "l1"}, "turned": {"a", "l1"}}
        assert harm not in expected or same == expected[harm]
        for path, text in data.items():
            assert (tmp_path / "to" / path.decode()).read_bytes() == text
        assert (tmp_path / "to" / "l1").samefile(tmp_path / "to" / "l2")
        rest = {"data", "to", left.name} if harm == "a trap" else {"data", "to"}
        assert set(os.listdir(tmp_path)) == rest

    on_box(tmp_path, work)


def test_a_cancelled_restore_waits_for_its_thread_and_can_be_repeated(tmp_path: Path) -> None:
    async def work(box: Box) -> None:
        commit(box.catalog, some(box))
        entered, go = threading.Event(), threading.Event()
        get = box.store.get

        def slow(name: bytes) -> bytes:
            entered.set()
            go.wait(5)
            return get(name)

        box.store.get = slow  # type: ignore[method-assign]
        task = asyncio.create_task(box.run(tmp_path / "to"))
        while not entered.is_set():
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not (tmp_path / "to").exists()
        await box.writer.submit(lambda: None)
        assert box.sets.readers_roots == {UUID: set()}
        assert (await box.run(tmp_path / "to"))["digest_ok"]
        assert sorted(os.listdir(tmp_path)) == ["data", "to"]

    on_box(tmp_path, work)
