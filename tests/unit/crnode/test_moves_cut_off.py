"""Moves of a live tree that are killed or out of room in their midst, seeded: in the end it shows what the
newest image has, and nothing of our own was taken for somebody's change.

CRNODE_SEEDS=first:last chooses other seeds; CRNODE_ROLLING and CRNODE_FULL the shares of images that are
rolling and of moves that are out of room instead of killed."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_samples import SET, chunk, commit, directory, file, put_file, small_store
from test_interleaved import Tree as Source
from test_interleaved import problems
from test_live_tree import LINK, Tree

from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import boot_id
from crnode.replicate import live_tree as live_tree_module
from crnode.replicate import write as write_module
from crnode.replicate.live_tree import LiveTree, Report
from crnode.replicate.place import prepare
from crnode.replicate.write import Policy
from crnode.store.catalog import Catalog
from crnode.store.packs import Lane
from crnode.store.reader import ROLLING, Image, Live
from crnode.store.store import ObjectStore
from crproto.entries import DIRECTORY, FILE, SYMLINK, Entry, Extra, link_of
from crproto.ids import chunk_id

FIRST, _, LAST = os.environ.get("CRNODE_SEEDS", "").partition(":")
SEEDS = list(range(int(FIRST), int(LAST))) if LAST else [46, 150, 228, 251, 271, 290, 338, 342]
ROLLS = float(os.environ.get("CRNODE_ROLLING", "0.3"))
FULL = float(os.environ.get("CRNODE_FULL", "0.4"))
STEPS = ("rename", "link", "unlink", "mkdir", "rmdir", "fchmod", "utime", "symlink")
TAKING = ("rename", "link", "mkdir", "symlink")  # what a full disk refuses


class Killed(BaseException):
    pass


class Fate:
    """After how many steps a move is killed, or has no room once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.full, self.dead = 0, False, False
        for name in STEPS:
            monkeypatch.setattr(write_module.os, name, self._watched(name, getattr(os, name)))

    def choose(self, left: int, *, full: bool = False) -> None:
        """`left` 0: nothing happens."""
        self.left, self.full, self.dead = left, full, False

    def step(self, *, taking: bool = False) -> None:
        if self.dead:
            raise Killed
        if self.left > 1 or (self.left == 1 and self.full and not taking):
            self.left = max(self.left - 1, 1)
        elif self.left == 1:
            self.left = 0
            if self.full:
                raise OSError(errno.ENOSPC, "no room")
            self.dead = True
            raise Killed

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            # Only a live tree names its files by descriptors.
            if name in ("fchmod", "utime") or not options.keys().isdisjoint(("dir_fd", "src_dir_fd")):
                self.step(taking=name in TAKING)
            return real(*args, **options)

        return call


def entries_of(root: Path, store: ObjectStore) -> dict[bytes, Entry]:
    """What a capture of `root` would have."""
    found = {}
    for top, names, files in os.walk(root):
        for path in [Path(top, name) for name in names + files] + [root] * (Path(top) == root):
            info = os.lstat(path)
            name = b"" if path == root else os.fsencode(path.relative_to(root))
            kind, mode, content, size, target = FILE, stat.S_IMODE(info.st_mode), None, 0, None
            if stat.S_ISDIR(info.st_mode):
                kind = DIRECTORY
            elif stat.S_ISLNK(info.st_mode):
                kind, mode, target = SYMLINK, 0o777, os.fsencode(os.readlink(path))
            elif data := path.read_bytes():
                content, size = chunk_id(data), len(data)
                store.put([chunk(data)], Lane.SMALL)
            link = info.st_ino.to_bytes(10, "big") if info.st_nlink > 1 and kind != DIRECTORY else None
            extra = Extra(target, link=link).encode() if target or link else b""
            found[name] = Entry(name, kind, mode, "", 0, "", 0, info.st_mtime_ns, size, content, 0, extra)
    return found


class World:
    """A source that changes by chance, the catalog of its images, and a live tree that follows."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> None:
        root, out = tmp_path / "root", tmp_path / "out"
        root.mkdir()
        out.mkdir()
        self.chance = chance
        self.source = Source(root, out, chance)
        self.store = small_store(tmp_path / "store")
        self.catalog = Catalog(tmp_path / "sets" / "one.db", SET)
        self.live = tmp_path / "live"
        self.fate = Fate(monkeypatch)
        self.tree: LiveTree | None = None
        self.state: dict[bytes, Entry] = {}
        self.give_up = False
        self.reports: list[Report] = []

    def record(self, work: Callable[[], None]) -> None:
        """A transaction before and after which the agent may be killed."""
        if not self.fate.full:
            self.fate.step()
        with self.catalog.transaction():
            work()
        if not self.fate.full:
            self.fate.step()

    def came(self, image: Image, flags: int | None = None) -> None:
        with self.catalog.transaction():
            if flags is not None:
                self.catalog._db.execute("UPDATE image SET flags=? WHERE ordinal=?", (flags, image.ordinal))
            live = self.catalog.live() or Live(0, 0, 0, "clean", boot_id())
            if live.state != "moving":
                self.catalog.set_live(live._replace(target=image.ordinal, state="moving"))

    def capture(self) -> bool:
        """Changes and an image of them; returns whether it is rolling."""
        for _ in range(self.chance.choice((1, 3, 10, 25))):
            self.source.step()
        now = entries_of(self.source.root, self.store)
        changed = [entry for path, entry in now.items() if self.state.get(path) != entry]
        self.chance.shuffle(changed)
        rolling = self.chance.random() < ROLLS
        image = commit(self.catalog, changed, [path for path in self.state if path not in now])
        self.came(image, ROLLING if rolling else None)
        self.state = now
        return rolling

    def move(self) -> Report | None:
        if self.tree is None:
            place, _ = prepare(self.live, SET)
            self.tree = LiveTree(
                place, self.catalog, self.catalog.reader(), self.record, self.store.get, Policy(False, False),
                archive=False,
            )  # fmt: skip
        report = self.tree.move(give_up=self.give_up)
        self.give_up = False
        if report is not None:
            self.reports.append(report)
        return report

    def move_and_fail(self) -> None:
        """A move that may be cut off; what comes then is another agent's, or the same one's next try."""
        self.fate.choose(self.chance.randrange(1, 80), full=self.chance.random() < FULL)
        try:
            self.move()
        except Killed:
            self.tree, self.give_up = None, False
        except CrnodeError as error:
            if error.exit_code != ExitCode.FULL:
                raise
            self.tree, self.give_up = None, True
        self.fate.choose(0)

    def check(self) -> None:
        assert problems(SimpleNamespace(catalog=self.catalog), self.live) == []  # type: ignore[arg-type]
        assert [report.set_aside for report in self.reports if report.set_aside] == []
        assert [report.unapplied for report in self.reports if report.unapplied] == []
        assert self.tree is not None and os.listdir(self.tree.place.temporary) == []
        for path, entry in self.state.items():
            known, info = self.catalog.fingerprint(path), os.lstat(self.live / os.fsdecode(path))
            assert known is not None and (known.ino, known.mtime_ns) == (info.st_ino, info.st_mtime_ns), path
            assert known.ctime_ns == info.st_ctime_ns or link_of(entry) is not None, path


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tree_whose_moves_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    world = World(tmp_path, monkeypatch, random.Random(seed))
    for _ in range(30):
        world.source.step()
    (tmp_path / "root" / "keep").write_bytes(b"k")
    for _ in range(8):
        rolling = False
        for _ in range(world.chance.choice((1, 1, 1, 2, 3))):
            rolling = world.capture()
            if world.chance.random() < 0.6:
                world.move_and_fail()
        if rolling:
            world.came(commit(world.catalog))
        while world.move() is not None:
            pass
        world.check()


def started_again(tree: Tree) -> LiveTree:
    """The live tree of the next process."""
    before = tree.tree
    return LiveTree(
        before.place, tree.catalog, tree.catalog.reader(), before.record, tree.store.get, before.policy,
        archive=False,
    )  # fmt: skip


def test_names_that_a_move_wrote_with_another_one_are_ours_when_it_is_given_up(tmp_path: Path) -> None:
    """Killed before it was noted, then no room, then an image without the name that they were written for."""
    tree = Tree(tmp_path)
    data, first, last = (put_file(tree.store, text) for text in (b"data", b"first", b"last"))
    names = [file(path, data, 4, extra=LINK) for path in (b"a/one", b"b/two", b"c/three")]
    tree.move([*(directory(path) for path in (b"", b"a", b"b", b"c")), *names[:2]])
    before = (tree.live / "a" / "one").stat().st_ino

    def load(name: bytes, unlucky: bytes, error: BaseException) -> bytes:
        if name == unlucky:
            raise error
        return tree.store.get(name)

    tree.tree.load = partial(load, unlucky=last[0], error=Killed())
    with pytest.raises(Killed):
        tree.move([file(b"A", first, 5), names[2], file(b"c/z", last, 4)])
    assert (tree.live / "a" / "one").stat().st_ino != before
    again = started_again(tree)
    again.load = partial(load, unlucky=first[0], error=OSError(errno.ENOSPC, "no room"))
    with pytest.raises(CrnodeError):
        again.move()
    commit(tree.catalog, [], [b"A", b"c/three", b"c/z"])
    again.load = tree.store.get
    report = again.move(give_up=True)
    assert report is not None and report.set_aside == [] and not report.unapplied
    assert os.listdir(tree.live / "c") == []
    for path in (b"a/one", b"b/two"):
        known, info = tree.catalog.fingerprint(path), os.lstat(tree.live / os.fsdecode(path))
        assert known is not None and (known.ino, info.st_nlink) == (info.st_ino, 2)
        assert (tree.live / os.fsdecode(path)).parent.stat().st_mtime_ns == 0


class Patched:
    """A tree in which the change of a large file in place is cut off after its first chunk."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        monkeypatch.setattr(live_tree_module, "IN_PLACE", 1)
        self.tree = Tree(tmp_path)
        self.path = self.tree.live / "f"
        self.before = random.Random(1).randbytes(200_000)
        self.after = b"".join(
            self.before[at : at + 512] if at % 1024 else random.Random(at).randbytes(512)
            for at in range(0, len(self.before), 512)
        )
        self.tree.move([directory(b""), file(b"f", put_file(self.tree.store, self.before), len(self.before))])
        self.inode = self.path.stat().st_ino
        real = write_module._write_all

        def write(fd: int, data: bytes, at: int) -> None:
            real(fd, data[:100] if self.left == 1 else data, at)
            self.left -= 1
            if self.left == 0:
                raise error

        self.left = 50
        monkeypatch.setattr(write_module, "_write_all", write)
        self.image = commit(self.tree.catalog, [self.version(self.after, 7)])
        with pytest.raises((Killed, CrnodeError)):
            self.tree.move_to(self.image)
        assert self.path.read_bytes() not in (self.before, self.after)

    def version(self, data: bytes, mtime_ns: int) -> Entry:
        return file(b"f", put_file(self.tree.store, data), len(data), mtime_ns)

    def start_again(self) -> LiveTree:
        return started_again(self.tree)


def test_a_file_that_is_half_patched_is_no_local_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Patched(tmp_path, monkeypatch, Killed())
    report = here.start_again().move()
    assert report is not None and report.set_aside == []
    assert here.path.read_bytes() == here.after
    assert here.path.stat().st_ino == here.inode  # it needs no room for a second file


def test_a_patch_that_has_no_room_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Patched(tmp_path, monkeypatch, OSError(errno.ENOSPC, "no room"))
    report = here.tree.tree.move()
    assert report is not None and report.set_aside == []
    assert here.path.read_bytes() == here.after and here.path.stat().st_ino == here.inode


def test_a_half_patched_file_whose_move_is_given_up_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Patched(tmp_path, monkeypatch, OSError(errno.ENOSPC, "no room"))
    last = here.before[:100_000] + here.after[100_000:]
    commit(here.tree.catalog, [here.version(last, 8)])
    report = here.tree.tree.move(give_up=True)
    assert report is not None and report.set_aside == []
    assert here.path.read_bytes() == last and here.path.stat().st_ino != here.inode


def test_what_somebody_wrote_into_a_half_patched_file_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Patched(tmp_path, monkeypatch, Killed())
    with open(here.path, "r+b") as local:
        local.seek(150_000)
        local.write(b"mine")
    report = here.start_again().move()
    assert report is not None and report.set_aside == [b"f"]
    assert here.path.read_bytes() == here.after
    (kept,) = here.tree.tree.place.aside.rglob("f")
    assert kept.read_bytes()[150_000:150_004] == b"mine"
