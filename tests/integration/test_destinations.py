"""Destinations that are removed, replaced, unmounted, too small for a while, or inside the source itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Cluster, crnode, rsync_difference, wait_for

from crnode.errors import CrnodeError, ExitCode


def pair(cluster: Cluster, tmp_path: Path, destination: Path, **more: object) -> Path:
    """A master and box2 with one set; returns the source."""
    cluster.init()
    cluster.join("box2")
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    for number in range(30):
        (source / "folder" / f"f{number}").write_bytes(os.urandom(3000))
    (source / "big").write_bytes(os.urandom(2 << 20))
    cluster.add_set("docs", "shop1", source, [f"box2:{destination}"], **more)
    cluster.sync("docs")
    return source


def target(cluster: Cluster) -> dict[str, object]:
    return dict(cluster.master.call("status")["sets"][0]["targets"][0])


class Disk:
    """A small file system on a loop device."""

    def __init__(self, image: Path, place: Path, size: int) -> None:
        self.image, self.place = image, place
        with open(image, "wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        place.mkdir()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.place)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root")
    made = Disk(tmp_path / "image", tmp_path / "disk", 64 << 20)
    made.mount()
    try:
        yield made
    finally:
        if os.path.ismount(made.place):
            made.unmount()


def test_a_removed_destination_is_written_again(cluster: Cluster, tmp_path: Path) -> None:
    live = tmp_path / "live"
    source = pair(cluster, tmp_path, live)
    box2 = cluster.nodes["box2"]
    shutil.rmtree(live)
    cluster.sync("docs")  # while the agent runs
    assert rsync_difference(source, live) == ""
    assert any("written anew" in text for text in box2.events())
    box2.stop()
    shutil.rmtree(live)
    box2.start()
    wait_for(live.is_dir)  # by itself, and without a new image
    cluster.sync("docs")
    assert rsync_difference(source, live) == ""
    assert "Traceback" not in box2.log.read_text()


def test_what_is_missing_below_a_removed_folder_comes_back_with_it(cluster: Cluster, tmp_path: Path) -> None:
    live = tmp_path / "live"
    source = pair(cluster, tmp_path, live)
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "a").write_bytes(b"a")
    os.symlink("a", source / "deep" / "er" / "link")
    cluster.sync("docs")
    shutil.rmtree(live / "folder")
    shutil.rmtree(live / "deep")
    (live / "deep").write_bytes(b"a file in its place")
    out = cluster.sync("docs")
    assert rsync_difference(source, live) == ""
    assert "put right" in out["targets"][0]["reason"]
    for child in live.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    cluster.sync("docs")
    assert rsync_difference(source, live) == ""


def test_a_path_that_cannot_be_written_is_said_by_sync(cluster: Cluster, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("an immutable file takes root")
    live = tmp_path / "live"
    source = pair(cluster, tmp_path, live)
    flag = subprocess.run(["chattr", "+i", str(live / "big")], capture_output=True, text=True, check=False)
    if flag.returncode:
        pytest.skip(f"this file system has no immutable files: {flag.stderr}")
    try:
        (source / "big").write_bytes(b"changed")
        out = cluster.sync("docs")
        (there,) = out["targets"]
        assert "1 path cannot be held there" in there["reason"] and "put right" not in there["reason"]
        assert (out["ok"], there["ok"], there["unapplied"], out["left_out"]) == (False, False, 1, 0)
        assert there["unapplied_examples"][0]["path"] == "big"
        done = crnode("sync", "docs", "--data", str(cluster.master.data), check=False)
        assert done.returncode == ExitCode.BEHIND, done.stderr
        assert "In sync, except 1 path that box2 cannot hold: see crnode status." in done.stdout
        assert "box2: big: " in done.stdout
    finally:
        subprocess.run(["chattr", "-i", str(live / "big")], check=True)
    cluster.sync("docs")
    assert (live / "big").read_bytes() == b"changed"


def test_an_older_copy_below_a_mount_point_is_not_taken_for_the_destination(
    cluster: Cluster, tmp_path: Path, disk: Disk
) -> None:
    disk.unmount()
    live = disk.place
    source = pair(cluster, tmp_path, live)  # prepared while the disk was not mounted
    wait_for(lambda: target(cluster)["synced"])
    disk.mount()
    with pytest.raises(CrnodeError, match="another file system"):
        cluster.sync("docs", timeout=30)
    cluster.master.call("set.rebase", {"name": "docs", "node": "box2"})
    cluster.sync("docs")
    disk.unmount()
    (source / "later").write_bytes(b"later")
    with pytest.raises(CrnodeError, match="another file system"):
        cluster.sync("docs", timeout=30)
    assert not (live / "later").exists()
    disk.mount()
    cluster.sync("docs")
    assert (live / "later").read_bytes() == b"later"


def test_a_replaced_destination_waits_and_says_so_until_a_person_accepts_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    live = tmp_path / "live"
    source = pair(cluster, tmp_path, live)
    live.rename(tmp_path / "moved")
    live.mkdir()
    (live / "mine").write_bytes(b"mine")
    with pytest.raises(CrnodeError) as caught:
        cluster.sync("docs", timeout=30)
    assert caught.value.exit_code == ExitCode.BEHIND
    assert "was replaced by another directory" in str(caught.value)
    wait_for(lambda: target(cluster)["state"] == "live tree waits")
    assert "replaced" in str(target(cluster)["reason"])
    checks = {c["name"]: c for c in cluster.nodes["box2"].call("doctor")["checks"]}
    assert checks["set docs here"]["ok"] is False
    assert (live / "mine").read_bytes() == b"mine"
    with pytest.raises(CrnodeError) as caught:
        cluster.master.call("set.rebase", {"name": "docs", "node": "nobody"})
    assert caught.value.exit_code == ExitCode.USAGE
    cluster.master.call("set.rebase", {"name": "docs", "node": "box2"})
    cluster.sync("docs")
    assert rsync_difference(source, live) == ""
    assert (tmp_path / ".crnode-live" / "aside" / "before first copy" / "mine").read_bytes() == b"mine"


def test_what_cannot_become_a_destination_is_not_accepted(cluster: Cluster, tmp_path: Path) -> None:
    live = tmp_path / "live"
    source = pair(cluster, tmp_path, live)
    rebase = ("set", "rebase", "docs", "--node", "box2", "--data", str(cluster.master.data))
    shutil.rmtree(live)
    live.write_bytes(b"an obstacle")
    for kind in ("not a folder", "a symbolic link"):
        done = crnode(*rebase, check=False)
        assert done.returncode == ExitCode.REFUSED and kind in done.stderr, done.stderr
        live.unlink()
        live.symlink_to(tmp_path / "elsewhere")
    live.unlink()
    live.mkdir()
    (live / "mine").write_bytes(b"mine")
    with pytest.raises(CrnodeError, match="was replaced by another directory"):
        cluster.sync("docs", timeout=30)  # no consent is left over that this would use
    said = " ".join(crnode(*rebase).stdout.split())
    assert ".crnode-live/aside" in said
    cluster.sync("docs")
    assert rsync_difference(source, live) == ""


@pytest.mark.parametrize("below", ["copy", ""], ids=["below the mount point", "the mount point itself"])
def test_an_unmounted_destination_is_not_made_anew_on_the_bare_mount_point(
    cluster: Cluster, tmp_path: Path, disk: Disk, below: str
) -> None:
    live = disk.place / below if below else disk.place
    source = pair(cluster, tmp_path, live)
    box2 = cluster.nodes["box2"]
    wait_for(lambda: target(cluster)["synced"])
    box2.stop()
    disk.unmount()
    box2.start()
    (source / "later").write_bytes(b"while it was away")
    with pytest.raises(CrnodeError) as caught:
        cluster.sync("docs", timeout=30)
    assert "not mounted" in str(caught.value)
    assert list(disk.place.iterdir()) == [], "something was written onto the bare mount point"
    disk.mount()
    cluster.sync("docs")  # goes on by itself
    done = subprocess.run(
        ["rsync", "-aAXHn", "--checksum", "--delete", "--exclude=/.crnode", "--exclude=/lost+found", "-i",
         f"{source}/", f"{live}/"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == ""


def test_a_live_tree_that_was_too_large_for_its_disk_follows_when_the_set_shrinks(
    cluster: Cluster, tmp_path: Path, disk: Disk
) -> None:
    live = disk.place / "copy"
    source = pair(cluster, tmp_path, live)
    (source / "a").write_bytes(b"a" * 100)
    cluster.sync("docs")
    original = (source / "big").read_bytes()
    cluster.master.stop()  # so that all this is one image, whose `big` is applied before the disk is full
    (source / "big").write_bytes(original[: 1 << 20] + b"changed" + original[(1 << 20) + 7 :])
    for number in range(20):
        (source / f"heavy{number:02}").write_bytes(os.urandom(6 << 20))
    cluster.master.start()
    with pytest.raises(CrnodeError) as caught:
        cluster.sync("docs", timeout=40)
    assert "room" in str(caught.value).lower()
    cluster.master.stop()
    for number in range(20):
        (source / f"heavy{number:02}").unlink()
    # What the image that is given up had changed is as it was; what the next one changes is elsewhere.
    (source / "big").write_bytes(b"and again" + original[9:])
    cluster.master.start()
    cluster.sync("docs")
    assert rsync_difference(source, live) == ""
    aside = list((disk.place / ".crnode-copy").glob("aside/*"))
    assert not aside, "what we wrote was taken for a local change"


def test_a_destination_inside_the_source_is_left_out_and_said(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    cluster.join("box2")
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "a").write_bytes(b"a")
    live = source / "sub" / "copy"
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"])

    def settled() -> bool:
        problems = cluster.master.call("status")["sets"][0]["problems"]
        return any("destination of this very set" in p["reason"] for p in problems)

    wait_for(settled)
    for _ in range(3):
        (source / "sub" / "a").write_bytes(os.urandom(10))
        cluster.sync("docs")
    assert (live / "sub" / "a").read_bytes() == (source / "sub" / "a").read_bytes()
    assert not (live / "sub" / "copy").exists(), "a copy was copied again"
    assert not list(live.rglob(".crnode-*"))
    cluster.master.stop()
    cluster.master.start()
    cluster.sync("docs")
    time.sleep(0.5)
    assert not (live / "sub" / "copy").exists()


def test_problems_of_paths_that_are_gone_leave_the_status(cluster: Cluster, tmp_path: Path) -> None:
    source = pair(cluster, tmp_path, tmp_path / "live")
    (source / "deep" / "er").mkdir(parents=True)
    os.mkfifo(source / "deep" / "er" / "pipe")
    os.mkfifo(source / "pipe")

    def paths() -> set[str]:
        return {p["path"] for p in cluster.master.call("status")["sets"][0]["problems"]}

    cluster.sync("docs")
    assert paths() == {"deep/er/pipe", "pipe"}
    shutil.rmtree(source / "deep")
    wait_for(lambda: paths() == {"pipe"})
    cluster.master.stop()
    (source / "pipe").unlink()
    cluster.master.start()
    cluster.sync("docs")
    assert paths() == set()


def test_a_first_transfer_is_never_called_offline(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    cluster.join("box2")
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3000):
        (source / f"f{number}").write_bytes(b"x" * 10)
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/live"])
    seen: list[str] = []
    while not seen or seen[-1] != "in sync":
        seen.append(str(target(cluster)["state"]))
    connected = seen[next(n for n, state in enumerate(seen) if state != "offline") :]
    assert set(connected) <= {"waiting", "behind", "copying", "in sync"}
    assert len(set(connected)) > 1, "nothing of the transfer was seen"


def test_what_lies_in_a_destination_that_the_catalog_forgot_is_set_aside(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The disk with the data directory was replaced; the live tree is on another one, and old."""
    live = tmp_path / "live"
    source = pair(cluster, tmp_path, live, brake_percent=0)
    box2 = cluster.nodes["box2"]
    box2.stop()
    for part in ("sets", "store"):
        shutil.rmtree(box2.data / part)
    (source / "folder" / "f3").unlink()
    (source / "folder" / "f4").write_bytes(b"newer")
    (live / "folder" / "f5").write_bytes(b"of somebody at box2")
    (live / "of somebody else").write_bytes(b"mine")
    box2.start()
    wait_for(lambda: target(cluster)["state"] == "in sync", 30)
    wait_for(lambda: rsync_difference(source, live) == "", 30)  # by itself
    found = (path for path in (tmp_path / ".crnode-live").glob("aside/**/*") if path.is_file())
    aside = {path.name: path.read_bytes() for path in found}
    assert {"f3", "f4", "f5", "of somebody else"} <= aside.keys()
    assert aside["f5"] == b"of somebody at box2" and aside["of somebody else"] == b"mine"
