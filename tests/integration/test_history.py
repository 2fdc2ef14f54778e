"""A seeded history of a real tree: every version that is kept restores to exactly the tree that the source
was when it was taken, before and after thinning, collection, scrub, and kill -9 in the middle of each.

CRNODE_POINTS=200 makes it as long as one likes (make history); a point takes about two seconds."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from churn import Churn
from harness import Cluster, Node, rsync_difference, wait_for

from crnode.errors import CrnodeError

POINTS = int(os.environ.get("CRNODE_POINTS", "16"))
SEED = int(os.environ.get("CRNODE_SEED", "4"))
MOST = 64
SAMPLE = 6  # versions that are looked at after each disturbance


class Story(Churn):
    """Also makes one kind of thing another: file, folder, link."""

    def _file(self) -> Path | None:
        self.files = [path for path in self.files if path.is_file() and not path.is_symlink()]
        return super()._file()

    def other_kind(self) -> None:
        if not (path := self._plain()):
            return
        path.unlink()
        kind = self.random.choice(("folder", "link", "link to folder"))
        if kind == "folder":
            path.mkdir()
            (path / "inside").write_bytes(self._bytes())
            self.dirs.append(path)
        else:
            path.symlink_to("nowhere" if kind == "link" else ".")

    def other_way_round(self) -> None:
        if len(self.dirs) < 4:
            return
        path = self.random.choice(self.dirs[1:])
        shutil.rmtree(path)
        self.dirs = [d for d in self.dirs if d != path and path not in d.parents]
        path.write_bytes(self._bytes())
        self.files.append(path)

    def only_attributes(self) -> None:
        for path in self.random.sample(self.dirs, min(3, len(self.dirs))):
            path.chmod(self.random.choice((0o700, 0o755, 0o750)))

    def point(self) -> None:
        """What happens between two points."""
        for _ in range(self.random.choice((1, 3, 10, 40))):
            self.step()
        for more in (self.other_kind, self.other_way_round, self.only_attributes):
            if self.random.random() < 0.4:
                with contextlib.suppress(FileNotFoundError, FileExistsError, NotADirectoryError):
                    more()


class History:
    """The set, and what the source was at each point, by the number of the version."""

    def __init__(self, cluster: Cluster, tmp_path: Path) -> None:
        self.cluster, self.place = cluster, tmp_path
        self.source = tmp_path / "source"
        self.source.mkdir()
        self.story = Story(self.source, SEED)
        self.chance = random.Random(SEED)
        self.shop1 = cluster.init()
        self.box2 = cluster.join("box2")
        more = {"keep": [f"newest:{MOST}"], "brake_percent": 0}  # within an hour everything changes
        cluster.add_set("docs", "shop1", self.source, ["box2"], **more)
        self.points = 0
        self.was: dict[int, Path] = {}

    def kept(self) -> list[int]:
        return [row["number"] for row in self.box2.call("versions", {"set": "docs"})["versions"]]

    def live(self) -> None:
        """One point, followed by quiet."""
        self.story.point()
        self.cluster.sync("docs")
        self.points += 1
        copy = self.place / f"was-{self.points}"
        subprocess.run(["cp", "-a", str(self.source), str(copy)], check=True)
        time.sleep(1.1)
        self.was[self.kept()[-1]] = copy

    def check(self, numbers: list[int]) -> None:
        """Restore these versions and compare each with what the source was."""
        for number in numbers:
            to = self.place / "restored"
            answer = self.box2.call("restore", {"set": "docs", "version": str(number), "to": str(to)})
            assert answer["verified"] and answer["digest_ok"], number
            assert rsync_difference(self.was[number], to) == "", number
            assert _times(self.was[number]) == _times(to), number
            shutil.rmtree(to)

    def check_some(self) -> None:
        kept = [number for number in self.kept() if number in self.was]
        self.check(self.chance.sample(kept, min(SAMPLE, len(kept))))

    def killed_while(self, node: Node, name: str, args: dict[str, Any], seconds: float) -> None:
        """kill -9 so long after a call has begun; then start again."""

        def ask() -> None:
            with contextlib.suppress(CrnodeError, OSError):
                node.call(name, args)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(seconds)
        self.box2.kill()
        asking.join(30)
        assert not asking.is_alive()
        self.box2.start()


def _times(top: Path) -> dict[str, int]:
    """Path -> mtime in ns: rsync compares seconds."""
    return {
        os.path.relpath(os.path.join(at, name), top): os.lstat(os.path.join(at, name)).st_mtime_ns
        for at, folders, files in os.walk(top)
        for name in (*folders, *files)
    }


@pytest.mark.timeout(120 + 20 * POINTS)
def test_every_version_restores_to_what_the_source_was(cluster: Cluster, tmp_path: Path) -> None:
    history = History(cluster, tmp_path)
    for _ in range(POINTS):
        history.live()
        for number in history.was.keys() - set(history.kept()[-MOST:]):
            shutil.rmtree(history.was.pop(number))
    kept = history.kept()
    assert set(history.was) <= set(kept) and len(history.was) >= min(POINTS, MOST) - 1
    assert len(kept) <= MOST + 2  # the newest that was proved good, and the first bad one after it
    history.check(sorted(history.was))

    for delay in (0.02, 0.1, 0.3):
        history.killed_while(history.box2, "gc", {}, delay)
        history.check_some()
    to = tmp_path / "cut-off"
    for number, delay in zip(sorted(history.was)[-3:], (0.01, 0.03, 0.1), strict=True):
        args = {"set": "docs", "version": str(number), "to": str(to)}
        history.killed_while(history.box2, "restore", args, delay)
        assert not to.exists() or rsync_difference(history.was[number], to) == ""
        shutil.rmtree(to, ignore_errors=True)

    fewer = len(kept) // 2
    history.killed_while(history.shop1, "set.keep", {"name": "docs", "keep": [f"newest:{fewer}"]}, 0.02)
    wait_for(lambda: len(history.kept()) <= fewer + 2)  # besides the newest good and the first bad one
    assert set(kept[-fewer:]) <= set(history.kept())
    history.check([number for number in history.kept() if number in history.was])

    history.box2.call("gc")
    history.killed_while(history.box2, "scrub", {}, 0.05)
    report = history.box2.call("scrub")
    assert report["objects"] > 0 and report["damaged"] == [] and report["lacking"] == 0, report
    history.check([number for number in history.kept() if number in history.was])
    history.live()  # and it goes on
    history.check([max(history.was)])
