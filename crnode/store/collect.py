"""Collection: giving the room of objects back that no image reaches any more. Mark in a child process, sweep
here.

Nothing is counted and nothing is remembered between collections: what no catalog row reaches in a *complete*
mark is garbage. A recipe that is missing or damaged on the way is a hole, and with a hole nothing is deleted,
because what lies below it is not known. What becomes live while a collection runs is born after it began, or
noted by the store.

The sweep takes the sealed packs one by one, in steps of a few milliseconds of the writer thread. The child
says which records the index has in a pack and whether each was marked; the step looks each one up again, so
that nothing depends on how old the child's answer is. Dead ids leave the index before their pack is unlinked;
live records are copied forward, synced and indexed before. A crash in between leaves both copies, or garbage
that is met again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import atomic_write, fsync_dir
from crnode.store import child
from crnode.store.catalog import Catalog
from crnode.store.index import VALUE
from crnode.store.mark import Filter, Marker, manifest_entries, roots
from crnode.store.packs import HEADER_LENGTH, Location, Record, StoreFailed, full_error
from crnode.store.reader import open_reader
from crnode.store.store import Damaged, Missing, ObjectStore, StoreReader, sound
from crnode.store.writer import Writer
from crproto.errors import RemoteProtocolError

SPARSE = 0.6  # share of live bytes below which a pack is copied forward
STEP_SECONDS = 0.02  # of the writer thread at a time: an acknowledgement of another set waits no longer
STEP_DEAD = 512  # ids dropped in one transaction of the index
STEP_DEAD_FULL = 8  # the same on a full disk, where larger transactions fail (rule 34)
STEP_BYTES = 1 << 20  # copied and synced in one step
STEP_PENDING = 2000  # ids moved in the index before it is committed, in a step of its own
GRACE_SECONDS = 1.0  # a pack that was copied forward stays this long, for readers that looked up before
GROUP_RECORDS = 500_000  # records that the child lists in one walk of the index
HOLES_MOST = 10_000
_PAGE = 20_000
_ITEM = struct.Struct(">32sQIIBBB")  # id, offset, stored, raw, kind, codec, live
_MARK_FILE = "collected"

Progress = Callable[[dict[str, Any]], None]


class CatalogRef(NamedTuple):
    """A catalog that is a root of collection. `source`: this node is the source of the set, `targets` its
    targets; `catalog` is the open one, for dropping block hashes; `removed`: the set is not in the document
    any more."""

    uuid: str
    path: Path
    source: bool = False
    targets: tuple[str, ...] = ()
    catalog: Catalog | None = None
    removed: bool = False


class Gone(NamedTuple):
    """A hole: the id that is missing or damaged, why, the set, and whether it belongs to a manifest alone."""

    id: bytes
    why: str
    set: str
    manifest: bytes | None


@dataclass
class Outcome:
    """What a collection did, or with a plan, would do. Bytes are those of packs."""

    packs: int = 0
    removed_bytes: int = 0
    copied_bytes: int = 0
    kept_bytes: int = 0
    live_bytes: int = 0
    seconds: float = 0.0
    mark_seconds: float = 0.0
    longest_step: float = 0.0
    holes: list[Gone] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # catalogs that could not be read, with the reason
    damaged: list[bytes] = field(default_factory=list)  # live records that could not be copied forward
    full: bool = False  # it stopped early because there was no room to copy to

    def hole(self) -> dict[str, Any] | None:
        """The reason why nothing was deleted, None if there was none."""
        if self.unreadable:
            return {"what": f"A catalog cannot be read: {self.unreadable[0]}", "ids": []}
        if self.holes:
            first = self.holes[0]
            what = f"{len(self.holes)} recipes are missing or damaged; the first is {first.why}."
            return {"what": what, "ids": [gone.id.hex() for gone in self.holes[:100]], "set": first.set}
        return None


class Collected(NamedTuple):
    """What is remembered of the last collection, to estimate whether another is worth while."""

    live: int = 0
    total: int = 0
    at_ns: int = 0


def last_collected(directory: Path) -> Collected | None:
    """What the last collection of the store in `directory` left; None when there was none."""
    try:
        body = json.loads((directory / _MARK_FILE).read_text())
        return Collected(int(body["live"]), int(body["total"]), int(body["at_ns"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def collect(
    store: ObjectStore,
    writer: Writer,
    catalogs: Sequence[CatalogRef],
    progress: Progress = lambda _: None,
    *,
    plan: bool = False,
    manifests: Sequence[tuple[bytes, int]] = (),
    in_flight: Callable[[], int | None] = lambda: None,
    now_ns: Callable[[], int] = time.time_ns,
) -> Outcome:
    """One collection over all of the store. `catalogs` must be all there are: what none of them reaches goes.

    `manifests` are further roots, whose entries' contents are live too (images that wait for their catalog to
    be rebuilt), as far as they are here. `in_flight` says in which collection the oldest object was born that
    came here and is named by no image yet: all that was born since is spared. With `plan` nothing is changed.
    Raises CrnodeError, StoreFailed, child.ChildFailed."""
    begun = time.monotonic()
    out = Outcome()
    began: list[int] = []

    def begin() -> None:
        began.append(store.begin_collection())

    def end() -> None:
        if began:
            store.end_collection()

    try:
        if not plan:
            await writer.submit(begin)
        number = store.collection if plan else began[0]
        if (born := in_flight()) is not None:
            number = min(number, born - 1)
        known = await writer.submit(lambda: _known(store))
        request = {
            "store": str(store.directory), "number": number, "plan": plan,
            "catalogs": [[ref.uuid, str(ref.path), ref.source, list(ref.targets)] for ref in catalogs],
            "manifests": [[content.hex(), level] for content, level in manifests],
        }  # fmt: skip
        async with child.Child("crnode.store.collect", request) as process:
            await _Run(store, writer, catalogs, process, progress, out, plan, begun, known).run()
    finally:
        if not plan:
            # Who hung up at the start may have left the beginning in the writer's queue: the end comes after.
            with contextlib.suppress(StoreFailed):
                await asyncio.shield(writer.submit(end))
    if not plan and out.hole() is None:
        total = await asyncio.to_thread(store.packs.total)
        out.packs, out.kept_bytes = len(store.packs.numbers()), total
        body = {"live": out.live_bytes, "total": total, "at_ns": now_ns()}
        with contextlib.suppress(OSError):  # a hint; a full disk may not take it
            await asyncio.to_thread(atomic_write, store.directory / _MARK_FILE, json.dumps(body).encode())
    out.seconds = time.monotonic() - begun
    return out


class _Run:
    """The agent's side of one collection."""

    def __init__(
        self, store: ObjectStore, writer: Writer, catalogs: Sequence[CatalogRef], process: child.Child,
        progress: Progress, out: Outcome, plan: bool, begun: float, known: dict[int, int],
    ) -> None:  # fmt: skip
        self.store = store
        self.writer = writer
        self.catalogs = {ref.uuid: ref.catalog for ref in catalogs}
        self._files = {ref.path: _inode(ref.path) for ref in catalogs}
        self.process = process
        self.progress = progress
        self.out = out
        self.plan = plan
        self.begun = begun
        self.known = known
        self._waiting: list[tuple[float, int]] = []  # (when, pack) to unlink

    async def run(self) -> None:
        out = self.out
        while True:
            header, blob = await self.process.read()
            match header["event"]:
                case "progress":
                    self.progress({"text": header["text"]})
                case "flush":
                    await self.writer.submit(self.store.flush_index)
                    await self.process.answer({})
                case "holes":
                    out.unreadable = header["unreadable"]
                    out.holes = [
                        Gone(bytes.fromhex(i), why, uuid, bytes.fromhex(manifest) if manifest else None)
                        for i, why, uuid, manifest in header["holes"]
                    ]
                    return
                case "marked":
                    out.mark_seconds = time.monotonic() - self.begun
                    if moved := [path for path, inode in self._files.items() if _inode(path) != inode]:
                        # It may have been read without its write-ahead log.
                        out.unreadable = [f"{moved[0]} was set aside or replaced while it was read."]
                        return
                    shares = {int(pack): live for pack, live in header["live"].items()}
                    sealed = await self.writer.submit(self._sealed, shares)
                    await self.process.answer({"sealed": sealed})
                case "totals":
                    out.live_bytes = header["live"]
                    if self.plan:
                        out.packs, out.removed_bytes = header["packs"], header["removed"]
                        out.copied_bytes, out.kept_bytes = header["copied"], header["kept"]
                        return
                case "blocks":
                    await self._drop_blocks(header["set"], blob)
                case "pack":
                    if not await self._sweep(header["pack"], header["live"], blob):
                        break
                    self.progress(
                        {"text": f"{out.removed_bytes >> 20} MiB given back, {header['left']} packs left"}
                    )
                    await self.process.answer({})
                case "end":
                    break
        await self._unlink(wait=True)

    def _sealed(self, live: dict[int, int]) -> dict[int, int]:
        """Seal open packs that were largely garbage; returns pack -> size of those that do not grow any more,
        all of whose records are in the committed index. The size is that of when the mark began: what came
        since was not counted. Of a pack that was begun since nothing is known, least of all that it is
        garbage."""
        packs, known = self.store.packs, self.known
        if not self.plan:
            for lane, pack, _ in packs.open_lanes():
                if live.get(pack, 0) < SPARSE * known.get(pack, 0):
                    packs.seal(lane)
        self.store.flush_index()
        open_now = packs.open_packs() if not self.plan else set()
        return {pack: known[pack] for pack in packs.numbers() if pack in known and pack not in open_now}

    async def _drop_blocks(self, uuid: str, blob: bytes) -> None:
        catalog = self.catalogs.get(uuid)
        if catalog is None or self.plan:
            return
        segments = [blob[at : at + 32] for at in range(0, len(blob), 32)]

        def drop() -> None:
            extra = self.store.live_extra or set()
            with catalog.transaction():
                catalog.drop_blocks(s for s in segments if s not in extra)

        await self.writer.submit(drop)

    async def _sweep(self, pack: int, live: int, blob: bytes) -> bool:
        """Sweep one pack; False when there is no room to go on."""
        sweep = PackSweep(self.store, pack, blob)
        try:
            while not await self.writer.submit(sweep.step):
                self.out.longest_step = max(self.out.longest_step, sweep.seconds)
            if not await self.writer.submit(sweep.finish):
                self.out.damaged += sweep.damaged
                return True
        except CrnodeError as error:
            if error.exit_code != ExitCode.FULL:
                raise
            self.out.full = True
            return False
        size = await asyncio.to_thread(self.store.packs.size, pack)
        self.out.copied_bytes += sweep.copied
        self.out.removed_bytes += size - sweep.copied
        self._waiting.append((time.monotonic() + (GRACE_SECONDS if sweep.copied else 0.0), pack))
        await self._unlink(wait=False)
        return True

    async def _unlink(self, *, wait: bool) -> None:
        """Unlink what had its time, in the writer thread like every change of the packs."""
        while self._waiting:
            due, pack = self._waiting[0]
            rest = due - time.monotonic()
            if rest > 0:
                if not wait:
                    return
                await asyncio.sleep(rest)
            self._waiting.pop(0)
            await self.writer.submit(self.store.packs.remove, pack)
        if wait:
            await asyncio.to_thread(fsync_dir, self.store.packs.directory)


def _known(store: ObjectStore) -> dict[int, int]:
    """Pack -> its size, when all that is in them is in the committed index."""
    store.flush_index()
    growing = {pack: end for _, pack, end in store.packs.open_lanes()}
    return {pack: growing.get(pack) or store.packs.size(pack) for pack in store.packs.numbers()}


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


class PackSweep:
    """Empties one sealed pack. `step` and `finish` run in the writer thread."""

    def __init__(self, store: ObjectStore, pack: int, items: bytes) -> None:
        self.store = store
        self.pack = pack
        self.copied = 0
        self.seconds = 0.0  # of the last step
        self.damaged: list[bytes] = []
        self._items = items
        self._at = 0

    def step(self) -> bool:
        """Drop or copy some of the records; True when all of them were seen."""
        begun = time.monotonic()
        until = begun + STEP_SECONDS
        store = self.store
        extra = store.live_extra
        assert extra is not None
        if len(store.index.pending) >= STEP_PENDING:
            store.flush_index()
            return False
        if not store.expand_live(until):
            return False
        dead: list[bytes] = []
        moving: list[Record] = []
        size = 0
        while self._at < len(self._items) and len(dead) < STEP_DEAD and size < STEP_BYTES:
            if time.monotonic() >= until:
                break
            name, offset, stored, raw, kind, codec, live = _ITEM.unpack_from(self._items, self._at)
            self._at += _ITEM.size
            where = store.index.get(name)
            if where is None or where.pack != self.pack or where.offset != offset:
                continue  # it was put again, after damage
            if not live and name not in extra:
                dead.append(name)
                continue
            data = self._read(name, Location(self.pack, offset, stored, raw, kind, codec, 0))
            if data is not None:
                moving.append(Record(name, kind, codec, raw, data))
                size += len(data)
        if dead:
            self._drop(dead)
        if moving:
            self.copied += store.move(moving)
        self.seconds = time.monotonic() - begun
        return self._at >= len(self._items)

    def _read(self, name: bytes, where: Location) -> memoryview | None:
        try:
            data = self.store.packs.read(where)
        except (ValueError, OSError):
            data = memoryview(b"")
        if sound(name, where.kind, where.codec, where.raw, data):
            return data
        self.store.damaged.add(name)
        self.damaged.append(name)
        return None

    def _drop(self, dead: list[bytes]) -> None:
        at, size = 0, len(dead)
        while at < len(dead):
            try:
                self.store.index.remove(dead[at : at + size])
            except lmdb.Error as error:
                self.store.commit_failed(error)
                if size <= 1:
                    raise full_error(self.store.directory, OSError(28, "")) from error
                size = STEP_DEAD_FULL if size > STEP_DEAD_FULL else 1
                continue
            at += size
        self.store.damaged.difference_update(dead)

    def finish(self) -> bool:
        """Take the pack out of the index; False when a live record could not be copied, so that it stays."""
        if self.damaged or any(where.pack == self.pack for where in self.store.index.pending.values()):
            return False
        self.store.forget_pack(self.pack)
        return True


# -- the child


def _mark(body: dict[str, Any], reader: StoreReader) -> tuple[Filter, Marker]:
    marked = Filter(reader.index.count(), body["number"])
    marker = Marker(reader.get, marked.add)
    unreadable: list[str] = []
    manifests: set[tuple[bytes, int]] = set()
    found = []
    for uuid, path, source, targets in body["catalogs"]:
        here = roots(path, source=source, targets=targets, plain=marked.add)
        if here.unreadable:
            unreadable.append(f"{path}: {here.unreadable}")
        found.append((uuid, here))
        manifests |= here.manifests
    found.sort(key=lambda pair: not pair[1].chunks)  # whole walks first: they cover the others
    told = time.monotonic()
    for uuid, here in found:
        for name, level in here.recipes:
            owner = f"{uuid} {name.hex()}" if (name, level) in manifests else uuid
            marker.recipe(name, level, chunks=here.chunks, owner=owner)
            if time.monotonic() - told > 0.5:
                told = time.monotonic()
                child.send({"event": "progress", "text": f"{len(marker.walked)} recipes walked"})
    for name_hex, level in body["manifests"]:
        with contextlib.suppress(Missing, Damaged, RemoteProtocolError):
            _mark_manifest(bytes.fromhex(name_hex), level, marker)
    if marker.holes:  # a recipe put a moment ago may be in the packs and not yet in the committed index
        child.send({"event": "flush"})
        child.receive()
        marker.again()
    if marker.holes or unreadable:
        holes = [
            [name.hex(), hole.why, *([*hole.owner.split(" "), ""])[:2]]
            for name, hole in list(marker.holes.items())[:HOLES_MOST]
        ]
        child.send({"event": "holes", "holes": holes, "unreadable": unreadable})
        raise SystemExit(0)
    for uuid, path, source, _ in body["catalogs"]:
        if source:
            _unreached_blocks(uuid, path, marker)
    return marked, marker


def _mark_manifest(content: bytes, level: int, marker: Marker) -> None:
    """A version that waits for its catalog: the manifest and all that its entries name, as far as it is here.
    The log also names versions that were pruned long ago, of which some is gone for good: that makes no hole,
    or nothing would ever be collected any more."""
    if level:
        marker.recipe(content, level, holes=False)
    marker.mark(content)
    for entry in manifest_entries(content, level, marker.load):
        if entry.content is None:
            continue
        if entry.level:
            marker.recipe(entry.content, entry.level, holes=False)
        else:
            marker.mark(entry.content)


def _unreached_blocks(uuid: str, path: str, marker: Marker) -> None:
    with open_reader(Path(path)) as reader:
        gone = [segment for segment in reader.segments() if not marker.reached(segment)]
    for at in range(0, len(gone), 500):
        child.send({"event": "blocks", "set": uuid}, b"".join(gone[at : at + 500]))


def _entries(reader: StoreReader) -> Iterator[tuple[bytes, bytes]]:
    after: bytes | None = None
    while page := reader.index.page(after, _PAGE):
        yield from page
        after = page[-1][0]


def main() -> None:
    """Mark, then list what each pack to sweep holds, one pack for each line of the agent."""
    body = child.request()
    reader = StoreReader(Path(body["store"]))
    marked, _ = _mark(body, reader)
    number = body["number"]
    live: dict[int, int] = {}
    records: dict[int, int] = {}
    unpack = VALUE.unpack
    for name, value in _entries(reader):
        pack, _, stored, _, _, _, born = unpack(value)
        records[pack] = records.get(pack, 0) + 1
        if born > number or name in marked:
            live[pack] = live.get(pack, 0) + HEADER_LENGTH + stored
    child.send({"event": "marked", "live": live})
    sealed = {int(pack): size for pack, size in child.receive()["sealed"].items()}
    chosen = sorted((live.get(p, 0), p) for p, size in sealed.items() if live.get(p, 0) < SPARSE * size)
    dead_first = [pack for _, pack in chosen]
    copied = sum(live_bytes for live_bytes, _ in chosen)
    removed = sum(sealed[pack] for pack in dead_first) - copied
    child.send(
        {
            "event": "totals", "live": sum(live.values()), "packs": len(sealed), "removed": removed,
            "copied": copied, "kept": sum(sealed.values()) - removed,
        }
    )  # fmt: skip
    if body["plan"]:
        return
    while dead_first:
        group: dict[int, bytearray] = {}
        count = 0
        while dead_first and (not group or count + records.get(dead_first[0], 0) <= GROUP_RECORDS):
            pack = dead_first.pop(0)
            group[pack] = bytearray()
            count += records.get(pack, 0)
        # Also where the first walk met no record of these packs: until they were sealed they may have grown.
        for name, value in _entries(reader):
            pack, offset, stored, raw, kind, codec, born = unpack(value)
            items = group.get(pack)
            if items is not None:
                items += _ITEM.pack(name, offset, stored, raw, kind, codec, born > number or name in marked)
        left = len(group) + len(dead_first)
        for pack, items in group.items():
            left -= 1
            child.send({"event": "pack", "pack": pack, "live": live.get(pack, 0), "left": left}, items)
            child.receive()
    child.send({"event": "end"})


if __name__ == "__main__":
    main()
