"""While a large image is captured, what capture has read goes ahead of it: once, and no promise."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from harness import Cluster, Node, rsync_difference, wait_for

FILES, SIZE = 12_000, 4096


def made(place: Path, seed: int) -> Path:
    chance = random.Random(seed)
    for number in range(FILES):
        path = place / f"{number // 400}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(SIZE))
    return place


def stored(node: Node) -> int:
    """Bytes in the packs of a node."""
    return sum(path.stat().st_size for path in (node.data / "store" / "packs").iterdir())


def sequence(node: Node) -> int:
    """Number of the newest image that a target has."""
    versions = node.call("versions", {"set": "docs"})["versions"]
    return max((version["number"] for version in versions), default=0)


@pytest.mark.parametrize("first", [True, False])
def test_a_large_image_goes_ahead_and_travels_once(cluster: Cluster, tmp_path: Path, first: bool) -> None:
    shop1 = cluster.init()
    box2 = cluster.join("box2")
    source = tmp_path / "source"
    data = made(source / "tree" if first else tmp_path / "made", 1)
    source.mkdir(exist_ok=True)
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/live"])
    if not first:
        cluster.sync("docs")
        before, empty = sequence(box2), stored(box2)
        data.rename(source / "tree")
    else:
        before, empty = 0, 0
    wait_for(lambda: stored(box2) - empty > FILES * SIZE // 4, 30)
    assert sequence(box2) == before, "nothing went ahead"
    cluster.sync("docs")
    assert rsync_difference(source, tmp_path / "live") == ""
    sent = shop1.call("status")["sets"][0]["targets"][0]["sent_bytes"]
    assert FILES * SIZE < sent < FILES * SIZE * 1.3


def test_what_went_ahead_is_no_loss_when_the_target_or_the_source_dies(
    cluster: Cluster, tmp_path: Path
) -> None:
    shop1 = cluster.init()
    box2 = cluster.join("box2")
    source = tmp_path / "source"
    source.mkdir()
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/live"])
    cluster.sync("docs")
    for turn, node in enumerate((box2, shop1)):
        empty = stored(box2)
        made(tmp_path / f"made{turn}", turn).rename(source / f"tree{turn}")
        wait_for(lambda empty=empty: stored(box2) - empty > FILES * SIZE // 5, 30)
        node.kill()
        time.sleep(0.2)
        node.start()
        cluster.sync("docs")
        assert rsync_difference(source, tmp_path / "live") == ""
    assert box2.call("scrub", {}, 120)["damaged"] == []


def test_a_file_put_back_while_a_large_image_is_captured(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    box2 = cluster.join("box2")
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"the right bytes")
    data = made(tmp_path / "made", 1)
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/live"])
    cluster.sync("docs")
    empty = stored(box2)
    (source / "a").rename(tmp_path / "saved")
    (source / "a").write_bytes(b"other bytes, for a moment")
    data.rename(source / "tree")
    wait_for(lambda: stored(box2) - empty > FILES * SIZE // 4, 30)
    (tmp_path / "saved").rename(source / "a")
    for _ in range(2):
        cluster.sync("docs")
    assert (source / "a").read_bytes() == b"the right bytes"
    assert (tmp_path / "live" / "a").read_bytes() == b"the right bytes"
    assert rsync_difference(source, tmp_path / "live") == ""
