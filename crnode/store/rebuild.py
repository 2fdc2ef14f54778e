"""Making a catalog again: from the manifests among the objects, and from what can still be read of the
damaged one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import apsw

from crnode.errors import CrnodeError
from crnode.platform.files import boot_id, fsync_dir
from crnode.store.catalog import Catalog, lies_beside, out_of_reach
from crnode.store.damaged import UNREADABLE, gives_id, open_damaged
from crnode.store.ended import keep_ended
from crnode.store.manifest import Line, log_path, read_log
from crnode.store.mark import manifest_entries
from crnode.store.order import in_order
from crnode.store.reader import Image, Reader, Totals, open_reader
from crnode.store.store import ObjectStore
from crproto.entries import Entry, LtHash, entry_bytes, image_digest

SALVAGE_ENTRIES = 10_000_000  # read of a damaged catalog for versions without a manifest: minutes at most
_BATCH_ROWS = 2000
_NO_NOTES: Mapping[str, bytes] = MappingProxyType({})


class NothingLeft(CrnodeError):
    """Not one image of a catalog can be had."""


@dataclass
class Rebuilt:
    """What was made: how many images came back, and why others did not."""

    images: int
    left_out: list[str]
    lost: int = 0  # images that the damaged catalog names and that did not come back
    certain: bool = True  # it could be read which images the damaged catalog names
    ended: bool = True  # the last rows of deleted paths could all be read


@dataclass
class _Source:
    """Where an image's entries are to be had."""

    image: Image
    content: bytes | None  # its manifest, with the level behind it
    entries: Callable[[], Iterator[Entry]]


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
    except UNREADABLE:
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
    again. Where it can be read which images `aside` had, an older one that it had not does not come back: it
    was pruned, and a collection may have taken its content. What `aside` has of deleted paths is taken over
    (see ended.py). Nothing is known of what the live tree shows: it is gone through as if nothing had been
    applied. The catalog is made beside `path` and put there when it is complete, so a crash leaves none.
    Raises NothingLeft when not one image can be had, and other CrnodeErrors, with which nothing is
    decided."""
    lines: dict[bytes, Line] = {}
    fence = 0
    for line in read_log(log or log_path(store)):
        if line.set == set_uuid and line.image.id is not None:
            lines.pop(line.image.id, None)  # the last line of an image has its newest name and verdict
            lines[line.image.id] = line
            fence = max(fence, line.fence)
    result = Rebuilt(0, [])
    with contextlib.ExitStack() as stack:
        named: list[Image] = []
        rows: list[_Source] = []
        if aside is not None:
            try:
                reader = stack.enter_context(open_damaged(aside))
                named, result.certain = reader.readable_images()
                fence = max(fence, _fence(reader))
                rows = _salvage(reader, named, lines.keys())
            except apsw.Error as error:
                if lies_beside(error):
                    raise out_of_reach(aside, error) from error
                result.certain = False
        order = in_order(named, [line.image for line in lines.values()])
        rank = {image.id: number for number, image in enumerate(order)}
        if result.certain and named:
            last = rank[named[-1].id]
            there = {image.id for image in named}
            lines = {name: line for name, line in lines.items() if name in there or rank[name] > last}
        sources = [*_logged(lines, named, store), *rows]
        sources.sort(key=lambda one: rank[one.image.id])  # a manifest stays before rows of the same image
        meta = {**notes, "fence_epoch": fence.to_bytes(8, "big")}

        def further(catalog: Catalog) -> None:
            if aside is not None:
                result.ended = keep_ended(catalog, store, aside, named)

        _rebuild(path, set_uuid, sources, meta, result, further)
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


def _logged(lines: Mapping[bytes, Line], named: Sequence[Image], store: ObjectStore) -> list[_Source]:
    """The images of the log. Whether one is to be kept, and by which name, says its row where that can be
    read: it is the newer one of the two."""
    notes: dict[bytes | None, dict[str, Any]] = {
        image.id: {"pinned": image.pinned, "name": image.name, "why": image.why} for image in named
    }
    return [
        _Source(
            line.image._replace(**notes.get(name, {})),
            line.content + bytes([line.level]),
            partial(manifest_entries, line.content, line.level, store.get),
        )
        for name, line in lines.items()
    ]


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
    path: Path, set_uuid: bytes, sources: list[_Source], meta: Mapping[str, bytes], result: Rebuilt,
    further: Callable[[Catalog], None],
) -> None:  # fmt: skip
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
            further(catalog)
            with catalog.transaction():
                _note_meta(catalog, meta)
                catalog.forget_tree(boot_id())
    result.images = len(done)
    result.left_out = [why for name, why in failed.items() if name not in done]
    if done:
        _put_in_place(temporary, path)
    else:
        _remove(temporary)


def begin_catalog(
    path: Path, set_uuid: bytes, store: ObjectStore, aside: Path | None, notes: Mapping[str, bytes]
) -> bool:
    """Put a catalog without any image at `path`, where none may be; whether all that `aside` had of deleted
    paths could be read, which is taken over."""
    ended = True
    with _beside(path, set_uuid) as (catalog, temporary):
        with catalog.transaction():
            _note_meta(catalog, notes)
        if aside is not None:
            ended = keep_ended(catalog, store, aside, ())
    _put_in_place(temporary, path)
    return ended


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
    if not gives_id(catalog.set_uuid, image):
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
