"""Whether the store still holds what the catalogs name: asked at start when there is a doubt, by a scrub, and
each minute while something is lacking (rule 32). What is lacking is fetched from the node's own live trees
and from other nodes; what nobody has is said, with the set, the versions and a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import apsw

from crnode.errors import CrnodeError
from crnode.store.catalog import Catalog, CatalogDamaged
from crnode.store.child import ChildFailed
from crnode.store.inventory import (
    MANIFEST,
    Inventory,
    Lacking,
    SetInventory,
    take_inventory,
    whole_below,
)
from crnode.store.reader import BAD, OPEN, UNTESTED, Image
from crnode.store.store import RECIPE

if TYPE_CHECKING:
    from crnode.agent.maintenance import Maintenance
    from crnode.agent.node import Agent

Progress = Callable[[dict[str, Any]], None]

NAMED = 10_000  # lacking objects of a set that are kept by name; more are only counted
RETRY_FIRST, RETRY_MOST = 30.0, 3600.0  # seconds between attempts; the first follows after a minute
ROUNDS = 8  # recipes nest: what lies below one is known when it is here
EVIDENCE = "content is lacking: "  # how a verdict begins that is taken back when the content is here again
PROVED = "proved_ns"  # meta key: when the newest version of a set was proved last


@dataclass
class Report:
    """What an inventory found and did."""

    ids: int = 0  # looked up
    found: int = 0  # lacking or damaged when it began
    healed: dict[bytes, str] = field(default_factory=dict)  # id -> where it came from, of the first
    healed_count: int = 0
    origins: set[str] = field(default_factory=set)
    left: dict[str, list[Lacking]] = field(default_factory=dict)  # set -> what nobody could give
    left_count: int = 0
    sets: dict[str, SetInventory] = field(default_factory=dict)
    certain: bool = False
    settled: bool = False  # the last round found the same as it ended: what was not met is here
    doubts: int = 0  # of the store, when the last round began
    damaged: frozenset[bytes] = frozenset()  # what was known to be damaged when the last round began
    removed: frozenset[str] = frozenset()  # sets that are not in the document any more
    sourced: frozenset[str] = frozenset()  # sets whose source this node is
    walked: dict[str, Catalog | None] = field(default_factory=dict)  # open when the last round began

    def covers(self, running: Collection[str]) -> bool:
        """Whether each catalog knows by itself what it lacks, or lacks nothing: one that is not open (its set
        cannot run at present) learns nothing of what is lacking."""
        if any(uuid not in self.sets for uuid in running):
            return False
        for uuid, one in self.sets.items():
            if uuid in self.removed and uuid not in running:
                continue
            if one.unreadable or (one.rows and uuid not in running):
                return False
        return True

    def note_healed(self, healed: dict[bytes, str]) -> None:
        """These are whole again. A lost store may have millions: most are only counted."""
        self.healed_count += len(healed)
        self.origins.update(healed.values())
        if len(self.healed) < NAMED:
            self.healed |= healed


class Stocktaker:
    """Takes the inventory of one agent, one at a time."""

    def __init__(self, agent: Agent, maintenance: Maintenance) -> None:
        self.agent = agent
        self.maintenance = maintenance
        self._told: dict[str, str] = {}  # set -> what was said of it last
        self.lacking = False  # something was lacking when the last inventory ended
        self._turn = asyncio.Lock()
        self._asked: set[str] = set()  # nodes that could be reached when it was tried last
        self._wait = RETRY_FIRST
        self._due = 0.0
        self._left: list[bytes] = []  # what nobody could give, of the last inventory
        self._bad: set[tuple[str, int]] = set()  # set and ordinal of versions that were judged for that

    async def at_start(self) -> None:
        """Take it if the store is not (surely) the one that the catalogs were written with."""
        sets = self.agent.sets
        await sets.settled()
        doubted = [u for u, c in sets.catalogs.items() if c.suspect]
        if not doubted:
            return
        self.agent.journal.add(
            "damage",
            "Something of the object store is gone, or it is not the one that the catalogs of this node were"
            " written with. Everything that they name is looked up before anything is acknowledged.",
        )
        while any(c.suspect and not c.looked_up for c in sets.catalogs.values()):
            try:
                await self.run(lambda _: None)
            except (CrnodeError, ChildFailed, CatalogDamaged, apsw.Error, OSError) as error:
                # A full disk, for one: nothing is taken meanwhile.
                self.agent.journal.add("store", f"The object store could not be looked through: {error}")
            for uuid in [u for u, c in sets.catalogs.items() if c.suspect and not c.looked_up]:
                await self._make_readable(uuid)
            if any(c.suspect and not c.looked_up for c in sets.catalogs.values()):
                await asyncio.sleep(5.0)

    async def _make_readable(self, uuid: str) -> None:
        """A catalog that cannot be walked keeps its set waiting: it is looked at now, not when its week is
        over, and made again if it is damaged."""
        try:
            await self.maintenance.audit.catalog(uuid, time.time_ns())
        except (CrnodeError, ChildFailed, CatalogDamaged, apsw.Error, OSError) as error:
            self.agent.journal.add("damage", f"Set {self._name(uuid)}: its catalog: {error}")

    async def again(self) -> None:
        """Try once more to get what was lacking, if it is time: at once when another node can be reached,
        else less and less often."""
        came = await self.agent.writer.submit(self._came)
        if came or self._met():
            self.look_again()
        up = {name for name, link in self.agent.links.items() if link.peer is not None}
        news = up - self._asked
        self._asked &= up  # one that went away and comes back is news again
        if self.lacking and (news or time.monotonic() >= self._due):
            self._asked = up
            self._wait = min(self._wait * 2, RETRY_MOST)
            self._due = time.monotonic() + self._wait
            report = await self.run(lambda _: None)
            await self.maintenance.forget_garbage(report)

    def _met(self) -> list[bytes]:
        """Objects that whoever wanted to read them found damaged, and that the index still names."""
        store = self.agent.store
        return [name for name in list(store.damaged) if store.locate(name) is not None]

    def _came(self) -> bool:
        """Whether a version may be called bad for content that is here again, because a repair or a restore
        has fetched it (in the writer thread)."""
        if self.lacking:
            return any(self.agent.store.has(name) for name in self._left)
        catalogs = list(self.agent.sets.catalogs.items())
        before = self._bad
        self._bad = {(uuid, i.ordinal) for uuid, c in catalogs for i in _images(c) if _for_lack(i)}
        return not self._bad <= before  # those of a catalog that cannot be walked are asked about once

    def look_again(self) -> None:
        """Something is lacking that the last inventory did not know of, or what it wanted may be had now."""
        self.lacking = True
        self._wait, self._due = RETRY_FIRST, 0.0

    async def run(self, progress: Progress) -> Report:
        """Walk all catalogs, fetch what is lacking, tell what stays so. Raises CrnodeError, ChildFailed."""
        async with self._turn:
            if met := self._met():  # a restart must not take what the index still says for a good answer
                await self.agent.writer.submit(self.agent.store.note_lost, met)
            report = await self._rounds(progress)
            await self._tell(report)
            return report

    async def _rounds(self, progress: Progress) -> Report:
        report = Report()
        agent = self.agent
        for _ in range(ROUNDS):
            before = report.healed_count
            report.left, report.left_count, report.settled = {}, 0, True
            report.doubts = agent.store.doubts
            out = Inventory()
            catalogs = self.maintenance.catalogs()
            report.removed = frozenset(ref.uuid for ref in catalogs if ref.removed)
            report.sourced = frozenset(ref.uuid for ref in catalogs if ref.source)
            report.walked = {ref.uuid: ref.catalog for ref in catalogs}
            async for batch in take_inventory(agent.store, agent.writer, catalogs, out):
                real, came = await agent.writer.submit(self._still_lacking, batch)
                # A recipe that came while the walk went on hid what lies below it.
                report.settled = report.settled and not came
                healed = await self._heal(real)
                report.note_healed(healed)
                for one in real:
                    if one.id not in healed:
                        self._leave(report, one)
                progress({"text": f"{report.healed_count} objects healed, {report.left_count} lacking"})
            report.ids, report.sets, report.certain = out.ids, out.sets, out.certain
            report.damaged = out.damaged
            report.found = report.healed_count + report.left_count
            if report.healed_count == before and report.settled:
                return report
            report.settled = False
        return report

    def _still_lacking(self, batch: Sequence[Lacking]) -> tuple[list[Lacking], bool]:
        """What the agent's own index does not have either, and whether a recipe among the rest is here by now
        and what it names is not (in the writer thread)."""
        store, sources = self.agent.store, self.agent.sets.sources
        real = [one for one in batch if one.kind == MANIFEST or not store.has(one.id)]
        lacking = {one.id for one in real}
        came = [one for one in batch if one.kind == RECIPE and one.id not in lacking]
        return real, not all(whole_below(store, one.id, chunks=one.set not in sources) for one in came)

    def _leave(self, report: Report, one: Lacking) -> None:
        if one.set in report.removed and one.set not in self.agent.sets.catalogs:
            return  # nobody waits for it
        if (one.set in self.agent.sets.sources or one.set in report.sourced) and one.died != OPEN:
            return  # a past image of a source: its targets have it, and here only the newest is read
        report.left_count += 1
        named = report.left.setdefault(one.set, [])
        if len(named) < NAMED:
            named.append(one)

    async def _heal(self, lacking: Sequence[Lacking]) -> dict[bytes, str]:
        """id -> where it came from, for what could be had."""
        agent = self.agent
        by_set: dict[str, dict[bytes, bytes]] = {}
        healed: dict[bytes, str] = {}
        for one in lacking:
            if one.kind == MANIFEST:
                catalog = agent.sets.catalogs.get(one.set)
                if catalog is not None:  # another one is written at idle
                    await agent.writer.submit(_forget_manifest, catalog, one.id)
                    healed[one.id] = "written again"
            elif one.path is not None:
                by_set.setdefault(one.set, {})[one.id] = one.path
        for uuid, wanted in by_set.items():
            paths = {path for name, path in wanted.items() if name not in healed}
            healed |= await agent.healer.fetch(uuid, set(wanted) - healed.keys(), paths)
            source = agent.sets.sources.get(uuid)
            for one in lacking if source is not None else ():
                if one.set == uuid and one.kind == RECIPE and one.path and one.id not in healed:
                    assert source is not None
                    source.source.look_at(one.path)  # its recipe is made again from the file
        return healed

    # -- telling

    async def _tell(self, report: Report) -> None:
        agent = self.agent
        changed = report.doubts != agent.store.doubts or not report.settled
        self.lacking = report.left_count > 0 or changed
        self._left = [one.id for left in report.left.values() for one in left if one.kind != MANIFEST]
        if not self.lacking:
            self._wait, self._due = RETRY_FIRST, 0.0
        if report.healed_count:
            names = ", ".join(sorted(report.origins))
            agent.journal.add(
                "healed",
                f"{report.healed_count} missing or damaged objects are whole again; they came from {names}.",
            )
        for uuid, catalog in list(agent.sets.catalogs.items()):
            left = report.left.get(uuid, [])
            text = await agent.writer.submit(self._judge, uuid, catalog, left, report)
            if text and text != self._told.get(uuid):
                agent.journal.add("damage", f"Set {self._name(uuid)}: {text}")
            self._told[uuid] = text
            running = agent.sets.targets.get(uuid)
            if running is not None and catalog.looked_up:
                running.target.lacks(text, bool(catalog.lacking))
        if report.settled and report.covers(agent.sets.catalogs):
            await agent.writer.submit(agent.store.settle_doubt, report.doubts)

    def _name(self, uuid: str) -> str:
        spec = self.agent.document.set_by_uuid(uuid)
        return spec.name if spec is not None else uuid

    def _judge(self, uuid: str, catalog: Catalog, left: Sequence[Lacking], report: Report) -> str:
        """Set verdicts by what is lacking, and say it in a sentence; '' when all is there (in the writer
        thread)."""
        found = report.sets.get(uuid)
        if found is None or found.unreadable or not (left or report.settled):
            return ""  # nothing is known: whoever waits for it goes on waiting
        if report.walked.get(uuid) is not catalog or self.agent.sets.catalogs.get(uuid) is not catalog:
            return ""  # what was walked is not this one: it was made again meanwhile, or opened since
        catalog.looked_up = True
        catalog.lacking = set(found.paths) if left else set()
        if not left:
            self.agent.store.sync()
            with catalog.transaction():
                catalog.suspect = False
                catalog.note_store(self.agent.store.mark())
                _take_back(catalog, catalog.images())
            return ""
        catalog.suspect = True  # a restart has to look again
        if uuid in self.agent.sets.sources:  # what is lacking here is made again from the files themselves
            with catalog.transaction():
                catalog.set_meta("store", None)
            return ""
        images = catalog.images()
        broken = [i for i in images if found.touches(i.ordinal)]
        path = next((one.path for one in left if one.path is not None), None)
        example = os.fsdecode(path) if path is not None else ""
        with catalog.transaction():
            catalog.set_meta("store", None)
            for image in broken:
                if image.verdict != BAD or _for_lack(image):  # what else made it bad is not gone with this
                    catalog.set_verdict(image.ordinal, BAD, f"{EVIDENCE}{found.rows} files, one is {example}")
            if report.settled:
                _take_back(catalog, [image for image in images if not found.touches(image.ordinal)])
        numbers = _ranges([image.sequence for image in broken])
        count = f"{len(left)} or more" if len(left) == NAMED else str(len(left))
        what = "it needs" if any(one.died == OPEN for one in left) else "earlier versions need"
        return (
            f"{count} objects that {what} are missing or damaged here, and no node that can be reached has"
            f" them. Not whole: version {numbers}; one of {found.rows} files is {example}."
        )


def _images(catalog: Catalog) -> list[Image]:
    """Its versions; none where it cannot be read now, which others look into."""
    with contextlib.suppress(CrnodeError, apsw.Error, ValueError):
        return catalog.images()
    return []


def _for_lack(image: Image) -> bool:
    """Whether it was judged for content that is lacking, and for nothing else."""
    return (image.evidence or "").startswith(EVIDENCE)


def _take_back(catalog: Catalog, whole: Sequence[Image]) -> None:
    """These lack nothing, whatever was said of them: the idle node soon proves the newest one again."""
    for image in whole:
        if _for_lack(image):
            catalog.set_verdict(image.ordinal, UNTESTED, None)
            catalog.set_meta(PROVED, None)


def _ranges(numbers: Sequence[int]) -> str:
    """'3, 5-9' of ascending numbers."""
    out: list[str] = []
    for number in numbers:
        if out and number == int(out[-1].rpartition("-")[2]) + 1:
            out[-1] = f"{out[-1].partition('-')[0]}-{number}"
        else:
            out.append(str(number))
    return ", ".join(out) or "none that is kept"


def _forget_manifest(catalog: Catalog, content: bytes) -> None:
    with catalog.transaction():
        catalog.clear_manifest(content)
