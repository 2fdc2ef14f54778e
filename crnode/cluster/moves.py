"""Which node has a set that moves with the lease. Pure.

The cluster document names the source of each set, and only the master changes it; the master may be what has
just died. So who is active is no matter of the document: each node remembers, for each set that moves, in
which epoch it last heard of whom, and reads the document as if that node were the source. What was the source
is a target then, and its live tree is the folder that it had as a source. Moved back it is as it was before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from crnode.cluster.document import ClusterDocument, ReplicationSet
from crnode.errors import CrnodeError, ExitCode

SLOT_BITS = 8
"""An epoch of images is one number: the counter of the lease's epoch, and below it the slot."""
JUMP = 1 << 20  # counters that an epoch may be ahead of the one known (rule 19)


class Move(NamedTuple):
    """Node `active` has the set since `epoch` was opened."""

    epoch: int
    active: str


def epoch_number(counter: int, slot: int) -> int:
    """The epoch of images for that epoch of the lease."""
    return counter << SLOT_BITS | slot


def epoch_parts(epoch: int) -> tuple[int, int]:
    """(counter, slot) of an epoch of images."""
    return epoch >> SLOT_BITS, epoch & ((1 << SLOT_BITS) - 1)


def is_plausible(epoch: int, known: int) -> bool:
    """Whether a node may have come from epoch `known` to `epoch`."""
    return known < epoch and epoch_parts(epoch)[0] <= epoch_parts(known)[0] + JUMP


def moved(document: ClusterDocument, moves: Mapping[str, Move]) -> ClusterDocument:
    """The document as it is read while `moves` (by uuid) say who has what."""
    if document.takeover is None or not moves:
        return document
    names = document.takeover.sets
    sets = tuple(
        _moved(spec, moves[spec.uuid].active) if spec.name in names and spec.uuid in moves else spec
        for spec in document.sets
    )
    return document if sets == document.sets else document.model_copy(update={"sets": sets})


def _moved(spec: ReplicationSet, active: str) -> ReplicationSet:
    target = spec.targets.get(active)
    if target is None or target.destination is None:  # it is the source, or has no part in the set any more
        return spec
    left = {name: one for name, one in spec.targets.items() if name != active}
    back = target.model_copy(update={"node": spec.source, "destination": spec.paths[0], "adopt": False})
    return spec.model_copy(
        update={
            "source": active,
            "paths": (target.destination,),
            "targets": {**left, spec.source: back},
        }
    )


def why_it_cannot_move(document: ClusterDocument, spec: ReplicationSet, candidates: tuple[str, ...]) -> str:
    """Why a set cannot move between those nodes, as a sentence; '' when it can."""
    if spec.members:
        return f"'{spec.name}' is a group; name the sets that it is made of."
    if not spec.privileged:
        return f"'{spec.name}' leaves out who owns files; a set that moves is added with --privileged."
    if len(spec.paths) != 1:
        return f"'{spec.name}' has {len(spec.paths)} paths; a set that moves has one."
    if spec.source not in candidates:
        return f"The source of '{spec.name}' is {spec.source}, which may not become active."
    for name in candidates:
        if name == spec.source:
            continue
        target = spec.targets.get(name)
        if target is None:
            return f"'{spec.name}' does not go to {name}, which may become active."
        if target.mode != "mirror":
            return f"{name} keeps '{spec.name}' as an archive, which holds more than the source."
        if target.destination is None:
            return f"'{spec.name}' is in the data directory of {name}; say where it goes: --to {name}:/PATH."
    return ""


def to_json(moves: Mapping[str, Move]) -> bytes:
    """What is kept of `moves` over a restart."""
    return json.dumps({uuid: list(move) for uuid, move in moves.items()}).encode()


def from_json(body: bytes, path: str) -> dict[str, Move]:
    """The reverse. CrnodeError when `body`, read from `path`, is not that."""
    try:
        return {str(uuid): Move(int(epoch), str(name)) for uuid, (epoch, name) in json.loads(body).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CrnodeError(
            f"'{path}' does not say who has the sets that move.",
            f"It cannot be read: {error}.",
            "Move it away: this node asks the others, and goes by the cluster document until it hears.",
            ExitCode.DAMAGE,
        ) from error


__all__ = [
    "Move",
    "epoch_number",
    "epoch_parts",
    "from_json",
    "is_plausible",
    "moved",
    "to_json",
    "why_it_cannot_move",
]
