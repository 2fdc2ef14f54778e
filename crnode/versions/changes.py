"""Counting what became of a set's files between two images, from the rows of its catalog."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from crnode.store.reader import FUZZY, OPEN, ROLLING, Image, Reader
from crnode.store.store import Damaged, Missing
from crnode.versions.brake import LEAST, STRUCTURE, Counts
from crproto import content
from crproto.entries import FILE
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE

WINDOW_NS = 3600 * 10**9
SAMPLE = 32  # rewritten files whose content is looked at
BEGINNING = 64 << 10  # bytes of each
SHORTEST = 200  # bytes of a file that says anything about structure
BEFORE = 0.99  # of the change that is seen from the baseline: what a version before it has to see, too
HISTORY = 16  # pairs of earlier versions that tell what is usual

Load = Callable[[bytes], bytes]

ENDED = f"{{0}}died>?1 AND {{0}}died<=?2 AND {{0}}died<{OPEN}"
"""Which rows ended. The last condition adds nothing but the index, which has such rows only: without it
SQLite reads every row of the catalog, a second where there are a million files."""

_DIED = (
    "SELECT e.content,e.level,e.size,n.kind,n.content,n.level,n.size FROM entry e"
    " LEFT JOIN entry n ON n.dir=e.dir AND n.name=e.name AND n.born<=?2 AND n.died>?2"
    f" WHERE {ENDED.format('e.')} AND e.born<=?1 AND e.kind={FILE}"
    # What is again as an older version has it was brought back (rule 83).
    " AND NOT EXISTS (SELECT 1 FROM entry o WHERE o.dir=e.dir AND o.name=e.name AND o.born<e.born"
    " AND n.kind=o.kind AND n.content IS o.content AND n.size=o.size)"
)


class Counter(Reader):
    """A reader that counts. One thread at a time."""

    def changed(self, base: int, to: int, most: int) -> int:
        """Paths of image `base` that image `to` has not as they were, at most `most`: a few microseconds a
        path. `base` has to be an image that is kept."""
        sql = f"SELECT count(*) FROM (SELECT 1 FROM entry WHERE {ENDED.format('')} AND born<=?1 LIMIT ?3)"
        row = self._one(sql, (base, to, most))
        return int(row[0]) if row else 0

    def counts(self, base: int, to: int, load: Load | None = None) -> Counts:
        """What became of the files of image `base` until image `to`. With `load` some of what was rewritten
        is read, before and after."""
        chance = random.Random(to)  # the same images give the same answer
        row = self._one(f"SELECT count(*) FROM entry WHERE born<=?1 AND died>?1 AND kind={FILE}", (base,))
        files = int(row[0]) if row else 0
        gone: dict[int, int] = {}  # what a path that is gone held -> how many such paths
        rewritten, deleted = 0, 0
        sample: list[tuple[Any, ...]] = []
        for was, was_level, was_size, kind, now, now_level, now_size in self._db.execute(_DIED, (base, to)):
            if kind != FILE:
                if was is None:
                    deleted += 1  # an empty file has no other name to be known by
                else:
                    gone[_short(was)] = gone.get(_short(was), 0) + 1
            elif was != now:
                rewritten += 1
                pair = (was, was_level, was_size, now, now_level, now_size)
                if len(sample) < SAMPLE:
                    sample.append(pair)
                elif (at := chance.randrange(rewritten)) < SAMPLE:
                    sample[at] = pair
        if gone:
            deleted += sum(gone.values()) - self._renamed(gone, base, to)
        found = Counts(files, deleted, rewritten)
        if load is None or rewritten < LEAST:
            return found
        return found._replace(scrambled=_scrambled(sample, load))

    def _renamed(self, gone: dict[int, int], base: int, to: int) -> int:
        """How many of the paths that are gone are there under another name that came since."""
        left, count = dict(gone), 0
        came = self._db.execute(
            f"SELECT content FROM entry WHERE born>?1 AND born<=?2 AND died>?2 AND kind={FILE}"
            " AND content IS NOT NULL",
            (base, to),
        )
        for (name,) in came:
            if left.get(key := _short(name), 0):
                left[key] -= 1
                count += 1
        return count

    def last_before(self, found: Counts, images: list[Image], newest: Image) -> Image:
        """The latest of `images`, the first of which is the baseline, from which nearly all of what was found
        is seen: the last version before the change began."""
        for image in reversed([image for image in images[1:] if image.ordinal < newest.ordinal]):
            seen = self.counts(image.ordinal, newest.ordinal)
            if seen.deleted + seen.rewritten >= BEFORE * (found.deleted + found.rewritten):
                return image
        return images[0]

    def usual(self, before: list[Image]) -> Iterator[Counts]:
        """The same counts between neighbours of these images, the latest first."""
        for earlier, later in list(itertools.pairwise(before))[: -HISTORY - 1 : -1]:
            yield self.counts(earlier.ordinal, later.ordinal)


def baseline(images: list[Image], newest: Image, accepted: int) -> Image | None:
    """The image that `newest` is compared with: the last that is an hour older, a whole one if there is one
    of the hour before; else the first that is kept. None that is older than what a person accepted (an
    ordinal). None: there is no other."""
    older = [image for image in images if accepted <= image.ordinal < newest.ordinal]
    long_ago = [image for image in older if newest.at_ns - image.at_ns >= WINDOW_NS]
    if not long_ago:
        return next((image for image in older if _is_whole(image)), older[0] if older else None)
    recent = [image for image in long_ago if newest.at_ns - image.at_ns < 2 * WINDOW_NS and _is_whole(image)]
    return recent[-1] if recent else long_ago[-1]


def _is_whole(image: Image) -> bool:
    return not image.flags & (ROLLING | FUZZY)


def _short(name: bytes) -> int:
    return int.from_bytes(name[:8], "big")


def _scrambled(sample: list[tuple[Any, ...]], load: Load) -> float:
    """Of those of the pairs that had structure, the share that has none now."""
    lost = seen = 0
    for was, was_level, was_size, now, now_level, now_size in sample:
        if was is None or now is None or min(was_size, now_size) < SHORTEST:
            continue
        try:
            before = _part(was, was_level, load)
            if before > STRUCTURE:
                continue
            after = _part(now, now_level, load)
        except (Missing, Damaged, RemoteProtocolError):
            continue
        seen += 1
        lost += after > STRUCTURE
    return lost / seen if seen >= min(8, len(sample)) and seen else 0.0


def _part(name: bytes, level: int, load: Load) -> float:
    """To which part of its size the beginning of a file can be compressed."""
    data = b""
    for _, length, chunk in content.walk(name, level, load):
        data += bytes(min(length, BEGINNING)) if chunk == HOLE else load(chunk)[:BEGINNING]
        if len(data) >= SHORTEST:
            break
    return len(zstandard.compress(data, 1)) / len(data) if data else 0.0
