"""Names that become a directory, a file and a link in quick succession: every image is a tree, is taken by
its target, and leaves nothing behind."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from pathlib import Path

from harness import Cluster, rsync_difference


def change_kinds(place: Path, seed: int, seconds: float) -> None:
    """Make and replace five names of all kinds."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name = place / f"name{chance.randrange(5)}"
        if name.is_symlink() or name.is_file():
            name.unlink()
        elif name.is_dir():
            shutil.rmtree(name)
        match chance.randrange(4):
            case 0:
                (name / "below" / "deeper").mkdir(parents=True)
                (name / "below" / "deeper" / "file").write_bytes(b"x" * chance.randrange(100))
            case 1:
                name.write_bytes(os.urandom(chance.randrange(60_000)))
            case 2:
                name.symlink_to("nowhere")
        time.sleep(chance.random() * 0.004)


def test_names_that_change_their_kind(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    cluster.join("box2")
    source = tmp_path / "source"
    places = [source / f"folder{number}" for number in range(3)]
    for place in places:
        place.mkdir(parents=True)
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/live"])
    cluster.sync("docs")
    for burst in range(6):
        writers = [
            threading.Thread(target=change_kinds, args=(place, 10 * burst + number, 1.0))
            for number, place in enumerate(places)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        out = cluster.sync("docs")
        assert rsync_difference(source, tmp_path / "live") == ""
        assert out["targets"][0]["unapplied"] == 0
    said = [text for node in cluster.nodes.values() for text in node.events()]
    for word in ("refused", "broke the protocol", "changed locally", "root was removed"):
        assert not [text for text in said if word in text], word
