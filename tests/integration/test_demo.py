"""`crnode demo` as a person runs it: every check holds, and nothing of it stays behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from crnode.cli.demo_stage import Item, difference, read_folder

STEPS = [
    "Three machines become a cluster",
    "The shop's folder is protected",
    "People work, and every change travels at once",
    "A folder is renamed",
    "A big file grows, and a few bytes in its middle change",
    "A letter is deleted",
    "box2 loses its power while it receives",
    "Somebody spoils the price list; an earlier version brings it back",
    "Everything is compared once more",
]
CHECKS = [
    "connected, encrypted both ways",
    "Both copies are complete and equal to the original",
    "letters were saved; the copy of one was complete on box2 after",
    "The rename cost",
    "travelled for it, not the whole",
    "The letter is gone from the mirror.",
    "The letter is still in the archive.",
    "shop1 notices and says so, and box3 is served all the same.",
    "Nothing was lost and nothing is half there",
    "of the price list is the right one, byte by byte.",
    "The whole folder as it was then comes back as well",
    "The mirror on box2 equals the original in every name, content, mode and time.",
    "The three nodes name the same image digest",
]


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "crnode", "demo", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )


def agents(tmp_path: Path) -> list[str]:
    """Command lines of processes that work below `tmp_path`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(tmp_path) in words and "--role" in words:
            found.append(words)
    return found


def test_every_check_of_the_demo_holds(tmp_path: Path) -> None:
    with start(tmp_path, "--json") as demo:
        out, err = demo.communicate(timeout=150)
    events: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    checks = [event for event in events if event["event"] == "check"]
    assert [check for check in checks if not check["ok"]] == []
    assert (demo.returncode, err) == (0, "")
    assert [event["title"] for event in events if event["event"] == "step"] == STEPS
    for sentence in CHECKS:
        assert any(sentence in check["text"] for check in checks), sentence
    commands = [event["command"].split()[1] for event in events if event["event"] == "command"]
    assert {"init", "invite", "join", "set", "sync", "versions", "restore"} == set(commands)
    states = {row["state"] for event in events if event["event"] == "status" for row in event["targets"]}
    assert "in sync" in states
    assert len(states) > 1  # box2 was seen behind or offline
    end = events[-1]
    assert (end["event"], end["ok"], end["failed"], end["checks"]) == ("done", True, [], len(checks))
    assert end["seconds"] > 0
    assert list(tmp_path.iterdir()) == []
    assert agents(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with start(tmp_path) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        for line in demo.stdout:
            if line.startswith("3."):  # three agents run by now
                break
        assert len(agents(tmp_path)) >= 3
        began = time.monotonic()
        demo.send_signal(number)
        rest = demo.stdout.read()
        assert demo.wait(30) == 130
        assert time.monotonic() - began < 20
        assert demo.stderr.read() == ""
    assert "The demo was interrupted. The three nodes were stopped" in rest
    assert list(tmp_path.iterdir()) == []
    assert agents(tmp_path) == []


def test_the_demos_own_comparison_sees_every_difference(tmp_path: Path) -> None:
    """A judge that never says no proves nothing."""
    one, other = tmp_path / "one", tmp_path / "other"
    for top in (one, other):
        (top / "sub").mkdir(parents=True)
        (top / "sub" / "file").write_text("text")
        (top / "link").symlink_to("sub")
        os.utime(top / "sub" / "file", ns=(1, 1))
        os.utime(top / "link", ns=(1, 1), follow_symlinks=False)
        os.utime(top / "sub", ns=(1, 1))
        os.utime(top, ns=(1, 1))
    assert difference(read_folder(one), read_folder(other)) == ""
    assert set(read_folder(one)) == {".", "link", "sub", "sub/file"}
    (other / "sub" / "file").write_text("tExt")
    os.utime(other / "sub" / "file", ns=(1, 1))
    assert difference(read_folder(one), read_folder(other)).startswith("sub/file: ")
    same = read_folder(one)
    for change in ({"mode": 0o600}, {"mtime_ns": 2}, {"kind": "folder"}, {"what": ""}):
        changed: dict[str, Item] = {**same, "sub/file": same["sub/file"]._replace(**change)}  # type: ignore[arg-type]
        assert difference(same, changed)
    assert difference(same, {name: item for name, item in same.items() if name != "link"})
