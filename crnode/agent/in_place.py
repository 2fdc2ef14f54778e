"""Restoring to the original place: the source brings what it has back to what a version says.

What is there is captured first and has to be acknowledged by a target, where it is kept as a version under a
name; then only what differs is written, each path complete beside its place and renamed into it. A path that
was changed after that capture is nobody's version yet: it is left as it is and reported. Cut off in the
middle, some paths are as in the version and the others as they were; asked for again, the rest is done.

In memory are the paths of the set and the entries that differ, never contents.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from crnode.agent.restore import Args, Chosen, Progress, Restore, named, not_those, path_of
from crnode.agent.sets import RunningSource
from crnode.agent.status import advice
from crnode.agent.threads import in_thread
from crnode.capture.roots import OWN, RESTORING, OpenRoots, labels
from crnode.cluster.document import ReplicationSet
from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import open_beneath
from crnode.replicate.write import Policy, TreeWriter, fingerprint
from crnode.store.packs import is_full
from crnode.store.reader import Fingerprint, Reader
from crnode.store.store import Damaged, Missing, ObjectStore
from crnode.versions.in_place import Comparison, Plan, Written, bare
from crproto import content
from crproto.entries import DIRECTORY, FILE, Entry, Extra, link_of
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE, chunk_id
from crproto.paths import split

if TYPE_CHECKING:
    from crnode.agent.node import Agent

BATCH = 200  # files whose objects are fetched and that are written in one go
BATCH_BYTES = 64 << 20  # of such files, about: what is fetched for them is the store's until it is collected
KEEP_SECONDS = 60.0  # for a target to acknowledge what is there
CAPTURE_SECONDS = 600.0  # for what was restored to be captured
SHOWN_MOST = 1000  # paths that an answer names
KEPT = "before restore"  # how the name of what was there begins


class Skipped(Exception):
    """A path that stays as it is; the text says why."""


class Planned(NamedTuple):
    """What is to be done, and what was there when that was decided."""

    plan: Plan
    again: tuple[Entry, ...]  # folders that are right, and whose times change as something in them does
    prints: Mapping[bytes, Fingerprint | None]
    several: set[bytes]  # paths that are one name of several
    now: Mapping[bytes, Entry]  # files that are written or removed, as they are
    ordinal: int
    sequence: int
    image: bytes


NOTHING = Planned(Plan((), (), (), ()), (), {}, set(), {}, 0, 0, b"")


class InPlace:
    """Carries restores to the original place out, at the source of the set."""

    def __init__(
        self,
        agent: Agent,
        restore: Restore,
        captured: Callable[[RunningSource], Awaitable[None]],
        forward: Callable[[str, str, Args], Awaitable[Args]],
    ) -> None:
        self.agent = agent
        self.restore = restore
        self.captured = captured
        self.forward = forward
        self._under_way: set[str] = set()

    async def run(
        self, spec: ReplicationSet, args: Args, progress: Progress, *, ordered_by: str | None = None
    ) -> Args:
        """Restore; returns {"in_place", "version", "digest", "from", "written", "removed", "bytes",
        "fetched", "seconds", "skipped": [{"path", "reason"}], "verified", "kept": {"version", "name"} or
        None}. With "plan" nothing is changed, and "paths" names what would be. Raises CrnodeError.

        `ordered_by` is the node that asks, None for the owner of this node.
        """
        begun = time.monotonic()
        running = self._running(spec)
        path = path_of(args)
        if spec.uuid in self._under_way:
            raise CrnodeError(
                f"A restore of {spec.name} to its place is running already.",
                "",
                "Wait for it.",
                ExitCode.REFUSED,
            )
        if args.get("version") is None:
            raise CrnodeError(
                "Say which version to go back to.",
                f"The newest version of {spec.name} is what was there last, and may be half deleted.",
                f"Add --version or --at; see: crnode versions {spec.name}",
                ExitCode.USAGE,
            )
        self._under_way.add(spec.uuid)
        try:
            out = await self._run(running, path, args, progress, ordered_by)
        except (Missing, Damaged, RemoteProtocolError) as error:
            raise CrnodeError(
                f"Version {args['version']} of {spec.name} is damaged here.",
                f"{type(error).__name__}: {named(error)}.",
                "Run crnode scrub, then restore again, or restore another version.",
                ExitCode.DAMAGE,
            ) from error
        except OSError as error:
            if is_full(error):
                raise CrnodeError(
                    f"The disk at the place of {spec.name} became full.",
                    "What was reached is as in the version, the rest is as it was; nothing was lost.",
                    "Make room and repeat this: only what still differs is written.",
                    ExitCode.FULL,
                ) from error
            raise CrnodeError(
                f"The restore of {spec.name} to its place failed.",
                f"The system said: {error.strerror or error}. What was not reached is as it was.",
                "Mend that and repeat it: only what still differs is written.",
            ) from error
        finally:
            self._under_way.discard(spec.uuid)
        return out | {"seconds": time.monotonic() - begun}

    async def _run(
        self, running: RunningSource, path: bytes, args: Args, progress: Progress, ordered_by: str | None
    ) -> Args:
        spec = running.spec
        source = running.source
        progress({"text": "Capturing what is there"})
        try:
            if source.state != "emptied":
                await self.captured(running)
        except CrnodeError:
            if source.state != "emptied":
                raise
        emptied = source.state == "emptied"  # then what is there is less than a version
        chosen = await self.restore.choose(spec, args["version"])
        out: Args = {
            "in_place": True,
            "version": chosen.sequence,
            "time_ns": chosen.at_ns,
            "digest": chosen.digest.hex(),
            "from": chosen.holder,
            "kept": None,
        }
        async with self.restore.held(spec, chosen):
            planned = await self._plan(running, chosen, path)
            if args.get("plan"):
                return out | _described(planned.plan)
            self._check_privileges(spec, planned.plan, ordered_by)
            if planned.plan and not emptied:
                out["kept"] = await self._keep(running, planned, progress)
            done = await self._apply(running, planned, progress)
        if planned.plan:
            await self._capture(running, chosen)
            for changed in await self._wrong(running, planned.plan, done.skipped):
                done.skipped[changed] = "it was changed again while the restore ran"
            by = f" as {ordered_by} ordered" if ordered_by is not None else ""
            self.agent.journal.add(
                "restore",
                f"{spec.name} was brought back to version {chosen.sequence} at its place{by}:"
                f" {done.written} written, {done.removed} removed, {len(done.skipped)} left as they were.",
                spec.name,
            )
        return out | {
            "written": done.written,
            "removed": done.removed,
            "bytes": done.bytes,
            "fetched": done.fetched,
            "skipped": [
                {"path": os.fsdecode(p), "reason": reason}
                for p, reason in sorted(done.skipped.items())[:SHOWN_MOST]
            ],
            "verified": not done.skipped,
        }

    async def _capture(self, running: RunningSource, chosen: Chosen) -> None:
        """What was restored is captured; until then a set that was emptied counts as one."""
        try:
            async with asyncio.timeout(CAPTURE_SECONDS):
                await running.source.scan_now()
        except TimeoutError:
            name = running.spec.name
            raise CrnodeError(
                f"{name} was written as version {chosen.sequence} has it, and is not captured yet.",
                running.source.detail,
                f"See: crnode status; then: crnode sync {name}",
                ExitCode.BEHIND,
            ) from None

    async def clean(self) -> None:
        """At start: what a restore that was cut off wrote first, and is in no image, goes."""
        for running in list(self.agent.sets.sources.values()):
            spec = running.spec
            try:
                roots = await in_thread(partial(OpenRoots, labels(list(spec.paths))))
            except OSError:
                continue  # not there now: the next restore does it
            work = _Changes(spec.uuid, roots, self.agent.store, NOTHING)
            if await in_thread(work.close):
                self.agent.journal.add(
                    "restore",
                    f"A restore of {spec.name} to its place was cut off. What it reached is as in the"
                    " version; repeat it for the rest.",
                    spec.name,
                )

    def _running(self, spec: ReplicationSet) -> RunningSource:
        running = self.agent.sets.sources.get(spec.uuid)
        if running is None:
            raise CrnodeError(
                f"The files of {spec.name} are not at this node.",
                f"Its source is {spec.source}.",
                "Ask there, or restore to a new place with --to.",
                ExitCode.REFUSED,
            )
        if running.source.state == "root missing":
            detail = running.source.detail
            raise CrnodeError(
                f"The place of {spec.name} is not the one that was captured.",
                detail,
                advice(spec.name, "root missing", detail) or "Or restore to a new place with --to.",
                ExitCode.REFUSED,
            )
        return running

    def _check_privileges(self, spec: ReplicationSet, plan: Plan, ordered_by: str | None) -> None:
        """Who owns this node, and the master, may bring back whatever a version has. Another node is not
        believed about what makes somebody root here (rule 66)."""
        if ordered_by in (None, self.agent.document.master.name) or spec.privileged:
            return
        for entry in (*plan.folders, *(w.entry for w in plan.written)):
            if _privileged(entry):
                raise CrnodeError(
                    f"{os.fsdecode(entry.path) or 'Its folder'} belongs to root or has special rights.",
                    f"Only {spec.source} itself or the master bring such files back to their place.",
                    f"Run the same command at {spec.source}.",
                    ExitCode.REFUSED,
                )

    # -- what differs

    async def _plan(self, running: RunningSource, chosen: Chosen, path: bytes) -> Planned:
        spec = running.spec
        newest = running.source.newest
        if newest is None or newest.id is None:
            raise CrnodeError(f"{spec.name} was never captured.", "", "", ExitCode.REFUSED)
        newest_id = newest.id
        comparing = Comparison()
        roots = await in_thread(lambda: OpenRoots(labels(list(spec.paths))))
        with (
            contextlib.closing(_Tree(roots)) as tree,
            await in_thread(running.source.catalog.reader) as reader,
            reader.snapshot(),
        ):
            image = await in_thread(lambda: reader.image(newest_id))
            if image is None:
                raise CrnodeError(f"{spec.name} changes faster than this can be planned.", "", "Repeat it.")
            top = await in_thread(lambda: _missing_above(reader, path, image.ordinal))

            def there(path: bytes) -> Entry | None:
                """What the image has, if that is what is on the disk: of what cannot be captured, and of an
                emptied set, the image has what was there before."""
                entry = reader.entry(path, image.ordinal)
                if entry is None or not tree.holds(path, entry, reader.fingerprint(path)):
                    return None
                return entry

            def compare(page: Sequence[Entry]) -> None:
                page = [e for e in page if _within(e.path, path, top)]
                comparing.take(page, [there(e.path) for e in page])

            try:
                count = await self.restore.pages(spec, chosen, top, compare)
            except ValueError as error:
                raise not_those(spec, chosen, "It names a path twice.") from error
            if path and not count:
                raise CrnodeError(
                    f"Version {chosen.sequence} of {spec.name} has nothing at '{os.fsdecode(path)}'.",
                    "",
                    f"List what there is: crnode versions {spec.name} {os.fsdecode(path)}",
                    ExitCode.USAGE,
                )

            def plan() -> Planned:
                here = (e.path for e in reader.subtree(top, image.ordinal) if _within(e.path, path, top))
                made = comparing.plan(here)
                paths = set(made.paths())
                prints = {p: reader.fingerprint(p) for p in paths}
                folders = {e.path for e in made.folders}
                heads = {split(p)[0] for p in paths} - folders - set(made.removed) - set(made.in_the_way)
                heads = {p for p in heads if _inside(p, path)}
                again = (reader.entry(p, image.ordinal) for p in sorted(heads))
                found = [e for e in map(there, paths) if e is not None]
                return Planned(
                    made,
                    tuple(e for e in again if e is not None and e.kind == DIRECTORY),
                    prints,
                    {e.path for e in found if link_of(e) is not None},
                    {e.path: e for e in found if e.kind == FILE},
                    image.ordinal,
                    image.sequence,
                    newest_id,
                )

            return await in_thread(plan)

    # -- keeping what is there

    async def _keep(self, running: RunningSource, planned: Planned, progress: Progress) -> Args:
        """Have a target acknowledge what is there and keep it under a name. Raises CrnodeError."""
        spec = running.spec
        progress({"text": "Keeping what is there as a version"})
        name = f"{KEPT} {time.strftime('%Y-%m-%d %H.%M.%S')}"
        question = {"set": spec.name, "image": planned.image.hex(), "name": name}
        waiting = {
            target: asyncio.ensure_future(push.reached(planned.sequence))
            for target, (push, _) in running.pushes.items()
        }
        held: list[str] = []
        deadline = time.monotonic() + KEEP_SECONDS
        try:
            while not held and waiting and (left := deadline - time.monotonic()) > 0:
                await asyncio.wait(waiting.values(), timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for target in [t for t, task in waiting.items() if task.done()]:
                    waiting.pop(target).result()
                    with contextlib.suppress(CrnodeError):
                        if (await self.forward(target, "pin", question))["held"]:
                            held.append(target)
        finally:
            for task in waiting.values():
                task.cancel()
        if not held:
            raise CrnodeError(
                f"Nothing was restored: what {spec.name} has now could not be kept first.",
                "No target has acknowledged it.",
                "Start one of its targets and repeat this, or restore to a new place with --to.",
                ExitCode.UNREACHABLE,
            )
        return {"version": planned.sequence, "name": name, "nodes": held}

    # -- changing the tree

    async def _apply(self, running: RunningSource, planned: Planned, progress: Progress) -> _Changes:
        roots = await in_thread(lambda: OpenRoots(labels(list(running.spec.paths))))
        work = _Changes(running.spec.uuid, roots, self.agent.store, planned)
        try:
            await in_thread(work.begin)
            files = planned.plan.written
            at = 0
            while at < len(files):
                stop, size = at, 0
                while stop < len(files) and stop - at < BATCH and (size < BATCH_BYTES or stop == at):
                    size += files[stop].entry.size
                    stop += 1
                batch = files[at:stop]
                await in_thread(partial(work.look, batch))
                work.fetched += await self.restore.have(running.spec, [w.entry for w in batch], work.here)
                try:
                    await in_thread(partial(work.write, batch))
                except Missing:  # a file that had its bytes is another one by now
                    work.here.clear()
                    work.fetched += await self.restore.have(running.spec, [w.entry for w in batch])
                    await in_thread(partial(work.write, batch))
                at = stop
                progress({"text": f"{at} of {len(files)} files", "done": at, "total": len(files)})
            await in_thread(work.end)
        finally:
            await in_thread(work.close)
        return work

    async def _wrong(self, running: RunningSource, plan: Plan, skipped: Mapping[bytes, str]) -> list[bytes]:
        """Paths that the image which was captured after the restore has otherwise than the version."""
        newest = running.source.newest
        assert newest is not None

        def look() -> list[bytes]:
            wrong = []
            with running.source.catalog.reader() as reader:
                for entry in (*plan.folders, *(w.entry for w in plan.written)):
                    there = reader.entry(entry.path, newest.ordinal)
                    if entry.path not in skipped and (there is None or bare(there) != bare(entry)):
                        wrong.append(entry.path)
                for path in plan.removed:
                    if path not in skipped and reader.entry(path, newest.ordinal) is not None:
                        wrong.append(path)
            return wrong

        return await in_thread(look)


class _Tree:
    """The set's own folders, as they are on the disk."""

    def __init__(self, roots: OpenRoots) -> None:
        self._roots = roots
        policy = Policy(privileged=False, root=False)
        self._looking = {
            label: TreeWriter(roots.resolve(label)[0], -1, lambda _: b"", policy) for label in roots.tops()
        }

    def close(self) -> None:
        for writer in self._looking.values():
            writer.close()
        self._roots.close()

    def holds(self, path: bytes, entry: Entry, print_: Fingerprint | None) -> bool:
        """Whether what is at `path` is what `entry` was captured from."""
        label = b"" if b"" in self._looking else path.partition(b"/")[0]
        writer = self._looking.get(label)
        if writer is None:
            return False
        info = writer.lstat(self._roots.resolve(path)[1])
        if info is None or entry.kind == DIRECTORY:
            return info is not None and stat.S_ISDIR(info.st_mode)
        return print_ is not None and _unchanged(fingerprint(info), print_, several=info.st_nlink > 1)


class _Changes:
    """The work on the tree, in threads, one step at a time."""

    def __init__(self, uuid: str, roots: OpenRoots, store: ObjectStore, planned: Planned) -> None:
        self.written = 0
        self.removed = 0
        self.bytes = 0
        self.fetched = 0
        self.skipped: dict[bytes, str] = {}
        self.here: dict[bytes, tuple[bytes, int, int]] = {}  # chunk -> (path, offset, length) of the tree
        self._roots = roots
        self._store = store
        self._done: set[bytes] = set()
        self._planned = planned
        self._writers: dict[bytes, TreeWriter] = {}
        self._place = f"{os.fsdecode(OWN)}/{RESTORING}{uuid}"  # in each root, for temporaries
        self._moved = {
            e.content: e for p in planned.plan.removed if (e := planned.now.get(p)) is not None and e.content
        }
        self._open: tuple[bytes, int] | None = None

    def begin(self) -> None:
        """Make room for what comes: the folders, and nothing of another kind in their way."""
        self._clear()  # of one that was cut off
        if self._planned.plan:
            self._check_room()
            self._begin()

    def _begin(self) -> None:
        policy = Policy(privileged=True, root=os.geteuid() == 0)
        for label in self._roots.tops():
            root, _ = self._roots.resolve(label)
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.fsdecode(OWN), 0o700, dir_fd=root)
            os.mkdir(self._place, 0o700, dir_fd=root)
            temporary = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
            self._writers[label] = TreeWriter(root, temporary, self._load, policy)
        for path in self._planned.plan.in_the_way:
            self._guarded(path, partial(self._remove, path))
        for entry in self._planned.plan.folders:
            self._guarded(entry.path, partial(self._folder, entry))

    def look(self, batch: Sequence[Written]) -> None:
        """Find out which chunks of the batch lie in the tree as it is: those need not be fetched."""
        self.here.clear()
        for entry, _ in batch:
            if entry.content is None:
                continue
            for old in (self._planned.now.get(entry.path), self._moved.get(entry.content)):
                if old is not None and old.content is not None:
                    self._note(old)

    def write(self, batch: Sequence[Written]) -> None:
        """Write what of the batch is not written yet. Raises Missing."""
        for written in batch:
            if written.entry.path not in self._done:
                self._guarded(written.entry.path, partial(self._write, written))

    def end(self) -> None:
        """Remove what the version has not, and give the folders their attributes and times."""
        if not self._planned.plan:
            return
        for path in self._planned.plan.removed:
            self._guarded(path, partial(self._remove, path))
        folders = {e.path: e for e in (*self._planned.again, *self._planned.plan.folders)}
        tops = {label: folders.pop(label) for label in self._roots.tops() if label in folders}
        for entry in sorted(folders.values(), key=lambda e: (-e.path.count(b"/"), e.path)):
            self._guarded(entry.path, partial(self._finish, entry))
        self._clear()
        for entry in tops.values():
            self._guarded(entry.path, partial(self._finish, entry))
        os.sync()

    def close(self) -> bool:
        """Whatever happened: nothing of ours stays in the tree. Returns whether there was something."""
        self._shut()
        for writer in self._writers.values():
            writer.close()
            os.close(writer.temporary_fd)
        cleared = self._clear()
        self._writers.clear()
        self._roots.close()
        return cleared

    def _clear(self) -> bool:
        cleared = False
        for label in self._roots.tops():
            root, _ = self._roots.resolve(label)
            before = os.fstat(root)
            try:
                os.stat(self._place, dir_fd=root, follow_symlinks=False)
            except OSError:
                continue
            cleared = True
            shutil.rmtree(self._place, ignore_errors=True, dir_fd=root)
            with contextlib.suppress(OSError):  # another use of it
                os.rmdir(os.fsdecode(OWN), dir_fd=root)
            with contextlib.suppress(OSError):  # read-only: nothing went
                os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))
        return cleared

    def _check_room(self) -> None:
        """A file is written beside the one that it replaces, and what goes, goes last."""
        files = [w.entry for w in self._planned.plan.written]
        now = self._planned.now
        grown = sum(max(0, e.size - (now[e.path].size if e.path in now else 0)) for e in files)
        need = grown + max((e.size for e in files), default=0)
        for label in self._roots.tops():
            info = os.fstatvfs(self._roots.resolve(label)[0])
            if info.f_bavail * info.f_frsize < need:
                raise CrnodeError(
                    "Nothing was restored: there is no room at the place of the set.",
                    f"It needs {need >> 20} MiB and {info.f_bavail * info.f_frsize >> 20} MiB are free.",
                    "Make room, or restore to a new place with --to.",
                    ExitCode.FULL,
                )

    def _guarded(self, path: bytes, action: Callable[[], None]) -> None:
        """One path that cannot be changed stops nothing else; a full or failing disk does."""
        if path in self.skipped:
            return
        try:
            action()
        except Skipped as why:
            self.skipped[path] = str(why)
        except OSError as error:
            if is_full(error) or error.errno in (errno.EIO, errno.EROFS):
                raise
            self.skipped[path] = f"it cannot be changed: {os.strerror(error.errno or 0)}"

    def _at(self, path: bytes) -> tuple[TreeWriter, bytes]:
        if b"" in self._writers:
            return self._writers[b""], path
        label, _, below = path.partition(b"/")
        return self._writers[label], below

    def _check_kept(self, path: bytes) -> os.stat_result | None:
        """What is at `path` is what was kept before. Raises Skipped."""
        writer, below = self._at(path)
        info = writer.lstat(below)
        known = self._planned.prints.get(path)
        if info is None or stat.S_ISDIR(info.st_mode):
            return info
        if known is None:
            raise Skipped("something is there that the set does not cover")
        if not _unchanged(fingerprint(info), known, several=path in self._planned.several):
            raise Skipped("it was changed while the restore began")
        return info

    def _remove(self, path: bytes) -> None:
        info = self._check_kept(path)
        if info is None:
            return
        writer, below = self._at(path)
        try:
            writer.remove(below)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            raise Skipped("it holds something that stays") from error
        self.removed += 1

    def _folder(self, entry: Entry) -> None:
        writer, below = self._at(entry.path)
        if below:
            self._check_kept(entry.path)
            writer.directory(entry._replace(path=below))
        self.written += 1

    def _finish(self, entry: Entry) -> None:
        writer, below = self._at(entry.path)
        writer.finish_directory(entry._replace(path=below))

    def _write(self, written: Written) -> None:
        names = (written.entry.path, *written.others)
        for name in names:
            info = self._check_kept(name)
            if info is not None and stat.S_ISDIR(info.st_mode):
                raise Skipped("a folder that holds something that stays is in its place")
        writer, below = self._at(written.entry.path)
        others = tuple(self._at(other)[1] for other in written.others)
        make = writer.file if written.entry.kind == FILE else writer.symlink
        make(written.entry._replace(path=below), others)
        self._done.add(written.entry.path)
        self.written += len(names)
        self.bytes += written.entry.size

    # -- contents

    def _note(self, old: Entry) -> None:
        """The chunks of a file that is in the tree and whose recipe we have."""
        assert old.content is not None
        if old.level == 0:
            self.here.setdefault(old.content, (old.path, 0, old.size))
            return
        with contextlib.suppress(Missing, Damaged, RemoteProtocolError):
            for offset, length, name in content.walk(old.content, old.level, self._store.get, size=old.size):
                if name != HOLE:
                    self.here.setdefault(name, (old.path, offset, length))

    def _load(self, name: bytes) -> bytes:
        """An object, from the tree where it lies there. Raises Missing, Damaged."""
        place = self.here.get(name)
        if place is None:
            return self._store.get(name)
        if self._open is None or self._open[0] != place[0]:
            self._shut()
            root, below = self._roots.resolve(place[0])
            try:
                fd = open_beneath(root, below, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                raise Missing(name) from error
            self._open = (place[0], fd)
        data = os.pread(self._open[1], place[2], place[1])
        if chunk_id(data) != name:
            raise Missing(name)
        return data

    def _shut(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None


def _unchanged(now: Fingerprint, known: Fingerprint, *, several: bool) -> bool:
    """The time of change of a file with several names moves with each name that comes or goes."""
    return now == known or (several and now[:4] == known[:4])


def _described(plan: Plan) -> Args:
    """What a plan would do, for people."""
    removed = [*plan.in_the_way, *plan.removed]
    written = [e.path for e in plan.folders] + [p for w in plan.written for p in (w.entry.path, *w.others)]
    return {
        "plan": True,
        "written": len(written),
        "removed": len(removed),
        "bytes": sum(w.entry.size for w in plan.written),
        "paths": [
            {"path": os.fsdecode(path) or ".", "change": change}
            for change, paths in (("removed", sorted(removed)), ("written", sorted(written)))
            for path in paths[:SHOWN_MOST]
        ],
    }


def _privileged(entry: Entry) -> bool:
    if entry.mode & 0o6000 or entry.owner == "root" or (not entry.owner and entry.owner_id == 0):
        return True
    names = (name for name, _ in Extra.decode(entry.extra).xattrs) if entry.extra else ()
    return any(name.startswith((b"security.", b"trusted.")) for name in names)


def _missing_above(reader: Reader, path: bytes, ordinal: int) -> bytes:
    """The outermost of `path` and the folders on the way to it that is no folder now, else `path`."""
    parts = path.split(b"/")
    for count in range(1, len(parts)):
        above = b"/".join(parts[:count])
        entry = reader.entry(above, ordinal)
        if entry is None or entry.kind != DIRECTORY:
            return above
    return path


def _inside(path: bytes, top: bytes) -> bool:
    return not top or path == top or path.startswith(top + b"/")


def _within(path: bytes, wanted: bytes, top: bytes) -> bool:
    """Whether a path is restored with `wanted`: it is at or below it, or a folder on the way to it that is
    missing (`top` is the outermost of those)."""
    return _inside(path, wanted) or (_inside(path, top) and wanted.startswith(path + b"/"))


__all__ = ["InPlace"]
