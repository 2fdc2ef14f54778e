"""A group at one of its targets: sets of several sources, bundled into one workspace with one time line.

Nothing of a group travels. Whenever an image of a member has come, its target here looks at the paths that
changed, in all members, decides what the group shows there (:mod:`crnode.replicate.merge`) and commits the
difference to the group's own catalog, as if a source had sent it. From there on a group is a set like
others: it has versions, a live tree, a brake, and can be restored. Its objects are those of its members.

What is read stays while it is read, and until the next look, so that a difference can be made: the images
looked at last are roots of pruning in their members' catalogs (rule 38).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import apsw

from crnode.cluster.document import ReplicationSet
from crnode.errors import CrnodeError
from crnode.replicate.commit import Refusal, TargetCommit
from crnode.replicate.merge import Side, as_shown, hidden, shown
from crnode.replicate.receive import TargetSet, stamp
from crnode.store.catalog import Catalog
from crnode.store.reader import CLEAN, FUZZY, NO_IMAGE, ROLLING, Image, Reader, Totals
from crnode.store.writer import Writer
from crproto.entries import Entry, entry_bytes, image_digest
from crproto.ids import image_id
from crproto.limits import DIGEST_SCHEME
from crproto.messages import ImageBegin

PAUSE_SECONDS = 0.5  # between two images of a group: what several members bring at once is one image
RETRY_SECONDS = 10.0
PART = 250  # paths looked at in one go, or sent to the writer in one turn
BREATH_SECONDS = 0.002  # after each part: a look at a large member is not to hold up the loop
CONFLICTS_MOST = 10_000  # paths remembered of which something is hidden
OFFSET_SECONDS = 2.0  # so far apart the members' clocks are told to be off (rule 51)


class Member(NamedTuple):
    """A set of the group, as its target here has it."""

    name: str
    uuid: str
    catalog: Catalog


class View(NamedTuple):
    """What a group is made of, of one member."""

    member: Member
    image: Image
    base: int  # ordinal of the image of it that the group was made of last; 0: none that is still there


@dataclass
class _Found:
    """What a look came to."""

    totals: Totals
    changed: int = 0
    conflicts: dict[bytes, str | None] = field(default_factory=dict)  # None: is none any more


class Change(NamedTuple):
    """A path that may be another now."""

    path: bytes
    old: Entry | None  # as the group has it
    new: Entry | None  # as it is to have it
    sides: list[Side]


class _Lacking(Exception):
    """Objects that the group needs are not here: `args[0]`."""


class _Stopped(Exception):
    """Nobody waits for this look any more."""


class _Look:
    """One pass over what changed in the members since the group was made last; it may be repeated."""

    def __init__(self, views: list[View], readers: list[Reader], group: Reader, left: bool) -> None:
        self.views = views
        # What a member had that left, or whose past is not known, is found in the group alone.
        self._all = left or not all(view.base for view in views)
        self.group = group
        self.newest = group.newest()
        self._readers = readers

    def parts(self) -> Iterator[list[Change]]:
        """Every path that may be another now, once, with what the group has and is to have."""
        for batch in _batches(self._paths(), PART):
            yield [self._change(path) for path in batch]

    def _change(self, path: bytes) -> Change:
        sides = [
            Side(view.member.name, view.member.uuid, entry)
            for view, reader in zip(self.views, self._readers, strict=True)
            if (entry := reader.entry(path, view.image.ordinal)) is not None
        ]
        old = self.group.entry(path, self.newest.ordinal) if self.newest is not None else None
        return Change(path, old, as_shown(shown(sides)) if sides else None, sides)

    def _paths(self) -> Iterator[bytes]:
        for number, view in enumerate(self.views):
            reader, to = self._readers[number], view.image.ordinal
            gone = reader.went(view.base, to) if view.base else iter(())
            for path in itertools.chain(_came(reader, view.base, to), gone):
                if not any(self._changed_in(earlier, path) for earlier in range(number)):
                    yield path
        if self.newest is not None and self._all:
            for entry in self.group.walk(self.newest.ordinal):
                if not any(self._changed_in(number, entry.path) for number in range(len(self.views))):
                    yield entry.path

    def _changed_in(self, number: int, path: bytes) -> bool:
        """Whether :meth:`_paths` gave `path` for that member."""
        view, reader = self.views[number], self._readers[number]
        before = reader.key_of(path, view.base) if view.base else None
        return reader.key_of(path, view.image.ordinal) != before


def _came(reader: Reader, base: int, to: int) -> Iterator[bytes]:
    after: tuple[int, int, bytes] | None = None
    while page := reader.came(base, to, after, PART):
        yield from (entry.path for _, entry in page)
        after = page[-1][0]


def _batches(paths: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while batch := list(itertools.islice(paths, size)):
        yield batch


def _hidden_text(sides: list[Side]) -> str | None:
    """What is said of a path where the group does not show all; None where it does."""
    if len(sides) < 2:
        return None
    winner = shown(sides)
    losers = hidden(sides, winner)
    if not losers:
        return None
    kept = ", ".join(f"that of {_told(side)}" for side in losers)
    return f"that of {_told(winner)} is shown; {kept} stays in its own set"


def _told(side: Side) -> str:
    return f"{side.member} ({stamp(side.entry.mtime_ns)}, {side.entry.size:,} bytes)"


def _id(image: Image) -> str:
    assert image.id is not None
    return image.id.hex()


class GroupFeed:
    """See the module's text.

    Args:
        members: those that run here now; the group goes on when all do.
        spare: (uuid of a member, ordinals of its images that pruning is to spare from now on).
        heal: asked to fetch objects that are missing here, by the uuid of a member.
    """

    def __init__(
        self,
        spec: ReplicationSet,
        target: TargetSet,
        commit: TargetCommit,
        writer: Writer,
        members: Callable[[], list[Member]],
        *,
        incarnation: bytes,
        spare: Callable[[str, set[int]], None],
        heal: Callable[[str, set[bytes]], Awaitable[set[bytes]]],
        journal: Callable[[str, str], None],
    ) -> None:
        self.spec = spec
        self.target = target
        self.catalog = target.catalog
        self.commit = commit
        self.writer = writer
        self.members = members
        self.conflicts: list[tuple[bytes, str]] = []  # what is hidden now
        self._incarnation = incarnation
        self._spare = spare
        self._heal = heal
        self._journal = journal
        self._wake = asyncio.Event()
        self._wake.set()
        self._thread = ThreadPoolExecutor(1, f"group-{spec.name}")
        self._ended = asyncio.Condition()
        self._rounds = 0
        self._stopping = False
        self._clocks_told = False

    def look(self) -> None:
        """A member may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Make images until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                why = ""
                try:
                    await self._make()
                except Refusal as refusal:
                    why = refusal.text
                except (CrnodeError, OSError) as error:
                    why = str(error)
                except apsw.Error as error:  # whoever writes to that catalog finds out what is wrong with it
                    why = f"A catalog cannot be read now: {error}."
                self._tell(why)
                async with self._ended:
                    self._rounds += 1
                    self._ended.notify_all()
                if why:
                    self._wake.set()
                await asyncio.sleep(RETRY_SECONDS if why else PAUSE_SECONDS)
        finally:
            self._stopping = True
            async with self._ended:
                self._ended.notify_all()
            await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)

    def _tell(self, why: str) -> None:
        status = self.target.status
        if why and status.reason != why:
            self._journal("group", f"Group {self.spec.name} waits: {why}")
        if why:
            status.state, status.reason = "behind", why
        elif self.target.newest is not None:
            status.state, status.reason = "in sync", ""
        else:
            status.state, status.reason = "waiting", "Nothing has come of its members yet."

    async def made(self) -> None:
        """Return when all that the members have here now is in the group. CrnodeError says why it is not."""
        async with self._ended:
            wanted = self._rounds + 2  # the round under way may have looked before
            while self._rounds < wanted:
                if self._stopping:
                    why = "It was changed or removed meanwhile."
                    raise CrnodeError(f"The group {self.spec.name} is made no more.", why, "Repeat it.")
                self._wake.set()
                await self._ended.wait()
        if self.target.status.state == "behind":
            raise CrnodeError(f"The group {self.spec.name} waits.", self.target.status.reason)

    # -- one image

    async def _make(self) -> None:
        here = self.members()
        missing = sorted(set(self.spec.members) - {member.name for member in here})
        if missing:
            raise CrnodeError("Not all of its members run here.", f"Not running: {', '.join(missing)}.")
        views = await self.writer.submit(self._hold, here)
        if not views:
            return
        loop = asyncio.get_running_loop()
        try:
            made, conflicts = await loop.run_in_executor(self._thread, self._work, views)
        except _Lacking as lacking:
            await self._fetch(lacking.args[0])
            return
        self.target.newest = await self.writer.submit(self.catalog.newest)
        self.conflicts = await self.writer.submit(self.catalog.lost, CONFLICTS_MOST)
        self._tell_conflicts(conflicts)
        if made:
            self._compare_clocks(views)
            self.target.look_again()

    def _hold(self, here: list[Member]) -> list[View]:
        """The newest image of each member that has any, spared from pruning (in the writer thread). Empty
        when the group is made of just these."""
        held = self._made_of()
        views = []
        for member in sorted(here):
            newest = member.catalog.newest()
            if newest is None or newest.id is None:
                continue
            name, base = held.get(member.uuid, ("", 0))
            before = member.catalog.image_at(base)
            known = before is not None and before.id is not None and before.id.hex() == name
            views.append(View(member, newest, base if known else 0))
            self._spare(member.uuid, {newest.ordinal, base})
        as_made = {view.member.uuid: (_id(view.image), view.image.ordinal) for view in views} == held
        return [] if as_made and self.catalog.newest() is not None else views

    def _made_of(self) -> dict[str, tuple[str, int]]:
        """uuid of a member -> (id, ordinal) of its image that the newest image of the group was made of."""
        found = json.loads(self.catalog.meta("members") or b"{}")
        return {uuid: (name, ordinal) for uuid, (name, ordinal) in found.items()}

    def _work(self, views: list[View]) -> tuple[bool, dict[bytes, str | None]]:
        """Commit what changed in the members (in this group's thread). Returns whether there was anything,
        and of which paths something is hidden now, or is no more."""
        with contextlib.ExitStack() as stack:
            group = stack.enter_context(self.catalog.reader())
            readers = [stack.enter_context(view.member.catalog.reader()) for view in views]
            held = self.writer.submit_from_thread(self._made_of).result()
            left = not held.keys() <= {view.member.uuid for view in views}
            look = _Look(views, readers, group, left)
            found = self._count(look, dict(group.lost(CONFLICTS_MOST)))
            ordinal = 0
            if found.changed or look.newest is None:
                ordinal = self._commit(look, found)
            self.writer.submit_from_thread(self._record, views, ordinal, found.conflicts).result()
        return bool(ordinal), found.conflicts

    def _count(self, look: _Look, known: dict[bytes, str]) -> _Found:
        """What the difference comes to: an image's id follows from its digest, which is told before it."""
        held = look.group.totals()
        count, size, lthash = held.entries, held.bytes, held.lthash.copy()
        found = _Found(held)
        for part in look.parts():
            self._breathe()
            for path, old, new, sides in part:
                why = _hidden_text(sides)
                if why != known.get(path) and (why is None or len(known) < CONFLICTS_MOST):
                    found.conflicts[path] = why
                    known[path] = why or ""
                if old == new:
                    continue
                found.changed += 1
                if old is not None:
                    count, size = count - 1, size - old.size
                    lthash.remove(entry_bytes(old))
                if new is not None:
                    count, size = count + 1, size + new.size
                    lthash.add(entry_bytes(new))
        found.totals = Totals(count, size, lthash)
        return found

    def _commit(self, look: _Look, found: _Found) -> int:
        """Give the difference to the group's own commit; returns the ordinal of the image. Raises Refusal,
        CrnodeError (FULL), _Lacking."""
        header = self._header(look, found.totals)
        submit = self.writer.submit_from_thread
        incoming = submit(self.commit.begin, header).result()
        for part in look.parts():
            self._breathe()
            changed = [new for _, old, new, _ in part if new is not None and old != new]
            removed = [path for path, old, new, _ in part if new is None and old is not None]
            submit(self.commit.add, incoming, changed, removed).result()
        lacking = submit(self.commit.commit, incoming).result()
        if lacking:
            raise _Lacking(set(lacking))
        newest = submit(self.catalog.newest).result()
        assert newest is not None
        return newest.ordinal

    def _header(self, look: _Look, totals: Totals) -> ImageBegin:
        newest, images = look.newest, [view.image for view in look.views]
        parent = newest.id if newest is not None and newest.id is not None else NO_IMAGE
        # The same number wherever the same images are bundled, whatever a target skipped between.
        sequence = max(sum(image.sequence for image in images), newest.sequence + 1 if newest else 1)
        at_ns = max(image.at_ns for image in images)
        if newest is not None and at_ns <= newest.at_ns:  # no member is newer: who is one has changed
            at_ns = max(self.commit.now_ns(), newest.at_ns + 1)
        digest = image_digest(self.catalog.set_uuid, totals.entries, totals.bytes, totals.lthash)
        flags = [image.flags for image in images]
        fuzzy = FUZZY if any(flag & FUZZY for flag in flags) else 0
        name = image_id(parent, self.catalog.set_uuid, self._incarnation, 0, sequence, at_ns, digest)
        return ImageBegin(
            id=name,
            parent=parent,
            base=parent if newest is not None else b"",
            incarnation=self._incarnation,
            epoch=0,
            sequence=sequence,
            at_ns=at_ns,
            digest=digest,
            flags=(ROLLING if any(flag & ROLLING for flag in flags) else CLEAN) | fuzzy,
            entries=totals.entries,
            total_bytes=totals.bytes,
            digest_scheme=DIGEST_SCHEME,
            resumed=False,
            skips=False,
        )

    def _record(self, views: list[View], ordinal: int, conflicts: dict[bytes, str | None]) -> None:
        """Note what the group is made of now. Killed before this, the next look finds nothing to change."""
        now = {view.member.uuid: (_id(view.image), view.image.ordinal) for view in views}
        said = {view.member.name: (view.image.sequence, view.image.at_ns) for view in views}
        with self.catalog.transaction():
            self.catalog.set_meta("members", json.dumps(now).encode())
            if ordinal:
                self.catalog.note_members(ordinal, json.dumps(said).encode())
            for path, why in conflicts.items():
                self.catalog.set_problem("lost", path, why, self.commit.now_ns())
        for view in views:
            self._spare(view.member.uuid, {view.image.ordinal})

    def _breathe(self) -> None:
        if self._stopping:
            raise _Stopped
        time.sleep(BREATH_SECONDS)

    # -- what is told

    async def _fetch(self, lacking: set[bytes]) -> None:
        """Objects that were lost here come again from whoever holds the members."""
        for member in self.members():
            if lacking:
                lacking = lacking - await self._heal(member.uuid, lacking)
        if lacking:
            raise CrnodeError(f"{len(lacking)} objects are damaged here, and no node that answers has them.")
        self._wake.set()

    def _tell_conflicts(self, conflicts: dict[bytes, str | None]) -> None:
        new = [(path, why) for path, why in conflicts.items() if why is not None]
        if new:
            path, why = new[0]
            more = f" And {len(new) - 1} more such paths." if len(new) > 1 else ""
            name = path.decode(errors="replace")
            self._journal("group", f"Group {self.spec.name}: several sources have {name}: {why}.{more}")

    def _compare_clocks(self, views: list[View]) -> None:
        """Rule 51: the newer of two files is told by the clocks of two machines."""
        late = [(v.image.received_ns - v.image.at_ns) / 1e9 for v in views if v.image.ordinal != v.base]
        ahead = -min(late, default=0.0)
        if (ahead > OFFSET_SECONDS) == self._clocks_told:
            return
        self._clocks_told = not self._clocks_told
        if self._clocks_told:
            self._journal(
                "group",
                f"Group {self.spec.name}: the clock of a source is {ahead:.1f} s ahead of this node's; which"
                " of two files is the newer may be told wrongly. Set the clocks (NTP).",
            )
