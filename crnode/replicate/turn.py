"""From source to target: the folder that a node captured becomes its live tree, as it is (rule 48).

Both keep the same catalog, and the same fingerprints of the same files: so nothing is read or written anew. A
target becomes a source without any of this, because capture goes by what the catalog has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from crnode.platform.files import boot_id
from crnode.replicate.place import take_over
from crnode.store.catalog import Catalog
from crnode.store.reader import Live

WAS_SOURCE = "was_source"
"""The key under which a catalog notes that its node was the source of the set, until it is a target again."""
WRITTEN_NS = 600 * 10**9
"""What was written so long before a power cut is on the disk: the kernel writes back what is older than 30 s
(dirty_expire_centisecs in proc_sys_vm(5)), and a busy disk takes a while for it."""


class Sourced(NamedTuple):
    """Since when a node is the source: in which boot it started as that last; and the newest image of which
    the folder surely has all on the disk, None where no power cut put that in doubt (rule 61)."""

    boot: str
    durable: int | None

    def now(self, catalog: Catalog) -> Sourced:
        """The same, as it is in this boot of the machine."""
        if self.boot == boot_id():
            return self
        durable = _written(catalog) if self.durable is None else self.durable
        return Sourced(boot_id(), durable)


def _written(catalog: Catalog) -> int | None:
    """The newest image that is so old that what it has is on the disk by itself; the first one, where all
    are younger."""
    images = catalog.images()
    old = [one.ordinal for one in images if one.at_ns <= images[-1].at_ns - WRITTEN_NS]
    return max(old or [one.ordinal for one in images[:1]], default=None)


def _noted(catalog: Catalog) -> Sourced | None:
    """How it is in this boot; None where the node is no source, and was none."""
    value = catalog.meta(WAS_SOURCE)
    if value is None:
        return None
    said = json.loads(value)
    return Sourced(*said).now(catalog) if isinstance(said, list) else Sourced(boot_id(), None)


def note_source(catalog: Catalog) -> None:
    """The node is the source from now on: programs write to the folder. In the writer thread, before
    anything is captured."""
    at = _noted(catalog) or Sourced(boot_id(), None)
    with catalog.transaction():
        catalog.set_meta(WAS_SOURCE, json.dumps(at).encode())


def to_target(catalog: Catalog, destination: Path) -> None:
    """Make a target's of a catalog whose node was the source; nothing where it was not. What changed in the
    folder since its newest image is found like any local change, and kept aside. After a power cut the tree
    is taken for what it was some while before, so that what came since is written anew: a page that was lost
    moves no time. In the writer thread."""
    noted = _noted(catalog)
    if noted is None:
        return
    durable = noted.durable
    if durable is not None:
        # As it was when it was noted, or before; none is left where weeks passed, in which all was re-read.
        durable = max((one.ordinal for one in catalog.images() if one.ordinal <= durable), default=None)
    newest, staging = catalog.newest(), catalog.staging()
    place = take_over(destination, catalog.set_uuid)
    with catalog.transaction():
        if staging is not None:
            catalog.undo(staging.ordinal)
        if newest is not None:
            shown = newest.ordinal
            catalog.set_meta("place", json.dumps(place.prepared()).encode())
            # That of no boot makes whoever receives go back to what is durable.
            synced, boot = (shown, boot_id()) if durable is None else (durable, "")
            catalog.set_live(Live(shown, shown, synced, "clean", boot))
        catalog.set_deferred(())
        catalog.forget_touched()
        catalog.set_meta(WAS_SOURCE, None)


__all__ = ["WAS_SOURCE", "Sourced", "note_source", "to_target"]
