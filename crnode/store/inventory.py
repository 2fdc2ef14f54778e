"""Inventory: what the rows of the catalogs need and the store does not hold.

A scrub reads what is on the disk; an inventory asks the other way round, from the rows to the objects, and so
finds a store that was lost, emptied, or put back from an older copy beside newer catalogs (rule 32). It looks
ids up and reads recipes, never chunks.

A child process walks the catalogs page by page and prints JSON lines. Its index lags behind the agent's by
what was put in the last second: whoever acts on an answer looks the id up again first. Below a recipe that is
not held nothing is known: heal it, then take it again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import lmdb

from crnode.store import child
from crnode.store.collect import CatalogRef
from crnode.store.mark import spools
from crnode.store.reader import OPEN, Reader, open_reader
from crnode.store.store import CHUNK, RECIPE, Damaged, Missing, ObjectStore, StoreReader
from crnode.store.writer import Writer
from crproto.content import parse_recipe
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE

_PAGE = 2000
_SPANS = 1000  # intervals of images gathered before they are merged
_REMEMBERED = 1_000_000  # ids that a walk remembers: a lost store may have names of many more
_BATCH = 2000  # lacking ids handed over at a time
MANIFEST = 2  # a third kind beside CHUNK and RECIPE

Row = tuple[bytes, int, int, bytes, int]  # path, born, died, content, level


class Lacking(NamedTuple):
    """An object that a set needs and the store cannot give. `path` is one that needs it, in images [born,
    died). A manifest that is not whole is told by its own id, without a path."""

    set: str
    id: bytes
    kind: int
    path: bytes | None
    born: int
    died: int


@dataclass
class SetInventory:
    """What one set lacks: rows touched by it, and [born, died) of images that are not whole."""

    rows: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)
    unreadable: str = ""
    paths: set[bytes] = field(default_factory=set)  # those of them that are in the newest image

    def touches(self, ordinal: int) -> bool:
        """Whether the image with this ordinal lacks something."""
        return any(born <= ordinal < died for born, died in self.spans)


@dataclass
class Inventory:
    """What a walk found. `certain`: everything could be followed, so that what was not met is garbage."""

    sets: dict[str, SetInventory] = field(default_factory=dict)
    ids: int = 0
    certain: bool = True
    damaged: frozenset[bytes] = frozenset()  # what was known to be damaged when it began


async def take_inventory(
    store: ObjectStore, writer: Writer, catalogs: Sequence[CatalogRef], out: Inventory
) -> AsyncIterator[list[Lacking]]:
    """Yield what is lacking, some ids at a time; `out` is filled until the end. While a batch is dealt with
    the walk waits. Raises ChildFailed, CrnodeError (FULL), StoreFailed."""
    await writer.submit(store.flush_index)
    damaged = sorted(store.damaged)
    out.damaged = frozenset(damaged)
    request = {
        "store": str(store.directory),
        "damaged": len(damaged),
        "catalogs": [
            [ref.uuid, str(ref.path), ref.source, list(ref.targets), ref.removed] for ref in catalogs
        ],
    }
    batch: list[Lacking] = []
    newest: dict[str, set[bytes]] = {}
    async with child.Child("crnode.store.inventory", request) as process:
        for at in range(0, len(damaged), 1000):
            await process.answer({"ids": [name.hex() for name in damaged[at : at + 1000]]})
        while (line := await process.line()) is not None:
            match line["event"]:
                case "lacking":
                    batch.append(_lacking(line))
                    if len(batch) >= _BATCH:
                        yield batch
                        batch = []
                case "row":
                    newest.setdefault(line["set"], set()).add(bytes.fromhex(line["path"]))
                case "set":
                    spans = [(born, died) for born, died in line["spans"]]
                    paths = newest.get(line["set"], set())
                    out.sets[line["set"]] = SetInventory(line["rows"], spans, line["unreadable"], paths)
                    out.certain = out.certain and not line["unreadable"]
                case "end":
                    out.ids = line["ids"]
                    out.certain = out.certain and line["certain"]
    if batch:
        yield batch


def _lacking(line: dict[str, Any]) -> Lacking:
    path = bytes.fromhex(line["path"]) if line["path"] is not None else None
    return Lacking(line["set"], bytes.fromhex(line["id"]), line["kind"], path, line["born"], line["died"])


def forget_garbage(store: ObjectStore, ids: Iterable[bytes]) -> list[bytes]:
    """Drop damaged objects that no image reaches from the index (in the writer thread); returns those
    dropped.

    Being damaged they count as missing already, so no image can come to need them without sending them again.
    """
    gone = [name for name in ids if name in store.damaged]
    if gone:
        try:
            store.index.remove(gone)
        except lmdb.Error as error:  # on a full disk they stay until the next look
            store.commit_failed(error)
            return []
        store.damaged.difference_update(gone)
    return gone


def whole_below(store: ObjectStore, name: bytes, *, chunks: bool) -> bool:
    """Whether all that recipe `name` needs is held, recipes below it included; chunks only if asked for."""
    try:
        recipe = parse_recipe(store.get(name))
    except (Missing, Damaged, RemoteProtocolError):
        return False
    below = [child for _, child in recipe.iter_items() if child != HOLE]
    if recipe.level > 1:
        return all(whole_below(store, child, chunks=chunks) for child in below)
    return not chunks or not store.missing(below)


# -- the child


class Walker:
    """Follows rows of one catalog to their objects. `bad` says whether an id cannot be had; each lacking id
    is told once, with the row at which it was met, and again if a row of the newest image needs it too."""

    def __init__(
        self,
        load: Callable[[bytes], bytes],
        bad: Callable[[bytes], bool],
        tell: Callable[[bytes, int, Row], None],
        *,
        chunks: bool,
    ) -> None:
        self._load = load
        self._bad = bad
        self._tell = tell
        self._chunks = chunks
        self._told: dict[bytes, bool] = {}  # id -> whether for a row of the newest image
        self._whole: dict[bytes, bool] = {}  # recipes walked already: whether nothing below them is lacking
        self._for_newest: set[bytes] = set()  # of those that are not whole: walked for such a row
        self.ids = 0
        self.certain = True

    def row(self, row: Row) -> bool:
        """Whether everything that the row names can be had."""
        content, level = row[3], row[4]
        if level:
            return self._recipe(content, level, row)
        return not self._chunks or self._chunk(content, row)

    def _chunk(self, name: bytes, row: Row) -> bool:
        self.ids += 1
        if not self._bad(name):
            return True
        self._note(name, CHUNK, row)
        return False

    def _note(self, name: bytes, kind: int, row: Row) -> None:
        newest = row[2] == OPEN
        if len(self._told) >= _REMEMBERED:
            self._told.clear()  # then some are told again, and by then they are here or lacking still
        if name not in self._told or (newest and not self._told[name]):
            self._told[name] = newest
            self._tell(name, kind, row)

    def _recipe(self, name: bytes, level: int, row: Row) -> bool:
        known = self._whole.get(name)
        newest = row[2] == OPEN
        if known or (known is False and (not newest or name in self._for_newest)):
            return known
        self.ids += 1
        whole = True
        try:
            if self._bad(name):
                raise Missing(name)
            recipe = parse_recipe(self._load(name), level)
        except (Missing, Damaged, RemoteProtocolError):
            self._note(name, RECIPE, row)
            self.certain = whole = False
        else:
            for _, below in recipe.iter_items():
                if level > 1:
                    whole = self._recipe(below, level - 1, row) and whole
                elif self._chunks and below != HOLE:
                    whole = self._chunk(below, row) and whole
        if len(self._whole) >= _REMEMBERED:
            self._whole.clear()  # then some are walked again
            self._for_newest.clear()
        self._whole[name] = whole
        if not whole and newest:
            self._for_newest.add(name)
        return whole


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Intervals [born, died) as few as can be."""
    out: list[tuple[int, int]] = []
    for born, died in sorted(spans):
        if out and born <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], died))
        else:
            out.append((born, died))
    return out


def _rows(reader: Reader, newest: int) -> Iterator[Row]:
    """Rows of complete images. A row of the newest one counts as open, also where an image that is still on
    its way has closed it: that one may never be completed."""
    after: tuple[int, bytes, int] | None = None
    while page := reader.content_rows(after, _PAGE):
        for key, row in page:
            after = key
            if row[1] <= newest < row[2]:
                yield (row[0], row[1], OPEN, row[3], row[4])
            elif row[1] <= newest:
                yield row


def _one_set(
    uuid: str,
    path: str,
    source: bool,
    targets: list[str],
    removed: bool,
    store: StoreReader,
    bad: set[bytes],
) -> tuple[int, bool]:
    """Walk one catalog and say what it lacks; returns (ids looked up, whether all could be followed)."""

    def lacks(name: bytes) -> bool:
        return name in bad or store.index.get(name) is None

    def tell(name: bytes, kind: int, row: Row) -> None:
        child.say(
            event="lacking", set=uuid, id=name.hex(), kind=kind,
            path=row[0].hex(), born=row[1], died=row[2],
        )  # fmt: skip

    rows, ids, certain, unreadable = 0, 0, True, ""
    spans: set[tuple[int, int]] = set()
    try:
        with open_reader(Path(path)) as reader:
            if removed and reader.meta("roots") is not None:
                chunks = (
                    False  # this node was its source: the chunks are in the files, and nobody waits for them
                )
            else:
                chunks = not source or spools(reader, targets)
            walker = Walker(store.get, lacks, tell, chunks=chunks)
            newest = reader.newest()
            for row in _rows(reader, newest.ordinal if newest is not None else 0):
                if not walker.row(row):
                    rows += 1
                    spans.add((row[1], row[2]))
                    if row[2] == OPEN:
                        child.say(event="row", set=uuid, path=row[0].hex())
                    if len(spans) > _SPANS:
                        spans = set(merged(spans))
            manifests = Walker(store.get, lacks, lambda *_: None, chunks=True)
            for name, level in {(m[:32], m[32]) for i in reader.images() if (m := i.manifest) is not None}:
                if not manifests.row((b"", 0, 0, name, level)):
                    child.say(
                        event="lacking", set=uuid, id=name.hex(), kind=MANIFEST, path=None, born=0, died=0
                    )
            ids, certain = walker.ids + manifests.ids, walker.certain and manifests.certain
    except apsw.Error as error:
        unreadable = f"{type(error).__name__}: {error}"
    child.say(event="set", set=uuid, rows=rows, spans=merged(spans), unreadable=unreadable)
    return ids, certain


def main() -> None:
    """Walk all catalogs."""
    body = child.request()
    bad: set[bytes] = set()
    while len(bad) < body["damaged"]:
        bad |= {bytes.fromhex(name) for name in child.receive()["ids"]}
    store = StoreReader(Path(body["store"]))
    ids, certain = 0, True
    for uuid, path, source, targets, removed in body["catalogs"]:
        here, all_followed = _one_set(uuid, path, source, targets, removed, store, bad)
        ids += here
        certain = certain and all_followed
    child.say(event="end", ids=ids, certain=certain)


if __name__ == "__main__":
    main()
