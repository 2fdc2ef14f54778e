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

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import apsw

from crnode.errors import CrnodeError
from crnode.platform.files import atomic_write, boot_id, fsync_dir
from crnode.store import child
from crnode.store.catalog import Catalog
from crnode.store.mark import MANIFEST_MAGIC, Load, manifest_entries, manifest_part
from crnode.store.packs import Lane, Record, StoreFailed, full_error, is_full
from crnode.store.reader import CLEAN, STAGING, Image, Reader, Totals, open_reader
from crnode.store.store import CHUNK, RECIPE, Damaged, Missing, ObjectStore, identify
from crnode.store.writer import Writer
from crproto import delta
from crproto.chunking import CUTTER_64K, make_cutter
from crproto.content import RecipeBuilder
from crproto.entries import Entry, LtHash, entry_bytes, image_digest
from crproto.errors import ProtocolError
from crproto.ids import chunk_id, image_id

LOG = "versions.log"
DUE_SECONDS = 600.0  # between two manifests of a set
COMPACT_BYTES = 4 << 20  # of the log, from which lines of images that are gone are left out
SALVAGE_ENTRIES = 10_000_000  # read of a damaged catalog for versions without a manifest: minutes at most
_WINDOW = 4 << 20
_BATCH_BYTES = 1 << 20  # objects given to the writer at a time
_BATCH_ROWS = 2000

_FIELDS = ("id", "parent", "incarnation", "epoch", "sequence", "at_ns", "received_ns", "digest", "entries",
           "bytes", "flags", "pinned", "name", "why", "verdict", "evidence")  # fmt: skip
_NO_NOTES: Mapping[str, bytes] = MappingProxyType({})
_BINARY = frozenset(("id", "parent", "incarnation", "digest"))


class Line(NamedTuple):
    """A line of the log: an image (its ordinal is 0), its manifest, and the fence of its set at that time."""

    set: bytes
    image: Image
    content: bytes
    level: int
    fence: int


class NothingLeft(CrnodeError):
    """Not one image of a catalog can be had."""


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
    atomic_write(path, b"".join(map(encode_line, lines)))
    return len(lines)


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


# -- making a catalog again


@dataclass
class Rebuilt:
    """What was made: how many images came back, and why others did not."""

    images: int
    left_out: list[str]
    lost: int = 0  # images that the damaged catalog names and that did not come back
    certain: bool = True  # it could be read which images the damaged catalog names


@dataclass
class _Source:
    """Where an image's entries are to be had."""

    image: Image
    content: bytes | None  # its manifest, with the level behind it
    entries: Callable[[], Iterator[Entry]]


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


_UNREADABLE = (
    Missing, Damaged, ProtocolError, apsw.Error, ValueError, TypeError, AttributeError, OverflowError,
)  # fmt: skip
"""What reading a damaged manifest or catalog may raise, whose values can be of any kind."""


def whole(line: Line, load: Load) -> bool:
    """Whether the manifest of a line can be read and gives the digest of its image. Reads all of it."""
    return _gives_digest(line.set, line.image, lambda: manifest_entries(line.content, line.level, load))


def _gives_id(set_uuid: bytes, image: Image) -> bool:
    try:
        named = image_id(
            image.parent, set_uuid, image.incarnation, image.epoch, image.sequence, image.at_ns, image.digest
        )
    except _UNREADABLE:  # a number that no image has
        return False
    return named == image.id


def _gives_digest(set_uuid: bytes, image: Image, entries: Callable[[], Iterator[Entry]]) -> bool:
    lthash, count, size = LtHash(), 0, 0
    try:
        for entry in entries():
            lthash.add(entry_bytes(entry))
            count += 1
            size += entry.size
            if count > image.entries:
                return False  # a damaged index may lead in a circle
        return image_digest(set_uuid, count, size, lthash) == image.digest
    except _UNREADABLE:
        return False


def rebuild_catalog(
    path: Path, set_uuid: bytes, store: ObjectStore, log: Path | None = None, aside: Path | None = None,
    notes: Mapping[str, bytes] = _NO_NOTES,
) -> Rebuilt:  # fmt: skip
    """Make the catalog of a target set from the log and the manifests in `store`, at `path`, where none may
    be. `notes` are what else its meta table is to say.

    Each logged image whose manifest is whole comes back, in its order, with the same rows, digest and header
    it had; so does each whose rows in `aside`, the damaged catalog, still give its digest, as long as not
    more than the SALVAGE_ENTRIES newest have to be read. What is left is lost and comes from the source
    again. Nothing is known of what the live tree shows: it is gone through as if nothing had been applied.
    The catalog is made beside `path` and put there when it is complete, so a crash leaves none. Raises
    NothingLeft when not one image can be had, and other CrnodeErrors, with which nothing is decided."""
    lines: dict[bytes, Line] = {}
    fence = 0
    for line in read_log(log or log_path(store)):
        if line.set == set_uuid and line.image.id is not None:
            lines.pop(line.image.id, None)  # the last line of an image has its newest name and verdict
            lines[line.image.id] = line
            fence = max(fence, line.fence)
    sources = [
        _Source(
            line.image,
            line.content + bytes([line.level]),
            partial(manifest_entries, line.content, line.level, store.get),
        )
        for line in lines.values()
    ]
    result = Rebuilt(0, [])
    with contextlib.ExitStack() as stack:
        named: list[Image] = []
        if aside is not None:
            try:
                reader = stack.enter_context(open_reader(aside))
                named, result.certain = reader.readable_images()
                fence = max(fence, _fence(reader))
                sources += _salvage(reader, named, lines.keys())
            except apsw.Error:
                result.certain = False
        order = in_order(named, [line.image for line in lines.values()])
        rank = {image.id: number for number, image in enumerate(order)}
        sources.sort(key=lambda one: rank[one.image.id])  # a manifest stays before rows of the same image
        meta = {**notes, "fence_epoch": fence.to_bytes(8, "big")}
        _rebuild(path, set_uuid, sources, meta, result)
    made = {image.id for image in _made(path)} if result.images else set()
    result.lost = sum(image.id not in made for image in named)
    if not result.images:
        raise NothingLeft(
            f"No version of the set {set_uuid.hex()} can be rebuilt.",
            f"The log names {len(lines)} of them, and none can be read whole."
            + (f" The damaged catalog names {len(named)}, and they are lost." if named else ""),
            "The set is copied again from its source.",
        )
    return result


def in_order(held: Sequence[Image], logged: Sequence[Image]) -> list[Image]:
    """The images in the order in which they were the newest: those that a catalog held (oldest first) as it
    had them, and among them the ones that the log alone knows.

    Clocks are put right and then go back, so sequences say what followed on what where they can. Where they
    cannot, a catalog's newest image is only followed by one for which both clocks speak: what the log knows
    beside it was pruned long ago, or the live tree would move back to it."""
    out = list(held)
    known = {image.id for image in held}
    alone = (image for image in logged if image.id not in known)
    for image in sorted(alone, key=lambda one: (one.epoch, one.at_ns)):
        out.insert(_place(out, image), image)
    return out


def _place(order: Sequence[Image], image: Image) -> int:
    at = 0
    for number, other in enumerate(order, 1):
        if (other.incarnation, other.epoch) == (image.incarnation, image.epoch):
            if other.sequence > image.sequence:
                break
            at = number
        elif other.epoch < image.epoch or other.id == image.parent:
            at = number
        elif other.at_ns < image.at_ns and (other.received_ns < image.received_ns or not other.ordinal):
            at = number  # those of the log have no ordinal
    return at


def _fence(reader: Reader) -> int:
    """The fence that a damaged catalog knows of, 0 where that cannot be read."""
    try:
        held = reader.meta("fence_epoch")
    except apsw.Error:
        return 0
    return int.from_bytes(held, "big") if isinstance(held, bytes) and len(held) == 8 else 0


def _salvage(reader: Reader, named: Sequence[Image], logged: Container[bytes]) -> list[_Source]:
    """The images of a damaged catalog; whether their rows are still what they were shows later. Logged ones
    are read only when their manifest is not whole."""
    out: list[_Source] = []
    left = SALVAGE_ENTRIES
    for image in reversed(named):
        if image.id not in logged:
            left -= image.entries
            if left < 0:
                continue
        out.append(_Source(image, None, partial(reader.walk, image.ordinal)))
    return out


def _made(path: Path) -> list[Image]:
    with open_reader(path) as reader:
        return reader.images()


def _rebuild(
    path: Path, set_uuid: bytes, sources: list[_Source], meta: Mapping[str, bytes], result: Rebuilt
) -> None:
    done: set[bytes] = set()
    failed: dict[bytes, str] = {}
    with _beside(path, set_uuid) as (catalog, temporary):
        for source in sources:
            name = source.image.id
            assert name is not None
            if name in done:
                continue
            if why := _rebuild_image(catalog, source):
                failed.setdefault(name, f"image {source.image.sequence}: {why}")
            else:
                done.add(name)
        if done:
            with catalog.transaction():
                _note_meta(catalog, meta)
                catalog.forget_tree(boot_id())
    result.images = len(done)
    result.left_out = [why for name, why in failed.items() if name not in done]
    if done:
        _put_in_place(temporary, path)
    else:
        _remove(temporary)


def begin_catalog(path: Path, set_uuid: bytes, notes: Mapping[str, bytes] = _NO_NOTES) -> None:
    """Put a catalog without any image at `path`, where none may be."""
    with _beside(path, set_uuid) as (catalog, temporary), catalog.transaction():
        _note_meta(catalog, notes)
    _put_in_place(temporary, path)


def _note_meta(catalog: Catalog, notes: Mapping[str, bytes]) -> None:
    for key, value in notes.items():
        catalog.set_meta(key, value)


@contextlib.contextmanager
def _beside(path: Path, set_uuid: bytes) -> Iterator[tuple[Catalog, Path]]:
    """A new catalog and its file, which is whole when this ends well, and gone when it does not."""
    temporary = path.with_name(f".{path.name}.rebuilding")
    _remove(temporary)
    try:
        catalog = Catalog(temporary, set_uuid)
        try:
            yield catalog, temporary
            catalog.put_away()
        except BaseException:
            with contextlib.suppress(Exception):
                catalog.close()
            raise
    except BaseException:
        _remove(temporary)
        raise


def _put_in_place(temporary: Path, path: Path) -> None:
    for suffix in ("-wal", "-shm"):  # a log that was left there would be taken for one of this catalog
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    os.rename(temporary, path)
    fsync_dir(path.parent)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _rebuild_image(catalog: Catalog, source: _Source) -> str:
    """Add one image; returns why not, with the catalog as before."""
    image = source.image
    if not _gives_id(catalog.set_uuid, image):
        return "its header does not give its id"
    if not _gives_digest(catalog.set_uuid, image, source.entries):
        return f"its {'rows are' if source.content is None else 'manifest is'} missing or damaged"
    before = catalog.newest()
    base = before.ordinal if before is not None else 0
    ordinal = catalog.next_ordinal()
    totals = catalog.totals()
    with catalog.transaction():
        catalog.begin(image._replace(ordinal=ordinal))
    changed: list[Entry] = []
    removed: list[bytes] = []
    for old, new in _side_by_side(catalog.walk(base) if base else iter(()), source.entries()):
        if new is None:
            assert old is not None
            removed.append(old.path)
        elif new != old:
            changed.append(new)
        if len(changed) + len(removed) >= _BATCH_ROWS:
            totals = _change(catalog, ordinal, totals, changed, removed)
            changed, removed = [], []
    totals = _change(catalog, ordinal, totals, changed, removed)
    if catalog.digest(totals) != image.digest:
        with catalog.transaction():
            catalog.undo(ordinal)
        return "its rows do not give its digest"
    with catalog.transaction():
        done = image._replace(ordinal=ordinal, manifest=source.content)
        catalog.complete(done, totals)
    return ""


def _change(
    catalog: Catalog, ordinal: int, totals: Totals, changed: list[Entry], removed: list[bytes]
) -> Totals:
    with catalog.transaction():
        totals = catalog.change(ordinal, totals, changed, removed)
        catalog.save_staged(totals)
    return totals


def _side_by_side(old: Iterator[Entry], new: Iterator[Entry]) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Two runs of entries by (directory, name), matched by path."""
    left, right = next(old, None), next(new, None)
    while left is not None or right is not None:
        if right is None or (left is not None and _key(left) < _key(right)):
            yield left, None
            left = next(old, None)
        elif left is None or _key(right) < _key(left):
            yield None, right
            right = next(new, None)
        else:
            yield left, right
            left, right = next(old, None), next(new, None)


def _key(entry: Entry) -> tuple[bytes, bytes]:
    head, _, name = entry.path.rpartition(b"/")
    return head, name


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
