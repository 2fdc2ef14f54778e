"""The live tree of a set at a target: native files of the newest image, ready for services.

The catalog says which image the tree shows (`at`), which it is moving to (`target`), and which is durable on
disk (`synced`); rows of all three are kept. A move that was interrupted is simply done again: every path that
differs is compared by fingerprint and rewritten where it is not what it should be (rule 61). Files that
somebody changed are moved aside, reported and put right, never overwritten (rule 63). Runs in the set's live
thread; decisions about what to keep are in the catalog's transactions, which run in the writer thread.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from crnode.errors import CrnodeError
from crnode.platform.files import boot_id, make_private_dir
from crnode.replicate.ahead import LARGEST, Ahead
from crnode.replicate.aside import Aside
from crnode.replicate.place import Place
from crnode.replicate.write import CannotTell, Finished, NotInPlace, Outcome, Policy, TreeWriter, fingerprint
from crnode.store.catalog import Catalog
from crnode.store.packs import full_error, is_full
from crnode.store.reader import ROLLING, Fingerprint, Image, Live, Reader
from crnode.store.store import Damaged, Missing
from crproto.entries import DIRECTORY, FILE, SYMLINK, Entry, Extra, link_of
from crproto.errors import RemoteProtocolError
from crproto.limits import COMPONENT
from crproto.paths import split

IN_PLACE = 1 << 20  # bytes from which a changed file is patched instead of written anew
MIXED = 8  # versions of a file that are compared with one that may be half patched
_NO_FOLDER = (errno.ELOOP, errno.ENOTDIR)  # on the way to a path
RECORD_EVERY = 1000  # paths after which fingerprints go to the catalog: what a restart need not look at again

LACKING = "its content is damaged here; it is fetched again"

Record = Callable[[Callable[[], None]], None]
"""Runs its argument in a transaction of the writer thread and waits for it."""


_Alike: TypeAlias = tuple[Any, ...]  # an entry without its path


@dataclass
class Report:
    """What a move or a repair did, for the journal and the status."""

    written: int = 0
    removed: int = 0
    set_aside: list[bytes] = field(default_factory=list)
    unapplied: dict[bytes, str] = field(default_factory=dict)
    put_right: set[bytes] = field(default_factory=set)  # paths that somebody had changed
    damaged: set[bytes] = field(default_factory=set)  # ids of objects that could not be read
    bytes: int = 0


class LiveTree:
    """See the module's text.

    Args:
        reader: a reading connection of the live thread.
        record: how to run a catalog transaction.
        load: object id -> bytes; raises Missing or Damaged.
        archive: deletions do not follow.
        check: asked before a move with the ordinal of the image that is shown, the one that it goes to, and
            whether it began since it was asked; raises CrnodeError when the tree has to stay. If the error
            has a `before`, the ordinal of an image, a tree that shows nothing yet goes there.
        aside_name: names the folder for files set aside by this move (a time, for people).
    """

    def __init__(
        self,
        place: Place,
        catalog: Catalog,
        reader: Reader,
        record: Record,
        load: Callable[[bytes], bytes],
        policy: Policy,
        *,
        archive: bool,
        check: Callable[[int, Image, bool], None] = lambda at, image, begun: None,
        aside_name: Callable[[], str] = lambda: time.strftime("%Y-%m-%d %H.%M.%S"),
    ) -> None:
        self.place = place
        self.catalog = catalog
        self.reader = reader
        self.record = record
        self.load = load
        self.policy = policy
        self.archive = archive
        self._check = check
        self._aside = Aside(place.aside, aside_name)
        self._prints: dict[bytes, Fingerprint | None] = {}
        self._report = Report()
        self._counting = threading.Lock()
        self._cleared: set[bytes] = set()
        self._unsaid: dict[bytes, str] = {}  # of what is not applied, what no record has yet
        # Paths of this move that hold something of ours, and not what the image has: until they were written
        # whole no change may build upon them, whatever the catalog's rows say.
        self._stale: set[bytes] = set()
        self.stopping = False  # set from outside: a move ends at its next path and is redone later
        self._to = 0  # ordinal of the image that is being written
        # (kind, link) of the groups that this move or repair came upon -> what is to be written of them yet
        self._groups: dict[tuple[int, bytes], dict[_Alike, list[bytes]]] = {}
        self._folders: set[bytes] = set()  # of their other names, which were replaced though no row changed
        self._page: dict[bytes, Fingerprint | None] = {}  # what the catalog has for the paths being written
        self._writing: TreeWriter | None = None  # while a move or a repair runs
        self._ahead: Ahead | None = None  # ... and what is written beside it
        self._again = False  # what is written now may have been begun before
        self._begun = False  # a move was begun and not ended: the next one goes on with it
        self._can_be_new = True  # as far as is known of the file system
        self._redo = True  # the process before may have been in the middle of one

    # -- moving

    def move(self, *, give_up: bool = False) -> Report | None:
        """Bring the tree to the newest image; None when it is there already. Raises CrnodeError (FULL, or the
        destination is not ours), OSError when the disk cannot be used; the tree then stays `moving`.

        `give_up`: the move that was begun had no room; a newer image that may be smaller is gone for instead.
        """
        try:
            return self._move(give_up)
        except CrnodeError:
            self._flush(None)  # what was written so far is ours, whatever image is gone for next
            raise

    def _move(self, give_up: bool) -> Report | None:
        live = self.reader.live()
        newest = self.reader.newest()
        if newest is None or live is None or (live.at == newest.ordinal and live.state == "clean"):
            self._begun = self._redo = False
            return None
        self.place.check()
        self._report, self._stale, self._unsaid = Report(), set(), {}
        self._again = self._begun or self._redo
        wanted = self.reader.image_at(live.target) if self._again else None
        if wanted is not None and give_up and wanted.ordinal != newest.ordinal:
            self._abandon(live.at, wanted.ordinal)
            wanted = None
        if wanted is None or wanted.ordinal <= live.at:
            # The commit of the image usually noted already that the move goes there: then no transaction is
            # needed.
            noted = live.target == newest.ordinal and live.state == "moving"
            wanted = newest if noted else self._aim()
        try:
            # Only what this object began itself is known to have been judged: the commit of an image alone
            # says that the tree moves there.
            self._check(live.at, wanted, self._begun and wanted.ordinal == live.target)
        except CrnodeError as error:
            if self._redo and live.state == "moving":
                self._abandon(live.at, live.target)  # the process before may have written some of it
            self._begun = self._redo = False
            before = self.reader.image_at(getattr(error, "before", 0)) if not live.at else None
            if before is None:
                self.record(self._stay)
                raise
            wanted = before  # better than nothing at all
            self.record(partial(self._go_to, before.ordinal))
        self._begun = True
        newest = wanted
        with self._writer() as writer:
            gone, deferred = self._deletions(live.at, newest)
            self._remove_gone(writer, gone)
            touched = {split(path)[0] for path in gone}
            touched |= self._write_came(writer, live.at, newest.ordinal)
            self._finish_directories(writer, touched, newest.ordinal)
        self._flush(Live(newest.ordinal, newest.ordinal, live.synced, "clean", boot_id()), deferred)
        self._begun = self._redo = False
        return self._report

    def _deletions(self, at: int, to: Image) -> tuple[set[bytes], set[bytes]]:
        """(paths to remove on the way from image `at` to `to`, paths that are not there either and wait for a
        later image to confirm it (rule 53)): those that a rolling image itself deletes."""
        gone = set(self.reader.went(at, to.ordinal))
        gone |= {p for p in self.reader.deferred() if self.reader.entry(p, to.ordinal) is None}
        waiting = self._only_now(gone, at, to.ordinal) if to.flags & ROLLING else set()
        waiting = {p for p in waiting if not self._below_no_directory(p, to.ordinal)}
        # What a move that was given up wrote was never shown, and may be what there is no room for.
        gone |= set(self.reader.touched_gone(to.ordinal))
        return gone - waiting, waiting

    def _only_now(self, gone: set[bytes], at: int, to: int) -> set[bytes]:
        """Those of the paths, which image `to` has not, that the image before it has, whatever they were when
        the tree was last moved; with a path come the folders that it is in."""
        while True:
            before = self.reader.before(to, at)
            found = {p for p in gone if self.reader.entry(p, before) is not None}
            # An image whose row is there has all its entries; one that was pruned meanwhile may lack some.
            if before == at or self.reader.image_at(before) is not None:
                return found

    def _below_no_directory(self, path: bytes, ordinal: int) -> bool:
        """Whether something that is no directory stands on the way to `path`: then nothing can be there."""
        head, _ = split(path)
        while head:
            entry = self.reader.entry(head, ordinal)
            if entry is not None:
                return entry.kind != DIRECTORY
            head, _ = split(head)
        return False

    def _abandon(self, at: int, wanted: int) -> None:
        """Remember the paths that a move to image `wanted`, which is given up, may have written, until a move
        ends: what the newest image has not is removed, and what it has is written whole."""
        self.record(lambda: self.catalog.note_touched(at, wanted))

    def _aim(self) -> Image:
        """Choose the newest image and note that the move goes there, before anything is written: a restart
        first finishes this very move, so that nothing it wrote is left behind (a1). In one transaction,
        because an image that is chosen and not noted may be pruned."""
        chosen: list[Image] = []

        def write() -> None:
            live, newest = self.catalog.live(), self.catalog.newest()
            assert live is not None
            assert newest is not None
            chosen.append(newest)
            if (live.target, live.state) != (newest.ordinal, "moving"):
                self.catalog.set_live(live._replace(target=newest.ordinal, state="moving"))

        self.record(write)
        return chosen[0]

    def _go_to(self, ordinal: int) -> None:
        live = self.catalog.live()
        assert live is not None
        self.catalog.set_live(live._replace(target=ordinal, state="moving"))

    def _stay(self) -> None:
        live = self.catalog.live()
        assert live is not None
        self.catalog.set_live(live._replace(target=live.at, state="clean"))

    def to_sync(self) -> tuple[int, int] | None:
        """(descriptor on the destination's file system, ordinal) of what the tree shows and is not durable
        yet; None when nothing is due. After syncfs of the descriptor, which the caller closes, everything of
        that image is durable, whatever was written meanwhile."""
        live = self.reader.live()
        if live is None or live.synced == live.at or self._begun or self._redo:
            return None  # between moves the tree is exactly at `at`, however far the next one is on its way
        fd = os.open(self.place.destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return fd, live.at

    def repair(self, paths: Iterable[bytes], *, aside: bool = False) -> Report:
        """Put `paths` right, which a scan found to differ from what was applied; what differs is kept
        aside. `aside`: also what looks like what was applied, because its bytes are others."""
        live = self.reader.live()
        self._report, self._stale, self._unsaid = Report(), set(), {}
        if live is None or live.state != "clean" or live.at == 0:
            return self._report
        self.place.check()
        touched: set[bytes] = set()
        self._to, self._groups, self._folders, self._again = live.at, {}, set(), False
        with self._writer() as writer:
            waiting = set(self.reader.deferred())
            found: dict[bytes, Entry | None] = {}
            for path in self._with_folders(writer, paths, live.at):
                entry = self.reader.entry(path, live.at)
                if entry is None and self.archive:
                    continue  # an archive shows what the source deleted, and keeps what anybody puts there
                if entry is None and (not path or path in waiting):
                    continue  # a deletion that no later image has confirmed yet is no local change
                found[path] = entry
                if entry is not None and entry.kind == DIRECTORY and not _is_directory(writer.lstat(path)):
                    # A scan names what is missing, not what would be below it.
                    below = self.reader.subtree(path, live.at)
                    found.update((other.path, other) for other in below if other.path != path)
            wrong = sorted(found.items(), key=lambda w: w[0])
            self._report.put_right = {p for p, e in wrong if e is None or e.kind != DIRECTORY}
            for path, entry in reversed(wrong):
                if entry is None:
                    self._guarded(path, partial(self._remove, writer, path))
                elif entry.kind != DIRECTORY:
                    clear = self._clear_damage if aside else self._clear_drift
                    self._guarded(path, partial(clear, writer, path, entry))
                touched.add(split(path)[0])
            for path, entry in wrong:
                if entry is None:
                    continue
                if entry.kind == DIRECTORY:
                    self._guarded(path, partial(self._make_directory, writer, path, entry))
                    touched.add(path)
                else:
                    self._guarded(path, partial(self._write, writer, entry, None, live.at))
            self._finish_directories(writer, touched | self._folders, live.at)
        self._report.put_right -= self._report.unapplied.keys()
        self._flush(None, put_right=True)
        return self._report

    def _with_folders(self, writer: TreeWriter, paths: Iterable[bytes], at: int) -> Iterator[bytes]:
        """`paths`, and before each the folder on the way to it that is gone and has to be there."""
        there: set[bytes] = set()
        gone: set[bytes] = set()
        for path in paths:
            parts = path.split(b"/")[:-1]
            for above in (b"/".join(parts[:count]) for count in range(1, len(parts) + 1)):
                if above in there:
                    continue
                if above in gone:
                    break
                if not _is_directory(writer.lstat(above)):
                    gone.add(above)
                    entry = self.reader.entry(above, at)
                    if entry is not None and entry.kind == DIRECTORY:
                        yield above
                    break
                there.add(above)
            yield path

    def changed(self, paths: Iterable[bytes]) -> list[bytes]:
        """Those of `paths` at which something was left that is not there any more as it was: somebody changed
        or removed it. Raises CrnodeError when the destination is not ours, OSError."""
        self.place.check()
        with self._writer() as writer:
            return [path for path in paths if self._is_changed(path, writer.lstat(path))]

    def _is_changed(self, path: bytes, info: os.stat_result | None) -> bool:
        return self._known(path) is not None and (info is None or not self._ours(path, info))

    @contextlib.contextmanager
    def _writer(self) -> Iterator[TreeWriter]:
        make_private_dir(self.place.temporary)
        root = os.open(self.place.destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        temporary = os.open(self.place.temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        writer = self._writing = TreeWriter(root, temporary, self._load, self.policy, lesser=True)
        ahead = self._ahead = Ahead(TreeWriter(root, temporary, self.load, self.policy, lesser=True))
        try:
            yield writer
        finally:
            self._writing = self._ahead = None
            try:
                ahead.close()
            finally:
                writer.close()
                os.close(temporary)
                os.close(root)

    def _load(self, content: bytes) -> bytes:
        data = self.load(content)
        with self._counting:  # a second thread reads, too
            self._report.bytes += len(data)
        return data

    # -- deletions

    def _remove_gone(self, writer: TreeWriter, gone: set[bytes]) -> None:
        if self.archive:
            for path in gone:
                self._prints.setdefault(path, self.reader.fingerprint(path))
                self._cleared.add(path)  # what could not be held of it is nobody's concern any more
            return
        for path in sorted(gone, reverse=True):  # what is inside a directory comes before it
            self._guarded(path, partial(self._remove, writer, path))
            if len(self._prints) >= RECORD_EVERY:
                self._flush(None)

    def _remove(self, writer: TreeWriter, path: bytes) -> None:
        self._clear_drift(writer, path, None)
        try:
            writer.remove(path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            self._set_aside(writer, path)  # somebody put files of their own into it
        self._prints[path] = None
        self._cleared.add(path)
        self._report.removed += 1

    # -- entries

    def _write_came(self, writer: TreeWriter, at: int, to: int) -> set[bytes]:
        """Write everything that is new or changed; returns the directories whose times must be set again."""
        self._to = to
        touched: set[bytes] = {split(path)[0] for path in self._prints}
        self._groups, self._folders = {}, set()
        after: tuple[int, int, bytes] | None = None
        while page := self.reader.moves(at, to, after, RECORD_EVERY):
            if self._ahead is not None:
                self._ahead.plan([entry for _, entry, old, _ in page if _written_whole(entry, old)])
            for _, entry, old, known in page:
                self._page[entry.path] = known
                touched.add(split(entry.path)[0])
                if entry.kind == DIRECTORY:
                    touched.add(entry.path)
                    self._guarded(entry.path, partial(self._make_directory, writer, entry.path, entry))
                    continue
                self._guarded(entry.path, partial(self._write, writer, entry, old, to))
            after = page[-1][0]
            self._page.clear()
            if len(self._prints) >= RECORD_EVERY:
                self._flush(None)
        for entry in self.reader.touched_stays(at, to):
            touched.add(split(entry.path)[0])
            self._guarded(entry.path, partial(self._write, writer, entry, None, to))
        return touched | self._folders

    def _make_directory(self, writer: TreeWriter, path: bytes, entry: Entry) -> None:
        info = writer.lstat(path)
        if info is not None and not stat.S_ISDIR(info.st_mode):
            if self.archive and self._ours(path, info, leaving=True):
                self._rename_deleted(writer, path)
            else:
                self._clear_drift(writer, path, None)
        writer.directory(entry)

    def _write(self, writer: TreeWriter, entry: Entry, old: Entry | None, to: int) -> None:
        """Make the path what `entry` says, the cheapest right way; the other names of its group with it."""
        link = link_of(entry)
        parts = self._parts(entry.kind, link, to) if link is not None else {}
        if link is not None and _alike(entry) not in parts:
            return  # written with another name
        if entry.kind == FILE and old is None and link is None and self._write_new(writer, entry):
            return
        here = self._make_room(writer, entry.path, entry, old)
        alone = here is not None and here.st_nlink == 1 and link is None
        if (
            alone
            and entry.kind == FILE
            and old is not None
            and old.kind == FILE
            and old.content is not None
            # else it may have what a move that was given up wrote, and not what `old` says
            and not self.reader.touched(entry.path)
        ):
            # PermissionError: who is not root may not open what is read-only, and may replace it.
            if (old.content, old.level) == (entry.content, entry.level):
                with contextlib.suppress(PermissionError):
                    self._done(entry.path, writer.attributes_only(entry), entry)
                    return
            elif _in_place(old) and _in_place(entry):
                try:
                    left = partial(self._prints.__setitem__, entry.path)
                    self._done(entry.path, writer.patch(entry, old, left), entry)
                    return
                except (NotInPlace, PermissionError):
                    pass  # written whole below; the old file is replaced, never mended by halves
        others = tuple(p for p in parts.get(_alike(entry), ()) if p != entry.path)
        for path in others:
            self._make_room(writer, path, entry)
        try:
            done = self._make(writer, entry, others)
        except OSError as error:
            if error.errno not in _NO_FOLDER or not self._make_way((entry.path, *others)):
                raise
            done = self._make(writer, entry, others)
        for path, outcome in done:
            self._done(path, outcome, entry)
        parts.pop(_alike(entry), None)
        self._folders.update(split(path)[0] for path in others)

    def _make(
        self, writer: TreeWriter, entry: Entry, others: tuple[bytes, ...]
    ) -> list[tuple[bytes, Outcome]]:
        if entry.kind != FILE:
            return writer.symlink(entry, others)
        return writer.file(entry, others, self._made_ahead(entry))

    def _made_ahead(self, entry: Entry) -> Finished | None:
        finished = self._ahead.take(entry.path) if self._ahead is not None else None
        if finished is not None:
            self._report.bytes += entry.size
        return finished

    def _write_new(self, writer: TreeWriter, entry: Entry) -> bool:
        """Write a file of which there was nothing: in one step that replaces nothing, so that what somebody
        puts there at this very moment is not lost either. False when it has to be looked at first."""
        if not self._can_be_new or self._known(entry.path) is not None:
            return False
        try:
            outcome = writer.new_file(entry, self._made_ahead(entry))
        except CannotTell:
            self._can_be_new = False
            return False
        except OSError as error:
            if error.errno not in (errno.EEXIST, *_NO_FOLDER):
                raise
            return False
        self._done(entry.path, outcome, entry)
        return True

    def _parts(self, kind: int, link: bytes, to: int) -> dict[_Alike, list[bytes]]:
        """What is to be written of a group yet, by what its names have to be: an image may call names one
        file that differ, and then each would get what the first of them has."""
        parts = self._groups.get((kind, link))
        if parts is None:
            parts = self._groups[kind, link] = {}
            for entry in self.reader.link_entries(link, kind, to):
                parts.setdefault(_alike(entry), []).append(entry.path)
        return parts

    def _make_room(
        self, writer: TreeWriter, path: bytes, entry: Entry, old: Entry | None = None
    ) -> os.stat_result | None:
        """What is at `path`, if it is ours and `entry` may change or replace it. Anything else is moved away
        first: drift aside, and in an archive a file whose name a link takes, or the other way round. `old` is
        what the file may be in the midst of being patched from."""
        info = writer.lstat(path)
        if info is None:
            return None
        if stat.S_ISDIR(info.st_mode) or not self._ours(path, info):
            if old is not None and self._half_patched(writer, path, info, (old, entry)):
                return info
            self._clear_drift(writer, path, entry)
            return None
        if self.archive and stat.S_ISLNK(info.st_mode) != (entry.kind == SYMLINK):
            self._rename_deleted(writer, path)
            return None
        return info

    def _done(self, path: bytes, outcome: Outcome, entry: Entry) -> None:
        self._prints[path] = outcome.fingerprint
        self._stale.discard(path)
        self._report.written += 1
        if outcome.note:
            self._report.unapplied[path] = self._unsaid[path] = outcome.note
        else:
            self._report.unapplied.pop(path, None)
            self._unsaid.pop(path, None)
            self._cleared.add(path)

    def _known(self, path: bytes) -> Fingerprint | None:
        """The fingerprint that we left at `path`, in this very move or before."""
        if path in self._prints:
            return self._prints[path]
        if path in self._page:
            return self._page[path]
        return self.reader.fingerprint(path)

    def _ours(self, path: bytes, info: os.stat_result, *, leaving: bool = False) -> bool:
        """Whether what stat(2) says is the file that we left at `path`, untouched.

        Removing or replacing one name of a hard link moves the ctime of its other names, by our own doing:
        where that can be (and where the file is `leaving` anyway) everything but the ctime has to agree.
        """
        known = self._known(path)
        if known is None:
            return False
        here = fingerprint(info)
        if here == known:
            return True
        if here._replace(ctime_ns=0) != known._replace(ctime_ns=0):
            return False
        return leaving or any(link_of(entry) is not None for _, _, entry in self.reader.history(path))

    # -- what is in the way

    def _clear_drift(self, writer: TreeWriter, path: bytes, entry: Entry | None) -> None:
        """Make room at `path`: a file that is not the one we left there is moved aside, not lost (rule
        63)."""
        info = writer.lstat(path)
        if info is None:
            return
        known = self._known(path)
        if stat.S_ISDIR(info.st_mode):
            if entry is None and known is not None:
                return  # a directory of ours on its way out; its own content was dealt with path by path
            if self.archive and known is not None:
                self._rename_deleted(writer, path)
            elif entry is None or entry.kind != DIRECTORY:
                self._empty_or_aside(writer, path)
            return
        if self._ours(path, info, leaving=entry is None):
            return
        if self._left_halfway(writer, path, info, entry):
            return
        self._set_aside(writer, path)

    def _clear_damage(self, writer: TreeWriter, path: bytes, entry: Entry | None) -> None:
        """A file whose bytes changed, and its times did not, goes aside: it may be damage, or somebody wrote
        through a mapping."""
        info = writer.lstat(path)
        if info is not None and stat.S_ISREG(info.st_mode) and self._ours(path, info, leaving=False):
            self._set_aside(writer, path)
        else:
            self._clear_drift(writer, path, entry)

    def _left_halfway(
        self, writer: TreeWriter, path: bytes, info: os.stat_result, entry: Entry | None
    ) -> bool:
        """Whether what is there is what a move that was interrupted had written before it was recorded:
        towards `entry`, or, where it was given up, towards an image before."""
        live = self.reader.live()
        if live is None or live.state == "clean":
            return False
        may_be = [entry] if entry is not None else []
        before: list[Entry] = []
        if self.reader.touched(path):
            history = self.reader.history(path)
            before = [other for born, died, other in history if born <= live.at < died]
            may_be += [other for born, _, other in history if born > live.at]
            may_be += [other for other in before if link_of(other) is not None]  # a group is written whole
        if any(self._same_bytes(writer, path, info, other) for other in may_be):
            return True
        return bool(before) and self._half_patched(writer, path, info, before + may_be)

    def _same_bytes(self, writer: TreeWriter, path: bytes, info: os.stat_result, entry: Entry) -> bool:
        if info.st_mtime_ns != entry.mtime_ns:
            return False
        if stat.S_ISLNK(info.st_mode):
            return entry.kind == SYMLINK and writer.target(path) == Extra.decode(entry.extra).target
        return entry.kind == FILE and stat.S_ISREG(info.st_mode) and info.st_size == entry.size

    def _half_patched(
        self, writer: TreeWriter, path: bytes, info: os.stat_result, versions: Iterable[Entry]
    ) -> bool:
        """Whether this is the file that we left at `path`, and all of its bytes are what one of `versions`
        has at their place: a change in place was cut off, and nobody's bytes are in it."""
        known = self._known(path)
        if not self._again or known is None or Fingerprint.of(info)[:2] != (known.dev, known.ino):
            return False
        named: dict[tuple[bytes, int], int] = {}
        for version in versions:
            if version.kind == FILE and version.content is not None and _in_place(version):
                named[version.content, version.level] = version.size
        if not 2 <= len(named) <= MIXED or info.st_nlink != 1:
            return False
        if not min(named.values()) <= info.st_size <= max(named.values()):
            return False
        try:
            return writer.mixes(path, list(named), self.load)
        except (Missing, Damaged, RemoteProtocolError):
            return False

    def _empty_or_aside(self, writer: TreeWriter, path: bytes) -> None:
        try:
            writer.remove(path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            self._set_aside(writer, path)

    def _set_aside(self, writer: TreeWriter, path: bytes) -> None:
        parent, name = writer.changing(path)
        self._aside.keep(parent, name, path)
        self._report.set_aside.append(path)

    def _rename_deleted(self, writer: TreeWriter, path: bytes) -> None:
        """An archive keeps what something of another kind now replaces, under a name that says so (rule
        49)."""
        parent, name = writer.changing(path)
        stamp = time.strftime(" (deleted %Y-%m-%d %H.%M")
        for again in itertools.count():
            ending = os.fsencode(f"{stamp}{f', {again}' if again else ''})")
            other = _beginning(name, COMPONENT - len(ending)) + ending
            try:
                os.lstat(other, dir_fd=parent)
            except FileNotFoundError:
                break
        os.rename(name, other, src_dir_fd=parent, dst_dir_fd=parent)

    # -- ends

    def _finish_directories(self, writer: TreeWriter, touched: set[bytes], to: int) -> None:
        """Attributes and times of every directory in which something moved, deepest first."""
        for path in sorted(touched, key=lambda p: (-p.count(b"/") - bool(p), p)):
            entry = self.reader.entry(path, to)
            if entry is None or entry.kind != DIRECTORY:
                continue
            self._guarded(path, partial(self._finish_directory, writer, entry))

    def _finish_directory(self, writer: TreeWriter, entry: Entry) -> None:
        try:
            outcome = writer.finish_directory(entry)
        except FileNotFoundError:  # it was taken away; what belongs into it is put back by the next repair
            writer.directory(entry)
            outcome = writer.finish_directory(entry)
        self._done(entry.path, outcome, entry)

    def _make_way(self, paths: Iterable[bytes]) -> bool:
        """Rows come in no order of the tree: what is below a folder may come while a file or a link has the
        folder's name still. Make the folders on the way to `paths`, as they come themselves later. False when
        there is nothing of the kind."""
        writer, made = self._writing, False
        for path in paths:
            parts = path.split(b"/")[:-1]
            for count in range(1, len(parts) + 1):
                above = b"/".join(parts[:count])
                info = writer.lstat(above) if writer is not None else None
                if writer is None or info is None or stat.S_ISDIR(info.st_mode):
                    continue
                entry = self.reader.entry(above, self._to)
                if entry is None or entry.kind != DIRECTORY or (self.archive and self._known(above) is None):
                    break  # nothing that belongs here: reported
                self._make_directory(writer, above, entry)
                made = True
        return made

    def _guarded(self, path: bytes, action: Callable[[], None]) -> None:
        """One path that cannot be written is reported and does not stop the rest (rule 68); a full disk
        does."""
        if self.stopping:
            raise CrnodeError("The live tree stops here.", "", "It goes on where it was.")
        try:
            try:
                action()
            except OSError as error:
                if error.errno not in _NO_FOLDER or not self._make_way((path,)):
                    raise
                action()
        except OSError as error:
            if is_full(error):
                if self._ahead is not None and self._ahead.give_up():
                    self._guarded(path, action)  # what was made ahead may be what there was no room for
                    return
                raise full_error(self.place.destination, error) from error
            if error.errno in (errno.EIO, errno.EROFS):
                raise
            self._failed(path, f"it cannot be written here: {os.strerror(error.errno or 0)}")
        except RemoteProtocolError as error:
            self._failed(path, f"its content contradicts itself: {error}")
        except (Missing, Damaged) as lacking:
            self._report.damaged.add(lacking.args[0])
            self._failed(path, LACKING)

    def _failed(self, path: bytes, reason: str) -> None:
        self._report.unapplied[path] = self._unsaid[path] = reason
        if self._known(path) is not None:
            self._stale.add(path)

    def _flush(self, live: Live | None, deferred: Iterable[bytes] = (), *, put_right: bool = False) -> None:
        """Record what was done so far; `live` ends the move, `put_right` a repair."""
        prints, self._prints = self._prints, {}
        cleared, self._cleared = self._cleared, set()
        unapplied, self._unsaid = self._unsaid, {}
        stale = set(self._stale) if put_right or live is not None else set()

        def write() -> None:
            for path, print_ in prints.items():
                self.catalog.see(path, print_)
            for path in cleared:
                self.catalog.set_problem("unapplied", path, None)
            for path, reason in unapplied.items():
                self.catalog.set_problem("unapplied", path, reason)
            if put_right:
                self.catalog.keep_touched(stale)
                self.catalog.forget_touched(prints.keys() - stale)
            if live is not None:
                self.catalog.set_deferred(deferred)
                self.catalog.forget_touched()
                self.catalog.keep_touched(stale)
                now = self.catalog.live()
                newest = self.catalog.newest()
                moving = newest is not None and newest.ordinal != live.at
                self.catalog.set_live(
                    live._replace(
                        synced=now.synced if now is not None else 0,
                        target=newest.ordinal if newest is not None else live.target,
                        state="moving" if moving else live.state,
                    )
                )

        self.record(write)


def _beginning(name: bytes, length: int) -> bytes:
    """At most so many bytes of a name, and no half of a character."""
    if len(name) <= length:
        return name
    try:
        name.decode()
    except UnicodeDecodeError:
        return name[:length]
    return name[:length].decode(errors="ignore").encode()


def _alike(entry: Entry) -> _Alike:
    """What two names of one file have in common: all but the path."""
    return entry[1:]


def _written_whole(entry: Entry, old: Entry | None) -> bool:
    """Whether a path of a move is likely to be a file that is written anew, under this name alone."""
    if entry.kind != FILE or entry.size > LARGEST or link_of(entry) is not None:
        return False
    return old is None or old.kind != FILE or (old.content, old.level) != (entry.content, entry.level)


def _in_place(entry: Entry) -> bool:
    """Whether a file may be patched from this or to this."""
    return entry.level > 0 and entry.size >= IN_PLACE


def _is_directory(info: os.stat_result | None) -> bool:
    return info is not None and stat.S_ISDIR(info.st_mode)


__all__ = ["LiveTree", "Policy", "Report"]
