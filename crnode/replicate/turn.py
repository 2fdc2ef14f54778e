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
from crnode.store.reader import Live

WAS_SOURCE = "was_source"
"""The key under which a catalog notes that its node was the source of the set, until it is a target again."""


def to_target(catalog: Catalog, destination: Path) -> None:
    """Make a target's of a catalog whose node was the source; nothing where it was not. What changed in the
    folder since its newest image is found like any local change, and kept aside. In the writer thread."""
    if catalog.meta(WAS_SOURCE) is None:
        return
    newest, staging = catalog.newest(), catalog.staging()
    place = take_over(destination, catalog.set_uuid)
    with catalog.transaction():
        if staging is not None:
            catalog.undo(staging.ordinal)
        if newest is not None:
            shown = newest.ordinal
            catalog.set_meta("place", json.dumps(place.prepared()).encode())
            catalog.set_live(Live(shown, shown, shown, "clean", boot_id()))
        catalog.set_deferred(())
        catalog.forget_touched()
        catalog.set_meta(WAS_SOURCE, None)


__all__ = ["WAS_SOURCE", "to_target"]
