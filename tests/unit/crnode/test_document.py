"""The cluster document: what it accepts, and that each of its rules refuses with a sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from crnode.cluster.document import (
    MAX_DOCUMENT_BYTES,
    ClusterDocument,
    DocumentId,
    Takeover,
    overlap,
    parse_document,
    split_address,
)
from crnode.errors import CrnodeError


def node(name: str, role: str = "replica", **more: Any) -> dict[str, Any]:
    seed = sum(ord(char) * 31**place for place, char in enumerate(name))
    return {
        "name": name,
        "role": role,
        "address": f"{name}.example:7400",
        "fingerprint": f"{seed:064x}",
        "incarnation": f"{seed:032x}",
        "added_at_ns": 5,
        **more,
    }


def a_set(name: str = "web", source: str = "shop1", **more: Any) -> dict[str, Any]:
    body = {
        "name": name,
        "uuid": f"{sum(map(ord, name)):032x}",
        "source": source,
        "paths": ["/srv/www"],
        "targets": {"box2": {"node": "box2", "destination": "/backup/web"}},
        "created_at_ns": 6,
    }
    return {**body, **more}


def cluster(**more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": "ab" * 16,
        "name": "shop",
        "version": [1, 0, 7],
        "nodes": [node("shop1", "master"), node("box2"), node("office", "repli-master")],
        "sets": [a_set()],
    }
    return {**body, **more}


def read(body: dict[str, Any]) -> ClusterDocument:
    return parse_document(json.dumps(body).encode())


def test_round_trip_gives_the_same_bytes() -> None:
    document = read(cluster())
    again = parse_document(document.to_bytes())
    assert again == document
    assert again.to_bytes() == document.to_bytes()
    assert document.master.name == "shop1"
    assert [item.name for item in document.sets_to("box2")] == ["web"]
    assert [item.name for item in document.sets_from("shop1")] == ["web"]
    found = document.node_by_fingerprint(document.nodes[1].fingerprint)
    assert found is not None and found.name == "box2"
    assert document.node("nobody") is None


def test_ids_are_ordered_by_generation_then_epoch_then_version() -> None:
    order = [DocumentId(1, 0, 9), DocumentId(1, 1, 0), DocumentId(1, 1, 1), DocumentId(2, 0, 0)]
    assert sorted([order[2], order[0], order[3], order[1]]) == order


def test_nothing_in_it_can_be_changed() -> None:
    with pytest.raises(ValidationError):
        read(cluster()).nodes[0].name = "other"


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("unknown field", cluster(colour="red"), "colour"),
    ("text for a number", cluster(epoch="1"), "epoch"),
    ("no nodes", cluster(nodes=[], sets=[]), "1 to 8 nodes"),
    (
        "nine nodes",
        cluster(nodes=[node("shop1", "master"), *(node(f"box{place}") for place in range(2, 10))]),
        "1 to 8 nodes",
    ),
    ("two masters", cluster(nodes=[node("shop1", "master"), node("box2", "master")]), "exactly one master"),
    ("no master", cluster(nodes=[node("box2")], sets=[]), "exactly one master"),
    (
        "two secondaries",
        cluster(nodes=[node("shop1", "master"), node("box2", "secondary"), node("box3", "secondary")]),
        "at most one secondary",
    ),
    (
        "same name",
        cluster(nodes=[node("shop1", "master"), node("box2"), node("box2", address="x:1")]),
        "'box2'",
    ),
    (
        "same certificate",
        cluster(
            nodes=[
                node("shop1", "master"),
                node("box2"),
                node("box3", fingerprint=node("box2")["fingerprint"]),
            ]
        ),
        "certificate",
    ),
    (
        "same address",
        cluster(nodes=[node("shop1", "master"), node("box2"), node("box3", address="box2.example:7400")]),
        "box2.example:7400",
    ),
    ("wildcard address", cluster(nodes=[node("shop1", "master", address="0.0.0.0:7400")]), "every interface"),
    ("port 0", cluster(nodes=[node("shop1", "master", address="shop1:0")]), "port 0"),
    ("bad name", cluster(name="My Shop"), "My Shop"),
    ("unknown source", cluster(sets=[a_set(source="ghost")]), "'ghost'"),
    ("replica as source", cluster(sets=[a_set(source="box2", targets={})]), "only receives"),
    ("unknown target", cluster(sets=[a_set(targets={"ghost": {"node": "ghost"}})]), "'ghost'"),
    ("target is the source", cluster(sets=[a_set(targets={"shop1": {"node": "shop1"}})]), "to itself"),
    ("target under another key", cluster(sets=[a_set(targets={"box2": {"node": "office"}})]), "filed under"),
    ("relative path", cluster(sets=[a_set(paths=["srv/www"])]), "not absolute"),
    ("root", cluster(sets=[a_set(paths=["/"])]), "whole machine"),
    ("dotted path", cluster(sets=[a_set(paths=["/srv/../etc"])]), "'..'"),
    ("nested paths", cluster(sets=[a_set(paths=["/srv", "/srv/www"])]), "lie in one another"),
    ("no path", cluster(sets=[a_set(paths=[])]), "paths"),
    ("empty pattern", cluster(sets=[a_set(exclude=[" "])]), "pattern"),
    ("same set name", cluster(sets=[a_set(), a_set(uuid="cd" * 16, targets={})]), "'web'"),
    ("same uuid", cluster(sets=[a_set(), a_set("db", uuid=a_set()["uuid"], targets={})]), "used twice"),
    (
        "two sets write to one folder (rule 64)",
        cluster(
            sets=[a_set(), a_set("db", targets={"box2": {"node": "box2", "destination": "/backup/web/db"}})],
        ),
        "delete the other's files",
    ),
    (
        "a destination that is a source again (rule 64)",
        cluster(
            sets=[
                a_set(targets={"office": {"node": "office", "destination": "/home/docs/web"}}),
                a_set("docs", "office", paths=["/home/docs"], targets={"shop1": {"node": "shop1"}}),
            ]
        ),
        "without end",
    ),
    ("settle longer than the wait", cluster(sets=[a_set(settle_ms=2000)]), "max_wait_ms"),
    ("document from a later epoch than in force", cluster(version=[1, 3, 0], epoch=2), "epoch 3"),
    (
        "a removed certificate comes back",
        cluster(
            tombstones=[
                {
                    "kind": "node",
                    "name": "box2",
                    "at_ns": 1,
                    "keep_until_ns": 1,
                    "fingerprint": node("box2")["fingerprint"],
                }
            ]
        ),
        "was removed",
    ),
]


@pytest.mark.parametrize(("body", "said"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_each_rule_refuses_with_a_sentence(body: dict[str, Any], said: str) -> None:
    with pytest.raises(CrnodeError) as caught:
        read(body)
    assert said in caught.value.why
    assert caught.value.why.endswith(".")
    assert "validation error" not in str(caught.value)


def test_disjoint_destinations_and_neighbours_with_a_common_beginning_are_fine() -> None:
    body = cluster(
        sets=[a_set(), a_set("db", targets={"box2": {"node": "box2", "destination": "/backup/web2"}})]
    )
    assert len(read(body).sets) == 2


def test_paths_lose_a_last_slash_only() -> None:
    assert read(cluster(sets=[a_set(paths=["/srv/www/"])])).sets[0].paths == ("/srv/www",)


def test_too_large_a_document_is_not_even_parsed() -> None:
    with pytest.raises(CrnodeError, match="bytes"):
        parse_document(b" " * (MAX_DOCUMENT_BYTES + 1))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"format": 2}'])
def test_anything_else_is_an_error_for_people(body: bytes) -> None:
    with pytest.raises(CrnodeError, match="cannot be used"):
        parse_document(body)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop1:7400", ("shop1", 7400)),
        ("shop1", ("shop1", 7400)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[fe80::1]:7401", ("fe80::1", 7401)),
        ("[::]", ("::", 7400)),
        (" [fe80::1%eth0]:0 ", ("fe80::1%eth0", 0)),
        ("0:65535", ("0", 65535)),
        ("x" * 63 + ".example", ("x" * 63 + ".example", 7400)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", ":7400", "shop1:", "shop1:65536", "shop1:99999", "shop1:x", "shop1:-1", "shop1:" + "9" * 5000),
        *("fe80::1:7400", "[fe80::1", "[fe80::1]7400", "[shop1]:1", "[]:1", "256.1.1.1:1", "10.1:1"),
        *("a b:1", "a..b:1", "-a:1", "x" * 64 + ":1", "a.b\n:1"),
    ],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        split_address(text)


def test_overlap_looks_at_whole_components() -> None:
    assert overlap("/a/b", "/a/b/c") and overlap("/a/b/c", "/a/b") and overlap("/a", "/a")
    assert not overlap("/a/b", "/a/bc")


@pytest.mark.parametrize(
    ("service", "why"),
    [
        ({}, "needs one of"),
        ({"command": ("a",), "unit": "a.service"}, "needs one of"),
        ({"unit": "a.socket"}, "is no unit"),
        ({"unit": "../a.service"}, "is no unit"),
        ({"command": ("a",), "stop": "b"}, "no start:COMMAND"),
        ({"command": ("a",), "needs": ("db",)}, "name that first"),
    ],
)
def test_a_service_is_of_one_kind_and_needs_what_is_named_before_it(
    service: dict[str, Any], why: str
) -> None:
    known = {"voters": ("a",), "candidates": ("a",), "founder": "a", "founder_incarnation": "0" * 32}
    with pytest.raises(ValidationError, match=why):
        Takeover.model_validate({**known, "services": ({"name": "web", **service},)})
    before = {"name": "db", "unit": "postgresql@15-main.service"}
    fine = {"name": "web", "start": "a", "stop": "b", "status": "c", "needs": ("db",)}
    assert len(Takeover.model_validate({**known, "services": (before, fine)}).services) == 2
