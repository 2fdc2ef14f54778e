"""A source whose data directory was set back to yesterday (a restored VM snapshot): nothing acknowledged is
lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness import Cluster, wait_for


def test_a_source_that_was_set_back_goes_on_under_a_new_identity(cluster: Cluster, tmp_path: Path) -> None:
    master = cluster.init()
    cluster.join("box2")
    source = tmp_path / "source"
    source.mkdir()
    for number in range(300):
        (source / f"f{number}").write_bytes(str(number).encode() * 50)
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/live"])
    cluster.sync("docs")
    master.stop()
    shutil.copytree(master.data, tmp_path / "yesterday", symlinks=True)
    saved = tmp_path / "saved-source"
    shutil.copytree(source, saved, symlinks=True)
    master.start()
    (source / "today").write_bytes(b"acknowledged today")
    (source / "f1").write_bytes(b"changed today")
    today = cluster.sync("docs")
    master.kill()
    shutil.rmtree(master.data)
    shutil.copytree(tmp_path / "yesterday", master.data, symlinks=True)
    os.chmod(master.data, 0o700)
    # The files are those of yesterday too, in the same directory: the whole machine was set back.
    (source / "today").unlink()
    (source / "f1").write_bytes((saved / "f1").read_bytes())
    (source / "after").write_bytes(b"written after the restore")
    master.start()
    after = cluster.sync("docs")
    assert {t["digest"] for t in after["targets"]} == {after["digest"]}
    live = tmp_path / "live"
    assert (live / "after").read_bytes() == b"written after the restore"
    wait_for(lambda: not (live / "today").exists())
    versions = cluster.nodes["box2"].call("versions", {"set": "docs"})["versions"]
    (kept,) = [v for v in versions if (v["name"] or "").startswith("diverged")]
    assert kept["digest"] == today["digest"]
    wish = {"set": "docs", "version": kept["id"], "to": str(tmp_path / "back")}
    out = cluster.nodes["box2"].call("restore", wish)
    assert out["digest_ok"]
    assert (tmp_path / "back" / "today").read_bytes() == b"acknowledged today"
    assert any("set" in text and "back" in text for text in master.events())
