"""Manifests: what an image holds, kept among the objects themselves, so that a lost catalog can be made
again.

A manifest is the magic `CRm1` and then each entry by (directory, name) as `length u32 | canonical bytes`, cut
like a file into chunks and a recipe. Equal images have equal manifests, and neighbouring ones share most of
their chunks. The log beside the packs says which there are: a line for each, with a checksum, the image's
header and the manifest's content id; it is synced before the catalog notes the manifest, which makes it a
root of collection.

When: once right after a set's first copy, then at idle for the newest complete image of each target set
while it is clean, at most every ten minutes a set; further, one at a time, for older versions that have none.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crnode.platform.files import atomic_write, fsync_dir
from crnode.store import child
from crnode.store.catalog import Catalog
from crnode.store.mark import MANIFEST_MAGIC, manifest_part
from crnode.store.packs import Lane, Record, StoreFailed, full_error, is_full
from crnode.store.reader import CLEAN, STAGING, Image, open_reader
from crnode.store.store import CHUNK, RECIPE, ObjectStore, identify
from crnode.store.writer import Writer
from crproto import delta
from crproto.chunking import CUTTER_64K, make_cutter
from crproto.content import RecipeBuilder
from crproto.entries import LtHash, entry_bytes, image_digest
from crproto.ids import chunk_id

LOG = "versions.log"
DUE_SECONDS = 600.0  # between two manifests of a set
COMPACT_BYTES = 4 << 20  # of the log, from which lines of images that are gone are left out
_WINDOW = 4 << 20
_BATCH_BYTES = 1 << 20  # objects given to the writer at a time

_FIELDS = ("id", "parent", "incarnation", "epoch", "sequence", "at_ns", "received_ns", "digest", "entries",
           "bytes", "flags", "pinned", "name", "why", "verdict", "evidence")  # fmt: skip
_BINARY = frozenset(("id", "parent", "incarnation", "digest"))


class Line(NamedTuple):
    """A line of the log: an image (its ordinal is 0), its manifest, and the fence of its set at that time."""

    set: bytes
    image: Image
    content: bytes
    level: int
    fence: int


class ManifestChanged(Exception):
    """The image was pruned, or its rows do not give its digest."""


# -- the log


def log_path(store: ObjectStore) -> Path:
    """Where the log of a store is."""
    return store.directory / LOG


def encode_line(line: Line) -> bytes:
    """A line with its checksum."""
    body: dict[str, Any] = {}
    for key in _FIELDS:
        value = getattr(line.image, key)
        body[key] = value.hex() if key in _BINARY and value is not None else value
    body |= {"set": line.set.hex(), "content": line.content.hex(), "level": line.level, "fence": line.fence}
    text = json.dumps(body, sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode_line(data: bytes) -> Line | None:
    """The line in `data`, None when it is torn or rotten."""
    check, _, text = data.rstrip(b"\n").partition(b" ")
    try:
        if int(check, 16) != zlib.crc32(text):
            return None
        body = json.loads(text)
        values: dict[str, Any] = {k: bytes.fromhex(body[k]) if k in _BINARY else body[k] for k in _FIELDS}
        image = Image(ordinal=0, state=STAGING, manifest=None, **values)
        return Line(
            bytes.fromhex(body["set"]),
            image,
            bytes.fromhex(body["content"]),
            int(body["level"]),
            int(body["fence"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def read_log(path: Path) -> list[Line]:
    """All sound lines, oldest first. Torn and rotten ones are left out: each line stands for itself."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return [line for line in map(decode_line, data.splitlines()) if line is not None]


def append_line(path: Path, line: Line) -> None:
    """Append a line and make it durable. Raises CrnodeError (FULL) with the log as it was, StoreFailed."""
    made = not path.exists()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + encode_line(line)
        try:
            at = 0
            while at < len(data):
                at += os.pwrite(fd, data[at:], size + at)
        except OSError as error:
            os.ftruncate(fd, size)
            if is_full(error):
                raise full_error(path, error) from error
            raise StoreFailed(f"cannot write {path}: {error}") from error
        try:
            os.fsync(fd)
        except OSError as error:
            raise StoreFailed(f"fsync of {path} failed: {error}") from error
    finally:
        os.close(fd)
    if made:
        fsync_dir(path.parent)


def compact_log(path: Path, keep: Callable[[Line], bool]) -> int:
    """Leave out lines that `keep` refuses, and rotten ones; returns how many lines stayed."""
    lines = [line for line in read_log(path) if keep(line)]
    data = b"".join(map(encode_line, lines))
    if data != path.read_bytes():
        atomic_write(path, data)
    return len(lines)


def is_logged(log: Path, set_uuid: bytes) -> bool:
    """Whether the log names images of a set."""
    return any(line.set == set_uuid for line in read_log(log))


def rebuild_log(path: Path) -> tuple[int, int]:
    """Write the log anew from its sound lines; returns (lines kept, lines left out)."""
    try:
        count = len(path.read_bytes().splitlines())
    except FileNotFoundError:
        return 0, 0
    kept = compact_log(path, lambda _: True)
    return kept, count - kept


# -- writing


class ManifestCutter:
    """Cuts a manifest while it is made: memory holds one window of it. `objects` waits to be taken, as
    (kind, id, bytes)."""

    def __init__(self) -> None:
        self.objects: list[tuple[int, bytes, bytes]] = []
        self._cutter = make_cutter(CUTTER_64K)
        self._builder = RecipeBuilder(CUTTER_64K)
        self._data = bytearray(MANIFEST_MAGIC)

    def add(self, data: bytes) -> None:
        """The canonical bytes of the next entry."""
        self._data += manifest_part(data)
        if len(self._data) >= _WINDOW:
            self._cut(final=False)

    def finish(self) -> tuple[bytes, int]:
        """(content id, level) of the whole."""
        self._cut(final=True)
        named = self._builder.finish()
        self._recipes()
        return named

    def _cut(self, *, final: bool) -> None:
        view = memoryview(bytes(self._data))
        at = 0
        for length in self._cutter.cut(view, final):
            chunk = bytes(view[at : at + length])
            name = chunk_id(chunk)
            self.objects.append((CHUNK, name, chunk))
            self._builder.add(length, name)
            at += length
        del self._data[:at]
        self._recipes()

    def _recipes(self) -> None:
        self.objects += [(RECIPE, name, data) for name, data in self._builder.take()]


async def write_manifest(
    store: ObjectStore, writer: Writer, catalog: Catalog, image: Image
) -> tuple[bytes, int]:
    """Write the manifest of a complete image, log it, and note it in the catalog; returns its content id and
    level.

    A child process reads the catalog and cuts; the writer thread gets the objects in small batches. Raises
    ManifestChanged when the image went meanwhile, CrnodeError (FULL), StoreFailed, child.ChildFailed.
    """
    request = {
        "catalog": str(catalog.path), "set": catalog.set_uuid.hex(), "ordinal": image.ordinal,
        "id": (image.id or b"").hex(),
    }  # fmt: skip
    named: list[bytes] = []
    async with child.Child("crnode.store.manifest", request) as process:
        while True:
            header, blob = await process.read()
            if header["event"] == "end":
                break
            if header["event"] == "changed":
                raise ManifestChanged(header["why"])
            records = []
            at = 0
            for kind, length in header["objects"]:
                data = blob[at : at + length]
                at += length
                records.append(Record(identify(kind, data), kind, delta.RAW, length, data))
            store.check_room(len(blob))
            named += [record.id for record in records]
            await writer.submit(store.put, records, Lane.BULK, cache=False)
            await writer.submit(store.sync)
            await process.answer({})
    top, level = bytes.fromhex(header["content"]), int(header["level"])
    await writer.submit(_note, store, catalog, image, top, level, named)
    return top, level


def _note(
    store: ObjectStore, catalog: Catalog, image: Image, top: bytes, level: int, named: Sequence[bytes]
) -> None:
    """Log and catalog, in one turn of the writer: what is named is there and stays (rule 30)."""
    if store.missing(list(named)):
        raise ManifestChanged("a collection took parts of it")
    held = catalog.image_at(image.ordinal)
    if held is None or held.id != image.id:
        raise ManifestChanged("the image was pruned")
    store.mark_live(named)
    store.sync()
    fence = int.from_bytes(catalog.meta("fence_epoch") or b"", "big")
    append_line(log_path(store), Line(catalog.set_uuid, held, top, level, fence))
    with catalog.transaction():
        catalog.set_manifest(image.ordinal, top, level)


def log_again(store: ObjectStore, catalog: Catalog, ordinal: int) -> None:
    """The name or the verdict of an image changed: its newest line in the log has it, too. Nothing for one
    without a manifest. Raises CrnodeError (FULL), StoreFailed."""
    image = catalog.image_at(ordinal)
    if image is None or image.manifest is None:
        return
    fence = int.from_bytes(catalog.meta("fence_epoch") or b"", "big")
    append_line(
        log_path(store), Line(catalog.set_uuid, image, image.manifest[:32], image.manifest[32], fence)
    )


def due(
    images: Sequence[Image], retained: Sequence[int], last_written: float | None, now: float
) -> Image | None:
    """Which image of a target set gets its manifest now, if any (see the module's text).

    `retained`: ordinals that retention keeps; `last_written`: monotonic seconds of the set's last manifest in
    this process, None if there was none."""
    if not images:
        return None
    if last_written is not None and now - last_written < DUE_SECONDS:
        return None
    newest = images[-1]
    none_yet = all(image.manifest is None for image in images)
    if newest.manifest is None and (newest.flags & CLEAN or none_yet):
        return newest
    keep = set(retained)
    older = [i for i in images if i.manifest is None and i.ordinal in keep and i.flags & CLEAN]
    return older[-1] if older else None


# -- the child


def main() -> None:
    """Read an image from its catalog and send the objects of its manifest."""
    body = child.request()
    cutter = ManifestCutter()
    lthash, count, size = LtHash(), 0, 0
    ordinal = int(body["ordinal"])
    with open_reader(Path(body["catalog"])) as reader:
        for entry in reader.walk(ordinal):
            data = entry_bytes(entry)
            lthash.add(data)
            count += 1
            size += entry.size
            cutter.add(data)
            if len(cutter.objects) >= _BATCH_BYTES >> 16:
                _send(cutter)
        named = cutter.finish()
        image = reader.image_at(ordinal)
    if image is None or image.id != bytes.fromhex(body["id"]):
        child.send({"event": "changed", "why": "the image was pruned"})
        return
    if image_digest(bytes.fromhex(body["set"]), count, size, lthash) != image.digest:
        child.send({"event": "changed", "why": "its rows do not give its digest"})
        return
    _send(cutter)
    child.send({"event": "end", "content": named[0].hex(), "level": named[1]})


def _send(cutter: ManifestCutter) -> None:
    while cutter.objects:
        part: list[tuple[int, bytes, bytes]] = []
        size = 0
        while cutter.objects and (not part or size + len(cutter.objects[0][2]) <= _BATCH_BYTES):
            part.append(cutter.objects.pop(0))
            size += len(part[-1][2])
        child.send(
            {"event": "objects", "objects": [(kind, len(data)) for kind, _, data in part]},
            b"".join(data for _, _, data in part),
        )
        child.receive()


if __name__ == "__main__":
    main()
