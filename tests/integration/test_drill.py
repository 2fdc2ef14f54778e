"""Verdicts of versions: what verify reads back, what a drill restores, and that they stay."""

from __future__ import annotations

import os
import time
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


def spoiled(cluster: Cluster, node: str, source: Path, live: Path | None = None) -> None:
    """Break what a node's store holds of the large file, every good copy of it, with its agent stopped; in
    its `live` tree it is gone then, too.

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
    for name in ("large", "other name") if live is not None else ():
        (live / name).unlink()
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
    spoiled(shop, "box2", tmp_path / "source", tmp_path / "two")
    done = crnode("verify", "docs", "--data", str(shop.nodes["box2"].data), check=False)
    assert done.returncode == ExitCode.DAMAGE, done.stdout + done.stderr
    assert "is bad" in done.stdout and "damaged: large" in done.stdout
    assert row(shop, "box2")["verdict"] == "bad"
    done = crnode("drill", "docs", "--data", str(shop.nodes["box2"].data), check=False)
    assert done.returncode == ExitCode.UNREACHABLE, done.stdout + done.stderr
    shop.nodes["box3"].start()
    shop.master.start()
    wait_for(lambda: shop.nodes["box2"].call("verify", {"set": "docs"})["verdict"] == "good", 30)
    assert row(shop, "box2")["verdict"] == "good"


def test_a_drill_heals_first_from_wherever_the_content_is(shop: Cluster, tmp_path: Path) -> None:
    box3 = shop.nodes["box3"]
    data = str(box3.data)
    crnode("drill", "docs", "--run", "test -f large", "--every", "1d", "--data", data)
    spoiled(shop, "box3", tmp_path / "source")
    done = crnode("drill", "docs", "--planned", "--data", data)
    assert "is good" in done.stdout and ".." not in done.stdout, done.stdout
    assert any("were fetched again from its own live tree" in text for text in box3.events())
    assert box3.call("scrub")["damaged"] == []

    spoiled(shop, "box3", tmp_path / "source", tmp_path / "three")
    done = crnode("drill", "docs", "--data", data)
    assert "damaged here were fetched again first" in done.stdout
    assert not row(shop, "box3")["evidence"].startswith("content is lacking")
    assert row(shop, "box3")["verdict"] == "good"
    healed = [text for text in box3.events() if "of version" in text and "were fetched again from" in text]
    assert "shop1" in healed[-1] or "box2" in healed[-1]


def test_a_version_whose_content_was_healed_is_not_called_bad_any_more(shop: Cluster, tmp_path: Path) -> None:
    box3 = shop.nodes["box3"]
    others = [shop.nodes[name] for name in ("shop1", "box2")]
    for node in others:
        node.stop()
    spoiled(shop, "box3", tmp_path / "source", tmp_path / "three")
    assert box3.call("verify", {"set": "docs"})["verdict"] == "bad"
    done = crnode("drill", "docs", "--planned", "--data", str(box3.data), check=False)
    assert done.returncode == ExitCode.DAMAGE and ".." not in done.stdout, done.stdout
    for node in others:
        node.start()
    wait_for(lambda: all(d["healed_from"] for d in box3.call("scrub")["damaged"]))
    assert row(shop, "box3")["verdict"] != "bad"  # untested, until the idle node proves it
    assert box3.call("verify", {"set": "docs"})["verdict"] == "good"


def test_what_a_drill_found_lacking_everywhere_is_judged_anew_when_it_is_here_again(
    shop: Cluster, tmp_path: Path
) -> None:
    source, old, box3 = tmp_path / "source", tmp_path / "old", shop.nodes["box3"]
    old.mkdir()
    (old / "large").write_bytes((source / "large").read_bytes())
    first = row(shop, "box3")["number"]
    time.sleep(1.1)  # the first version is followed by quiet, and stays
    (source / "large").write_bytes(b"small now")
    shop.sync("docs")
    for node in ("box2", "box3"):
        spoiled(shop, node, old)
    shop.sync("docs")  # all are up

    def verdict() -> tuple[str, str]:
        versions = box3.call("versions", {"set": "docs"})["versions"]
        one = next(v for v in versions if (v["node"], v["number"]) == ("box3", first))
        return one["verdict"], one["evidence"]

    done = crnode("drill", "docs", "--version", str(first), "--data", str(box3.data), check=False)
    assert done.returncode == ExitCode.DAMAGE, done.stdout + done.stderr
    assert verdict()[0] == "bad" and verdict()[1].startswith("content is lacking"), verdict()
    time.sleep(1.1)
    (source / "large").write_bytes((old / "large").read_bytes())
    shop.sync("docs")
    box3.call("scrub")
    assert verdict() == ("untested", None)
    done = crnode("drill", "docs", "--version", str(first), "--data", str(box3.data))
    assert "22 files" in done.stdout and verdict()[0] == "good"


def test_what_a_command_found_bad_stays_bad_when_its_content_is_healed(shop: Cluster, tmp_path: Path) -> None:
    box3 = shop.nodes["box3"]
    data = str(box3.data)
    crnode("drill", "docs", "--run", "echo 'It is wrong.'; exit 3", "--every", "1d", "--data", data)
    done = crnode("drill", "docs", "--planned", "--data", data, check=False)
    assert done.returncode == ExitCode.DAMAGE and done.stdout.endswith("It is wrong.\n"), done.stdout
    others = [shop.nodes[name] for name in ("shop1", "box2")]
    for node in others:
        node.stop()
    spoiled(shop, "box3", tmp_path / "source", tmp_path / "three")
    assert box3.call("verify", {"set": "docs"})["damaged"]
    assert box3.call("scrub")["lacking"]
    for node in others:
        node.start()
    wait_for(lambda: not box3.call("scrub")["lacking"])
    found = row(shop, "box3")
    assert found["verdict"] == "bad" and "ended with 3" in found["evidence"]


def test_a_drill_restores_checks_measures_and_leaves_nothing(shop: Cluster, tmp_path: Path) -> None:
    data = shop.nodes["box2"].data
    look = f"test -f d/f7 && echo seen > {tmp_path}/seen && pwd"
    done = crnode("drill", "docs", "--run", look, "--data", str(data))
    assert (tmp_path / "seen").read_text() == "seen\n"
    assert "22 files" in done.stdout and "digest is that of the version" in done.stdout
    assert "the version is good" in done.stdout and "removed again" in done.stdout
    assert list((data / "drills").iterdir()) == []
    found = row(shop, "box2")
    assert found["verdict"] == "good" and f"'{look}' found it well" in found["evidence"]
    crnode("drill", "docs", "--data", str(data))
    assert row(shop, "box2")["evidence"] == found["evidence"]  # reading it says less
    done = crnode("drill", "docs", "--run", "exit 3", "--data", str(data), "--json", check=False)
    assert done.returncode == ExitCode.DAMAGE
    assert '"command_code": 3' in done.stdout
    found = row(shop, "box2")
    assert found["verdict"] == "suspect" and "'exit 3' ended with 3 in a drill" in found["evidence"]
    done = crnode("verify", "docs", "--node", "box2", "--data", str(data), check=False)
    assert done.returncode == ExitCode.DAMAGE and "suspect" in done.stdout  # it reads well, that is no answer
    done = crnode("drill", "docs:d", "--run", "exit 4", "--data", str(data), check=False)
    assert "what was restored is no good" in done.stdout
    assert row(shop, "box2")["evidence"] == found["evidence"]
    crnode("drill", "docs", "--planned", "--data", str(data), check=False)
    assert not [text for text in shop.nodes["box2"].events() if "is damaged here" in text]
    # Where it is not kept nothing is said of what is.
    done = crnode("drill", "docs", "--run", "true", "--data", str(shop.master.data))
    assert "what was restored is good" in done.stdout and "keeps the version" in done.stdout
    assert row(shop, "box2")["evidence"] == found["evidence"]
    crnode("drill", "docs", "--run", "no-such-command-here", "--data", str(data), check=False)
    assert row(shop, "box2")["verdict"] == "suspect"
    assert "the version is good" in crnode("drill", "docs", "--run", "true", "--data", str(data)).stdout
    assert row(shop, "box2")["verdict"] == "good"
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
    assert "1 file," in done.stdout
    assert list((tmp_path / "big" / "box2" / "drills").iterdir()) == []
