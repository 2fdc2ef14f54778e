"""A source whose catalog is lost captures anew and compares: what the target has does not travel again."""

from __future__ import annotations

import os
import random
from pathlib import Path

from harness import Cluster, rsync_difference

FILES, SIZE = 4_000, 450


def test_small_files_that_the_target_has_do_not_travel_again(cluster: Cluster, tmp_path: Path) -> None:
    shop1 = cluster.init()
    cluster.join("box2")
    source, live = tmp_path / "source", tmp_path / "live"
    made = random.Random(1)
    for number in range(FILES):
        if number % 500 == 0:
            (source / f"{number // 500}").mkdir(parents=True)
        (source / f"{number // 500}" / f"{number}").write_bytes(made.randbytes(SIZE))
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"])
    cluster.sync("docs")
    assert shop1.call("status")["sets"][0]["targets"][0]["sent_bytes"] > FILES * SIZE
    shop1.stop()
    for path in (shop1.data / "sets").glob("*.db*"):
        path.unlink()
    (source / "0" / "7").write_bytes(os.urandom(SIZE))
    (source / "0" / "8").unlink()
    shop1.start()
    cluster.sync("docs")
    assert rsync_difference(source, live) == ""
    assert shop1.call("status")["sets"][0]["targets"][0]["sent_bytes"] < FILES * SIZE // 3
