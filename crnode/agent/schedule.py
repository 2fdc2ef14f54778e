"""Versions are proved before anybody needs them: at idle, one set at a time, the newest one that stood still.

Each node does it for the sets that it keeps. Without more it reads the version back from its store, once a
day, at a set pace. Where the node's own file names a command for the set, it rehearses a restore and runs the
command in what was restored. The verdict stays with the version (rules 80 and 81). The command is this node's
own affair: what the cluster document says is never run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from crnode.agent.inventory import PROVED
from crnode.agent.proof import BY_COMMAND, NOT_FOUND, Proof, found_well
from crnode.agent.restore import Args
from crnode.agent.sets import RunningTarget
from crnode.cluster.document import ReplicationSet
from crnode.cluster.node_file import ProofPlan
from crnode.errors import CrnodeError, ExitCode
from crnode.replicate.receive import stamp
from crnode.store.reader import BAD, FUZZY, GOOD, ROLLING, UNTESTED, VERDICTS, Image

if TYPE_CHECKING:
    from crnode.agent.node import Agent

LOG_BYTES = 2000  # of what a command printed that a report repeats


class Schedule:
    """See the module's text."""

    def __init__(self, agent: Agent, proof: Proof) -> None:
        self.agent = agent
        self.proof = proof

    def plan(self, name: str) -> ProofPlan:
        """What this node does for a set."""
        return self.agent.node.proofs.get(name, ProofPlan())

    def change(self, name: str, plan: ProofPlan | None) -> None:
        """Remember another plan in the node's own file; None: the usual one. Raises OSError."""
        proofs = {known: value for known, value in self.agent.node.proofs.items() if known != name}
        if plan is not None:
            proofs[name] = plan
        node = self.agent.node.model_copy(update={"proofs": proofs})
        node.write(self.agent.data)
        self.agent.node = node

    async def step(self, now_ns: int, *, idle: bool, pace: int) -> str:
        """Prove one version that is due; returns what was done, '' when nothing is."""
        for running in list(self.agent.sets.targets.values()):
            plan = self.plan(running.spec.name)
            due = await self._due(running, plan, now_ns, idle=idle)
            if due is not None:
                await self._prove(running, plan, due, pace)
                return f"proof {running.spec.name} {due.sequence}"
        return ""

    async def now(self, spec: ReplicationSet, pace: int = 0) -> Args:
        """Do at once what the plan says: {"version", "verdict", "evidence"}. Raises CrnodeError."""
        running = self.agent.sets.targets.get(spec.uuid)
        if running is None:
            why = self.agent.sets.refused.get(spec.uuid, "It is being started.")
            raise CrnodeError(f"Set {spec.name} does not run here.", why)
        catalog = running.commit.catalog
        images = await self.agent.writer.submit(catalog.images)
        whole = [image for image in images if not image.flags & (ROLLING | FUZZY)]
        if not whole:
            raise CrnodeError(f"There is no whole version of {spec.name} here yet.", "")
        await self._prove(running, self.plan(spec.name), whole[-1], pace)
        image = await self.agent.writer.submit(catalog.image_at, whole[-1].ordinal) or whole[-1]
        return {"version": image.sequence, "verdict": VERDICTS[image.verdict], "evidence": image.evidence}

    async def judge(self, running: RunningTarget, image: Image) -> int:
        """Let the plan's command judge a version now; the verdict that stands then. Cancelled, it has said
        nothing."""
        await self._prove(running, self.plan(running.spec.name), image, 0)
        found = await self.agent.writer.submit(running.commit.catalog.image_at, image.ordinal)
        return found.verdict if found is not None else UNTESTED

    async def _due(
        self, running: RunningTarget, plan: ProofPlan, now_ns: int, *, idle: bool
    ) -> Image | None:
        """The version to be proved now. The time is noted first: what fails is not tried again at once."""
        catalog = running.commit.catalog
        wait_ns = plan.every_s * 10**9 * (1 if idle else 2)

        def look() -> Image | None:
            last = int.from_bytes(catalog.meta(PROVED) or b"", "big")
            if not plan.every_s or now_ns - last < wait_ns:
                return None
            whole = [image for image in catalog.images() if not image.flags & (ROLLING | FUZZY)]
            if not whole or (whole[-1].verdict != UNTESTED and not plan.command):
                return None
            with catalog.transaction():
                catalog.set_meta(PROVED, now_ns.to_bytes(8, "big"))
            return whole[-1]

        return await self.agent.writer.submit(look)

    async def _prove(self, running: RunningTarget, plan: ProofPlan, image: Image, pace: int) -> None:
        spec = running.spec
        try:
            if plan.command:
                await self._drill(running, plan, image)
            else:
                wanted = {"version": (image.id or b"").hex(), "node": self.agent.node.name, "pace": pace}
                out = await self.proof.verify(spec, wanted, lambda _: None)
                if out["damaged"]:
                    self._tell(spec.name, image, f"is damaged here: {out['evidence']}")
        except CrnodeError as error:
            if error.exit_code is not ExitCode.REFUSED:  # it was thinned meanwhile
                self._tell(spec.name, image, f"was not proved: {error}")
        except OSError as error:
            self._tell(spec.name, image, f"was not proved: {error.strerror or error}.")

    async def _drill(self, running: RunningTarget, plan: ProofPlan, image: Image) -> None:
        code, said, shared = await self._run(running, plan, image)
        when = stamp(time.time_ns())
        if code == 0:
            how = f"restored, {shared} files as the live tree has them," if shared else "restored"
            evidence = f"{how} and read back, and {found_well(plan.command)}, {when}"
            await self.proof.note(running.spec, image, GOOD, evidence)
            return
        name = running.spec.name
        if code == NOT_FOUND:
            self._tell(name, image, f"was restored well; its check '{plan.command}' is not there.")
            evidence = f"restored and read back; its check is not there, {when}"
            await self.proof.note(running.spec, image, GOOD, evidence)
            return
        good = await self._formerly_good(running, image, plan.command)
        if good is not None and (await self._run(running, plan, good))[0] != 0:
            # A check that fails on what it once found well says nothing of this version.
            self._tell(name, image, f"is untested: '{plan.command}' fails on the good version"
                       f" {good.sequence} too, and has to be mended. {said}")  # fmt: skip
            await self.proof.note(running.spec, image, UNTESTED, f"its check is broken, {when}")
            return
        did = f"{BY_COMMAND}{plan.command}' ended with {code} in what was restored"
        evidence = f"{did}, {when}. {said}".strip()
        await self.proof.note(running.spec, image, BAD, evidence)
        self._tell(name, image, f"is no good: {evidence}")

    async def _formerly_good(self, running: RunningTarget, image: Image, command: str) -> Image | None:
        """The newest older version that this very command found well; where it never did, the newest good
        one. While it has one of its own, those that were only read back say nothing of it."""
        images = await self.agent.writer.submit(running.commit.catalog.images)
        older = [one for one in images if one.verdict == GOOD and one.ordinal < image.ordinal]
        by_it = [one for one in older if found_well(command) in (one.evidence or "")]
        return next(reversed(by_it or older), None)

    async def _run(self, running: RunningTarget, plan: ProofPlan, image: Image) -> tuple[int, str, int]:
        """(exit code of the command in what was restored, the end of what it printed, how many files shared
        their blocks with the live tree: what of them is in the store was not looked at)."""
        spec = running.spec
        answer: Args = {}
        try:
            wanted = {"version": (image.id or b"").hex(), "judged": True}
            answer = await self.proof.drill(spec, wanted, lambda _: None)
            code, said = await _command(plan, Path(str(answer["to"])))
            return code, said, int(answer["shared"])
        finally:
            if answer:
                await self.proof.end(spec, answer)

    def _tell(self, name: str, image: Image, text: str) -> None:
        self.agent.journal.add("proof", f"Version {image.sequence} of {name} {text}", name)


async def _command(plan: ProofPlan, folder: Path) -> tuple[int, str]:
    """Run a check at low priority, with everything that it starts ended after its time."""
    process = await asyncio.create_subprocess_exec(
        "nice", "-n", "19", "sh", "-c", plan.command,
        cwd=folder, env={**os.environ, "CRNODE_DRILL": str(folder)}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    end = b""

    async def read() -> None:
        nonlocal end
        assert process.stdout is not None
        while data := await process.stdout.read(1 << 16):
            end = (end + data)[-LOG_BYTES:]

    reading = asyncio.create_task(read())
    late = False
    try:
        async with asyncio.timeout(plan.timeout_s):
            await process.wait()
    except TimeoutError:
        late = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it left behind
        await process.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):  # unless something has left the group and holds the pipe
                await asyncio.wait([reading])
        reading.cancel()
    said = end.decode("utf-8", "replace").strip().replace("\n", " / ")
    if late:
        return -1, f"It was ended after {plan.timeout_s} s. {said}".strip()
    return process.returncode if process.returncode is not None else -1, said


__all__ = ["Schedule"]
