"""Agents are killed and connections cut while a program keeps the tree in motion: in the end nothing is lost.

CRNODE_SOAK=seconds makes it run longer than the usual half minute.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import Cluster, Node, rsync_difference

KILLS = 20
HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and xattrs can only be compared as root")


def cut_connections(node: Node) -> int:
    """Abort every TCP connection to the node's port, as a broken line does (ss -K); returns how many."""
    done = subprocess.run(
        ["ss", "-K", "-H", "-t", "dst", "127.0.0.1", "dport", "=", f":{node.port}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return len(done.stdout.splitlines())


@pytest.mark.timeout(900)
def test_kill_everything_at_random_moments(cluster: Cluster, tmp_path: Path) -> None:
    seed = int(os.environ.get("CRNODE_SEED", "7"))
    seconds = float(os.environ.get("CRNODE_SOAK", "35"))
    chance = random.Random(seed)
    source = tmp_path / "source"
    source.mkdir()
    kept = {f"keep-{i}": random.Random(i).randbytes(37 * i) for i in range(300)}
    for name, data in kept.items():
        (source / name).write_bytes(data)
    cluster.init()
    cluster.join("mirror")
    cluster.join("archive")
    cluster.add_set("docs", "shop1", source, [f"mirror:{tmp_path}/mirrored"], brake_percent=0)
    archive = [f"archive:{tmp_path}/archived"]
    cluster.add_set("kept", "shop1", source, archive, mode="archive", brake_percent=0)
    cluster.sync("docs")
    cluster.sync("kept")
    churn = subprocess.Popen(
        [sys.executable, str(HERE / "churn.py"), str(source), str(seed), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    kills = cuts = 0
    try:
        while churn.poll() is None or kills < KILLS:
            time.sleep(chance.uniform(0.1, 1.6 * seconds / KILLS) * (0.5 if churn.poll() is None else 0.1))
            cuts += cut_connections(chance.choice(list(cluster.nodes.values())))
            victims = chance.sample(list(cluster.nodes.values()), chance.choice((1, 1, 1, 2, 3)))
            for node in victims:
                node.kill()
                kills += 1
            time.sleep(chance.uniform(0, 0.5))
            for node in victims:
                node.start()
    finally:
        churn.kill()
        steps = churn.communicate()[0]
    assert int(steps) > 500
    docs = cluster.sync("docs", timeout=120)
    archived = cluster.sync("kept", timeout=120)
    assert rsync_difference(source, tmp_path / "mirrored") == ""
    assert {t["digest"] for t in docs["targets"]} == {docs["digest"]}
    assert {t["digest"] for t in archived["targets"]} == {archived["digest"]}
    deleted = [name for name in kept if not (source / name).exists()]
    assert deleted, "the churn deleted nothing: this test would prove nothing"
    for name, data in kept.items():
        assert (tmp_path / "archived" / name).read_bytes() == data
    for node in cluster.nodes.values():
        assert node.call("scrub")["damaged"] == []
    print(
        f"{steps.strip()} changes, {kills} kills, {cuts} cuts,"
        f" {len(deleted)} deleted files still in the archive"
    )
    if not cuts:
        pytest.skip("all held, but no connection was cut: this kernel has no ss -K")
