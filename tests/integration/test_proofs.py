"""What a node proves by itself: the newest version, by reading it back or by a command of its owner."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Cluster, Node, crnode

from crnode.errors import ExitCode


def drill(node: Node, *words: str) -> tuple[int, dict[str, Any]]:
    done = crnode("drill", "docs", *words, "--json", "--data", str(node.data), check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else {"said": done.stderr}


def verdicts(node: Node) -> list[tuple[int, str]]:
    rows = node.call("versions", {"set": "docs"})["versions"]
    return [(row["number"], row["verdict"]) for row in rows if row["node"] == node.name]


@pytest.fixture
def box2(cluster: Cluster, tmp_path: Path) -> Node:
    cluster.init()
    box2 = cluster.join("box2")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "books").write_text("balanced\n")
    cluster.add_set("docs", "shop1", tmp_path / "source", ["box2"])
    cluster.sync("docs")
    time.sleep(1.1)
    return box2


def test_a_check_of_the_owner_judges_versions_and_outlives_the_agent(
    cluster: Cluster, tmp_path: Path, box2: Node
) -> None:
    code, answer = drill(box2, "--planned")
    assert code == ExitCode.OK and "read back from the store" in answer["evidence"]
    code, answer = drill(box2, "--run", "grep -q balanced books && echo fine", "--every", "6h")
    assert (code, answer["every_s"]) == (ExitCode.OK, 6 * 3600)
    box2.kill()
    box2.start()
    code, answer = drill(box2, "--planned")
    assert code == ExitCode.OK and "found it well" in answer["evidence"]
    first = answer["version"]

    (tmp_path / "source" / "books").write_text("cooked\n")
    cluster.sync("docs")
    time.sleep(1.1)
    code, answer = drill(box2, "--planned")
    assert code == ExitCode.DAMAGE and answer["verdict"] == "bad" and "ended with 1" in answer["evidence"]
    assert dict(verdicts(box2))[first] == "good"
    assert any("is no good" in text for text in box2.events())
    assert not any((box2.data / "drills").iterdir())  # nothing of a rehearsal stays
    cooked = answer["version"]

    done = crnode("verify", "docs", "--version", str(cooked), "--json", "--data", str(box2.data), check=False)
    assert done.returncode == ExitCode.DAMAGE  # it reads well, and is no good all the same
    assert dict(verdicts(box2))[cooked] == "bad"

    # A check that fails on what it found well before is itself broken.
    drill(box2, "--run", "echo no such books; exit 3", "--every", "1d")
    (tmp_path / "source" / "more").write_text("more")
    cluster.sync("docs")
    time.sleep(1.1)
    code, answer = drill(box2, "--planned")
    assert code == ExitCode.DAMAGE and answer["verdict"] == "untested"
    assert any("has to be mended. no such books" in text for text in box2.events())
    assert dict(verdicts(box2))[first] == "good"


def test_a_check_that_hangs_is_ended_with_all_that_it_started(box2: Node, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    command = f"(sleep 4; touch {mark}) & sleep 60"
    path = box2.data / "node.json"
    box2.stop()
    node = json.loads(path.read_text())
    node["proofs"] = {"docs": {"command": command, "timeout_s": 1}}
    path.write_text(json.dumps(node))
    box2.start()
    code, answer = drill(box2, "--planned")
    assert code == ExitCode.DAMAGE and "ended after 1 s" in answer["evidence"]
    time.sleep(4)
    assert not mark.exists()


def test_plans_that_make_no_sense_are_told(cluster: Cluster, box2: Node) -> None:
    code, answer = drill(box2, "--every", "never")
    assert code == ExitCode.OK and answer["every_s"] == 0
    assert drill(box2, "--every", "usual")[1]["every_s"] == 86_400
    for words in (("--every", "soon"), ("--every", "1d", "--to", "/x"), ("--planned", "--run", "true")):
        code, answer = drill(box2, *words)
        assert code == ExitCode.USAGE, words
    code, answer = drill(cluster.master, "--every", "1d")
    assert code == ExitCode.REFUSED and "box2" in answer["said"]
    drill(box2, "--run", "./not-there", "--every", "1d")
    code, answer = drill(box2, "--planned")
    assert "restored" in answer["evidence"] and "found it well" not in answer["evidence"]
    assert any("is not there" in text for text in box2.events())


def test_what_a_command_judges_shares_its_blocks_with_the_live_tree(cluster: Cluster, tmp_path: Path) -> None:
    """On a file system that can (XFS here): a check of 100 MB takes no 100 MB, and what somebody wrote into
    the live tree is not taken for the version."""
    image, place = tmp_path / "xfs.img", tmp_path / "xfs"
    image.touch()
    os.truncate(image, 800 << 20)
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        pytest.skip("it takes root and xfsprogs")
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True,
    check=False)
    if mounted.returncode:
        pytest.skip(f"no loop mounts here: {mounted.stderr.decode().strip()}")
    try:
        cluster.init()
        box2 = cluster.join("box2", data=place / "data")
        source = tmp_path / "source"
        source.mkdir()
        for number in range(10):
            (source / f"table {number}").write_bytes(os.urandom(10 << 20))
        cluster.add_set("docs", "shop1", source, ["box2"])
        cluster.sync("docs")
        time.sleep(1.1)
        used = tmp_path / "used"
        before = place_used(place)
        check = f"df --output=used -B1 . | tail -1 > {used}; test $(ls | wc -l) = 10"
        code, answer = drill(box2, "--run", check, "--every", "6h")
        code, answer = drill(box2, "--planned")
        assert code == ExitCode.OK and answer["verdict"] == "good", answer
        assert int(used.read_text()) - before < 20 << 20

        live = box2.data / "trees" / "docs" / "table 3"
        with open(live, "r+b") as file:
            file.write(b"written by somebody")
        (source / "table 4").write_bytes(b"small now")
        cluster.sync("docs")
        time.sleep(1.1)
        check = f"cmp 'table 3' '{source}/table 3'"
        drill(box2, "--run", check, "--every", "6h")
        code, answer = drill(box2, "--planned")
        assert code == ExitCode.OK and answer["verdict"] == "good", answer
        box2.stop()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def place_used(place: Path) -> int:
    info = os.statvfs(place)
    return (info.f_blocks - info.f_bfree) * info.f_frsize
