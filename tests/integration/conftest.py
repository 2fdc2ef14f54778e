"""A cluster for a test, killed and shown when the test fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Cluster
from house import check_namespaces, closing
from shop import SHOPS, Shop


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """An empty cluster under the test's directory."""
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.close()
        print(made.logs())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 file system of 96 MiB in a file: below 9.6 MiB of free space no new image is taken."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    image.touch()
    os.truncate(image, 96 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-o", "loop", str(image), str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no loop mounts here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    """A shop of three nodes; "third": the witness keeps a copy, too; "two": there is no witness; "five":
    three of them; "small": b has a small disk."""
    check_namespaces()
    kind = SHOPS[getattr(request, "param", "")]
    with closing(Shop(tmp_path, str(kind.get("names", "abc")))) as one:
        if "small" in kind:
            one.data[kind["small"]] = request.getfixturevalue("small_disk") / "data"
        one.open(third=bool(kind.get("third")), words=kind.get("words", ()))
        yield one
    if one.differs:
        print(f"== what a and b did not agree in\n{one.differs}")
