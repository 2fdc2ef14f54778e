"""Looking at versions: ls, diff, search, and pin. Whoever holds a version answers for it; its image is held
against pruning meanwhile."""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import apsw

from crnode.agent.fitting import fitting
from crnode.agent.in_place import KEPT
from crnode.agent.restore import Chosen, Progress, Restore
from crnode.agent.threads import in_thread
from crnode.cluster.document import Mode, ReplicationSet
from crnode.errors import CrnodeError, ExitCode
from crnode.store.manifest import log_again
from crnode.store.reader import Image
from crnode.versions.look import Deleted, Looker, shown
from crproto.entries import DIRECTORY, SYMLINK, Entry, Extra

if TYPE_CHECKING:
    from crnode.agent.node import Agent

T = TypeVar("T")
Args = dict[str, Any]
Handler = Callable[[Args, Progress], Awaitable[Args]]
Forward = Callable[[str, str, Args, float | None], Awaitable[Args]]

PAGE = 1000  # entries of an answer, about: as many as one message holds
SECONDS = 60.0  # within which another node has to answer
NAME_MOST = 100  # characters of the name of a version
KINDS = {DIRECTORY: "folder", SYMLINK: "link"}


class Looking:
    """The calls of one agent that look at versions.

    Args:
        restore: knows which node holds which version.
        forward: asks another node.
    """

    def __init__(self, agent: Agent, restore: Restore, forward: Forward) -> None:
        self.agent = agent
        self.restore = restore
        self._forward = forward

    def control_handlers(self) -> dict[str, Handler]:
        """For the control socket."""
        return {
            "ls": self._ls,
            "deleted": self._deleted,
            "diff": self._diff,
            "search": self._search,
            "pin": self._pin,
        }

    def peer_methods(self) -> dict[str, Callable[[str, Args], Awaitable[Args]]]:
        """For other nodes."""
        return {
            "ls": self._peer_ls,
            "deleted": self._peer_deleted,
            "diff": self._peer_diff,
            "search": self._peer_search,
            "pin": self._peer_pin,
        }

    async def _ask(self, node: str, method: str, args: Args) -> Args:
        if node == self.agent.node.name:
            return await self.peer_methods()[method](node, args)
        return await self._forward(node, method, args, SECONDS)

    def _readable(self, sender: str, args: Args) -> ReplicationSet:
        spec = self.agent.document.need_set(str(args["set"]))
        if not (sender == self.agent.node.name or self.agent.server.may_read(sender, spec.uuid)):
            raise CrnodeError("You have no part in that set.", "", "", ExitCode.REFUSED)
        return spec

    async def _look(self, spec: ReplicationSet, work: Callable[[Looker], T]) -> T:
        catalog = self.agent.sets.catalogs.get(spec.uuid)
        if catalog is None or self.agent.node.name not in self.agent.document.keepers(spec):
            raise CrnodeError(
                f"{self.agent.node.name} keeps no versions of {spec.name}.", "", "", ExitCode.REFUSED
            )

        def run() -> T:
            with Looker(catalog.path) as looker:
                return work(looker)

        try:
            return await in_thread(run)
        except apsw.Error as error:
            raise CrnodeError(
                f"The catalog of {spec.name} at {self.agent.node.name} cannot be read.",
                str(error),
                "See: crnode scrub",
                ExitCode.DAMAGE,
            ) from error

    # -- ls

    async def _ls(self, args: Args, progress: Progress) -> Args:
        """What is in a folder of a version, a page at a time: {"entries", "more", "version", "id", "node"}.
        For the next page ask with "id" as the version, "node", and the last name as "after"."""
        spec = self.agent.document.need_set(str(args["set"]))
        question = {"set": spec.name, "path": args.get("path") or "", "after": args.get("after") or ""}
        if args.get("node") in self.agent.document.keepers(spec):  # a further page: nobody else is asked
            image, node = str(args["version"]), str(args["node"])
            return {**await self._ask(node, "ls", {**question, "image": image}), "id": image, "node": node}
        chosen = await self.restore.choose(spec, args.get("version"))
        question["image"] = chosen.image.hex()
        answer = await self._ask(chosen.holder, "ls", question)
        return {**answer, "version": chosen.sequence, "id": chosen.image.hex(), "node": chosen.holder}

    async def _peer_ls(self, sender: str, args: Args) -> Args:
        spec = self._readable(sender, args)
        path, after = _path(args.get("path")), os.fsencode(str(args.get("after") or ""))
        async with self.agent.server.readers.hold(spec.uuid, bytes.fromhex(str(args["image"]))) as image:
            if image is None:
                raise _pruned(spec)
            rows = await self._look(spec, lambda looker: looker.folder(path, image.ordinal, after, PAGE))
        if rows is None:
            raise CrnodeError(
                f"Version {image.sequence} of {spec.name} has nothing at '{os.fsdecode(path)}'.",
                "",
                f"Look for it: crnode search {spec.name} {os.path.basename(os.fsdecode(path))}",
                ExitCode.USAGE,
            )
        entries, cut = fitting([_row(entry, path) for entry in rows])
        return {"entries": entries, "more": cut or len(rows) == PAGE}

    async def _deleted(self, args: Args, progress: Progress) -> Args:
        """What is no more in the newest version, and since when: {"entries", "count", "bytes", "node",
        "mode"}. An archive keeps all of it, so one is asked first."""
        spec = self.agent.document.need_set(str(args["set"]))
        question = {"set": spec.name, "path": args.get("path") or ""}
        modes = {name: target.mode for name, target in spec.targets.items()}
        keepers = self.agent.document.keepers(spec)
        names = sorted(keepers, key=lambda name: (modes.get(name) is not Mode.ARCHIVE, name not in modes))
        if args.get("node"):
            names = [self.agent.document.need_node(str(args["node"])).name]
        failed: CrnodeError | None = None
        for name in names:
            try:
                answer = await self._ask(name, "deleted", question)
            except CrnodeError as error:
                failed = failed or error
                continue
            return {**answer, "node": name, "mode": modes[name].value if name in modes else "source"}
        raise failed or CrnodeError(f"Nobody keeps versions of {spec.name}.", "It has no targets.")

    async def _peer_deleted(self, sender: str, args: Args) -> Args:
        spec = self._readable(sender, args)
        below = _path(args.get("path"))

        def work(looker: Looker) -> tuple[list[Args], int, int]:
            with looker.snapshot():
                images = looker.images()
                if not images:
                    return [], 0, 0
                rows, count, total = looker.deleted(images[-1].ordinal, below, 2 * PAGE)
            return [_gone(row, images) for row in rows], count, total

        rows, count, total = await self._look(spec, work)
        entries, _ = fitting(rows)
        return {"entries": entries, "count": count, "bytes": total}

    # -- diff

    async def _diff(self, args: Args, progress: Progress) -> Args:
        """What differs between two versions: {"counts": {kind: [paths, bytes]}, "rows", "more", "first",
        "second", "node"}; "more" is how many paths are not among the rows."""
        spec = self.agent.document.need_set(str(args["set"]))
        first, second = await self._both(spec, str(args["first"]), args.get("second"))
        question = {
            "set": spec.name,
            "first": first.image.hex(),
            "second": second.image.hex(),
            "path": args.get("path") or "",
            "limit": args.get("limit", PAGE),
        }
        answer = await self._ask(first.holder, "diff", question)
        return {**answer, "first": first.sequence, "second": second.sequence, "node": first.holder}

    async def _both(self, spec: ReplicationSet, first: str, second: object) -> tuple[Chosen, Chosen]:
        """The two versions, as one node holds both of them."""
        await self.restore.choose(spec, first)  # says what is wrong with either alone
        await self.restore.choose(spec, second)
        keepers = self.agent.document.keepers(spec)
        names = [self.agent.node.name, *(n for n in keepers if n != self.agent.node.name)]
        for name in names:
            images = await self.restore.images(spec, name)
            images.reverse()  # a number that was given twice means the later one
            one = next((i for i in images if i.called(first)), None)
            two = next((i for i in images if second is None or i.called(str(second))), None)
            if one is not None and two is not None:
                return one, two
        raise CrnodeError(
            f"No node keeps both versions {first} and {second} of {spec.name}.",
            "Each is kept by another one.",
            f"See who keeps which: crnode versions {spec.name}",
            ExitCode.REFUSED,
        )

    async def _peer_diff(self, sender: str, args: Args) -> Args:
        spec = self._readable(sender, args)
        path, hold = _path(args.get("path")), self.agent.server.readers.hold
        limit = max(0, min(int(args.get("limit", PAGE)), 20 * PAGE))
        async with (
            hold(spec.uuid, bytes.fromhex(str(args["first"]))) as first,
            hold(spec.uuid, bytes.fromhex(str(args["second"]))) as second,
        ):
            if first is None or second is None:
                raise _pruned(spec)
            found = await self._look(
                spec, lambda looker: looker.differences(first.ordinal, second.ordinal, path, limit)
            )
        rows = [
            {
                "what": row.what,
                "path": os.fsdecode(row.path),
                "before": os.fsdecode(row.before) if row.before is not None else None,
                "size": row.size,
                "old_size": row.old_size,
            }
            for row in found.rows
        ]
        rows, _ = fitting(rows)
        total = sum(paths for paths, _ in found.counts.values())
        return {"counts": found.counts, "rows": rows, "more": total - len(rows)}

    # -- search

    async def _search(self, args: Args, progress: Progress) -> Args:
        """Where a name is, in all versions that anybody keeps: {"found", "more", "silent": {node: why}}."""
        spec = self.agent.document.need_set(str(args["set"]))
        text = str(args["text"])
        if not text.strip("/"):
            raise CrnodeError("There is nothing to look for.", "", "Name a part of the path.", ExitCode.USAGE)
        silent: dict[str, str] = {}
        answers: dict[str, Args] = {}

        async def ask(name: str) -> None:
            try:
                answers[name] = await self._ask(name, "search", {"set": spec.name, "text": text})
            except CrnodeError as error:
                silent[name] = str(error)

        keepers = self.agent.document.keepers(spec)
        await asyncio.gather(*(ask(name) for name in keepers))
        if len(silent) == len(keepers) and silent:
            raise CrnodeError(
                f"No node that keeps versions of {spec.name} answers.",
                " ".join(silent.values())[:500],
                "Start their agents.",
                ExitCode.UNREACHABLE,
            )
        merged = _merged(answers)
        more = any(answer["more"] for answer in answers.values())
        return {"found": [merged[path] for path in sorted(merged)], "more": more, "silent": silent}

    async def _peer_search(self, sender: str, args: Args) -> Args:
        spec = self._readable(sender, args)
        text = os.fsencode(str(args["text"]))

        def work(looker: Looker) -> tuple[int, list[Args]]:
            with looker.snapshot():
                images = looker.images()
                return images[-1].at_ns if images else 0, [
                    {
                        "path": os.fsdecode(row.path),
                        "kind": KINDS.get(row.kind, "file"),
                        "size": row.size,
                        "first": images[row.first].sequence,
                        "first_ns": images[row.first].at_ns,
                        "last": images[row.last].sequence,
                        "last_ns": images[row.last].at_ns,
                        "now": row.last == len(images) - 1,
                    }
                    for row in looker.search(text, images, PAGE)
                ]

        newest_ns, rows = await self._look(spec, work)
        found, cut = fitting(rows)
        return {"found": found, "more": cut or len(rows) == PAGE, "newest_ns": newest_ns}

    # -- pin

    async def _pin(self, args: Args, progress: Progress) -> Args:
        """Keep a version whatever retention says, at every node that has it, under a name (it has one at a
        time); or, with "remove", let retention decide again: {"version", "id", "name", "was", "nodes",
        "without", "silent"}."""
        spec = self.agent.document.need_set(str(args["set"]))
        master = self.agent.document.master.name
        if self.agent.node.name != master:
            raise CrnodeError(
                "Versions are pinned at the master.",
                f"This node is {self.agent.node.name}, the master is {master}.",
                f"Run the same command on {master}.",
                ExitCode.REFUSED,
            )
        chosen = await self.restore.choose(spec, args.get("version"))
        name = "" if args.get("remove") else _checked(str(args.get("name") or ""))
        if name:
            await self._check_free(spec, chosen, name)
        question = {"set": spec.name, "image": chosen.image.hex(), "name": name}
        held: list[str] = []
        without: list[str] = []
        silent: dict[str, str] = {}
        before = ""
        for node in self.agent.document.keepers(spec):
            try:
                answer = await self._ask(node, "pin", question)
            except CrnodeError as error:
                silent[node] = str(error)
                continue
            (held if answer["held"] else without).append(node)
            before = before or str(answer.get("was") or "")
        if not held:
            raise CrnodeError(
                f"Version {chosen.sequence} of {spec.name} was not {'' if name else 'un'}pinned.",
                " ".join(silent.values())[:500] or "No node keeps it any more.",
                f"See: crnode versions {spec.name}",
                ExitCode.UNREACHABLE if silent else ExitCode.REFUSED,
            )
        did = f"is kept as '{name}'" if name else "is no longer pinned"
        self.agent.journal.add("versions", f"Version {chosen.sequence} of {spec.name} {did}.", spec.name)
        return {
            "version": chosen.sequence,
            "id": chosen.image.hex(),
            "name": name or None,
            "was": before or None,
            "nodes": held,
            "without": without,
            "silent": silent,
        }

    async def _check_free(self, spec: ReplicationSet, chosen: Chosen, name: str) -> None:
        for node in self.agent.document.keepers(spec):
            for other in await self.restore.images(spec, node):
                if other.name == name and other.image != chosen.image:
                    raise CrnodeError(
                        f"'{name}' is the name of version {other.sequence} of {spec.name} already.",
                        "",
                        "Choose another name, or unpin that one with --remove.",
                        ExitCode.REFUSED,
                    )

    async def _peer_pin(self, sender: str, args: Args) -> Args:
        spec = self.agent.document.need_set(str(args["set"]))
        name = str(args.get("name") or "")
        before_restore = sender == spec.source and name.startswith(KEPT)
        if sender != self.agent.document.master.name and not before_restore:
            raise CrnodeError("Only the master pins versions.", "", "", ExitCode.REFUSED)
        catalog = self.agent.sets.catalogs.get(spec.uuid)
        if catalog is None or self.agent.node.name not in self.agent.document.keepers(spec):
            return {"held": False}
        store = self.agent.store

        def pin() -> tuple[int, str | None] | None:
            image = catalog.image(bytes.fromhex(str(args["image"])))
            if image is None and before_restore and "or_after" in args:
                newest = catalog.newest()
                image = newest if newest is not None and newest.sequence > int(args["or_after"]) else None
            if image is None:
                return None
            with catalog.transaction():
                if name:
                    why = "kept before a restore" if before_restore else "pinned by a person"
                    catalog.set_pin(image.ordinal, _checked(name), why)
                else:
                    catalog.unpin(image.ordinal)
            log_again(store, catalog, image.ordinal)
            return image.sequence, image.name

        pinned = await self.agent.writer.submit(pin)
        if pinned is None:
            return {"held": False}
        version, was = pinned
        return {"held": True, "version": version, "was": was}


def _path(text: object) -> bytes:
    return os.fsencode(str(text or "")).strip(b"/")


def _checked(name: str) -> str:
    """`name` as the name of a version. Raises CrnodeError."""
    name = name.strip()
    if not name or len(name) > NAME_MOST or not name.isprintable() or name.isdigit():
        raise CrnodeError(
            f"'{name[:NAME_MOST]}' cannot be the name of a version.",
            f"A name has 1 to {NAME_MOST} printable characters and is more than a number.",
            "Choose one like 'release 1.4'.",
            ExitCode.USAGE,
        )
    return name


def _row(entry: Entry, folder: bytes) -> Args:
    target = Extra.decode(entry.extra).target if entry.kind == SYMLINK else None
    return {
        "name": os.fsdecode(shown(entry, folder)),
        "path": os.fsdecode(entry.path),
        "kind": KINDS.get(entry.kind, "file"),
        "mode": f"{entry.mode:04o}",
        "owner": entry.owner or str(entry.owner_id),
        "group": entry.group or str(entry.group_id),
        "size": entry.size,
        "time_ns": entry.mtime_ns,
        "target": os.fsdecode(target) if target is not None else None,
    }


def _gone(row: Deleted, images: list[Image]) -> Args:
    """A path that was deleted: after the time of one version that is kept and by that of the next; and the
    last version that has it, if there is one."""
    ordinals = [image.ordinal for image in images]
    at = bisect_left(ordinals, row.died)
    having = images[at - 1] if at and row.born <= ordinals[at - 1] else None
    return {
        "path": os.fsdecode(row.path),
        "kind": KINDS.get(row.kind, "file"),
        "size": row.size,
        "gone_ns": images[at].at_ns if at < len(images) else None,
        "after_ns": images[at - 1].at_ns if at else None,
        "version": having.sequence if having is not None else None,
    }


def _merged(answers: dict[str, Args]) -> dict[str, Args]:
    """Path -> what the nodes say of it together. What is there now, only those know that have the newest."""
    merged: dict[str, Args] = {}
    newest = max((answer["newest_ns"] for answer in answers.values()), default=0)
    for node, answer in sorted(answers.items()):
        for row in answer["found"]:
            known = merged.setdefault(row["path"], {**row, "nodes": [], "now": False})
            known["nodes"].append(node)
            if row["first_ns"] < known["first_ns"]:
                known["first"], known["first_ns"] = row["first"], row["first_ns"]
            if row["last_ns"] > known["last_ns"]:
                known |= {key: row[key] for key in ("last", "last_ns", "kind", "size")}
            known["now"] = known["now"] or (row["now"] and answer["newest_ns"] == newest)
    return merged


def _pruned(spec: ReplicationSet) -> CrnodeError:
    return CrnodeError(
        f"That version of {spec.name} was pruned meanwhile.",
        "",
        f"Choose another one: crnode versions {spec.name}",
        ExitCode.REFUSED,
    )


__all__ = ["Looking"]
