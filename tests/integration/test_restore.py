"""Restores and answers between real nodes."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from harness import Cluster, Node, json, rsync_difference

from crnode.errors import CrnodeError


def rot(node: Node, kind: int) -> int:
    """Damage every record of this kind (0 chunks, 1 recipes) in the packs of a stopped node."""
    count = 0
    for pack in (node.data / "store" / "packs").glob("*.pack"):
        data = bytearray(pack.read_bytes())
        at = 0
        while (at := data.find(b"CRp1", at)) >= 0:
            if data[at + 4] == kind:
                data[at + 60] ^= 0xFF
                count += 1
            at += 4
        pack.write_bytes(data)
    return count


def test_a_scrub_ends_though_the_source_cannot_read_a_recipe(cluster: Cluster, tmp_path: Path) -> None:
    """Target and source are both damaged: what can be had is healed, and nobody waits for an answer."""
    source = tmp_path / "source"
    source.mkdir()
    cluster.init()
    box2 = cluster.join("box2")
    (source / "big").write_bytes(os.urandom(600_000))
    (source / "small").write_bytes(os.urandom(5000))
    cluster.add_set("docs", "shop1", source, ["box2"])
    cluster.sync("docs")
    cluster.master.stop()
    box2.stop()
    assert rot(cluster.master, 1) and rot(box2, 0)
    cluster.master.start()
    box2.start()
    answers: list[dict[str, Any]] = []
    scrub = threading.Thread(target=lambda: answers.append(box2.call("scrub", timeout=40)), daemon=True)
    scrub.start()
    scrub.join(45)
    assert answers, "the scrub never ended"
    out = box2.call("restore", {"set": "docs", "path": "small", "to": str(tmp_path / "to")})
    assert out["verified"] and "digest_ok" not in out
    assert (tmp_path / "to" / "small").read_bytes() == (source / "small").read_bytes()


def test_the_master_restores_only_where_the_other_node_allows(cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tool").write_bytes(b"program")
    (source / "tool").chmod(0o4755)
    cluster.init()
    box2 = cluster.join("box2")
    cluster.add_set("docs", "shop1", source, ["box2"], privileged=False)
    cluster.sync("docs")
    box2.stop()
    path = box2.data / "node.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "destinations": [str(tmp_path / "allowed")]}))
    path.chmod(0o600)
    box2.start()
    with pytest.raises(CrnodeError) as caught:
        cluster.master.call("restore", {"set": "docs", "node": "box2", "to": str(tmp_path / "elsewhere")})
    assert "outside what this node allows" in str(caught.value)
    to = tmp_path / "allowed" / "here"
    cluster.master.call("restore", {"set": "docs", "node": "box2", "to": str(to)})
    assert (to / "tool").stat().st_mode & 0o7777 == 0o755


def test_a_collection_leaves_what_a_restore_fetches(cluster: Cluster, tmp_path: Path) -> None:
    """No image of the source's store names what it fetches for a restore."""
    source = tmp_path / "source"
    source.mkdir()
    cluster.init()
    cluster.join("box2")
    for number in range(1500):
        (source / f"f{number}").write_bytes(os.urandom(20_000))
    (source / "big").write_bytes(os.urandom(30 << 20))
    cluster.add_set("docs", "shop1", source, ["box2"])
    cluster.sync("docs")
    over, given = threading.Event(), []

    def collect() -> None:
        while not over.is_set():
            with contextlib.suppress(CrnodeError):  # the one of each minute runs
                given.append(cluster.master.call("gc")["removed_bytes"])

    collecting = threading.Thread(target=collect, daemon=True)
    collecting.start()
    try:
        out = cluster.master.call("restore", {"set": "docs", "to": str(tmp_path / "to")}, timeout=120)
    finally:
        over.set()
        collecting.join(30)
    assert out["digest_ok"] and rsync_difference(source, tmp_path / "to") == ""
    assert len(given) > 1
    assert sum(given) + cluster.master.call("gc")["removed_bytes"] > 30 << 20  # and it does not stay


def test_a_holder_that_is_away_is_waited_for_once(cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    cluster.init()
    cluster.join("box2")
    cluster.join("box3")
    for number in range(4000):  # ten batches
        (source / f"f{number}").write_bytes(b"%d" % number * 300)
    cluster.add_set("docs", "shop1", source, ["box2", "box3"])
    cluster.sync("docs")
    cluster.nodes["box2"].stop()
    out = cluster.master.call("restore", {"set": "docs", "to": str(tmp_path / "to")}, timeout=120)
    assert out["digest_ok"] and out["seconds"] < 15  # 2 s for each of the batches it was
    assert rsync_difference(source, tmp_path / "to") == ""
