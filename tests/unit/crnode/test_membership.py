"""Edits of the document, and which documents a node takes from whom (rules 47, 85, 88, 90)."""

from __future__ import annotations

from typing import Any

import pytest

from crnode.cluster.document import (
    MAX_TOMBSTONES,
    TOMBSTONE_KEEP_NS,
    ClusterDocument,
    DocumentId,
    Mode,
    Node,
    Role,
)
from crnode.cluster.membership import (
    SetSpec,
    TakeoverSpec,
    accept,
    add_node,
    add_set,
    go_on_without,
    move_node,
    remove_node,
    remove_set,
    set_takeover,
)
from crnode.errors import CrnodeError, ExitCode

NOW = 1_700_000_000_000_000_000


def node(name: str, role: Role = Role.REPLICA, mark: int | None = None) -> Node:
    number = sum(map(ord, name)) if mark is None else mark
    return Node(
        name=name,
        role=role,
        address=f"{name}:7400",
        fingerprint=f"{number:064x}",
        incarnation=f"{number:032x}",
        added_at_ns=1,
    )


@pytest.fixture
def document() -> ClusterDocument:
    nodes = (node("shop1", Role.MASTER), node("box2"), node("box3"), node("office", Role.REPLI_MASTER))
    return ClusterDocument(id="ab" * 16, name="shop", version=DocumentId(1, 0, 1), nodes=nodes)


def spec(**more: Any) -> SetSpec:
    return SetSpec.parse({"name": "web", "source": "shop1", "paths": ["/srv/www"], "to": ["box2"], **more})


def with_set(document: ClusterDocument, **more: Any) -> ClusterDocument:
    return add_set(document, spec(**more), NOW, "11" * 16)


def test_each_edit_is_a_new_document_with_the_next_version(document: ClusterDocument) -> None:
    edited = add_node(document, node("box4"), NOW)
    assert edited.version == DocumentId(1, 0, 2)
    assert document.version == DocumentId(1, 0, 1) and document.node("box4") is None
    added = edited.node("box4")
    assert added is not None and added.added_at_ns == NOW


def test_a_taken_name_is_refused(document: ClusterDocument) -> None:
    with pytest.raises(CrnodeError, match="already") as caught:
        add_node(document, node("box2", mark=999), NOW)
    assert caught.value.exit_code is ExitCode.REFUSED and caught.value.hint


def test_the_ninth_node_is_refused(document: ClusterDocument) -> None:
    for place in range(4):
        document = add_node(document, node(f"extra{place}", mark=5000 + place), NOW)
    with pytest.raises(CrnodeError, match="1 to 8 nodes"):
        add_node(document, node("ninth", mark=6000), NOW)


def test_set_targets_are_read_from_node_and_destination(document: ClusterDocument) -> None:
    edited = with_set(document, to=["box2:/copy/web", "box3"], mode="archive", adopt=True, exclude=["*.tmp"])
    item = edited.set_named("web")
    assert item is not None
    assert item.targets["box2"].destination == "/copy/web" and item.targets["box2"].mode is Mode.ARCHIVE
    assert item.targets["box3"].destination is None and item.targets["box3"].adopt
    assert item.uuid == "11" * 16 and item.exclude == ("*.tmp",)


@pytest.mark.parametrize("pattern", ["!", "a\\", "[z-a]", "[a-\\]"])
@pytest.mark.parametrize("field", ["include", "exclude", "page_files"])
def test_patterns_that_cannot_be_read_are_named(document: ClusterDocument, field: str, pattern: str) -> None:
    with pytest.raises(CrnodeError) as caught:
        with_set(document, **{field: ["*.tmp", pattern]})
    assert caught.value.exit_code is ExitCode.USAGE
    assert f"'{pattern}'" in caught.value.why and f"--{field.replace('_', '-')}" in caught.value.why


def test_archives_alone_are_targets_enough_and_none_is_not(document: ClusterDocument) -> None:
    item = with_set(document, to=[], archive_to=["box3"]).set_named("web")
    assert item is not None and item.targets["box3"].mode is Mode.ARCHIVE and len(item.targets) == 1
    with pytest.raises(CrnodeError, match="no target") as caught:
        with_set(document, to=[])
    assert caught.value.exit_code is ExitCode.USAGE and "--archive-to" in caught.value.hint


def test_one_set_may_have_mirrors_and_archives(document: ClusterDocument) -> None:
    item = with_set(document, to=["box2"], archive_to=["box3:/keep"]).set_named("web")
    assert item is not None
    assert {name: target.mode for name, target in item.targets.items()} == {
        "box2": Mode.MIRROR,
        "box3": Mode.ARCHIVE,
    }
    assert item.targets["box3"].destination == "/keep"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"to": ["box2", "box2:/other"]}, "twice"),
        ({"archive_to": ["box2"]}, "twice"),
        ({"to": ["box2:relative"]}, "not absolute"),
        ({"source": "box3"}, "only receives"),
        ({"name": "Web Site"}, "Web Site"),
    ],
)
def test_sets_that_break_a_rule_are_refused(
    document: ClusterDocument, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(CrnodeError) as caught:
        with_set(document, **more)
    assert said in str(caught.value) and caught.value.exit_code is ExitCode.REFUSED


@pytest.mark.parametrize(
    "args", [{}, {"name": 5}, {"name": "a", "source": "b", "paths": [], "to": ["c"]}, {"x": 1}]
)
def test_wishes_that_do_not_fit_are_usage_errors(args: dict[str, Any]) -> None:
    with pytest.raises(CrnodeError) as caught:
        SetSpec.parse(args)
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_removed_set_leaves_a_tombstone_and_its_name(document: ClusterDocument) -> None:
    removed = remove_set(with_set(document), "web", NOW)
    assert removed.sets == ()
    assert removed.tombstones[0].uuid == "11" * 16
    assert removed.tombstones[0].keep_until_ns == NOW + TOMBSTONE_KEEP_NS
    again = add_set(removed, spec(), NOW, "22" * 16)  # rule 47: same name, another set
    assert again.sets[0].uuid == "22" * 16
    with pytest.raises(CrnodeError, match="used twice"):
        add_set(removed, spec(), NOW, "11" * 16)


def test_forgetting_a_set_ends_its_versions_at_once(document: ClusterDocument) -> None:
    assert remove_set(with_set(document), "web", NOW, forget=True).tombstones[0].keep_until_ns == NOW


def test_an_unknown_set_is_not_removed(document: ClusterDocument) -> None:
    with pytest.raises(CrnodeError, match="no set 'ghost'") as caught:
        remove_set(with_set(document), "ghost", NOW)
    assert caught.value.exit_code is ExitCode.USAGE and "web" in caught.value.why


def test_unknown_nodes_are_named_with_the_known_ones(document: ClusterDocument) -> None:
    for edit in (
        lambda: remove_node(document, "ghost", NOW),
        lambda: with_set(document, to=["ghost"]),
        lambda: with_set(document, archive_to=["ghost:/x"]),
        lambda: with_set(document, source="ghost"),
        lambda: move_node(document, "ghost", "x:1"),
    ):
        with pytest.raises(CrnodeError, match="no node 'ghost'") as caught:
            edit()
        assert caught.value.exit_code is ExitCode.USAGE and "shop1, box2, box3" in caught.value.why


def test_a_removed_node_leaves_every_set_and_its_certificate_is_buried(document: ClusterDocument) -> None:
    removed = remove_node(with_set(document, to=["box2", "box3"]), "box2", NOW)
    assert removed.node("box2") is None
    assert list(removed.sets[0].targets) == ["box3"]
    assert removed.tombstones[0].fingerprint == node("box2").fingerprint
    with pytest.raises(CrnodeError, match="was removed"):
        add_node(removed, node("box2"), NOW)
    assert add_node(removed, node("box2", mark=777), NOW).node("box2") is not None


def test_the_only_holder_of_something_is_not_removed_without_lose(document: ClusterDocument) -> None:
    full = with_set(document)
    with pytest.raises(CrnodeError, match="web") as caught:
        remove_node(full, "box2", NOW)
    assert "--lose" in caught.value.hint
    assert remove_node(full, "box2", NOW, lose=True).sets[0].targets == {}
    two = with_set(document, to=["box2", "box3"])
    with pytest.raises(CrnodeError, match="old-set"):
        remove_node(two, "box2", NOW, only_holder_of=["old-set"])


def test_the_only_archive_is_not_removed_without_lose(document: ClusterDocument) -> None:
    full = with_set(document, to=["box2"], archive_to=["box3"])
    assert remove_node(full, "box2", NOW).sets[0].targets.keys() == {"box3"}  # an archive has more, not less
    with pytest.raises(CrnodeError, match=r"only archive.*deleted.*web") as caught:
        remove_node(full, "box3", NOW)
    assert "--lose" in caught.value.hint and caught.value.exit_code is ExitCode.REFUSED
    assert "only copy" not in caught.value.why
    assert remove_node(full, "box3", NOW, lose=True).sets[0].targets.keys() == {"box2"}
    more = add_node(document, node("box4"), NOW)
    two = with_set(more, to=["box2"], archive_to=["box3", "box4"])
    assert remove_node(two, "box3", NOW).sets[0].targets.keys() == {"box2", "box4"}
    both = add_set(full, spec(name="docs", to=["box3"]), NOW, "22" * 16)
    with pytest.raises(CrnodeError, match=r"only copy.*docs.*only archive.*web"):
        remove_node(both, "box3", NOW)


@pytest.mark.parametrize(("name", "said"), [("shop1", "master"), ("office", "source"), ("ghost", "no node")])
def test_nodes_that_are_needed_stay(document: ClusterDocument, name: str, said: str) -> None:
    full = with_set(document, source="office")
    with pytest.raises(CrnodeError, match=said):
        remove_node(full, name, NOW, lose=True)


def test_tombstones_are_bounded(document: ClusterDocument) -> None:
    for place in range(MAX_TOMBSTONES + 3):
        document = remove_set(add_set(document, spec(), NOW, f"{place + 1:032x}"), "web", NOW + place)
    assert len(document.tombstones) == MAX_TOMBSTONES
    assert f"{MAX_TOMBSTONES + 3:032x}" in {stone.uuid for stone in document.tombstones}
    assert f"{1:032x}" not in {stone.uuid for stone in document.tombstones}


def test_a_node_moves(document: ClusterDocument) -> None:
    moved = move_node(document, "box2", "10.0.0.9:7400")
    found = moved.node("box2")
    assert found is not None and found.address == "10.0.0.9:7400"
    assert move_node(moved, "box2", "10.0.0.9:7400") is moved
    with pytest.raises(CrnodeError):
        move_node(document, "box2", "shop1:7400")


def test_news_from_the_master_is_taken(document: ClusterDocument) -> None:
    news = add_node(document, node("box4"), NOW)
    assert accept(None, document, "shop1") is document
    assert accept(document, news, "shop1") is news
    assert accept(news, news, "shop1") is news


def test_news_from_anybody_else_is_not(document: ClusterDocument) -> None:
    news = add_node(document, node("box4"), NOW)
    with pytest.raises(CrnodeError, match="Only the master") as caught:
        accept(document, news, "box2")
    assert caught.value.exit_code is ExitCode.REFUSED
    assert accept(document, news, "box2", holder="box2") is news


def test_an_older_another_and_a_contradicting_document_are_refused(document: ClusterDocument) -> None:
    news = add_node(document, node("box4"), NOW)
    with pytest.raises(CrnodeError, match="older"):
        accept(news, document, "shop1")
    with pytest.raises(CrnodeError, match="cluster"):
        accept(document, news.model_copy(update={"id": "cd" * 16}), "shop1")
    with pytest.raises(CrnodeError, match="something else"):
        accept(news, add_node(document, node("box5"), NOW), "shop1")
    with pytest.raises(CrnodeError, match="older"):
        accept(document.model_copy(update={"epoch": 4}), news, "shop1")


def test_an_unknown_template_is_refused(document: ClusterDocument) -> None:
    with pytest.raises(CrnodeError, match="postgres"):
        add_set(document, spec(template="postgres"), 1, "ab" * 16)


def moving(document: ClusterDocument) -> ClusterDocument:
    """With box2 and shop1 as those that may be active."""
    voters = TakeoverSpec(voters=["shop1", "box2", "box3"], candidates=["shop1", "box2"])
    return set_takeover(document, voters, "ee" * 16)


def test_by_force_a_candidate_goes_on_as_the_master_without_the_lost_one(document: ClusterDocument) -> None:
    before = with_set(moving(document))
    after = go_on_without(before, "box2", {"shop1": "f" * 64}, NOW)
    assert after.version > before.version and after.version.generation == 2
    lost = after.need_node("shop1")
    assert after.master.name == "box2" and lost.lost and lost.role is Role.REPLI_MASTER
    old = before.need_node("shop1").fingerprint
    assert after.node_by_fingerprint(old) is None and old in {s.fingerprint for s in after.tombstones}
    assert after.need_set("web").source == "shop1"  # restored from where it went
    again = go_on_without(after, "box2", {"shop1": "e" * 64}, NOW)
    assert again.need_node("shop1").fingerprint == "f" * 64
    back = add_node(after, node("shop1", Role.REPLI_MASTER, mark=4711), NOW)
    assert not back.need_node("shop1").lost and len(back.nodes) == len(after.nodes)


def test_what_lies_in_the_folders_of_a_lost_node_is_set_aside_when_it_comes_back(
    document: ClusterDocument,
) -> None:
    before = with_set(moving(document), to=["box2", "box3:/srv/copy"])
    after = go_on_without(before, "box2", {"box3": "f" * 64}, NOW)
    assert after.master.name == "shop1"
    back = add_node(after, node("box3", mark=4711), NOW)
    assert back.need_set("web").targets["box3"].adopt and not back.need_set("web").targets["box2"].adopt


def test_a_document_by_force_is_taken_where_the_lost_node_does_not_answer(document: ClusterDocument) -> None:
    before = moving(document)
    after = go_on_without(before, "box2", {"shop1": "f" * 64}, NOW)
    assert accept(before, after, "box2") is after
    with pytest.raises(CrnodeError, match="shop1 answers here: two nodes may be active"):
        accept(before, after, "box2", hears={"shop1", "box2"})
    with pytest.raises(CrnodeError, match="Only the master"):
        accept(before, after, "box3")  # no candidate
    kept = tuple(node.model_copy(update={"lost": False}) for node in after.nodes)
    with pytest.raises(CrnodeError, match="Only the master"):
        accept(before, after.model_copy(update={"nodes": kept}), "box2")  # the master is not said to be off
    leap = after.version._replace(generation=99)
    with pytest.raises(CrnodeError, match="Only the master"):
        accept(before, after.model_copy(update={"version": leap}), "box2")
    with pytest.raises(CrnodeError, match="Only the master"):
        accept(before, add_node(before, node("box9"), NOW), "box2")  # no later generation


def test_without_more_words_master_and_secondary_may_be_active(document: ClusterDocument) -> None:
    spec = TakeoverSpec(voters=["shop1", "box2", "box3"])
    taken = set_takeover(document, spec, "ee" * 16).takeover
    assert taken is not None and taken.candidates == ("shop1", "box2", "box3")
    nodes = tuple(
        one.model_copy(update={"role": Role.SECONDARY}) if one.name == "box3" else one for one in
        document.nodes
    )
    taken = set_takeover(document.model_copy(update={"nodes": nodes}), spec, "ee" * 16).takeover
    assert taken is not None and taken.candidates == ("shop1", "box3")


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"address": "192.0.2.7/24", "interface": "eth0"}, "the address of box2 itself"),
        ({"active_port": 7400}, "the agent of shop1"),
        ({"active_port": 7401}, "the keeper of shop1"),
        ({"services": [("tcp", "127.0.0.1:80")]}, "the probe of web asks for none"),
        ({"services": [("http", "http://127.0.0.1/")]}, ""),
        ({"address": "192.0.2.8/24", "interface": "eth0", "active_port": 7402}, ""),
    ],
)
def test_what_the_cluster_has_itself_does_not_move(
    document: ClusterDocument, wish: dict[str, Any], why: str
) -> None:
    at = {"box2": "192.0.2.7:7400"}
    moved = tuple(n.model_copy(update={"address": at.get(n.name, n.address)}) for n in document.nodes)
    if "services" in wish:
        (kind, where), = wish["services"]
        probe = {"kind": kind, "target": where, "expect": "welcome"}
        wish = {"services": [{"name": "web", "command": ["/usr/sbin/web"], "probe": probe}]}
    spec = TakeoverSpec(voters=["shop1", "box2", "box3"], candidates=["shop1", "box2"], **wish)
    cluster = document.model_copy(update={"nodes": moved})
    if not why:
        assert set_takeover(cluster, spec, "ee" * 16).takeover is not None
        return
    with pytest.raises(CrnodeError, match=why):
        set_takeover(cluster, spec, "ee" * 16)
