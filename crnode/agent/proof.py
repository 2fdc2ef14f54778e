"""Proving versions before they are needed: verify reads everything of one back, a drill restores it.

Both end in a verdict that stays with the version, with the evidence and its time (rule 80). A verdict belongs
to one image and says what was done, never more.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from crnode.agent.errands import Errands
from crnode.agent.inventory import EVIDENCE, ROUNDS
from crnode.agent.restore import Args, Chosen, Progress, Restore, path_of
from crnode.agent.threads import in_thread
from crnode.cluster.document import ReplicationSet
from crnode.errors import CrnodeError, ExitCode
from crnode.replicate.receive import stamp
from crnode.store.manifest import log_again
from crnode.store.reader import BAD, GOOD, SUSPECT, VERDICTS, Image
from crnode.store.store import Damaged, Missing, ObjectStore
from crproto import content
from crproto.entries import FILE, Entry
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE

if TYPE_CHECKING:
    from crnode.agent.node import Agent

DRILLS = "drills"  # below the data directory: where versions are restored to and removed again
BY_COMMAND = "'"  # how the evidence begins of what a command found: its name in quotes
FOUND_WELL = "' found it well"  # what it says after the name of one that ended with 0
NOT_FOUND = 127  # a shell's exit code: there is no such command
NAMED = 20  # damaged paths that an answer names
HEALED_MOST = 100_000  # objects that are fetched in one go
READ_BYTES = 32 << 20  # between two looks at anything else


class Proof:
    """Carries verifications and drills out."""

    def __init__(
        self,
        agent: Agent,
        restore: Restore,
        errands: Errands,
    ) -> None:
        self.agent = agent
        self.restore = restore
        self.errands = errands

    def clean(self) -> None:
        """At start: a drill that was cut off leaves nothing."""
        shutil.rmtree(self.agent.data / DRILLS, ignore_errors=True)

    def _drills(self) -> Path:
        return self.agent.data.resolve() / DRILLS

    async def verify(self, spec: ReplicationSet, args: Args, progress: Progress) -> Args:
        """Read a version back where it is kept: {"version", "verdict", "evidence", "files", "bytes",
        "healed", "damaged": [path], "seconds", "node"}. In `args`: "node", which holder; "pace", at most so
        many bytes a second."""
        chosen = await self.restore.choose(spec, args.get("version"))
        node = str(args.get("node") or chosen.holder)
        if node != self.agent.node.name:
            self.agent.document.need_node(node)
            question = {"set": spec.name, "version": chosen.image.hex()}
            return await self.errands.send(node, "verify", question, progress)
        chosen = await self._held_here(spec, chosen)
        begun = time.monotonic()
        async with self.restore.held(spec, chosen):
            reading, healed = await self._heal(spec, chosen, b"", progress, int(args.get("pace") or 0))
        verdict, evidence = self._judged(reading, len(healed))
        verdict, evidence = await self._note(spec, chosen, verdict, evidence)
        return {
            "version": chosen.sequence,
            "verdict": VERDICTS[verdict],
            "evidence": evidence,
            "files": reading.files,
            "bytes": reading.bytes,
            "healed": len(healed),
            "damaged": [path.decode("utf-8", "surrogateescape") for path in sorted(reading.damaged)[:NAMED]],
            "seconds": time.monotonic() - begun,
            "node": self.agent.node.name,
        }

    async def drill(self, spec: ReplicationSet, args: Args, progress: Progress) -> Args:
        """Restore a version into a place of its own on this node, as after a loss; returns what
        :meth:`Restore.run` does and "image", "time_ns", "age_s" of the version. Whoever asked looks at it,
        and ends the drill with :meth:`end`; with "checked" a command of a person's says what it is, with
        "judged" that of the plan."""
        chosen = await self.restore.choose(spec, args.get("version"))
        if args.get("to"):
            to = Path(str(args["to"]))
        else:
            to = self._drills() / f"{spec.name}-{secrets.token_hex(4)}"
            await in_thread(lambda: to.parent.mkdir(mode=0o700, exist_ok=True))
        wanted = {"path": args.get("path"), "version": chosen.image.hex(), "to": str(to)}
        # Who rehearses a restore wants it from the store; a command that judges takes it from anywhere.
        run = partial(
            self.restore.run, spec, wanted, progress, within=self._drills(), share=bool(args.get("judged"))
        )
        healed = 0
        try:
            out = await run()
        except CrnodeError as error:
            if error.exit_code != ExitCode.DAMAGE:
                raise
            if chosen.holder != self.agent.node.name:
                raise  # the holder heals its own; everything was asked of it and of the others already
            healed = await self._heal_for_drill(spec, chosen, path_of(args), progress, error)
            try:
                out = await run()
            except CrnodeError as again:
                if again.exit_code == ExitCode.DAMAGE:
                    await self._no_good(spec, chosen, again)
                raise
        # Whoever judges it by a command says what it is afterwards: while that runs it must not count as the
        # newest good one, for which the real one would be thinned (rule 81).
        by_command = args.get("judged") or args.get("checked")
        if chosen.holder == self.agent.node.name and not args.get("path") and not by_command:
            did = f"{_all_files(out['files'])} restored in {out['seconds']:.1f} s and read back"
            evidence = f"{did}{_also_healed(healed)}, {stamp(time.time_ns())}"
            await self._note(spec, chosen, GOOD, evidence)
        age_s = (time.time_ns() - chosen.at_ns) / 1e9
        known = {"image": chosen.image.hex(), "time_ns": chosen.at_ns, "age_s": age_s}
        return {**out, "healed": healed, **known}

    async def _heal_for_drill(
        self, spec: ReplicationSet, chosen: Chosen, path: bytes, progress: Progress, error: CrnodeError
    ) -> int:
        """A drill met damage, and said `error`: how many objects others had of what is damaged here. Where
        something stays lacking the version is bad, and `error` is raised."""
        try:
            async with self.restore.held(spec, chosen):
                reading, healed = await self._heal(spec, chosen, path, progress)
        except CrnodeError as why:
            if why.exit_code == ExitCode.DAMAGE:  # its entries contradict themselves
                await self._no_good(spec, chosen, why)
            raise
        if reading.damaged:
            await self._no_good(spec, chosen, error, self._judged(reading, len(healed))[1])
            raise error
        return len(healed)

    async def _no_good(
        self, spec: ReplicationSet, chosen: Chosen, error: CrnodeError, evidence: str = ""
    ) -> None:
        """A drill ended with `error`: keep it with the version, if it is this node that has it. Raises
        CrnodeError (UNREACHABLE) while somebody who may have what is lacking does not answer."""
        if chosen.holder != self.agent.node.name:
            return
        # What a node has that does not answer now is not lost: nothing is known of the version then.
        for name in self.agent.healer.holders(spec.uuid):
            if not await self.agent.answers(name):
                hint = f"Start the agent of {name}, and repeat it."
                raise CrnodeError(error.what, error.why, hint, ExitCode.UNREACHABLE) from error
        said = f"{error.what} {error.why}".rstrip(" .")
        evidence = evidence or f"a drill failed at {stamp(time.time_ns())}: {said}"
        await self._note(spec, chosen, BAD, evidence)

    async def end(self, spec: ReplicationSet, args: Args) -> Args:
        """Remove what a drill restored into a place of its own, and keep what a person's "command" said of
        the "image" by its exit "code": {"verdict", "evidence"} that stand then. One that fails makes the
        version suspect, no more, for it may have been a mere question; who takes over asks the plan's
        (rule 80). Only of what came "from" this node: what others keep was not looked at there."""
        place = Path(str(args.get("to") or ""))
        if place.parent == self._drills():
            await in_thread(lambda: shutil.rmtree(place, ignore_errors=True))
        if "command" not in args or args.get("from") != self.agent.node.name:
            return {}
        command, code, when = str(args["command"]), int(args["code"]), stamp(time.time_ns())
        if code in (0, NOT_FOUND):
            well = f", and {found_well(command)}" if code == 0 else ""
            verdict, evidence = GOOD, f"restored and read back{well}, {when}"
        else:
            verdict, evidence = SUSPECT, f"{BY_COMMAND}{command}' ended with {code} in a drill, {when}"
        name = bytes.fromhex(str(args["image"]))
        verdict, evidence = await self._keep(
            spec, name, verdict, evidence, reading=True, command=command if code == 0 else None
        )
        return {"verdict": VERDICTS[verdict], "evidence": evidence}

    async def _held_here(self, spec: ReplicationSet, chosen: Chosen) -> Chosen:
        for image in await self.restore.images(spec, self.agent.node.name):
            if image.image == chosen.image:
                return image
        raise CrnodeError(
            f"{self.agent.node.name} does not keep version {chosen.sequence} of {spec.name}.",
            f"{chosen.holder} does.",
            f"Leave --node out; see: crnode versions {spec.name}",
            ExitCode.REFUSED,
        )

    async def _heal(
        self, spec: ReplicationSet, chosen: Chosen, path: bytes, progress: Progress, pace: int = 0
    ) -> tuple[_Reading, dict[bytes, str]]:
        """Read what is at and below `path` from the store and fetch what is damaged from our own live tree
        and from other nodes; returns what stays damaged, and where the rest came from. Raises
        CrnodeError."""
        reading = _Reading(self.agent.store)
        await self.restore.pages(spec, chosen, path, reading.note)
        await self._read(reading, progress, pace)
        healed: dict[bytes, str] = {}
        for _ in range(ROUNDS):
            if not reading.lacking:
                break
            ids = set(list(reading.lacking)[:HEALED_MOST])
            came = await self.agent.healer.fetch(spec.uuid, ids, reading.damaged)
            healed |= came
            if not came:
                break
            again = _Reading(self.agent.store)
            again.entries = [e for e in reading.entries if e.path in reading.damaged]
            await self._read(again, progress)
            reading.damaged, reading.lacking = again.damaged, again.lacking
        if healed:
            names = ", ".join(sorted(set(healed.values())))
            self.agent.journal.add(
                "healed",
                f"{len(healed)} damaged or missing objects of version {chosen.sequence} were fetched again"
                f" from {names}.",
                spec.name,
            )
        if reading.lacking:
            self.agent.calls.maintenance.inventory.look_again()  # what it is called for it is taken back
        return reading, healed

    async def _read(self, reading: _Reading, progress: Progress, pace: int = 0) -> None:
        total = len(reading.entries)
        while (at := reading.at) < total:
            progress({"text": f"{at} of {total} files", "done": at, "total": total})
            before = reading.bytes
            await in_thread(partial(reading.step, READ_BYTES if not pace else min(READ_BYTES, pace)))
            if pace:
                await asyncio.sleep((reading.bytes - before) / pace)

    @staticmethod
    def _judged(reading: _Reading, healed: int) -> tuple[int, str]:
        when = stamp(time.time_ns())
        if reading.damaged:
            example = min(reading.damaged).decode("utf-8", "replace")
            return BAD, f"{EVIDENCE}{len(reading.damaged)} files, one is {example}, {when}"
        did = f"{_all_files(reading.files)} read back from the store{_also_healed(healed)}"
        return GOOD, f"{did}, {when}"

    async def _note(
        self, spec: ReplicationSet, chosen: Chosen, verdict: int, evidence: str
    ) -> tuple[int, str]:
        """Keep what reading found. A version that a command found bad or suspect stays so for that, however
        it reads: returns what stands."""
        return await self._keep(spec, chosen.image, verdict, evidence, reading=True)

    async def note(self, spec: ReplicationSet, image: Image, verdict: int, evidence: str) -> None:
        """Keep a verdict with a version that this node has."""
        if image.id is not None:
            await self._keep(spec, image.id, verdict, evidence)

    async def _keep(
        self,
        spec: ReplicationSet,
        name: bytes,
        verdict: int,
        evidence: str,
        *,
        reading: bool = False,
        command: str | None = None,
    ) -> tuple[int, str]:
        """With the version, also for a catalog that is made again. `command`: what a person found it well by;
        that takes back what it said before, or another one of a person's."""
        catalog, store = self.agent.sets.catalogs.get(spec.uuid), self.agent.store

        def note() -> tuple[int, str]:
            if catalog is None or self.agent.sets.catalogs.get(spec.uuid) is not catalog:
                return verdict, evidence  # it was removed meanwhile, or is being made again
            image = catalog.image(name)
            if image is None:
                return verdict, evidence
            said = image.evidence or ""
            judged = said.startswith(BY_COMMAND) or FOUND_WELL in said
            own = command is not None and (image.verdict == SUSPECT or f"{BY_COMMAND}{command}' " in said)
            if reading and judged and not own and image.verdict >= verdict:
                return image.verdict, said
            with catalog.transaction():
                catalog.set_verdict(image.ordinal, verdict, evidence)
            log_again(store, catalog, image.ordinal)
            return verdict, evidence

        return await self.agent.writer.submit(note)


def _all_files(count: int) -> str:
    return f"all {count} files were" if count != 1 else "its file was"


def _also_healed(count: int) -> str:
    return f", {count} objects were healed" if count else ""


def found_well(command: str) -> str:
    """What the evidence of a version says that a command found in order."""
    return f"{BY_COMMAND}{command}{FOUND_WELL}"


class _Reading:
    """Reads files of a version, some at a time. In memory are their names and contents' ids."""

    def __init__(self, store: ObjectStore) -> None:
        self.entries: list[Entry] = []
        self.at = 0
        self.files = 0
        self.bytes = 0
        self.damaged: set[bytes] = set()  # paths
        self.lacking: set[bytes] = set()  # objects
        self._store = store

    def note(self, entries: Sequence[Entry]) -> None:
        """To be read."""
        self.files += sum(1 for entry in entries if entry.kind == FILE)
        self.entries += [entry for entry in entries if entry.content is not None]

    def step(self, count: int) -> None:
        """Read about so many bytes; every object is compared with its id."""
        while self.at < len(self.entries) and count > 0:
            entry = self.entries[self.at]
            self.at += 1
            count -= self._file(entry) + 1024

    def _file(self, entry: Entry) -> int:
        assert entry.content is not None
        todo, size = [(entry.content, entry.level)], 0
        while todo:
            name, level = todo.pop()
            if name == HOLE:
                continue
            try:
                data = self._store.get(name)
                size += len(data)
                if level:
                    recipe = content.parse_recipe(data, level)
                    todo += [(child, level - 1) for _, child in recipe.iter_items()]
            except (Missing, Damaged, RemoteProtocolError):
                self.damaged.add(entry.path)
                self.lacking.add(name)
        self.bytes += entry.size
        return size


__all__ = ["DRILLS", "NOT_FOUND", "Proof", "found_well"]
