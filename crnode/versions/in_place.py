"""What a restore to the original place has to change: the difference of a version and of what is there. Pure.

The names of hard link groups are those of inodes, and what is written anew gets another one; so entries are
compared without them, and groups by who belongs to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from crproto.entries import DIRECTORY, Entry, Extra, link_of
from crproto.paths import split

Group = tuple[int, bytes]  # kind and name of a hard link group


class Written(NamedTuple):
    """A file or symbolic link to write, and the further names that it gets."""

    entry: Entry
    others: tuple[bytes, ...]


class Plan(NamedTuple):
    """The changes, in the order in which they are made."""

    in_the_way: tuple[bytes, ...]  # of another kind than what comes there, or below it; deepest first
    folders: tuple[Entry, ...]  # new or with other attributes, outermost first
    written: tuple[Written, ...]
    removed: tuple[bytes, ...]  # deepest first

    def paths(self) -> Iterator[bytes]:
        """Every path that is made, changed or removed; some come twice."""
        yield from self.in_the_way
        yield from self.removed
        yield from (entry.path for entry in self.folders)
        for entry, others in self.written:
            yield from (entry.path, *others)

    def __bool__(self) -> bool:
        return any(self)


def bare(entry: Entry) -> Entry:
    """The entry without what says how it was captured: the name of its hard link group, and that it was
    fuzzy."""
    if not entry.extra:
        return entry
    return entry._replace(extra=replace(Extra.decode(entry.extra), link=None, fuzzy=False).encode())


class Comparison:
    """Takes a version page by page. In memory are all paths, and the entries that differ or have several
    names."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._differs: dict[bytes, Entry] = {}
        self._linked: dict[bytes, Entry] = {}  # what has or had several names
        self._groups: dict[Group, list[bytes]] = {}
        self._groups_now: dict[Group, list[bytes]] = {}
        self._folders_now: set[bytes] = set()  # where the version has something else
        self._others_now: set[bytes] = set()  # where the version has folders

    def take(self, wanted: Sequence[Entry], now: Sequence[Entry | None]) -> None:
        """A page of the version, and what is there at each path of it. ValueError for a path that came
        already."""
        for entry, there in zip(wanted, now, strict=True):
            if entry.path in self._seen:
                raise ValueError("a path comes twice")
            self._seen.add(entry.path)
            if there is None or bare(there) != bare(entry):
                self._differs[entry.path] = entry
            if there is not None and there.kind != entry.kind:
                if there.kind == DIRECTORY:
                    self._folders_now.add(entry.path)
                elif entry.kind == DIRECTORY:
                    self._others_now.add(entry.path)
            for side, groups in ((entry, self._groups), (there, self._groups_now)):
                if side is not None and (link := link_of(side)) is not None:
                    groups.setdefault((side.kind, link), []).append(entry.path)
                    self._linked[entry.path] = entry

    def plan(self, there: Iterable[bytes]) -> Plan:
        """The changes. `there`: every path that is there now, of those that the version may replace."""
        members = self._members(self._groups)
        before = self._members(self._groups_now)
        for path, entry in self._linked.items():
            if members.get(path) != before.get(path):
                self._differs[path] = entry
        for path in [path for path in self._differs if path in members]:  # a group is written as a whole
            self._differs.update((other, self._linked[other]) for other in members[path])
        gone: list[bytes] = []
        in_the_way = [*self._folders_now, *self._others_now]
        for path in there:
            if path not in self._seen:
                (in_the_way if self._below_one(path) else gone).append(path)
        written: list[Written] = []
        done: set[bytes] = set()
        for path, entry in sorted(self._differs.items()):
            if entry.kind == DIRECTORY or path in done:
                continue
            names = members.get(path, ())
            done.update(names)
            written.append(Written(entry, tuple(name for name in names if name != path)))
        return Plan(
            tuple(sorted(in_the_way, reverse=True)),
            tuple(entry for _, entry in sorted(self._differs.items()) if entry.kind == DIRECTORY),
            tuple(written),
            tuple(sorted(gone, reverse=True)),
        )

    @staticmethod
    def _members(groups: dict[Group, list[bytes]]) -> dict[bytes, tuple[bytes, ...]]:
        """Path -> all names of its file, for files with several."""
        return {
            path: names
            for names in (tuple(sorted(paths)) for paths in groups.values() if len(paths) > 1)
            for path in names
        }

    def _below_one(self, path: bytes) -> bool:
        """Whether it lies in a folder that is to become something else."""
        if not self._folders_now:
            return False
        head, _ = split(path)
        while head:
            if head in self._folders_now:
                return True
            head, _ = split(head)
        return False


__all__ = ["Comparison", "Plan", "Written", "bare"]
