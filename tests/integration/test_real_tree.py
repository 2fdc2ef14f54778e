"""A real tree goes to a mirror and an archive at once, and rsync finds nothing to do afterwards."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from harness import Cluster, rsync_difference

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="owners and set-id bits can only be compared as root"
)


@pytest.mark.timeout(600)
def test_usr_share_to_mirror_and_archive(cluster: Cluster, tmp_path: Path) -> None:
    source = Path(os.environ.get("CRNODE_TREE", "/usr/share"))
    count = int(
        subprocess.run(
            f"find {source} | wc -l", shell=True, capture_output=True, text=True, check=True
        ).stdout
    )
    if count < 20_000:
        pytest.skip(f"{source} has only {count} entries; name a larger tree with CRNODE_TREE")
    cluster.init()
    cluster.join("mirror")
    cluster.join("archive")
    to, archive_to = [f"mirror:{tmp_path}/mirrored"], [f"archive:{tmp_path}/archived"]
    cluster.add_set("tree", "shop1", source, to, archive_to=archive_to)
    out = cluster.sync("tree", timeout=400)
    assert {t["digest"] for t in out["targets"]} == {out["digest"]}
    assert [t["unapplied"] for t in out["targets"]] == [0, 0]
    assert rsync_difference(source, tmp_path / "mirrored") == ""
    assert rsync_difference(source, tmp_path / "archived") == ""
