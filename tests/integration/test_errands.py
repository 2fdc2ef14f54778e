"""Work that another node carries out: how far it is is told here, and who gives up here stops it there."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from harness import Cluster, rsync_difference, wait_for

from crnode.errors import CrnodeError
from crnode.net.control import call

FILES = 8_000


@pytest.fixture
def shop(cluster: Cluster, tmp_path: Path) -> Cluster:
    cluster.init()
    cluster.join("box2", "secondary")
    source = tmp_path / "source"
    for number in range(FILES):
        if number % 100 == 0:
            (source / f"{number // 100}").mkdir(parents=True)
        (source / f"{number // 100}" / f"{number}").write_bytes(b"page %d\n" % number * 200)
    cluster.add_set("docs", "shop1", source, ["box2"])
    cluster.sync("docs")
    return cluster


def interrupted(shop: Cluster, at: str, to: Path, *words: str) -> None:
    """A restore to `to` that is ended by Ctrl-C when it has begun to write."""
    command = [sys.executable, "-m", "crnode", "restore", "docs", *words, "--data", str(shop.nodes[at].data)]
    ran = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: len(list(to.parent.glob(".crnode-restore-*/**/*"))) > 50, 60, 0.01)
        ran.send_signal(signal.SIGINT)
        ran.communicate(timeout=30)
        assert ran.returncode not in (0, None)
    finally:
        ran.kill()
        ran.wait()


def test_ctrl_c_stops_a_restore_on_another_node_and_it_goes_on_when_repeated(
    shop: Cluster, tmp_path: Path
) -> None:
    to = tmp_path / "there" / "restored"
    to.parent.mkdir()
    interrupted(shop, "shop1", to, "--node", "box2", "--to", str(to))
    shop.master.call("verify", {"set": "docs", "node": "box2"})  # longer than what was left of it
    assert not to.exists()
    assert not [text for text in shop.nodes["box2"].events() if "was restored" in text]
    said: list[Any] = []
    question = {"set": "docs", "node": "box2", "to": str(to)}

    def again() -> dict[str, Any] | None:
        try:
            return call(shop.master.data / "control.sock", "restore", question, said.append, 120)
        except CrnodeError as error:
            if "running already" not in str(error):
                raise
            return None  # it ends its step first

    out = wait_for(again, 60, 0.5)
    assert out["files"] == FILES and out["resumed"] > 0
    assert rsync_difference(tmp_path / "source", to) == ""
    assert any(item.get("total") for item in said), said  # how far it was


def test_who_stops_one_stops_no_other(shop: Cluster, tmp_path: Path) -> None:
    """Two at a time at the same node: the second is not touched by the end of the first."""
    out: list[Any] = []
    other = tmp_path / "other" / "restored"
    other.parent.mkdir()
    question = {"set": "docs", "node": "box2", "to": str(other)}
    thread = threading.Thread(target=lambda: out.append(shop.master.call("restore", question, 120)))
    thread.start()
    to = tmp_path / "there" / "restored"
    to.parent.mkdir()
    interrupted(shop, "shop1", to, "--node", "box2", "--to", str(to))
    thread.join(120)
    assert out[0]["files"] == FILES and rsync_difference(tmp_path / "source", other) == ""
    assert not to.exists()
