"""The past of one path of a set, as this node's catalog has it: when it changed, how, by which source."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crnode.agent.looking import KINDS
from crnode.cluster.document import ReplicationSet
from crnode.store.catalog import Catalog
from crnode.store.reader import Image
from crnode.versions.past import Stage, stages
from crproto.entries import Entry

if TYPE_CHECKING:
    from crnode.agent.node import Agent

Args = dict[str, Any]


def past(
    agent: Agent, spec: ReplicationSet, catalog: Catalog, path: bytes, images: list[Image]
) -> list[tuple[Image, Args]]:
    """What a path was, oldest first: the version that shows it first, and {"change", "what", "kind", "size",
    "mtime_ns", "source", "member", "last"}. "size" is None where it is gone; "source" is the node that it
    came from, None where that is not known any more; "member" the set, of a group; "last" the number of the
    last version that has it so. In the writer thread."""
    out: list[tuple[Image, Args]] = []
    before: Entry | None = None
    for stage in stages(catalog.history(path), images):
        entry = stage.entry
        member, source = None, _source(agent, stage)
        if spec.members:
            said = entry if entry is not None else before
            member, source = _member(agent, spec, catalog, stage.first, path, said)
        row: Args = {
            "change": stage.change,
            "what": list(stage.what),
            "kind": KINDS.get(entry.kind, "file") if entry is not None else None,
            "size": entry.size if entry is not None else None,
            "mtime_ns": entry.mtime_ns if entry is not None else None,
            "source": source,
            "member": member,
            "last": stage.last.sequence,
        }
        out.append((stage.first, row))
        before = entry
    return out


def _source(agent: Agent, stage: Stage) -> str | None:
    """Who captured it. Where the very image is not kept any more, it lies between two that are: of two
    sources, before and after a takeover, it may be either."""
    names = {node.incarnation: node.name for node in agent.document.nodes}
    found = names.get(stage.first.incarnation.hex())
    if stage.is_from_first or stage.before is None or stage.before.incarnation == stage.first.incarnation:
        return found
    other = names.get(stage.before.incarnation.hex())
    return f"{other} or {found}" if found is not None and other is not None else None


def _member(
    agent: Agent, spec: ReplicationSet, catalog: Catalog, image: Image, path: bytes, entry: Entry | None
) -> tuple[str | None, str | None]:
    """(set, its source) of which a group has what it shows at a path."""
    made_of = json.loads(catalog.meta(f"members/{image.ordinal}") or b"{}") or spec.members
    found = []
    for name in made_of:
        member = agent.document.set_named(name)
        held = agent.sets.catalogs.get(member.uuid) if member is not None else None
        if entry is not None and held is not None and any(_is(entry, e) for *_, e in held.history(path)):
            found.append(name)
    if not found:
        return None, None
    name = max(found)  # as the group decides where two are alike
    return name, agent.document.need_set(name).source


def _is(entry: Entry, other: Entry) -> bool:
    return (entry.kind, entry.content, entry.size, entry.mtime_ns) == (
        other.kind, other.content, other.size, other.mtime_ns
    )  # fmt: skip


__all__ = ["past"]
