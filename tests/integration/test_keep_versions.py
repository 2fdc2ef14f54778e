"""What an owner keeps: rungs of a set and of one target, planned, put in force, changed back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Cluster, Node, crnode, wait_for

from crnode.errors import ExitCode

COUNT = 6


def ask(node: Node, *args: str) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(crnode(*args, "--json", "--data", str(node.data)).stdout)
    return out


def kept(node: Node, target: str) -> list[int]:
    """The versions of 'docs' that a target keeps."""
    rows = ask(node, "versions", "docs")["versions"]
    return [row["number"] for row in rows if row["node"] == target]


@pytest.fixture
def history(cluster: Cluster, tmp_path: Path) -> tuple[Cluster, list[int]]:
    """A set with versions that are each followed by quiet, and their numbers."""
    shop1 = cluster.init()
    cluster.join("box2")
    cluster.join("box3")
    source = tmp_path / "source"
    source.mkdir()
    cluster.add_set("docs", "shop1", source, ["box2", "box3"])
    for number in range(COUNT):
        (source / "diary").write_text(f"day {number}")
        cluster.sync("docs")
        time.sleep(1.2)
    numbers = kept(shop1, "box2")
    assert len(numbers) >= COUNT and kept(shop1, "box3") == numbers
    return cluster, numbers


def test_rungs_are_planned_put_in_force_and_changed_back(
    history: tuple[Cluster, list[int]], tmp_path: Path
) -> None:
    cluster, numbers = history
    shop1, box2 = cluster.nodes["shop1"], cluster.nodes["box2"]
    crnode("pin", "docs", str(numbers[1]), "--name", "spring", "--data", str(shop1.data))

    rows = ask(box2, "versions", "docs", "--plan", "--keep", "newest:2", "--keep", "daily:3")["versions"]
    for target in ("box2", "box3"):
        plan = {row["number"]: row["keep"] for row in rows if row["node"] == target}
        staying = [number for number, stays in plan.items() if stays]
        assert staying == [numbers[1], *numbers[-2:]]
    going = next(row for row in rows if not row["keep"])
    assert going["why"] == f"daily: another one of the same period stays (version {numbers[-1]})"
    text = crnode("versions", "docs", "--plan", "--keep", "newest:2", "--data", str(box2.data)).stdout
    assert f"6 stay, {2 * (len(numbers) - 3)} go." in text and "older than the rules reach" in text
    assert kept(shop1, "box2") == numbers  # a plan is a plan

    answer = ask(shop1, "set", "keep", "docs", "newest:2", "daily:3", "--target", "box2")
    assert answer["keep"]["box2"] == ["newest:2", "daily:3"] and "hourly:24" in answer["keep"]["box3"]
    wait_for(lambda: kept(shop1, "box2") == [numbers[1], *numbers[-2:]])
    assert kept(shop1, "box3") == numbers
    shown = ask(shop1, "set", "show", "docs")["set"]
    assert shown["targets"]["box2"]["keep"] == ["newest:2", "daily:3"]

    ask(shop1, "set", "keep", "docs", "newest:3")
    wait_for(lambda: kept(shop1, "box3") == [numbers[1], *numbers[-3:]])
    assert len(kept(shop1, "box2")) == 3  # it has rungs of its own
    ask(shop1, "set", "keep", "docs", "--usual", "--target", "box2")
    assert ask(shop1, "set", "show", "docs")["set"]["targets"]["box2"]["keep"] == ["newest:3"]

    cluster.nodes["box2"].kill()
    cluster.nodes["box2"].start()
    for number in range(4):
        (tmp_path / "source" / "diary").write_text(f"evening {number}")
        cluster.sync("docs")
        time.sleep(1.2)
    wait_for(lambda: len(kept(shop1, "box2")) == 4)  # what the document says holds after a start, too
    assert numbers[1] in kept(shop1, "box2")
    done = crnode("cat", "docs:diary", "--version", "spring", "--data", str(shop1.data))
    assert done.stdout == "day 1"


WRONG = {
    ("set", "keep", "docs", "hourly"): "names no number of versions",
    ("set", "keep", "docs", "hourly:60", "daily:5"): "65 versions",
    ("set", "keep", "docs"): "No rungs were given",
    ("set", "keep", "docs", "daily:1", "--usual"): "takes no rungs",
    ("set", "keep", "docs", "daily:1", "--target", "shop9"): "box2",
    ("set", "keep", "ghost", "daily:1"): "no set 'ghost'",
    ("versions", "docs", "--keep", "daily:1"): "--plan",
    ("versions", "docs", "diary", "--plan"): "whole versions",
    ("versions", "docs", "--plan", "--keep", "5s:1"): "no length of time",
}


def test_what_makes_no_sense_is_told(cluster: Cluster, tmp_path: Path) -> None:
    shop1 = cluster.init()
    cluster.join("box2")
    (tmp_path / "source").mkdir()
    cluster.add_set("docs", "shop1", tmp_path / "source", ["box2"])
    cluster.sync("docs")
    for words, says in WRONG.items():
        done = crnode(*words, "--data", str(shop1.data), check=False)
        assert done.returncode == ExitCode.USAGE, (words, done.stderr)
        assert says in done.stderr and "Traceback" not in done.stderr
