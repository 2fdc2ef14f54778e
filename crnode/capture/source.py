"""The source side of one set: watches its trees, decides when to take a point, commits images.

One asyncio task a set; reading happens in the set's capture thread, commits in the writer thread. The order
of durable steps is the commit protocol's (s1 to s4): recipes durable, then the catalog transaction, then
targets hear.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from crnode.capture import scan
from crnode.capture.commit import EmptiedSet, Point, SourceCommit
from crnode.capture.guard import WAIT_SECONDS, RotGuard
from crnode.capture.job import Batch, Job, watch_tree
from crnode.capture.openers import has_writer
from crnode.capture.read import Fresh, Gone, Patch, PathReader, Unreadable, fingerprint_of
from crnode.capture.restless import Restless
from crnode.capture.roots import OpenRoots, OwnPlaces, Selection, labels
from crnode.capture.rot import Stretch, Verdict
from crnode.capture.scanning import Scanning, any_folder, scan_set
from crnode.capture.settle import Change, Settle
from crnode.capture.thread import in_pool
from crnode.capture.unsure import ROOTS, unsure, why_not
from crnode.capture.watch import Watcher, WatchLimit
from crnode.errors import CrnodeError, ExitCode
from crnode.store.catalog import Catalog
from crnode.store.reader import CLEAN, CRASH, FUZZY, ROLLING, STAGING, Image, Reader
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer

if TYPE_CHECKING:
    from crnode.cluster.document import ReplicationSet

T = TypeVar("T")

ROUNDS = 3  # paths that change while a point is read are read again this often (rule 53)
RECONCILE_SECONDS = 600.0  # stat scan at idle priority; each sixth is the promised hourly one
POLL_SECONDS = 1.0  # recently changed files are looked at by stat this often (rule 54)
POLL_WINDOW_NS = 3600 * 10**9
POLL_MOST = 2000
LOST_MOST = 100_000
AGAIN_MOST = 5  # points in a row that look at a folder again whose rows do not make a tree
ROOT_RETRY_SECONDS = 2.0
FULL_RETRY_SECONDS = 5.0
EMPTIED_SECONDS = 3.0  # an emptied set is scanned this often, to see whether its files are back
SCAN_ONLY_SECONDS = 10.0  # without watches a set is scanned this often
COOKIE_SECONDS = 5.0
HELD_BYTES = 64 << 20  # new bytes kept in memory for the targets of one set
PART_BYTES = 4 << 20  # of a large image, that go ahead while the rest is still read


class SourceSet:
    """See the module's text. Points are announced through `on_point`, and what a part of a large image has
    read through `on_staged`."""

    def __init__(
        self,
        spec: ReplicationSet,
        catalog: Catalog,
        store: ObjectStore,
        writer: Writer,
        commit: SourceCommit,
        *,
        cookie_dir: Path,
        seed: int,
        now_ns: Callable[[], int],
        on_point: Callable[[Point], None],
        on_staged: Callable[[Fresh], None] = lambda _: None,
        journal: Callable[[str, str], None],
        rot_wait: float = WAIT_SECONDS,
        writers: Callable[[int], bool | None] = has_writer,
    ) -> None:
        self.spec = spec
        self.catalog = catalog
        self.store = store
        self.writer = writer
        self.commit = commit
        self.seed = seed
        self.now_ns = now_ns
        self.on_point = on_point
        self.on_staged = on_staged
        self.journal = journal
        self.cookie_dir = cookie_dir
        self.state = "starting"
        self.detail = ""
        self.watch_kind = "scan"
        self.newest: Image | None = None
        self.lost: list[tuple[bytes, str]] = []
        self.spool = False  # keep new bytes in our own store until targets have them (rule 55)
        self.found_by_scan = 0
        self._settle = Settle(spec.settle_ms * 1_000_000, spec.max_wait_ms * 1_000_000)
        self._thread = ThreadPoolExecutor(1, f"capture-{spec.name}")
        self._wake = asyncio.Event()
        self._scan_wanted = True
        self._scan_alone = True  # nothing else may be captured before it
        self._watched_now = False  # every directory got its watch, and no event was lost since
        self._losses = 0  # times that events were lost
        self._scan_reason = "start"
        self._scanning: Scanning | None = None  # one that runs beside
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._scans_asked = 0
        self._scans_done = 0
        self._recent: OrderedDict[bytes, int] = OrderedDict()
        self._roots: OpenRoots | None = None
        self._watcher: Watcher | None = None
        self._paths: PathReader | None = None
        self._reader: Reader | None = None
        self._selection = Selection(list(spec.include), list(spec.exclude), list(spec.page_files))
        self._loop = asyncio.get_running_loop()
        self._accepts = self._accepts_done = 0  # how often a person accepted the source as it is
        self._rolling = False
        self._view = 0  # ordinal that captures compare with
        self._staged = False  # whether that is an image in the making
        self._next_look = 0.0
        self._next_reconcile = 0.0
        # Paths whose newest entry is fuzzy: no image is clean while there are any. Their fingerprints match
        # nothing, so that they are read again each second, and by the first scan after a restart.
        self._fuzzy: set[bytes] = set()
        self._emptied = False  # an image that would empty the set waits for a person
        self._after_crash = store.recovery.unclean_boot
        self.guard = RotGuard(store.load, now_ns, rot_wait, writers)
        self._restless = Restless(store.load)
        self._repeated: Counter[bytes] = Counter()  # folders looked at again, and how many points in a row
        self._judged = asyncio.Event()  # a point was taken: whatever was suspected may be known

    # -- asked from outside

    async def scan_now(self) -> None:
        """Scan the whole set and return when everything written before the call is in a committed image.

        Waits as long as the source cannot capture (missing root, full disk): callers put a time limit on it.
        """
        self._scans_asked += 1
        done: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append((self._scans_asked, done))
        self._want_scan("asked for", beside=True)
        await done

    @property
    def open_roots(self) -> OpenRoots | None:
        """The roots while they are there, for reading what a target lacks."""
        return self._roots

    def look_at(self, path: bytes) -> None:
        """Somebody found that `path` is not what its entry says: capture it again."""
        self._settle.note(path, Change.DONE, self._now())
        self._wake.set()

    async def examine(self, path: bytes, places: Sequence[int] = ()) -> tuple[Stretch, ...] | None:
        """The stretches of `path` that are damaged or suspected to be (rule 58), of those at offsets `places`
        if any are given; None when there is nothing of the kind and :meth:`look_at` is what helps."""
        roots, reader = self._roots, self._reader
        if roots is None or reader is None:
            return None
        return await self.guard.examine(self._in_thread, roots, reader, self._view, path, places)

    async def certain(self, path: bytes) -> bool:
        """Wait until it is known whether a suspected file is damaged or was changed; True for damage."""
        while self.guard.suspicions.verdict(path) is Verdict.WAIT:
            self._judged.clear()
            await self._judged.wait()
        return self.guard.suspicions.verdict(path) is Verdict.DAMAGE

    async def begin_incarnation(self, sequence: int) -> Image | None:
        """This source was set back (rule 43): go on under a new identity; returns its first image, whose
        number is greater than `sequence`."""
        point = await self.writer.submit(self.commit.begin_incarnation, sequence)
        if point is None:
            return None
        self.newest = point.image
        self._view = point.image.ordinal
        self.on_point(point)
        self._want_scan("the source was set back")
        return point.image

    async def publish(self, make: Callable[..., Point | None], *args: object) -> None:
        """Let the writer make an image otherwise than by a capture, and tell the pushes of it."""
        point = await self.writer.submit(make, *args)
        if point is not None:
            self.newest = point.image
            self._view = point.image.ordinal
            self.on_point(point)

    def accept(self) -> None:
        """A person says that the source is right as it is: a new root, or an emptied one (rule 59)."""
        self._accepts += 1
        self._want_scan("accepted by a person")

    @property
    def _accept(self) -> bool:
        """Whether what a person accepted was not yet seen by a whole scan that began after they did."""
        return self._accepts > self._accepts_done

    def _want_scan(self, reason: str, *, beside: bool = False) -> None:
        self._scan_wanted = True
        self._scan_alone = self._scan_alone or not beside
        self._scan_reason = reason
        self._wake.set()

    # -- life

    async def run(self) -> None:
        """Capture until cancelled. Whatever goes wrong with the source is a state and is tried again."""
        try:
            while True:
                try:
                    await self._session()
                except CrnodeError as error:
                    await self._give_up_spool()
                    self._set_state("full" if error.exit_code == ExitCode.FULL else "waiting", str(error))
                    await asyncio.sleep(FULL_RETRY_SECONDS)
                except OSError as error:
                    self._set_state("waiting", f"The source cannot be read: {error.strerror or error}.")
                    await asyncio.sleep(FULL_RETRY_SECONDS)
                finally:
                    await self._close_session()
        finally:
            await self._close_session()
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _give_up_spool(self) -> None:
        """Over the node's own quota the spool is what goes first (rule 40)."""
        if self.spool and self.store.room.over_quota():
            self.spool = False
            await self.writer.submit(self.commit.give_up_spool)
            self.journal(
                "full",
                f"Set {self.spec.name}: the node's quota is used up, so bytes that no target has yet are"
                " given up; their image is abandoned and the newest state is captured again.",
            )

    def _set_state(self, state: str, detail: str = "") -> None:
        if (state, detail) != (self.state, self.detail) and state not in ("ok", "scanning", "capturing"):
            self.journal("source", f"Set {self.spec.name}: {state}. {detail}".strip())
        if self._emptied and state in ("scanning", "capturing"):
            return  # what a person has to see stays to be seen
        self.state, self.detail = state, detail

    async def _close_session(self) -> None:
        scanning, self._scanning = self._scanning, None
        if self._watcher is not None:
            self._loop.remove_reader(self._watcher.fd)
            self._watcher.close()
            self._watcher = None
        paths, roots, self._paths, self._roots = self._paths, self._roots, None, None

        def close() -> None:
            if paths is not None:
                paths.close()
            if roots is not None:
                roots.close()

        self._thread.submit(close)  # behind whatever the thread is still doing with them
        if scanning is not None:
            await scanning.cancel()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await in_pool(self._thread, work)

    async def _session(self) -> None:
        """Watch and capture until the root goes away."""
        if not await self._open_roots():
            await asyncio.sleep(ROOT_RETRY_SECONDS)
            return
        roots = self._roots
        assert roots is not None
        if self._reader is None:
            self._reader = await self._in_thread(self.catalog.reader)
        self._paths = PathReader(
            roots,
            self.store.load,
            self._reader.blocks,
            self.seed,
            self._selection.pages,
            self.spec.file_size_limit,
            self.now_ns,
            HELD_BYTES // 4,
            OwnPlaces(self.spec.uuid),
        )
        await self._look()
        await self._start_watching()
        self._want_scan(self._scan_reason if self._scan_wanted else "start")
        self._next_reconcile = self._loop.time() + RECONCILE_SECONDS
        next_poll = self._loop.time() + POLL_SECONDS
        while True:
            if roots.gone():
                self._set_state("root missing", "A path of the set is not mounted or was replaced.")
                return
            now = self._loop.time()
            if now >= self._next_reconcile:
                self._want_scan("reconcile", beside=True)
                self._next_reconcile = now + (RECONCILE_SECONDS if self._watcher else SCAN_ONLY_SECONDS)
            if now >= next_poll:
                await self._poll()
                next_poll = now + POLL_SECONDS
            if self._scanning is not None and self._emptied:
                # What it saw while files vanished is half a truth: only a whole scan says what is left.
                scanning, self._scanning = self._scanning, None
                await scanning.cancel()
                self._want_scan("emptied")
            if self._scanning is not None and self._scanning.done:
                await self._scanned_beside()
            elif self._scan_wanted and not self._scans_beside():
                await self._scan()
            elif self._scan_wanted and self._scanning is None:
                await self._scan_beside()
            elif self._emptied:
                # One path alone would be a half truth: only whole scans say whether the files are back.
                self._settle.take(self._now())
                if now >= self._next_look:
                    self._next_look = now + EMPTIED_SECONDS
                    self._want_scan("emptied")
            elif self._due_in() <= 0:
                await self._point(())
            self._wake.clear()
            if self._may_sleep():
                wait = min(self._due_in(), min(next_poll, self._next_reconcile) - self._loop.time())
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes as it is woken.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(wait, 0)):
                        await self._wake.wait()

    def _may_sleep(self) -> bool:
        """Whether there is nothing to do until something happens."""
        if self._scanning is not None:
            return (
                not self._scanning.done
                and self._due_in() > 0
                and (not self._scan_wanted or self._scans_beside())
            )
        return not self._scan_wanted and self._due_in() > 0

    def _due_in(self) -> float:
        due = self._settle.due()
        return 3600.0 if due is None else (due - self._now()) / 1e9

    def _now(self) -> int:
        return int(self._loop.time() * 1e9)

    # -- the root

    async def _open_roots(self) -> bool:
        """Open the set's paths if they are the ones that were captured before (rule 59)."""
        doubted = not self._accept and await self.writer.submit(unsure, self.catalog)
        try:
            roots = OpenRoots(labels(list(self.spec.paths)))
        except OSError as error:
            self._set_state("root missing", f"{error.filename or self.spec.paths}: {error.strerror}.")
            return False
        if doubted and (why := why_not(self.spec.name, roots)):
            roots.close()
            self._set_state("root missing", why)
            return False
        here = {label.decode("utf-8", "surrogateescape"): name for label, name in roots.identities().items()}
        held = await self.writer.submit(self.catalog.meta, ROOTS)
        if held is not None and json.loads(held) != here and not self._accept:
            roots.close()
            self._set_state(
                "root missing",
                "The path leads to another file system or directory than the one that was captured. Mount"
                " the right one,"
                f" or accept this one with: crnode set rebase {self.spec.name}",
            )
            return False
        if held is None or json.loads(held) != here:
            await self.writer.submit(self.commit.save_meta, ROOTS, json.dumps(here).encode())
        self._roots = roots
        return True

    # -- watching

    async def _start_watching(self) -> None:
        assert self._roots is not None and self._paths is not None
        try:
            watcher = Watcher(self.cookie_dir, self._changed, self._events_lost)
        except WatchLimit as limit:
            self._no_watches(str(limit))
            return
        self._watcher = watcher
        self._loop.add_reader(watcher.fd, self._readable)
        self._set_state("scanning", "adding watches")
        self._watched_now = True  # until events are lost, which may be at once
        if await self._watch_all(watcher):
            self.watch_kind = "inotify"

    async def _watch_all(self, watcher: Watcher) -> bool:
        """Watch every directory of the set, those included that appeared while nobody told; False when the
        kernel has no watches left."""
        assert self._roots is not None and self._paths is not None
        paths, tops = self._paths, self._roots.tops()
        try:
            await self._in_thread(
                lambda: sum(watch_tree(paths, watcher, self._selection.takes, t) for t in tops)
            )
        except WatchLimit as limit:
            self._no_watches(str(limit))
            return False
        return True

    def _no_watches(self, sysctl: str) -> None:
        if self._watcher is not None:
            self._loop.remove_reader(self._watcher.fd)
            self._watcher.close()
            self._watcher = None
        self.watch_kind = "scan"
        self._next_reconcile = self._loop.time() + SCAN_ONLY_SECONDS
        self.journal(
            "source",
            f"Set {self.spec.name}: the kernel has no watches left, so it is scanned every"
            f" {SCAN_ONLY_SECONDS:.0f} s."
            f" Raise {sysctl}: sysctl -w {sysctl}=1048576",
        )

    def _readable(self) -> None:
        if self._watcher is not None:
            self._watcher.read()
            if self._settle.due() is not None:
                self._wake.set()

    def _changed(self, path: bytes, change: Change) -> None:
        if change is Change.WRITTEN:
            self.guard.written(path)
        self._settle.note(path, change, self._now())

    def _events_lost(self, reason: str) -> None:
        self.journal("source", f"Set {self.spec.name}: {reason}; it is scanned.")
        self._watched_now = False
        self._losses += 1
        self._want_scan(reason)

    async def _poll(self) -> None:
        """Look at recently changed files by stat: writes through mmap make no event (rule 54)."""
        for path in self.guard.due():
            self._settle.note(path, Change.DONE, self._now())
        horizon = self.now_ns() - POLL_WINDOW_NS
        while self._recent and (len(self._recent) > POLL_MOST or next(iter(self._recent.values())) < horizon):
            self._recent.popitem(last=False)
        if self._reader is None or self._paths is None or self._roots is None:
            return
        reader, paths, roots, names = self._reader, self._paths, self._roots, list(self._recent)

        def differing() -> list[bytes]:
            now = time.monotonic()
            self._restless.step(roots, reader, now)
            paths.mapped = self._restless.mapped
            out = self._restless.changed(roots, reader, self._view, now)
            for path in out:  # somebody who may write it did: no damage, whoever has it open by now
                self.guard.written(path)
            for path in {*names, *self._restless.open}:
                try:
                    if fingerprint_of(paths.stat(path)) != reader.fingerprint(path):
                        out.append(path)
                except (Gone, Unreadable):
                    continue  # a change that matters makes an event, or is found by the next scan
            paths.close()
            return out

        for path in await self._in_thread(differing):
            self._settle.note(path, Change.DONE, self._now())

    async def _cookie(self) -> None:
        """Return when every event made before the call has been noted (rule 53)."""
        if self._watcher is None:
            return
        met: asyncio.Future[None] = self._loop.create_future()

        def seen() -> None:
            if not met.done():
                met.set_result(None)

        self._watcher.cookie(seen)
        try:
            async with asyncio.timeout(COOKIE_SECONDS):
                await met
        except TimeoutError:
            self._events_lost("the watcher fell behind")

    # -- points

    def _scans_beside(self) -> bool:
        """Whether the scan that is wanted may run while points go on being taken: events have told everything
        so far as is known, so that a point taken meanwhile is whole without it."""
        return not (
            self._scan_alone
            or self._watcher is None
            or self.newest is None
            or self._staged
            or self._emptied
            or self._accept
            or self.state != "ok"
        )

    async def _scan(self) -> None:
        """Compare the whole set with the newest image in a process of its own and capture what differs,
        before anything else is captured."""
        serving, reason, accepts = self._scans_asked, self._scan_reason, self._accepts
        self._scan_wanted = self._scan_alone = False
        if self._scanning is not None:
            scanning, self._scanning = self._scanning, None
            await scanning.cancel()
        self._set_state("scanning", reason)
        if self._watcher is not None and not self._watched_now:
            # Events were lost, and with them those of new directories.
            await self._watch_all(self._watcher)
        self._watched_now = False
        await self._cookie()
        await self._scanned(await scan_set(self._scan_request()), serving, reason)
        if self.state == "ok":
            self._accepts_done = accepts

    async def _scan_beside(self) -> None:
        """The same, while points are taken: a million files take seconds, and a change is not to wait for
        them."""
        self._scan_wanted = False
        await self._cookie()
        self._scanning = Scanning(self._scan_request(), self._scans_asked, self._scan_reason, self._wake.set)

    async def _scanned_beside(self) -> None:
        scanning, self._scanning = self._scanning, None
        assert scanning is not None and self._paths is not None
        dirty = await scanning.result()
        await self._cookie()
        scanning.note(self._settle.noted())
        found = scanning.unannounced(dirty)
        # One that cannot be taken has no entry, and is found by every scan.
        paths = self._paths
        cannot = {path for path, _ in await self.writer.submit(self.catalog.lost, LOST_MOST)}
        folders = await self._in_thread(lambda: any_folder(paths, (p for p in found if p not in cannot)))
        if folders:
            self._want_scan("a folder changed without an event")  # it may be one that nobody watches
        await self._scanned(dirty, scanning.serving, scanning.reason, len(found))

    async def _scanned(self, dirty: list[bytes], serving: int, reason: str, found: int | None = None) -> None:
        """Capture what a scan found; `found` of it without an event (default: all)."""
        found = len(dirty) if found is None else found
        if found and reason == "reconcile":
            self.found_by_scan += found
            self.journal(
                "source",
                f"Set {self.spec.name}: the reconcile scan found {found} changes without events.",
            )
        # What could not be taken has no entry that a scan would compare: it is looked at again here.
        dirty += [path for path, _ in await self.writer.submit(self.catalog.lost, LOST_MOST)]
        await self._point((path, False) for path in dirty)
        self._scans_done = serving
        if self.newest is None and self.state == "ok":  # nothing was pushed before this scan: rule 60
            image = await self.writer.submit(self.catalog.newest)
            if image is not None:
                self.newest = image
                self.on_point(Point(image, image.parent))
        if self.state == "ok":
            ready = [w for w in self._waiters if w[0] <= serving]
            self._waiters = [w for w in self._waiters if w[0] > serving]
            for _, done in ready:
                if not done.done():
                    done.set_result(None)
        self._waiters = [w for w in self._waiters if not w[1].done()]
        if self.state != "ok" and self._waiters:
            await asyncio.sleep(0.2)
            self._want_scan(reason)

    def _scan_request(self) -> str:
        return scan.encode_request(
            list(self.spec.paths),
            list(self.spec.include),
            list(self.spec.exclude),
            self.catalog.path,
            self._view,
            self.spec.uuid,
        )

    async def _look(self) -> None:
        """Learn from the catalog what to compare with: the staged image that is being resumed, else the
        newest."""
        image = await self.writer.submit(lambda: self.catalog.staging() or self.catalog.newest())
        self._view = image.ordinal if image is not None else 0
        self._staged = image is not None and image.state == STAGING
        newest = await self.writer.submit(self.catalog.newest)
        self._rolling = newest is not None and bool(newest.flags & ROLLING)
        self.lost = await self.writer.submit(self.catalog.lost)

    async def _point(self, extra: Iterable[tuple[bytes, bool]]) -> None:
        """Take one point: read what is ready, and what changed meanwhile, and commit an image of it."""
        self.store.check_room()
        await self._cookie()
        paths, reader = self._paths, self._reader
        assert paths is not None
        assert reader is not None
        paths.spill, paths.spill_bytes = (
            (self._spill, paths.budget) if self.spool else (self._hand_over, PART_BYTES)
        )
        job = Job(paths, reader, self._view, self._selection, self._watcher, self.guard)
        todo: list[tuple[bytes, bool]] = [*extra, *self._settle.take(self._now()).items()]
        flags, losses = CLEAN, self._losses
        try:
            for round_ in range(ROUNDS + 1):
                if self._scanning is not None:
                    self._scanning.note(path for path, _ in todo)
                for path, _ in todo[:POLL_MOST]:
                    self._recent[path] = self.now_ns()
                    self._recent.move_to_end(path)
                await self._read(job, todo)
                await self._cookie()
                todo = list(self._settle.take(self._now()).items())
                if not todo:
                    break
                if round_ == ROUNDS:
                    for path, tree in todo:
                        self._settle.note(path, Change.TREE if tree else Change.DONE, self._now())
                    flags = ROLLING
            for path in job.left:
                self._settle.note(path, Change.WRITTEN, self._now())
            if self._settle.waiting() or self._losses != losses:
                flags = ROLLING
        finally:
            paths.close()
        batch = job.flush()
        if batch.fresh.held >= PART_BYTES // 4:
            self.on_staged(batch.fresh)  # it travels while the image is made
        await self._finish(batch, flags)
        self._judged.set()
        for text in self.guard.tell():
            self.journal("damage", f"Set {self.spec.name}: {text}")
        if job.limit is not None:
            self._no_watches(job.limit)
            self._want_scan("watches ran out")

    def _spill(self, chunks: dict[bytes, bytes], patches: dict[bytes, Patch]) -> None:
        """In the capture thread of a spooling set: waiting here is what slows the reader down to the disk."""
        self.writer.submit_from_thread(self.commit.spool, dict(chunks)).result()
        self._hand_over(chunks, patches)

    def _hand_over(self, chunks: dict[bytes, bytes], patches: dict[bytes, Patch]) -> None:
        """In the capture thread, in the midst of a large file: what was read goes ahead while the rest is
        still read. What no link takes now is read again by the image's own push."""
        alike = {name: patches[name] for name in chunks if name in patches}
        fresh = Fresh(chunks, alike, held=sum(map(len, chunks.values())))
        self._loop.call_soon_threadsafe(self.on_staged, fresh)

    async def _read(self, job: Job, todo: list[tuple[bytes, bool]]) -> None:
        """Drive the job; batches that are full become staged rows."""
        batches = job.run(todo)
        while (batch := await self._in_thread(lambda: next(batches, None))) is not None:
            self._note_fuzzy(batch)
            if batch.empty():
                await self.writer.submit(self.commit.note, batch, self.spool)
                continue
            self._set_state("capturing", "a first or large image is being taken")
            self._view = await self.writer.submit(self.commit.stage, batch, self.spool)
            self._staged = True
            job.staged(self._view)
            self.on_staged(batch.fresh)

    def _note_fuzzy(self, batch: Batch) -> None:
        self._fuzzy -= batch.prints.keys()
        self._fuzzy |= batch.fuzzy

    async def _finish(self, batch: Batch, flags: int) -> None:
        self._note_fuzzy(batch)
        if self._fuzzy:
            flags = flags & ~CLEAN | FUZZY
        if self._after_crash:
            flags |= CRASH
        # A rolling image is always followed by a clean one, so that deletions it could not confirm are
        # confirmed.
        confirm = self._rolling and bool(flags & CLEAN)
        lost = bool(batch.lost)
        try:
            point = await self.writer.submit(
                self.commit.finish, batch, flags, self._staged, confirm, self._accept, self.spool
            )
        except EmptiedSet as emptied:
            self._emptied = True
            self._set_state("emptied", str(emptied).replace("NAME", self.spec.name))
            return
        self._staged = False
        # Without an image too: a set that is as it was before it was emptied is as it was. While it is
        # emptied only whole scans come here.
        self._emptied = False
        if point is not None:
            self._after_crash = False
            self._rolling = bool(point.image.flags & ROLLING)
            self.newest = point.image
            self._view = point.image.ordinal
            self.on_point(point)
            self._repeated = Counter({path: self._repeated[path] + 1 for path in point.again})
            for path, times in self._repeated.items():
                if times <= AGAIN_MOST:  # else the next scan comes to it
                    self._settle.note(path, Change.TREE, self._now())
        if lost:
            self.lost = await self.writer.submit(self.catalog.lost)
        self._set_state("ok")
