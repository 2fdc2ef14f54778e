"""Points go on being taken while a whole set is scanned."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness import Cluster, rsync_difference, wait_for


def scanning(agent: int) -> int | None:
    """The pid of the scan that this agent has under way."""
    for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        try:
            if b"crnode.capture.scan" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        except OSError:
            continue
    return None


@contextmanager
def held_scan(cluster: Cluster) -> Iterator[threading.Thread]:
    """`crnode sync` while its scan of the set stands still; it ends when the block does."""
    assert cluster.master.process is not None
    agent = cluster.master.process.pid
    answer: list[object] = []
    thread = threading.Thread(target=lambda: answer.append(cluster.sync("docs")))
    thread.start()
    pid = wait_for(lambda: scanning(agent), step=0.001)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield thread
    finally:
        with suppress(ProcessLookupError):  # the agent has given it up
            os.kill(pid, signal.SIGCONT)
        thread.join(60)
    assert answer


def test_changes_are_copied_while_the_set_is_scanned(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    cluster.join("box2")
    source, live = tmp_path / "source", tmp_path / "live"
    (source / "old").mkdir(parents=True)
    for name in ("kept", "old/deleted", "old/changed", "old/renamed"):
        (source / name).write_bytes(name.encode())
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"])
    cluster.sync("docs")
    with held_scan(cluster) as sync:
        (source / "new").write_bytes(b"came while the scan ran")
        (source / "old" / "changed").write_bytes(b"changed while the scan ran")
        (source / "old" / "deleted").unlink()
        (source / "old" / "renamed").rename(source / "name")
        wait_for(lambda: not rsync_difference(source, live))
        assert sync.is_alive()
    assert not rsync_difference(source, live)
    assert not [text for text in cluster.master.events() if "without events" in text]


def test_a_root_that_goes_while_it_is_scanned(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    cluster.join("box2")
    source, live = tmp_path / "source", tmp_path / "live"
    source.mkdir()
    (source / "a").write_bytes(b"a")
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"])
    cluster.sync("docs")
    with held_scan(cluster):
        source.rename(tmp_path / "away")
        wait_for(lambda: cluster.master.call("status")["sets"][0]["state"] == "root missing")
        assert (live / "a").read_bytes() == b"a"
        (tmp_path / "away").rename(source)
        (source / "b").write_bytes(b"b")
        wait_for(lambda: (live / "b").exists())
    assert not rsync_difference(source, live)
