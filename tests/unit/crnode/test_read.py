"""Reading real files into entries: every kind, every piece of metadata, and files that change while they are
read."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from store_samples import SET, commit, directory, file

from crnode.capture import read as read_module
from crnode.capture.read import Fresh, Gone, PathReader, Unreadable
from crnode.capture.roots import OpenRoots, OwnPlaces, labels
from crnode.capture.scan import dirty_paths
from crnode.replicate.difference import ObjectReader, Wanted
from crnode.store.catalog import Catalog
from crnode.store.store import Missing
from crproto import content
from crproto.entries import DIRECTORY, FILE, SYMLINK, Entry, Extra
from crproto.ids import HOLE, chunk_id

LATER = 10**9  # ns: old enough to be trusted after one read


class Source:
    """A reader with a memory of recipes instead of a store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipes: dict[bytes, bytes] = {}
        self.blocks: dict[bytes, bytes] = {}
        self.roots = OpenRoots(labels([str(root)]))
        self.reader = PathReader(
            self.roots,
            self._load,
            lambda s: self.blocks.get(s, b""),
            7,
            lambda p: p.endswith(b".db"),
            1 << 40,
            lambda: time.time_ns() + LATER,
            64 << 20,
            OwnPlaces("00" * 16),
            self._sleep,
        )
        self.slept: list[float] = []
        self.asleep: Callable[[], object] = lambda: None  # done while the reader waits

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.asleep()

    def _load(self, name: bytes) -> bytes:
        if name not in self.recipes:
            raise Missing(name)
        return self.recipes[name]

    def take(self, path: bytes, old: Entry | None = None) -> tuple[Entry, Fresh]:
        fresh = Fresh()
        taken = self.reader.take(path, old, fresh)
        self.recipes.update(fresh.recipes)
        self.blocks.update(fresh.blocks)
        self.reader.close()
        return taken.entry, fresh

    def bytes_of(self, entry: Entry, path: Path) -> bytes:
        """The content that the entry names, checked against the file by id."""
        out = b""
        data = path.read_bytes()
        assert entry.content is not None
        for offset, length, name in content.walk(entry.content, entry.level, self._load, size=entry.size):
            part = data[offset : offset + length]
            assert name == HOLE or chunk_id(part) == name
            out += bytes(length) if name == HOLE else part
        return out


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    root = tmp_path / "root"
    root.mkdir()
    made = Source(root)
    yield made
    made.reader.close()
    made.roots.close()


def test_a_small_file_is_one_chunk(source: Source) -> None:
    path = source.root / "a"
    path.write_bytes(b"hello")
    os.utime(path, ns=(1, 123_456_789_123_456_789))
    path.chmod(0o640)
    entry, fresh = source.take(b"a")
    assert (entry.kind, entry.mode, entry.size, entry.mtime_ns) == (FILE, 0o640, 5, 123_456_789_123_456_789)
    assert (entry.content, entry.level) == (chunk_id(b"hello"), 0)
    assert fresh.chunks == {chunk_id(b"hello"): b"hello"}


def test_an_empty_file_and_a_directory_and_a_link(source: Source) -> None:
    (source.root / "e").touch()
    (source.root / "d").mkdir(mode=0o711)
    (source.root / "l").symlink_to("../anywhere")
    assert source.take(b"e")[0].content is None
    assert source.take(b"d")[0].kind == DIRECTORY
    entry = source.take(b"l")[0]
    assert entry.kind == SYMLINK
    assert Extra.decode(entry.extra).target == b"../anywhere"


def test_a_large_file_and_each_kind_of_change_to_it(source: Source) -> None:
    path = source.root / "big"
    rng = random.Random(1)
    data = bytearray(rng.randbytes(3 << 20))
    path.write_bytes(data)
    entry, fresh = source.take(b"big")
    assert entry.level > 0
    assert source.bytes_of(entry, path) == data
    assert fresh.new_bytes == len(data)
    changes = [
        (
            "a page in place",
            lambda: data.__setitem__(slice(1 << 20, (1 << 20) + 8192), rng.randbytes(8192)),
            200_000,
        ),
        ("an insertion", lambda: data.__setitem__(slice(500_000, 500_000), rng.randbytes(100)), 200_000),
        ("a deletion", lambda: data.__delitem__(slice(2_000_000, 2_000_300)), 200_000),
        ("an append", lambda: data.extend(rng.randbytes(50_000)), 200_000),
        ("a truncation", lambda: data.__delitem__(slice(1_234_567, None)), 200_000),
    ]
    for name, change, most in changes:
        change()
        path.write_bytes(data)
        entry, fresh = source.take(b"big", entry)
        assert source.bytes_of(entry, path) == data, name
        assert fresh.new_bytes < most, f"{name}: {fresh.new_bytes} bytes were called new"


@pytest.mark.parametrize("seed", range(20))  # some of these recipes have one segment, some several
def test_a_page_file_dirties_one_chunk_and_sends_a_patch(source: Source, seed: int) -> None:
    rng = random.Random(seed)
    path = source.root / "x.db"
    path.write_bytes(rng.randbytes(1 << 20))
    entry_before, _ = source.take(b"x.db")
    assert entry_before.content is not None
    recipes = set(content.segments(entry_before.content, entry_before.level, source._load))
    with open(path, "r+b") as file:
        file.seek(40 * 16384 + 4096)
        file.write(rng.randbytes(4096))
    entry, fresh = source.take(b"x.db", entry_before)
    assert source.bytes_of(entry, path) == path.read_bytes()
    assert fresh.new_bytes == 16384
    (patch,) = [p for name, p in fresh.patches.items() if name in fresh.chunks]
    assert patch.ranges == ((4096, 4096),)
    assert entry.content is not None
    after = set(content.segments(entry.content, entry.level, source._load))
    if len(after) == len(recipes):  # unless the id of the new chunk is a border, or the old one was
        (segment,) = [p for name, p in fresh.patches.items() if name in after - recipes]
        assert segment.base in recipes - after
        assert sum(length for _, length in segment.ranges) == 40  # one item of the recipe


def test_the_recipe_tests_see_one_segment_and_several(source: Source) -> None:
    counts = set()
    for seed in range(20):
        path = source.root / "x.db"
        path.write_bytes(random.Random(seed).randbytes(1 << 20))
        entry, _ = source.take(b"x.db")
        assert entry.content is not None
        counts.add(len(list(content.segments(entry.content, entry.level, source._load))))
    assert {1, 2} <= counts


def test_holes_stay_holes(source: Source) -> None:
    path = source.root / "sparse"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
        file.seek(300 << 20)
        file.write(b"island" * 10_000)
    entry, fresh = source.take(b"sparse")
    assert entry.size == 1 << 30
    assert fresh.new_bytes < 1 << 20
    assert entry.content is not None
    walked = list(content.walk(entry.content, entry.level, source._load, size=entry.size))
    assert sum(length for _, length, _ in walked) == 1 << 30
    assert walked[0][2] == HOLE
    assert walked[-1][2] == HOLE


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to other owners takes root")
def test_a_foreign_hard_link_is_taken_where_only_root_can_have_made_it(source: Source) -> None:
    path = source.root / "mail"
    path.write_bytes(b"mail")
    os.chown(path, 33, 33)
    os.link(path, source.root / "link")
    source.root.chmod(0o755)
    entry, _ = source.take(b"mail")
    assert source.bytes_of(entry, path) == b"mail"
    for mode, owner in ((0o775, 0), (0o1777, 0), (0o755, 5)):
        source.root.chmod(mode)
        os.chown(source.root, owner, owner)
        with pytest.raises(Unreadable, match="another owner"):
            source.take(b"link")
        source.reader.close()
    os.chown(source.root, 33, 33)
    assert source.take(b"link")[0].content == entry.content


def test_hard_links_share_a_group(source: Source) -> None:
    (source.root / "a").write_bytes(b"x")
    os.link(source.root / "a", source.root / "b")
    one, two = source.take(b"a")[0], source.take(b"b")[0]
    assert Extra.decode(one.extra).link is not None
    assert Extra.decode(one.extra).link == Extra.decode(two.extra).link


def test_symbolic_links_of_several_names_share_a_group(source: Source) -> None:
    (source.root / "a").symlink_to("anywhere")
    assert Extra.decode(source.take(b"a")[0].extra) == Extra(target=b"anywhere")
    os.link(source.root / "a", source.root / "b", follow_symlinks=False)
    one, two = (Extra.decode(source.take(name)[0].extra) for name in (b"a", b"b"))
    assert one.target == b"anywhere"
    assert one.link is not None
    assert one == two


def test_xattrs_and_acls(source: Source) -> None:
    path = source.root / "a"
    path.write_bytes(b"x")
    os.setxattr(path, "user.colour", b"blue\0\xff")
    done = subprocess.run(["setfacl", "-m", "u:1:r", str(path)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no ACLs here: {done.stderr.decode().strip()}")
    extra = Extra.decode(source.take(b"a")[0].extra)
    assert extra.xattrs == ((b"user.colour", b"blue\0\xff"),)
    assert extra.acl is not None
    assert (2, 4) in {(tag, perm) for tag, perm, _, number in extra.acl if number == 1}


def test_what_is_no_file_is_refused_with_a_reason(source: Source) -> None:
    os.mkfifo(source.root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source.root / "sock"))
        for name, word in ((b"pipe", "pipe"), (b"sock", "socket")):
            with pytest.raises(Unreadable, match=word):
                source.take(name)
    with pytest.raises(Gone):
        source.take(b"nothing")


def test_a_link_on_the_way_is_not_followed(source: Source, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "f").write_bytes(b"shadow")
    (source.root / "up").symlink_to(tmp_path / "secret")
    with pytest.raises(Gone):
        source.take(b"up/f")


def test_a_file_that_never_settles_is_fuzzy(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source.root / "hot"
    path.write_bytes(bytes(100_000))

    def meddle(real: Any, *args: Any) -> Any:
        with open(path, "r+b") as file:  # somebody writes each time a byte is read
            file.write(os.urandom(8))
        return real(*args)

    for name in ("pread", "preadv"):
        monkeypatch.setattr(os, name, partial(meddle, getattr(os, name)))
    entry, _ = source.take(b"hot")
    monkeypatch.undo()
    assert Extra.decode(entry.extra).fuzzy


def test_a_sparse_file_that_never_settles_keeps_its_holes(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken as long as it says it is, a disk image of a machine that runs held up all others, and filled the
    disk of a target."""
    path = source.root / "disk"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 20)
        file.write(random.Random(1).randbytes(1 << 20))
    real = PathReader._large

    def large(self: PathReader, *args: Any, **more: Any) -> Any:
        out = real(self, *args, **more)
        with open(path, "r+b") as file:
            file.seek(1 << 20)
            file.write(os.urandom(8))
        return out

    monkeypatch.setattr(PathReader, "_large", large)
    entry, fresh = source.take(b"disk")
    assert Extra.decode(entry.extra).fuzzy and entry.size == 1 << 30 and entry.content is not None
    found = content.walk(entry.content, entry.level, fresh.recipes.__getitem__, size=entry.size)
    assert sum(length for _, length, name in found if name != HOLE) <= 2 << 20


def test_what_was_taken_at_the_longest_path_can_be_read_for_a_push(source: Source) -> None:
    """As one name it is too long for open(2): it was given up each time, and with it every image."""
    parts = [b"d" * 255] * 15 + [b"e" * 100]
    last = b"f" * 155
    path = b"/".join([*parts, last])
    assert len(path) == 4096
    fd = os.open(source.root, os.O_RDONLY | os.O_DIRECTORY)
    for part in parts:
        os.mkdir(part, dir_fd=fd)
        below = os.open(part, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    made = os.open(last, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
    os.write(made, b"hello")
    os.close(made)
    os.close(fd)
    entry, _ = source.take(path)
    assert entry.content is not None
    store: Any = SimpleNamespace(has=lambda _: False)
    reader = ObjectReader(store, lambda: source.roots, None)
    assert reader.bytes_of(Wanted(entry.content, 0, 5, path, 0)) == b"hello"
    reader.close()
    shutil.rmtree(source.root / os.fsdecode(parts[0]))


class Damaged:
    """What lists a folder whose blocks cannot be read."""

    def __init__(self, listing: Any, after: int) -> None:
        self.listing, self.left = listing, after

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.listing.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if not self.left:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.left -= 1
        return next(self.listing)


@pytest.mark.parametrize("after", [0, 1])
def test_a_folder_that_cannot_be_listed_stops_no_scan_and_loses_nothing(
    source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int
) -> None:
    for name in ("bad", "good"):
        (source.root / name / "sub").mkdir(parents=True)
        (source.root / name / "new").write_bytes(b"new")
    catalog = Catalog(tmp_path / "c.db", SET)
    at = commit(catalog, [directory(b""), directory(b"bad"), file(b"bad/known", None, 0)]).ordinal
    real = os.scandir

    def scandir(place: Any) -> Any:
        listing = real(place)
        is_bad = isinstance(place, int) and os.readlink(f"/proc/self/fd/{place}").endswith("/bad")
        return Damaged(listing, after) if is_bad else listing

    monkeypatch.setattr(os, "scandir", scandir)
    with catalog.reader() as reader:
        takes = lambda path, is_dir: True  # noqa: E731
        found = set(dirty_paths(source.roots, reader, at, takes, b"", OwnPlaces("00" * 16)))
    assert {b"bad", b"good/new", b"good/sub"} <= found and b"bad/known" not in found
    if not after:
        with pytest.raises(Unreadable, match="Input/output error"):
            source.take(b"bad")


def _reads(source: Source, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that are read from now on, by each call."""
    found: list[int] = []
    pread = os.pread

    def counted(fd: int, length: int, at: int) -> bytes:
        data = pread(fd, length, at)
        found.append(len(data))
        return data

    preadv = os.preadv

    def counted_too(fd: int, buffers: list[memoryview], at: int) -> int:
        found.append(preadv(fd, buffers, at))
        return found[-1]

    monkeypatch.setattr(os, "pread", counted)
    monkeypatch.setattr(os, "preadv", counted_too)
    return found


@pytest.fixture
def young(source: Source, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A large file that was written a moment ago, and time that passes only while the reader waits."""
    monkeypatch.setattr(read_module, "WAIT_BYTES", 1 << 20)
    path = source.root / "large"
    path.write_bytes(random.Random(1).randbytes(2 << 20))
    ctime = path.stat().st_ctime_ns
    source.reader.now_ns = lambda: ctime + 20_000_000 + int(1e9 * sum(source.slept))
    return path


def test_a_large_file_that_is_young_is_waited_for_and_read_once(
    source: Source, young: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = _reads(source, monkeypatch)
    entry, _ = source.take(b"large")
    assert source.slept == [pytest.approx(0.03)]
    assert sum(reads) == 2 << 20
    assert source.bytes_of(entry, young) == young.read_bytes()


def test_what_is_written_while_a_large_file_is_waited_for_is_taken_and_proved_by_a_second_reading(
    source: Source, young: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write() -> None:
        with open(young, "r+b", buffering=0) as file:
            file.write(b"changed")

    source.asleep = write
    reads = _reads(source, monkeypatch)
    entry, _ = source.take(b"large")
    assert len(source.slept) == 1
    assert sum(reads) == 4 << 20  # it is young again
    assert source.bytes_of(entry, young)[:7] == b"changed"


def test_what_is_mapped_is_not_waited_for_but_read_twice(
    source: Source, young: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.reader.mapped = {b"large"}
    reads = _reads(source, monkeypatch)
    source.take(b"large")
    assert source.slept == []
    assert sum(reads) == 4 << 20
