"""Whether bytes that differ from what was captured are a change or damage (rule 58). Pure: time comes in as
an argument, in ns.

A file whose fingerprint is unchanged should have unchanged bytes. When it has not, either the disk damaged
it or somebody wrote through a mapping, which moves no time while the page is dirty; the difference may be met
long after such a write. So it is damage only when the good bytes were read from this disk at a time at which
no such page could be left, the file has no writer now, and the difference stands still. Whatever is not
certain is taken for a change: earlier versions keep the bytes from before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from crnode.store.reader import Fingerprint

YOUNG_NS = 60 * 10**9
"""A page written through a mapping is written back, and its next write moves the times again, within about
35 s (the kernel's dirty_expire and writeback intervals): bytes that were read later than this after the last
change of the times do not change through a mapping without the times moving."""


class Verified(NamedTuple):
    """What the last deep pass that came to its end has proved: files whose entries are of image `ordinal` or
    older were read, and found to be what was captured, at `begun_ns` or later; but not those of `unread`."""

    begun_ns: int = 0
    ordinal: int = 0
    unread: frozenset[bytes] = frozenset()

    def encode(self) -> bytes:
        """As it is kept in the catalog."""
        return json.dumps([self.begun_ns, self.ordinal, [path.hex() for path in self.unread]]).encode()

    @classmethod
    def decode(cls, value: bytes | None) -> Verified:
        """The other way round; of a set that had no pass yet, nothing is proved."""
        if value is None:
            return cls()
        begun, ordinal, unread = json.loads(value)
        return cls(begun, ordinal, frozenset(map(bytes.fromhex, unread)))

    def since(self, path: bytes, born: int) -> int:
        """The time at which, or later, the bytes of an entry that is as old as image `born` were read; 0 when
        they were not."""
        return self.begun_ns if 0 < born <= self.ordinal and path not in self.unread else 0


class Verdict(Enum):
    """What to do with the file: take it as it is, keep the old entry for now, keep it for good."""

    CHANGE = "change"
    WAIT = "wait"
    DAMAGE = "damage"


class Stretch(NamedTuple):
    """A chunk of the captured file that is not there any more: bytes from `start` until `end`, and its id."""

    start: int
    end: int
    id: bytes


class Look(NamedTuple):
    """One reading of a file that has the fingerprint it was captured with, and other bytes.

    `found`: an id of the bytes that were read. `written`: whether anybody has the file open for writing or
    mapped so, None when that cannot be known. `event`: the kernel reported a write since the last capture.
    `good_ns`: when the good bytes were read here after their capture, or before that reading; 0 for never.
    """

    print: Fingerprint
    found: bytes
    stretches: tuple[Stretch, ...]
    written: bool | None
    event: bool
    at_ns: int
    good_ns: int = 0


def may_be_damage(look: Look) -> bool:
    """Whether all but the second look speaks for damage. Looks at no bytes."""
    times = max(look.print.ctime_ns, look.print.mtime_ns)
    proved = 0 < look.good_ns <= look.at_ns and look.good_ns - times >= YOUNG_NS
    return proved and look.written is False and not look.event


def judge(first: Look | None, now: Look, wait_ns: int) -> Verdict:
    """The verdict on a file that `first` was met with other bytes than its entry's, and is so `now`."""
    if not may_be_damage(now):
        return Verdict.CHANGE
    if first is None or (first.print, first.found) != (now.print, now.found):
        return Verdict.WAIT  # a disk that answers at random is looked at until it stands still
    return Verdict.WAIT if now.at_ns - first.at_ns < wait_ns else Verdict.DAMAGE


class Suspicions:
    """The files of a set that differ under an unchanged fingerprint, until it is known what they are.

    Args:
        wait_ns: the time between the two looks.
    """

    def __init__(self, wait_ns: int) -> None:
        self.wait_ns = wait_ns
        self._first: dict[bytes, Look] = {}
        self._verdicts: dict[bytes, Verdict] = {}

    def meet(self, path: bytes, look: Look) -> Verdict:
        """A look at `path` was taken; what to do with it."""
        first = self._first.get(path)
        verdict = judge(first, look, self.wait_ns)
        known = first is not None and (first.print, first.found) == (look.print, look.found)
        if verdict is Verdict.WAIT and not known:
            self._first[path] = look
        if verdict is Verdict.CHANGE:
            self.clear(path)
        else:
            self._verdicts[path] = verdict
        return verdict

    def clear(self, path: bytes) -> None:
        """`path` has the bytes of its entry, or is captured as it is."""
        self._first.pop(path, None)
        self._verdicts.pop(path, None)

    def verdict(self, path: bytes) -> Verdict | None:
        """The last verdict, None for a file that nothing is suspected of."""
        return self._verdicts.get(path)

    def due(self, now_ns: int) -> list[bytes]:
        """Files whose second look is due."""
        return [
            path
            for path, first in list(self._first.items())
            if self._verdicts.get(path) is Verdict.WAIT and now_ns - first.at_ns >= self.wait_ns
        ]


def ranges(stretches: Iterable[Stretch], most: int = 3) -> str:
    """The stretches for people: neighbours as one, 'bytes 4096 to 8191'."""
    merged: list[tuple[int, int]] = []
    for one in stretches:
        if merged and merged[-1][1] == one.start:
            merged[-1] = (merged[-1][0], one.end)
        else:
            merged.append((one.start, one.end))
    text = ", ".join(f"{start} to {end - 1}" for start, end in merged[:most])
    return f"bytes {text}" + (f" and {len(merged) - most} more stretches" if len(merged) > most else "")
