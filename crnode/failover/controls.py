"""How a service is started, stopped, and ended at once: what is the same of all kinds, and each of them.

A service is a command that stays in the foreground, a systemd unit, commands that start and stop something,
or a Windows service. Stopping is polite and takes its time; killing is not, takes none, and asks nobody: it
is what a fence does (rule 6). What a command starts is in a control group of its own, where the system has
them, so that nothing of it escapes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from crnode.cluster.document import ServiceSpec
from crnode.failover.fence import die_with_parent, not_spared, signal_group
from crnode.platform.cgroups import Group

GATES = Path("/run/crnode/active")
"""A unit may start while its file is there (rule 5)."""
KILLED_SECONDS = 1.0  # within which what was killed has to be gone
POLL_SECONDS = 0.02


class Control(Protocol):
    """One service; every method may be called at any time, again and again."""

    async def start(self, seconds: float) -> str:
        """Start it; '' when it was started, within so long, else why not."""

    def ended(self) -> str:
        """'' while it runs, as far as can be known without asking anybody; else how it ended."""

    async def stop(self, seconds: float) -> bool:
        """Let it end in good order within so long, then kill it; True when nothing of it is left."""

    def kill(self) -> None:
        """End it at once, and forbid that anybody starts it."""

    def is_gone(self) -> bool:
        """Whether nothing of it is left."""


class Place:
    """Where services run: `log`, a folder for what they print, and `tag`, which is in the names of their
    control groups and of no other keeper on this machine."""

    def __init__(self, log: Path, tag: str) -> None:
        self.log = log
        self.tag = tag

    def group(self, name: str) -> Group | None:
        return Group.below_own(f"crnode.{self.tag}.{name}")


async def _until(gone: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not gone():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


async def _run(words: list[str], seconds: float) -> tuple[int, str]:
    """(exit code, what it said) of a command; killed, and -1, when it takes longer, or cannot be run."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        return -1, f"{words[0]}: {error.strerror or error}"
    try:
        async with asyncio.timeout(seconds):
            out, _ = await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        return -1, f"it took longer than {seconds:g} s"
    assert process.returncode is not None
    return process.returncode, out.decode(errors="replace").strip()


class Foreground:
    """A command that runs as long as the service does, and dies with its keeper."""

    def __init__(self, spec: ServiceSpec, place: Place) -> None:
        self.spec = spec
        self._place = place
        self._group = place.group(spec.name)  # what a keeper before left is in it
        self._process: asyncio.subprocess.Process | None = None
        self._buried = False

    def _child(self) -> None:
        if self._group is not None:
            with contextlib.suppress(OSError):
                self._group.enter()
        die_with_parent()

    async def start(self, seconds: float) -> str:
        self._group = self._place.group(self.spec.name)
        try:
            with (self._place.log / f"{self.spec.name}.log").open("ab") as out:
                self._process = await asyncio.create_subprocess_exec(
                    *self.spec.command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    preexec_fn=self._child,
                )
        except (OSError, subprocess.SubprocessError) as error:
            return str(getattr(error, "strerror", None) or error)
        self._buried = False
        return ""

    def ended(self) -> str:
        if self._process is None:
            return "it was not started"
        code = self._process.returncode
        return "" if code is None else f"it has ended with {code}"

    async def stop(self, seconds: float) -> bool:
        if self._process is not None and self._process.returncode is None:
            signal_group(self._process, signal.Signals[f"SIG{self.spec.stop_signal}"])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._process.wait()
        self.kill()
        gone = await _until(self.is_gone, KILLED_SECONDS)
        if gone and self._group is not None:
            self._group.remove()
        return gone

    def kill(self) -> None:
        if self._process is not None and not self._buried:
            signal_group(self._process, signal.SIGKILL)
            self._buried = self._process.returncode is not None  # its number may be another's from now on
        if self._group is not None:
            self._group.kill()

    def is_gone(self) -> bool:
        ended = self._process is None or self._process.returncode is not None
        return ended and (self._group is None or self._group.is_empty)


class Unit:
    """A unit of systemd. It may start only while its gate is open: a drop-in asks for the file (rule 5)."""

    def __init__(self, unit: str, gates: Path = GATES) -> None:
        self.unit = unit
        self._gate = gates / unit
        self._group: Group | None = None  # until systemd says where it is
        self._started = False

    async def start(self, seconds: float) -> str:
        try:
            self._gate.parent.mkdir(parents=True, exist_ok=True)
            self._gate.touch()
        except OSError as error:
            return f"{self._gate}: {error.strerror}"
        code, said = await _run(["systemctl", "start", self.unit], seconds)
        if code:
            return f"systemctl start {self.unit}: {said or code}"
        _, where = await _run(["systemctl", "show", "--property=ControlGroup", "--value", self.unit], seconds)
        self._group = Group.of_unit(where) or self._group
        self._started = True
        return ""

    def ended(self) -> str:
        if not self._started:
            return "it was not started"
        return "its unit has ended" if self._group is not None and self._group.is_empty else ""

    async def stop(self, seconds: float) -> bool:
        with contextlib.suppress(OSError):
            self._gate.unlink(missing_ok=True)  # before anything else: nobody starts it again
        await _run(["systemctl", "stop", self.unit], seconds)
        self.kill()
        return await _until(self.is_gone, KILLED_SECONDS)

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._gate.unlink(missing_ok=True)
        self._started = False
        if (group := self._there()) is not None:
            group.kill()

    def _there(self) -> Group | None:
        """Its group, also when another keeper started it, or systemd by itself."""
        return self._group if self._group is not None else Group.find_unit(self.unit)

    def is_gone(self) -> bool:
        group = self._there()
        return group is None or group.is_empty


class Commands:
    """A service that a command starts and another one stops; what the first leaves behind is the service."""

    def __init__(self, spec: ServiceSpec, place: Place) -> None:
        self.spec = spec
        self._place = place
        self._group = place.group(spec.name)
        self._started = False

    def _child(self) -> None:
        if self._group is not None:
            with contextlib.suppress(OSError):
                self._group.enter()
        not_spared()

    async def start(self, seconds: float) -> str:
        self._group = self._place.group(self.spec.name)
        if self._group is None:
            return "no control group can be made here, and what it leaves behind could not be ended"
        log = self._place.log / f"{self.spec.name}.log"
        # What it leaves behind keeps its output open: that goes to a file, or waiting for it had no end.
        try:
            with log.open("ab") as out:
                process = await asyncio.create_subprocess_exec(
                    *("sh", "-c", self.spec.start),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    preexec_fn=self._child,
                )
        except (OSError, subprocess.SubprocessError) as error:
            return str(getattr(error, "strerror", None) or error)
        try:
            async with asyncio.timeout(seconds):
                code = await process.wait()
        except TimeoutError:
            signal_group(process, signal.SIGKILL)
            await process.wait()
            return f"'{self.spec.start}' took longer than {seconds:g} s"
        self._started = code == 0
        return "" if code == 0 else f"'{self.spec.start}' ended with {code}; see {log}"

    def ended(self) -> str:
        if not self._started:
            return "it was not started"
        return "nothing of it is left" if self._group is not None and self._group.is_empty else ""

    async def stop(self, seconds: float) -> bool:
        if self._started and self.spec.stop:
            await _run(["sh", "-c", self.spec.stop], seconds)
        self.kill()
        gone = await _until(self.is_gone, KILLED_SECONDS)
        if gone and self._group is not None:
            self._group.remove()
        return gone

    def kill(self) -> None:
        self._started = False
        if self._group is not None:
            self._group.kill()

    def is_gone(self) -> bool:
        return self._group is None or self._group.is_empty


class WindowsService:
    """A service of Windows, by sc.exe and taskkill.exe, as their manual pages have them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._started = False

    async def _state(self) -> str:
        _, said = await _run(["sc", "query", self.name], 10.0)
        for line in said.splitlines():
            if "STATE" in line:
                return line.split()[-1]
        return ""

    async def start(self, seconds: float) -> str:
        code, said = await _run(["sc", "start", self.name], seconds)
        if code:
            return f"sc start {self.name}: {said or code}"
        deadline = time.monotonic() + seconds
        while (state := await self._state()) != "RUNNING":
            if time.monotonic() > deadline or state == "STOPPED":
                return f"the service {self.name} is {state or 'not there'}"
            await asyncio.sleep(0.1)
        self._started = True
        return ""

    def ended(self) -> str:
        return "" if self._started else "it was not started"

    async def stop(self, seconds: float) -> bool:
        await _run(["sc", "stop", self.name], seconds)
        deadline = time.monotonic() + seconds
        while (state := await self._state()) not in ("STOPPED", ""):
            if time.monotonic() > deadline:
                self.kill()
                await asyncio.sleep(KILLED_SECONDS)
                state = await self._state()
                break
            await asyncio.sleep(0.1)
        self._started = False
        return state in ("STOPPED", "")

    def kill(self) -> None:
        self._started = False
        words = ["taskkill", "/F", "/FI", f"SERVICES eq {self.name}"]
        with contextlib.suppress(OSError):
            nothing = subprocess.DEVNULL
            subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing)

    def is_gone(self) -> bool:
        return not self._started


def control_of(spec: ServiceSpec, place: Place) -> Control:
    """What controls a service of that kind."""
    if spec.unit:
        return Unit(spec.unit)
    if spec.windows:
        return WindowsService(spec.windows)
    return Commands(spec, place) if spec.start else Foreground(spec, place)


DROP_IN = """# Written by crnode: this unit runs where the lease is, and nowhere else.
[Unit]
ConditionPathExists={gate}
{binding}"""
DROP_IN_NAME = "50-crnode.conf"
UNITS = Path("/etc/systemd/system")


def drop_in(unit: str, keeper: str, gates: Path = GATES) -> str:
    """What makes systemd keep a unit down where its gate is closed, and end it with the keeper's unit ('' for
    a keeper that is none)."""
    binding = f"BindsTo={keeper}\nAfter={keeper}\n" if keeper else ""
    return DROP_IN.format(gate=gates / unit, binding=binding)


def has_drop_in(unit: str, place: Path = UNITS) -> bool:
    """Whether systemd asks for the gate of a unit."""
    try:
        return f"ConditionPathExists={GATES / unit}\n" in (place / f"{unit}.d" / DROP_IN_NAME).read_text()
    except OSError:
        return False


def write_drop_ins(units: list[str], keeper: str, place: Path = UNITS) -> str:
    """Write those of `units`, and take away those of others that we wrote before. '' or why not."""
    try:
        changed = False
        for unit in units:
            file = place / f"{unit}.d" / DROP_IN_NAME
            text = drop_in(unit, keeper)
            if not file.exists() or file.read_text() != text:
                file.parent.mkdir(parents=True, exist_ok=True)
                new = file.with_name(f".{DROP_IN_NAME}.new")
                new.write_text(text)
                os.replace(new, file)
                changed = True
        for file in place.glob(f"*.d/{DROP_IN_NAME}"):
            if file.parent.name.removesuffix(".d") not in units:
                file.unlink()
                changed = True
        if changed:
            done = subprocess.run(
                ["systemctl", "daemon-reload"], capture_output=True, text=True, timeout=30, check=False
            )
            return done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


__all__ = ["GATES", "Commands", "Control", "Foreground", "Place", "Unit", "WindowsService", "control_of"]
__all__ += ["drop_in", "has_drop_in", "write_drop_ins"]
