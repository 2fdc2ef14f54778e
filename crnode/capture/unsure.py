"""A source of which nobody knows any more on which disk its folders lie: the catalog that said so was lost.

A folder of it that is empty may be a disk that is not mounted, whenever it is opened (rule 59)."""

from __future__ import annotations

import os

from crnode.capture.roots import OpenRoots
from crnode.store.catalog import Catalog

ROOTS = "roots"  # meta key: which directories a set was captured from
UNSURE = "folders-unknown"  # meta key: what the catalog before this one knew of them is lost


def unsure(catalog: Catalog) -> bool:
    """Whether the catalog of a source was begun anew without what the one before knew of its folders, and
    nothing was captured since."""
    marked = catalog.meta(UNSURE) is not None and catalog.meta(ROOTS) is None
    return marked and catalog.newest() is None


def why_not(name: str, roots: OpenRoots) -> str:
    """Why the open roots of such a set may not be captured before a person has looked, '' when each has
    something in it."""
    for root in roots.roots:
        try:
            with os.scandir(roots.resolve(root.label)[0]) as found:
                if next(found, None) is not None:
                    continue
        except OSError as error:
            return f"{root.path}: {error.strerror}."
        return (
            f"The folder {root.path} is empty, and the catalog that said on which disk it lies was lost. If"
            " its disk is not mounted, targets would be emptied. Mount it; if the folder is meant to be"
            f" empty: crnode set rebase {name}"
        )
    return ""
