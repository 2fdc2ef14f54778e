"""The destination of a set at a target: whose it is, and where crnode's own files for it lie.

Temporaries, the owner's mark and set-aside files lie in a *workspace* on the destination's file system:
beside the destination (`.crnode-NAME`), so that the live tree holds exactly what the source has; inside it
(`.crnode`) where the destination is a mount point of its own, because renames cannot leave a file system. The
mark names the set; without it nothing is written (rule 64), and it records the destination's inode, so that a
replaced one is noticed. The catalog remembers on which file system a destination was prepared
(:class:`Prepared`): where that is not mounted the mark is away with it, and the bare mount point must not be
taken for a new destination.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import atomic_write, birth_ns, make_private_dir

MARK = "set"


class Prepared(NamedTuple):
    """What the catalog remembers of a destination that was prepared: its path, the identity of its file
    system, and which directory it was."""

    destination: str
    file_system: str
    inode: int = 0
    born: int | None = None  # ns since 1970, where the file system says it


@dataclass(frozen=True)
class Place:
    """A destination that belongs to a set."""

    destination: Path
    workspace: Path
    set_uuid: bytes

    def prepared(self) -> Prepared:
        """What to remember of it."""
        here = self.destination
        return Prepared(str(here), file_system(here), _inode(here) or 0, birth_ns(here))

    @property
    def system(self) -> tuple[Path, ...]:
        """What the file system itself keeps in a destination that is its root: no file of anybody's."""
        return (self.destination / "lost+found",) if self.workspace.parent == self.destination else ()

    @property
    def temporary(self) -> Path:
        return self.workspace / "tmp"

    @property
    def aside(self) -> Path:
        """Where files are kept that were in the way: local changes, and what stood here before the first
        copy."""
        return self.workspace / "aside"

    def mark(self) -> dict[str, Any] | None:
        """What the mark says if it is this set's, else None."""
        try:
            held = json.loads((self.workspace / MARK).read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return held if isinstance(held, dict) and held.get("set") == self.set_uuid.hex() else None

    def check(self) -> None:
        """Raises CrnodeError when this is not (any more) the destination that was prepared: nothing may be
        written."""
        mark = self.mark()
        if mark is None:
            raise self._gone("Its mark is gone, or the file system is not mounted")
        if mark.get("inode") != _inode(self.destination) or mark.get("born") != birth_ns(self.destination):
            raise self._gone("The directory was removed or replaced")

    def _gone(self, why: str) -> CrnodeError:
        return CrnodeError(
            f"The destination {self.destination} is not the one that was prepared for this set.",
            f"{why}.",
            "Mount or move it back; images are still received and kept, only the live tree waits.",
            ExitCode.REFUSED,
        )


def locate(destination: Path, set_uuid: bytes) -> Place:
    """Where the workspace of `destination` is (or would be)."""
    parent = destination.parent
    beside = parent / f".crnode-{destination.name}"
    try:
        own_device = os.stat(destination).st_dev != os.stat(parent).st_dev
    except OSError:
        own_device = False
    return Place(destination, destination / ".crnode" if own_device else beside, set_uuid)


def file_system(path: Path) -> str:
    """Identity of the file system that holds `path` or, where that is not there, its nearest ancestor. Stable
    over restarts as statvfs(3) has it."""
    for place in (path, *path.parents):
        try:
            return f"{os.statvfs(place).f_fsid:x}"
        except (FileNotFoundError, NotADirectoryError):
            continue
    return ""


def prepare(
    destination: Path, set_uuid: bytes, before: Prepared | None = None, *, adopt: bool = False
) -> tuple[Place, bool]:
    """Make `destination` ours: it is created, or empty, or (with `adopt`) what is there is set aside first.
    Returns the place and whether it is as we left it: where it is not, what was known of its files is void.

    `before` is what was remembered the last time. Calling it again for the same set is harmless. Raises
    CrnodeError (REFUSED) for a directory that is in use, or that is missing with its file system.
    """
    if destination.is_symlink():
        raise CrnodeError(
            f"The destination {destination} is a symbolic link.",
            "crnode writes only into real directories.",
            "Name the directory it points to.",
            ExitCode.REFUSED,
        )
    place = locate(destination, set_uuid)
    mark = place.mark()
    known = before is not None and before.destination == str(destination)
    if known and before is not None and not adopt:
        here = file_system(destination)
        same = (before.inode, before.born) == (_inode(destination), birth_ns(destination))
        # Not every file system keeps its identity over a restart: then the directory has to be the one.
        if here != before.file_system and not (same and mark is not None):
            raise CrnodeError(
                f"The destination {destination} is on another file system than the one it was prepared on.",
                "Its disk is not mounted, most likely: nothing of this set is there.",
                "Mount it; images are received and kept meanwhile. If the disk was replaced: crnode set"
                " rebase SET --node NODE.",
                ExitCode.REFUSED,
            )
    inode, born = _inode(destination), birth_ns(destination)
    if mark is not None and (mark.get("inode"), mark.get("born")) == (inode, born):
        make_private_dir(place.temporary)
        _empty(place.temporary)
        # The mark alone does not say that the catalog knows this directory: it is written first.
        return place, before is None or (before.inode, before.born) == (inode, born)
    if inode is None or not destination.is_dir():
        _create(destination)
    place = locate(destination, set_uuid)
    others = [p for p in destination.iterdir() if p != place.workspace and p not in place.system]
    if others and not adopt:
        replaced = "was replaced by another directory, which" if mark is not None else "is not empty: it"
        raise CrnodeError(
            f"The destination {destination} {replaced} holds {len(others)} things that are not of this"
            f" set, {others[0].name} for one.",
            "crnode never mixes with files that it finds.",
            "Choose an empty directory, or adopt this one, which keeps what is there aside: set add --adopt,"
            " or crnode set rebase SET --node NODE where the set is there already.",
            ExitCode.REFUSED,
        )
    _make_workspace(place)
    if others:
        kept = place.aside / _unused(place.aside, "before first copy")
        make_private_dir(kept)
        for other in others:
            os.rename(other, kept / other.name)
    _write_mark(place)
    return place, False


def take_over(destination: Path, set_uuid: bytes) -> Place:
    """Make a folder ours with all that is in it: it was the set's own source until now. Raises OSError."""
    place = locate(destination, set_uuid)
    _make_workspace(place)
    _write_mark(place)
    return place


def _make_workspace(place: Place) -> None:
    make_private_dir(place.workspace)
    make_private_dir(place.temporary)
    _empty(place.temporary)


def _write_mark(place: Place) -> None:
    here = place.destination
    body = {"set": place.set_uuid.hex(), "inode": _inode(here), "born": birth_ns(here)}
    atomic_write(place.workspace / MARK, json.dumps(body).encode())


def _create(destination: Path) -> None:
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CrnodeError(
            f"The destination {destination} cannot be made: {error.strerror}.",
            "",
            "Create it, or choose another destination.",
            ExitCode.REFUSED,
        ) from error


def _inode(path: Path) -> int | None:
    try:
        return os.stat(path).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def _unused(directory: Path, name: str) -> str:
    number = 1
    while (directory / (name if number == 1 else f"{name} {number}")).exists():
        number += 1
    return name if number == 1 else f"{name} {number}"


def release(place: Place) -> None:
    """Forget a destination whose set was removed: its files stay where they are, our own go unless something
    was set aside."""
    (place.workspace / MARK).unlink(missing_ok=True)
    shutil.rmtree(place.temporary, ignore_errors=True)
    for directory in (place.aside, place.workspace):
        try:
            directory.rmdir()
        except OSError:
            continue


def _empty(directory: Path) -> None:
    for child in directory.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        else:
            child.unlink(missing_ok=True)
