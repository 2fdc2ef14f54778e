"""The brake of one set at one target: images that change more than is usual are received and kept like
others, and the live tree waits with them until a person says what they are (rules 82 and 83).

Every image is judged before the live tree goes to it, from the rows of this node's own catalog: a source that
was captured cannot switch it off. What the brake found is in the catalog, so that it outlives the agent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from crnode.errors import CrnodeError, ExitCode
from crnode.store.catalog import Catalog
from crnode.store.reader import Image, Reader, connect
from crnode.versions.brake import LEAST, judge
from crnode.versions.changes import Counter, Load, baseline

META, ACCEPTED = "brake", "brake_accepted"
STEP = 0.02  # share of the files that changed since the last count, from which on it is counted again
NAME = "before the mass change of "
Record = Callable[[Callable[[], object]], None]


class HeldBack(CrnodeError):
    """The live tree waits until a person says what the change is."""


class Held(NamedTuple):
    """What a brake holds: from which image on (its number in the line of the set), since when it is known
    here, which version was the last before, under which name it is kept, and why."""

    ordinal: int
    sequence: int
    noticed_ns: int
    before: int
    name: str
    why: str


def held(reader: Reader) -> Held | None:
    """What the brake of this catalog holds, None for nothing."""
    text = reader.meta(META)
    return Held(*json.loads(text)) if text else None


def accept(catalog: Catalog) -> Held | None:
    """A person says that the newest image is what it should be: the live tree goes on, and what comes is
    compared with it from now on. Returns what was held. In a transaction of the caller."""
    newest = catalog.newest()
    if newest is not None:
        catalog.set_meta(ACCEPTED, newest.ordinal.to_bytes(8, "big"))
    return _release(catalog)


def _release(catalog: Catalog) -> Held | None:
    found, live = held(catalog), catalog.live()
    if found is None:
        return None
    catalog.set_meta(META, None)
    # No move to an image that is held has begun: the next one goes to the newest, past those in between.
    if live is not None and live.state == "moving" and live.target >= found.ordinal:
        catalog.set_live(live._replace(target=live.at, state="clean"))
    return found


class Brake:
    """See the module's text. Belongs to the live thread of its set.

    Args:
        record: how to run a catalog transaction.
        load: object id -> bytes; raises Missing or Damaged.
        journal: a sentence for people.
        percent: share of the files that trips it, 0 for none; asked each time.
        now_ns: wall clock.
    """

    def __init__(
        self,
        name: str,
        catalog: Catalog,
        record: Record,
        load: Load,
        journal: Callable[[str], None],
        percent: Callable[[], int],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.name = name
        self._percent = percent
        self._catalog, self._record, self._load = catalog, record, load
        self._journal, self._now_ns = journal, now_ns
        self._reader: Counter | None = None
        self._judged = 0  # ordinal of the image that was judged last,
        self._since = 0  # ... and how many changes there were since files were last counted
        self._passed = (0, 0)  # the last two ordinals between which nothing was found

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def check(self, at: int, wanted: Image, begun: bool) -> None:
        """Whether the live tree, which shows image `at`, may go to `wanted`; `begun`: it may be on its way
        there already. Raises HeldBack when it may not."""
        if not begun:
            self.look(at, wanted)
        found = held(self._open())
        if found is not None and wanted.ordinal >= found.ordinal:
            raise self._error(found)

    def look(self, at: int, newest: Image) -> None:
        """Judge what came since; note and tell what is to be held, and what is not any more. Where little
        changed it costs some microseconds."""
        if self._passed == (at, newest.ordinal):
            return
        reader, percent = self._open(), self._percent()
        tripped: Held | None = None
        with reader.snapshot():
            found = held(reader)
            same = found is not None and _is_as_before(reader, newest, found.ordinal)
            if found is None and at and percent and self._due(reader, at, newest):
                tripped = self._look(reader, newest, percent)
        if found is not None and (same or not percent):
            why = "it is again as it was" if same else "its brake was turned off"
            self._record(partial(_release, self._catalog))
            self._journal(f"Set {self.name}: {why}; the live tree goes on.")
        elif tripped is not None:
            noted = tripped
            self._record(lambda: self._note(noted))
            self._journal(f"Set {self.name}: {self._error(noted)}")
        if found is None and tripped is None:
            self._passed = (at, newest.ordinal)

    def _open(self) -> Counter:
        if self._reader is None:
            self._reader = Counter(connect(self._catalog.path))
        return self._reader

    def _due(self, reader: Counter, at: int, newest: Image) -> bool:
        """Whether so much changed since files were last counted that they are counted again."""
        step = max(LEAST // 2, int(newest.entries * STEP))
        if self._judged:  # what was skipped since then is counted twice at most
            self._since += reader.changed(at, newest.ordinal, step)
        else:
            self._since = step  # nothing is known: this agent has just begun
        self._judged = newest.ordinal
        if self._since < step:
            return False
        self._since = 0
        return True

    def _look(self, reader: Counter, newest: Image, percent: int) -> Held | None:
        accepted = int.from_bytes(reader.meta(ACCEPTED) or b"", "big")
        images = reader.images()
        base = baseline(images, newest, accepted)
        if base is None or _is_as_before(reader, newest, newest.ordinal):
            return None
        counts = reader.counts(base.ordinal, newest.ordinal, self._load)
        before = [image for image in images if accepted <= image.ordinal <= base.ordinal]
        why = judge(counts, reader.usual(before), percent)
        if not why:
            return None
        spoken = time.strftime("%Y-%m-%d %H.%M", time.localtime(newest.at_ns / 10**9))
        before_it = reader.last_before(counts, [i for i in images if base.ordinal <= i.ordinal], newest)
        return Held(newest.ordinal, newest.sequence, self._now_ns(), before_it.sequence, NAME + spoken, why)

    def _note(self, found: Held) -> None:
        base = next((i for i in self._catalog.images() if i.sequence == found.before), None)
        if base is not None and not base.pinned:
            self._catalog.set_pin(base.ordinal, found.name, "kept by the brake")
        self._catalog.set_meta(META, json.dumps(found).encode())

    def _error(self, found: Held) -> HeldBack:
        hours = (self._now_ns() - found.noticed_ns) // (3600 * 10**9)
        since = f" It waits for {hours} h." if hours > 0 else ""
        return HeldBack(
            f"The live tree is held at what was there before version {found.sequence}.",
            f"{found.why} All of it is received and kept.{since}",
            f"If it is meant: crnode brake {self.name} --accept. To have version {found.before} back at the"
            f" source: crnode brake {self.name} --roll-back.",
            ExitCode.REFUSED,
        )


def _is_as_before(reader: Reader, newest: Image, ordinal: int) -> bool:
    """Whether an image is to the letter one that is kept here from before `ordinal`: somebody went back."""
    return any(image.digest == newest.digest for image in reader.images() if image.ordinal < ordinal)
