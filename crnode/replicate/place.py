"""The destination of a set at a target: whose it is, and where crnode's own files for it lie.

Temporaries, the owner's mark and set-aside files lie in a *workspace* on the destination's file system:
beside the
destination (`.crnode-NAME`), so that the live tree holds exactly what the source has; inside it (`.crnode`)
where the
destination is a mount point of its own, because renames cannot leave a file system. The mark names the set;
without
it nothing is written (rule 64), and beside the destination it also records the destination's inode, so that
an
unmounted or replaced destination is noticed.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import atomic_write, make_private_dir

MARK = "set"


@dataclass(frozen=True)
class Place:
    """A destination that belongs to a set."""

    destination: Path
    workspace: Path
    set_uuid: bytes

    @property
    def temporary(self) -> Path:
        return self.workspace / "tmp"

    @property
    def aside(self) -> Path:
        """Where files are kept that were in the way: local changes, and what stood here before the first
        copy."""
        return self.workspace / "aside"

    def check(self) -> None:
        """Raises CrnodeError when this is not (any more) the destination that was prepared: nothing may be
        written."""
        try:
            mark = json.loads((self.workspace / MARK).read_text())
            inode = os.stat(self.destination).st_ino
        except (OSError, ValueError) as error:
            raise self._gone(str(error)) from None
        if mark.get("set") != self.set_uuid.hex():
            raise self._gone(f"it carries the mark of another set ({mark.get('set')})")
        if mark.get("inode") != inode:
            raise self._gone("the directory was replaced, or its file system is not mounted")

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


def prepare(destination: Path, set_uuid: bytes, *, adopt: bool = False) -> Place:
    """Make `destination` ours: it is created, or empty, or (with `adopt`) what is there is set aside first.

    Calling it again for the same set is harmless. Raises CrnodeError (REFUSED) for a directory that is in
    use.
    """
    if destination.is_symlink():
        raise CrnodeError(
            f"The destination {destination} is a symbolic link.",
            "crnode writes only into real directories.",
            "Name the directory it points to.",
            ExitCode.REFUSED,
        )
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CrnodeError(
            f"The destination {destination} cannot be made: {error.strerror}.",
            "",
            "Create it, or choose another destination.",
            ExitCode.REFUSED,
        ) from error
    place = locate(destination, set_uuid)
    mark = place.workspace / MARK
    if mark.exists():
        try:
            held = json.loads(mark.read_text())
        except ValueError:
            held = {}
        if held.get("set") == set_uuid.hex():
            place.check()
            make_private_dir(place.temporary)
            _empty(place.temporary)
            return place
    others = [p for p in destination.iterdir() if p != place.workspace]
    if others and not adopt:
        raise CrnodeError(
            f"The destination {destination} is not empty.",
            f"It holds {len(others)} things that are not of this set, {others[0].name} for one.",
            "Choose an empty directory, or adopt it with --adopt: what is there is kept aside first.",
            ExitCode.REFUSED,
        )
    make_private_dir(place.workspace)
    make_private_dir(place.temporary)
    if others:
        kept = place.aside / "before first copy"
        make_private_dir(kept)
        for other in others:
            os.rename(other, kept / other.name)
    body = {"set": set_uuid.hex(), "inode": os.stat(destination).st_ino}
    atomic_write(mark, json.dumps(body).encode())
    return place


def release(place: Place) -> None:
    """Forget a destination whose set was removed: its files stay where they are, our own go unless something
    was
    set aside."""
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
