"""A set of several folders: each lies below its own name at the targets."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from harness import Cluster, crnode, rsync_difference


def test_folders_of_one_set(cluster: Cluster, tmp_path: Path) -> None:
    """The second and the third have one name, so the third gets another at the targets."""
    cluster.init()
    cluster.join("box2")
    roots = [tmp_path / "a" / "letters", tmp_path / "b" / "bills", tmp_path / "c" / "bills"]
    for number, root in enumerate(roots):
        (root / "d").mkdir(parents=True)
        (root / "f").write_bytes(b"%d" % number)
        (root / "d" / "g").write_bytes(os.urandom(100_000))
        os.link(root / "f", root / "d" / "h")
        (root / "l").symlink_to("f")
    words = [word for root in roots for word in ("--path", str(root))]
    words += ["--to", f"box2:{tmp_path}/live", "--archive-to", "box3", "--privileged"]
    cluster.join("box3")
    crnode("set", "add", "office", "--source", "shop1", *words, "--data", str(cluster.master.data))
    cluster.sync("office")

    def check(live: Path) -> None:
        for root, label in zip(roots, ("letters", "bills", "bills-2"), strict=True):
            assert rsync_difference(root, live / label) == "", label
        assert sorted(os.listdir(live)) == ["bills", "bills-2", "letters"]

    check(tmp_path / "live")
    time.sleep(1.1)
    good = max(v["number"] for v in cluster.master.call("versions", {"set": "office"})["versions"])
    for number, root in enumerate(roots):
        shutil.copytree(root, tmp_path / f"was{number}", symlinks=True)
    os.rename(roots[0] / "d", roots[1] / "moved")
    (roots[1] / "f").write_bytes(b"changed")
    shutil.rmtree(roots[2] / "d")
    (roots[2] / "d").write_bytes(b"a file now")
    (roots[0] / "new" / "deep").mkdir(parents=True)
    cluster.sync("office")
    check(tmp_path / "live")
    cluster.master.kill()
    (roots[2] / "while it was away").write_bytes(b"x")
    (roots[0] / "l").unlink()
    cluster.master.start()
    cluster.sync("office")
    check(tmp_path / "live")
    assert (cluster.nodes["box3"].data / "trees" / "office" / "letters" / "l").is_symlink()  # an archive
    out = cluster.nodes["box2"].call(
        "restore", {"set": "office", "version": str(good), "to": str(tmp_path / "back")}
    )
    assert out["digest_ok"]
    out = cluster.master.call("restore", {"set": "office", "version": str(good), "in_place": True}, 60)
    assert out["verified"], out["skipped"]
    for label, root in zip(("letters", "bills", "bills-2"), roots, strict=True):
        assert rsync_difference(tmp_path / "back" / label, root) == "", label
        assert not (root / ".crnode").exists()
    cluster.sync("office")
    check(tmp_path / "live")
    for root in roots:
        shutil.rmtree(root / "d")
    out = cluster.master.call(
        "restore", {"set": "office", "path": "bills/d", "version": str(good), "in_place": True}, 60
    )
    assert out["verified"] and (roots[1] / "d" / "g").exists() and not (roots[0] / "d").exists()
    assert cluster.master.process is not None and cluster.master.process.poll() is None
