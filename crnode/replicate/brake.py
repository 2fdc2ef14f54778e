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
from crnode.versions.brake import LEAST, is_small, judge
from crnode.versions.changes import Counter, Load, baseline

META, ACCEPTED, UNDONE = "brake", "brake_accepted", "brake_undone"
STEP = 0.02  # share of the files that changed since the last count, from which on it is counted again
AGAIN_NS = 10 * 10**9  # while something is held, it is counted again after so long, also for less
UNDONE_MOST = 64  # ranges of images that were held and undone, which are remembered
NAME = "before the mass change of "
Record = Callable[[Callable[[], object]], None]


class HeldBack(CrnodeError):
    """The live tree waits until a person says what the change is. `before` is the ordinal of the image that
    it may go to where it shows none at all, 0 for none."""

    before = 0


class Held(NamedTuple):
    """What a brake holds: from which image on (its number in the line of the set), since when it is known
    here, which version was the last before, under which name it is kept, and why.

    `shown` is the ordinal of the image that a person last saw the state of, `more` what came on top of that
    and would be held by itself, `from_` the ordinal of the version before.
    """

    ordinal: int
    sequence: int
    noticed_ns: int
    before: int
    name: str
    why: str
    shown: int = 0
    more: str = ""
    from_: int = 0


def held(reader: Reader) -> Held | None:
    """What the brake of this catalog holds, None for nothing."""
    text = reader.meta(META)
    return Held(*json.loads(text)) if text else None


def needed(reader: Reader) -> set[int]:
    """Ordinals of the images that the brake compares with: they are kept while it holds."""
    found = held(reader)
    return {found.ordinal, found.shown, found.from_} if found is not None else set()


def show(catalog: Catalog) -> Held | None:
    """What is held, for a person: from now on :func:`accept` means the newest image there is. In a
    transaction of the caller."""
    found, newest = held(catalog), catalog.newest()
    if found is None or newest is None:
        return found
    catalog.set_meta(META, json.dumps(found._replace(shown=newest.ordinal, more="")).encode())
    return found


def accept(catalog: Catalog) -> Held | None:
    """A person says that what was last shown, or where nobody looked what tripped the brake, is what it
    should be: what comes is compared with that from now on, and what came since is judged anew before the
    live tree goes on. Returns what was held. In a transaction of the caller."""
    found = held(catalog)
    if found is not None:
        catalog.set_meta(ACCEPTED, max(found.ordinal, found.shown).to_bytes(8, "big"))
    return _release(catalog)


def _undone(catalog: Catalog) -> Held | None:
    """What was held is as it was before: let go, and remember that it is not what is usual here."""
    found, newest = held(catalog), catalog.newest()
    if found is not None and newest is not None:
        ranges = [*json.loads(catalog.meta(UNDONE) or b"[]"), (found.from_ + 1, newest.ordinal - 1)]
        catalog.set_meta(UNDONE, json.dumps(ranges[-UNDONE_MOST:]).encode())
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
        self._judged = 0  # ordinal of the image that was looked at last,
        self._since = 0  # ... how many changes there were since files were last counted, and when that was
        self._counted_ns = 0
        self._passed = (0, 0)  # the last two ordinals between which nothing was found

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def check(self, at: int, wanted: Image, begun: bool) -> None:
        """Whether the live tree, which shows image `at`, may go to `wanted`; `begun`: it is on its way there
        since it was judged. Raises HeldBack when it may not."""
        if not begun:
            self.look(at, wanted)
        reader = self._open()
        found = held(reader)
        if found is not None and wanted.ordinal >= found.ordinal:
            error = self._error(found)
            before = reader.image_at(found.from_)
            error.before = before.ordinal if before is not None else 0
            raise error

    def look(self, at: int, newest: Image) -> None:
        """Judge what came since; note and tell what is to be held, and what is not any more. Where little
        changed it costs some microseconds."""
        if self._passed == (at, newest.ordinal):
            return
        reader, percent = self._open(), self._percent()
        tripped: Held | None = None
        same, more = False, ""
        with reader.snapshot():
            found = held(reader)
            if found is not None:
                if newest.ordinal < found.ordinal:
                    return
                same, more = self._look_again(reader, found, newest, percent)
            elif percent and (due := self._due(reader, at, newest)) is not None:
                tripped = self._look(reader, newest, percent)
                self._judged, self._since = newest.ordinal, due
        if found is not None and (same or not percent):
            why = "it is again as it was" if same else "its brake was turned off"
            self._record(partial(_undone if same else _release, self._catalog))
            self._journal(f"Set {self.name}: {why}; the live tree goes on.")
        elif more:
            self._record(partial(self._add, more))
            self._journal(
                f"Set {self.name}: while it is held, more came than is usual, up to version"
                f" {newest.sequence}. {more} crnode brake {self.name} shows it."
            )
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

    def _due(self, reader: Counter, at: int, newest: Image) -> int | None:
        """None when so little changed since files were last counted that they need not be counted again; else
        how many changes there are then that were not counted."""
        shown = reader.image_at(at)
        # Of what is shown: a source that makes a million empty files first does not make the step longer.
        files = shown.entries if shown is not None else 0
        step = max(LEAST // 2, int(files * min(STEP, self._percent() / 200)))
        if self._judged:  # what was skipped since then is counted twice at most
            since = self._since + reader.changed(at or self._judged, newest.ordinal, step)
        else:
            since = step  # nothing is known: this agent has just begun
        if since >= step:
            return 0
        self._judged, self._since = newest.ordinal, since
        return None

    def _look(self, reader: Counter, newest: Image, percent: int) -> Held | None:
        accepted = int.from_bytes(reader.meta(ACCEPTED) or b"", "big")
        images = reader.images()
        base = baseline(images, newest, accepted)
        if base is None or _is_as_before(reader, newest, newest.ordinal):
            return None
        counts = reader.counts(base.ordinal, newest.ordinal, self._load)
        undone = [range(first, last + 1) for first, last in json.loads(reader.meta(UNDONE) or b"[]")]
        before = [
            image
            for image in images
            if accepted <= image.ordinal <= base.ordinal and not any(image.ordinal in r for r in undone)
        ]
        why = judge(counts, reader.usual(before), percent, newest.at_ns - base.at_ns)
        if not why:
            return None
        spoken = time.strftime("%Y-%m-%d %H.%M", time.localtime(newest.at_ns / 10**9))
        last = reader.last_before(counts, [i for i in images if base.ordinal <= i.ordinal], newest)
        return Held(
            newest.ordinal,
            newest.sequence,
            self._now_ns(),
            last.sequence,
            NAME + spoken,
            why,
            from_=last.ordinal,
        )

    def _look_again(self, reader: Counter, found: Held, newest: Image, percent: int) -> tuple[bool, str]:
        """(whether it is as it was before what is held, a sentence when as much came since somebody
        looked)."""
        if _is_as_before(reader, newest, found.ordinal):
            return True, ""
        now_ns = self._now_ns()
        if newest.ordinal == self._judged or abs(now_ns - self._counted_ns) < AGAIN_NS:
            return False, ""
        self._judged, self._counted_ns = newest.ordinal, now_ns
        before = reader.image_at(found.from_)
        if before is not None and is_small(reader.counts(before.ordinal, newest.ordinal), percent):
            return True, ""
        if found.more or newest.ordinal <= (since := max(found.ordinal, found.shown)):
            return False, ""
        counts = reader.counts(since, newest.ordinal, self._load)
        return False, judge(counts, (), percent, newest.at_ns - self._at(reader, since, newest))

    @staticmethod
    def _at(reader: Reader, ordinal: int, newest: Image) -> int:
        image = reader.image_at(ordinal)
        return image.at_ns if image is not None else newest.at_ns

    def _add(self, more: str) -> None:
        found = held(self._catalog)
        if found is not None:
            self._catalog.set_meta(META, json.dumps(found._replace(more=more)).encode())

    def _note(self, found: Held) -> None:
        """Keep what is held, and the version before it: it may have been thinned since it was looked for,
        then the one before that is as good, or the next one."""
        images = [i for i in self._catalog.images() if i.ordinal < found.ordinal]
        base = next((i for i in reversed(images) if i.ordinal <= found.from_), images[0] if images else None)
        if base is not None:
            found = found._replace(before=base.sequence, from_=base.ordinal)
            if not base.pinned:
                self._catalog.set_pin(base.ordinal, found.name, "kept by the brake")
        self._catalog.set_meta(META, json.dumps(found).encode())

    def _error(self, found: Held) -> HeldBack:
        hours = (self._now_ns() - found.noticed_ns) // (3600 * 10**9)
        since = f" It waits for {hours} h." if hours > 0 else ""
        since += f" Since then: {found.more}" if found.more else ""
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
