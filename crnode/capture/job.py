"""One capture: dirty paths in, batches of changes out. Runs in the set's capture thread.

The job compares with image `view` and yields batches of bounded size, so that memory does not grow with the
number of files. A path is looked at once a job unless it is handed in again (it changed meanwhile).
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from crnode.capture.guard import RotGuard
from crnode.capture.read import SMALL, Fresh, Gone, Own, PathReader, Taken, Torn, Unreadable
from crnode.capture.roots import Selection
from crnode.capture.scan import dirty_paths
from crnode.capture.watch import Watcher, WatchLimit
from crnode.platform.files import open_beneath
from crnode.store.reader import Fingerprint, Reader
from crproto.entries import DIRECTORY, FILE, Entry, Extra, link_of
from crproto.paths import RESERVED, problem, split

BATCH_ENTRIES = 500  # one turn of the writer thread, for which every other set waits
BATCH_PRINTS = 20_000  # paths of which only the fingerprint is another one
AGAIN_MOST = 3  # a file that is written all the time differs at each name; the next point takes them
BATCH_BYTES = 24 << 20  # bytes of new chunks held at most by one batch

Inode = tuple[int, int]  # device and number


@dataclass
class Batch:
    """Changes of one set, in memory: what one catalog transaction takes."""

    changed: dict[bytes, Entry] = field(default_factory=dict)
    removed: set[bytes] = field(default_factory=set)
    prints: dict[bytes, Fingerprint | None] = field(default_factory=dict)
    lost: dict[bytes, str | None] = field(default_factory=dict)
    fresh: Fresh = field(default_factory=Fresh)
    fuzzy: set[bytes] = field(default_factory=set)  # files that never settled while they were read

    def full(self) -> bool:
        return (
            len(self.changed) + len(self.removed) >= BATCH_ENTRIES
            or self.fresh.held >= BATCH_BYTES
            or len(self.prints) >= BATCH_PRINTS
        )

    def empty(self) -> bool:
        """True when no entry changes (fingerprints and reports may)."""
        return not self.changed and not self.removed


class _Names:
    """Which paths of a batch are names of which file. Few files have several names, so this is made when the
    first of them is met."""

    def __init__(self) -> None:
        self._of: dict[Inode, dict[bytes, None]] | None = None
        self._latest: dict[Inode, Fingerprint] = {}

    def of(self, batch: Batch, inode: Inode) -> dict[bytes, None]:
        """The paths of the batch that were taken as names of `inode`; some may be other files by now."""
        if self._of is None:
            self._of = {}
            for path, print_ in batch.prints.items():
                if print_ is not None:
                    self._of.setdefault((print_.dev, print_.ino), {})[path] = None
        return self._of.setdefault(inode, {})

    def add(self, path: bytes, print_: Fingerprint) -> None:
        """A path was taken."""
        if self._of is not None:
            self._of.setdefault((print_.dev, print_.ino), {})[path] = None

    def is_latest(self, print_: Fingerprint) -> bool:
        """Whether the file was met like this last; from now on it was."""
        inode = (print_.dev, print_.ino)
        before, self._latest[inode] = self._latest.get(inode), print_
        return before == print_


class Job:
    """See the module's text.

    Args:
        reader: the path reader of the set.
        catalog: a reading connection of this thread.
        view: ordinal of the image to compare with (the staging one when a staged image is resumed, 0 for
        none).
        selection: which paths belong to the set.
        watcher: gets a watch on each directory that is scanned, before it is listed; None when watches ran
        out.
        guard: asked about files that have other bytes under an unchanged fingerprint.
    """

    def __init__(
        self,
        reader: PathReader,
        catalog: Reader,
        view: int,
        selection: Selection,
        watcher: Watcher | None,
        guard: RotGuard | None = None,
    ) -> None:
        self.reader = reader
        self.guard = guard
        self.catalog = catalog
        self.view = view
        self.selection = selection
        self.watcher = watcher
        self.batch = Batch()
        self.limit: str | None = None  # the sysctl that has to be raised, when watches ran out
        self.left: set[bytes] = set()  # names of files that are written all the time: not as their others are
        self._names = _Names()
        self._again: dict[bytes, None] = {}  # other names of files that were taken, to be looked at
        self._stale: dict[bytes, None] = {}  # names that were taken before their file changed
        self._emptied: list[tuple[bytes, int]] = []  # what lies below in that image is to be removed
        self._asked_for: set[bytes] = set()  # names that this batch has looked at
        self._groups: set[tuple[int, bytes] | Inode] = set()  # groups and inodes all of whose names are
        self._asked: tuple[bytes | None, bool] = (None, False)  # the directory asked last; had it anything?
        self._known_lost: set[bytes] | None = None  # read in the thread that works

    def run(self, paths: Iterable[tuple[bytes, bool]]) -> Iterator[Batch]:
        """Capture `paths` ((path, whether with everything below)); yields full batches. What is left stays in
        :attr:`batch`, so that a small capture is one batch that is never yielded."""
        self.reader.begin()
        if self._known_lost is None:
            self._known_lost = {path for path, _ in self.catalog.lost(100_000)}
        times: Counter[bytes] = Counter()
        for path, tree in paths:
            found: Iterable[bytes] = self._scan(path) if tree else (path,)
            for each in found:
                names = self._take(each)
                yield from self._remove_what_was_below()
                self._look_at(names)
                while (name := self._next(times)) is not None:
                    names = self._take(name)
                    yield from self._remove_what_was_below()
                    self._look_at(names)
                    if self.batch.full():
                        yield self.flush()
                if self.batch.full():
                    yield self.flush()

    def _look_at(self, names: Iterable[bytes]) -> None:
        """They have to be looked at because of what was taken; each once a batch."""
        for name in names:
            if name not in self._asked_for:
                self._asked_for.add(name)
                self._again[name] = None

    def _next(self, times: Counter[bytes]) -> bytes | None:
        """The next of the names that are due."""
        while self._stale:
            name, _ = self._stale.popitem()
            times[name] += 1
            if times[name] <= AGAIN_MOST:
                self.left.discard(name)
                return name
            self.left.add(name)
        return self._again.popitem()[0] if self._again else None

    def staged(self, ordinal: int) -> None:
        """What was flushed is in the catalog, as part of the image in the making `ordinal`: what is looked at
        again from now on is compared with that."""
        self.view = ordinal

    def flush(self) -> Batch:
        """Hand the gathered batch over and begin a new one."""
        batch, self.batch = self.batch, Batch()
        self._names = _Names()
        self._asked_for.clear()  # their files may change from now on
        self._groups.clear()
        self._asked = None, False  # the directory asked last may have entries from now on
        return batch

    def _scan(self, top: bytes) -> Iterator[bytes]:
        # What this batch has of the tree differs from the image that the scan compares with: a folder that
        # was gone and is back looks as it always did.
        batch, inside = self.batch, top + b"/" if top else b""
        touched = sorted(p for p in (*batch.changed, *batch.removed) if p == top or p.startswith(inside))
        yield from dirty_paths(
            self.reader.roots,
            self.catalog,
            self.view,
            self.selection.takes,
            top,
            self.reader.own,
            self._watch if self.watcher else None,
        )
        yield from touched

    def _watch(self, path: bytes) -> None:
        try:
            watch_directory(self.reader, self.watcher, path)
        except WatchLimit as limit:
            self.watcher, self.limit = None, str(limit)

    def _old(self, path: bytes) -> Entry | None:
        if path in self.batch.changed:
            return self.batch.changed[path]
        if path in self.batch.removed or self.view == 0:
            return None
        head = split(path)[0]
        if head != self._asked[0]:
            self._asked = head, self.catalog.ever_had(head)
        # In a directory that never had anything there was nothing: as in a first copy.
        return self.catalog.entry(path, self.view) if self._asked[1] else None

    def _take(self, path: bytes) -> list[bytes]:
        """Capture one path; returns other paths that must be looked at because of it (hard links)."""
        batch = self.batch
        why_not = problem(path, root=True)
        if why_not:
            return self._not_ours_to_take(path, why_not)
        old = self._old(path)
        event = self.guard.take_event(path) if self.guard is not None else False
        try:
            if (workspace := self.reader.workspace_above(path)) is not None:
                return [*self._gone(path, old), workspace]
            info = self.reader.stat(path)
            is_dir = stat.S_ISDIR(info.st_mode)
            if not self.selection.takes(path, is_dir) or self.reader.inside_destination(path):
                raise Gone
            if is_dir and (own := self.reader.own_place(path)) is not None:
                return self._own(path, old, own)
            base = old
            if base is None and info.st_size > SMALL and stat.S_ISREG(info.st_mode) and self.view:
                base = self._renamed_from(info.st_dev, info.st_ino)
            taken = self.reader.take(path, base, batch.fresh, info, True)
        except Gone:
            return self._gone(path, old)
        except Unreadable as reason:
            # What was captured before stays in the image: "cannot be read now" is not "was deleted".
            batch.lost[path] = str(reason)
            if old is not None and link_of(old) is not None:
                # But not as a name of that file: its inode may be gone, and its number come again.
                extra = replace(Extra.decode(old.extra), link=None)
                batch.changed[path] = old._replace(extra=extra.encode())
            return []
        except Torn:
            batch.lost[path] = "it changed each time it was read; it is tried again"
            return []
        if old is not None and self._keeps_old(path, old, taken, event):
            return []
        return self._taken(path, old, taken)

    def _not_ours_to_take(self, path: bytes, why_not: str) -> list[bytes]:
        """A path that no image can have. Of a folder with crnode's own name the outermost is told, unless it
        is that of a restore to this place."""
        parts = path.split(b"/")
        if RESERVED in parts[:-1]:
            return [b"/".join(parts[: parts.index(RESERVED) + 1])]
        if parts[-1] == RESERVED:
            try:
                told = not self.reader.holds_restores(path)
            except Gone:
                told = False
            except Unreadable:
                told = True
            if not told:
                if path in (self._known_lost or ()) or path in self.batch.lost:
                    self.batch.lost[path] = None
                return []
        self.batch.lost[path] = why_not
        return []

    def _own(self, path: bytes, old: Entry | None, own: Own) -> list[bytes]:
        """A directory of crnode's own is in no image; a destination of this very set is told, too."""
        partners = self._gone(path, old)
        self._remove_below(path)  # also what was taken before its mark was there
        if own is Own.DESTINATION:
            self.batch.lost[path] = "it is a destination of this very set: a copy would be copied again"
        else:
            self.batch.lost[path] = "crnode keeps its own files of a destination here; they are in no image"
            head, _, name = path.rpartition(b"/")
            partners.append((head + b"/" if head else b"") + name.removeprefix(b".crnode-"))
        return partners

    def _keeps_old(self, path: bytes, old: Entry, taken: Taken, event: bool) -> bool:
        """Whether what was read looks like damage of the disk, so that the old entry stays (rule 58)."""
        entry = taken.entry
        if self.guard is None or old.kind != FILE or entry.kind != FILE:
            return False
        recorded = self.batch.prints.get(path) or self.catalog.fingerprint(path)
        same = (entry.content, entry.level) == (old.content, old.level)
        if same or recorded != taken.fingerprint or path in self.batch.changed:
            self.guard.suspicions.clear(path)
            return False
        recipes, guard = self.batch.fresh.recipes, self.guard

        def load(name: bytes) -> bytes:
            return recipes[name] if name in recipes else guard.load(name)

        reason = guard.keeps(self.reader.roots, self.catalog, self.view, old, taken, load, event)
        if reason:
            self.batch.lost[path] = reason
        return reason is not None

    def _taken(self, path: bytes, old: Entry | None, taken: Taken) -> list[bytes]:
        batch = self.batch
        entry = taken.entry
        if path in (self._known_lost or ()) or path in batch.lost:
            batch.lost[path] = None
        link = link_of(entry)
        fuzzy = entry.kind == FILE and bool(entry.extra) and Extra.decode(entry.extra).fuzzy
        self._note_inode(path, taken.fingerprint, linked=link is not None and not fuzzy)
        batch.prints[path] = taken.fingerprint
        batch.removed.discard(path)
        batch.fuzzy.discard(path)
        if fuzzy:
            batch.fuzzy.add(path)
        if entry == old:
            return []
        if old is not None and old.kind == DIRECTORY and entry.kind != DIRECTORY:
            self._remove_below(path)
        batch.changed[path] = entry
        partners = self._partners(old)
        if link is not None:
            # One that was taken when the inode was as it is now is right: of a first copy each batch would
            # take all names again that the batches before it had.
            partners += self._partners(entry, taken.fingerprint)
            inode = (taken.fingerprint.dev, taken.fingerprint.ino)
            if inode not in self._groups:
                self._groups.add(inode)
                partners += self.catalog.with_inode(*inode, unlike=taken.fingerprint)
        return [p for p in partners if p != path]

    def _note_inode(self, path: bytes, print_: Fingerprint | None, *, linked: bool = False) -> None:
        """`path` is `print_` from now on, one name of several if `linked`. Other names of the file that it
        is, and of the one that it was, which this batch has taken earlier are stale: inotify names only the
        one that was written through, or went."""
        prints, before = self.batch.prints, self.batch.prints.get(path)
        if before is not None and (print_ is None or before[:2] != print_[:2]):
            was = self._names.of(self.batch, (before.dev, before.ino))
            was.pop(path, None)
            self._stale |= {p: None for p in was if (k := prints.get(p)) and k[:2] == before[:2]}
        if print_ is None:
            return
        if linked and not self._names.is_latest(print_):
            for other in self._names.of(self.batch, (print_.dev, print_.ino)):
                known = prints.get(other)
                if other != path and known and known != print_ and known[:2] == print_[:2]:
                    self._stale[other] = None
        self._names.add(path, print_)

    def _partners(self, entry: Entry | None, unlike: Fingerprint | None = None) -> list[bytes]:
        """The members of the link group of an entry, unless they were looked at because of another one;
        without those whose fingerprint is `unlike`."""
        link = link_of(entry) if entry is not None else None
        if entry is None or link is None or (entry.kind, link) in self._groups:
            return []
        self._groups.add((entry.kind, link))
        return self.catalog.link_members(link, entry.kind, self.view, unlike)

    def _renamed_from(self, dev: int, ino: int) -> Entry | None:
        """The entry that had this inode under another path: what it names need not be cut again."""
        for path in self.catalog.with_inode(dev, ino, limit=4):
            entry = self.catalog.entry(path, self.view)
            if entry is not None and entry.kind == FILE and entry.level > 0:
                return entry
        return None

    def _gone(self, path: bytes, old: Entry | None) -> list[bytes]:
        batch = self.batch
        if path in (self._known_lost or ()) or path in batch.lost:
            batch.lost[path] = None
        if old is None:
            return []
        if old.kind == DIRECTORY:  # what could not be taken below it is gone with it
            below = [p for p in self._known_lost or () if p.startswith(path + b"/")]
            batch.lost.update(dict.fromkeys(below))
        partners = self._partners(old)
        if old.kind == DIRECTORY:
            self._remove_below(path)
        self._remove(path)
        return partners

    def _remove(self, path: bytes) -> None:
        self._note_inode(path, None)
        self.batch.changed.pop(path, None)
        self.batch.removed.add(path)
        self.batch.prints[path] = None

    def _remove_below(self, path: bytes) -> None:
        """All below a path goes: what the image has of it in as many batches as it takes."""
        if self.view:
            self._emptied.append((path, self.view))
        for other in [p for p in self.batch.changed if p.startswith(path + b"/")]:
            self._remove(other)

    def _remove_what_was_below(self) -> Iterator[Batch]:
        while self._emptied:
            path, view = self._emptied.pop()
            for entry in self.catalog.subtree(path, view):
                if entry.path != path:
                    self._remove(entry.path)
                    if self.batch.full():
                        yield self.flush()


def watch_directory(reader: PathReader, watcher: Watcher | None, path: bytes) -> None:
    """Put a watch on the directory at image path `path`; a directory that is gone again is nobody's loss,
    because its parent's event is on its way. Raises WatchLimit."""
    if watcher is None:
        return
    root_fd, below = reader.roots.resolve(path)
    try:
        fd = open_beneath(root_fd, below, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        watcher.watch(path, fd)
    except OSError:
        return
    finally:
        os.close(fd)


def watch_tree(reader: PathReader, watcher: Watcher, takes: Callable[[bytes, bool], bool], top: bytes) -> int:
    """Watch all directories at and below `top`; returns how many. Raises WatchLimit."""
    count = 0
    stack = [top]
    while stack:
        path = stack.pop()
        watch_directory(reader, watcher, path)
        count += 1
        root_fd, below = reader.roots.resolve(path)
        try:
            fd = open_beneath(root_fd, below, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            with os.scandir(fd) as listing:
                for item in listing:
                    if item.is_dir(follow_symlinks=False):
                        name = os.fsencode(item.name)
                        child = (path + b"/" if path else b"") + name
                        own = reader.own.workspace(fd, name) or reader.own.destination(fd, name)
                        if takes(child, True) and not own and not problem(child):
                            stack.append(child)
        except OSError:
            continue
        finally:
            os.close(fd)
    return count
