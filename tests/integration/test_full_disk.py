"""A disk that fills up at the target and is freed again: nothing lost, and work goes on without help."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Cluster, rsync_difference, wait_for

from crnode.cluster.sizes import set_quota


@pytest.mark.timeout(300)
@pytest.mark.parametrize("where", ["store", "live"])
def test_target_fills_up_and_is_freed(cluster: Cluster, tmp_path: Path, small_disk: Path, where: str) -> None:
    cluster.init()
    if where == "store":
        cluster.join("box2", data=small_disk / "data")
        destination = tmp_path / "live"
    else:
        cluster.join("box2")
        destination = small_disk / "live"
    source = tmp_path / "source"
    source.mkdir()
    (source / "first").write_bytes(os.urandom(1 << 20))
    cluster.add_set("docs", "shop1", source, [f"box2:{destination}"])
    cluster.sync("docs")
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    with open(filler, "wb") as file:
        file.write(os.urandom(free - (16 << 20)))
        file.flush()
        os.fsync(file.fileno())
    for number in range(10):
        (source / f"more{number}").write_bytes(os.urandom(3 << 20))

    def said() -> bool:
        status = cluster.master.call("status")
        target = status["sets"][0]["targets"][0]
        return "room" in target["reason"] or "full" in target["reason"] or target["state"] == "full"

    wait_for(said, 40)
    assert (destination / "first").read_bytes() == (source / "first").read_bytes()
    assert cluster.nodes["box2"].process is not None
    assert cluster.nodes["box2"].process.poll() is None, "the agent must live through a full disk"
    filler.unlink()

    def caught_up() -> bool:
        return rsync_difference(source, destination) == ""

    wait_for(caught_up, 90, 0.5)
    out = cluster.sync("docs")
    assert {t["digest"] for t in out["targets"]} == {out["digest"]}


@pytest.mark.timeout(300)
def test_what_a_full_node_has_of_a_first_copy_is_not_sent_again(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    box2 = cluster.join("box2", quota="64MiB")
    source, live = tmp_path / "source", tmp_path / "live"
    source.mkdir()
    for number in range(2500):
        (source / f"{number}").write_bytes(os.urandom(40_000))
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"])

    def target() -> dict[str, Any]:
        found: dict[str, Any] = cluster.master.call("status")["sets"][0]["targets"][0]
        return found

    wait_for(lambda: target()["state"] == "full", 60)
    time.sleep(6)  # it was asked once more
    before = target()["sent_bytes"]
    for _ in range(2):
        box2.call("gc")
        time.sleep(6)
    assert target()["state"] in ("full", "copying")
    assert target()["sent_bytes"] - before < 25 << 20
    box2.stop()
    set_quota(box2.data, 300 << 20)
    box2.start()
    cluster.sync("docs", timeout=100)
    assert rsync_difference(source, live) == ""


def test_a_node_keeps_to_its_own_quota(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    box2 = cluster.join("box2", quota="64MiB")
    source, live = tmp_path / "source", tmp_path / "live"
    source.mkdir()
    (source / "first").write_bytes(os.urandom(1 << 20))
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"])
    cluster.sync("docs")
    for number in range(4):
        (source / f"more{number}").write_bytes(os.urandom(20 << 20))
    wait_for(lambda: "quota" in cluster.master.call("status")["sets"][0]["targets"][0]["reason"], 40)
    assert "quota" in next(c["text"] for c in box2.call("doctor")["checks"] if c["name"] == "room")
    packs = sum(path.stat().st_size for path in (box2.data / "store" / "packs").iterdir())
    assert packs <= 64 << 20
    assert (live / "first").read_bytes() == (source / "first").read_bytes()
    box2.stop()
    set_quota(box2.data, 200 << 20)
    box2.start()
    cluster.sync("docs")
    assert rsync_difference(source, live) == ""
