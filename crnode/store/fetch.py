"""Reading objects: an id leads through the index to a record of a pack, whose bytes are verified against it.

For any thread, and for other processes than the agent's (:class:`StoreReader`)."""

from __future__ import annotations

import errno
from pathlib import Path

from crnode.store.index import Index
from crnode.store.packs import Packs
from crproto import delta
from crproto.errors import ProtocolError
from crproto.ids import chunk_id, recipe_id

CHUNK, RECIPE = 0, 1
_DISK_ERRORS = (errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA, errno.EREMOTEIO)


class Missing(Exception):
    """The store does not hold this object. `args[0]` is its id."""


class Damaged(Exception):
    """The store holds a record for this id whose bytes are not what the id names. `args[0]` is the id."""


def identify(kind: int, data: bytes | memoryview) -> bytes:
    """The id of an object of this kind."""
    return recipe_id(data) if kind == RECIPE else chunk_id(data)


def sound(content: bytes, kind: int, codec: int, raw: int, stored: bytes | memoryview) -> bool:
    """Whether a record's stored bytes are what its id names."""
    try:
        data = delta.decode_object(codec, stored, raw, None)
    except ProtocolError:  # a patch among them: none is ever stored
        return False
    return identify(kind, data) == content


def fetch(index: Index, packs: Packs, content: bytes) -> bytes:
    """The verified bytes of an object. Raises Missing or Damaged, OSError when reading fails for another
    reason than the disk (too many open files, for one), which says nothing about the object."""
    data, kind = fetch_unverified(index, packs, content)
    if identify(kind, data) != content:
        raise Damaged(content)
    return bytes(data)


def fetch_unverified(
    index: Index, packs: Packs, content: bytes, scratch: bytearray | None = None
) -> tuple[bytes | memoryview, int]:
    """What the store has under the id, and of which kind that is: for whoever proves by another id what is
    made of it. With `scratch` it may be in that. Raises as :func:`fetch`."""
    for _ in range(3):  # a collection may move the record between the look-up and the read
        where = index.get(content)
        if where is None:
            raise Missing(content)
        try:
            stored = packs.read(where, scratch)
        except FileNotFoundError:
            continue
        except ValueError:
            raise Damaged(content) from None
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                raise Damaged(content) from None
            raise
        try:
            return delta.decode_object(where.codec, stored, where.raw, None), where.kind
        except ProtocolError:
            raise Damaged(content) from None
    raise Missing(content)


class StoreReader:
    """The committed part of a store for reading only, also in another process than the agent's."""

    def __init__(self, directory: Path) -> None:
        self.packs = Packs(directory / "packs")
        self.index = Index(directory / "index", readonly=True)

    def get(self, content: bytes) -> bytes:
        """See :func:`fetch`."""
        return fetch(self.index, self.packs, content)

    def close(self) -> None:
        """Let go of descriptors and the map."""
        self.packs.close()
        self.index.close()
