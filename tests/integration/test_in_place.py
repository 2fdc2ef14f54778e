"""Restoring to the original place: the source is as in the version, and nothing of what was there is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from harness import Cluster, Node, crnode, free_port, rsync_difference, wait_for
from spawner import SPAWNER

from crnode.errors import CrnodeError, ExitCode


def tree(root: Path) -> None:
    """Files of all kinds and sizes, folders, links, names of one file."""
    (root / "docs" / "deep").mkdir(parents=True)
    for number in range(30):
        (root / "docs" / f"file{number}").write_bytes(b"first %d" % number * 50)
    (root / "docs" / "deep" / "large").write_bytes(os.urandom(3 << 20))
    (root / "docs" / "deep" / "moved").write_bytes(os.urandom(2 << 20))
    (root / "link").symlink_to("docs/file1")
    (root / "empty").mkdir()
    (root / "one").write_bytes(b"one of two names")
    os.link(root / "one", root / "docs" / "two")
    (root / "becomes-folder").write_bytes(b"a file")
    (root / "becomes-file" / "in").mkdir(parents=True)
    (root / "becomes-file" / "in" / "it").write_bytes(b"within")
    os.chmod(root / "docs" / "file3", 0o640)
    os.utime(root / "docs", ns=(10**18, 10**18))


def spoil(root: Path) -> None:
    """A bad day."""
    for number in range(10):
        (root / "docs" / f"file{number}").write_bytes(b"spoiled %d" % number)
    for number in range(10, 20):
        (root / "docs" / f"file{number}").unlink()
    with open(root / "docs" / "deep" / "large", "r+b") as file:
        file.seek(1 << 20)
        file.write(b"spoiled in the midst")
    os.rename(root / "docs" / "deep" / "moved", root / "elsewhere")
    (root / "link").unlink()
    (root / "link").write_bytes(b"no link any more")
    (root / "empty").rmdir()
    (root / "docs" / "two").unlink()
    (root / "docs" / "two").write_bytes(b"two of two files")
    (root / "becomes-folder").unlink()
    (root / "becomes-folder").mkdir()
    (root / "becomes-folder" / "new").write_bytes(b"x")
    shutil.rmtree(root / "becomes-file")
    (root / "becomes-file").write_bytes(b"y")
    (root / "new").mkdir()
    (root / "new" / "file").write_bytes(b"new")
    os.chmod(root / "docs" / "file25", 0o600)


def copied(root: Path, to: Path) -> Path:
    subprocess.run(["cp", "-a", f"{root}/.", str(to)], check=True)
    return to


def restored(cluster: Cluster, node: str, set_: str = "docs", **args: object) -> dict[str, object]:
    return cluster.nodes[node].call("restore", {"set": set_, "in_place": True, **args}, 120)


def newest(cluster: Cluster) -> int:
    return max(row["number"] for row in cluster.master.call("versions", {"set": "docs"})["versions"])


@pytest.fixture
def shop(cluster: Cluster, tmp_path: Path) -> tuple[Cluster, Path]:
    """A set of two nodes, in sync."""
    cluster.init()
    cluster.join("box2")
    source = tmp_path / "source"
    source.mkdir()
    tree(source)
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path / 'live'}"], brake_percent=0)
    cluster.sync("docs")
    time.sleep(1.1)  # what is followed by quiet stays a version
    return cluster, source


def test_a_spoiled_set_is_brought_back(shop: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, source = shop
    good = newest(cluster)
    was = copied(source, tmp_path / "was")
    spoil(source)
    cluster.sync("docs")
    spoiled = copied(source, tmp_path / "spoiled")
    plan = restored(cluster, "box2", version=str(good), plan=True)
    assert plan["written"] and plan["removed"]
    assert rsync_difference(source, spoiled) == ""  # a plan changes nothing
    out = restored(cluster, "box2", version=str(good))  # asked from the other node
    assert out["verified"] and not out["skipped"], out
    assert (out["written"], out["removed"]) == (plan["written"], plan["removed"])
    assert rsync_difference(was, source) == ""
    assert int(str(out["fetched"])) < 1 << 20  # what is in the tree still is not fetched
    assert not (source / ".crnode").exists()
    assert cluster.sync("docs")["left_out"] == 0
    assert rsync_difference(source, tmp_path / "live") == ""
    again = restored(cluster, "shop1", version=str(good))
    assert (again["written"], again["removed"], again["kept"]) == (0, 0, None)
    kept = out["kept"]
    assert isinstance(kept, dict)
    back = tmp_path / "back"
    cluster.nodes["box2"].call("restore", {"set": "docs", "version": kept["name"], "to": str(back)})
    assert rsync_difference(spoiled, back) == ""


def test_one_path_is_brought_back_and_nothing_else(shop: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, source = shop
    good = str(newest(cluster))
    was = copied(source, tmp_path / "was")
    spoil(source)
    shutil.rmtree(source / "docs")
    (source / "docs").write_bytes(b"in the way")
    out = restored(cluster, "shop1", path="docs/deep/large", version=good)
    assert out["verified"], out["skipped"]
    assert (source / "docs" / "deep" / "large").read_bytes() == (was / "docs" / "deep" / "large").read_bytes()
    assert (source / "docs").stat().st_mode == (was / "docs").stat().st_mode
    assert sorted(os.listdir(source / "docs")) == ["deep"]
    assert os.listdir(source / "docs" / "deep") == ["large"]
    assert (source / "new" / "file").exists() and (source / "becomes-folder" / "new").exists()
    with pytest.raises(CrnodeError, match="has nothing at"):
        restored(cluster, "shop1", path="docs/never", version=good)
    with pytest.raises(CrnodeError, match="Say which version"):
        restored(cluster, "shop1", path="docs")


def test_an_emptied_set_is_brought_back(shop: tuple[Cluster, Path], tmp_path: Path) -> None:
    """What people do after `rm -rf *`: nobody consents to anything."""
    cluster, source = shop
    good = str(newest(cluster))
    was = copied(source, tmp_path / "was")
    for child in source.iterdir():
        shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()

    def emptied() -> bool:
        (row,) = cluster.master.call("status")["sets"]
        return "emptied" in str(row)

    wait_for(emptied)
    out = restored(cluster, "shop1", version=good)
    assert out["verified"], out["skipped"]
    assert rsync_difference(was, source) == ""
    cluster.sync("docs")
    assert rsync_difference(source, tmp_path / "live") == ""


def test_what_is_nobodys_version_stays(shop: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, source = shop
    good = str(newest(cluster))
    (source / "docs" / "file1").unlink()
    os.mkfifo(source / "docs" / "file1")  # no part of any version
    (source / "docs" / "file2").write_bytes(b"other")
    out = restored(cluster, "shop1", version=good)
    assert not out["verified"]
    assert [s["path"] for s in out["skipped"]] == ["docs/file1"]  # type: ignore[attr-defined]
    assert (source / "docs" / "file1").is_fifo()
    assert (source / "docs" / "file2").read_bytes().startswith(b"first 2")
    done = crnode(
        "restore", "docs", "--version", good, "--in-place", "--data", str(cluster.master.data), check=False
    )
    assert done.returncode == ExitCode.BEHIND
    assert "docs/file1" in done.stdout


def test_nothing_is_changed_that_was_not_kept(shop: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, source = shop
    good = str(newest(cluster))
    cluster.nodes["box2"].stop()
    spoil(source)
    spoiled = copied(source, tmp_path / "spoiled")
    with pytest.raises(CrnodeError) as error:  # no node has a version to go back to
        restored(cluster, "shop1", version=good)
    assert error.value.exit_code == ExitCode.UNREACHABLE
    assert rsync_difference(source, spoiled) == ""
    cluster.nodes["box2"].start()
    cluster.sync("docs")
    cluster.join("box3")
    with pytest.raises(CrnodeError, match="no part in that set"):
        restored(cluster, "box3", version=good)
    words = ["restore", "docs", "--version", good, "--data", str(cluster.master.data)]
    assert crnode(*words, "--in-place", "--to", "/tmp/x", check=False).returncode == ExitCode.USAGE
    shown = crnode(*words, "--plan").stdout
    assert "becomes-file/in/it" in shown and "removed" in shown
    assert rsync_difference(source, spoiled) == ""


def test_a_kill_in_the_midst_leaves_whole_files(shop: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, source = shop
    for number in range(1500):
        (source / "docs" / f"more{number}").write_bytes(b"more %d" % number * 400)
    cluster.sync("docs")
    time.sleep(1.1)
    good = str(newest(cluster))
    was = copied(source, tmp_path / "was")
    for number in range(1500):
        (source / "docs" / f"more{number}").write_bytes(b"spoiled %d" % number)
    cluster.sync("docs")
    words = ["restore", "docs", "--version", good, "--in-place", "--data", str(cluster.master.data)]
    running = SPAWNER.start(words, tmp_path / "out", tmp_path / "out")
    wait_for(lambda: (source / "docs" / "more5").read_bytes().startswith(b"more"), step=0.001)
    cluster.master.kill()
    running.wait(30)
    for number in range(1500):
        data = (source / "docs" / f"more{number}").read_bytes()
        assert data in (b"more %d" % number * 400, b"spoiled %d" % number)
    assert (source / ".crnode").exists()
    cluster.master.start()
    assert not (source / ".crnode").exists()
    assert any("was cut off" in text for text in cluster.master.events())
    out = restored(cluster, "shop1", version=good)
    assert out["verified"], out["skipped"]
    assert rsync_difference(was, source) == ""
    assert not (source / ".crnode").exists()
    assert cluster.sync("docs")["left_out"] == 0


def test_a_name_that_came_goes_though_its_file_is_written_anew(
    shop: tuple[Cluster, Path], tmp_path: Path
) -> None:
    """Writing one name anew moves the time of change of the file that the other name is."""
    cluster, source = shop
    good = str(newest(cluster))
    was = copied(source, tmp_path / "was")
    os.link(source / "docs" / "file5", source / "docs" / "another")
    os.chmod(source / "docs" / "file5", 0o600)
    cluster.sync("docs")
    out = restored(cluster, "shop1", version=good)
    assert out["verified"], out["skipped"]
    assert rsync_difference(was, source) == ""


def test_a_change_while_a_large_file_is_written_stays(shop: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, source = shop
    large = source / "docs" / "mail.box"
    size = 160 << 20
    with open(large, "wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    cluster.sync("docs")
    time.sleep(1.1)
    good = str(newest(cluster))
    with open(large, "r+b") as file:
        file.write(b"spoiled")
    cluster.sync("docs")
    answer: list[dict[str, object]] = []
    asking = threading.Thread(target=lambda: answer.append(restored(cluster, "shop1", version=good)))
    asking.start()

    def half_written() -> bool:
        sizes = []
        for path in source.glob(".crnode/restore-*/*"):
            with contextlib.suppress(OSError):
                sizes.append(path.stat().st_size)
        return max(sizes, default=0) > size // 2

    wait_for(half_written, step=0.002)
    with open(large, "r+b") as file:
        file.seek(10 << 20)  # of what is written already: later on the bytes that lie here would be missed
        file.write(b"an order that came just now")
    asking.join()
    assert [skipped["path"] for skipped in answer[0]["skipped"]] == ["docs/mail.box"]  # type: ignore[attr-defined]
    with open(large, "rb") as file:
        file.seek(10 << 20)
        assert file.read(27) == b"an order that came just now"


def test_a_link_that_was_planted_leads_nowhere(shop: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, source = shop
    good = str(newest(cluster))
    outside = tmp_path / "outside"
    outside.mkdir()
    (source / ".crnode").symlink_to(outside)
    (source / "docs" / "file1").write_bytes(b"spoiled")
    cluster.sync("docs")
    before = outside.stat().st_mtime_ns
    with pytest.raises(CrnodeError, match="in the way") as error:
        restored(cluster, "shop1", version=good)
    assert error.value.exit_code == ExitCode.REFUSED
    assert outside.stat().st_mtime_ns == before and (source / ".crnode").is_symlink()


def test_back_to_an_empty_beginning(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    cluster.join("box2")
    source = tmp_path / "source"
    source.mkdir()
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path / 'live'}"], brake_percent=0)
    cluster.sync("docs")
    time.sleep(1.1)
    good = str(newest(cluster))
    tree(source)
    cluster.sync("docs")
    out = restored(cluster, "shop1", version=good)
    assert out["verified"] and os.listdir(source) == []
    cluster.sync("docs")
    assert os.listdir(tmp_path / "live") == []


class Far:
    """Passes connections to a port of this machine on, each byte a while later, as to another town."""

    def __init__(self, port: int, to: int, delay: float) -> None:
        self.port, self.to, self.delay = port, to, delay
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        serving = asyncio.start_server(self._one, "127.0.0.1", port)
        asyncio.run_coroutine_threadsafe(serving, self._loop).result(5)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def write(data: bytes) -> None:
            if data:
                writer.write(data)
            else:
                writer.close()

        data = b"-"
        while data:
            try:
                data = await reader.read(65536)
            except OSError:
                data = b""
            self._loop.call_later(self.delay, write, data)


def test_a_far_target_and_a_log_that_grows(cluster: Cluster, tmp_path: Path) -> None:
    """When its acknowledgement arrives the target has further images, and has thinned that one."""
    cluster.init()
    token = cluster.master.call("invite", {"name": "box2", "role": "replica", "ttl_s": 600})["token"]
    port, far = free_port(), free_port()
    Far(far, port, 0.1)
    at = ("--listen", f"127.0.0.1:{port}", "--advertise", f"127.0.0.1:{far}")
    crnode("join", token, *at, "--data", str(tmp_path / "box2"))
    cluster.nodes["box2"] = Node("box2", "replica", tmp_path / "box2", port)
    cluster.nodes["box2"].start()
    source = tmp_path / "source"
    source.mkdir()
    tree(source)
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path / 'live'}"], brake_percent=0)
    cluster.sync("docs")
    time.sleep(1.5)
    good = str(newest(cluster))
    (source / "docs" / "file1").write_bytes(b"spoiled")
    stop = threading.Event()

    def log() -> None:
        while not stop.wait(0.05):
            with open(source / "log", "ab") as file:
                file.write(b"a line\n")

    logging = threading.Thread(target=log)
    logging.start()
    try:
        time.sleep(1)
        out = restored(cluster, "shop1", path="docs", version=good)
    finally:
        stop.set()
        logging.join()
    assert out["verified"], out["skipped"]
    assert (source / "docs" / "file1").read_bytes().startswith(b"first 1")
    kept = out["kept"]
    assert isinstance(kept, dict)
    cluster.nodes["box2"].call(
        "restore", {"set": "docs", "path": "docs", "version": kept["name"], "to": str(tmp_path / "back")}
    )
    assert (tmp_path / "back" / "file1").read_bytes() == b"spoiled"
