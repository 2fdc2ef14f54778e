"""Which versions of a set go now: those that its ladder drops, as fast as its budget allows (rule 84)."""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet

from crnode.store.catalog import Catalog
from crnode.store.reader import Image
from crnode.versions.retention import Budget, Ladder, at_once, candidates, retain

THINNED = "thinned"  # key of the budget, see versions/retention.py


def going(
    catalog: Catalog, images: list[Image], ladder: Ladder, now_ns: int, needed: AbstractSet[int] = frozenset()
) -> set[int]:
    """Ordinals of those of `images`, all that the catalog has, that go now; what the budget pays for it is
    noted. `needed`: ordinals that stay, whatever the ladder says. In a transaction of the writer thread."""
    found = candidates(images, needed)
    kept = retain(found, ladder)
    if len(kept) == len(found):
        return set()
    budget = Budget(*json.loads(catalog.meta(THINNED) or b"[]")).now(now_ns)
    gone, losses = at_once(found, kept, int(budget.left))
    if losses:
        catalog.set_meta(THINNED, json.dumps(budget.less(losses)).encode())
    return gone


__all__ = ["THINNED", "going"]
