"""The past of one path: what became of it from one version that is kept to the next. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from crnode.store.reader import Image
from crproto.entries import FILE, SYMLINK, Entry, Extra

OLDER = "older"  # it was there before the oldest version that is kept


class Stage(NamedTuple):
    """What a path was in a row of versions. `change` is one of those that a difference of two versions knows
    (added, changed, attributes, deleted), or OLDER; `what` names what changed ('content', 'mode', …)."""

    first: Image
    last: Image
    entry: Entry | None  # None: it was not there any more
    change: str
    what: tuple[str, ...]
    before: Image | None  # the version before `first`, None where that is the oldest that is kept
    is_from_first: bool  # whether the change was captured in `first` itself, not in one that is not kept


def stages(rows: Sequence[tuple[int, int, Entry]], images: Sequence[Image]) -> list[Stage]:
    """The stages of a path, oldest first. `rows` are its (born, died, entry), born being the ordinal of the
    image that it came with and died of the first without it; `images` the versions that are kept, both oldest
    first."""
    out: list[Stage] = []
    before: Image | None = None
    shown: tuple[int, int, Entry] | None = None
    for image in images:
        now = next((row for row in rows if row[0] <= image.ordinal < row[1]), None)
        if now is not None and shown is not None and now[2] == shown[2]:
            out[-1] = out[-1]._replace(last=image)
        elif now is not None:
            known = before is None and now[0] < image.ordinal
            change, what = (OLDER, ()) if known else _change(shown[2] if shown is not None else None, now[2])
            out.append(Stage(image, image, now[2], change, what, before, now[0] == image.ordinal))
        elif shown is not None:
            out.append(Stage(image, image, None, "deleted", (), before, shown[1] == image.ordinal))
        elif out:
            out[-1] = out[-1]._replace(last=image)
        before, shown = image, now
    return out


def _change(old: Entry | None, new: Entry) -> tuple[str, tuple[str, ...]]:
    if old is None:
        return "added", ()
    if old.kind != new.kind:
        return "changed", ("kind",)
    what = []
    if new.kind == FILE and (old.content, old.size) != (new.content, new.size):
        what.append("content")
    is_extra = old.extra != new.extra
    if new.kind == SYMLINK and is_extra and Extra.decode(old.extra).target != Extra.decode(new.extra).target:
        what.append("target")
    is_changed = bool(what)
    if old.mode != new.mode:
        what.append("mode")
    if (old.owner, old.owner_id) != (new.owner, new.owner_id):
        what.append("owner")
    if (old.group, old.group_id) != (new.group, new.group_id):
        what.append("group")
    if is_extra and "target" not in what:
        what.append("extended attributes")
    if not what:
        what.append("time")  # of what changed otherwise that goes without saying
    return "changed" if is_changed else "attributes", tuple(what)


__all__ = ["OLDER", "Stage", "stages"]
