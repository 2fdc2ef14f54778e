"""A source of which nobody knows any more on which disk its folders lie: the catalog that said so was lost.

A folder of it that is empty may be a disk that is not mounted, whenever it is opened (rule 59)."""

from __future__ import annotations

import os

from crnode.capture.roots import OpenRoots
from crnode.store.catalog import Catalog

ROOTS = "roots"  # meta key: which directories a set was captured from
UNSURE = "folders-unknown"  # meta key: the catalog was begun anew, and what the one before had is lost
FOLDERS_MOST = 10_000  # that are looked through for a file


def unsure(catalog: Catalog) -> bool:
    """Whether the catalog of a source was begun anew without what the one before knew of its folders, and
    nothing was captured since."""
    return begun_anew(catalog) and catalog.meta(ROOTS) is None


def begun_anew(catalog: Catalog) -> bool:
    """Whether the catalog of a source was begun anew and nothing was captured since: what targets have of the
    set is not known here, and a set without a file may be one that was emptied."""
    return catalog.meta(UNSURE) is not None and catalog.newest() is None


def why_not(name: str, roots: OpenRoots) -> str:
    """Why the open roots of such a set may not be captured before a person has looked, '' when each has a
    file in it."""
    for root in roots.roots:
        try:
            if _has_a_file(roots.resolve(root.label)[0]):
                continue
        except OSError as error:
            return f"{root.path}: {error.strerror}."
        return (
            f"The folder {root.path} is empty, and the catalog that said on which disk it lies was lost. If"
            " its disk is not mounted, targets would be emptied. Mount it; if the folder is meant to be"
            f" empty: crnode set rebase {name}"
        )
    return ""


def _has_a_file(root: int) -> bool:
    """Whether there is anything but folders below an open one; so many folders are no mount point."""
    todo, seen = [b"."], 0
    while todo and seen < FOLDERS_MOST:
        seen += 1
        folder = todo.pop()
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
        try:
            with os.scandir(fd) as found:
                for item in found:
                    if not item.is_dir(follow_symlinks=False):
                        return True
                    todo.append(os.path.join(folder, os.fsencode(item.name)))
        finally:
            os.close(fd)
    return bool(todo)
