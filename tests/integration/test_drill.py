"""Verdicts of versions: what verify reads back, what a drill restores, and that they stay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from harness import Cluster, crnode, wait_for

from crnode.errors import CrnodeError, ExitCode


@pytest.fixture
def shop(cluster: Cluster, tmp_path: Path) -> Cluster:
    cluster.init()
    cluster.join("box2")
    cluster.join("box3")
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    for number in range(20):
        (source / "d" / f"f{number}").write_bytes(b"%d" % number * 1000)
    (source / "large").write_bytes(os.urandom(3 << 20))
    os.link(source / "large", source / "other name")
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/two", f"box3:{tmp_path}/three"])
    cluster.sync("docs")
    return cluster


def row(cluster: Cluster, node: str) -> dict[str, Any]:
    versions = cluster.nodes[node].call("versions", {"set": "docs"})["versions"]
    return next(version for version in versions if version["node"] == node)


def spoiled(cluster: Cluster, node: str, source: Path) -> None:
    """Break what a node's store holds of the large file, every good copy of it, with its agent stopped.

    Found by its bytes: by places, whether the copies that a heal has written are hit is a matter of luck.
    """
    at = cluster.nodes[node]
    at.stop()
    content = (source / "large").read_bytes()
    hit = 0
    for pack in (at.data / "store").rglob("*.pack"):
        data = pack.read_bytes()
        with open(pack, "r+b") as file:
            for start in range(0, len(content), 256 << 10):
                place = data.find(content[start : start + 64])
                while place >= 0:
                    file.seek(place)
                    file.write(os.urandom(64))
                    hit += 1
                    place = data.find(content[start : start + 64], place + 1)
    assert hit >= 8, hit  # of 12; one that lies across the end of a chunk is not found
    at.start()


def test_a_version_is_read_back(shop: Cluster) -> None:
    out = shop.nodes["box2"].call("verify", {"set": "docs"})
    assert (out["verdict"], out["files"], out["healed"], out["node"]) == ("good", 22, 0, "box2")
    found = row(shop, "box2")
    assert found["verdict"] == "good" and "22 files were read back" in found["evidence"]
    out = shop.master.call("verify", {"set": "docs", "node": "box3"})  # asked where nothing is kept
    assert (out["verdict"], out["node"]) == ("good", "box3")
    shop.nodes["box3"].kill()
    shop.nodes["box3"].start()
    assert row(shop, "box3")["verdict"] == "good"
    shown = crnode("versions", "docs", "--data", str(shop.nodes["box2"].data)).stdout
    assert "good" in shown


def test_damage_is_healed_or_the_version_is_bad(shop: Cluster, tmp_path: Path) -> None:
    spoiled(shop, "box2", tmp_path / "source")
    out = shop.nodes["box2"].call("verify", {"set": "docs"})
    assert out["verdict"] == "good" and out["healed"] >= 1, out
    for name in ("shop1", "box3"):
        shop.nodes[name].stop()
    spoiled(shop, "box2", tmp_path / "source")
    done = crnode("verify", "docs", "--data", str(shop.nodes["box2"].data), check=False)
    assert done.returncode == ExitCode.DAMAGE, done.stdout + done.stderr
    assert "is bad" in done.stdout and "damaged: large" in done.stdout
    assert row(shop, "box2")["verdict"] == "bad"
    shop.nodes["box3"].start()
    shop.master.start()
    wait_for(lambda: shop.nodes["box2"].call("verify", {"set": "docs"})["verdict"] == "good", 30)
    assert row(shop, "box2")["verdict"] == "good"


def test_a_drill_restores_checks_measures_and_leaves_nothing(shop: Cluster, tmp_path: Path) -> None:
    data = shop.nodes["box2"].data
    look = f"test -f d/f7 && echo seen > {tmp_path}/seen && pwd"
    done = crnode("drill", "docs", "--run", look, "--data", str(data))
    assert (tmp_path / "seen").read_text() == "seen\n"
    assert "22 files" in done.stdout and "digest is that of the version" in done.stdout
    assert "the version is good" in done.stdout and "removed again" in done.stdout
    assert list((data / "drills").iterdir()) == []
    found = row(shop, "box2")
    assert found["verdict"] == "good" and "were restored in" in found["evidence"]
    done = crnode("drill", "docs", "--run", "exit 3", "--data", str(data), "--json", check=False)
    assert done.returncode == ExitCode.DAMAGE
    assert '"command_code": 3' in done.stdout
    done = crnode("drill", "docs:d", "--to", str(tmp_path / "kept"), "--data", str(shop.master.data))
    assert sorted(os.listdir(tmp_path / "kept")) == sorted(f"f{n}" for n in range(20))
    assert "kept" in done.stdout
    left = data / "drills" / "docs-cut-off"
    left.mkdir()
    shop.nodes["box2"].kill()
    shop.nodes["box2"].start()
    assert not left.exists()
    with pytest.raises(CrnodeError, match="There is no version 99"):
        shop.nodes["box2"].call("drill", {"set": "docs", "version": "99"})
    with pytest.raises(CrnodeError, match="data directory"):
        shop.nodes["box2"].call("restore", {"set": "docs", "to": str(data / "drills" / "mine")})


def test_a_data_directory_behind_a_link(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    (tmp_path / "big").mkdir()
    (tmp_path / "var").symlink_to(tmp_path / "big")
    cluster.join("box2", data=tmp_path / "var" / "box2")
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_bytes(b"f")
    cluster.add_set("docs", "shop1", source, ["box2"])
    cluster.sync("docs")
    done = crnode("drill", "docs", "--data", str(tmp_path / "var" / "box2"))
    assert "1 file," in done.stdout or "1 files" in done.stdout
    assert list((tmp_path / "big" / "box2" / "drills").iterdir()) == []
