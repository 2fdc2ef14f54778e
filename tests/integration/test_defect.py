"""A defect of crnode in one set: the others go on, it is told, and the set goes on when it is gone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from harness import Cluster, wait_for

DEFECT = """
import os
from crnode.agent import node
from crnode.capture.job import Job
node.MEND_SECONDS = 1.0
real = Job._take
def take(self, path):
    if path == b"trips" and os.path.exists(os.environ["CRNODE_TEST_DEFECT"]):
        raise KeyError(path)
    return real(self, path)
Job._take = take
"""


def test_a_defect_stops_one_set_alone(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent is started with a module that is imported at its start and makes capture fail at one path."""
    made = tmp_path / "site"
    made.mkdir()
    (made / "crnode_defect.py").write_text(DEFECT)
    monkeypatch.setenv("CRNODE_TEST_DEFECT", str(tmp_path / "defect"))
    monkeypatch.setenv("PYTHONPATH", str(made))
    cluster.init()
    cluster.join("box2")
    cluster.master.stop()
    code = "import crnode_defect, sys; from crnode.__main__ import main; sys.exit(main())"
    cluster.master.start_with([sys.executable, "-c", code])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(b"f")
        cluster.add_set(name, "shop1", tmp_path / name, [f"box2:{tmp_path}/live-{name}"])
        cluster.sync(name)
    (tmp_path / "defect").touch()
    (tmp_path / "one" / "trips").write_bytes(b"x")

    def warned() -> bool:
        return any("A defect of crnode ended its" in w for w in cluster.master.call("status")["warnings"])

    wait_for(warned)
    states = {s["name"]: s["targets"][0]["state"] for s in cluster.master.call("status")["sets"]}
    assert states == {"one": "source defect", "two": "in sync"}
    (tmp_path / "two" / "g").write_bytes(b"g")
    cluster.sync("two")
    assert (tmp_path / "live-two" / "g").read_bytes() == b"g"
    assert "Traceback" in cluster.master.log.read_text()  # for the report
    os.unlink(tmp_path / "defect")
    wait_for(lambda: not warned(), 30)
    cluster.sync("one")
    assert (tmp_path / "live-one" / "trips").read_bytes() == b"x"


@pytest.mark.parametrize("place", ["source", "destination"])
def test_a_link_to_itself_in_place_of_a_folder_stops_one_set(
    cluster: Cluster, tmp_path: Path, place: str
) -> None:
    cluster.init()
    cluster.join("box2")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(b"f")
        cluster.add_set(name, "shop1", tmp_path / name, [f"box2:{tmp_path}/live-{name}"])
        cluster.sync(name)
    node, path = (cluster.master, "one") if place == "source" else (cluster.nodes["box2"], "live-one")
    node.stop()
    os.rename(tmp_path / path, tmp_path / "away")
    (tmp_path / path).symlink_to(tmp_path / path)
    node.start()
    (tmp_path / "two" / "g").write_bytes(b"g")
    cluster.sync("two")
    wait_for(lambda: any("one" in w for w in cluster.master.call("status")["warnings"]))
