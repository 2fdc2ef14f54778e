"""What keeps a set from running and may pass by itself."""

from __future__ import annotations

import os

from crnode.errors import CrnodeError, ExitCode
from crnode.store.catalog import CatalogOutOfReach


class FileOutOfReach(CrnodeError):
    """A file of the data directory cannot be handled at present: it is tried again."""

    @classmethod
    def of(cls, error: OSError) -> FileOutOfReach:
        names: tuple[object, ...] = (error.filename, error.filename2)  # or the number of a descriptor
        places = [os.fsdecode(name) for name in names if isinstance(name, str | bytes | os.PathLike)]
        return cls(
            f"A file cannot be opened, written or renamed: {error.strerror or error}.",
            f"It is {' to '.join(places)}." if places else "",
            "It is tried again by itself; look at the permissions of that place, and at its disk.",
        )


def passes(error: CrnodeError) -> bool:
    """Whether what a set met may be over without anybody's doing something about the set."""
    return error.exit_code == ExitCode.FULL or isinstance(error, CatalogOutOfReach | FileOutOfReach)
