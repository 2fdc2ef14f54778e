"""The sets of a node as the cluster document has them: started, changed and stopped while everything else
runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import apsw

from crnode.agent import remaking
from crnode.agent.known import KnownCatalogs
from crnode.agent.passing import FileOutOfReach, passes
from crnode.capture.commit import Point, SourceCommit
from crnode.capture.read import Fresh
from crnode.capture.source import SourceSet
from crnode.cluster.document import ClusterDocument, Mode, ReplicationSet
from crnode.cluster.keep import Rung
from crnode.cluster.node_file import NodeFile
from crnode.errors import CrnodeError, ExitCode
from crnode.net.peer import Peer
from crnode.replicate import turn
from crnode.replicate.commit import TargetCommit, live_roots
from crnode.replicate.group import GroupFeed, Member
from crnode.replicate.place import Place, Prepared, locate, prepare, release
from crnode.replicate.push import Push
from crnode.replicate.receive import TargetSet
from crnode.store import manifest
from crnode.store.catalog import (
    Catalog,
    CatalogDamaged,
    CatalogOutOfReach,
    is_blank,
    is_damage,
    lies_beside,
    out_of_reach,
)
from crnode.store.packs import StoreFailed
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer
from crnode.versions.retention import ladder_of

log = logging.getLogger(__name__)
Journal = Callable[..., None]

SYSTEM_PLACES = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/root/.ssh",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
)
"""Where a live tree goes only if the node's own file allows it by name."""


@dataclass
class RunningSource:
    """A set whose source this node is."""

    spec: ReplicationSet
    source: SourceSet
    commit: SourceCommit
    task: asyncio.Task[None]
    pushes: dict[str, tuple[Push, asyncio.Task[None]]] = field(default_factory=dict)
    moves: bool = False  # with the lease


@dataclass
class RunningTarget:
    """A set that this node receives."""

    spec: ReplicationSet
    target: TargetSet
    commit: TargetCommit
    task: asyncio.Task[None]
    feed: GroupFeed | None = None  # of a group: what makes its images here
    feeding: asyncio.Task[None] | None = None


class Sets:
    """Keeps what runs equal to what the document says. `apply` is called with each new document."""

    def __init__(
        self,
        data: Path,
        node: NodeFile,
        store: ObjectStore,
        writer: Writer,
        *,
        dial: Callable[[str], Awaitable[Peer]],
        heal: Callable[[str, set[bytes]], Awaitable[set[bytes]]],
        journal: Journal,
        now_ns: Callable[[], int],
        crashed: Callable[[BaseException], None],
        doubted: Callable[[], None],
        damaged: Callable[[str, BaseException], None] | None = None,
        later: Callable[[], None] = lambda: None,
        doubtful: Callable[[str], None] = lambda _: None,
        kept: Callable[[ReplicationSet, str], tuple[Rung, ...] | None] = ReplicationSet.kept_at,
    ) -> None:
        self.data = data
        self.kept = kept  # which rungs are in force at a node, whoever is the source now
        self.node = node
        self.store = store
        self.known = KnownCatalogs(store.directory)
        self.writer = writer
        self.dial = dial
        self.heal = heal
        self.journal = journal
        self.now_ns = now_ns
        self.crashed = crashed
        self.doubted = doubted
        self.damaged = damaged or (lambda _, error: crashed(error))
        self.later = later
        self.doubtful = doubtful
        self.sources: dict[str, RunningSource] = {}
        self.targets: dict[str, RunningTarget] = {}
        self.catalogs: dict[str, Catalog] = {}
        self.epochs: dict[str, int] = {}  # of the sets that move: the epoch in which their source is active
        self.readers_roots: dict[str, set[int]] = {}  # ordinals that running restores of a set read
        self.bundled: dict[str, dict[str, set[int]]] = {}  # set -> group -> ordinals that it is made of
        self._sourced: set[str] = set()  # sets whose source this node is: they have no versions to salvage
        self.refused: dict[str, str] = {}  # sets that cannot run here, and why
        self.returning: set[asyncio.Task[None]] = set()  # tasks that let sets go on which they stopped
        self._halted: set[str] = set()  # sets of which a task ended by what passes: they start again
        self._turn = asyncio.Lock()

    # -- the document

    async def apply(self, document: ClusterDocument, epochs: Mapping[str, int] | None = None) -> None:
        """Start what is new, stop what is gone, change what changed; sets that are alike are not touched.
        `epochs`: uuid -> the epoch of whoever is its source, for the sets that move (0: nobody took them
        over yet)."""
        async with self._turn:
            self.epochs = dict(epochs or {})
            mine = {s.uuid: s for s in document.sets_from(self.node.name)}
            theirs = {s.uuid: s for s in document.sets_to(self.node.name)}
            self._sourced = mine.keys() - self.epochs.keys()
            halted, self._halted = self._halted, set()
            for uuid in [u for u in self.sources if u not in mine or u in halted]:
                await self._stop_source(uuid)
            for uuid in [u for u in self.targets if u not in theirs or u in halted]:
                await self._stop_target(uuid, removed=uuid not in theirs and uuid not in mine)
            for spec in mine.values():
                await self._guarded(spec, partial(self._source, spec))
            for spec in sorted(theirs.values(), key=lambda spec: bool(spec.members)):  # groups come last
                await self._guarded(spec, partial(self._target, spec))
            for running in self.targets.values():
                if running.feed is not None:
                    running.feed.look()
            await self._forget_removed(document)
            known = mine.keys() | theirs.keys()
            for uuid in [u for u in self.refused if u not in known]:
                del self.refused[uuid]

    async def settled(self) -> None:
        """Return when no document is being put into force."""
        async with self._turn:
            return

    async def _forget_removed(self, document: ClusterDocument) -> None:
        """Drop the catalogs of sets that were removed long enough ago; a collection then frees their
        objects. Live trees stay: they are the user's files (rule 47)."""
        alive = {spec.uuid for spec in document.sets}
        for stone in document.tombstones:
            path = self._path(stone.uuid)
            if (
                stone.kind != "set"
                or stone.uuid in alive
                or stone.keep_until_ns > self.now_ns()
                or not path.exists()
            ):
                continue
            await self.writer.submit(self._close_catalog, stone.uuid)
            self.known.note(stone.uuid, there=False)
            try:
                _delete_catalog(path)
            except OSError as error:  # with the next document
                self.journal("set", f"Set {stone.name}: {FileOutOfReach.of(error)}", stone.name)
                continue
            self.journal("set", f"The versions of the removed set {stone.name} were given up.", stone.name)

    async def _guarded(self, spec: ReplicationSet, start: Callable[[], Awaitable[None]]) -> None:
        """A set that cannot run here does not stop the others; its status says why."""
        try:
            await self._started(spec, start)
            self.refused.pop(spec.uuid, None)
        except CrnodeError as error:
            self._refuse(spec.uuid, spec.name, error)
        except OSError as error:
            self._refuse(spec.uuid, spec.name, FileOutOfReach.of(error))
        except RuntimeError as error:  # of pathlib, for links that lead in a circle
            hint = "Look where its links lead, and mend them."
            told = CrnodeError("One of its folders cannot be found.", f"{error}.", hint)
            self._refuse(spec.uuid, spec.name, told)
            self.later()

    def _refuse(self, uuid: str, name: str, error: CrnodeError) -> None:
        if self.refused.get(uuid) != str(error):
            self.journal("set", f"Set {name} cannot run here: {error}", name)
        self.refused[uuid] = str(error)
        if passes(error):
            self.later()

    async def _started(self, spec: ReplicationSet, start: Callable[[], Awaitable[None]]) -> None:
        """Start a set. A catalog that shows damage which opening it did not show is made again once; who
        meets damage then as well waits. Raises CrnodeError."""
        path = self._path(spec.uuid)
        try:
            await start()
            return
        except (CatalogDamaged, apsw.Error) as error:
            if lies_beside(error):
                raise out_of_reach(path, error) from error
            why = str(error)
        try:
            await self._make_again(spec.uuid, why)
            await start()
        except (CatalogDamaged, apsw.Error) as again:
            if lies_beside(again):
                raise out_of_reach(path, again) from again
            raise CrnodeError(
                f"The catalog of set {spec.name} is damaged.",
                f"It was made again and is damaged once more: {again}.",
                "Look at the disk that the data directory is on, then start the agent again.",
            ) from again

    def _task(self, work: Awaitable[None], what: str, spec: ReplicationSet) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        task.set_name(f"{what} of {spec.name}")

        def ended(done: asyncio.Task[None]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                if is_damage(error):
                    self.damaged(spec.uuid, error)
                elif isinstance(error, CrnodeError) and passes(error):
                    self._halted.add(spec.uuid)
                    self._refuse(spec.uuid, spec.name, error)
                elif isinstance(error, StoreFailed):
                    self.crashed(error)
                else:
                    self._defect(spec, what, error)

        task.add_done_callback(ended)
        return task

    def _defect(self, spec: ReplicationSet, what: str, error: BaseException) -> None:
        """Something of one set ended as nobody foresaw. What the set has in memory is trusted no more: it is
        begun anew after a while, and the other sets go on."""
        log.error("the %s of set %s ended by a defect", what, spec.name, exc_info=error)
        told = CrnodeError(
            f"A defect of crnode ended its {what} ({type(error).__name__}: {error}).",
            "Nothing is lost, and the other sets go on; it is tried again each minute.",
            "Please report it with what the agent's log says.",
        )
        if (source := self.sources.get(spec.uuid)) is not None:
            source.source.state, source.source.detail = "defect", str(told)
        if (target := self.targets.get(spec.uuid)) is not None:
            target.target.status.live = str(told)
        self._halted.add(spec.uuid)
        self._refuse(spec.uuid, spec.name, told)
        self.later()

    def _path(self, uuid: str) -> Path:
        return self.data / "sets" / f"{uuid}.db"

    async def catalog(self, uuid: str) -> Catalog:
        """The open catalog of a set. One that is damaged is set aside and made again, and so is one that was
        there and is gone: an empty one in its place would say that there never were any versions."""
        if uuid not in self.catalogs:
            path = self._path(uuid)
            if await self.writer.submit(self._is_lost, path, uuid):
                await self._set_aside(uuid, "")
            else:
                try:
                    self.catalogs[uuid] = await self.writer.submit(self._open, uuid)
                except CatalogDamaged as error:
                    await self._set_aside(uuid, str(error))
            await self._take_in(uuid)
        return self.catalogs[uuid]

    def _open(self, uuid: str) -> Catalog:
        catalog = Catalog(self._path(uuid), bytes.fromhex(uuid))
        remaking.keep(catalog.path)  # killed in the instant after it had been put in place
        self.known.note(uuid)
        return catalog

    async def _take_in(self, uuid: str) -> None:
        """A catalog that was opened just now is not used before it was compared with the store."""
        try:
            await self._compare_with_store(self.catalogs[uuid])
        except Exception:
            await self.writer.submit(self._close_catalog, uuid)
            raise

    def _is_lost(self, path: Path, uuid: str) -> bool:
        """Whether there is no catalog although there was one: a set that is new here has left no trace."""
        if not is_blank(path):
            return False
        if uuid in self.known.names() or remaking.begun(path):
            return True
        return manifest.is_logged(manifest.log_path(self.store), bytes.fromhex(uuid))

    async def _compare_with_store(self, catalog: Catalog) -> None:
        """Note whether the store is the one that this catalog was written with (rule 32). A doubt is told
        also when whoever waits for this goes away."""
        doubted = partial(asyncio.get_running_loop().call_soon_threadsafe, self.doubted)

        def look() -> None:
            mark = catalog.meta("store")
            # What was lost while this set did not run, it has not been asked for yet.
            known = mark is not None and self.store.holds(mark) and not self.store.in_doubt
            catalog.suspect = not known and catalog.newest() is not None
            if catalog.suspect:
                doubted()
            if catalog.suspect and mark is not None:
                # A store put back from an older copy grows, and soon looks like the one that it was.
                with catalog.transaction():
                    catalog.set_meta("store", None)

        await self.writer.submit(look)

    async def _set_aside(self, uuid: str, why: str) -> None:
        """Make the catalog again; `why` it cannot be used, '' when it is gone. What is left of it stays."""
        path, sourced = self._path(uuid), uuid in self._sourced
        tell = partial(asyncio.get_running_loop().call_soon_threadsafe, self.journal, "damage")

        def work() -> None:
            name, now_ns = bytes.fromhex(uuid), self.now_ns()
            tell(remaking.make_again(path, name, self.store, why, now_ns, sourced=sourced))

        await self.writer.submit(work)
        self.catalogs[uuid] = await self.writer.submit(self._open, uuid)

    async def _make_again(self, uuid: str, why: str) -> None:
        if uuid in self.sources:
            await self._stop_source(uuid)
        if uuid in self.targets:
            await self._stop_target(uuid, removed=False)
        await self.writer.submit(self._close_catalog, uuid)
        await self._set_aside(uuid, why)
        await self._take_in(uuid)

    async def start_over(self, uuid: str, why: str, found: Catalog | None = None) -> bool:
        """Stop a set whose catalog turned out to be damaged and make that again; the next :meth:`apply`
        starts the set. False when another one is in the place of `found`: somebody else had it made again."""
        async with self._turn:
            if found is not None and self.catalogs.get(uuid, found) is not found:
                return False
            await self._make_again(uuid, why)
            return True

    # -- sources

    async def _source(self, spec: ReplicationSet) -> None:
        running = self.sources.get(spec.uuid)
        moves = spec.uuid in self.epochs
        if running is not None and _same_source(running.spec, spec) and running.moves == moves:
            running.commit.epoch = self.epochs.get(spec.uuid, 0)
            running.commit.ladder = ladder_of(self.kept(spec, self.node.name)) if moves else None
            await self._pushes(running, spec)
            return
        if running is not None:
            await self._stop_source(spec.uuid)
        self._check_source(spec)
        catalog = await self.catalog(spec.uuid)
        running_pushes: dict[str, tuple[Push, asyncio.Task[None]]] = {}
        if moves:
            await self.writer.submit(turn.note_source, catalog)
        commit = await self.writer.submit(
            self.source_commit,
            catalog,
            spec,
            lambda: {i for push, _ in list(running_pushes.values()) for i in list(push.in_flight)},
        )

        def on_point(point: Point) -> None:
            for push, _ in running_pushes.values():
                push.announce(point)
            if moves:
                self._image_came(spec.name)

        def on_staged(fresh: Fresh) -> None:
            for push, _ in running_pushes.values():
                push.send_ahead(fresh)

        source = SourceSet(
            spec,
            catalog,
            self.store,
            self.writer,
            commit,
            cookie_dir=self.data / "cookies" / spec.uuid,
            seed=self.node.hash_seed,
            now_ns=self.now_ns,
            on_point=on_point,
            on_staged=on_staged,
            journal=lambda kind, text: self.journal(kind, text, spec.name),
        )
        source.spool = moves  # its versions stay here, and with them their bytes
        if not self.store.recovery.unclean_boot:
            # After a power cut the disk may not hold what was captured: then nothing is pushed before a full
            # scan has said what is there (rule 60).
            source.newest = await self.writer.submit(catalog.newest)
        running = RunningSource(
            spec, source, commit, self._task(source.run(), "source", spec), running_pushes, moves
        )
        self.sources[spec.uuid] = running
        await self._pushes(running, spec)

    def source_commit(
        self, catalog: Catalog, spec: ReplicationSet, in_flight: Callable[[], set[bytes]] = set
    ) -> SourceCommit:
        """What makes images of a set whose source this node is, or is about to be; in the writer thread."""
        moves = spec.uuid in self.epochs
        roots = self.readers_roots.setdefault(spec.uuid, set())

        def retained() -> set[int]:
            out = roots.union(*self.bundled.get(spec.uuid, {}).values())
            running = self.targets.get(spec.uuid)
            if moves and catalog.meta(turn.WAS_SOURCE) is None:  # it has a live tree yet, which goes by rows
                out |= live_roots(catalog)
                if running is not None and running.commit.syncing is not None:
                    out.add(running.commit.syncing)
            return out

        return SourceCommit(
            catalog,
            self.store,
            bytes.fromhex(self.node.incarnation),
            self.epochs.get(spec.uuid, 0),
            len(spec.paths),
            self.now_ns,
            in_flight,
            ladder=ladder_of(self.kept(spec, self.node.name)) if moves else None,
            retain_roots=retained,
        )

    def check_new_source(self, spec: ReplicationSet) -> None:
        """Refuse a set whose paths cannot be protected on this node. Raises CrnodeError."""
        for text in spec.paths:
            if not Path(text).is_dir():
                raise CrnodeError(
                    f"The path {text} is not a directory on {self.node.name}.",
                    "It does not exist, or it is a file.",
                    "Create it first, or name the directory that holds the file.",
                    ExitCode.REFUSED,
                )
        self._check_source(spec)

    def _check_source(self, spec: ReplicationSet) -> None:
        for text in spec.paths:
            path = Path(text).resolve()
            if _inside(path, self.data.resolve()) or _inside(self.data.resolve(), path):
                raise CrnodeError(
                    f"The path {text} and the data directory {self.data} lie in one another.",
                    "crnode would copy its own files for ever.",
                    "Move the data directory, or protect the folders beside it one by one.",
                    ExitCode.REFUSED,
                )
            for other in self.targets.values():
                place = self.destination(other.spec).resolve()
                if _inside(path, place) or _inside(place, path):
                    raise CrnodeError(
                        f"The path {text} and the destination {place} of set {other.spec.name} lie in one"
                        f" another.",
                        "A copy would be copied again.",
                        "Choose another path or destination.",
                        ExitCode.REFUSED,
                    )

    async def _pushes(self, running: RunningSource, spec: ReplicationSet) -> None:
        running.spec = spec
        running.source.spec = spec
        for name in [n for n in running.pushes if n not in spec.targets]:
            await _cancel(running.pushes[name][1])
            await self.writer.submit(running.commit.forget, name)
            del running.pushes[name]
        for name, target in spec.targets.items():
            if target.paused:
                if name in running.pushes:
                    await _cancel(running.pushes.pop(name)[1])
                continue
            if name in running.pushes:
                continue
            push = Push(
                running.source,
                running.commit,
                name,
                self.dial,
                set_name=spec.name,
                term=spec.term,
                throttle=target.throttle_bytes_s,
                heal=self.heal,
                journal=lambda kind, text: self.journal(kind, text, spec.name),
            )
            if running.source.newest is not None:
                push.lag.made(running.source.newest.sequence, asyncio.get_running_loop().time())
            running.pushes[name] = (push, self._task(push.run(), f"push to {name}", spec))

    async def _stop_source(self, uuid: str) -> None:
        running = self.sources.pop(uuid)
        for _, task in running.pushes.values():
            await _cancel(task)
        await _cancel(running.task)

    # -- targets

    def destination(self, spec: ReplicationSet) -> Path:
        """Where the set's live tree is on this node."""
        named = spec.targets[self.node.name].destination
        return Path(named) if named is not None else self.data / "trees" / spec.name

    async def _target(self, spec: ReplicationSet) -> None:
        running = self.targets.get(spec.uuid)
        ladder = ladder_of(self.kept(spec, self.node.name))
        if running is not None and _same_target(running.spec, spec, self.node.name):
            other_brake = running.spec.brake_percent != spec.brake_percent
            running.spec = running.target.spec = spec
            running.commit.ladder = ladder
            if other_brake:
                running.target.judge_again()
            return
        if running is not None:
            await self._stop_target(spec.uuid, removed=False)
        self._check_target(spec)
        catalog = await self.catalog(spec.uuid)
        target = spec.targets[self.node.name]
        roots = self.readers_roots.setdefault(spec.uuid, set())
        commit = TargetCommit(
            catalog,
            self.store,
            archive=target.mode is Mode.ARCHIVE,
            ladder=ladder,
            now_ns=self.now_ns,
            retain_roots=lambda: roots.union(*self.bundled.get(spec.uuid, {}).values()),
        )
        destination, uuid = self.destination(spec), bytes.fromhex(spec.uuid)
        await self.writer.submit(turn.to_target, catalog, destination)

        def make_place(before: Prepared | None, adopt: bool) -> tuple[Place, bool]:
            return prepare(destination, uuid, before, adopt=adopt)

        here = TargetSet(
            spec,
            target,
            catalog,
            self.store,
            self.writer,
            commit,
            make_place,
            destination,
            heal=self.heal,
            journal=lambda kind, text: self.journal(kind, text, spec.name),
            root=os.geteuid() == 0,
            doubtful=partial(self.doubtful, spec.uuid),
        )
        running = RunningTarget(spec, here, commit, self._task(here.run(), "target", spec))
        self.targets[spec.uuid] = running
        if spec.members:
            self._feed(running)
        else:
            here.on_image = partial(self._image_came, spec.name)

    def _feed(self, running: RunningTarget) -> None:
        """Make the images of a group here, out of what its members' targets have."""
        spec = running.spec

        def spare(member: str, ordinals: set[int]) -> None:
            self.bundled.setdefault(member, {})[spec.uuid] = ordinals

        running.feed = GroupFeed(
            spec,
            running.target,
            running.commit,
            self.writer,
            lambda: self.members(spec),
            incarnation=bytes.fromhex(self.node.incarnation),
            spare=spare,
            heal=self.heal,
            journal=lambda kind, text: self.journal(kind, text, spec.name),
        )
        running.feeding = self._task(running.feed.run(), "bundling", spec)

    def members(self, spec: ReplicationSet) -> list[Member]:
        """The members of a group that run here. The source of a set that moves has versions and their bytes,
        as a target has."""
        here = [(r.spec, r.target.catalog) for r in self.targets.values()]
        here += [(r.spec, r.source.catalog) for r in self.sources.values() if r.moves]
        return [Member(one.name, one.uuid, catalog) for one, catalog in here if one.name in spec.members]

    def _image_came(self, name: str) -> None:
        for running in self.targets.values():
            if running.feed is not None and name in running.spec.members:
                running.feed.look()

    def _check_target(self, spec: ReplicationSet) -> None:
        place = self.destination(spec).resolve()
        trees = (self.data / "trees").resolve()
        data = self.data.resolve()
        if (_inside(place, data) or _inside(data, place)) and not (_inside(place, trees) and place != trees):
            raise CrnodeError(
                f"The destination {place} and the data directory {self.data} lie in one another.",
                "A mirror would delete the node's own files.",
                "Choose a destination outside the data directory.",
                ExitCode.REFUSED,
            )
        self.check_allowed(place)
        others = [
            (r.spec.name, self.destination(r.spec).resolve())
            for r in self.targets.values()
            if r.spec.uuid != spec.uuid
        ]
        others += [(r.spec.name, Path(p).resolve()) for r in self.sources.values() for p in r.spec.paths]
        for name, other in others:
            if _inside(place, other) or _inside(other, place):
                raise CrnodeError(
                    f"The destination {place} overlaps {other} of set {name}.",
                    "Two sets in one place would delete each other's files.",
                    "Choose another destination.",
                    ExitCode.REFUSED,
                )

    def check_allowed(self, place: Path) -> None:
        """The node, not the cluster, decides where foreign files may lie on it. Raises CrnodeError."""
        if (self.data / "trees").resolve() in place.parents:
            return
        allowed = self.node.destinations
        if allowed and not any(_inside(place, Path(text).resolve()) for text in allowed):
            raise CrnodeError(
                f"The destination {place} is outside what this node allows.",
                f"It allows: {', '.join(allowed)}.",
                f"Choose a destination there, or change 'destinations' in {self.data / 'node.json'}.",
                ExitCode.REFUSED,
            )
        system = next((s for s in SYSTEM_PLACES if _inside(place, Path(s)) or place == Path("/")), None)
        if system is not None and not allowed:
            raise CrnodeError(
                f"The destination {place} is one of the system's own places ({system}).",
                "A mirror there could stop the machine from starting.",
                "Choose another destination, or allow this one by 'destinations' in"
                f" {self.data / 'node.json'} on this node.",
                ExitCode.REFUSED,
            )

    async def _stop_target(self, uuid: str, *, removed: bool) -> None:
        running = self.targets.pop(uuid)
        await running.target.close_session("The set was changed or removed.")
        if running.feeding is not None:
            await _cancel(running.feeding)
        for groups in self.bundled.values():
            groups.pop(uuid, None)
        await _cancel(running.task)
        if removed:
            with contextlib.suppress(OSError):
                release(locate(self.destination_of(running), bytes.fromhex(uuid)))

    def destination_of(self, running: RunningTarget) -> Path:
        """The destination of a set that may have left the document."""
        named = running.target.target.destination
        return Path(named) if named is not None else self.data / "trees" / running.spec.name

    async def close(self) -> None:
        """Stop everything and close the catalogs."""
        async with self._turn:
            for uuid in list(self.sources):
                await self._stop_source(uuid)
            for uuid in list(self.targets):
                await self._stop_target(uuid, removed=False)
            for uuid in list(self.catalogs):
                await self.writer.submit(self._close_catalog, uuid)

    def _close_catalog(self, uuid: str) -> None:
        """In the writer thread, so that housekeeping never meets a closed one."""
        catalog = self.catalogs.pop(uuid, None)
        if catalog is not None:
            _close(catalog)

    def keep_house(self) -> None:
        """Between jobs of the writer thread: checkpoints, and pruning that commits left over. Raises
        CatalogDamaged, but no set waits for what is wrong with another; what is out of reach has time."""
        damaged: CatalogDamaged | None = None
        jobs: list[tuple[Catalog, Callable[[], object]]] = []
        for catalog in list(self.catalogs.values()):
            catalog.check_there()
            jobs.append((catalog, catalog.checkpoint))
        jobs += [(r.commit.catalog, partial(r.commit.thin, 500)) for r in list(self.targets.values())]
        for catalog, work in jobs:
            try:
                work()
            except CatalogOutOfReach:
                continue
            except (CatalogDamaged, apsw.Error) as error:
                if not is_damage(error):
                    raise
                damaged = CatalogDamaged(catalog.path, str(error))
                damaged.__cause__ = error.__cause__ if isinstance(error, CatalogDamaged) else error
        if damaged is not None:
            raise damaged


def _close(catalog: Catalog) -> None:
    try:
        catalog.checkpoint()
    except apsw.Error as error:  # a damaged one is closed as well
        if not is_damage(error):
            raise
    finally:
        catalog.close()


def _delete_catalog(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])  # how it ended was told when it did


def _inside(path: Path, other: Path) -> bool:
    return path == other or other in path.parents


def _same_source(old: ReplicationSet, new: ReplicationSet) -> bool:
    """Whether capture can go on as it is; targets, and what they keep, may differ."""
    aside: dict[str, object] = {"targets": {}, "keep": None, "brake_percent": 0}
    return old.model_copy(update=aside) == new.model_copy(update=aside)


def _same_target(old: ReplicationSet, new: ReplicationSet, node: str) -> bool:
    return (
        old.targets[node].model_copy(update={"keep": new.targets[node].keep}) == new.targets[node]
        and old.privileged == new.privileged
        and old.name == new.name
        and old.members == new.members
    )
