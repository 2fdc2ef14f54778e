"""Who has a set that moves, and how the document is read then."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_samples import SET, commit, directory, file, finish, put_file, small_store

from crnode.agent.moving import raise_fence
from crnode.agent.takeover import Takeovers
from crnode.cluster.document import (
    ClusterDocument,
    DocumentId,
    Mode,
    Node,
    ReplicationSet,
    Role,
    Takeover,
    Target,
)
from crnode.cluster.membership import TakeoverSpec
from crnode.cluster.moves import (
    JUMP,
    Move,
    epoch_number,
    epoch_parts,
    from_json,
    is_plausible,
    moved,
    to_json,
    why_it_cannot_move,
)
from crnode.errors import CrnodeError
from crnode.replicate import turn
from crnode.replicate.place import locate, prepare
from crnode.replicate.turn import WAS_SOURCE, note_source, to_target
from crnode.store.catalog import Catalog
from crnode.store.reader import Image, Live

UUID = "ab" * 16
ELSEWHERE = {"b": Target(node="b", destination="/copy/else")}


def _set(**more: object) -> ReplicationSet:
    targets = {
        "b": Target(node="b", destination="/copy/web"),
        "c": Target(node="c", destination="/archive/web", mode=Mode.ARCHIVE),
    }
    body: dict[str, object] = {
        "name": "web", "uuid": UUID, "source": "a", "paths": ("/srv/web",), "targets": targets,
        "privileged": True, "created_at_ns": 1, **more,
    }  # fmt: skip
    return ReplicationSet.model_validate(body)


def _document(*sets: ReplicationSet) -> ClusterDocument:
    nodes = tuple(
        Node(name=name, role=Role.MASTER if name == "a" else Role.REPLICA, address=f"10.0.0.{n}:7400",
             fingerprint=f"{n:02x}" * 32, incarnation=f"{n:02x}" * 16, added_at_ns=1)
        for n, name in enumerate("abc", 1)
    )  # fmt: skip
    takeover = Takeover.model_validate(
        {"voters": ("a", "b", "c"), "candidates": ("a", "b"), "founder": "a",
         "founder_incarnation": "00" * 16, "sets": ("web",)}
    )  # fmt: skip
    return ClusterDocument(
        id="cd" * 16, name="shop", version=DocumentId(1, 0, 1), nodes=nodes, sets=sets, takeover=takeover
    )


def test_the_source_is_where_the_lease_is_and_back_again() -> None:
    said = _document(_set())
    there = moved(said, {UUID: Move(258, "b")}).need_set("web")
    assert (there.source, there.paths) == ("b", ("/copy/web",))
    assert set(there.targets) == {"a", "c"} and there.targets["a"].destination == "/srv/web"
    assert there.targets["c"] == said.need_set("web").targets["c"]
    # Swapped twice it is as it was.
    swapped = moved(said, {UUID: Move(258, "b")})
    assert moved(swapped, {UUID: Move(513, "a")}).need_set("web") == said.need_set("web")
    assert moved(said, {UUID: Move(513, "a")}) == said
    assert moved(said, {"ff" * 16: Move(1, "b")}) == said and moved(said, {}) is said


def test_a_set_that_the_lease_does_not_name_stays() -> None:
    other = _set(name="else", uuid="cc" * 16, paths=("/srv/else",), targets=ELSEWHERE)
    document = _document(_set(), other)
    assert moved(document, {"cc" * 16: Move(258, "b")}).need_set("else") == other


def test_who_keeps_versions() -> None:
    other = _set(name="else", uuid="cc" * 16, paths=("/srv/else",), targets=ELSEWHERE)
    document = _document(_set(), other)
    assert document.keepers(document.need_set("web")) == ("a", "b", "c")
    assert document.keepers(other) == ("b",)


@pytest.mark.parametrize(
    ("change", "candidates", "said"),
    [
        ({}, ("a", "b"), ""),
        ({"privileged": False}, ("a", "b"), "--privileged"),
        ({"paths": ("/srv/web", "/srv/mail")}, ("a", "b"), "2 paths"),
        ({}, ("b", "c"), "The source of 'web' is a"),
        ({}, ("a", "b", "d"), "does not go to d"),
        ({}, ("a", "c"), "as an archive"),
        ({"targets": {"b": Target(node="b")}}, ("a", "b"), "--to b:/PATH"),
    ],
)
def test_what_cannot_move_is_said(change: dict[str, object], candidates: tuple[str, ...], said: str) -> None:
    spec = _set(**change)
    why = why_it_cannot_move(_document(_set()), spec, candidates)
    assert why == "" if not said else said in why


def test_epochs_are_one_number_and_rise_by_little() -> None:
    assert epoch_parts(epoch_number(7, 3)) == (7, 3)
    assert epoch_number(7, 3) < epoch_number(7, 4) < epoch_number(8, 1)
    assert is_plausible(epoch_number(JUMP, 1), 0) and not is_plausible(epoch_number(JUMP + 1, 1), 0)
    assert not is_plausible(epoch_number(2, 1), epoch_number(2, 1))


def test_what_is_remembered_over_a_restart() -> None:
    moves = {UUID: Move(258, "b")}
    assert from_json(to_json(moves), "moves.json") == moves
    for broken in (b"", b"[]", b'{"x": 1}', b'{"x": ["y", "b"]}', b"\xff"):
        with pytest.raises(CrnodeError, match=r"moves\.json"):
            from_json(broken, "moves.json")


def test_a_fence_only_rises_and_not_by_leaps(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "sets" / "one.db", SET)
    assert raise_fence(catalog, 258) == 258
    assert raise_fence(catalog, 257) == 258  # the later one counts
    with pytest.raises(CrnodeError, match="too far ahead"):
        raise_fence(catalog, epoch_number(JUMP + 2, 1))
    assert raise_fence(catalog, epoch_number(JUMP + 2, 1), force=True) == epoch_number(JUMP + 2, 1)


def test_the_folder_of_a_source_becomes_a_live_tree_as_it_is(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "sets" / "one.db", SET)
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "page").write_bytes(b"page")
    image = commit(catalog, [directory(b""), file(b"page", put_file(store, b"page"), 4)])
    to_target(catalog, folder)  # it was never a source: nothing happens
    assert catalog.live() is None and locate(folder, SET).mark() is None
    note_source(catalog)
    to_target(catalog, folder)
    live = catalog.live()
    assert live is not None
    # Nobody has synced what was written there: the first thing that a target does.
    assert live[:4] == Live(image.ordinal, image.ordinal, 0, "clean", live.boot)[:4]
    place, as_left = prepare(folder, SET, locate(folder, SET).prepared())
    assert as_left and place.mark() is not None
    assert (folder / "page").read_bytes() == b"page" and catalog.meta(WAS_SOURCE) is None


@pytest.mark.parametrize("again", [False, True])
def test_after_a_power_cut_what_a_source_wrote_last_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """A page that was lost moves no time: the folder is not taken for what the catalog has (rule 61).
    `again`: the node was the source once more, before it heard that another one is."""
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "sets" / "one.db", SET)
    folder = tmp_path / "web"
    folder.mkdir()

    def taken(at_s: int) -> Image:
        entries = [directory(b""), file(b"page", put_file(store, b"%d" % at_s), 1)]
        entries += [file(b"old", None, 0)] if at_s == 1 else []
        with catalog.transaction():
            return finish(catalog, catalog.next_ordinal(), entries, (), at_s * 10**9)

    for at_s in (1, 2, 500, 900):
        taken(at_s)
    monkeypatch.setattr(turn, "boot_id", lambda: "the boot before")
    note_source(catalog)
    monkeypatch.setattr(turn, "boot_id", lambda: "this boot")
    if again:
        note_source(catalog)
        taken(2000)
    to_target(catalog, folder)
    live, newest = catalog.live(), catalog.newest()
    assert live is not None and newest is not None
    assert live[:2] == (newest.ordinal, newest.ordinal) and live[3:] == ("moving", "this boot")
    written = catalog.image_at(live.synced)
    assert written is not None and written.at_ns <= newest.at_ns - turn.WRITTEN_NS
    assert catalog.touched(b"page") and not catalog.touched(b"old")  # of the last ten minutes before
    note_source(catalog)  # and in good order afterwards
    to_target(catalog, folder)
    live = catalog.live()
    assert live is not None and live.state == "clean" and not catalog.any_touched()


@pytest.mark.parametrize(
    ("sets", "opened", "refused"), [([], True, True), (["web"], True, False), ([], False, False)]
)
def test_a_set_that_was_opened_in_an_epoch_is_not_left_out(
    sets: list[str], opened: bool, refused: bool
) -> None:
    """Who says it all anew to add a probe forgets --set: then the targets would refuse everything."""
    agent: Any = SimpleNamespace(said=_document(_set()), moves={UUID: Move(258, "b")} if opened else {})
    check = Takeovers(agent, lambda _: None)._check_left
    spec = TakeoverSpec(voters=["a", "b", "c"], sets=sets)
    if not refused:
        check(spec)
        return
    with pytest.raises(CrnodeError, match="--set web"):
        check(spec)
    left = spec.model_copy(update={"leave": ["web"]})
    with pytest.raises(CrnodeError, match="crnode failback"):
        check(left)  # it is at b now
    agent.moves = {UUID: Move(513, "a")}
    check(left)
