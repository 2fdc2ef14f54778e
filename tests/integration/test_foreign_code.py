"""An agent runs installed code, wherever it was started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness import Cluster, wait_for


def test_a_folder_called_crnode_is_not_imported(cluster: Cluster, tmp_path: Path) -> None:
    """Every kind of child process: scans, scrub, inventory, deep pass, audit, collection, a doubted index."""
    node = cluster.init()
    trap = tmp_path / "trap"
    (trap / "crnode").mkdir(parents=True)
    (trap / "crnode" / "__init__.py").write_text(f"open({str(trap / 'sprung')!r}, 'a').write('x')\n")
    (trap / "lmdb.py").write_text(f"open({str(trap / 'sprung')!r}, 'a').write('y')\n")
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"a")
    node.kill()
    command = Path(sys.executable).parent / "crnode"
    with open(node.log, "ab") as log:
        node.process = subprocess.Popen(
            [command, "--role", "master", "--data", str(node.data)], cwd=trap, stdout=log, stderr=log
        )
    wait_for(lambda: node._answers())
    cluster.join("box2")
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/live"])
    cluster.sync("docs")
    assert node.call("scrub")["files"]["checked"] == 1
    assert node.call("gc")["hole"] is None
    assert not (trap / "sprung").exists()
