"""Committing a source's images: the durable half of capture. Everything here runs in the writer thread.

Order: recipes (and, when spooling, chunks) are appended and synced, then one catalog transaction records
rows, image,
fingerprints and the digest state. A crash before the transaction leaves garbage in packs; after it, an image
that is
not sent yet.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from crnode.capture.job import Batch
from crnode.capture.read import Fresh
from crnode.capture.unsure import begun_anew
from crnode.errors import CrnodeError
from crnode.store.catalog import Catalog
from crnode.store.packs import Lane, Record
from crnode.store.reader import (
    CLEAN,
    DIVERGED,
    NO_IMAGE,
    ROLLING,
    SPOOL_GIVEN_UP,
    STAGING,
    Image,
    Totals,
)
from crnode.store.store import CHUNK, RECIPE, ObjectStore
from crnode.versions.retention import Ladder
from crnode.versions.thinning import going
from crproto import delta
from crproto.entries import DIRECTORY, Entry
from crproto.ids import image_id
from crproto.paths import split

FORGET_AFTER_NS = 30 * 86_400 * 10**9
"""A target that was silent for so long pins nothing any more; when it is back it is compared by ranges."""
SEQUENCE_MOST = 1 << 53
OPENED_FROM = "opened_from"
"""The key of the image that was the newest when this node became the source: others may have it still, and be
sent what differs from it."""
PRUNE_ROWS = 500  # rows pruned at most inside a commit


class EmptiedSet(Exception):
    """This image would empty the set; a person has to say that it is meant (rule 59)."""


@dataclass
class Point:
    """An image just committed, with what a target that has its parent needs: the push's shortcut through
    memory."""

    image: Image
    base: bytes  # id of the image it is a difference to, all zero for none
    changed: list[Entry] = field(default_factory=list)
    removed: list[bytes] = field(default_factory=list)
    fresh: Fresh | None = None  # None: too large for memory, read it from catalog and files
    again: list[bytes] = field(default_factory=list)  # paths that changed their kind meanwhile: look again


class _Unchanged(Exception):
    """What was taken is what the newest image has already: there is nothing to make an image of."""


class SourceCommit:
    """Makes images of one set.

    Args:
        incarnation: 16 bytes; drawn anew when this source learns that it was rolled back (rule 43).
        epoch: the fencing number of this ownership.
        roots: number of root directories: a set with no entry beyond them is empty.
        in_flight: ids of images that were sent and not acknowledged; roots of pruning.
        ladder: which images stay versions here as well, for a set whose source may be another node soon;
            None: none but those that pushes need.
        retain_roots: ordinals that must stay besides versions (running restores, rule 38).
    """

    def __init__(
        self,
        catalog: Catalog,
        store: ObjectStore,
        incarnation: bytes,
        epoch: int,
        roots: int,
        now_ns: Callable[[], int],
        in_flight: Callable[[], set[bytes]],
        ladder: Ladder | None = None,
        retain_roots: Callable[[], set[int]] = set,
    ) -> None:
        self.ladder = ladder
        self.retain_roots = retain_roots
        self.catalog = catalog
        self.store = store
        self.incarnation = catalog.meta("incarnation") or incarnation
        self.rolled_back = False
        self.floor = 0  # greatest sequence that a target has of the images before this incarnation
        self.spool_given_up = catalog.meta(SPOOL_GIVEN_UP) is not None
        self.epoch = epoch
        self.roots = roots
        self.now_ns = now_ns
        self.in_flight = in_flight

    def save_meta(self, key: str, value: bytes) -> None:
        with self.catalog.transaction():
            self.catalog.set_meta(key, value)

    # -- images

    def stage(self, batch: Batch, spool: bool) -> int:
        """Commit a batch of a large image under a staging ordinal: invisible until :meth:`finish`, and kept
        over a crash, so that a first copy goes on where it was. Returns that ordinal."""
        self.store.check_room(batch.fresh.held if spool else 0)
        self._put(batch, spool)
        with self.catalog.transaction():
            staging = self.catalog.staging()
            if staging is None:
                staging = self._blank(self.catalog.next_ordinal())
                self.catalog.begin(staging)
            totals = self.catalog.staged_totals() or self.catalog.totals()
            totals = self.catalog.change(staging.ordinal, totals, batch.changed.values(), batch.removed)
            self._side_rows(batch)
            self.catalog.save_staged(totals)
            self.catalog.note_store(self.store.mark())
            return staging.ordinal

    def note(self, batch: Batch, spool: bool) -> None:
        """Save what is no part of an image of a batch that changes no entry: fingerprints, and paths that
        could not be taken."""
        self._put(batch, spool)
        if batch.prints or batch.lost:
            with self.catalog.transaction():
                self._side_rows(batch)

    def finish(
        self, batch: Batch, flags: int, staged: bool, confirm: bool, accept: bool, spool: bool
    ) -> Point | None:
        """Commit the last batch and, if anything changed, the image. None when there is no new image.

        `confirm`: make an image even without changes, because the one before was rolling. `accept`: an
        emptied set
        is meant. Raises EmptiedSet with nothing changed.
        """
        newest = self.catalog.newest()
        if batch.empty() and not staged and newest is not None and not confirm:
            self.note(batch, spool)  # a recipe that was damaged here is whole again after its file was read
            return None
        self._put(batch, spool)
        try:
            return self._finish(newest, batch, flags, staged, confirm, accept)
        except _Unchanged:
            with self.catalog.transaction():
                self._side_rows(batch)
            return None

    def _finish(
        self, newest: Image | None, batch: Batch, flags: int, staged: bool, confirm: bool, accept: bool
    ) -> Point:
        with self.catalog.transaction():
            staging = self.catalog.staging()
            if staging is None:
                ordinal, totals = self.catalog.next_ordinal(), self.catalog.totals()
            else:
                ordinal, totals = staging.ordinal, self.catalog.staged_totals() or self.catalog.totals()
            totals = self.catalog.change(ordinal, totals, batch.changed.values(), batch.removed)
            totals, again = self._keep_tree(ordinal, newest, totals, batch, staged)
            may_be_same = newest is not None and not (staged or confirm or again)
            if may_be_same and newest is not None and self.catalog.digest(totals) == newest.digest:
                raise _Unchanged
            if newest is not None:
                emptied = newest.entries > self.roots >= totals.entries
            else:  # what was there is not known: folders alone are no content then
                emptied = begun_anew(self.catalog) and not totals.bytes
            if emptied and not accept:
                raise EmptiedSet(
                    "Everything in the set was deleted at once. Targets keep what they have. If this is"
                    " meant, say so"
                    " with: crnode set rebase NAME"
                )
            self._side_rows(batch)
            image = self._image(ordinal, newest, totals, flags)
            self.catalog.complete(image, totals)
            self.catalog.note_store(self.store.mark())
            self._prune(image)
        base = newest.id if newest is not None and newest.id is not None else NO_IMAGE
        if staged:
            return Point(image, base, again=again)
        return Point(image, base, list(batch.changed.values()), list(batch.removed), batch.fresh, again)

    def _keep_tree(
        self, ordinal: int, newest: Image | None, totals: Totals, batch: Batch, staged: bool
    ) -> tuple[Totals, list[bytes]]:
        """Rows make a tree: nothing lies below what is no directory. Where names change their kind while they
        are read, a path may have been taken before or after its parent was one thing or the other; what does
        not fit is left out. Returns the directories to look at again as well."""
        if staged:
            base = newest.ordinal if newest is not None else 0
            again = self._not_a_tree(self.catalog.folders_touched(base, ordinal), ordinal)
        else:
            changed = batch.changed
            suspects = {split(path)[0] for path in changed if path}
            suspects |= {path for path, entry in changed.items() if entry.kind != DIRECTORY}
            again = self._not_a_tree(suspects | batch.removed, ordinal)
        if not again:
            return totals, []
        lost: dict[bytes, str | None] = {**dict(self.catalog.lost(100_000)), **batch.lost}
        cannot = {path for path, reason in lost.items() if reason}
        orphans = set()
        for top in again:
            for entry in self.catalog.subtree(top, ordinal):
                if entry.path != top:
                    orphans.add(entry.path)
                    if top in cannot:
                        batch.lost[entry.path] = "its folder cannot be taken, see there"
        for path in orphans:
            batch.changed.pop(path, None)
            batch.removed.add(path)
            batch.prints[path] = None
        # A folder that cannot be taken is no better when it is looked at again at once.
        return self.catalog.change(ordinal, totals, (), orphans), sorted(again - cannot)

    def _not_a_tree(self, suspects: Iterable[bytes], ordinal: int) -> set[bytes]:
        """Those that are no directory in image `ordinal` and have something below them all the same."""
        catalog = self.catalog
        out = set()
        for path in suspects:
            if catalog.dir_id(path) is None or (not path and self.roots > 1):
                continue  # above several roots there is nothing
            entry = catalog.entry(path, ordinal)
            if (entry is None or entry.kind != DIRECTORY) and next(
                (e for e in catalog.subtree(path, ordinal) if e.path != path), None
            ):
                out.add(path)
        return out

    def begin_incarnation(self, sequence: int) -> Point | None:
        """Draw a new identity and make an image under it: what targets hold of the old one is no ancestor of
        it. Its number follows on `sequence`, the greatest that a target has, so that no number of a version
        comes again. Once for a process; further targets only move the number."""
        if not self.rolled_back:
            with self.catalog.transaction():
                self.incarnation = secrets.token_bytes(16)
                self.catalog.set_meta("incarnation", self.incarnation)
            self.rolled_back = True
        if sequence < SEQUENCE_MOST:  # else the target lies: nobody made so many
            self.floor = max(self.floor, sequence)
        if self.catalog.staging() is not None:
            return None
        return self.finish(Batch(), CLEAN | DIVERGED, False, True, False, False)

    def _blank(self, ordinal: int) -> Image:
        return Image(
            ordinal,
            None,
            NO_IMAGE,
            self.incarnation,
            self.epoch,
            0,
            self.now_ns(),
            0,
            NO_IMAGE,
            0,
            0,
            0,
            STAGING,
            0,
            None,
            None,
            0,
            None,
            None,
        )

    def _image(self, ordinal: int, newest: Image | None, totals: Totals, flags: int) -> Image:
        parent = newest.id if newest is not None and newest.id is not None else NO_IMAGE
        sequence = max(newest.sequence if newest is not None else 0, self.floor) + 1
        # A hybrid clock: time never runs backwards along a line of images (rule 51).
        at_ns = max(self.now_ns(), newest.at_ns + 1 if newest is not None else 0)
        digest = self.catalog.digest(totals)
        name = image_id(parent, self.catalog.set_uuid, self.incarnation, self.epoch, sequence, at_ns, digest)
        return self._blank(ordinal)._replace(
            id=name,
            parent=parent,
            sequence=sequence,
            at_ns=at_ns,
            received_ns=self.now_ns(),
            digest=digest,
            entries=totals.entries,
            bytes=totals.bytes,
            flags=flags,
        )

    def _put(self, batch: Batch, spool: bool) -> None:
        fresh = batch.fresh
        # A renamed file names content that only a row about to be pruned named before.
        self.store.mark_live([e.content for e in batch.changed.values() if e.content is not None])
        records = [Record(name, RECIPE, delta.RAW, len(data), data) for name, data in fresh.recipes.items()]
        if spool and fresh.chunks:
            self.store.check_room(sum(map(len, fresh.chunks.values())))
            self._keep_spool()
            records += [
                Record(name, CHUNK, delta.RAW, len(data), data) for name, data in fresh.chunks.items()
            ]
        if records:
            self.store.put(records, Lane.BULK if len(records) > 64 else Lane.SMALL, cache=False)
            self.store.sync()

    def spool(self, chunks: dict[bytes, bytes]) -> None:
        """Keep new bytes until targets have them; a collection drops them afterwards."""
        self._keep_spool()
        self.store.check_room(sum(map(len, chunks.values())))
        records = [Record(name, CHUNK, delta.RAW, len(data), data) for name, data in chunks.items()]
        self.store.put(records, Lane.BULK, cache=False)

    def give_up_spool(self) -> None:
        """The node's quota is used up: what is spooled and not acknowledged counts as garbage from here on,
        and the next collection takes it. Images that need it are abandoned by their pushes, and the newest is
        captured again; what other sets here have received is not touched (rule 40)."""
        with self.catalog.transaction():
            self.catalog.set_meta(SPOOL_GIVEN_UP, b"1")
        self.spool_given_up = True

    def _keep_spool(self) -> None:
        if self.spool_given_up:
            with self.catalog.transaction():
                self.catalog.set_meta(SPOOL_GIVEN_UP, None)
            self.spool_given_up = False

    def _side_rows(self, batch: Batch) -> None:
        catalog = self.catalog
        if batch.fresh.blocks:
            catalog.save_blocks(batch.fresh.blocks.items())
            batch.fresh.blocks = {}  # 2 MB a GiB that the pushes, which hold the rest, do not need
        for path, print_ in batch.prints.items():
            catalog.see(path, print_)
        for path, reason in batch.lost.items():
            catalog.set_problem("lost", path, reason, self.now_ns())

    # -- cursors

    def acknowledged(self, target: str, image: bytes) -> None:
        """A target holds `image` durably: move its cursor and drop what no cursor needs any more."""
        with self.catalog.transaction():
            held = self.catalog.image(image)
            if held is None:
                return
            self.catalog.set_cursor(target, image, held.ordinal, self.now_ns())
            newest = self.catalog.newest()
            if newest is not None:
                self._prune(newest)

    def adopt(self, target: str, image: bytes) -> Image | None:
        """A target says that it holds `image`: the cursor moves there if we know it. In one turn of the
        writer, because between a look-up and a cursor the image could be pruned."""
        held = self.catalog.image(image)
        if held is not None:
            with self.catalog.transaction():
                self.catalog.set_cursor(target, image, held.ordinal, self.now_ns())
        return held

    def pin_newest(self, pins: set[bytes]) -> Image | None:
        """The newest image, put among `pins` in the same turn of the writer, so that no commit prunes it."""
        newest = self.catalog.newest()
        if newest is not None and newest.id is not None:
            pins.add(newest.id)
        return newest

    def leave_out(self, path: bytes, target: str) -> Point | None:
        """Make an image without `path`, which cannot be read and keeps `target` from having all the rest.

        None when another target acknowledged these bytes: they come from that holder when it is back. One
        that has the path with other bytes is none."""
        newest = self.catalog.newest()
        if newest is None or self.catalog.staging() is not None:
            return None
        wanted = self.catalog.entry(path, newest.ordinal)
        if wanted is None:
            return None
        for cursor in self.catalog.cursors():
            held = self.catalog.entry(path, cursor.ordinal) if cursor.target != target else None
            if held is not None and held.content == wanted.content:
                return None
        batch = Batch()
        batch.removed.add(path)
        batch.prints[path] = None
        return self.finish(batch, CLEAN, False, True, True, False)

    def forget(self, target: str) -> None:
        """A target was removed from the set."""
        with self.catalog.transaction():
            self.catalog.drop_cursor(target)

    def _prune(self, newest: Image) -> None:
        """A source retains the newest image, every cursor, and what is on its way (rule 37).

        The image before the newest stays too: a push that has just chosen it had no time to say so. It is on
        its way before the next commit can be asked for, because one task asks for both.
        """
        # Measured on whichever clock is behind: one that jumps ahead must not make all targets look silent.
        horizon = min(newest.at_ns, self.now_ns()) - FORGET_AFTER_NS
        keep = {newest.ordinal, *(c.ordinal for c in self.catalog.cursors() if c.at_ns > horizon)}
        before = self.catalog.image(newest.parent)
        if before is not None:
            keep.add(before.ordinal)
        for name in self.in_flight():
            image = self.catalog.image(name)
            if image is not None:
                keep.add(image.ordinal)
        if self.ladder is not None:
            opened_from = self.catalog.image(self.catalog.meta(OPENED_FROM) or b"")
            if opened_from is not None:
                keep.add(opened_from.ordinal)
            images = self.catalog.images()
            keep |= {image.ordinal for image in images} - going(
                self.catalog, images, self.ladder, self.now_ns()
            )
        self.catalog.prune(keep | self.retain_roots(), PRUNE_ROWS)

    def walk_back(self, to: int, epoch: int, name: str, why: str) -> Point:
        """Open `epoch` with what image `to` has: a new image, so that history stays a line (rule 45). The one
        that is left is kept under `name`, with the verdict that condemned it; `why` says what that was."""
        newest = self.catalog.newest()
        assert newest is not None
        wanted = {entry.path: entry for entry in self.catalog.subtree(b"", to)}
        batch = Batch()
        for entry in self.catalog.subtree(b"", newest.ordinal):
            if wanted.get(entry.path) == entry:
                del wanted[entry.path]
            elif entry.path not in wanted:
                batch.removed.add(entry.path)
        batch.changed.update(wanted)
        self.epoch = epoch
        with self.catalog.transaction():
            self.catalog.set_meta(OPENED_FROM, newest.id)
            self.catalog.set_pin(newest.ordinal, name, why)
        point = self.finish(batch, CLEAN, False, True, True, False)
        assert point is not None
        return point

    def open_epoch(self, epoch: int) -> Point:
        """The image that opens `epoch`: the newest, once more, as the first of a new time. Whatever descends
        from it is not older than that (rule 1). Raises CrnodeError while an image is half made."""
        newest = self.catalog.newest()
        if self.catalog.staging() is not None or newest is None:
            raise CrnodeError("There is no whole image yet.", "The first copy is not complete.", "")
        self.epoch = epoch
        with self.catalog.transaction():
            self.catalog.set_meta(OPENED_FROM, newest.id)
        point = self.finish(Batch(), CLEAN, False, True, True, False)
        assert point is not None
        return point


__all__ = ["ROLLING", "EmptiedSet", "Point", "SourceCommit"]
