"""What a group shows at a path that several of its sets have. Pure.

Every target decides alike, whenever it looks and whatever it skipped: by what the entries themselves say,
never by when they came (rule 51). A folder is shown before a file of that name, so that nothing below it is
hidden; of two files, or two folders, the one that was changed last; of two of the same moment the one whose
set's name is the last. What is not shown is hidden, never lost: it stays in the versions of its own set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import xxhash

from crproto.entries import DIRECTORY, Entry, Extra
from crproto.limits import LINK


class Side(NamedTuple):
    """What one member has at a path."""

    member: str  # name of the set
    uuid: str  # of the set, hex
    entry: Entry


def shown(sides: Sequence[Side]) -> Side:
    """The one of `sides`, of which there is one at least, that the group shows."""
    return max(sides, key=lambda side: (side.entry.kind == DIRECTORY, side.entry.mtime_ns, side.member))


def hidden(sides: Sequence[Side], winner: Side) -> list[Side]:
    """Those of `sides` of which something is not shown: other content, another link, or a file where the
    group has a folder. Two folders are one, and the same content twice is no conflict."""
    return [side for side in sides if side is not winner and _differs(side.entry, winner.entry)]


def _differs(one: Entry, other: Entry) -> bool:
    if one.kind != other.kind:
        return True
    if one.kind == DIRECTORY:
        return False
    same = (one.content, one.level, one.size) == (other.content, other.level, other.size)
    return not same or Extra.decode(one.extra).target != Extra.decode(other.extra).target


def as_shown(side: Side) -> Entry:
    """The entry of the group. Names of hard link groups are told apart by the set that they are of: two
    sources may have the same inode number, and their files are not one."""
    entry = side.entry
    if not entry.extra or entry.kind == DIRECTORY:
        return entry
    extra = Extra.decode(entry.extra)
    if extra.link is None:
        return entry
    link = xxhash.xxh3_128_digest(bytes.fromhex(side.uuid) + extra.link)[:LINK]
    return entry._replace(extra=replace(extra, link=link).encode())


__all__ = ["Side", "as_shown", "hidden", "shown"]
