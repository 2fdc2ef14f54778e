"""The past of a path: told from the versions that are kept, of which most that there were are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from store_samples import SET, commit, directory, file

from crnode.agent.past import past
from crnode.store.catalog import Catalog
from crproto.entries import Entry, Extra

ROOT = directory(b"")


def told(catalog: Catalog, path: bytes, kept: list[int], names: dict[bytes, str] | None = None) -> list[Any]:
    nodes = [SimpleNamespace(name=name, incarnation=key.hex()) for key, name in (names or {}).items()]
    agent: Any = SimpleNamespace(document=SimpleNamespace(nodes=nodes))
    spec: Any = SimpleNamespace(members=())
    images = [image for image in catalog.images() if image.ordinal in kept]
    return [
        (image.ordinal, row["change"], row["what"], row["size"], row["last"], row["source"])
        for image, row in past(agent, spec, catalog, path, images)
    ]


def history(tmp_path: Path, states: list[Entry | None]) -> tuple[Catalog, list[int]]:
    """A catalog with an image of each state of 'f', and their ordinals."""
    tmp_path.mkdir(exist_ok=True)
    catalog, ordinals = Catalog(tmp_path / "c.db", SET), []
    before: Entry | None = None
    for number, state in enumerate(states):
        changed = [file(b"other", None, number), *([ROOT] if not number else [])]
        changed += [state] if state is not None and state != before else []
        gone = [b"f"] if state is None and before is not None else []
        ordinals.append(commit(catalog, changed, gone).ordinal)
        before = state
    return catalog, ordinals


def test_what_became_of_a_path_from_version_to_version(tmp_path: Path) -> None:
    one, two = file(b"f", (bytes(32), 0), 5), file(b"f", (bytes(31) + b"1", 0), 7)
    states = [None, one, one, two, two._replace(mode=0o600, owner="ann"), None, None, two]
    catalog, at = history(tmp_path, states)
    sequence = {image.ordinal: image.sequence for image in catalog.images()}
    assert told(catalog, b"f", at) == [
        (at[1], "added", [], 5, sequence[at[2]], None),
        (at[3], "changed", ["content"], 7, sequence[at[3]], None),
        (at[4], "attributes", ["mode", "owner"], 7, sequence[at[4]], None),
        (at[5], "deleted", [], None, sequence[at[6]], None),
        (at[7], "added", [], 7, sequence[at[7]], None),
    ]
    assert told(catalog, b"never", at) == []
    # What lies between two versions that are kept was, as far as these can tell, nothing.
    assert [row[:2] for row in told(catalog, b"f", [at[2], at[7]])] == [
        (at[2], "older"), (at[7], "changed")
    ]  # fmt: skip
    assert [row[:2] for row in told(catalog, b"f", [at[0], at[6]])] == []
    again, at = history(tmp_path / "again", [one, None, one])
    assert [row[:2] for row in told(again, b"f", [at[0], at[2]])] == [(at[0], "added")]


def test_kinds_links_times_and_attributes(tmp_path: Path) -> None:
    plain = file(b"f", None, 0)
    link = plain._replace(kind=3, extra=Extra(target=b"a").encode())
    states: list[Entry | None] = [
        plain,
        plain._replace(mtime_ns=plain.mtime_ns + 1),
        link,
        link._replace(extra=Extra(target=b"b").encode()),
        link._replace(extra=replace(Extra(target=b"b"), xattrs=((b"user.a", b"1"),)).encode()),
        directory(b"f"),
        directory(b"f")._replace(group="staff"),
    ]
    catalog, at = history(tmp_path, states)
    assert [row[1:3] for row in told(catalog, b"f", at)] == [
        ("added", []),
        ("attributes", ["time"]),
        ("changed", ["kind"]),
        ("changed", ["target"]),
        ("attributes", ["extended attributes"]),
        ("changed", ["kind"]),
        ("attributes", ["group"]),
    ]


def test_by_whom_it_was_is_not_guessed(tmp_path: Path) -> None:
    """Before and after a takeover another node captures; where the very image is not kept, it may have been
    either."""
    one, two = file(b"f", (bytes(32), 0), 5), file(b"f", (bytes(31) + b"1", 0), 7)
    catalog, at = history(tmp_path, [one, two, two])
    here, there = bytes(16), bytes(15) + b"1"
    catalog._db.execute("UPDATE image SET incarnation=? WHERE ordinal=?", (here, at[0]))
    catalog._db.execute("UPDATE image SET incarnation=? WHERE ordinal>?", (there, at[0]))
    names = {here: "box1", there: "box2"}
    assert [row[-1] for row in told(catalog, b"f", at, names)] == ["box1", "box2"]
    assert [row[-1] for row in told(catalog, b"f", [at[0], at[2]], names)] == ["box1", "box1 or box2"]
    assert [row[-1] for row in told(catalog, b"f", [at[0], at[2]], {there: "box2"})] == [None, None]
