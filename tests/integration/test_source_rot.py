"""A source's disk damages a file: a target that lacks it gets the good bytes from the other one."""

from __future__ import annotations

import mmap
import os
import shutil
from pathlib import Path

import pytest
from harness import Cluster, crnode, wait_for

from crnode.errors import ExitCode


def test_a_target_gets_the_good_bytes_from_another_holder(cluster: Cluster, tmp_path: Path) -> None:
    memory = Path("/dev/shm") / f"crnode-rot-{os.getpid()}"
    if not memory.parent.is_dir():
        pytest.skip("no tmpfs here")
    memory.mkdir()
    try:
        cluster.init()
        cluster.join("box2")
        box3 = cluster.join("box3")
        (memory / "first").write_bytes(b"first")
        to = [f"{name}:{tmp_path}/{name}-live" for name in ("box2", "box3")]
        cluster.add_set("docs", "shop1", memory, to, privileged=False)
        cluster.sync("docs")
        box3.stop()
        good = os.urandom(3 << 20)
        path = memory / "f"
        path.write_bytes(good)
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[1 << 20] = good[1 << 20]  # the page is dirty: no later write to it moves the times
            copy = tmp_path / "box2-live" / "f"
            wait_for(lambda: copy.exists() and copy.read_bytes() == good)
            before = path.stat()
            mapped[1 << 20] ^= 0xFF
            assert path.stat().st_ctime_ns == before.st_ctime_ns
        cluster.master.stop()  # a new process has nothing in memory: it reads the file
        cluster.master.start()
        box3.start()
        late = tmp_path / "box3-live" / "f"
        wait_for(lambda: late.exists() and late.read_bytes() == good, 40)
        said = " ".join(cluster.master.events())
        assert "are not what was captured" in said and "'f'" in said and "bytes 1" in said
        assert (tmp_path / "box2-live" / "f").read_bytes() == good
        assert path.read_bytes() != good
    finally:
        cluster.close()
        shutil.rmtree(memory)


def test_a_scrub_at_the_source_compares_its_files(cluster: Cluster, tmp_path: Path) -> None:
    memory = Path("/dev/shm") / f"crnode-scrub-{os.getpid()}"
    if not memory.parent.is_dir():
        pytest.skip("no tmpfs here")
    memory.mkdir()
    try:
        cluster.init()
        cluster.join("box2")
        path = memory / "f"
        path.write_bytes(os.urandom(300_000))
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[0] = mapped[0]
            cluster.add_set("docs", "shop1", memory, [f"box2:{tmp_path}/live"], privileged=False)
            cluster.sync("docs")
            done = crnode("scrub", "--data", str(cluster.master.data))
            assert "1 files of sources" in done.stdout
            mapped[10] ^= 0xFF
        done = crnode("scrub", "--data", str(cluster.master.data), check=False)
        assert done.returncode == ExitCode.DAMAGE, done.stdout
        assert "bytes 0 to" in done.stdout
        done = crnode("scrub", "--data", str(cluster.nodes["box2"].data))
        assert "of sources" not in done.stdout
    finally:
        cluster.close()
        shutil.rmtree(memory)
