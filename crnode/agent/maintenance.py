"""Collection, scrub and manifests: what a node does when it is idle, or when somebody asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import apsw

from crnode.agent import deep, remaking
from crnode.agent.audit import Audit
from crnode.agent.inventory import Report, Stocktaker
from crnode.agent.passing import FileOutOfReach
from crnode.errors import CrnodeError, ExitCode
from crnode.store import manifest
from crnode.store.catalog import Catalog, CatalogDamaged
from crnode.store.child import ChildFailed
from crnode.store.collect import CatalogRef, Collected, Outcome, collect, last_collected
from crnode.store.inventory import Lacking, forget_garbage
from crnode.store.reader import OPEN
from crnode.store.scrub import scrub
from crnode.versions.retention import candidates, retain

if TYPE_CHECKING:
    from crnode.agent.node import Agent

Args = dict[str, Any]
Progress = Callable[[Args], None]

CHECK_SECONDS = 60.0
RELIEF_SECONDS = 60.0  # a full disk is swept at most this often: nothing new is dead before
MINIMUM_BYTES = 64 << 20  # below it no collection starts by itself
DEAD_SHARE = 0.15  # of the packs' bytes, estimated dead: an idle node collects
DEAD_SHARE_BUSY = 0.5  # the same for a node that is never idle
GROWN_SHARE = 0.05  # since the last collection; without it another one would find the same
AGE_NS = 24 * 3600 * 10**9  # after which pruned rows alone are reason enough
FAILURES = (CrnodeError, ChildFailed, CatalogDamaged, apsw.Error, OSError)
"""What a piece of background work may meet without being wrong itself: a full disk, a child that was killed,
a damaged catalog or one that was closed under it, a lack of descriptors. It is told and tried again."""
HEAL_ROUNDS = 3  # a healed recipe shows what is damaged below it


def worth_collecting(
    total: int, last: Collected | None, pruned_rows: int, now_ns: int, *, idle: bool
) -> bool:
    """Whether to collect: `total` bytes of packs now, of which what was not marked by the last collection may
    be dead; `pruned_rows` since the process began."""
    if total < MINIMUM_BYTES:
        return False
    last = last or Collected()
    grown = total - last.total
    dead = total - last.live
    if dead > (DEAD_SHARE if idle else DEAD_SHARE_BUSY) * total and grown >= GROWN_SHARE * total:
        return True
    return idle and pruned_rows > 0 and now_ns - last.at_ns >= AGE_NS


class Maintenance:
    """Looks after one agent's store. One collection or scrub runs at a time."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.audit = Audit(agent)
        self.inventory = Stocktaker(agent, self)
        self._busy = ""
        self._relieved = -RELIEF_SECONDS
        self._total = -1
        self._written: dict[str, float] = {}  # set -> monotonic seconds of its last manifest

    @contextlib.contextmanager
    def _turn(self, what: str) -> Iterator[None]:
        if self._busy:
            raise CrnodeError(
                f"{self._busy} is running on {self.agent.node.name}.",
                "It and another one would be in each other's way.",
                "Wait until it has ended.",
                ExitCode.REFUSED,
            )
        self._busy = what
        try:
            yield
        except ChildFailed as error:
            raise CrnodeError(
                f"{what} ended early.", str(error), "Nothing was lost. Try it again."
            ) from error
        finally:
            self._busy = ""

    @property
    def busy(self) -> bool:
        """Whether a collection or a scrub is running."""
        return bool(self._busy)

    def catalogs(self) -> list[CatalogRef]:
        """Every catalog in the data directory, running or not: what any of them reaches is live."""
        document, name = self.agent.document, self.agent.node.name
        out = []
        for path in sorted((self.agent.data / "sets").glob("*.db")):
            spec = document.set_by_uuid(path.stem)
            moves = path.stem in self.agent.sets.epochs  # then versions are kept at the source as well
            source = spec is not None and spec.source == name and not moves
            targets = tuple(spec.targets) if spec is not None and source else ()
            held = self.agent.sets.catalogs.get(path.stem)
            out.append(CatalogRef(path.stem, path, source, targets, held, removed=spec is None))
        return out

    async def _roots(self) -> list[CatalogRef]:
        """All that a collection marks from: the catalogs, and before them what was set aside and waits to be
        made a catalog again, so that one that is put in place meanwhile is met in any case. Raises
        CrnodeError where what waits is not whole: its write-ahead log could not be renamed."""
        agent = self.agent
        uuids = [spec.uuid for spec in agent.document.sets_to(agent.node.name)]
        paths = [agent.data / "sets" / f"{uuid}.db" for uuid in uuids]

        def wait() -> list[CatalogRef]:
            return [CatalogRef(p.stem, left) for p in paths if not p.exists() for left in remaking.begun(p)]

        try:
            waiting = await agent.writer.submit(wait)
        except OSError as error:
            raise FileOutOfReach.of(error) from error
        return waiting + self.catalogs()

    def _waiting_manifests(self) -> list[tuple[bytes, int]]:
        """Manifests of sets whose catalog was lost or set aside: their images are live until somebody rebuilt
        them, or removed the catalog that was set aside."""
        place = self.agent.data / "sets"
        aside = self._aside()
        for spec in self.agent.document.sets_to(self.agent.node.name):
            if not (place / f"{spec.uuid}.db").exists():
                aside.add(spec.uuid)
        if not aside:
            return []
        lines = manifest.read_log(manifest.log_path(self.agent.store))
        return [(line.content, line.level) for line in lines if line.set.hex() in aside]

    def _aside(self) -> set[str]:
        """Sets of which a catalog was set aside, whether it was made again or not."""
        return {one.uuid for one in remaking.asides(self.agent.data / "sets") if not one.part}

    # -- collection

    async def collect(self, args: Args, progress: Progress) -> Args:
        """Give room back. `plan`: only say what would be done."""
        with self._turn("A collection"):
            out = await self._collect(bool(args.get("plan")), progress)
        return {
            "packs": out.packs, "removed_bytes": out.removed_bytes, "copied_bytes": out.copied_bytes,
            "kept_bytes": out.kept_bytes, "seconds": out.seconds, "hole": out.hole(), "full": out.full,
        }  # fmt: skip

    async def _collect(self, plan: bool, progress: Progress) -> Outcome:
        agent = self.agent
        begun = time.monotonic()
        if not plan:
            # The log alone must not bring back what a collection takes. A full disk may not take the new log.
            with contextlib.suppress(OSError, apsw.Error):
                await agent.writer.submit(self._forget_pruned, await asyncio.to_thread(self._aside))
        for _ in range(HEAL_ROUNDS):
            roots = await self._roots()
            manifests = await asyncio.to_thread(self._waiting_manifests)
            out = await collect(
                agent.store,
                agent.writer,
                roots,
                progress,
                plan=plan,
                manifests=manifests,
                in_flight=self._in_flight,
            )
            if plan or not out.holes or not await self._heal_holes(out, progress):
                break
        out.seconds = time.monotonic() - begun
        if (hole := out.hole()) is not None and not plan:
            agent.journal.add("damage", f"Nothing was collected: {hole['what']}")
        elif not plan and out.removed_bytes:
            agent.journal.add("store", f"{out.removed_bytes >> 20} MiB of the object store were given back.")
        if out.damaged:
            agent.journal.add(
                "damage", f"{len(out.damaged)} damaged objects were met while collecting; scrub heals them."
            )
        return out

    def _in_flight(self) -> int | None:
        born = [running.target.in_flight() for running in self.agent.sets.targets.values()]
        born.append(self.agent.healer.born())
        return min((number for number in born if number is not None), default=None)

    async def _heal_holes(self, out: Outcome, progress: Progress) -> bool:
        """Fetch the recipes that are missing; True when at least one hole is closed."""
        progress({"text": f"{len(out.holes)} recipes are missing; other nodes are asked"})
        wanted: dict[str, set[bytes]] = {}
        for gone in out.holes:
            wanted.setdefault(gone.set, set()).add(gone.id)
        got: set[bytes] = set()
        for uuid, ids in wanted.items():
            got |= await self.agent.healer.heal(uuid, ids)
        lost = {(g.set, g.manifest) for g in out.holes if g.manifest is not None and g.id not in got}
        for uuid, name in lost:
            catalog = self.agent.sets.catalogs.get(uuid)
            if catalog is not None and name is not None:
                await self.agent.writer.submit(_clear_manifest, catalog, name)
        return bool(got or lost)

    # -- a full disk

    async def relieve(self) -> Args | None:
        """The node is full: give the reserve up, collect, and take the reserve again. None when it was done a
        moment ago or something else of the kind is running."""
        if self._busy or time.monotonic() - self._relieved < RELIEF_SECONDS:
            return None
        self._relieved = time.monotonic()
        store, writer = self.agent.store, self.agent.writer
        await writer.submit(store.drop_ballast)
        try:
            answer = await self.collect({}, lambda _: None)
        finally:
            await writer.submit(store.hold_ballast)
        freed = int(answer["removed_bytes"])
        self.agent.journal.add("full", f"The disk is full; collecting gave {freed >> 20} MiB back.")
        return answer

    # -- scrub

    async def scrub(self, args: Args, progress: Progress) -> Args:
        """Read everything, heal what is damaged. `set`: report what it needs; `bytes_per_second`: pace."""
        only: str | None = None
        if args.get("set"):
            only = self.agent.document.need_set(str(args["set"])).uuid
        with self._turn("A scrub"):
            agent = self.agent
            pace = int(args.get("bytes_per_second") or 0)
            begun = time.monotonic()
            found = await scrub(agent.store, agent.writer, progress, bytes_per_second=pace)
            if found.damaged:
                self.inventory.look_again()  # each minute, should this attempt end early
            report = await self.inventory.run(progress)
            garbage = await self.forget_garbage(report)
            self.audit.read(agent.store.packs.numbers(), time.time_ns())
            files = await self._files(only, pace, progress)
            live = await self._live(only, pace, progress)
            catalogs: list[str] = []
            for uuid in [u for u in list(agent.sets.catalogs) if only in (None, u)]:
                catalogs += await self.audit.catalog(uuid, time.time_ns())
        packs = {one.id: one.pack for one in found.damaged}
        rows: list[Args] = []
        for name, origin in report.healed.items():
            rows.append({"id": name.hex(), "pack": packs.get(name), "healed_from": origin})
        for name in garbage:
            rows.append({"id": name.hex(), "pack": packs.get(name), "healed_from": "nothing needs it"})
        for uuid, left in report.left.items():
            if only is None or uuid == only:
                rows += [self._unhealed(one, packs.get(one.id)) for one in left]
        if found.damaged or report.found:
            agent.journal.add(
                "damage",
                f"A scrub found {len(found.damaged)} damaged and {report.found} lacking objects that versions"
                f" need; {report.healed_count} were healed, {report.left_count} were not.",
            )
        return {
            "objects": found.objects, "bytes": found.bytes, "damaged": rows, "looked_up": report.ids,
            "lacking": report.left_count, "seconds": time.monotonic() - begun,
            "stretches": len(found.stretches), "files": files, "live": live, "catalogs": catalogs,
        }  # fmt: skip

    def _unhealed(self, one: Lacking, pack: int | None) -> Args:
        """What nobody could give, with where it is missing."""
        spec = self.agent.document.set_by_uuid(one.set)
        return {
            "id": one.id.hex(),
            "pack": pack,
            "healed_from": None,
            "set": spec.name if spec is not None else one.set,
            "path": os.fsdecode(one.path) if one.path is not None else None,
            "newest": one.died == OPEN,
        }

    async def _files(self, only: str | None, pace: int, progress: Progress) -> Args:
        """The deep pass over the files of the sets whose source this node is (rule 57)."""
        out: Args = {"checked": 0, "bytes": 0, "changed": 0, "differing": []}
        for uuid, running in list(self.agent.sets.sources.items()):
            if running.source.newest is None or (only is not None and uuid != only):
                continue
            found = await deep.compare(running.source, pace=pace, anew=True, progress=progress)
            out["checked"] += found.files
            out["bytes"] += found.size
            out["changed"] += found.changed
            out["differing"] += deep.rows(running.spec.name, found)
        return out

    async def _live(self, only: str | None, pace: int, progress: Progress) -> Args:
        """The same over the live trees here; what differs is written anew, also where somebody changed it."""
        out: Args = {
            "checked": 0, "bytes": 0, "mended": [], "changed": 0, "put_right": 0, "changed_files": [],
            "failed": [],
        }  # fmt: skip
        for uuid, running in list(self.agent.sets.targets.items()):
            if only is not None and uuid != only:
                continue
            if why := running.target.status.live:  # it waits; crnode status says so, too
                out["failed"].append({"set": running.spec.name, "why": why})
                continue
            try:
                found = await deep.compare_live(running.target, anew=True, pace=pace, progress=progress)
            except CrnodeError as error:
                out["failed"].append({"set": running.spec.name, "why": str(error)})
                continue
            out["checked"] += found.files
            out["bytes"] += found.size
            out["mended"] += found.mended
            out["changed"] += found.changed
            out["put_right"] += found.put_right
            out["changed_files"] += found.named
        return out

    async def forget_garbage(self, report: Report) -> list[bytes]:
        """Damaged objects that nothing needs: they leave the index, and collection takes their packs."""
        agent = self.agent
        if not report.certain:
            return []
        needed = {one.id for left in report.left.values() for one in left}
        if report.left_count > sum(map(len, report.left.values())):
            return []
        # Only what the walk knew to be damaged did it ask for.
        spare = [name for name in list(agent.store.damaged) if name in report.damaged - needed]
        return await agent.writer.submit(forget_garbage, agent.store, spare)

    # -- manifests

    async def write_due_manifests(self) -> int:
        """Write the manifests that are due (see store/manifest.py); returns how many. Failures are told and
        tried again later."""
        agent = self.agent
        count = 0
        for uuid, running in list(agent.sets.targets.items()):
            catalog = running.commit.catalog
            images = await agent.writer.submit(catalog.images)
            kept = list(retain(candidates(images), running.commit.ladder))
            image = manifest.due(images, kept, self._written.get(uuid), time.monotonic())
            if image is None:
                continue
            try:
                await manifest.write_manifest(agent.store, agent.writer, catalog, image)
                count += 1
                self._written[uuid] = time.monotonic()
            except manifest.ManifestChanged:
                continue  # another image has its turn
            except (CrnodeError, ChildFailed, CatalogDamaged, apsw.Error) as error:
                self._written[uuid] = time.monotonic()
                agent.journal.add(
                    "store", f"The manifest of a version was not written: {error}", running.spec.name
                )
        if count:
            await agent.writer.submit(self._compact_log)
        return count

    def _compact_log(self) -> None:
        path = manifest.log_path(self.agent.store)
        if path.stat().st_size > manifest.COMPACT_BYTES:
            self._forget_pruned(set())

    def _forget_pruned(self, spared: set[str]) -> None:
        """Leave images that were pruned out of the log, but for those of the sets `spared`. What the table of
        images has or its index is there: damage to one of them costs no line."""
        held = {
            uuid: (catalog, {image.id for image in catalog.images()})
            for uuid, catalog in list(self.agent.sets.catalogs.items())
            if uuid not in spared
        }

        def keep(line: manifest.Line) -> bool:
            name = line.image.id
            catalog, ids = held.get(line.set.hex(), (None, set[bytes | None]()))
            return catalog is None or name is None or name in ids or catalog.image(name) is not None

        manifest.compact_log(manifest.log_path(self.agent.store), keep)

    # -- idle

    async def run(self) -> None:
        """Once a minute: manifests that are due, and a collection when it is worth while. Until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._minute()
            except FAILURES as error:  # a full disk, for one: the next minute tries again
                self.agent.journal.add("store", f"Housekeeping did not end well: {error}")

    async def _minute(self) -> None:
        room = self.agent.store.room
        try:
            room.check_last()
        except CrnodeError:
            try:
                await self.relieve()
            finally:  # who still needs as much asks again; it must not stand in the way of all the rest
                room.forget_refused()
            try:
                room.check_last()
            except CrnodeError:
                return  # there is room for nothing at all
        await self.inventory.again()
        await self.write_due_manifests()
        await self.collect_if_due()

    async def collect_if_due(self) -> bool:
        """Start a collection when enough is dead; True when one ran."""
        agent = self.agent
        total = await asyncio.to_thread(agent.store.packs.total)
        idle, self._total = total == self._total, total
        pruned = sum(catalog.pruned_rows for catalog in agent.sets.catalogs.values())
        last = await asyncio.to_thread(last_collected, agent.store.directory)
        if self._busy or not worth_collecting(total, last, pruned, time.time_ns(), idle=idle):
            return False
        try:
            await self.collect({}, lambda _: None)
        except CrnodeError as error:
            agent.journal.add("store", f"A collection did not end well: {error}")
            return False
        return True


def _clear_manifest(catalog: Catalog, content: bytes) -> None:
    with catalog.transaction():
        catalog.clear_manifest(content)
