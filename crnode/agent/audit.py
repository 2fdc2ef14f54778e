"""The weekly look at what this node keeps: digests of its versions, records of its packs (rule 31)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crnode.platform.files import atomic_write
from crnode.store.catalog import Catalog
from crnode.store.child import Child, ChildFailed
from crnode.store.reader import BAD
from crnode.store.scrub import scrub

if TYPE_CHECKING:
    from crnode.agent.node import Agent

PERIOD_NS = 7 * 86_400 * 10**9
FILE = "verified"


class Verified:
    """When each catalog and each pack was looked at last, in ns since 1970; a small file in the store's
    directory. A pack that is not in it was verified when it was written."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self.catalogs: dict[str, int] = {}
        self.packs: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            body = json.loads(self.path.read_text())
            self.catalogs = {str(k): int(v) for k, v in body["catalogs"].items()}
            self.packs = {str(k): int(v) for k, v in body["packs"].items()}

    def write(self) -> None:
        """Keep it. A full disk does without: then things are looked at once more than they need be."""
        with contextlib.suppress(OSError):
            atomic_write(self.path, json.dumps({"catalogs": self.catalogs, "packs": self.packs}).encode())


class Audit:
    """Looks at one thing a call. Problems stand in `agent.problems` until a later look finds them gone."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.verified = Verified(agent.store.directory)

    # -- catalogs

    def due_catalog(self, now_ns: int, period_ns: int = PERIOD_NS) -> str | None:
        """The set whose catalog was not looked at for the longest time, if that is a period. Blocking."""
        catalogs = list(self.agent.sets.catalogs)
        for uuid in [u for u in self.verified.catalogs if u not in catalogs]:
            del self.verified.catalogs[uuid]
        if new := [u for u in catalogs if u not in self.verified.catalogs]:
            self.verified.catalogs |= dict.fromkeys(new, now_ns)  # they were written this moment
            self.verified.write()  # or a node that restarts often would never come to look
        due = sorted((self.verified.catalogs[uuid], uuid) for uuid in catalogs)
        return due[0][1] if due and not 0 <= now_ns - due[0][0] < period_ns else None

    async def catalog(self, uuid: str, now_ns: int) -> list[str]:
        """Check one catalog; returns what is wrong with it, which is told and mended as far as it can be.

        An older image whose rows do not give its digest is marked bad, and stays for whoever wants what is
        left of it. The newest one is what everything goes on from: the catalog is set aside and made again.
        """
        agent = self.agent
        catalog = agent.sets.catalogs.get(uuid)
        if catalog is None:  # closed meanwhile
            return []
        spec = agent.document.set_by_uuid(uuid)
        name = spec.name if spec is not None else uuid
        key = f"catalog {name}"
        self.verified.catalogs[uuid] = now_ns
        await asyncio.to_thread(self.verified.write)
        try:
            damaged, wrong = await self._look(catalog, uuid)
            spoiled = [one for one in wrong if one["newest"]]
            if damaged or spoiled:  # what is done then is not small: let it be said twice
                damaged, wrong = await self._look(catalog, uuid)
                spoiled = [one for one in wrong if one["newest"]]
        except ChildFailed as error:
            agent.problems[key] = f"Its catalog could not be checked: {error}."
            agent.journal.add("damage", f"The catalog of set {name} could not be checked: {error}.", name)
            return [str(error)]
        agent.problems.pop(key, None)
        if damaged or spoiled:
            why = damaged or f"image {spoiled[0]['sequence']}: {spoiled[0]['why']}"
            agent.problems[key] = f"Its catalog is damaged ({why})."
            await agent.rebuild_catalog(uuid, why, catalog)
            agent.problems[key] = f"Its catalog was damaged ({why}), was set aside and made again."
            return [why]
        out = []
        for one in wrong:
            out.append(f"image {one['sequence']}: {one['why']}")
            await agent.writer.submit(_mark_bad, catalog, bytes.fromhex(one["id"]), one["why"])
            agent.journal.add(
                "damage", f"Version {one['sequence']} of set {name} is not whole: {one['why']}.", name
            )
        if out:
            agent.problems[key] = f"{len(out)} versions are not whole: {'; '.join(out[:3])}."
        return out

    @staticmethod
    async def _look(catalog: Catalog, uuid: str) -> tuple[str, list[dict[str, Any]]]:
        """(why SQLite cannot use it, images whose rows are not what their digest says)"""
        damaged = ""
        wrong: list[dict[str, Any]] = []
        async with Child("crnode.store.audit", {"catalog": str(catalog.path), "set": uuid}) as process:
            while (line := await process.line()) is not None:
                if line["event"] == "damaged":
                    damaged = line["why"]
                elif line["event"] == "image":
                    wrong.append(line)
        return damaged, wrong

    # -- packs

    def due_packs(self, now_ns: int, budget: int, period_ns: int = PERIOD_NS) -> list[int]:
        """The packs that were not read for the longest time, if that is a period, of about `budget` bytes in
        all. Blocking."""
        packs = self.agent.store.packs
        numbers = packs.numbers()
        for gone in self.verified.packs.keys() - {str(n) for n in numbers}:
            del self.verified.packs[gone]
        due = []
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):
                at = self.verified.packs.get(str(number)) or packs.path(number).stat().st_mtime_ns
                if not 0 <= now_ns - at < period_ns:
                    due.append((at, number))
        out: list[int] = []
        for _, number in sorted(due):
            with contextlib.suppress(FileNotFoundError):
                budget -= packs.size(number)
                out.append(number)
            if budget <= 0:
                break
        return out

    def read(self, numbers: Iterable[int], now_ns: int) -> None:
        """These packs were read."""
        for number in numbers:
            self.verified.packs[str(number)] = now_ns

    async def packs(self, numbers: list[int], pace: int, now_ns: int) -> int:
        """Read these packs again and heal what is damaged in them; returns how many objects were. Raises
        child.ChildFailed."""
        agent = self.agent
        maintenance = agent.calls.maintenance
        found = await scrub(agent.store, agent.writer, bytes_per_second=pace, packs=numbers)
        left = 0
        if found.damaged:
            maintenance.inventory.look_again()  # each minute, should this attempt end early
            report = await maintenance.inventory.run(lambda _: None)
            await maintenance.forget_garbage(report)
            left = sum(1 for one in found.damaged if one.id in agent.store.damaged)
        self.read(numbers, now_ns)
        await asyncio.to_thread(self.verified.write)
        if found.damaged:
            agent.journal.add(
                "damage",
                f"{len(found.damaged)} damaged objects were found in the packs; {len(found.damaged) - left}"
                " are whole again or needed by nobody.",
            )
        if left:
            agent.problems["packs"] = f"{left} stored objects are damaged and no node has them: crnode scrub."
        elif not agent.store.damaged:
            agent.problems.pop("packs", None)
        return len(found.damaged)


def _mark_bad(catalog: Catalog, image: bytes, why: str) -> None:
    with catalog.transaction():
        held = catalog.image(image)
        if held is not None:  # one that was pruned meanwhile is nobody's concern
            catalog.set_verdict(held.ordinal, BAD, why)
