"""The services that run where the lease is: started and stopped in their order, asked whether they serve.

One that ended, or whose probe says that it is down, has failed; who is told of it decides what comes of it.
A service that needs another one is not blamed for what that does, and is started anew with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from crnode.cluster.document import ProbeSpec, ServiceSpec
from crnode.failover.controls import Control, Place, control_of
from crnode.failover.health import Health, Judge
from crnode.failover.probes import Probe

HANGING_SECONDS = 1.0  # that a service has to stop which does not serve anyway


class Running:
    """A service that was started, and what is known of it."""

    def __init__(self, spec: ServiceSpec, control: Control) -> None:
        asked = spec.probe
        if asked is None and spec.status:
            asked = ProbeSpec(kind="command", target=spec.status, timeout_s=10.0)
        self.spec = spec
        self.control = control
        self.asked = asked
        self.probe = Probe(asked) if asked is not None else None
        self.judge = Judge(asked.rise, asked.fall) if asked is not None else None
        self.why = ""  # its probe's last answer
        self.asking: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        return bool(self.control.ended())

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
        assert self.asked is not None
        while True:
            begun = time.monotonic()
            await self.ask()
            await asyncio.sleep(max(0.0, self.asked.interval_s - (time.monotonic() - begun)))

    def close(self) -> None:
        if self.asking is not None:
            self.asking.cancel()
        if self.probe is not None:
            self.probe.close()


class Services:
    """See the module's text.

    Args:
        place: where what they print goes.
        say: a sentence for people.
    """

    def __init__(self, services: Sequence[ServiceSpec], place: Place, say: Callable[[str], None]) -> None:
        self.services: list[ServiceSpec] = []
        self.running: dict[str, Running] = {}
        self.fresh: set[str] = set()  # those that nobody has tried to start yet
        self._busy = 0  # starts and stops that are under way
        self._tried = False  # since they were stopped last
        self._pending: Sequence[ServiceSpec] | None = None  # what they are to be afterwards
        self._controls: dict[str, Control] = {}
        self._place = place
        self._say = say
        self.configure(services)

    def configure(self, services: Sequence[ServiceSpec]) -> None:
        """From now on it is these, or when a start or a stop that is under way is over. One that is no longer
        among them is ended at once; one that is new is started by :meth:`start`."""
        if self._busy:
            self._pending = services
            return
        before = {spec.name: spec for spec in self.services}
        self.services = list(services)
        now = {spec.name: spec for spec in services}
        for name, spec in before.items():
            if now.get(name) is None or _how(now[name]) != _how(spec):
                if (running := self.running.pop(name, None)) is not None:
                    running.close()
                self._controls.pop(name).kill()
        for name, spec in now.items():
            if name not in self._controls:
                self._controls[name] = control_of(spec, self._place)
                self.fresh.add(name)
            elif (running := self.running.get(name)) is not None and running.spec != spec:
                self.running[name] = self._asked_anew(running, spec)
        self.fresh &= now.keys()

    def _asked_anew(self, running: Running, spec: ServiceSpec) -> Running:
        """The same service, which is asked another way whether it serves."""
        running.close()
        again = Running(spec, running.control)
        if again.probe is not None:
            again.asking = asyncio.create_task(again.ask_on())
        return again

    async def start(self, still: Callable[[], bool], lost: Callable[[], bool] = lambda: False) -> None:
        """Start those that do not run, one after the other, each when the one before serves or its time for
        that is over; while `still` says so: it is asked before and after each (rule 17). When `lost` says
        that they may not run any more, all are ended."""
        self._tried = True
        with self._at_work():
            for spec in list(self.services):
                if spec.name in self.running and not self.running[spec.name].ended:
                    continue
                if not still():
                    break
                await self._start(spec, still)
        if lost():
            self.kill()

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """They stay these meanwhile."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy and self._pending is not None:
                services, self._pending = self._pending, None
                self.configure(services)

    async def _start(self, spec: ServiceSpec, still: Callable[[], bool]) -> None:
        if (before := self.running.pop(spec.name, None)) is not None:
            before.close()
        control = self._controls[spec.name]
        self.fresh.discard(spec.name)
        begun = time.monotonic()
        try:
            why = await control.start(spec.start_s)
        except (OSError, subprocess.SubprocessError) as error:
            why = str(error)
        if why:
            control.kill()  # what it left of itself
            self._say(f"The service {spec.name} could not be started: {why}.")
            return
        running = self.running[spec.name] = Running(spec, control)
        if running.probe is not None:
            while not await running.ask():
                if running.ended or not still():
                    return
                if time.monotonic() > begun + spec.start_s:
                    since = f"{spec.start_s:g} s after its start"
                    self._say(f"The service {spec.name} does not serve {since}: {running.why}.")
                    break
                await asyncio.sleep(0.05)
            running.asking = asyncio.create_task(running.ask_on())
        self._say(f"The service {spec.name} was started in {time.monotonic() - begun:.2f} s.")

    async def stop(self) -> bool:
        """Stop all of them in good order, the last one first; what does not end in time is killed. True when
        nothing of them is left."""
        self._tried = False
        with self._at_work():
            gone = [await self.end(spec.name) for spec in reversed(self.services)]
        return all(gone) and self.are_gone()

    def are_gone(self) -> bool:
        """Whether nothing of any of them is left."""
        return all(control.is_gone() for control in self._controls.values())

    async def end(self, name: str) -> bool:
        """Stop one of them, after those that need it; True when nothing of it is left."""
        with self._at_work():
            return await self._end(name)

    async def _end(self, name: str) -> bool:
        for spec in reversed(self.services):
            if name in spec.needs and spec.name in self.running:
                await self.end(spec.name)
        running = self.running.pop(name, None)
        control = self._controls.get(name)
        if control is None:
            return True  # it was taken out, and ended then
        hangs = running is None or running.health is Health.DOWN
        if running is not None:
            running.close()
        elif control.is_gone():
            return True
        seconds = next((spec.stop_s for spec in self.services if spec.name == name), HANGING_SECONDS)
        try:
            return await control.stop(min(seconds, HANGING_SECONDS) if hangs else seconds)
        except (OSError, subprocess.SubprocessError) as error:
            self._say(f"The service {name} could not be stopped: {error}.")
            control.kill()
            return control.is_gone()

    def kill(self) -> None:
        """All of them at once, started by us or in a life before."""
        self._tried = False
        for running in self.running.values():
            running.close()
        for control in self._controls.values():
            control.kill()

    def failed(self) -> list[tuple[ServiceSpec, str]]:
        """(service, why) of those that could not be started, ended by themselves or do not serve, but for
        those whose need is among them."""
        out: dict[str, tuple[ServiceSpec, str]] = {}
        for spec in self.services:
            running = self.running.get(spec.name)
            if spec.name in self.fresh:
                continue
            if running is None:
                out[spec.name] = (spec, "it could not be started")
            elif why := running.control.ended():
                out[spec.name] = (spec, why)
            elif running.health is Health.DOWN:
                out[spec.name] = (spec, running.why or "it does not answer as it should")
        return [found for name, found in out.items() if not self._needs_one_of(name, set(out))]

    def _needs_one_of(self, name: str, failed: set[str]) -> bool:
        spec = next(one for one in self.services if one.name == name)
        return any(other in failed or self._needs_one_of(other, failed) for other in spec.needs)

    def told(self) -> dict[str, str]:
        """name -> how it is, for people."""
        out = {}
        if self.running or self._tried:
            for spec in self.services:
                if spec.name not in self.running and spec.name not in self.fresh:
                    out[spec.name] = "could not be started"
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


def _how(spec: ServiceSpec) -> tuple[object, ...]:
    """What makes it another service, which is controlled anew."""
    return spec.command, spec.unit, spec.start, spec.stop, spec.windows, spec.stop_signal


__all__ = ["Running", "Services"]
