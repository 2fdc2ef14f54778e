"""A seeded program that keeps a tree in motion: creates, appends, rewrites, patches, renames, links, deletes.

Run by itself: `python churn.py DIRECTORY SEED SECONDS`. Files called `keep-*` are only ever deleted, so that
an archive can be checked for them.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from pathlib import Path


class Churn:
    """One step at a time; the same seed makes the same choices."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.files: list[Path] = [p for p in root.rglob("*") if p.is_file() and not p.is_symlink()]
        self.dirs: list[Path] = [root]
        self.steps = 0
        self.number = 0

    def _name(self) -> str:
        self.number += 1
        odd = ("", " with space", "-ü", "-日本", "\udcff\udcfe")  # the last one is not UTF-8
        return f"f{self.number}{self.random.choice(odd)}"

    def _bytes(self) -> bytes:
        size = self.random.choice((0, 1, 100, 4096, 10_000, 40_000, 300_000))
        return self.random.randbytes(size)

    def _file(self) -> Path | None:
        while self.files:
            at = self.random.randrange(len(self.files))
            if self.files[at].exists():
                return self.files[at]
            self.files[at] = self.files[-1]
            self.files.pop()
        return None

    def _plain(self) -> Path | None:
        path = self._file()
        return None if path is None or path.name.startswith("keep-") else path

    def create(self) -> None:
        path = self.random.choice(self.dirs) / self._name()
        path.write_bytes(self._bytes())
        self.files.append(path)

    def append(self) -> None:
        if path := self._plain():
            with open(path, "ab") as file:
                file.write(self._bytes())

    def patch(self) -> None:
        if path := self._plain():
            size = path.stat().st_size
            with open(path, "r+b") as file:
                file.seek(self.random.randrange(size + 1))
                file.write(self.random.randbytes(500))

    def truncate(self) -> None:
        if path := self._plain():
            os.truncate(path, self.random.randrange(path.stat().st_size + 1))

    def replace(self) -> None:
        if path := self._plain():
            new = path.with_name(self._name() + ".tmp")
            new.write_bytes(self._bytes())
            os.replace(new, path)

    def rename(self) -> None:
        if path := self._plain():
            to = self.random.choice(self.dirs) / self._name()
            os.rename(path, to)
            self.files.append(to)

    def delete(self) -> None:
        if path := self._file():
            path.unlink()

    def hard_link(self) -> None:
        if path := self._plain():
            to = self.random.choice(self.dirs) / self._name()
            os.link(path, to)
            self.files.append(to)

    def symlink(self) -> None:
        os.symlink(
            self.random.choice(("nowhere", "../x", "/etc/hostname", "f1")),
            self.random.choice(self.dirs) / self._name(),
        )

    def make_dir(self) -> None:
        path = self.random.choice(self.dirs) / (self._name() + ".d")
        path.mkdir()
        self.dirs.append(path)
        for _ in range(self.random.randrange(5)):
            inner = path / self._name()
            inner.write_bytes(self._bytes())
            self.files.append(inner)

    def rename_dir(self) -> None:
        if len(self.dirs) > 3:
            path = self.random.choice(self.dirs[1:])
            to = self.random.choice(self.dirs) / (self._name() + ".d")
            if path in to.parents or path == to:
                return
            os.rename(path, to)
            self.files = [to / f.relative_to(path) if path in f.parents else f for f in self.files]
            self.dirs = [to / d.relative_to(path) if path in d.parents else d for d in self.dirs]
            self.dirs[self.dirs.index(path)] = to

    def remove_dir(self) -> None:
        if len(self.dirs) > 8:
            path = self.random.choice(self.dirs[1:])
            for top, dirs, files in os.walk(path, topdown=False):
                for name in files:
                    os.unlink(os.path.join(top, name))
                for name in dirs:
                    inner = os.path.join(top, name)
                    if os.path.islink(inner):
                        os.unlink(inner)
                    else:
                        os.rmdir(inner)
            os.rmdir(path)
            self.dirs = [d for d in self.dirs if d != path and path not in d.parents]

    def chmod(self) -> None:
        if path := self._plain():
            path.chmod(self.random.choice((0o600, 0o644, 0o755, 0o640)))

    def xattr(self) -> None:
        if path := self._plain():
            os.setxattr(path, f"user.k{self.random.randrange(3)}", self.random.randbytes(20))

    def touch(self) -> None:
        if path := self._plain():
            os.utime(path, ns=(0, self.random.randrange(10**18)))

    def step(self) -> None:
        """One change; a path that vanished meanwhile is no error."""
        actions = (
            (self.create, 30),
            (self.append, 12),
            (self.patch, 12),
            (self.truncate, 3),
            (self.replace, 8),
            (self.rename, 10),
            (self.delete, 14),
            (self.hard_link, 4),
            (self.symlink, 2),
            (self.make_dir, 4),
            (self.rename_dir, 2),
            (self.remove_dir, 1),
            (self.chmod, 3),
            (self.xattr, 3),
            (self.touch, 2),
        )
        action = self.random.choices([a for a, _ in actions], [w for _, w in actions])[0]
        with contextlib.suppress(FileNotFoundError, FileExistsError, NotADirectoryError):
            action()
        self.steps += 1


def main(root: str, seed: str, seconds: str) -> int:
    churn = Churn(Path(root), int(seed))
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        churn.step()
        if churn.steps % 20 == 0:
            time.sleep(churn.random.choice((0.0, 0.01, 0.05, 0.2)))
    print(churn.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
