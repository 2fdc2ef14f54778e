"""ls, cat, diff, search and pin, as a user runs them, on a history of real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Cluster, Node, crnode

from crnode.errors import ExitCode


def ask(node: Node, *args: str) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(crnode(*args, "--json", "--data", str(node.data)).stdout)
    return out


def refused(node: Node, *args: str) -> tuple[int, str]:
    done = crnode(*args, "--data", str(node.data), check=False)
    assert done.returncode
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def history(cluster: Cluster, tmp_path: Path) -> tuple[Cluster, list[int]]:
    """Three versions of a set, and their numbers."""
    shop1 = cluster.init()
    cluster.join("box2")
    cluster.join("box3")
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    to = [f"{name}:{tmp_path}/{name}-live" for name in ("box2", "box3")]
    cluster.add_set("docs", "shop1", source, to)
    numbers = []

    def version() -> None:
        cluster.sync("docs")
        found = ask(shop1, "versions", "docs")["versions"]
        numbers.append(max(item["number"] for item in found))
        time.sleep(1.2)  # what is followed by a quiet second is kept

    (source / "folder" / "Invoice 1.txt").write_text("one")
    (source / "stays").write_bytes(os.urandom(300_000))
    (source / "link").symlink_to("folder/Invoice 1.txt")
    version()
    (source / "folder" / "Invoice 1.txt").write_text("one, corrected")
    (source / "moves").write_text("moves about")
    version()
    (source / "folder" / "Invoice 1.txt").unlink()
    (source / "moves").rename(source / "moved")
    (source / "stays").chmod(0o600)
    (source / "folder" / os.fsdecode(b"new \xff")).write_text("new")
    version()
    return cluster, numbers


def test_versions_are_looked_at(history: tuple[Cluster, list[int]], tmp_path: Path) -> None:
    cluster, (one, two, three) = history
    shop1, box2 = cluster.nodes["shop1"], cluster.nodes["box2"]

    first = ask(shop1, "ls", "docs", "--version", str(one))
    assert [item["name"] for item in first["entries"]] == ["folder", "link", "stays"]
    assert [item["kind"] for item in first["entries"]] == ["folder", "link", "file"]
    assert first["entries"][1]["target"] == "folder/Invoice 1.txt"
    assert first["entries"][2]["size"] == 300_000
    inside = ask(box2, "ls", "docs:folder")  # the newest
    assert [os.fsencode(item["name"]) for item in inside["entries"]] == [b"new \xff"]
    assert inside["version"] == three
    assert (
        "Invoice 1.txt"
        in crnode("ls", f"docs:{'folder'}", "--version", str(two), "--data", str(box2.data)).stdout
    )

    def cat(place: str, *more: str) -> bytes:
        words = [sys.executable, "-m", "crnode", "cat", place, *more, "--data", str(shop1.data)]
        return subprocess.run(words, capture_output=True, check=True, timeout=60).stdout

    assert cat("docs:folder/Invoice 1.txt", "--version", str(one)) == b"one"
    assert cat("docs:folder/Invoice 1.txt", "--version", str(two)) == b"one, corrected"
    assert cat("docs:stays") == (tmp_path / "source" / "stays").read_bytes()

    past = ask(box2, "versions", "docs", "folder/Invoice 1.txt")["versions"]
    mine = [item for item in past if item["node"] == "box2"]
    assert [(i["number"], i["change"], i["what"], i["size"], i["source"], i["last"]) for i in mine] == [
        (one, "added", [], 3, "shop1", one),
        (two, "changed", ["content"], 14, "shop1", two),
        (three, "deleted", [], None, "shop1", three),
    ]
    (whole, kept) = [i for i in ask(shop1, "versions", "docs", "stays")["versions"] if i["node"] == "box2"]
    assert (whole["last"], kept["change"], kept["what"]) == (two, "attributes", ["mode"])
    text = crnode("versions", "docs", "stays", "--data", str(shop1.data)).stdout
    assert "attributes: mode" in text and "UP TO VERSION" in text and "shop1" in text

    changes = ask(shop1, "diff", "docs", str(one), str(three))
    assert {(item["what"], item["path"].encode(errors="surrogateescape")) for item in changes["rows"]} == {
        ("deleted", b"folder/Invoice 1.txt"),
        ("added", b"folder/new \xff"),
        ("added", b"moved"),
        ("attributes", b"stays"),
    }
    (renamed,) = (i for i in ask(box2, "diff", "docs", str(two))["rows"] if i["what"] == "renamed")
    assert (renamed["before"], renamed["path"], renamed["size"]) == ("moves", "moved", 11)
    back = ask(shop1, "diff", "docs:folder", str(three), str(one))
    assert back["counts"] == {"added": [1, 3], "deleted": [1, 3]}
    text = crnode("diff", "docs", str(one), str(two), "--data", str(shop1.data)).stdout
    assert "1 added (11 B)" in text and "1 changed (14 B)" in text
    taken = {item["number"]: item["time_ns"] for item in ask(shop1, "versions", "docs")["versions"]}

    def when(number: int) -> str:
        """The second of that version: what came while it lasted counts, and the next one came later."""
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(taken[number] // 10**9))

    for words in (("--at", when(one)), ("--at", when(one), str(three)), (str(one), "--until", when(three))):
        found = ask(shop1, "diff", "docs", *words)
        assert (found["first"], found["second"], found["rows"]) == (one, three, changes["rows"]), words
    found = ask(shop1, "diff", "docs", "--at", when(one), "--until", when(two))
    assert (found["first"], found["second"]) == (one, two)
    assert taken[one] < found["at_ns"] < taken[two] < found["until_ns"] < taken[three]
    restored = [event for event in ask(shop1, "events")["events"] if event["kind"] == "restore"]
    assert restored == []  # a look leaves none

    (found,) = ask(shop1, "search", "docs", "invoice")["found"]
    assert (found["path"], found["first"], found["last"], found["now"]) == (
        "folder/Invoice 1.txt",
        one,
        two,
        False,
    )
    assert found["nodes"] == ["box2", "box3"]
    assert [item["path"] for item in ask(shop1, "search", "docs", "mov*")["found"]] == ["moved", "moves"]
    assert ask(shop1, "search", "docs", "nothing like it")["found"] == []
    cluster.nodes["box3"].kill()
    assert ask(shop1, "search", "docs", "invoice")["silent"].keys() == {"box3"}

    for words, code in (
        (("ls", "docs", "--version", "999"), ExitCode.USAGE),
        (("ls", "docs:nowhere"), ExitCode.USAGE),
        (("cat", "docs:folder"), ExitCode.USAGE),
        (("cat", "docs"), ExitCode.USAGE),
        (("cat", "docs:folder/Invoice 1.txt"), ExitCode.USAGE),  # the newest version has it no more
        (("diff", "docs", "998", "999"), ExitCode.USAGE),
        (("diff", "docs"), ExitCode.USAGE),
        (("diff", "docs", str(one), str(two), "--at", "1m ago"), ExitCode.USAGE),
        (("diff", "docs", "--at", "2001-01-01"), ExitCode.REFUSED),
        (("search", "docs", ""), ExitCode.USAGE),
        (("ls", "none"), ExitCode.USAGE),
    ):
        assert refused(shop1, *words)[0] == code, words


def test_versions_are_pinned_under_a_name(history: tuple[Cluster, list[int]], tmp_path: Path) -> None:
    cluster, (one, two, _) = history
    shop1, box2 = cluster.nodes["shop1"], cluster.nodes["box2"]
    answer = ask(shop1, "pin", "docs", str(one), "--name", "release 1.4")
    assert (answer["nodes"], answer["without"], answer["silent"]) == (["box2", "box3"], [], {})

    def named() -> dict[tuple[str, int], str]:
        found = ask(shop1, "versions", "docs")["versions"]
        return {(i["node"], i["number"]): i["name"] for i in found if i["name"]}

    assert named() == {("box2", one): "release 1.4", ("box3", one): "release 1.4"}
    box2.kill()
    box2.start()
    cluster.sync("docs")
    assert named() == {("box2", one): "release 1.4", ("box3", one): "release 1.4"}
    ask(box2, "restore", "docs:folder", "--version", "release 1.4", "--to", str(tmp_path / "back"))
    assert (tmp_path / "back" / "Invoice 1.txt").read_text() == "one"
    code, said = refused(shop1, "pin", "docs", str(two), "--name", "release 1.4")
    assert code == ExitCode.REFUSED and f"version {one}" in said
    assert refused(shop1, "pin", "docs", str(two), "--name", "17")[0] == ExitCode.USAGE
    assert refused(shop1, "pin", "docs", str(two))[0] == ExitCode.USAGE
    assert refused(shop1, "pin", "docs", "999", "--name", "x")[0] == ExitCode.USAGE
    code, said = refused(box2, "pin", "docs", str(two), "--name", "mine")
    assert code == ExitCode.REFUSED and "shop1" in said
    answer = ask(shop1, "pin", "docs", "release 1.4", "--name", "spring")
    assert answer["was"] == "release 1.4" and named() == {("box2", one): "spring", ("box3", one): "spring"}
    shown = crnode("pin", "docs", "spring", "--name", "easter", "--data", str(shop1.data)).stdout
    assert f"Version {one} of docs is kept as 'easter', no more as 'spring', at box2, box3." in shown
    ask(shop1, "pin", "docs", "easter", "--remove")
    assert named() == {}
