"""After a set was removed."""

from __future__ import annotations

from pathlib import Path

from harness import Cluster, crnode

from crnode.errors import ExitCode


def test_a_scrub_of_its_source_calls_nothing_damaged(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    cluster.join("box2")
    source = tmp_path / "source"
    source.mkdir()
    (source / "small").write_bytes(b"small")
    (source / "large").write_bytes(bytes(range(256)) * 20_000)
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/live"])
    cluster.sync("docs")
    crnode("set", "remove", "docs", "--data", str(cluster.master.data))
    for node in cluster.nodes.values():
        done = crnode("scrub", "--data", str(node.data), check=False)
        assert done.returncode == ExitCode.OK, done.stdout
        node.stop()
        node.start()
        assert crnode("scrub", "--data", str(node.data), check=False).returncode == ExitCode.OK
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/other"])
    cluster.sync("docs")
    assert (tmp_path / "other" / "large").read_bytes() == (source / "large").read_bytes()
