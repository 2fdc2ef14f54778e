"""Catalogs that are set aside and made again: which file is which, over a kill at any instant.

What is left of a catalog is renamed to `UUID.db.damaged-SECOND` and waits there until the new one is in
place; then it is called `….kept` and stays for a person (`crnode doctor` names it). One that waits belongs to
a making that was cut off: the next attempt goes on with it. The main file is renamed before its write-ahead
log, and back after it, so that of one that was cut in two the main file always waits."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import apsw

from crnode.capture.unsure import ROOTS, UNSURE
from crnode.platform.files import fsync_dir
from crnode.replicate.place import Prepared
from crnode.store import rebuild
from crnode.store.catalog import is_blank, lies_beside, out_of_reach
from crnode.store.damaged import open_damaged
from crnode.store.store import ObjectStore

_ASIDE = ".damaged-"  # between a catalog's name and the second at which it was set aside
_KEPT = ".kept"  # behind it: the catalog was made again, or begun anew
PLACE = "place"  # meta key of a target: which directory its set has
_PARTS = ("", "-wal", "-shm")
_NAME = re.compile(rf"([0-9a-f]+)\.db{re.escape(_ASIDE)}(\d+)({re.escape(_KEPT)})?(-wal|-shm)?")


class Aside(NamedTuple):
    """A file of a catalog that was set aside: of which set, in which second since 1970, whether the catalog
    was made again since, and '' or which of the files beside the main one it is."""

    path: Path
    uuid: str
    second: int
    kept: bool
    part: str


def asides(folder: Path) -> list[Aside]:
    """What lies in the folder of the catalogs, oldest first."""
    return sorted(_asides(folder), key=lambda one: (one.second, one.path))


def _asides(folder: Path) -> Iterator[Aside]:
    for path in folder.glob(f"*.db{_ASIDE}*"):
        if (named := _NAME.fullmatch(path.name)) is not None:
            uuid, second, kept, part = named.groups(default="")
            yield Aside(path, uuid, int(second), bool(kept), part)


def waiting(path: Path) -> list[Path]:
    """What waits for the catalog `path` to be made again, oldest first."""
    found = asides(path.parent)
    return [one.path for one in found if one.uuid == path.stem and not one.kept and not one.part]


def begun(path: Path) -> list[Path]:
    """What makings of the catalog `path` that were cut off left, oldest first: the last one is gone on with.
    Each is whole, with its write-ahead log. In the writer thread, because files are renamed. Raises
    OSError."""
    reunite(path)
    return [aside for aside in waiting(path) if not is_blank(aside)]


def set_aside(path: Path, now_ns: int) -> Path:
    """Rename what there is of a catalog; returns its new name, which nothing had before."""
    second = now_ns // 10**9
    taken = {one.second for one in _asides(path.parent) if one.uuid == path.stem}
    while second in taken:
        second += 1
    aside = path.with_name(f"{path.name}{_ASIDE}{second}")
    for part in _PARTS:
        _rename(path, aside, part)
    if path.parent.is_dir():
        fsync_dir(path.parent)
    return aside


def put_back(aside: Path, path: Path) -> None:
    """Undo it: the next attempt is to find what this one found."""
    for part in reversed(_PARTS):
        _rename(aside, path, part)


def reunite(path: Path) -> None:
    """Give a main file that was set aside the write-ahead log that a kill left behind: images may be in it
    alone."""
    left = waiting(path)
    if left and not path.exists():
        for part in _PARTS[1:]:
            if _is_empty(Path(f"{left[-1]}{part}")):
                _rename(path, left[-1], part)


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0  # whoever reads a catalog without its log makes it an empty one
    except FileNotFoundError:
        return True


def keep(path: Path) -> None:
    """The catalog `path` is in place: what waited for it is not gone on with any more."""
    for one in _asides(path.parent):
        if one.uuid == path.stem and not one.kept:
            main = one.path.name.removesuffix(one.part)
            with contextlib.suppress(OSError):  # said to be waiting, it is called so at the next start
                one.path.rename(one.path.with_name(f"{main}{_KEPT}{one.part}"))


def _rename(path: Path, to: Path, part: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(f"{path}{part}", f"{to}{part}")


def make_again(path: Path, uuid: bytes, store: ObjectStore, why: str, now_ns: int, *, sourced: bool) -> str:
    """Set what there is of the catalog `path` aside and make it again, or go on with the making that was cut
    off; see :func:`remake`. Where there is no catalog, what waits is gone on with, whoever asks for it and
    for whatever reason: it is all that is left. Raises OSError, too."""
    left = begun(path) if is_blank(path) else []
    aside = set_aside(path, now_ns)
    try:
        return remake(
            path, uuid, store, left[-1] if left else aside, why, before=bool(left), sourced=sourced
        )
    except Exception:
        if not left:
            put_back(aside, path)  # no room: the next attempt is to find what this one found
        raise


def remake(
    path: Path, uuid: bytes, store: ObjectStore, aside: Path, why: str, *, before: bool, sourced: bool
) -> str:
    """Make the catalog `path` again from the manifests among the objects and the rows of `aside`; without any
    it begins anew (rule 31). Returns what is said of it.

    `why` the old one is damaged, '' where it is gone; `before`: `aside` is from a making that was cut off;
    `sourced`: this node is the set's source and has no versions to be read. Raises CrnodeError when nothing
    is decided: the set waits, and it is tried again."""
    rows = aside if aside.exists() and not sourced else None
    text = _told(path, aside, why, before)
    notes = _notes(aside)
    if sourced:
        notes[UNSURE] = b"1"
    try:
        rebuilt = rebuild.rebuild_catalog(path, uuid, store, aside=rows, notes=notes)
        text += f" and made again with {rebuilt.images} of its versions."
        if rebuilt.lost:
            text += f" {rebuilt.lost} more that it named are lost: what they alone had is gone."
        if not rebuilt.certain or rows is None:
            text += " Which others there were cannot be read: versions may be lost."
        elif before:
            text += " If there was another one since then, versions may be lost."
        ended = rebuilt.ended
    except rebuild.NothingLeft as error:
        ended = rebuild.begin_catalog(path, uuid, store, rows, notes)
        text += f" and is begun anew, without any earlier version: {error}"
    if not sourced and not (ended and rows is not None):
        text += " If this is an archive, what it kept of files that were deleted may be lost as well."
    keep(path)
    return text


def _told(path: Path, aside: Path, why: str, before: bool) -> str:
    if before:
        state = f"is damaged ({why})" if why else "was gone"
        return f"The catalog {path} {state}; it was set aside before as {aside}{_KEPT}"
    if why:
        return f"The catalog {path} is damaged ({why}); it was set aside as {aside}{_KEPT}"
    return f"The catalog {path} was removed or emptied while the agent was stopped; it is gone"


# -- where a set's folders are


def _notes(aside: Path) -> dict[str, bytes]:
    """What a damaged catalog still says of the directories that its set was captured from or written to: a
    disk that is not mounted is neither an empty source nor a new destination (rules 59 and 64). Raises
    CrnodeError when it is out of reach: it is not damaged for that."""
    out: dict[str, bytes] = {}
    if not aside.exists():
        return out
    try:
        with open_damaged(aside) as reader:
            for key in (ROOTS, PLACE):
                with contextlib.suppress(apsw.Error):
                    held = reader.meta(key)
                    if isinstance(held, bytes) and _makes_sense(key, held):
                        out[key] = held
    except apsw.Error as error:
        if lies_beside(error):
            raise out_of_reach(aside, error) from error
    return out


def _makes_sense(key: str, held: bytes) -> bool:
    try:
        body = json.loads(held)
        if key == ROOTS:
            return bool(body) and isinstance(body, dict) and {str} == set(map(type, body.values()))
        place = Prepared(*body)
    except (ValueError, TypeError):
        return False
    return isinstance(place.destination, str) and isinstance(place.file_system, str)
