"""What doctor says of a machine whose services may run by another's word than the keeper's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crnode.agent import guarded
from crnode.agent.guarded import FOREVER, permanent, together, undermined
from crnode.cluster.document import ClusterDocument, DocumentId, Node, Role, ServiceSpec, Takeover


def takeover(**more: object) -> Takeover:
    known = {"voters": ("a", "b", "c"), "candidates": ("a", "b"), "founder": "a", "founder_incarnation": "0"
    * 32}
    return Takeover.model_validate({**known, **more})


def shown(local: str, seconds: int) -> str:
    return json.dumps([{"ifname": "eth0", "addr_info": [{"local": local, "valid_life_time": seconds}]}])


def test_an_address_without_an_end_is_somebody_elses() -> None:
    assert permanent("192.0.2.10/24", shown("192.0.2.10", FOREVER)) == "eth0"
    assert permanent("192.0.2.10/24", shown("192.0.2.10", 2)) == ""
    assert permanent("192.0.2.10/24", shown("192.0.2.11", FOREVER)) == ""
    assert permanent("2001:db8::10/64", shown("2001:db8:0::10", FOREVER)) == "eth0"
    assert permanent("192.0.2.10/24", "") == permanent("192.0.2.10/24", "no JSON") == ""


def test_units_without_a_gate_and_units_on_a_standby_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = takeover(services=(ServiceSpec(name="web", unit="nginx.service"),))
    monkeypatch.setattr(guarded, "has_drop_in", lambda unit: False)
    (check,) = undermined(said, active=True)
    assert check["ok"] is False and "its drop-in is not there" in check["text"]
    monkeypatch.setattr(guarded, "has_drop_in", lambda unit: True)
    monkeypatch.setattr(guarded, "_asked", lambda *words: "active\n")
    assert undermined(said, active=True) == []
    (check,) = undermined(said, active=False)
    assert "this node is not active" in check["text"] and check["hint"] == "systemctl stop nginx.service"


def test_voters_on_one_machine_are_named() -> None:
    nodes = tuple(
        Node(
            name=name,
            role=Role.MASTER if name == "a" else Role.REPLICA,
            address=f"{name}:7400",
            fingerprint=f"{number:064x}",
            incarnation=f"{number:032x}",
            added_at_ns=1,
            machine=machine,
        )
        for number, (name, machine) in enumerate((("a", "one"), ("b", "two"), ("c", "one")), 1)
    )
    document = ClusterDocument(id="ab" * 16, name="shop", version=DocumentId(1, 0, 1), nodes=nodes)
    (check,) = together(document, takeover())
    assert check["text"] == "a and c are on one machine: they fail together." and check["ok"] is None
    assert together(document, takeover(voters=("a", "b"))) == []
