"""crnode rpo: what would be lost now, with a target that is away."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from harness import Cluster, Node, crnode, wait_for

from crnode.errors import ExitCode


def rpo(node: Node, *words: str) -> tuple[int, dict[str, Any]]:
    done = crnode("rpo", *words, "--json", "--data", str(node.data), check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


def test_a_target_that_is_away_becomes_a_warning_and_an_error(cluster: Cluster, tmp_path: Path) -> None:
    shop1, source = cluster.init(), tmp_path / "source"
    box2 = cluster.join("box2")
    source.mkdir()
    cluster.add_set("docs", "shop1", source, ["box2"])
    (source / "one").write_text("1")
    cluster.sync("docs")
    code, answer = rpo(shop1, "--warn", "1", "--error", "4")
    assert code == ExitCode.OK and answer["thresholds"] == {"warn_s": 1.0, "error_s": 4.0}
    (row,) = answer["targets"]
    assert (row["node"], row["level"], row["lag_s"]) == ("box2", "ok", 0.0)

    box2.stop()
    (source / "two").write_text("2")
    wait_for(lambda: rpo(shop1)[1]["targets"][0]["level"] == "warning", 30)
    assert rpo(shop1)[0] == ExitCode.OK
    wait_for(lambda: rpo(shop1)[0] == ExitCode.BEHIND, 30)
    (row,) = rpo(shop1, "docs")[1]["targets"]
    assert row["level"] == "error" and row["lag_s"] > 4
    warnings = shop1.call("status")["warnings"]
    assert any("more than 4 s" in text and "is not there" in text for text in warnings)
    said = crnode("rpo", "--data", str(shop1.data), check=False).stdout
    assert "error" in said and "an error from 4 s on" in said

    box2.start()
    wait_for(lambda: rpo(shop1)[1]["targets"][0]["level"] == "ok", 30)
    time.sleep(0.1)
    (row,) = rpo(shop1)[1]["targets"]
    assert row["max_s"] > 4 and row["p50_s"] is not None

    assert rpo(box2, "--warn", "3")[0] == ExitCode.REFUSED  # the document is the master's
    assert rpo(shop1, "--warn", "30", "--error", "3")[0] == ExitCode.USAGE
    assert rpo(shop1, "ghost")[0] == ExitCode.USAGE
    assert rpo(shop1)[1]["thresholds"] == {"warn_s": 1.0, "error_s": 4.0}
