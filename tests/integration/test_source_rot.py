"""Bytes of a source that change without its times: what a program wrote is replicated, what a disk damages is
not, and a target that lacks it gets the good bytes from the other one."""

from __future__ import annotations

import mmap
import os
import shutil
import time
from pathlib import Path

import pytest
from harness import Cluster, crnode, wait_for

from crnode.capture.guard import VERIFIED
from crnode.capture.openers import has_writer
from crnode.capture.rot import Verified
from crnode.errors import ExitCode
from crnode.store.catalog import Catalog

OLD_SECONDS = 61.0  # after which a page that was mapped is dirty no more


def test_a_write_through_a_mapping_is_replicated_whenever_it_is_met(cluster: Cluster, tmp_path: Path) -> None:
    memory = Path("/dev/shm") / f"crnode-rot-{os.getpid()}"
    if not memory.parent.is_dir():
        pytest.skip("no tmpfs here")
    memory.mkdir()
    try:
        cluster.init()
        cluster.join("box2")
        path, copy = memory / "f", tmp_path / "live" / "f"
        path.write_bytes(os.urandom(300_000))
        cluster.add_set("docs", "shop1", memory, [f"box2:{tmp_path}/live"], privileged=False)
        cluster.sync("docs")
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[5] ^= 0xFF  # the page is dirty: no later write to it moves the times
            wait_for(lambda: copy.read_bytes() == path.read_bytes())
            before = path.stat()
            cluster.master.stop()  # a new process has nothing in memory
            mapped[5:11] = b"newest"
            assert path.stat().st_ctime_ns == before.st_ctime_ns
        cluster.master.start()
        wait_for(lambda: crnode("status", "--data", str(cluster.master.data), check=False).returncode == 0)
        done = crnode("scrub", "--data", str(cluster.master.data))
        assert "1 file of sources" in done.stdout
        wait_for(lambda: copy.read_bytes() == path.read_bytes())
        assert copy.read_bytes()[5:11] == b"newest"
    finally:
        cluster.close()
        shutil.rmtree(memory)


@pytest.mark.timeout(240)
def test_damage_is_named_and_the_good_bytes_come_from_another_holder(
    cluster: Cluster, tmp_path: Path, small_disk: Path
) -> None:
    source = small_disk / "source"
    source.mkdir()
    path = source / "f"
    good = os.urandom(3 << 20)
    path.write_bytes(good)
    with open(path, "rb") as file:
        if has_writer(file.fileno()) is None:
            pytest.skip("no damage is certain where not all processes may be looked at")
    cluster.init()
    cluster.join("box2")
    box3 = cluster.join("box3")
    box3.stop()
    to = [f"{name}:{tmp_path}/{name}-live" for name in ("box2", "box3")]
    uuid = cluster.add_set("docs", "shop1", source, to, privileged=False)
    copy, late = (tmp_path / f"{name}-live" / "f" for name in ("box2", "box3"))
    wait_for(lambda: copy.exists() and copy.read_bytes() == good)
    time.sleep(max(0.0, path.stat().st_ctime + OLD_SECONDS - time.time()))
    cluster.master.stop()
    catalog = Catalog(cluster.master.data / "sets" / f"{uuid}.db", bytes.fromhex(uuid))
    newest = catalog.newest()
    assert newest is not None
    with catalog.transaction():  # as a pass at idle leaves it; a scrub would fetch what box3 lacks
        catalog.set_meta(VERIFIED, Verified(time.time_ns(), newest.ordinal).encode())
    catalog.close()
    os.sync()
    at = 1 << 20
    with open(tmp_path / "disk.img", "r+b") as disk, open(path, "rb") as file:
        disk.seek(disk.read().index(good[at : at + 512]))
        disk.write(bytes([good[at] ^ 0xFF]))
        disk.flush()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert path.read_bytes() != good
    cluster.master.start()  # a new process has nothing in memory: it reads the file
    box3.start()
    wait_for(lambda: late.exists() and late.read_bytes() == good, 40)
    said = " ".join(cluster.master.events())
    assert "are not what was captured" in said and "'f'" in said and "bytes 1" in said
    done = crnode("scrub", "--data", str(cluster.master.data), check=False)
    assert done.returncode == ExitCode.DAMAGE, done.stdout
    assert "bytes 1" in done.stdout
    done = crnode("scrub", "--data", str(cluster.nodes["box2"].data))
    assert "of sources" not in done.stdout
    assert copy.read_bytes() == good
