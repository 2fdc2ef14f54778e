"""From source to target: the folder that a node captured becomes its live tree, as it is (rule 48).

Both keep the same catalog, and the same fingerprints of the same files: so nothing is read or written anew. A
target becomes a source without any of this, because capture goes by what the catalog has.
"""

from __future__ import annotations

import json
from pathlib import Path

from crnode.platform.files import boot_id
from crnode.replicate.place import take_over
from crnode.store.catalog import Catalog
from crnode.store.reader import Image, Live

WAS_SOURCE = "was_source"
"""The key under which a catalog notes that its node was the source of the set, until it is a target again:
the boot of the machine in which it started as that last."""
WRITTEN_NS = 600 * 10**9
"""What was written so long before a power cut is on the disk: the kernel writes back what is older than 30 s
(dirty_expire_centisecs in proc_sys_vm(5)), and a busy disk takes a while for it."""


def note_source(catalog: Catalog) -> None:
    """The node is the source from now on: programs write to the folder. In the writer thread, before
    anything is captured."""
    with catalog.transaction():
        if catalog.meta(WAS_SOURCE) is None:
            catalog.forget_touched()
        _note_boot(catalog)
        catalog.set_meta(WAS_SOURCE, boot_id().encode())


def _note_boot(catalog: Catalog) -> None:
    """In another boot than the one in which the node was the source last, remember what was written there
    shortly before the machine went down: the disk may not have it, and a page that was lost moves no time
    (rule 61)."""
    boot, images = catalog.meta(WAS_SOURCE), catalog.images()
    if boot is None or boot == boot_id().encode() or not images:
        return
    catalog.note_touched(_written(images), images[-1].ordinal)


def _written(images: list[Image]) -> int:
    """The newest image that is so old that the disk has it by itself, 0 for none."""
    old = [one.ordinal for one in images if one.at_ns <= images[-1].at_ns - WRITTEN_NS]
    return max(old, default=0)


def to_target(catalog: Catalog, destination: Path) -> None:
    """Make a target's of a catalog whose node was the source; nothing where it was not. What changed in the
    folder since its newest image is found like any local change, and kept aside; what a power cut may have
    taken is written anew. In the writer thread."""
    if catalog.meta(WAS_SOURCE) is None:
        return
    newest, staging = catalog.newest(), catalog.staging()
    place = take_over(destination, catalog.set_uuid)
    with catalog.transaction():
        if staging is not None:
            catalog.undo(staging.ordinal)
        _note_boot(catalog)
        if newest is not None:
            shown = newest.ordinal
            catalog.set_meta("place", json.dumps(place.prepared()).encode())
            state = "moving" if catalog.any_touched() else "clean"
            # Nobody has synced what programs wrote: that comes first, and until then a power cut takes it
            # back to what the disk has.
            catalog.set_live(Live(shown, shown, _written(catalog.images()), state, boot_id()))
        catalog.set_deferred(())
        catalog.set_meta(WAS_SOURCE, None)


__all__ = ["WAS_SOURCE", "note_source", "to_target"]
