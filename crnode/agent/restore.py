"""Restoring a whole set or a path of it, of any version that some node holds, to a new place on this node.

The tree is written beside its destination, read back and compared with the version, and only then renamed
into place:
a restore that is cut off leaves nothing that looks like a result.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crnode.cluster.document import ReplicationSet
from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import free_bytes
from crnode.replicate.write import Policy, TreeWriter
from crnode.store.packs import full_error, is_full
from crnode.store.store import Damaged, Missing
from crproto import content
from crproto.entries import DIRECTORY, FILE, SYMLINK, Entry, Extra, LtHash, entry_bytes, image_digest
from crproto.ids import HOLE, chunk_id
from crproto.messages import Entries

if TYPE_CHECKING:
    from crnode.agent.node import Agent

Args = dict[str, Any]
Progress = Callable[[Args], None]
BATCH = 400


class Chosen(NamedTuple):
    """The version to restore, and who has it."""

    image: bytes
    sequence: int
    digest: bytes
    entries: int
    bytes: int
    holder: str


class Restore:
    """Carries restores out on this node."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._places: set[Path] = set()

    async def run(self, spec: ReplicationSet, args: Args, progress: Progress) -> Args:
        """Restore; returns {"files", "bytes", "seconds", "digest_ok", "to", "version"}. Raises
        CrnodeError."""
        begun = time.monotonic()
        to = self._destination(args)
        path = os.fsencode(str(args.get("path") or "")).strip(b"/")
        chosen = await self._choose(spec, args.get("version"))
        if to in self._places:
            raise CrnodeError(f"A restore to {to} is running already.", "", "Wait for it.", ExitCode.REFUSED)
        self._places.add(to)
        staging = to.parent / f".crnode-restore-{secrets.token_hex(4)}"
        try:
            entries = await self._entries(spec, chosen, path)
            if not entries:
                raise CrnodeError(
                    f"Version {chosen.sequence} of {spec.name} has nothing at '{os.fsdecode(path)}'.",
                    "",
                    f"List what there is: crnode versions {spec.name} {os.fsdecode(path)}",
                    ExitCode.USAGE,
                )
            if not path:
                self._check_digest(spec, chosen, entries)
            need = sum(e.size for e in entries)
            free, _ = free_bytes(_existing(to))
            if free < need:
                raise CrnodeError(
                    f"There is no room for the restore at {to}.",
                    f"It needs {need >> 20} MiB and {free >> 20} MiB are free.",
                    "Choose another place with --to.",
                    ExitCode.FULL,
                )
            await asyncio.to_thread(_make_staging, staging)
            size = await self._write(spec, entries, path, staging, progress)
            wrong = await asyncio.to_thread(_verify, staging, entries, path, self.agent.store.get)
            if wrong:
                raise CrnodeError(
                    f"The restore was written but {len(wrong)} paths do not read back as they should.",
                    f"{os.fsdecode(wrong[0])} for one.",
                    "The disk at the destination may be failing. Nothing was left there.",
                    ExitCode.DAMAGE,
                )
            await asyncio.to_thread(_into_place, staging, to)
        except OSError as error:
            if is_full(error):
                raise full_error(to, error) from error
            raise CrnodeError(
                f"The restore to {to} failed.", f"The system said: {error.strerror}."
            ) from error
        finally:
            self._places.discard(to)
            await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)
        files = sum(1 for e in entries if e.kind == FILE)
        self.agent.journal.add(
            "restore",
            f"Version {chosen.sequence} of {spec.name} was restored to {to}: {files} files.",
            spec.name,
        )
        return {
            "files": files,
            "bytes": size,
            "seconds": time.monotonic() - begun,
            "digest_ok": True,
            "to": str(to),
            "version": chosen.sequence,
            "digest": chosen.digest.hex(),
            "from": chosen.holder,
        }

    def _destination(self, args: Args) -> Path:
        text = args.get("to")
        if not text:
            raise CrnodeError(
                "Say where to restore to.",
                "Restoring over the original place is not part of this version.",
                "Add --to DIR with a directory that does not exist yet or is empty.",
                ExitCode.USAGE,
            )
        to = Path(str(text))
        if not to.is_absolute():
            raise CrnodeError(
                f"The destination {to} is not absolute.", "", "Begin it with '/'.", ExitCode.USAGE
            )
        if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
            raise CrnodeError(
                f"The destination {to} is in use.",
                "A restore never mixes with files that are there.",
                "Name a directory that does not exist yet, or an empty one.",
                ExitCode.REFUSED,
            )
        data = self.agent.data.resolve()
        if to.resolve() == data or data in to.resolve().parents:
            raise CrnodeError(
                f"{to} lies in the data directory.", "", "Choose another place.", ExitCode.REFUSED
            )
        return to

    # -- which version

    async def _choose(self, spec: ReplicationSet, wanted: object) -> Chosen:
        """The version asked for (its number or a prefix of its id; None: the newest), from whoever holds
        it."""
        found: list[Chosen] = []
        for name in (self.agent.node.name, *spec.targets):
            found += [
                c
                for c in await self._images(spec, name)
                if c.holder not in {f.holder for f in found} or c not in found
            ]
        if not found:
            raise CrnodeError(
                f"No version of {spec.name} can be reached.",
                "None of its targets answers, or none has an image yet.",
                "Start their agents.",
                ExitCode.UNREACHABLE,
            )
        if wanted is None:
            newest = max(c.sequence for c in found)
            return next(c for c in found if c.sequence == newest)
        text = str(wanted)
        for chosen in found:
            if text == str(chosen.sequence) or (len(text) >= 8 and chosen.image.hex().startswith(text)):
                return chosen
        numbers = sorted({c.sequence for c in found})
        raise CrnodeError(
            f"There is no version {text} of {spec.name}.",
            f"There are {len(numbers)}, from {numbers[0]} to {numbers[-1]}.",
            f"List them: crnode versions {spec.name}",
            ExitCode.USAGE,
        )

    async def _images(self, spec: ReplicationSet, name: str) -> list[Chosen]:
        if name == self.agent.node.name:
            catalog = self.agent.sets.catalogs.get(spec.uuid)
            if catalog is None or spec.uuid not in self.agent.sets.targets:
                return []
            images = await self.agent.writer.submit(catalog.images)
            return [
                Chosen(i.id, i.sequence, i.digest, i.entries, i.bytes, name)
                for i in images
                if i.id is not None
            ]
        link = self.agent.links.get(name)
        if link is None or not await link.wait_up(2.0):
            return []
        return [Chosen(i[0], i[3], i[5], i[6], i[7], name) for i in await link.images(spec.uuid)]

    async def _entries(self, spec: ReplicationSet, chosen: Chosen, path: bytes) -> list[Entry]:
        if chosen.holder == self.agent.node.name:
            catalog = self.agent.sets.catalogs[spec.uuid]

            def read() -> list[Entry]:
                with catalog.reader() as reader:
                    image = reader.image(chosen.image)
                    return list(reader.subtree(path, image.ordinal)) if image is not None else []

            return await asyncio.to_thread(read)
        out: list[Entry] = []

        async def take(message: Entries) -> None:
            out.extend(message.changed)

        await self.agent.links[chosen.holder].entries(spec.uuid, chosen.image, path, take)
        return out

    def _check_digest(self, spec: ReplicationSet, chosen: Chosen, entries: list[Entry]) -> None:
        state = LtHash()
        state.update(entry_bytes(e) for e in entries)
        digest = image_digest(bytes.fromhex(spec.uuid), len(entries), sum(e.size for e in entries), state)
        if digest != chosen.digest:
            raise CrnodeError(
                f"The entries that {chosen.holder} gave are not those of version {chosen.sequence}.",
                "Their digest differs from the version's.",
                "Run crnode scrub and crnode doctor on that node, or restore from another version.",
                ExitCode.DAMAGE,
            )

    # -- writing

    async def _write(
        self, spec: ReplicationSet, entries: list[Entry], top: bytes, staging: Path, progress: Progress
    ) -> int:
        """Write everything under `staging`, fetching what is not here batch by batch."""
        policy = Policy(privileged=True, root=os.geteuid() == 0)
        root = os.open(staging / "tree", os.O_RDONLY | os.O_DIRECTORY)
        temporary = os.open(staging / "tmp", os.O_RDONLY | os.O_DIRECTORY)
        writer = TreeWriter(root, temporary, self.agent.store.get, policy)
        done = size = 0
        groups: dict[bytes, list[Entry]] = {}
        for entry in entries:
            link = Extra.decode(entry.extra).link if entry.kind == FILE and entry.extra else None
            if link is not None:
                groups.setdefault(link, []).append(entry)
        try:
            for at in range(0, len(entries), BATCH):
                batch = entries[at : at + BATCH]
                await self._have(spec, batch)
                await asyncio.to_thread(_write_batch, writer, batch, top, groups)
                done += len(batch)
                size += sum(e.size for e in batch)
                progress({"text": f"{done} of {len(entries)} paths", "done": done, "total": len(entries)})
            directories = [e for e in entries if e.kind == DIRECTORY]
            await asyncio.to_thread(_finish, writer, directories, top)
        finally:
            writer.close()
            os.close(root)
            os.close(temporary)
        return size

    async def _have(self, spec: ReplicationSet, batch: list[Entry]) -> None:
        """Fetch every object that the batch needs and that is not in our store."""
        wanted: set[bytes] = set()
        tops = [(e.content, e.level) for e in batch if e.content is not None]
        for level in range(16, -1, -1):
            here = {name for name, at in tops if at == level and name != HOLE}
            lacking = {name for name in here if not self.agent.store.has(name)}
            wanted |= lacking
            if lacking:
                fetched = await self.agent.healer.fetch(spec.uuid, lacking)
                if lost := lacking - fetched.keys():
                    raise CrnodeError(
                        f"{len(lost)} objects of the version cannot be had.",
                        "No node that holds the set answers with them.",
                        "Start the other targets, or restore another version.",
                        ExitCode.DAMAGE,
                    )
            if level:
                for name in here:
                    recipe = content.parse_recipe(self.agent.store.get(name), level)
                    tops += [(child, level - 1) for _, child in recipe.iter_items()]


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _make_staging(staging: Path) -> None:
    staging.parent.mkdir(parents=True, exist_ok=True)
    staging.mkdir(mode=0o700)
    (staging / "tree").mkdir()
    (staging / "tmp").mkdir(mode=0o700)


def _below(path: bytes, top: bytes) -> bytes:
    """Where a path of the image goes under the destination: a folder's contents directly, a file by its
    name."""
    if not top:
        return path
    if path == top:
        return b""
    return path[len(top) + 1 :]


def _write_batch(
    writer: TreeWriter, batch: list[Entry], top: bytes, groups: dict[bytes, list[Entry]]
) -> None:
    for entry in batch:
        where = _below(entry.path, top)
        if entry.kind == DIRECTORY:
            if where:
                writer.directory(entry._replace(path=where))
            continue
        where = where or top.rpartition(b"/")[2]
        placed = entry._replace(path=where)
        if entry.kind == SYMLINK:
            writer.symlink(placed)
            continue
        link = Extra.decode(entry.extra).link if entry.extra else None
        members = groups.get(link, []) if link is not None else []
        if members and members[0].path != entry.path:
            continue  # written with the first of its group
        others = tuple(_below(m.path, top) for m in members[1:])
        writer.file(placed, others)


def _finish(writer: TreeWriter, directories: list[Entry], top: bytes) -> None:
    for entry in sorted(directories, key=lambda e: -e.path.count(b"/") - bool(e.path)):
        writer.finish_directory(entry._replace(path=_below(entry.path, top)))


def _verify(staging: Path, entries: list[Entry], top: bytes, load: Callable[[bytes], bytes]) -> list[bytes]:
    """Paths that do not read back as their entries say."""
    wrong: list[bytes] = []
    tree = os.fsencode(staging / "tree")
    for entry in entries:
        where = _below(entry.path, top) or (b"" if entry.kind == DIRECTORY else top.rpartition(b"/")[2])
        place = os.path.join(tree, where) if where else tree
        try:
            if not _same(place, entry, load):
                wrong.append(entry.path)
        except (OSError, Missing, Damaged):
            wrong.append(entry.path)
    return wrong


def _same(place: bytes, entry: Entry, load: Callable[[bytes], bytes]) -> bool:
    info = os.lstat(place)
    if entry.kind == DIRECTORY:
        return stat.S_ISDIR(info.st_mode)
    if entry.kind == SYMLINK:
        return stat.S_ISLNK(info.st_mode) and os.readlink(place) == Extra.decode(entry.extra).target
    if not stat.S_ISREG(info.st_mode) or info.st_size != entry.size:
        return False
    if entry.content is None:
        return entry.size == 0
    fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        for offset, length, name in content.walk(entry.content, entry.level, load, size=entry.size):
            if name != HOLE and chunk_id(os.pread(fd, length, offset)) != name:
                return False
    finally:
        os.close(fd)
    return True


def _into_place(staging: Path, to: Path) -> None:
    os.sync()
    os.rename(staging / "tree", to)
