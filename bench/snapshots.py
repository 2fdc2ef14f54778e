"""Tools that keep snapshots, for W8. Each has a repository on the disk that is measured, without a network in
between, which is in its favour; versions are made one after the other and brought back by name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import ClassVar

from bench.tools import Tool, store_bytes

SECRET = {"RESTIC_PASSWORD": "bench", "BORG_PASSPHRASE": "bench", "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}


class Snapshots(Tool):
    """Base: :attr:`repository` is filled by :meth:`snapshot` and read by :meth:`restore`."""

    versions = True

    @property
    def repository(self) -> Path:
        return self.place / "repository"

    def run(self, *words: str) -> None:
        """A command of it, started where the source is."""
        self.client(words, cwd=self.pairs[0][0], HOME=str(self.place), **SECRET)

    def keep_all(self) -> None:
        """Nothing goes unless it is told to."""

    def store_bytes(self) -> int:
        """What all versions take."""
        return store_bytes(self.repository)

    def snapshot(self, number: int) -> None:
        """Keep what the source is now. Returns when the tool says so."""
        raise NotImplementedError

    def restore(self, number: int, to: Path) -> None:
        """Write what was kept under that number into an empty folder."""
        raise NotImplementedError


class Restic(Snapshots):
    """restic with its defaults: encrypted, compressed as of 0.14."""

    name = "restic"
    packages: ClassVar[tuple[str, ...]] = ("restic",)
    encrypted = durable = True

    def start(self) -> None:
        self.run("restic", "-q", "-r", str(self.repository), "init")

    def snapshot(self, number: int) -> None:
        self.run("restic", "-q", "-r", str(self.repository), "backup", "--tag", f"v{number}", ".")

    def restore(self, number: int, to: Path) -> None:
        self.run("restic", "-q", "-r", str(self.repository), "restore", "latest", "--tag", f"v{number}",
                 "--target", str(to))  # fmt: skip


class Borg(Snapshots):
    """borg with its defaults: lz4, and encryption as its quick start has it."""

    name = "borg"
    packages: ClassVar[tuple[str, ...]] = ("borgbackup",)
    encrypted = durable = True

    def start(self) -> None:
        self.run("borg", "init", "--encryption=repokey", str(self.repository))

    def snapshot(self, number: int) -> None:
        self.run("borg", "create", f"{self.repository}::v{number}", ".")

    def restore(self, number: int, to: Path) -> None:
        words = ("borg", "extract", f"{self.repository}::v{number}")
        self.client(words, cwd=to, HOME=str(self.place), **SECRET)


class Casync(Snapshots):
    """casync with its defaults: compressed, neither encrypted nor durable."""

    name = "casync"
    packages: ClassVar[tuple[str, ...]] = ("casync",)

    def start(self) -> None:
        self.repository.mkdir()

    def snapshot(self, number: int) -> None:
        self.run("casync", "make", *self._names(number), ".")

    def restore(self, number: int, to: Path) -> None:
        self.run("casync", "extract", *self._names(number), str(to))

    def _names(self, number: int) -> list[str]:
        return [f"--store={self.repository}/store", f"{self.repository}/v{number}.caidx"]


SNAPSHOTS: tuple[type[Tool], ...] = (Restic, Borg, Casync)


def private_copy(path: Path, to: Path) -> None:
    """What a version has to be, kept aside."""
    subprocess.run(["cp", "-a", str(path), str(to)], check=True)
    os.sync()
