"""`crnode fence`: what it ends, and what it says of what it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crnode.cli.app import main
from crnode.failover.fence_now import fence
from crnode.platform.cgroups import Group


def node(place: Path, name: str = "a") -> Path:
    services = [{"name": "web", "command": ["sleep", "600"]}, {"name": "db", "unit": "db.service"}]
    document = {"id": "ab" * 16, "takeover": {"candidates": ["a", "b"], "services": services}}
    (place / "cluster.json").write_text(json.dumps(document))
    (place / "node.json").write_text(json.dumps({"name": name}))
    return place


def test_it_says_what_only_the_keeper_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gates = tmp_path / "gates"
    gates.mkdir()
    (gates / "db.service").touch()
    out = fence(node(tmp_path), gates)
    assert out.done == [] and out.left == ["web is run by the keeper: it ends when the keeper does."]
    assert not (gates / "db.service").exists()
    assert main(["fence", "--data", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "Nothing was served" not in told.out and "web is run by the keeper" in told.err
    assert fence(node(tmp_path, "witness")) == ([], [])
    assert main(["fence", "--data", str(tmp_path)]) == 0
    assert "Nothing was served here." in capsys.readouterr().out


def test_a_program_is_ended_by_its_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Path] = []
    folder = tmp_path / "tree" / "keeper.service" / "crnode.abababab-a.web"
    folder.mkdir(parents=True)
    (folder / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    monkeypatch.setattr("crnode.platform.cgroups.mount_point", lambda: tmp_path / "tree")
    monkeypatch.setattr(Group, "kill", lambda self: killed.append(self.folder))
    assert fence(node(tmp_path)) == (["web was ended."], []) and killed == [folder]
    (folder / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert fence(node(tmp_path)) == ([], [])
