"""Control groups (cgroup v2): a service and all that it started, however it did that, ended by one write.

See the kernel's Documentation/admin-guide/cgroup-v2.rst. A group is a folder; `cgroup.kill` ends everything
in it at once (since Linux 5.14), `cgroup.events` says whether anything is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def mount_point() -> Path | None:
    """Where the unified hierarchy is; None where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, where, kind = line.split()[:3]
            if kind == "cgroup2":
                return Path(where)
    return None


def own_path() -> str:
    """Of the group that this process is in, below the mount point; '' where that is not known."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line[3:]
    return ""


def own_unit() -> str:
    """The systemd service that this process runs in, as in: crnode-keeper.service; '' for none."""
    last = own_path().rpartition("/")[2]
    return last if last.endswith(".service") else ""


class Group:
    """One control group; it need not be there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def below_own(cls, name: str) -> Group | None:
        """A group of that name below the one that this process is in, made when it is not there; None where
        that may not be done."""
        mount = mount_point()
        if mount is None:
            return None
        folder = mount / own_path().lstrip("/") / name
        try:
            folder.mkdir(exist_ok=True)
        except OSError:
            return None
        return cls(folder) if (folder / "cgroup.procs").exists() else None

    @classmethod
    def of_unit(cls, path: str) -> Group | None:
        """The group of a systemd unit, by its ControlGroup property; None where it has none."""
        mount = mount_point()
        if mount is None or not path.startswith("/") or path == "/":
            return None
        return cls(mount / path.lstrip("/"))

    @classmethod
    def find_unit(cls, unit: str) -> Group | None:
        """The group of a service of systemd, by its name alone: in the slice of all, of its template, or in
        another one (systemd.resource-control(5), Slice=); None where there is none now."""
        mount = mount_point()
        if mount is None:
            return None
        template = unit.partition("@")[0].replace("-", "\\x2d") if "@" in unit else ""
        places = [mount / "system.slice" / unit, mount / "system.slice" / f"system-{template}.slice" / unit]
        for place in places:
            if place.is_dir():
                return cls(place)
        return next((group for top in mount.glob("*.slice") if (group := cls._below(top, unit))), None)

    @classmethod
    def named(cls, name: str) -> Group | None:
        """The group of that name, wherever it is; None where there is none now."""
        mount = mount_point()
        return cls._below(mount, name) if mount is not None else None

    @classmethod
    def _below(cls, top: Path, name: str) -> Group | None:
        # Groups come and go meanwhile: a walk goes on then, as a glob does not.
        return next((cls(Path(place) / name) for place, below, _ in os.walk(top) if name in below), None)

    def enter(self) -> None:
        """In a child, before it becomes the service: from now on it is in here, with all it starts."""
        with open(self.folder / "cgroup.procs", "wb", buffering=0) as file:
            file.write(b"0")

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is left, in the groups below it either. What is not there is empty."""
        try:
            text = (self.folder / "cgroup.events").read_text()
        except OSError:
            return True
        return "populated 0" in text

    def kill(self) -> None:
        """End everything in it at once."""
        try:
            with open(self.folder / "cgroup.kill", "wb", buffering=0) as file:
                file.write(b"1")
        except OSError:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Numbers of the processes in it, and in the groups below it."""
        out = []
        for folder, _, _ in os.walk(self.folder):
            with contextlib.suppress(OSError):
                out += [int(line) for line in (Path(folder) / "cgroup.procs").read_text().split()]
        return out

    def remove(self) -> None:
        """When it is empty it goes; else it stays."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()


__all__ = ["Group", "mount_point", "own_path", "own_unit"]
