"""What is larger, or longer, than it takes up: files with holes, files of many names, and the longest paths
come back wherever there is room for what they hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import Cluster, crnode

from crnode.errors import ExitCode

DATA = 24 << 20


@pytest.fixture
def odd(cluster: Cluster, tmp_path: Path) -> tuple[Cluster, Path]:
    cluster.init()
    cluster.join("box2", "secondary")
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "disk.img", "wb") as file:
        file.truncate(1 << 42)  # more than there is anywhere
        for at in (0, 1 << 30, (1 << 42) - 4096):
            file.seek(at)
            file.write(os.urandom(4096))
    (source / "names").mkdir()
    (source / "names" / "0").write_bytes(os.urandom(DATA))
    for number in range(1, 12):
        os.link(source / "names" / "0", source / "names" / f"{number}")
    fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    for part in [*["d" * 255] * 15, "e" * 90]:
        os.mkdir(part, dir_fd=fd)
        below = os.open(part, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    made = os.open("f" * 150, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
    os.write(made, b"deep")
    os.symlink("nowhere", "l" * 150, dir_fd=fd)
    os.close(made)
    os.close(fd)
    cluster.add_set("docs", "shop1", source, ["box2"], brake_percent=0)
    cluster.sync("docs")
    return cluster, source


@pytest.mark.timeout(300)
def test_what_is_larger_than_it_takes_up_comes_back(
    odd: tuple[Cluster, Path], tmp_path: Path, small_disk: Path
) -> None:
    cluster, source = odd
    for node in ("box2", "shop1"):  # from its own store, and from another node's
        data = str(cluster.nodes[node].data)
        to = small_disk / f"from {node}"
        done = crnode("restore", "docs:names", "--to", str(to), "--data", data)
        assert "12 files" in done.stdout and len({path.stat().st_ino for path in to.iterdir()}) == 1
        crnode("restore", "docs:disk.img", "--to", str(tmp_path / f"image {node}"), "--data", data)
        image = tmp_path / f"image {node}" / "disk.img"
        assert image.stat().st_size == 1 << 42 and image.stat().st_blocks * 512 < 1 << 20
    # Deeper than any tool of the system reaches by name.
    deep = tmp_path / "deep"
    crnode("restore", "docs:" + "d" * 255, "--to", str(deep), "--data", str(cluster.nodes["box2"].data))
    found = [names for _, _, names, _ in os.fwalk(deep) if names]
    assert [sorted(names) for names in found] == [["f" * 150, "l" * 150]]
    assert crnode("drill", "docs", "--data", str(cluster.nodes["box2"].data)).returncode == 0
    versions = cluster.master.call("versions", {"set": "docs"})["versions"]
    assert versions[-1]["verdict"] == "good"

    # To its place: a stretch of the image is another one, and a name.
    number = versions[-1]["number"]
    with open(source / "disk.img", "r+b") as file:
        before = file.read(4096)
        file.seek(0)
        file.write(os.urandom(4096))
    (source / "names" / "3").unlink()
    cluster.sync("docs")
    out = cluster.master.call("restore", {"set": "docs", "in_place": True, "version": str(number)}, 120)
    assert out["verified"], out
    with open(source / "disk.img", "rb") as file:
        assert file.read(4096) == before
    assert (source / "names" / "3").samefile(source / "names" / "4")


def test_what_does_not_fit_is_said_before_anything_is_written(
    odd: tuple[Cluster, Path], tmp_path: Path, small_disk: Path
) -> None:
    cluster, source = odd
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (source / "large").write_bytes(os.urandom(free + (1 << 20)))
    cluster.sync("docs")
    to = str(small_disk / "there")
    for node in ("box2", "shop1"):
        data = str(cluster.nodes[node].data)
        done = crnode("restore", "docs:large", "--to", to, "--data", data, check=False)
        assert done.returncode == ExitCode.FULL and "There is no room" in done.stderr
        assert os.listdir(small_disk) in ([], ["lost+found"])
