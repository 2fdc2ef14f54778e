"""Which sets have a catalog: a file beside the packs, which outlives the folder of the catalogs."""

from __future__ import annotations

import contextlib
from pathlib import Path

from crnode.platform.files import atomic_write

CATALOGS = "catalogs"  # in the store's directory


class KnownCatalogs:
    """The sets that have a catalog, or had one when somebody looked last."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / CATALOGS

    def names(self) -> set[str]:
        try:
            return set(self.path.read_text().split())
        except (FileNotFoundError, ValueError):
            return set()

    def note(self, uuid: str, *, there: bool = True) -> None:
        """Keep in mind that there is a catalog of this set, or that there is none any more."""
        known = self.names()
        if (uuid in known) == there:
            return
        known = known | {uuid} if there else known - {uuid}
        with contextlib.suppress(OSError):  # a full disk: the log of versions says it, or the next start
            atomic_write(self.path, "".join(f"{name}\n" for name in sorted(known)).encode())
