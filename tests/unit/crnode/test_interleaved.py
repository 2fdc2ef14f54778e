"""Changes in the midst of captures, seeded: a source that is quiet again has in its image what the disk has.

CRNODE_SEEDS=first:last chooses other seeds, for an hour of them: a failing one prints its story."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import stat
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from rot_samples import Capturing, capturing

from crnode.capture import job as job_module
from crnode.capture import source as source_module
from crnode.capture.job import Job
from crproto.entries import DIRECTORY, FILE, SYMLINK, link_of
from crproto.ids import chunk_id

FIRST, _, LAST = os.environ.get("CRNODE_SEEDS", "").partition(":")
SEEDS = list(range(int(FIRST), int(LAST))) if LAST else [1, 2, 3, 4, 9, 41]
KINDS = {
    "create": 6, "rewrite": 5, "append": 3, "rename": 5, "rename folder": 6, "unlink": 4, "link": 4,
    "symlink": 1, "mkdir": 3, "move out": 4, "put back": 8, "remove tree": 1, "file to folder": 2,
    "folder to file": 2, "chmod": 1, "replace": 3, "swap": 2, "chain": 3, "bulk": 2,
}  # fmt: skip


class Tree:
    """A tree that is changed by chance; `out` is beside the set."""

    def __init__(self, root: Path, out: Path, chance: random.Random) -> None:
        self.root, self.out, self.chance = root, out, chance
        self.number = 0
        self.story: list[str] = []
        self.saved: list[tuple[Path, Path]] = []  # (where it is now, where it was)
        self.writers: dict[int, Path] = {}  # inode -> the name through which it was written last

    def everything(self) -> tuple[list[Path], list[Path]]:
        """(folders, all else), the root among the folders."""
        folders, files = [self.root], []
        for top, names, others in os.walk(self.root):
            for name in sorted(names):
                path = Path(top, name)
                (files if path.is_symlink() else folders).append(path)
            files += [Path(top, name) for name in sorted(others) if name != "keep"]
        return sorted(folders), sorted(files)

    def step(self) -> None:
        kind = self.chance.choices(list(KINDS), list(KINDS.values()))[0]
        folders, files = self.everything()
        before = self._names(files)
        try:
            self._change(kind, self.chance.choice(folders), folders, files)
            self.story.append(kind)
        except (OSError, IndexError):
            pass  # not possible just now
        self._tell(before)

    @staticmethod
    def _names(files: list[Path]) -> dict[int, set[Path]]:
        names: dict[int, set[Path]] = {}
        for path in files:
            names.setdefault(path.lstat().st_ino, set()).add(path)
        return names

    def _tell(self, before: dict[int, set[Path]]) -> None:
        """A name that is written through and goes at once leaves the file's other names to the next scan
        (rule 54), which no image of this test waits for: an event tells of one of them."""
        after = self._names(self.everything()[1])
        for inode, path in list(self.writers.items()):
            names = after.get(inode, set())
            if path in names:
                continue
            del self.writers[inode]
            if names and names <= before.get(inode, set()):
                os.utime(min(names), follow_symlinks=False)

    def _wrote(self, path: Path) -> None:
        self.writers[path.stat().st_ino] = path

    def _data(self) -> bytes:
        self.number += 1
        return b"%d-" % self.number * self.chance.choice((1, 1, 3, 50, 2000))

    def _away(self) -> Path:
        self.number += 1
        return self.out / f"o{self.number}"

    def _change(self, kind: str, folder: Path, folders: list[Path], files: list[Path]) -> None:
        chance = self.chance
        new = folder / chance.choice("abcdefgh")
        match kind:
            case "create":
                new.write_bytes(self._data())
            case "rewrite":
                path = chance.choice(files)
                path.write_bytes(self._data())
                self._wrote(path)
            case "append":
                path = chance.choice(files)
                with open(path, "ab") as file:
                    file.write(self._data())
                self._wrote(path)
            case "rename":
                os.rename(chance.choice(files), new)
            case "rename folder":
                self._move(chance.choice(folders[1:]), new)
            case "unlink":
                chance.choice(files).unlink()
            case "link":
                os.link(chance.choice(files), new, follow_symlinks=False)
            case "symlink":
                new.symlink_to(chance.choice("abcdefgh"))
            case "mkdir":
                new.mkdir()
            case "move out":
                self._move(chance.choice(folders[1:] + files), self._away())
            case "put back":
                now, before = self.saved.pop()
                os.rename(now, before)
            case "remove tree":
                shutil.rmtree(chance.choice(folders[1:]))
            case "file to folder":
                path = chance.choice(files)
                path.unlink()
                path.mkdir()
                (path / "x").write_bytes(self._data())
            case "folder to file":
                path = chance.choice(folders[1:])
                self._move(path, self._away())
                path.write_bytes(self._data())
            case "chmod":
                os.chmod(chance.choice(folders[1:] + files), chance.choice((0o700, 0o744, 0o755)))
            case "replace":
                away = self._away()
                away.write_bytes(self._data())
                os.rename(away, chance.choice(files))
            case "swap":
                one, two = chance.sample(folders[1:], 2) if len(folders) > 2 else (self.root, self.root)
                if one not in two.parents and two not in one.parents and one != two:
                    away = self._away()
                    os.rename(one, away)
                    os.rename(two, one)
                    os.rename(away, two)
            case "chain":
                path = chance.choice(files)
                self._move(path, self._away())
                path.write_bytes(self._data())
            case _:
                made = Path(tempfile.mkdtemp(dir=self.out))
                for number in range(chance.randrange(1, 12)):
                    (made / f"n{number}").write_bytes(self._data())
                if chance.random() < 0.5:
                    (made / "s").mkdir()
                    for number in range(chance.randrange(6)):
                        (made / "s" / f"m{number}").write_bytes(self._data())
                os.rename(made, new)

    def _move(self, path: Path, to: Path) -> None:
        self.saved.append((to, path))
        os.rename(path, to)


def on_disk(root: Path) -> dict[bytes, tuple[int, int, int, bytes | None, int | None]]:
    """path -> (kind, mode, mtime, content id or target, inode where it has several names)."""
    found = {}
    for top, names, files in os.walk(root):
        for path in [Path(top, name) for name in names + files] + [root] * (Path(top) == root):
            info = os.lstat(path)
            inode = info.st_ino if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode) else None
            what: bytes | None = None
            kind = DIRECTORY if stat.S_ISDIR(info.st_mode) else FILE
            if stat.S_ISLNK(info.st_mode):
                kind, what = SYMLINK, os.fsencode(os.readlink(path))
            elif kind == FILE:
                data = path.read_bytes()
                what = chunk_id(data) if data else None
            name = b"" if path == root else os.fsencode(path.relative_to(root))
            found[name] = (kind, stat.S_IMODE(info.st_mode), info.st_mtime_ns, what, inode)
    return found


def problems(here: Capturing, root: Path) -> list[Any]:
    """In what the newest image differs from the disk."""
    newest = here.catalog.newest()
    assert newest is not None
    want, have = on_disk(root), {entry.path: entry for entry in here.catalog.walk(newest.ordinal)}
    out: list[Any] = [("missing", path) for path in want.keys() - have.keys()]
    out += [("extra", path) for path in have.keys() - want.keys()]
    disk_groups, image_groups = defaultdict(set), defaultdict(set)
    for path in want.keys() & have.keys():
        (kind, mode, mtime, what, inode), entry = want[path], have[path]
        if entry.kind != kind:
            out.append(("kind", path))
            continue
        if kind != SYMLINK and entry.mode != mode:
            out.append(("mode", path))
        if entry.mtime_ns != mtime:
            out.append(("time", path))
        if kind == FILE and (entry.content if entry.size else None) != what:
            out.append(("content", path))
        if inode is not None:
            disk_groups[inode].add(path)
        if (link := link_of(entry)) is not None:
            image_groups[kind, link].add(path)
    one = {frozenset(names) for names in disk_groups.values() if len(names) > 1}
    two = {frozenset(names) for names in image_groups.values() if len(names) > 1}
    return out + [("links", sorted(names)) for names in one ^ two]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_quiet_source_has_what_the_disk_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(source_module, "POLL_SECONDS", 1e9)  # it would hide what events missed
    monkeypatch.setattr("rot_samples.LATER", 0)
    monkeypatch.setattr(job_module, "BATCH_ENTRIES", chance.choice((3, 5, 8, 20, 2000)))
    root, out, place = tmp_path / "root", tmp_path / "out", tmp_path / "place"
    for path in (root, out, place):
        path.mkdir()
    tree = Tree(root, out, chance)
    for _ in range(40):
        tree.step()
    (root / "keep").write_bytes(b"k")  # it is never emptied
    tree.saved.clear()
    left = 0  # changes that may still be made in the midst of captures
    share = chance.choice((0.05, 0.2, 0.5))
    real = Job._take

    def change() -> None:
        nonlocal left
        if left > 0 and chance.random() < share:
            for _ in range(chance.choice((1, 1, 2, 4))):
                left -= 1
                tree.step()

    def take(self: Job, path: bytes) -> list[bytes]:
        if chance.random() < 0.5:
            change()
        partners = real(self, path)
        change()
        return partners

    async def work(here: Capturing) -> None:
        nonlocal left
        monkeypatch.setattr(Job, "_take", take)
        source = here.source
        for _ in range(6):
            source._recent.clear()  # as after a restart, an hour, or 2,000 other changes
            for _ in range(chance.choice((1, 3, 10))):
                tree.step()
            left = chance.choice((0, 5, 15, 30))
            quiet, newest, end = 0, None, time.monotonic() + 20
            while quiet < 8 and time.monotonic() < end:
                await asyncio.sleep(0.03)
                image = here.catalog.newest()
                busy = source._settle.due() is not None or source.state != "ok" or source._staged
                quiet = 0 if busy or image != newest else quiet + 1
                newest = image
                if quiet >= 3:
                    left = 0
            assert quiet >= 8, (source.state, source.detail)
            assert problems(here, root) == [], tree.story[-20:]

    capturing(place, root, 0.1, work)
