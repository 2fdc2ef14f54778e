"""What counts as the newest version after a source lost its catalog or was set back."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import apsw
import pytest
from harness import Cluster, Node, crnode, wait_for


def asked(node: Node, name: str, **args: Any) -> dict[str, Any]:
    return node.call(name, {"set": "docs", **args})


def some_versions(cluster: Cluster, source: Path) -> None:
    for number in range(6):
        (source / "f").write_text(f"old {number}")
        (source / "old").write_text(f"old {number}")
        cluster.sync("docs")
        time.sleep(1.2)


def changed(source: Path) -> None:
    (source / "old").unlink()
    (source / "fresh").write_text("x")
    (source / "f").write_text("new")


def check(cluster: Cluster, tmp_path: Path) -> None:
    """Every question about the newest is answered with what was written last, and no number comes twice."""
    box2 = cluster.nodes["box2"]
    time.sleep(1.5)  # a further image, of a scan, may thin one of these
    assert (tmp_path / "live" / "f").read_text() == "new"
    versions = asked(box2, "versions")["versions"]
    numbers = [version["number"] for version in versions]
    assert numbers == sorted(set(numbers)), numbers
    assert [entry["name"] for entry in asked(box2, "ls")["entries"]] == ["f", "fresh"]
    asked(box2, "restore", to=str(tmp_path / "back"))
    assert (tmp_path / "back" / "f").read_text() == "new"
    soon = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + 1))
    words = ("cat", "docs:f", "--at", soon, "--data", str(box2.data))
    assert crnode(*words).stdout == "new"
    for version in versions:  # by its number each is what it says
        shutil.rmtree(tmp_path / "back")
        out = asked(box2, "restore", version=str(version["number"]), to=str(tmp_path / "back"))
        assert out["digest"] == version["digest"]


@pytest.fixture
def source(cluster: Cluster, tmp_path: Path) -> Path:
    cluster.init()
    cluster.join("box2")
    made = tmp_path / "source"
    made.mkdir()
    (made / "f").write_text("old")
    cluster.add_set("docs", "shop1", made, [f"box2:{tmp_path}/live"])
    cluster.sync("docs")
    return made


def test_after_the_source_lost_its_catalog(cluster: Cluster, source: Path, tmp_path: Path) -> None:
    some_versions(cluster, source)
    cluster.master.stop()
    for path in (cluster.master.data / "sets").glob("*.db*"):
        path.unlink()
    changed(source)
    cluster.master.start()
    cluster.sync("docs")
    check(cluster, tmp_path)


def test_after_the_source_was_set_back(cluster: Cluster, source: Path, tmp_path: Path) -> None:
    master = cluster.master
    master.stop()
    shutil.copytree(master.data, tmp_path / "yesterday", symlinks=True)
    master.start()
    some_versions(cluster, source)
    master.kill()
    shutil.rmtree(master.data)
    shutil.copytree(tmp_path / "yesterday", master.data, symlinks=True)
    os.chmod(master.data, 0o700)
    changed(source)
    master.start()
    cluster.sync("docs")
    check(cluster, tmp_path)


@pytest.mark.parametrize("left", ["nothing", "a folder"])
def test_a_source_that_is_empty_when_its_catalog_is_made_again_waits(
    cluster: Cluster, source: Path, tmp_path: Path, left: str
) -> None:
    """The catalog is damaged where it says whose it is: what else it says can be read, the identity of its
    folder too; that the set had files is forgotten with the rest."""
    master = cluster.master
    (source / "d").mkdir()
    (source / "d" / "g").write_text("g")
    cluster.sync("docs")
    master.stop()
    (source / "d" / "g").unlink()
    (source / "f").unlink()
    if left == "nothing":
        (source / "d").rmdir()
    (catalog,) = (master.data / "sets").glob("*.db")
    db = apsw.Connection(str(catalog))
    db.execute("DELETE FROM meta WHERE key='set'")
    db.close()
    master.start()
    (state,) = wait_for(lambda: [s for s in master.call("status")["sets"] if "emptied" in str(s)])
    time.sleep(1)
    assert (tmp_path / "live" / "d" / "g").read_text() == "g"
    crnode("set", "rebase", "docs", "--data", str(master.data))
    cluster.sync("docs")
    assert not (tmp_path / "live" / "d" / "g").exists()
