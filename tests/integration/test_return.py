"""A node that comes back learns what changed before it opens any set, and is not held up when nobody tells.
"""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

from harness import Cluster, wait_for


def test_a_source_that_was_away_captures_nothing_under_an_old_document(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.init()
    cluster.join("box2")
    away = cluster.join("box3", "repli-master")
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"a")
    uuid = cluster.add_set("docs", "box3", source, [f"box2:{tmp_path}/live"], privileged=False)
    wait_for(lambda: away.call("set.list")["sets"])
    cluster.sync("docs")
    away.stop()
    cluster.master.call("set.remove", {"name": "docs", "now": True})
    cookies = away.data / "cookies" / uuid
    shutil.rmtree(cookies)  # made anew as soon as the source begins to watch
    (source / "b").write_bytes(b"b")
    away.start()
    assert away.call("set.list")["sets"] == []
    # (Usually it says that the cluster was changed while it was away; now and then another node's offer of
    # the document comes before the answer to its question.)
    assert not cookies.exists()


def test_a_start_does_not_wait_for_a_master_that_is_down(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    box2 = cluster.join("box2", "repli-master")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"a")
    cluster.add_set("docs", "box2", tmp_path / "source", [f"shop1:{tmp_path}/live"], privileged=False)
    cluster.sync("docs")  # at once: the set is known here, and on its way to its source
    box2.stop()
    begun = time.monotonic()
    box2.start()
    normal = time.monotonic() - begun
    box2.stop()
    cluster.master.stop()
    with socket.socket() as silent:  # a machine that takes connections and says nothing: the worst of them
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        silent.bind(("127.0.0.1", cluster.master.port))
        silent.listen()
        begun = time.monotonic()
        box2.start()
        assert time.monotonic() - begun < normal + 3.0
    (tmp_path / "source" / "b").write_bytes(b"b")
    cluster.master.start()
    wait_for(lambda: (tmp_path / "live" / "b").exists())
