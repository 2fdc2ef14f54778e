"""Several sources to one target, one source to several targets, and a node that joins while changes flow."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from harness import Cluster, rsync_difference, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners can only be compared as root")


def make(root: Path, seed: int, count: int = 60) -> Path:
    root.mkdir()
    for i in range(count):
        (root / f"d{i % 5}").mkdir(exist_ok=True)
        (root / f"d{i % 5}" / f"f{i}").write_bytes(bytes([seed]) * (i * 700))
    return root


@pytest.mark.timeout(300)
def test_many_to_one_one_to_many_and_a_late_node(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init("a")
    cluster.join("b", "repli-master")
    cluster.join("c", "repli-master")
    sources = {name: make(tmp_path / f"src-{name}", number) for number, name in enumerate("abc", 1)}
    stop = threading.Event()

    def write() -> None:
        count = 0
        while not stop.is_set():
            for root in sources.values():
                (root / f"live{count % 50}").write_bytes(str(count).encode() * 300)
            count += 1
            time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        cluster.join("d")
        for name in "abc":  # three sources to one target
            cluster.add_set(f"from-{name}", name, sources[name], [f"d:{tmp_path}/d-{name}"])
        wide = make(tmp_path / "wide", 9)
        cluster.add_set(
            "wide", "a", wide, [f"{n}:{tmp_path}/wide-{n}" for n in "bcd"]
        )  # one source to three targets
        cluster.join("e", "secondary")  # a node joins while changes flow
        more = make(tmp_path / "more", 4)
        cluster.add_set("more", "b", more, [f"e:{tmp_path}/more-e", f"d:{tmp_path}/more-d"])
        for name in "abc":
            cluster.sync(f"from-{name}")
    finally:
        stop.set()
        writer.join()
    for name in "abc":
        cluster.sync(f"from-{name}", node=name if name == "a" else "a")
        assert rsync_difference(sources[name], tmp_path / f"d-{name}") == ""
    cluster.sync("wide")
    for name in "bcd":
        assert rsync_difference(wide, tmp_path / f"wide-{name}") == ""
    cluster.sync("more", node="b")
    for name in "de":
        assert rsync_difference(more, tmp_path / f"more-{name}") == ""
    # a set is removed while the others run on, undisturbed
    before = {s["name"]: s["sequence"] for s in cluster.master.call("status")["sets"]}
    cluster.master.call("set.remove", {"name": "from-b", "now": False})
    wait_for(lambda: "from-b" not in {s["name"] for s in cluster.nodes["d"].call("set.list")["sets"]})
    (wide / "after").write_bytes(b"x")
    cluster.sync("wide")
    assert (tmp_path / "wide-d" / "after").read_bytes() == b"x"
    after = {s["name"]: s["sequence"] for s in cluster.master.call("status")["sets"]}
    assert after["wide"] > before["wide"]
    assert after["more"] == before["more"]
