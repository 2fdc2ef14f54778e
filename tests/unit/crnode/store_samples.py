"""Small stores, catalogs and files for the tests of the store."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from crnode.store.catalog import Catalog
from crnode.store.packs import Lane, Record
from crnode.store.reader import CLEAN, NO_IMAGE, STAGING, Image
from crnode.store.store import CHUNK, RECIPE, ObjectStore
from crnode.store.writer import Writer
from crproto import content, delta
from crproto.chunking import CUTTER_PAGES
from crproto.content import RecipeBuilder
from crproto.entries import DIRECTORY, FILE, Entry, LtHash, entry_bytes, image_digest
from crproto.ids import HOLE, chunk_id, image_id

T = TypeVar("T")
SET = bytes(range(16))
INCARNATION = bytes(range(16, 32))


def chunk(data: bytes) -> Record:
    """A chunk's record."""
    return Record(chunk_id(data), CHUNK, delta.RAW, len(data), data)


def random_chunks(count: int, size: int, seed: int = 0) -> list[Record]:
    """Different chunks of `size` bytes, the same for the same seed."""
    source = random.Random(seed)
    return [chunk(source.randbytes(size)) for _ in range(count)]


def small_store(place: Path, pack_size: int = 64 << 10) -> ObjectStore:
    """A store with small packs and no ballast."""
    return ObjectStore(place, pack_size=pack_size, ballast=0)


def file_records(data: bytes, size: int = 512) -> tuple[bytes, int, list[Record]]:
    """(content id, level, records) of a file cut into pieces of `size` bytes."""
    builder = RecipeBuilder(CUTTER_PAGES)
    records = []
    for at in range(0, len(data), size):
        piece = chunk(data[at : at + size])
        records.append(piece)
        builder.add(len(piece.stored), piece.id)
    name, level = builder.finish()
    records += [Record(i, RECIPE, delta.RAW, len(d), d) for i, d in builder.take()]
    return name, level, records


def put_file(store: ObjectStore, data: bytes, size: int = 512) -> tuple[bytes, int]:
    """Store a file; returns its content id and level."""
    name, level, records = file_records(data, size)
    store.put(records, Lane.BULK, cache=False)
    return name, level


def file(
    path: bytes, named: tuple[bytes, int] | None, size: int, mtime_ns: int = 0, extra: bytes = b""
) -> Entry:
    """The entry of a file."""
    name, level = named if named is not None else (None, 0)
    return Entry(path, FILE, 0o644, "u", 1, "g", 2, mtime_ns, size, name, level, extra)


def directory(path: bytes, mtime_ns: int = 0) -> Entry:
    """The entry of a directory."""
    return Entry(path, DIRECTORY, 0o755, "root", 0, "root", 0, mtime_ns, 0, None, 0, b"")


def blank(ordinal: int, at_ns: int = 0) -> Image:
    """An image's row, still staging."""
    return Image(
        ordinal, None, NO_IMAGE, INCARNATION, 0, ordinal, at_ns, at_ns, NO_IMAGE, 0, 0, CLEAN, STAGING, 0,
        None, None, 0, None, None,
    )  # fmt: skip


def finish(
    catalog: Catalog, ordinal: int, changed: Iterable[Entry], removed: Iterable[bytes], at_ns: int = 0
) -> Image:
    """Complete image `ordinal` (staged or not) with a header that fits; inside a transaction."""
    totals = catalog.staged_totals() if catalog.staging() is not None else catalog.totals()
    assert totals is not None
    totals = catalog.change(ordinal, totals, changed, removed)
    newest = catalog.newest()
    parent = newest.id if newest is not None and newest.id is not None else NO_IMAGE
    digest = catalog.digest(totals)
    at_ns = at_ns or ordinal * 10**9
    name = image_id(parent, catalog.set_uuid, INCARNATION, 0, ordinal, at_ns, digest)
    image = blank(ordinal, at_ns)._replace(
        id=name, parent=parent, digest=digest, entries=totals.entries, bytes=totals.bytes
    )
    catalog.complete(image, totals)
    return image


def commit(catalog: Catalog, changed: Iterable[Entry] = (), removed: Iterable[bytes] = ()) -> Image:
    """One more image, in a transaction of its own."""
    with catalog.transaction():
        return finish(catalog, catalog.next_ordinal(), changed, removed)


def digest_of(entries: Iterable[Entry], set_uuid: bytes = SET) -> bytes:
    """The digest of an image, from scratch."""
    entries = list(entries)
    lthash = LtHash()
    lthash.update(map(entry_bytes, entries))
    return image_digest(set_uuid, len(entries), sum(e.size for e in entries), lthash)


def reachable(catalogs: Sequence[Catalog], store: ObjectStore) -> set[bytes]:
    """Ids of every object that any row reaches, by a plain walk; fails when one cannot be read."""
    out: set[bytes] = set()
    for catalog in catalogs:
        for name, level in set(catalog.contents()):
            out |= below(name, level, store.get)
    return out


def below(name: bytes, level: int, load: Callable[[bytes], bytes]) -> set[bytes]:
    """`name` and everything that it reaches."""
    out = {name}
    data = load(name)
    if level:
        for _, child in content.parse_recipe(data, level).iter_items():
            if child != HOLE:
                out |= below(child, level - 1, load)
    return out


def with_writer(work: Callable[[Writer], Awaitable[T]]) -> T:
    """Run `work` in a loop with a writer thread."""

    async def main() -> T:
        failures: list[BaseException] = []
        writer = Writer(asyncio.get_running_loop(), lambda: None, failures.append)
        try:
            return await work(writer)
        finally:
            await writer.close()
            assert not failures

    return asyncio.run(main())


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    fd = os.open(path, os.O_RDWR)
    try:
        old = os.pread(fd, 1, offset)
        os.pwrite(fd, bytes([old[0] ^ 0x55]), offset)
    finally:
        os.close(fd)
