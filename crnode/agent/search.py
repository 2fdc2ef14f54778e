"""Searching files for chunks by id: those of a source's newest image, or those of a target's live tree."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator

from crnode.capture.roots import OpenRoots
from crnode.replicate.difference import Abandoned, ObjectReader, Wanted
from crnode.store.catalog import Catalog
from crnode.store.reader import Reader
from crnode.store.store import CHUNK, Damaged, Missing, ObjectStore
from crproto import content
from crproto.entries import Entry
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE

PAGE_BYTES = 512 << 10
PAGE_ENTRIES = 500  # of a catalog, per look
SIGN_SECONDS = 10.0
"""A search that finds nothing for so long gives a sign of life: who asked waits 60 s."""

Key = tuple[int, int, bytes]


class ContentSearch:
    """Looks for the chunks `wanted` in the files of image `ordinal`, a page at a time, each in some thread.

    `start` is where a search for other ids ended (:attr:`at`): this one begins there and comes round, so that
    many questions in the order of the catalog cost one walk and not one each.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: ObjectStore,
        ordinal: int,
        roots: Callable[[], OpenRoots | None],
        wanted: set[bytes],
        start: Key | None = None,
    ) -> None:
        self.unreadable = 0  # recipes that were skipped
        self.at = start
        self._catalog = catalog
        self._ordinal = ordinal
        self._store = store
        self._left = set(wanted)
        self._objects = ObjectReader(store, roots, None)
        self._paths: Collection[bytes] | None = None
        self._found = self._search()
        self._page_ends = 0.0

    def only(self, paths: Collection[bytes]) -> None:
        """Look at these paths and no others."""
        self._paths = paths

    def close(self) -> None:
        """End the search and close what it has open."""
        self._found.close()
        self._objects.close()

    def page(self) -> list[tuple[bytes, bytes]] | None:
        """Some of what was found, nothing when the search takes long, None at its end."""
        out: list[tuple[bytes, bytes]] = []
        size = 0
        self._page_ends = time.monotonic() + SIGN_SECONDS
        for found in self._found:
            if found is None:
                return out
            out.append(found)
            size += len(found[1])
            if size >= PAGE_BYTES:
                return out
        return out or None

    def _search(self) -> Generator[tuple[bytes, bytes] | None, None, None]:
        with self._catalog.reader() as reader:
            entries = self._all(reader) if self._paths is None else self._named(reader, self._paths)
            for entry in entries:
                yield from self._in_file(entry)
                if not self._left:
                    return
                if time.monotonic() > self._page_ends:
                    yield None

    def _named(self, reader: Reader, paths: Collection[bytes]) -> Iterator[Entry]:
        for path in paths:
            entry = reader.entry(path, self._ordinal)
            if entry is not None:
                yield entry

    def _all(self, reader: Reader) -> Iterator[Entry]:
        start = self.at
        for around in (False, True):
            after = None if around else start
            while page := reader.came(0, self._ordinal, after, PAGE_ENTRIES):
                after = page[-1][0]
                for key, entry in page:
                    if around and start is not None and key > start:
                        return
                    self.at = key
                    yield entry
            if start is None:
                return

    def _in_file(self, entry: Entry) -> Iterator[tuple[bytes, bytes] | None]:
        if entry.content is None:
            return
        for name, length, offset in self._chunks(entry.content, entry.level, entry.size, 0):
            if name not in self._left:
                continue
            try:
                data = self._objects.bytes_of(Wanted(name, CHUNK, length, entry.path, offset))
            except (Abandoned, Missing, Damaged, OSError):
                continue  # another file may have it
            self._left.discard(name)
            yield name, data
            if not self._left:
                return

    def _chunks(self, name: bytes, level: int, length: int, offset: int) -> Iterator[tuple[bytes, int, int]]:
        """(id, length, offset) of the chunks below; what lies below a recipe that cannot be read is left
        out."""
        if level == 0:
            if name != HOLE:
                yield name, length, offset
            return
        try:
            recipe = content.parse_recipe(self._store.get(name), level)
        except (Missing, Damaged, RemoteProtocolError, OSError):
            self.unreadable += 1
            return
        for size, child in recipe.iter_items():
            yield from self._chunks(child, level - 1, size, offset)
            offset += size


__all__ = ["ContentSearch", "Key"]
