"""Pushing one set to one target: a task of its own, so that a slow target never delays another.

Usually the cursor says what the target holds, and a point goes out in one flight: header, objects, entries,
commit. Large differences are offered first, so that what is there already (a resumed first copy, a renamed
file, another set with the same bytes) does not travel again. While a large image is being captured, what
capture has read and still holds goes ahead of it: both machines work at the same time, and little is read
twice. When the target's newest image is unknown here the two sides compare and exchange only what differs
(compare.py). A target that was away skips the images in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from crnode.capture.commit import Point, SourceCommit
from crnode.capture.read import Fresh
from crnode.capture.source import SourceSet
from crnode.errors import CrnodeError
from crnode.net.peer import Peer, PeerClosed
from crnode.replicate import compare
from crnode.replicate.commit import COMPARED, SPILL_ENTRIES
from crnode.replicate.difference import (
    Abandoned,
    ObjectReader,
    Part,
    from_catalog,
    from_fresh,
    from_memory,
    objects_of,
)
from crnode.replicate.lag import Lag, Throttle
from crnode.replicate.mend import mend
from crnode.replicate.send import Sender
from crnode.store.reader import Image, Reader
from crproto.errors import LocalProtocolError
from crproto.limits import DIGEST_SCHEME
from crproto.messages import (
    Ack,
    Applied,
    Call,
    Compare,
    Compared,
    ImageBegin,
    ImageCommit,
    List,
    Listed,
    Missing,
    Need,
    Offer,
    Refused,
    Result,
    SetOpen,
    SetState,
)
from crproto.shapes import Message

T = TypeVar("T")
Dial = Callable[[str], Awaitable[Peer]]

OFFER_BYTES = 256 << 10  # differences up to this go without asking
OFFER_ENTRIES = 64
AHEAD_BYTES = 32 << 20  # of chunks that wait to go ahead, to one target
IDS_PER_OFFER = 4096
RETRY_FIRST, RETRY_MOST = 0.25, 10.0  # seconds between attempts to reach the target
DIGEST_WAIT = 1.0  # seconds before an image that did not add up is sent again
REFUSED_WAIT = 5.0  # seconds before a refused image is tried again
CURSOR_SECONDS = 0.05  # a cursor is saved this long after the acknowledgement that moved it
SPOOL_AFTER = 2  # abandoned images after which new bytes are spooled (rule 55)
RAISED_MOST = 3  # times that a target is believed, in one process, about images that we do not know


class Restart(Exception):
    """The session starts over on the same connection's successor: the target's state must be asked anew."""


class Push:
    """See the module's text. `dial` connects to a node by name."""

    def __init__(
        self,
        source: SourceSet,
        commit: SourceCommit,
        target: str,
        dial: Dial,
        *,
        set_name: str,
        term: int,
        throttle: int | None,
        heal: Callable[[str, set[bytes]], Awaitable[set[bytes]]],
        journal: Callable[[str, str], None],
    ) -> None:
        self._heal = heal
        self.source = source
        self.commit = commit
        self.target = target
        self.dial = dial
        self.set_name = set_name
        self.term = term
        self.state = "offline"
        self.reason = ""
        self.lag = Lag()
        self.sent_bytes = 0
        self.acked: bytes = b""
        self.applied: bytes = b""
        self.synced = False
        self.unapplied = 0
        self.in_flight: set[bytes] = set()
        self.reachable = False
        self._journal = journal
        self._throttle = Throttle(throttle)
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, f"push-{set_name}-{target}")
        self._news = asyncio.Event()
        self._point: Point | None = None
        self._ahead: deque[Fresh] = deque()  # to be sent ahead of their image, in order;
        self._queued = self._due = 0  # ... how many ever were, and of these before the newest point
        self._changed = asyncio.Condition()
        self._abandoned = 0
        self._answers: dict[tuple[type[Message], int], asyncio.Future[tuple[Message, memoryview]]] = {}
        self._verdict: asyncio.Future[Message | tuple[Message, list[bytes]]] | None = None
        self._raised = 0  # times that this target held more than we had made
        self._state_message: asyncio.Future[SetState] | None = None
        self._number = 0
        self._unsaved: set[bytes] = set()  # acknowledged images whose cursor is not in the catalog yet
        self._save_timer: asyncio.TimerHandle | None = None
        self._opened = False  # whether the target took the present session
        self._holds = False  # whether it has any image
        self._peer: Peer | None = None
        self._reader: Reader | None = None

    # -- from outside

    def announce(self, point: Point) -> None:
        """A point was committed."""
        self.lag.made(point.image.sequence, self._loop.time())
        self._point, self._due = point, self._queued
        self._news.set()

    def send_ahead(self, fresh: Fresh) -> None:
        """A part of a large image was captured. What the link is too slow for is left to the image's own
        push: no more than AHEAD_BYTES are kept in memory."""
        waiting = sum(part.held for part in self._ahead)
        if self._peer is None or self.state in ("full", "refused") or waiting + fresh.held > AHEAD_BYTES:
            return
        self._ahead.append(fresh)
        self._queued += 1
        self._news.set()

    def total_sent(self) -> int:
        """Bytes sent to the target since this agent started, before TLS."""
        return self.sent_bytes + (self._peer.bytes_out if self._peer is not None else 0)

    async def reached(self, sequence: int) -> None:
        """Return once the target has acknowledged the image of this sequence (or a later one)."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.lag.acknowledged >= sequence)

    async def shown(self) -> Image:
        """Return once the target has the newest image, applied to its live tree and durable there; that
        image."""

        def is_shown() -> bool:
            newest = self.source.newest
            return newest is not None and self.acked == self.applied == newest.id and self.synced

        async with self._changed:
            await self._changed.wait_for(is_shown)
        assert self.source.newest is not None
        return self.source.newest

    async def settle(self) -> dict[str, object]:
        """Ask the target to check its live tree against what it applied, to put it right, and to say what it
        did. Raises PeerClosed, or CrnodeError with the target's own reason."""
        peer = self._peer
        if peer is None:
            raise PeerClosed("lost", f"{self.target} is not connected.")
        body = json.dumps({"set": self.source.spec.uuid}).encode()
        self._number += 1
        answer, _ = await self._ask(peer, Call(self._number, "settle", body), Result)
        assert isinstance(answer, Result)
        out: dict[str, object] = json.loads(answer.body)
        if not answer.ok:
            raise CrnodeError.from_dict(out)
        return out

    # -- life

    async def run(self) -> None:
        """Push until cancelled."""
        wait = RETRY_FIRST
        try:
            while True:
                try:
                    peer = await self.dial(self.target)
                except PeerClosed as error:
                    self._down("offline", str(error))
                else:
                    self._opened = False
                    await self._connected(peer)
                    if self._opened:  # a target that answers only to refuse is asked less and less often
                        wait = RETRY_FIRST
                await asyncio.sleep(wait * random.uniform(0.7, 1.3))
                wait = min(wait * 2, RETRY_MOST)
        finally:
            if self._save_timer is not None:
                self._save_timer.cancel()
                self._save_cursor()
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _down(self, state: str, reason: str) -> None:
        if self.reachable or (state, reason) != (self.state, self.reason):
            self._journal("push", f"Set {self.set_name} to {self.target}: {state}. {reason}")
        self.state, self.reason, self.reachable = state, reason, False

    async def _connected(self, peer: Peer) -> None:
        self._peer = peer
        listener = asyncio.create_task(self._listen(peer))
        try:
            await self._session(peer)
        except PeerClosed as error:
            if error.code in ("internal", "protocol"):  # it would be so at once again
                self._opened = False
            self._down("offline" if error.code in ("lost", "", "shutdown") else "refused", str(error))
        except Restart as reason:
            if self.state != "full":
                self.state, self.reason = "behind", str(reason)
        finally:
            listener.cancel()
            await asyncio.wait([listener])
            self._fail_waiters(PeerClosed("lost", f"The connection to {self.target} ended."))
            self._peer = None
            self._ahead.clear()
            self.sent_bytes += peer.bytes_out
            await peer.close()
        if not listener.cancelled():
            listener.result()  # raises what it ended with

    def _fail_waiters(self, error: PeerClosed) -> None:
        waiters: list[asyncio.Future[object]] = [*self._answers.values()]  # type: ignore[list-item]
        self._answers.clear()
        for waiter in (self._verdict, self._state_message, *waiters):
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)
                waiter.exception()

    async def _listen(self, peer: Peer) -> None:
        """Hand what the target says to whoever waits for it."""
        async for received in peer.events():
            message, payload = received.message, received.payload
            if isinstance(message, Ack | Refused):
                self._set_verdict(message)
            elif isinstance(message, Missing):
                ids = [bytes(payload[i : i + 32]) for i in range(0, len(payload), 32)]
                self._set_verdict((message, ids))
            elif isinstance(message, Applied):
                self.applied, self.synced, self.unapplied = message.id, message.synced, message.unapplied
                async with self._changed:
                    self._changed.notify_all()
            elif isinstance(message, SetState):
                if self._state_message is not None and not self._state_message.done():
                    self._state_message.set_result(message)
            elif isinstance(message, Need | Compared | Listed | Result):
                waiting = self._answers.pop((type(message), message.number), None)
                if waiting is not None and not waiting.done():
                    waiting.set_result((message, payload))
            peer.consumed(received.cost)
        reason = peer.close_reason
        self._fail_waiters(
            reason.again() if reason is not None else PeerClosed("lost", "The connection ended.")
        )
        self._news.set()

    def _set_verdict(self, verdict: Message | tuple[Message, list[bytes]]) -> None:
        if self._verdict is not None and not self._verdict.done():
            self._verdict.set_result(verdict)

    async def _ask(
        self, peer: Peer, question: Message, answer: type[Message], payload: Sequence[bytes] = ()
    ) -> tuple[Message, memoryview]:
        waiting: asyncio.Future[tuple[Message, memoryview]] = self._loop.create_future()
        self._answers[(answer, question.number)] = waiting  # type: ignore[attr-defined]
        await peer.send(question, payload)
        return await waiting

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._thread, work)

    # -- one connection

    async def _session(self, peer: Peer) -> None:
        newest = self.source.newest
        self._state_message = self._loop.create_future()
        spec = self.source.spec
        await peer.send(
            SetOpen(
                bytes.fromhex(spec.uuid),
                spec.name,
                self.commit.incarnation,
                self.commit.epoch,
                self.term,
                newest.id or b"" if newest is not None else b"",
            )
        )
        state = await self._state_message
        self.reachable = self._opened = True
        self._holds = bool(state.newest)
        if state.problem:
            self._down("refused", state.problem)
            self.reachable = True
        elif newest is None:
            self.state, self.reason = "waiting", "The set is being captured."
        while self.source.newest is None:
            await self._wait_news(peer)
        if not state.problem and self.state != "full":
            self.state, self.reason = "behind", ""
        if self._reader is None:
            self._reader = await self._in_thread(self.source.catalog.reader)
        held = await self._known(state)
        if held is None and state.newest:
            await self._reconcile(peer, state)
            return
        staged = (state.staging, state.resume) if state.staging else None
        while True:
            newest = self.source.newest
            assert newest is not None and newest.id is not None
            if newest.id == self.acked:
                self._in_sync(newest)
                await self._wait_news(peer)
                continue
            await self._send_ahead(peer, self._due)
            if await self._push(peer, newest, held, staged):
                held = newest
            staged = None

    async def _wait_news(self, peer: Peer) -> None:
        """Wait for something new, and send what goes ahead of it."""
        self._news.clear()
        if peer.closed:
            raise (peer.close_reason or PeerClosed("lost", "The connection ended.")).again()
        newest = self.source.newest
        if newest is None or newest.id == self.acked:
            if not self._ahead:
                await self._news.wait()
            await self._send_ahead(peer, self._queued)
        if peer.closed:
            raise (peer.close_reason or PeerClosed("lost", "The connection ended.")).again()

    async def _send_ahead(self, peer: Peer, until: int) -> None:
        """Stage at the target what it has not, of the first `until` parts that were queued: an image waits
        for no part of a later one. Nothing depends on it, and it may be dropped there."""
        while self._ahead and self._queued - len(self._ahead) < until:
            fresh = self._ahead.popleft()
            if self.state in ("full", "refused"):
                continue
            objects = ObjectReader(self.source.store, lambda: self.source.open_roots, fresh)
            # Patches are small: that the target has one already is rare, and asking costs more.
            whole = sum(len(data) for name, data in fresh.chunks.items() if name not in fresh.patches)
            # Where our catalog was lost the target has nearly all of it: then it is asked about each part.
            offer = whole > OFFER_BYTES or (self._holds and self.source.newest is None)
            with contextlib.suppress(Abandoned):  # a recipe of ours is damaged: the image's push finds that
                await self._sender(peer).send(from_fresh(fresh), objects, offer=offer, patches=True)

    async def _known(self, state: SetState) -> Image | None:
        """The image of ours that the target holds, as its cursor; None when it holds none, or one we do not
        know."""
        # What this process believed may be gone with the target's disk: only what the target says now counts.
        self.acked = b""
        self.in_flight -= self._unsaved
        self._unsaved.clear()
        self.lag.start_over(self.source.newest.sequence if self.source.newest else 0, self._loop.time())
        if not state.newest:
            return None
        held = await self.source.writer.submit(self.commit.adopt, self.target, state.newest)
        if held is not None:
            self.acked = state.newest
            self.lag.acked(held.sequence, self._loop.time())
            async with self._changed:
                self._changed.notify_all()
        return held

    async def _acknowledged(self, image: Image) -> None:
        assert image.id is not None
        self.acked = image.id
        self.lag.acked(image.sequence, self._loop.time())
        # The cursor may lag: a restart asks the target first. One transaction serves all acknowledgements of
        # a while.
        self._unsaved.add(image.id)
        if self._save_timer is None:
            self._save_timer = self._loop.call_later(CURSOR_SECONDS, self._save_cursor)
        async with self._changed:
            self._changed.notify_all()

    def _save_cursor(self) -> None:
        self._save_timer = None
        saving, self._unsaved = self._unsaved, set()
        if not self.acked:
            self.in_flight -= saving
            return
        saved = self.source.writer.submit(self.commit.acknowledged, self.target, self.acked)

        def done(future: asyncio.Future[None]) -> None:
            self.in_flight -= (
                saving  # not before: until the cursor is there this is what keeps the images' rows
            )
            if not future.cancelled() and future.exception() is not None:
                self._journal("push", f"The cursor of {self.target} was not saved: {future.exception()}")

        saved.add_done_callback(done)

    def _in_sync(self, newest: Image) -> None:
        self._abandoned = 0
        if self.state != "in sync" and self.source.newest is newest:
            self.state, self.reason = "in sync", ""

    # -- one image

    async def _push(
        self, peer: Peer, image: Image, held: Image | None, staged: tuple[bytes, bytes] | None
    ) -> bool:
        """Send the difference from `held` to `image`; True when it was acknowledged."""
        assert image.id is not None and self._reader is not None
        base = held.ordinal if held is not None else 0
        point = self._point
        resume: bytes | None = None
        old_id = held.id if held is not None and held.id is not None else b""
        quick = (
            point is not None
            and point.image.id == image.id
            and point.fresh is not None
            and point.base == (old_id or bytes(32))
            # More would be staged on the way, and resumed in the order of the catalog.
            and len(point.changed) + len(point.removed) <= SPILL_ENTRIES
        )
        if staged is not None and staged[0] == image.id:
            resume = staged[1] or None
            quick = False
        if not quick:
            self.state, self.reason = "copying", ""
        self.in_flight.add(image.id)
        fresh = point.fresh if quick and point is not None else None
        objects = ObjectReader(self.source.store, lambda: self.source.open_roots, fresh)
        reader, load = self._reader, self.source.store.load
        if quick and point is not None and point.fresh is not None:
            small = len(point.changed) <= OFFER_ENTRIES and self._weight(point, base) <= OFFER_BYTES
            changed, removed, memory = point.changed, point.removed, point.fresh
            parts = from_memory(
                changed, removed, memory, lambda p: reader.entry(p, base) if base else None, load
            )
        else:
            small = False
            parts = from_catalog(reader, load, base, image.ordinal, resume)
        verdict: asyncio.Future[Message | tuple[Message, list[bytes]]] = self._loop.create_future()
        self._verdict = verdict
        try:
            await peer.send(self._header(image, old_id, resume is not None, held))
            await self._sender(peer).send(parts, objects, offer=not small, patches=quick)
            await peer.send(ImageCommit(image.id))
            return await self._await_verdict(peer, image, verdict, base, objects)
        except Abandoned as abandoned:
            await self._abandon(abandoned)
            return False
        finally:
            self._verdict = None
            if image.id not in self._unsaved:
                self.in_flight.discard(image.id)
            await self._in_thread(objects.close)

    def _weight(self, point: Point, base: int) -> int:
        """Bytes that sending a small point without asking could cost: what is new, and whatever has a new
        name (a renamed file is all there at the target, and an offer finds that out)."""
        assert self._reader is not None
        assert point.fresh is not None
        named = [e for e in point.changed if e.content is not None]
        moved = sum(e.size for e in named if not base or self._reader.entry(e.path, base) is None)
        return max(point.fresh.new_bytes, moved)

    def _header(self, image: Image, base: bytes, resumed: bool, held: Image | None) -> ImageBegin:
        assert image.id is not None
        return ImageBegin(
            image.id,
            image.parent,
            base,
            image.incarnation,
            image.epoch,
            image.sequence,
            image.at_ns,
            image.digest,
            image.flags,
            image.entries,
            image.bytes,
            DIGEST_SCHEME,
            resumed,
            bool(base) and image.parent != base and held is not None,
        )

    def _sender(self, peer: Peer) -> Sender:
        offer, over = partial(self._offer, peer), lambda: self._verdict is not None and self._verdict.done()
        return Sender(peer, self._thread, offer, self._throttle, over)

    async def _offer(self, peer: Peer, part: Part) -> memoryview:
        bits = bytearray()
        for at in range(0, len(part.objects), IDS_PER_OFFER):
            ids = [w.id for w in part.objects[at : at + IDS_PER_OFFER]]
            self._number += 1
            _, bitmap = await self._ask(peer, Offer(self._number), Need, ids)
            bits += bitmap
        return memoryview(bits)

    async def _await_verdict(
        self,
        peer: Peer,
        image: Image,
        verdict: asyncio.Future[Message | tuple[Message, list[bytes]]],
        base: int,
        objects: ObjectReader,
    ) -> bool:
        """Wait for the target's word on the image; send again what it misses."""
        assert image.id is not None and self._reader is not None
        for _ in range(8):
            answer = await verdict
            if isinstance(answer, tuple):
                verdict = self._verdict = self._loop.create_future()
                await self._send_missing(peer, image, base, set(answer[1]), objects)
                await peer.send(ImageCommit(image.id))
                continue
            if isinstance(answer, Ack):
                if answer.id != image.id:
                    raise PeerClosed(
                        "protocol", f"{self.target} acknowledged another image than the one sent."
                    )
                await self._acknowledged(image)
                return True
            assert isinstance(answer, Refused)
            await self._refused(answer)
            return False
        raise Restart("the target keeps missing objects of an image")

    async def _refused(self, answer: Refused) -> None:
        self._down("full" if answer.code == "full" else "refused", answer.text)
        self.reachable = True
        if answer.code in ("base", "resume"):
            raise Restart(answer.text)
        await asyncio.sleep(DIGEST_WAIT if answer.code == "digest" else REFUSED_WAIT)
        raise Restart(answer.text)  # it says then what it staged of it: the rest follows, not the whole again

    async def _send_missing(
        self, peer: Peer, image: Image, base: int, missing: set[bytes], objects: ObjectReader
    ) -> None:
        """Send objects again that the target named; looks through the whole image, shared parts included."""
        reader, load = self._reader, self.source.store.load
        assert reader is not None
        parts = from_catalog(reader, load, 0, image.ordinal, None)
        while missing and (part := await self._in_thread(lambda: next(parts, None))) is not None:
            wanted = [w for w in part.objects if w.id in missing]
            missing -= {w.id for w in wanted}
            await self._sender(peer).objects(wanted, objects)

    async def _abandon(self, abandoned: Abandoned) -> None:
        """The source's bytes are not those of the image: wait for a newer one. A file that cannot be read any
        more must not hold up all the others for ever: another holder gives its bytes, or it is left out."""
        path: bytes = abandoned.args[0]
        if await mend(self.source, self.commit, path, self.target, self._heal, self._journal):
            return
        self._abandoned += 1
        self._journal(
            "push",
            f"Set {self.set_name} to {self.target}: a file changed while it was sent; a newer image follows.",
        )
        if self._abandoned >= SPOOL_AFTER and not self.source.spool:
            self.source.spool = True
            self._journal(
                "push", f"Set {self.set_name} changes faster than it is sent: new bytes are spooled."
            )
        self._news.clear()
        self.source.look_at(path)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._news.wait()
        reason = dict(await self.source.writer.submit(self.source.catalog.lost, 100_000)).get(path)
        if reason is not None and not await self._heal_path(path):
            before = self.source.newest
            await self.source.publish(self.commit.leave_out, path, self.target)
            if self.source.newest is not before:
                self._journal(
                    "source",
                    f"Set {self.set_name}: {path.decode(errors='replace')} is left out of new images, because"
                    f" {reason}; no other node has its bytes. It is taken again when it can be read.",
                )

    async def _heal_path(self, path: bytes) -> bool:
        """Fetch from other holders what the newest entry of `path` needs; True when all of it is here now."""
        newest = self.source.newest
        if newest is None or self._reader is None:
            return False
        entry = self._reader.entry(path, newest.ordinal)
        if entry is None:
            return True
        store, load = self.source.store, self.source.store.load
        wanted = await self._in_thread(
            lambda: {w.id for w in objects_of(entry, None, load) if not store.has(w.id)}
        )
        return wanted <= await self._heal(self.source.spec.uuid, wanted)

    # -- unknown cursors

    async def _reconcile(self, peer: Peer, state: SetState) -> None:
        """The target's newest image is not one of ours: find what differs and make it an image of ours (rule
        43)."""
        newest = self.source.newest
        assert newest is not None and newest.id is not None and self._reader is not None
        self.state, self.reason = "copying", "comparing with what the target holds"
        behind = state.sequence > newest.sequence or (
            state.sequence == newest.sequence and state.newest != newest.id
        )
        if behind:
            if not self.commit.rolled_back:
                why = "was set back" if not self.commit.epoch else "took the set over without it"
                self._journal(
                    "push",
                    f"Set {self.set_name}: {self.target} holds an image that this source does not know. The"
                    f" source {why}; it goes on under a new incarnation and the target keeps what it"
                    " had as a version.",
                )
            self._raised += 1
            if self._raised <= RAISED_MOST and await self.source.begin_incarnation(state.sequence) is None:
                raise Restart("an image is being captured; it is compared when that is done")
        reader = self._reader
        pinned = await self.source.writer.submit(self.commit.pin_newest, self.in_flight)
        assert pinned is not None
        newest = pinned
        behind = behind or self.commit.rolled_back

        async def ask(question: Compare | List) -> Compared | Listed:
            answer, _ = await self._ask(peer, question, Compared if isinstance(question, Compare) else Listed)
            assert isinstance(answer, Compared | Listed)
            return answer

        image = newest
        assert image.id is not None
        self._verdict = self._loop.create_future()
        objects = ObjectReader(self.source.store, lambda: self.source.open_roots, None)
        try:
            changed: list[bytes] = []
            removed: list[bytes] = []
            if state.digest != image.digest:
                changed, removed = await compare.difference(reader, image.ordinal, ask, self._in_thread)
            header = self._header(image, state.newest, False, None)
            await peer.send(replace(header, skips=not behind, flags=header.flags | COMPARED))
            parts = compare.parts(reader, image.ordinal, changed, removed, self.source.store.load)
            await self._sender(peer).send(parts, objects, offer=True, patches=False)
            await peer.send(ImageCommit(image.id))
            if await self._await_verdict(peer, image, self._verdict, 0, objects):
                raise Restart("compared and brought together")
        except Abandoned as abandoned:
            await self._abandon(abandoned)
        except LocalProtocolError as error:
            self._opened = False
            raise Restart(str(error)) from error
        finally:
            self._verdict = None
            if image.id not in self._unsaved:
                self.in_flight.discard(image.id)
            await self._in_thread(objects.close)
