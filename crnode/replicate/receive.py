"""The target side of one set: sessions with its source, the live tree, versions, healing.

A session hands everything to the writer thread in the order it came and waits only for the verdict of a
commit; the receiver's credit goes back when the writer has taken the bytes, so that a fast source never fills
our memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import apsw

from crnode.capture import scan
from crnode.capture.scanning import scan_set
from crnode.cluster.document import Mode, ReplicationSet, Target
from crnode.errors import CrnodeError, ExitCode
from crnode.net.peer import Peer, PeerClosed
from crnode.platform.files import boot_id, syncfs
from crnode.replicate import compare
from crnode.replicate.brake import Brake, Held, HeldBack, accept, held, show
from crnode.replicate.commit import Incoming, Refusal, TargetCommit
from crnode.replicate.live_tree import LACKING, LiveTree, Policy, Report
from crnode.replicate.place import Place, Prepared, locate
from crnode.replicate.quota import InFlight, Staged
from crnode.store.catalog import Catalog, CatalogDamaged
from crnode.store.packs import StoreFailed
from crnode.store.reader import Image, Live, Reader
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer
from crproto.connection import Received
from crproto.errors import LocalProtocolError, RemoteProtocolError
from crproto.messages import (
    Ack,
    Applied,
    Compare,
    Compared,
    Entries,
    ImageBegin,
    ImageCommit,
    List,
    Listed,
    Missing,
    Need,
    Objects,
    Offer,
    Refused,
    SetOpen,
    SetState,
)
from crproto.shapes import Message

T = TypeVar("T")

FEW_ENTRIES = 20_000  # of a live tree that a thread looks through in some tenths of a second
SYNC_SECONDS = 1.0  # after a move the live tree is made durable within this time
RECONCILE_SECONDS = 3600.0
RETRY_SECONDS = 5.0
UNSEEN = "unseen"  # key: what else lies in the destination was not looked at yet
LOOK_SECONDS = 10.0  # the destination itself is looked at this often: is it still there, and ours?
ENTRY_BYTES = 128  # what an entry takes in a catalog besides its path and extras, about

SESSION_MESSAGES = (SetOpen, ImageBegin, Entries, Objects, Offer, ImageCommit, Compare, List)


@dataclass
class _Slot:
    """What the writer thread knows of the image on its way in; shared by the jobs of one session."""

    incoming: Incoming | None = None
    refusal: Refusal | None = None
    header: ImageBegin | None = None
    staged: Staged = field(default_factory=Staged)
    begun: int = 0  # images begun, as the session's task counts them,
    at: int = 0  # ... and the one of them that the writer thread has come to
    told: int = -1  # the one that was refused before its end


@dataclass
class TargetStatus:
    """What the status shows of a set here."""

    state: str = "waiting"
    reason: str = ""
    live: str = ""
    held: bool = False  # by the brake
    unapplied: int = 0
    set_aside: int = 0
    lacking: str = ""  # what the versions here lack, and no other node has
    damaged: bool = False  # the newest version is among them
    received_bytes: int = 0
    problems: list[tuple[bytes, str]] = field(default_factory=list)


class TargetSet:
    """See the module's text.

    Args:
        heal: asked to fetch damaged objects from the source or another holder.
        journal: (kind, sentence) for people.
        doubtful: told when an image does not fit what the catalog here has: one of the two is wrong.
    """

    def __init__(
        self,
        spec: ReplicationSet,
        target: Target,
        catalog: Catalog,
        store: ObjectStore,
        writer: Writer,
        commit: TargetCommit,
        prepare: Callable[[Prepared | None, bool], tuple[Place, bool]],
        destination: Path,
        *,
        heal: Callable[[str, set[bytes]], Awaitable[set[bytes]]],
        journal: Callable[[str, str], None],
        root: bool,
        doubtful: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.target = target
        self.catalog = catalog
        self.store = store
        self.writer = writer
        self.commit = commit
        self.status = TargetStatus()
        self.newest: Image | None = None
        self.live: Live | None = None
        self.destination = destination
        self._prepare = prepare
        self._looked_up = asyncio.Event()  # set once nobody doubts any more what the store holds
        if not catalog.suspect or catalog.looked_up:
            self._looked_up.set()
        self._heal = heal
        self._journal = journal
        self._doubtful = doubtful
        self._policy = Policy(spec.privileged, root)
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, f"live-{spec.name}")
        self._is_over = False  # nothing more is done in that thread
        self._reads = ThreadPoolExecutor(1, f"read-{spec.name}")
        self._reader: Reader | None = None
        self._wake = asyncio.Event()
        self._told = asyncio.Event()  # a person has said something that what waits may have waited for
        self._session: tuple[Peer, _Slot] | None = None
        self._tree: LiveTree | None = None
        self._settled = asyncio.Condition()
        self._sync_due: float | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._in_flight = InFlight()
        self._apply_again = False  # content that paths of the live tree lacked may be here now
        self._no_room = False  # the move that was begun did not fit
        self._brake = Brake(
            spec.name,
            catalog,
            self._record,
            store.get,
            partial(journal, "brake"),
            lambda: self.spec.brake_percent,
        )
        self.on_image: Callable[[], None] = lambda: None  # an image was committed
        self._accepted = False  # a person says that what is found at the destination may be set aside
        self._unseen = False  # the destination may hold more than this catalog knows

    # -- sessions with the source

    async def open(self, peer: Peer, message: SetOpen) -> None:
        """Begin a session: the source says where it stands, we say where we stand. A newer one replaces an
        older."""
        if self._session is not None and self._session[0] is not peer and not self._session[0].closed:
            self._session[0].fail("busy", "A newer connection of the source took over.", retry=True)
        self._session = (peer, _Slot())
        if not self._looked_up.is_set():
            self.status.state, self.status.reason = "checking", "Its store is looked through first."
            await self._looked_up.wait()
            if peer.closed:
                return
            self.status.state, self.status.reason = "waiting", ""
        await peer.send(await self.writer.submit(self._state))
        if not message.newest:
            self.status.state, self.status.reason = "waiting", "The source captures its first image."
        elif self.status.state in ("waiting", "offline"):
            self.status.state, self.status.reason = "in sync", ""

    def _state(self) -> SetState:
        """Where this target stands (in the writer thread)."""
        newest, staging, live = self.catalog.newest(), self.catalog.staging(), self.catalog.live()
        shown = self.catalog.image_at(live.at) if live is not None else None
        safe = self.catalog.image_at(live.synced) if live is not None else None
        problem = ""
        try:
            self.store.check_room()
        except CrnodeError as error:
            problem = str(error)
        return SetState(
            newest.id or b"" if newest is not None else b"",
            newest.sequence if newest is not None else 0,
            newest.digest if newest is not None else b"",
            shown.id or b"" if shown is not None else b"",
            safe.id or b"" if safe is not None else b"",
            staging.id or b"" if staging is not None else b"",
            self.catalog.meta("resume") or b"" if staging is not None else b"",
            problem[:1000],
        )

    def in_flight(self) -> int | None:
        """See :meth:`InFlight.born`."""
        return self._in_flight.born(time.monotonic())

    def lacks(self, text: str, damaged: bool) -> None:
        """An inventory has ended: `text` says what the versions here lack ('': nothing), `damaged` that the
        newest one is among them: no image is acknowledged before that is mended."""
        self.status.lacking, self.status.damaged = text, damaged
        self._looked_up.set()
        self._apply_again = True
        self._wake.set()

    async def handle(self, peer: Peer, received: Received) -> None:
        """One message of a session, in order. Raises RemoteProtocolError when the peer lies."""
        message, payload = received.message, received.payload
        if self._session is None or self._session[0] is not peer:
            raise RemoteProtocolError("SetOpen comes first, and another session may have taken over")
        slot = self._session[1]
        if isinstance(message, Objects | Entries | Offer):
            await self._refuse_early(peer, slot)
        if isinstance(message, Objects):
            done = self.writer.submit(self._put, slot, message, payload)
            self._then_consumed(peer, done, received.cost)
        elif isinstance(message, Entries):
            done = self.writer.submit(self._add, slot, message)
            self._then_consumed(peer, done, received.cost)
        elif isinstance(message, ImageBegin):
            slot.begun += 1
            self._watch(peer, self.writer.submit(self._begin, slot, message, slot.begun))
        elif isinstance(message, Offer):
            ids = [bytes(payload[at : at + 32]) for at in range(0, len(payload), 32)]
            bits = await self.writer.submit(self.commit.need, ids)
            await peer.send(Need(message.number), [bits])
            peer.consumed(received.cost)
        elif isinstance(message, ImageCommit):
            await self._commit(peer, slot, message)
        elif isinstance(message, Compare | List):
            await self._compare(peer, message)

    def _then_consumed(self, peer: Peer, done: asyncio.Future[None], cost: int) -> None:
        def finished(future: asyncio.Future[None]) -> None:
            peer.consumed(cost)

        done.add_done_callback(finished)
        self._watch(peer, done)

    def _watch(self, peer: Peer, done: asyncio.Future[None]) -> None:
        """A job whose result nobody waits for: what goes wrong in it ends the session with a reason."""

        def finished(future: asyncio.Future[None]) -> None:
            if future.cancelled():
                return
            error = future.exception()
            if isinstance(error, RemoteProtocolError):
                self._journal("refused", f"Set {self.spec.name}: {peer} broke the protocol: {error}")
                peer.fail("protocol", str(error))
            elif error is not None:
                self._journal("error", f"Set {self.spec.name}: {error}")
                peer.fail("internal", str(error)[:500], retry=True)

        done.add_done_callback(finished)

    def _guard(self, slot: _Slot, work: Callable[[], None]) -> None:
        """Run one step of an image in the writer thread; what refuses the image is kept for its commit."""
        if slot.refusal is not None:
            return
        try:
            work()
        except Refusal as refusal:
            slot.refusal = refusal
        except CrnodeError as error:
            slot.refusal = _as_refusal(error)
        except RemoteProtocolError as error:
            slot.refusal = Refusal("protocol", str(error), retry=False)  # nothing of this image counts now
            raise

    def _begin(self, slot: _Slot, header: ImageBegin, number: int) -> None:
        slot.refusal, slot.incoming, slot.header, slot.at = None, None, header, number

        def work() -> None:
            slot.incoming = self.commit.begin(header)

        self._guard(slot, work)

    def _put(self, slot: _Slot, message: Objects, payload: memoryview) -> None:
        def work() -> None:
            try:
                put = self.commit.put(message.records, payload, slot.incoming, slot.staged)
                self.status.received_bytes += put
                if put:
                    self._in_flight.came(self.store.collection, time.monotonic())
            except (Refusal, CrnodeError):
                if slot.incoming is not None:
                    raise
                # What comes ahead of an image is a favour: where there is no room it comes with the image.

        self._guard(slot, work)

    def _add(self, slot: _Slot, message: Entries) -> None:
        def work() -> None:
            if slot.incoming is None:
                raise RemoteProtocolError("entries came without an image")
            size = sum(ENTRY_BYTES + len(e.path) + len(e.extra) for e in message.changed)
            self.commit.grant(slot.staged, size + sum(map(len, message.removed)), slot.incoming)
            self.commit.add(slot.incoming, message.changed, message.removed)

        self._guard(slot, work)

    def _finish(self, slot: _Slot, image: bytes) -> list[bytes]:
        if slot.refusal is not None:
            raise slot.refusal
        if slot.incoming is None or slot.incoming.header.id != image:
            raise RemoteProtocolError("this image was not begun")
        try:
            return self.commit.commit(slot.incoming)
        except CrnodeError as error:
            raise _as_refusal(error) from error

    async def _commit(self, peer: Peer, slot: _Slot, message: ImageCommit) -> None:
        try:
            missing = await self.writer.submit(self._finish, slot, message.id)
        except Refusal as refusal:
            if refusal.code == "digest":  # gone on with, it would be refused for ever
                slot.incoming = None
                await self.writer.submit(self.commit.drop_staged)
            if slot.told != slot.begun:
                await self._refuse(peer, slot, message, refusal)
            slot.refusal = None
            return
        if missing:
            await peer.send(Missing(message.id), [b"".join(missing[:8000])])
            return
        await peer.send(Ack(message.id))
        slot.incoming = None
        slot.staged.over()
        self._in_flight.over()
        self.status.state, self.status.reason = "in sync", ""
        self._wake.set()
        self.on_image()

    async def _refuse_early(self, peer: Peer, slot: _Slot) -> None:
        """An image for which there is no room is refused at once: the rest of it need not be sent."""
        refusal = slot.refusal
        if refusal is not None and refusal.code == "full" and slot.told != slot.begun == slot.at:
            slot.told = slot.begun
            await self._refuse(peer, slot, slot.header, refusal)

    async def _refuse(
        self, peer: Peer, slot: _Slot, image: ImageBegin | ImageCommit | None, refusal: Refusal
    ) -> None:
        slot.staged.over()
        self._in_flight.over()
        self.status.state, self.status.reason = (
            ("full" if refusal.code == "full" else "refused"),
            refusal.text,
        )
        if refusal.code == "digest":
            self._doubtful()
        if not (refusal.code == "base" and refusal.retry):
            self._journal(
                "refused", f"Set {self.spec.name}: an image of {peer.name} was not taken: {refusal.text}"
            )
        if image is not None:
            await peer.send(Refused(image.id, refusal.code, refusal.text[:2000], refusal.retry))

    async def _compare(self, peer: Peer, message: Compare | List) -> None:
        newest = await self.writer.submit(self.catalog.newest)
        ordinal = newest.ordinal if newest is not None else 0

        def work() -> Message:
            with self.catalog.reader() as reader:
                if isinstance(message, Compare):
                    return Compared(message.number, tuple(compare.ranges(reader, ordinal, message.borders)))
                high = None if message.open_end else (message.hi_dir, message.hi_name)
                items, last = compare.listing(reader, ordinal, (message.lo_dir, message.lo_name), high)
                return Listed(message.number, tuple(items), last)

        await peer.send(await self._loop.run_in_executor(self._reads, work))

    # -- the live tree

    async def run(self) -> None:
        """Keep the live tree at the newest image, made durable, checked each hour, until cancelled."""
        try:
            next_check = self._loop.time() + RECONCILE_SECONDS
            await self._recover()
            self._sync_due = self._loop.time()  # whoever was here before may have ended before its last one
            while True:
                wait = min(next_check - self._loop.time(), LOOK_SECONDS, self._due_to_sync())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(wait, 0)):
                        await self._wake.wait()
                self._wake.clear()
                try:
                    try:
                        await self._move_if_possible()
                        if self._apply_again:
                            await self._apply_lacking()
                    except HeldBack:
                        await self._keep_durable()  # what the tree shows, for as long as it may not go on
                        raise
                    await self._keep_durable()
                    if self._loop.time() >= next_check:
                        next_check = self._loop.time() + RECONCILE_SECONDS
                        await self.check_live(wait=False)
                    if self._unseen and self._tree is not None:
                        await self._see()
                except (CrnodeError, OSError) as error:
                    await self._cannot(error)
        finally:
            self._is_over = True
            if self._tree is not None:
                self._tree.stopping = True
            if self._syncing is not None:
                await asyncio.wait([self._syncing])
                if isinstance(self._syncing.exception(), OSError):  # the next start must not believe it
                    await self.writer.submit(self._back_to_synced)
            self._reads.shutdown(wait=False, cancel_futures=True)
            # Nothing may write at this place any more when whoever comes next begins there.
            await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)
            self._brake.close()

    async def _cannot(self, error: CrnodeError | OSError) -> None:
        """The live tree has to wait: images are still received, and it goes on when the cause is gone."""
        text = _sentence(error)
        if self.status.live != text and not isinstance(error, HeldBack):
            self._journal("live", f"Set {self.spec.name}: {text}")
        self.status.live = text
        self._no_room = isinstance(error, CrnodeError) and error.exit_code == ExitCode.FULL
        self.status.held = isinstance(error, HeldBack)
        if not self.status.held:  # nothing was begun that has to be looked at anew
            self._tree = None
        await self._announce()
        # Not wait_for: in Python 3.11 it swallows a cancellation that comes as it is woken.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_SECONDS):
                await self._told.wait()
        self._told.clear()
        self._wake.set()

    async def _recover(self) -> None:
        """After an unclean boot what was not synced may be lost: it is written again (rule 61)."""

        def back() -> bool:
            live = self.catalog.live()
            return live is not None and live.boot != boot_id() and self._back_to_synced()

        if await self.writer.submit(back):
            self._journal(
                "live", f"Set {self.spec.name}: the machine was cut off; recent changes are written again."
            )
        self._wake.set()

    async def _in_live(self, work: Callable[[], T]) -> T:
        """Do that in the thread of the live tree. Raises CrnodeError when this node is a target no more:
        whoever looks through the tree meanwhile is in no task of ours."""
        over = CrnodeError(f"Set {self.spec.name} is no longer received here.", "It moved or was removed.")
        if self._is_over:
            raise over
        doing = self._loop.run_in_executor(self._thread, work)
        try:
            return await doing
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if self._is_over and doing.cancelled() and (me is None or not me.cancelling()):
                raise over from None
            raise

    async def _live_tree(self) -> LiveTree:
        if self._tree is None:

            def make() -> LiveTree:
                if self._reader is None:
                    self._reader = self.catalog.reader()
                place = self._place(self._reader)
                return LiveTree(
                    place,
                    self.catalog,
                    self._reader,
                    self._record,
                    self.store.get,
                    self._policy,
                    archive=self.target.mode is Mode.ARCHIVE,
                    check=self._brake.check,
                )

            self._tree = await self._in_live(make)
        return self._tree

    def _place(self, reader: Reader) -> Place:
        """The destination, made ours; what is known of its files is void where it is not as we left it."""
        held = reader.meta("place")
        before = Prepared(*json.loads(held)) if held is not None else None
        adopt = self._accepted or (self.target.adopt and before is None)
        found = before is None and locate(self.destination, bytes.fromhex(self.spec.uuid)).mark() is not None
        place, as_left = self._prepare(before, adopt)
        self._accepted = False
        now = place.prepared()

        def note() -> None:
            self.catalog.set_meta("place", json.dumps(now).encode())
            if found:  # a destination of this set from before this catalog was made
                self.catalog.set_meta(UNSEEN, b"1")
            if not as_left:
                self.catalog.forget_tree(boot_id())

        if not as_left or now != before:
            self._record(note)
        self._unseen = found or reader.meta(UNSEEN) is not None
        if before is not None and not as_left:
            text = f"Set {self.spec.name}: the destination was gone or replaced; it is written anew."
            if self.target.mode is Mode.ARCHIVE:
                text += " What the source had deleted is in the versions, and not shown in it any more."
            self._journal("drift", text)
        return place

    async def _move_if_possible(self) -> None:
        try:
            await self._look_at_place()
        except (CrnodeError, OSError):
            await self._judge()  # a mass change is told at once, also where it cannot be shown
            raise
        await self._move()

    async def _judge(self) -> None:

        def look() -> None:
            if self._reader is None:
                self._reader = self.catalog.reader()
            live, newest = self._reader.live(), self._reader.newest()
            if live is not None and newest is not None and live.at != newest.ordinal:
                self._brake.look(live.at, newest)

        await self._in_live(look)

    async def accept_changes(self) -> Held | None:
        """A person says that what the brake holds is meant. Returns what that was; None for nothing."""

        def work() -> Held | None:
            with self.catalog.transaction():
                return accept(self.catalog)

        found = await self.writer.submit(work)
        if self.status.held:
            self.status.live, self.status.held = "", False
        self._told.set()
        self._wake.set()
        return found

    def look_again(self) -> None:
        """Something may have changed that the live tree waits for."""
        self._wake.set()

    def judge_again(self) -> None:
        """There is another image, or another rule, than the one for which the brake holds, or than what could
        not be written: it is tried now, not when its time comes."""
        self._told.set()
        self._wake.set()

    async def held_back(self, *, shown: bool = False) -> Held | None:
        """What the brake holds now; `shown`: a person sees it."""

        def work() -> Held | None:
            found = held(self.catalog)
            if found is None or not shown:
                return found
            with self.catalog.transaction():
                return show(self.catalog)

        return await self.writer.submit(work)

    async def _look_at_place(self) -> None:
        """Make the tree anew when somebody removed or replaced the destination."""
        if self._tree is not None:
            try:
                await self._in_live(self._tree.place.check)
                return
            except CrnodeError:
                self._tree = None
        await self._live_tree()

    def _due_to_sync(self) -> float:
        """Seconds until the tree has to be made durable; one sync at a time."""
        if self._sync_due is None or self._syncing is not None:
            return LOOK_SECONDS
        return self._sync_due - self._loop.time()

    def accept(self) -> None:
        """A person says that the destination as it is now is meant: what is there is set aside (rule 64)."""
        self._accepted = True
        self._tree = None
        self._told.set()
        self._wake.set()

    def _record(self, work: Callable[[], object]) -> None:
        """A catalog transaction asked for by the live thread."""

        def transaction() -> None:
            with self.catalog.transaction():
                work()

        self.writer.submit_from_thread(transaction).result()

    async def _move(self) -> None:
        tree = await self._live_tree()
        give_up = self._no_room
        report = await self._in_live(lambda: tree.move(give_up=give_up))
        self._no_room = False
        if report is None:
            self.status.live, self.status.held = "", False
            await self._announce()
            return
        if report.damaged:
            await self._heal_then_retry(report)
        self._tell(report)
        self.status.live, self.status.held = "", False
        self._sync_due = self._sync_due or self._loop.time() + SYNC_SECONDS
        await self._announce()

    async def _heal_then_retry(self, report: Report) -> None:
        """Objects that are damaged here come from another holder; then their paths are written again."""
        healed = await self._heal(self.spec.uuid, set(report.damaged))
        if healed:
            tree = await self._live_tree()
            paths = [p for p, why in report.unapplied.items() if why == LACKING]
            again = await self._in_live(lambda: tree.repair(paths))
            self._tell(again)

    async def _apply_lacking(self) -> None:
        """Write the paths again whose content was damaged when they were due."""
        self._apply_again = False
        unapplied = await self.writer.submit(self.catalog.unapplied, 100_000)
        paths = [path for path, why in unapplied if why == LACKING]
        if paths:
            tree = await self._live_tree()
            self._tell(await self._in_live(lambda: tree.repair(paths)))
            await self._announce()

    def _tell(self, report: Report) -> None:
        self.status.set_aside += len(report.set_aside)
        if report.set_aside:
            shown = ", ".join(p.decode(errors="replace") for p in report.set_aside[:3])
            more = f" and {len(report.set_aside) - 3} more" if len(report.set_aside) > 3 else ""
            where = self._tree.place.aside if self._tree is not None else ""
            self._journal(
                "drift",
                f"Set {self.spec.name}: changed locally and put right: {shown}{more}. Kept in {where}.",
            )

    async def _sync(self) -> None:
        """Begin to make durable what the tree shows. Moves go on meanwhile: on a disk with much to write,
        for whomever, this takes seconds, and no change is to wait for it."""
        tree = await self._live_tree()
        due = await self._in_live(tree.to_sync)
        if due is None:
            return
        fd, ordinal = due
        # The next move leaves this image, and its rows must stay until it is noted.
        self.commit.syncing = ordinal

        async def sync() -> None:
            try:
                await asyncio.to_thread(_syncfs_and_close, fd)
                if self._tree is tree:  # else the destination was replaced, and this was another one
                    await self.writer.submit(self.catalog.note_synced, ordinal)
            finally:
                self.commit.syncing = None
                self._wake.set()

        self._syncing = asyncio.create_task(sync())

    async def _keep_durable(self) -> None:
        """Collect a sync that has ended, and begin one that is due."""
        if self._syncing is not None and self._syncing.done():
            await self._synced()
        if self._due_to_sync() <= 0:
            self._sync_due = None
            await self._sync()

    async def _synced(self) -> None:
        """Whether that ended well, and what it changed."""
        task, self._syncing = self._syncing, None
        assert task is not None
        try:
            await task
        except OSError:
            # What the kernel gave up it does not write again, and calls it clean: a sync that succeeds then
            # says nothing (rule 33). All that came since the last good one is written anew.
            await self.writer.submit(self._back_to_synced)
            raise
        except BaseException:  # of the catalog: it is noted with the next one
            self._sync_due = self._loop.time() + SYNC_SECONDS
            raise
        await self._announce()

    def _back_to_synced(self) -> bool:
        """What came after what is known to be durable is to be written again; whether there is anything (in
        the writer thread)."""
        live = self.catalog.live()
        if live is None or live.synced == live.at:
            return False
        with self.catalog.transaction():
            # Written whole, also what is again as it was then.
            self.catalog.note_touched(live.synced, max(live.at, live.target))
            self.catalog.set_live(live._replace(at=live.synced, state="moving", boot=boot_id()))
        return True

    async def _announce(self) -> None:
        """Tell the source, and whoever waits, what the live tree shows."""

        def look() -> tuple[Image | None, Live | None, int, list[tuple[bytes, str]], Image | None]:
            live = self.catalog.live()
            shown = self.catalog.image_at(live.at) if live is not None else None
            return (
                self.catalog.newest(),
                live,
                self.catalog.unapplied_count(),
                self.catalog.unapplied(20),
                shown,
            )

        newest, live, unapplied, problems, shown = await self.writer.submit(look)
        self.newest, self.live = newest, live
        if live is not None and newest is not None and live.at != newest.ordinal and not self.status.live:
            self._wake.set()  # a move finished after a restart or a full disk may not be the last one due
        self.status.unapplied, self.status.problems = unapplied, problems
        async with self._settled:
            self._settled.notify_all()
        if (
            self._session is not None
            and not self._session[0].closed
            and shown is not None
            and shown.id
            and live is not None
        ):
            # A session that is being opened is told by its SetState.
            with contextlib.suppress(PeerClosed, LocalProtocolError):
                await self._session[0].send(Applied(shown.id, live.synced == live.at, unapplied))

    async def settled(self) -> None:
        """Wait until the live tree shows the newest image. CrnodeError says why when it cannot."""
        newest = await self.writer.submit(self.catalog.newest)
        wanted = newest.ordinal if newest is not None else 0
        self._wake.set()

        def shown() -> bool:
            return self.live is not None and self.live.at >= wanted

        async with self._settled:
            await self._settled.wait_for(lambda: shown() or bool(self.status.live))
        if not shown():
            raise CrnodeError("The image is received and kept, but the live tree waits.", self.status.live)

    async def check_live(self, *, wait: bool = True) -> Report:
        """Scan the live tree for local changes and put them right; what was changed is kept aside. `wait`:
        until it shows the newest image, which the task that moves it must not."""
        try:
            await self._look_at_place()
            await self._announce()
        except (CrnodeError, OSError) as error:
            self.status.live = _sentence(error)
        if wait:
            await self.settled()
        tree = await self._live_tree()
        live = self.live
        if live is None or live.at == 0:
            return Report()
        try:
            paths = await scan_set(self._request(tree, live))
        except OSError as error:
            raise CrnodeError("The live tree could not be scanned.", error.strerror or "") from error
        if self.live is None or self.live.at != live.at:
            return Report()  # it moved meanwhile: the scan compared with a state that is gone
        return await self._put_right(tree, paths)

    def _request(self, tree: LiveTree, live: Live) -> str:
        aside = [f"/{path.name}/" for path in tree.place.system]
        return scan.encode_request([str(tree.place.destination)], [], aside, self.catalog.path, live.at, "")

    async def look_over(self) -> bool:
        """The same at once, before this node serves what the tree shows, where that is whole; whether
        anything was put right. A small one is looked at by a thread: a process of its own takes longer to
        begin. Raises CrnodeError."""
        tree, live = await self._live_tree(), self.live
        newest = await self.writer.submit(self.catalog.newest)
        if live is None or live.at == 0 or newest is None:
            return False
        request = self._request(tree, live)
        try:
            if newest.entries <= FEW_ENTRIES:
                paths = await asyncio.to_thread(lambda: list(scan.differing(request)))
            else:
                paths = await scan_set(request)
        except (OSError, apsw.Error, CatalogDamaged) as error:
            what = f"The live tree of {self.spec.name} could not be looked through."
            raise CrnodeError(what, str(error)) from error
        if paths:
            await self._put_right(tree, paths)
        return bool(paths)

    async def _see(self) -> None:
        """Once the tree shows an image: what else lies in a destination that was found is set aside."""
        before = self.live
        if before is None or before.at == 0 or before.state != "clean":
            return
        await self.check_live(wait=False)
        if self.live is None or self.live.at != before.at or self.live.state != "clean":
            return  # it moves meanwhile, and is looked at again

        def note() -> None:
            with self.catalog.transaction():
                self.catalog.set_meta(UNSEEN, None)

        await self.writer.submit(note)
        self._unseen = False

    async def mend(self, path: bytes, which: str) -> bool:
        """Write a file of the live tree anew of which some bytes are not what was written (`which`, for
        people), though it looks so. Whether it is whole now."""
        await self._look_at_place()
        report = await self._put_right(await self._live_tree(), [path], aside=True)
        whole = path not in report.unapplied
        done = "It was written anew." if whole else "It cannot be written anew yet, see crnode status."
        name = path.decode(errors="replace")
        self._journal(
            "damage",
            f"Set {self.spec.name}: {name} in the live tree is not what was written there, {which}. {done}",
        )
        return whole

    async def put_right(self, paths: list[bytes]) -> dict[bytes, bool]:
        """Of `paths`, which differed from what was applied a moment ago, those that somebody changed, each
        with whether it is now what it has to be. What was there is kept aside. Raises CrnodeError."""
        try:
            await self._look_at_place()
            tree = await self._live_tree()
            changed = await self._in_live(lambda: tree.changed(paths))
            if not changed:
                return {}
            await self._put_right(tree, changed)
            left = set(await self._in_live(lambda: tree.changed(changed)))
        except OSError as error:
            raise CrnodeError(_sentence(error)) from error
        return {path: path not in left for path in changed}

    async def _put_right(self, tree: LiveTree, paths: list[bytes], *, aside: bool = False) -> Report:
        report = await self._in_live(lambda: tree.repair(paths, aside=aside))
        if report.damaged:
            await self._heal_then_retry(report)
        self._tell(report)
        if report.written or report.removed or report.set_aside:
            self._sync_due = self._loop.time() + SYNC_SECONDS
            self._wake.set()
        await self._announce()  # whoever waits for this look is told what it could not put right
        return report

    async def close_session(self, reason: str) -> None:
        """End the session with the source, if there is one, also one that waits to be answered."""
        if self._session is not None and not self._session[0].closed:
            self._session[0].fail("denied", reason, retry=True)
        self._looked_up.set()

    async def leave_source(self, reason: str) -> None:
        """End the session for good: this node is to be the source itself. What was staged of an image that
        nobody will complete is dropped; nothing of the session may come to that place afterwards."""
        await self.close_session(reason)
        self._session = None  # what it has sent already is refused

        def drop() -> None:  # behind all that the session has asked of the writer
            staging = self.catalog.staging()
            if staging is not None:
                with self.catalog.transaction():
                    self.catalog.undo(staging.ordinal)

        await self.writer.submit(drop)


def _syncfs_and_close(fd: int) -> None:
    try:
        syncfs(fd)
    finally:
        os.close(fd)


def _sentence(error: CrnodeError | OSError) -> str:
    if isinstance(error, CrnodeError):
        return str(error)
    return f"The destination cannot be written: {error.strerror or error}."


def _as_refusal(error: CrnodeError) -> Refusal:
    return Refusal("full" if error.exit_code == ExitCode.FULL else "refused", str(error), retry=True)


def stamp(at_ns: int) -> str:
    """A time for people, local, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ns / 1e9))


__all__ = ["SESSION_MESSAGES", "StoreFailed", "TargetSet", "TargetStatus", "stamp"]
