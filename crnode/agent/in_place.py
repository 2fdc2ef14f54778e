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
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from crnode.agent.fitting import fitting
from crnode.agent.own_tree import NOTHING, Changes, OwnTree, Planned, in_use, is_database
from crnode.agent.restore import AGAIN, Args, Chosen, Progress, Restore, damaged_here, not_those, path_of
from crnode.agent.sets import RunningSource
from crnode.agent.status import advice
from crnode.agent.threads import in_thread
from crnode.capture.roots import OpenRoots, labels
from crnode.cluster.document import ReplicationSet
from crnode.errors import CrnodeError, ExitCode
from crnode.store.packs import is_full
from crnode.store.reader import Reader
from crnode.store.store import Damaged, Missing
from crnode.versions.in_place import Comparison, Plan, bare
from crnode.versions.units import base_of, data_directory_above, sides_of
from crproto.entries import DIRECTORY, FILE, Entry, Extra, link_of
from crproto.errors import RemoteProtocolError
from crproto.paths import split

if TYPE_CHECKING:
    from crnode.agent.node import Agent

BATCH = 200  # files whose objects are fetched and that are written in one go
BATCH_BYTES = 64 << 20  # of such files, about: what is fetched for them is the store's until it is collected
KEEP_SECONDS = 60.0  # for a target to acknowledge what is there
CAPTURE_SECONDS = 600.0  # for what was restored to be captured
SHOWN_MOST = 1000  # paths that an answer names
SHOWN_BYTES = 400_000  # ... and how much of it they fill: another node may have asked, in one message
KEPT = "before restore"  # how the name of what was there begins


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
        self._under_way: dict[str, asyncio.Task[Any]] = {}  # set -> who brings it back
        self._closed: dict[str, list[str]] = {}  # set -> why none may be brought back, or go on being so
        self._written: set[str] = set()  # those whose files are as in the version, and not captured yet
        self._changing: set[str] = set()  # those whose files are being written: they end at the next step

    def is_under_way(self, uuid: str) -> bool:
        """Whether a set is being brought back to a version now, and is neither that nor what it was."""
        return uuid in self._under_way

    @contextlib.contextmanager
    def closed(self, uuids: Iterable[str], why: str) -> Iterator[None]:
        """Meanwhile none of these sets is brought back to a version."""
        mine = list(uuids)
        for uuid in mine:
            self._closed.setdefault(uuid, []).append(why)
        try:
            yield
        finally:
            for uuid in mine:
                self._closed[uuid].remove(why)

    async def end(self, uuid: str) -> None:
        """Have the restore of a closed set end early, if one is under way, and wait until it has."""
        asked = None
        while (task := self._under_way.get(uuid)) is not None:
            if uuid not in self._changing and task is not asked:
                asked = task
                task.cancel()  # it waits for others, or has not begun
            await asyncio.sleep(0.02)

    def _go_on(self, spec: ReplicationSet) -> None:
        if reasons := self._closed.get(spec.uuid):
            reached = "What was reached is as in the version, the rest is as it was."
            if spec.uuid in self._written:
                reached = "All was written, and nobody has it: it becomes a version here."
            raise CrnodeError(
                f"The restore of {spec.name} to its place ended early.",
                f"{reasons[-1]} {reached}",
                "Repeat it: only what still differs is written.",
            )

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
        if reasons := self._closed.get(spec.uuid):
            raise CrnodeError(f"{spec.name} is not brought back now.", reasons[-1], "", ExitCode.REFUSED)
        if args.get("version") is None:
            raise CrnodeError(
                "Say which version to go back to.",
                f"The newest version of {spec.name} is what was there last, and may be half deleted.",
                f"Add --version or --at; see: crnode versions {spec.name}",
                ExitCode.USAGE,
            )
        me = asyncio.current_task()
        assert me is not None
        if not args.get("plan"):
            self._under_way[spec.uuid] = me
        try:
            out = await self._run(running, path, args, progress, ordered_by)
        except asyncio.CancelledError:
            if not self._closed.get(spec.uuid) or me.uncancel() > 0:
                raise  # whoever asked hung up
            self._go_on(spec)
            raise
        except (Missing, Damaged, RemoteProtocolError) as error:
            raise damaged_here(spec, str(args["version"]), error) from error
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
            if self._under_way.get(spec.uuid) is me:
                del self._under_way[spec.uuid]
            self._written.discard(spec.uuid)
        return out | {"seconds": time.monotonic() - begun}

    async def _run(
        self, running: RunningSource, path: bytes, args: Args, progress: Progress, ordered_by: str | None
    ) -> Args:
        spec = running.spec
        source = running.source
        progress({"text": "Capturing what is there"})
        try:
            if source.state != "emptied":
                async with asyncio.timeout(CAPTURE_SECONDS):
                    await self.captured(running)
        except TimeoutError:
            raise CrnodeError(
                f"Nothing was restored: what {spec.name} has now could not be captured first.",
                f"Its source is '{source.state}'. {source.detail}".strip(),
                "Mend that and repeat it, or restore to a new place with --to.",
                ExitCode.BEHIND,
            ) from None
        except CrnodeError:
            if source.state != "emptied":
                raise
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
            if not args.get("plan"):
                self._check_privileges(spec, planned.plan, ordered_by)
            planned, spared = await self._spare(running, planned)
            if args.get("plan"):
                return out | _described(planned.plan) | {"skipped": _skipped(spared)}
            if planned.plan and source.state != "emptied":  # that is less than a version
                out["kept"] = await self._keep(running, planned, progress)
            done = await self._apply(running, planned, progress)
            done.skipped |= spared
        self._written.add(spec.uuid)
        if planned.plan:
            if not path and chosen.entries <= len(spec.paths):
                source.accept()  # a version without anything was asked for
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
            "skipped": _skipped(done.skipped),
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
            work = Changes(spec.uuid, roots, self.agent.store, NOTHING)
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

    async def _spare(self, running: RunningSource, planned: Planned) -> tuple[Planned, dict[bytes, str]]:
        """The plan without the databases that somebody has open, and why their files stay: exchanged under a
        program that runs they would be damaged (rule 69). Raises CrnodeError where nothing else is left."""
        roots = await in_thread(lambda: OpenRoots(labels(list(running.spec.paths))))
        try:
            used = await in_thread(partial(in_use, roots, planned))
        finally:
            await in_thread(roots.close)
        if not used:
            return planned, {}
        folders = [path for path, is_folder in used.items() if is_folder]

        def stays(path: bytes) -> bool:
            return base_of(path) in used or any(_inside(path, folder) for folder in folders)

        plan = planned.plan
        left = plan._replace(
            folders=tuple(e for e in plan.folders if not stays(e.path)),
            written=tuple(w for w in plan.written if not any(map(stays, (w.entry.path, *w.others)))),
            removed=tuple(path for path in plan.removed if not stays(path)),
        )
        if not left or any(map(stays, plan.in_the_way)):
            raise CrnodeError(
                f"'{os.fsdecode(min(used))}' is a database that somebody has open.",
                "Exchanged under a program that runs it would be damaged. Nothing was changed.",
                "Stop that program and repeat this, or restore to a new place with --to.",
                ExitCode.REFUSED,
            )
        kept = set(plan.paths()) - set(left.paths())
        return planned._replace(plan=left), dict.fromkeys(kept, "a program has this database open")

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
            contextlib.closing(OwnTree(roots)) as tree,
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

            sides: list[bytes] = []
            folder = await in_thread(
                lambda: data_directory_above(path, lambda p: reader.entry(p, image.ordinal) is not None)
            )
            if folder is not None:
                raise _part_of(spec, path, folder)

            def compare(page: Sequence[Entry]) -> None:
                page = [e for e in page if _within(e.path, path, top)]
                comparing.take(page, [there(e.path) for e in page])
                if path and any(e.path == path and e.kind == FILE for e in page):
                    sides.extend(sides_of(path))

            def compare_side(page: Sequence[Entry]) -> None:
                page = [e for e in page if e.path in sides and e.kind == FILE]
                comparing.take(page, [there(e.path) for e in page])

            try:
                count = await self.restore.pages(spec, chosen, top, compare)
                if sides and not await self._is_database(spec, chosen, path, roots):
                    sides.clear()
                for side in sides:  # one database with it, as far as they are there (rule 69)
                    await self.restore.pages(spec, chosen, side, compare_side)
            except ValueError as error:
                raise not_those(spec, chosen, "It names a path twice.") from error
            if path and not count:
                raise CrnodeError(
                    f"Version {chosen.sequence} of {spec.name} has nothing at '{os.fsdecode(path)}'.",
                    "",
                    f"What it has: crnode ls {spec.name} --version {chosen.sequence}; where a name is:"
                    f" crnode search {spec.name} {os.fsdecode(path).rsplit('/', 1)[-1]}",
                    ExitCode.USAGE,
                )

            def plan() -> Planned:
                here = [e.path for e in reader.subtree(top, image.ordinal) if _within(e.path, path, top)]
                beside = (reader.entry(side, image.ordinal) for side in sides)
                here += [e.path for e in beside if e is not None and e.kind == FILE]
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
                    image.sequence,
                    newest_id,
                )

            return await in_thread(plan)

    async def _is_database(
        self, spec: ReplicationSet, chosen: Chosen, path: bytes, roots: OpenRoots
    ) -> bool:
        """Whether a path is a database of SQLite, or lies beside one, here or in the version."""
        here = await in_thread(partial(is_database, roots, base_of(path)))
        return here or await self.restore.is_database(spec, chosen, path)

    # -- keeping what is there

    async def _keep(self, running: RunningSource, planned: Planned, progress: Progress) -> Args:
        """Have a target acknowledge what is there and keep it under a name. Raises CrnodeError."""
        spec = running.spec
        progress({"text": "Keeping what is there as a version"})
        name = f"{KEPT} {time.strftime('%Y-%m-%d %H.%M.%S')}"
        # A target that has taken further images meanwhile may have thinned this one. Those will do: only
        # paths that are still as they were planned are changed, and those are in them as well.
        question = {
            "set": spec.name,
            "image": planned.image.hex(),
            "name": name,
            "or_after": planned.sequence,
        }
        waiting = {
            target: asyncio.ensure_future(push.reached(planned.sequence))
            for target, (push, _) in running.pushes.items()
        }
        held: dict[str, int] = {}
        said: list[str] = []
        deadline = time.monotonic() + KEEP_SECONDS
        try:
            while not held and waiting and (left := deadline - time.monotonic()) > 0:
                await asyncio.wait(waiting.values(), timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for target in [t for t, task in waiting.items() if task.done()]:
                    waiting.pop(target).result()
                    try:
                        answer = await self.forward(target, "pin", question)
                    except CrnodeError as error:
                        said.append(f"{target}: {error}")
                        continue
                    if answer["held"]:
                        held[target] = int(answer["version"])
        finally:
            for task in waiting.values():
                task.cancel()
        if not held:
            raise CrnodeError(
                f"Nothing was restored: what {spec.name} has now could not be kept first.",
                " ".join(said) or "No target has acknowledged it.",
                "Start one of its targets and repeat this, or restore to a new place with --to.",
                ExitCode.UNREACHABLE,
            )
        return {"version": next(iter(held.values())), "name": name, "nodes": list(held)}

    # -- changing the tree

    async def _apply(self, running: RunningSource, planned: Planned, progress: Progress) -> Changes:
        roots = await in_thread(lambda: OpenRoots(labels(list(running.spec.paths))))
        work = Changes(running.spec.uuid, roots, self.agent.store, planned)
        try:
            files = planned.plan.written
            large = [w.entry for w in files if w.entry.level]
            work.allocated = await self.restore.allocated(running.spec, large)
            self._go_on(running.spec)
            await self._change(running.spec, work.begin)
            at = 0
            while at < len(files):
                self._go_on(running.spec)
                stop, size = at, 0
                while stop < len(files) and stop - at < BATCH and (size < BATCH_BYTES or stop == at):
                    size += files[stop].entry.size
                    stop += 1
                batch = files[at:stop]
                await in_thread(partial(work.look, batch))
                entries = [w.entry for w in batch]
                with self.agent.healer.spared():
                    work.fetched += await self.restore.have(running.spec, entries, work.here)
                    for left in reversed(range(AGAIN)):
                        try:
                            await self._change(running.spec, partial(work.write, batch))
                            break
                        except Missing:  # a file that had its bytes is another one; or a collection took it
                            if not left:
                                raise
                            work.here.clear()
                            work.fetched += await self.restore.have(running.spec, entries)
                at = stop
                progress({"text": f"{at} of {len(files)} files", "done": at, "total": len(files)})
            self._go_on(running.spec)
            await self._change(running.spec, work.end)
        finally:
            await self._change(running.spec, work.close)
        return work

    async def _change(self, spec: ReplicationSet, work: Callable[[], object]) -> None:
        """A step that changes files, which is not cut off by another node's takeover."""
        self._changing.add(spec.uuid)
        try:
            await in_thread(work)
        finally:
            self._changing.discard(spec.uuid)

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


def _skipped(left: Mapping[bytes, str]) -> list[Args]:
    """What is left as it is, and why, for people: as many as an answer holds."""
    rows = [{"path": os.fsdecode(p), "reason": reason} for p, reason in sorted(left.items())[:SHOWN_MOST]]
    return fitting(rows, SHOWN_BYTES)[0]


def _described(plan: Plan) -> Args:
    """What a plan would do, for people."""
    removed = [*plan.in_the_way, *plan.removed]
    written = [e.path for e in plan.folders] + [p for w in plan.written for p in (w.entry.path, *w.others)]
    rows: list[Args] = [
        {"path": os.fsdecode(path) or ".", "change": change}
        for change, paths in (("removed", sorted(removed)), ("written", sorted(written)))
        for path in paths[:SHOWN_MOST]
    ]
    return {
        "plan": True,
        "written": len(written),
        "removed": len(removed),
        "bytes": sum(w.entry.size for w in plan.written),
        "paths": fitting(rows, SHOWN_BYTES)[0],
    }


def _privileged(entry: Entry) -> bool:
    if entry.mode & 0o6000 or entry.owner == "root" or (not entry.owner and entry.owner_id == 0):
        return True
    names = (name for name, _ in Extra.decode(entry.extra).xattrs) if entry.extra else ()
    return any(name.startswith((b"security.", b"trusted.")) for name in names)


def _part_of(spec: ReplicationSet, path: bytes, folder: bytes) -> CrnodeError:
    place = f"{spec.name}:{os.fsdecode(folder)}" if folder else spec.name
    return CrnodeError(
        f"'{os.fsdecode(path)}' is part of the database in '{os.fsdecode(folder) or spec.name}'.",
        "Its files fit together only as they were at one time.",
        f"Bring all of it back: crnode restore {place} --in-place; or look at that file with --to.",
        ExitCode.REFUSED,
    )


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
