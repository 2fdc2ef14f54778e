"""The services that run where the lease is: started and stopped in their order, asked whether they serve.

A service is a command in the foreground, in a process group of its own that dies with its keeper. One that
ended, or whose probe says that it is down, has failed; who is told of it decides what comes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from crnode.cluster.document import ServiceSpec
from crnode.failover.fence import die_with_parent, signal_group
from crnode.failover.health import Health, Judge
from crnode.failover.probes import Probe

HANGING_SECONDS = 1.0  # that a service has to stop which does not serve anyway
KILLED_SECONDS = 1.0  # within which what was killed has to be gone


class Running:
    """A service that was started, and what is known of it."""

    def __init__(self, spec: ServiceSpec, process: asyncio.subprocess.Process) -> None:
        self.spec = spec
        self.process = process
        self.probe = Probe(spec.probe) if spec.probe is not None else None
        self.judge = Judge(spec.probe.rise, spec.probe.fall) if spec.probe is not None else None
        self.why = ""  # its probe's last answer
        self.asking: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    @property
    def health(self) -> Health:
        if self.ended:
            return Health.DOWN
        return self.judge.health if self.judge is not None else Health.UP

    async def ask(self) -> bool:
        """Ask its probe once; True when it serves."""
        if self.probe is None or self.judge is None:
            return not self.ended
        self.why = await self.probe.ask()
        self.judge.note(not self.why)
        return not self.why

    async def ask_on(self) -> None:
        """Ask it as long as this runs."""
        assert self.spec.probe is not None
        while True:
            begun = time.monotonic()
            await self.ask()
            await asyncio.sleep(max(0.0, self.spec.probe.interval_s - (time.monotonic() - begun)))

    def close(self) -> None:
        if self.asking is not None:
            self.asking.cancel()
        if self.probe is not None:
            self.probe.close()


class Services:
    """See the module's text.

    Args:
        log: the folder into which what they print goes.
        say: a sentence for people.
    """

    def __init__(self, services: Sequence[ServiceSpec], log: Path, say: Callable[[str], None]) -> None:
        self.services = list(services)
        self.running: dict[str, Running] = {}
        self._log = log
        self._say = say

    async def start(self, still: Callable[[], bool]) -> None:
        """Start those that do not run, one after the other, each when the one before serves or its time for
        that is over; while `still` says so: it is asked before and after each (rule 17)."""
        for spec in self.services:
            if spec.name in self.running and not self.running[spec.name].ended:
                continue
            if not still():
                break
            await self._start(spec, still)
        if not still():
            self.kill()

    async def _start(self, spec: ServiceSpec, still: Callable[[], bool]) -> None:
        if (before := self.running.pop(spec.name, None)) is not None:
            before.close()
        try:
            with (self._log / f"{spec.name}.log").open("ab") as out:
                process = await asyncio.create_subprocess_exec(
                    *spec.command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
        except OSError as error:
            self._say(f"The service {spec.name} could not be started: {error.strerror or error}.")
            return
        running = self.running[spec.name] = Running(spec, process)
        if spec.probe is None:
            return
        deadline = time.monotonic() + spec.start_s
        while not await running.ask():
            if running.ended or not still():
                return
            if time.monotonic() > deadline:
                since = f"{spec.start_s:g} s after its start"
                self._say(f"The service {spec.name} does not serve {since}: {running.why}.")
                break
            await asyncio.sleep(0.05)
        running.asking = asyncio.create_task(running.ask_on())

    async def stop(self) -> bool:
        """Stop all of them in good order, the last one first; what does not end in time is killed. True when
        nothing of them is left."""
        for spec in reversed(self.services):
            if spec.name in self.running:
                await self.end(spec.name)
        left = [name for name, one in self.running.items() if not one.ended]
        return not left

    async def end(self, name: str) -> bool:
        """Stop one of them; True when nothing of it is left."""
        running = self.running[name]
        hangs = running.health is Health.DOWN
        running.close()
        if not running.ended:
            signal_group(running.process, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                seconds = min(running.spec.stop_s, HANGING_SECONDS) if hangs else running.spec.stop_s
                await asyncio.wait_for(running.process.wait(), seconds)
        signal_group(running.process, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(running.process.wait(), KILLED_SECONDS)
        if running.ended:
            self.running.pop(name, None)
        return running.ended

    def kill(self) -> None:
        """At once, and everything that they started in their groups."""
        for running in self.running.values():
            running.close()
            signal_group(running.process, signal.SIGKILL)

    def failed(self) -> list[tuple[ServiceSpec, str]]:
        """(service, why) of those that could not be started, ended by themselves or do not serve."""
        out = []
        for spec in self.services:
            running = self.running.get(spec.name)
            if running is None:
                out.append((spec, "it could not be started"))
            elif running.ended:
                out.append((spec, f"it has ended with {running.process.returncode}"))
            elif running.health is Health.DOWN:
                out.append((spec, running.why or "it does not answer as it should"))
        return out

    def told(self) -> dict[str, str]:
        """name -> how it is, for people."""
        out = {}
        for name, running in self.running.items():
            word = "ended" if running.ended else running.health.value
            notes = [running.why] if running.why else []
            if running.probe is not None and running.probe.warning:
                notes.append(running.probe.warning)
            out[name] = f"{word}: {'; '.join(notes)}" if notes else word
        return out

    def unsure(self) -> list[tuple[str, str]]:
        """(name, why) of those whose probe fails now and then, and of certificates that end soon."""
        out = []
        for name, running in self.running.items():
            if running.health is Health.UNSURE:
                out.append((name, f"it fails now and then: {running.why}"))
            if running.probe is not None and running.probe.warning:
                out.append((name, running.probe.warning))
        return out


__all__ = ["Running", "Services"]
