"""Committing received images: the durable half of a target. Everything here runs in the writer thread.

The order is the commit protocol's (r2 to r6): objects are verified and appended; entries gather in memory, or
as staged rows once they are many; one turn of the writer then checks that every object the image newly names
is there, that paths make a tree, and that the digest is the header's; packs are synced; one catalog
transaction makes the image count. Only after that an acknowledgement leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import boot_id
from crnode.replicate.brake import needed as needed_by_brake
from crnode.replicate.quota import Staged, most_needed
from crnode.store.catalog import Catalog
from crnode.store.manifest import log_again
from crnode.store.packs import Lane, Record
from crnode.store.reader import NO_IMAGE, STAGING, Image, Live, Totals
from crnode.store.store import CHUNK, RECIPE, Damaged, Missing, ObjectStore, identify
from crnode.versions.retention import USUAL, Ladder
from crnode.versions.thinning import going
from crproto import content, delta
from crproto.entries import DIRECTORY, Entry
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE, image_id
from crproto.limits import DIGEST_SCHEME
from crproto.messages import ImageBegin
from crproto.paths import split

FENCE = "fence_epoch"  # key of the epoch below which nothing is committed any more (rule 20)
COMPARED = 1 << 16
"""Among the flags of an image on its way, never of one that is kept: its sender does not know what the target
has, and found what differs by comparing."""
SPILL_ENTRIES = 500  # changes of one image kept in memory; beyond, they become staged rows in one turn
SMALL_IMAGE = 1 << 20  # bytes of objects up to which an image goes to the lane of small appends
UNRESOLVED_MOST = 200_000
MISSING_AT_ONCE = 8000  # lost objects that are asked for in one turn
SKIPPED, DECLARED = True, False


class Refusal(Exception):
    """The image is not taken; `code`, text and whether sending again may help go to the source."""

    def __init__(self, code: str, text: str, *, retry: bool) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.retry = retry


@dataclass
class Incoming:
    """An image on its way in."""

    header: ImageBegin
    gathered: bool = False  # see :meth:`TargetCommit.begin`
    changed: dict[bytes, Entry] = field(default_factory=dict)
    removed: set[bytes] = field(default_factory=set)
    unresolved: set[bytes] = field(default_factory=set)  # named and not held yet
    made_whole: set[bytes] = field(default_factory=set)  # lacking paths that this image is whole in
    ordinal: int = 0  # of the staged rows; 0 while everything is in memory
    totals: Totals | None = None
    verify_all: bool = False  # resumed: what was checked before is checked again
    bytes: int = 0
    needed: int = 0  # bytes that it takes at most, as the header says

    @property
    def lane(self) -> Lane:
        return Lane.SMALL if self.bytes <= SMALL_IMAGE and not self.ordinal else Lane.BULK


class TargetCommit:
    """Takes the images of one set at a target.

    Args:
        archive: the target keeps everything it ever received (rule 49).
        ladder: which versions stay; may be changed at any time.
        now_ns: wall clock in ns.
        retain_roots: ordinals that must stay besides versions (running restores).
    """

    def __init__(
        self,
        catalog: Catalog,
        store: ObjectStore,
        *,
        archive: bool,
        ladder: Ladder = USUAL,
        now_ns: Callable[[], int],
        retain_roots: Callable[[], set[int]],
    ) -> None:
        self.catalog = catalog
        self.store = store
        self.archive = archive
        self.ladder = ladder
        self.now_ns = now_ns
        self.retain_roots = retain_roots
        self.syncing: int | None = None  # ordinal that the live tree is being made durable at

    # -- objects

    def put(
        self,
        records: Sequence[tuple[bytes, int, int, int, int, bytes]],
        payload: memoryview,
        incoming: Incoming | None,
        staged: Staged,
    ) -> int:
        """Verify and append what an Objects frame carries; returns the bytes appended.

        Raises RemoteProtocolError when bytes are not what their id names, CrnodeError (FULL) when there is
        no room, Refusal when the session's own bound is reached.
        A patch whose base is not here is left out: the image will name it as missing and it comes whole.
        """
        coming = sum(raw if codec == delta.PATCH else stored for _, _, codec, raw, stored, _ in records)
        self.store.check_room(coming)
        self.grant(staged, coming, incoming)
        out: list[Record] = []
        at = 0
        for name, kind, codec, raw, stored, base_id in records:
            part = payload[at : at + stored]
            at += stored
            try:
                base = self.store.base(base_id) if codec == delta.PATCH else None
                data = self._verified(name, kind, delta.decode_object(codec, part, raw, base))
            except (Missing, Damaged):
                continue
            except RemoteProtocolError:
                if codec == delta.PATCH and self._is_damaged(base_id):
                    continue
                raise
            if kind == RECIPE:
                content.parse_recipe(data)
            if codec == delta.ZSTD:
                out.append(Record(name, kind, delta.ZSTD, raw, part))
            else:
                out.append(Record(name, kind, delta.RAW, len(data), data))
        if incoming is not None:
            incoming.bytes += at
            lane = incoming.lane
        else:
            lane = Lane.BULK
        return self.store.put(out, lane)

    def _verified(self, name: bytes, kind: int, data: bytes | memoryview) -> bytes | memoryview:
        if identify(kind, data) != name:
            raise RemoteProtocolError(f"the bytes sent for {name.hex()[:16]} have another id")
        return data

    def _is_damaged(self, base: bytes) -> bool:
        """Whether what a patch was applied to is not what it should be: then nothing is wrong with that."""
        try:
            self.store.get(base)
        except (Missing, Damaged):
            return True
        return False

    def grant(self, staged: Staged, coming: int, incoming: Incoming | None) -> None:
        """Count what is about to be staged, before it is. Raises Refusal (full)."""
        free = self.store.room.free()
        why = staged.take(coming, free, incoming.needed if incoming is not None else None)
        if why:
            raise Refusal("full", why, retry=True)

    def need(self, ids: list[bytes]) -> bytes:
        """The bitmap of those of `ids` that are to be sent, lowest bit first; what is held stays held."""
        missing = set(self.store.missing(ids))
        self.store.mark_live([i for i in ids if i not in missing])
        bits = bytearray(-(-len(ids) // 8))
        for number, name in enumerate(ids):
            if name in missing:
                bits[number // 8] |= 1 << (number % 8)
        return bytes(bits)

    # -- entries

    def begin(self, header: ImageBegin, *, gathered: bool = False) -> Incoming:
        """Check an image's header against what is here. Raises Refusal. `gathered`: this node itself fetches
        what another one acknowledged before the present epoch began, which is no reason then."""
        self._check_header(header, gathered=gathered)
        staging = self.catalog.staging()
        incoming = Incoming(header, gathered=gathered)
        incoming.needed = most_needed(header.total_bytes, header.entries)
        if staging is not None:
            if header.resumed and staging.id == header.id:
                incoming.ordinal = staging.ordinal
                incoming.totals = self.catalog.staged_totals()
                incoming.verify_all = True
            else:
                with self.catalog.transaction():
                    self.catalog.undo(staging.ordinal)
        elif header.resumed:
            raise Refusal("resume", "nothing of this image is staged here", retry=True)
        return incoming

    def _check_header(self, header: ImageBegin, *, gathered: bool) -> None:
        if header.digest_scheme != DIGEST_SCHEME:
            raise Refusal("scheme", f"digest scheme {header.digest_scheme} is unknown here", retry=False)
        fence = int.from_bytes(self.catalog.meta(FENCE) or b"", "big")
        if header.epoch < fence and not gathered:
            raise Refusal("epoch", f"epoch {header.epoch} is over; epoch {fence} has begun", retry=False)
        expected = image_id(
            header.parent,
            self.catalog.set_uuid,
            header.incarnation,
            header.epoch,
            header.sequence,
            header.at_ns,
            header.digest,
        )
        if header.id != expected:
            raise RemoteProtocolError("the image's id does not follow from its header")
        newest = self.catalog.newest()
        if newest is not None and newest.id == header.id:
            return
        held = newest.id if newest is not None and newest.id is not None else b""
        if header.base != held:
            raise Refusal(
                "base", "the difference is against an image that is not the newest here", retry=True
            )

    def drop_staged(self) -> None:
        """Forget what came of an image that is not whole: the next try begins anew."""
        if (staging := self.catalog.staging()) is not None:
            with self.catalog.transaction():
                self.catalog.undo(staging.ordinal)

    def add(self, incoming: Incoming, changed: Iterable[Entry], removed: Iterable[bytes]) -> None:
        """Take a part of the difference."""
        for path in removed:
            incoming.changed.pop(path, None)
            incoming.removed.add(path)
        for entry in changed:
            incoming.changed[entry.path] = entry
            incoming.removed.discard(entry.path)
        if len(incoming.changed) + len(incoming.removed) > SPILL_ENTRIES:
            self._spill(incoming)

    def _spill(self, incoming: Incoming) -> None:
        """Move what gathered into staged rows: durable, invisible, and resumed after a crash."""
        self.store.sync()
        with self.catalog.transaction():
            if not incoming.ordinal:
                incoming.ordinal = self.catalog.next_ordinal()
                incoming.totals = self.catalog.totals()
                self.catalog.begin(self._row(incoming.header, incoming.ordinal, STAGING))
            self._resolve(incoming, incoming.changed.values())
            assert incoming.totals is not None
            incoming.totals = self.catalog.change(
                incoming.ordinal, incoming.totals, incoming.changed.values(), incoming.removed
            )
            self.catalog.save_staged(incoming.totals)
            self.catalog.note_store(self.store.mark())
            if incoming.changed:
                self.catalog.set_meta("resume", next(reversed(incoming.changed)))
        incoming.changed, incoming.removed = {}, set()

    def _resolve(self, incoming: Incoming, entries: Iterable[Entry]) -> None:
        """Note every object that `entries` newly name and that is not here (rule 30)."""
        newest = self.catalog.newest()
        view = newest.ordinal if newest is not None else 0
        plain: list[bytes] = []
        for entry in entries:
            if entry.content is None:
                continue
            if entry.level == 0:
                plain.append(entry.content)
                self._check_object(entry, entry.content, CHUNK, entry.size)
                continue
            self._resolve_recipe(incoming, entry, view)
        self.store.mark_live(plain)
        incoming.unresolved.update(self.store.missing(plain))
        self._bound(incoming)

    def _resolve_recipe(self, incoming: Incoming, entry: Entry, view: int) -> None:
        assert entry.content is not None
        old = self.catalog.entry(entry.path, view) if view else None
        known = (
            (old.content, old.level)
            if old is not None and old.content is not None and old.level > 0
            else None
        )
        try:
            top = content.parse_recipe(self.store.get(entry.content), entry.level)
            if top.total != entry.size:
                raise RemoteProtocolError(
                    f"the recipe of {shown(entry.path)} has {top.total} bytes, its entry {entry.size}"
                )
            names: list[bytes] = []
            new = (entry.content, entry.level)
            for name, kind, length, _ in content.new_objects(known, new, self.store.get):
                if name != HOLE:
                    names.append(name)
                    self._check_object(entry, name, kind, length if kind == CHUNK else None)
        except (Missing, Damaged) as lacking:
            incoming.unresolved.add(lacking.args[0])
            incoming.verify_all = True  # what lies below the missing recipe is not known yet
            return
        self.store.mark_live(names)
        incoming.unresolved.update(self.store.missing(names))
        self._bound(incoming)

    def _check_object(self, entry: Entry, name: bytes, kind: int, length: int | None) -> None:
        """What is stored under an id must be of the kind and length that the image says: else the live tree
        could not be written, for ever."""
        where = self.store.locate(name)
        if where is not None and (where.kind != kind or (length is not None and where.raw != length)):
            raise RemoteProtocolError(
                f"an object of {shown(entry.path)} is not of the kind or length it says"
            )

    def _bound(self, incoming: Incoming) -> None:
        if len(incoming.unresolved) > UNRESOLVED_MOST:
            raise Refusal("missing", "too many of the image's objects were not sent", retry=True)

    def _row(self, header: ImageBegin, ordinal: int, state: int) -> Image:
        return Image(
            ordinal,
            header.id,
            header.parent,
            header.incarnation,
            header.epoch,
            header.sequence,
            header.at_ns,
            self.now_ns(),
            header.digest,
            header.entries,
            header.total_bytes,
            header.flags & ~COMPARED,
            state,
            0,
            None,
            None,
            0,
            None,
            None,
        )

    # -- the switch

    def commit(self, incoming: Incoming) -> list[bytes]:
        """Verify and commit; returns the ids that are missing (then nothing was committed), or [] when the
        image is durable. Raises Refusal, RemoteProtocolError, CrnodeError (FULL), StoreFailed."""
        header = incoming.header
        newest = self.catalog.newest()
        if newest is not None and newest.id == header.id:
            return []
        self._check_header(header, gathered=incoming.gathered)
        self.store.check_room()
        lacking = self._lacking(incoming)
        if lacking:
            return lacking
        self.store.sync()
        with self.catalog.transaction():
            ordinal = incoming.ordinal or self.catalog.next_ordinal()
            before = incoming.totals if incoming.ordinal else self.catalog.totals()
            assert before is not None
            totals = self.catalog.change(ordinal, before, incoming.changed.values(), incoming.removed)
            self._check_tree(incoming, ordinal)
            if (totals.entries, totals.bytes) != (header.entries, header.total_bytes) or self.catalog.digest(
                totals
            ) != header.digest:
                raise Refusal("digest", "entries and digest of the image do not agree", retry=True)
            if newest is not None:
                self._keep_other_line(header, newest)
            row = self._row(header, ordinal, STAGING)
            self.catalog.complete(row, totals)
            self.catalog.note_store(self.store.mark())
            self.catalog.set_meta("resume", None)
            live = self.catalog.live() or Live(0, 0, 0, "clean", boot_id())
            if (
                live.state != "moving"
            ):  # a move that is under way ends where it was going: rows of both ends stay
                self.catalog.set_live(live._replace(target=ordinal, state="moving"))
        self.catalog.lacking -= incoming.made_whole
        return []

    def _lacking(self, incoming: Incoming) -> list[bytes]:
        unresolved, incoming.unresolved = incoming.unresolved, set()
        if incoming.verify_all and incoming.ordinal:
            after: tuple[int, int, bytes] | None = None
            newest = self.catalog.newest()
            base = newest.ordinal if newest is not None else 0
            incoming.verify_all = False
            while page := self.catalog.came(base, incoming.ordinal, after, 1000):
                self._resolve(incoming, [entry for _, entry in page])
                after = page[-1][0]
        else:
            incoming.unresolved.update(self.store.missing(list(unresolved)))
        self._resolve(incoming, incoming.changed.values())
        incoming.unresolved.update(self._lost_before(incoming))
        return list(incoming.unresolved)

    def _lost_before(self, incoming: Incoming) -> set[bytes]:
        """Objects that were lost here and that the image needs all the same, for paths that it need not even
        change: they are asked for as if they were new, because an acknowledgement says that all of it is here
        (rule 32). What lies below a recipe is known when the recipe is here: then it is asked for again."""
        out: set[bytes] = set()
        newest = self.catalog.newest()
        view = incoming.ordinal or (newest.ordinal if newest is not None else 0)
        incoming.made_whole = set()
        for path in self.catalog.lacking:
            entry = incoming.changed.get(path)
            if entry is None and path not in incoming.removed:
                entry = self.catalog.entry(path, view)
            missing = self._missing_below(entry) if entry is not None else set()
            if missing:
                out |= missing
            else:
                incoming.made_whole.add(path)
            if len(out) > MISSING_AT_ONCE:
                break
        return out

    def _missing_below(self, entry: Entry) -> set[bytes]:
        """Everything that is not here of what a content names, as far down as recipes can be read."""
        if entry.content is None:
            return set()
        out: set[bytes] = set()
        todo = [(entry.content, entry.level)]
        while todo:
            name, level = todo.pop()
            if not self.store.has(name):
                out.add(name)
                continue
            if level == 0:
                continue
            try:
                recipe = content.parse_recipe(self.store.get(name), level)
            except (Missing, Damaged):
                out.add(name)
                continue
            if level > 1:
                todo += [(child, level - 1) for _, child in recipe.iter_items()]
            else:
                out.update(self.store.missing([child for _, child in recipe.iter_items() if child != HOLE]))
        return out

    def _check_tree(self, incoming: Incoming, ordinal: int) -> None:
        """Paths make a tree: every parent is a directory, and nothing lies below what is none (r3)."""
        catalog = self.catalog
        suspects: Iterable[bytes]
        if incoming.ordinal:
            newest = catalog.newest()
            suspects = catalog.folders_touched(newest.ordinal if newest is not None else 0, ordinal)
        else:
            changed = incoming.changed
            suspects = {split(path)[0] for path in changed} | incoming.removed
            suspects |= {path for path, entry in changed.items() if entry.kind != DIRECTORY}
        for path in suspects:
            if not path or catalog.dir_id(path) is None:
                continue
            entry = catalog.entry(path, ordinal)
            if (entry is None or entry.kind != DIRECTORY) and catalog.children(path, ordinal):
                raise RemoteProtocolError(f"{shown(path)} has entries below it and is no directory")

    def _keep_other_line(self, header: ImageBegin, newest: Image) -> None:
        """The new image does not descend from ours: ours was acknowledged, so it stays as a version (rule
        43)."""
        descends = header.parent == newest.id or header.skips
        if descends and header.incarnation == newest.incarnation:
            return
        if descends and header.epoch > newest.epoch and not header.flags & COMPARED:
            return  # another node went on with it
        self.catalog.set_pin(
            newest.ordinal,
            f"diverged {newest.at_ns // 10**9}",
            "the source went back behind this image; it is kept",
        )
        log_again(self.store, self.catalog, newest.ordinal)

    # -- versions

    def _thin(self, newest: Image, limit: int) -> int:
        images = self.catalog.images()
        needed = needed_by_brake(self.catalog)
        gone = going(self.catalog, images, self.ladder, self.now_ns(), needed)
        roots = {image.ordinal for image in images} - gone | self.retain_roots() | {newest.ordinal} | needed
        roots |= live_roots(self.catalog)
        if self.syncing is not None:
            roots.add(self.syncing)
        return self.catalog.prune(roots, limit, spare_deleted=self.archive)

    def thin(self, limit: int) -> int:
        """Prune at idle; returns rows deleted (0: nothing left to do)."""
        newest = self.catalog.newest()
        if newest is None:
            return 0
        with self.catalog.transaction():
            return self._thin(newest, limit)


def live_roots(catalog: Catalog) -> set[int]:
    """Ordinals of the images by whose rows the live tree goes, and the brake judges."""
    live = catalog.live()
    return needed_by_brake(catalog) | ({live.at, live.target, live.synced} if live is not None else set())


def shown(path: bytes) -> str:
    """A path for people."""
    return path.decode("utf-8", "backslashreplace") or "the root"


def no_owner_error(name: str, sender: str) -> CrnodeError:
    """The sentence for a node that pushes a set that is not its own (rule 85)."""
    return CrnodeError(
        f"Node {sender} may not push set {name}.",
        "The cluster document names another source for it, or does not name this node as its target.",
        "If this is a surprise, compare `crnode set show` on both nodes.",
        ExitCode.REFUSED,
    )


__all__ = ["CHUNK", "NO_IMAGE", "Incoming", "Refusal", "TargetCommit", "live_roots", "no_owner_error"]
