"""Restoring a whole set or a path of it, of any version that some node holds, to a new place on this node.

The tree is written beside its destination, read back and compared with the version, and only then renamed
into place: a restore that is cut off leaves nothing that looks like a result. The entries of what is restored
are kept in memory, some 500 bytes each; contents never are.

A whole version is proven by its digest. For a path there is none: that its entries are complete follows from
the image being held while it is read (rule 38), and from the holder's count of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crnode.agent.staging import Staging
from crnode.agent.threads import in_thread
from crnode.cluster.document import ReplicationSet
from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import free_bytes, fsync_dir, open_beneath, syncfs
from crnode.replicate.write import Policy, TreeWriter, fingerprint
from crnode.store.catalog import Catalog
from crnode.store.packs import full_error, is_full
from crnode.store.store import Damaged, Missing, ObjectStore
from crnode.versions.units import SQLITE_MAGIC, base_of, sides_of
from crproto import content
from crproto.entries import (
    DIRECTORY,
    FILE,
    SYMLINK,
    Entry,
    Extra,
    LtHash,
    entry_bytes,
    image_digest,
    link_of,
)
from crproto.errors import RemoteProtocolError
from crproto.ids import HOLE, chunk_id
from crproto.messages import Entries
from crproto.paths import problem, split

if TYPE_CHECKING:
    from crnode.agent.node import Agent

Args = dict[str, Any]
Progress = Callable[[Args], None]
IMAGE_HEX = 64  # letters of the name of an image
ANSWER_SECONDS = 5.0  # within which a holder says which versions it has
BATCH = 400  # entries written in one go
PAGE = 2000  # entries of a digest, or names that are looked up, between two looks at anything else
UNFIT = (
    errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EFBIG,
)  # fmt: skip
"""What a file system says of a name or a size that it cannot hold, or of two names that are one to it."""
ALONE = 4 << 20  # bytes of a file that is read back by one thread
PIECES = 16  # chunks that one of two threads takes at a time
AGAIN = 3  # times that something is fetched which a collection took before it was used
RECIPES = 16  # recipes that are read in one go; each has at most 4,096 items


class Chosen(NamedTuple):
    """The version to restore, and who has it."""

    image: bytes
    sequence: int
    digest: bytes
    entries: int
    bytes: int
    holder: str
    name: str = ""
    at_ns: int = 0

    def called(self, text: str) -> bool:
        """Whether a person who says `text` means this version: its number, its name, or how its id begins."""
        return bool(text) and (
            text in (str(self.sequence), self.name) or (len(text) >= 8 and self.image.hex().startswith(text))
        )


def newest_of(
    some: Sequence[Sequence[Chosen]], held: Sequence[Sequence[Chosen]], line: Container[bytes] = ()
) -> Chosen | None:
    """The newest of `some` versions, None when there are none. Both are lists of one holder each, in the
    order in which its images came; `held` is all that it has. Of two with one number that of the `line` is
    meant: the images of the source of a set that moves. The other is what nobody had when a server died.

    A source that lost its catalog may have counted from lower numbers on, and clocks are set: what a holder
    has after an image is newer than that."""
    lasts = [images[-1] for images in some if images]
    places = [{c.image: place for place, c in enumerate(images)} for images in held]

    def passed(one: Chosen) -> bool:
        return any(
            one.image in at and any(at.get(c.image, -1) > at[one.image] for c in lasts) for at in places
        )

    left = [c for c in lasts if not passed(c)] or lasts
    return max(left, key=lambda c: (c.sequence, c.image in line), default=None)


class Restore:
    """Carries restores out on this node."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._places: set[Path] = set()

    async def run(
        self,
        spec: ReplicationSet,
        args: Args,
        progress: Progress,
        *,
        ordered_by: str | None = None,
        within: Path | None = None,
        share: bool = False,
    ) -> Args:
        """Restore; returns {"files", "bytes", "seconds", "verified", "to", "version", "digest", "from"}, and
        "digest_ok" for a whole version: everything read back equals the version, proven by its digest. Of a
        path, "verified" says that what was written reads back as its entries say. Raises CrnodeError.

        `ordered_by` is the node that asks for it, None for the owner of this node on its own socket. Another
        node may only write where this node's own file allows it, with no more privileges than the set has.
        `within` is a folder of our own in the data directory, into which nobody else may restore. With
        `share` files share their blocks with those of our own live tree, where the file system can.
        """
        begun = time.monotonic()
        to = await in_thread(lambda: self._destination(args, ordered_by, within))
        path = path_of(args)
        chosen = await self.choose(spec, args.get("version"))
        if to in self._places:
            raise CrnodeError(f"A restore to {to} is running already.", "", "Wait for it.", ExitCode.REFUSED)
        self._places.add(to)
        policy = Policy(privileged=ordered_by is None or spec.privileged, root=os.geteuid() == 0)
        # With other privileges what is there already may have other owners and attributes.
        what = (bytes.fromhex(spec.uuid), chosen.image, b"%d%d" % (policy.privileged, policy.root), path)
        staging = Staging(to, b"\0".join(what))
        keep = False
        try:
            async with self.held(spec, chosen), self._asked_first(spec, chosen):
                entries: list[Entry] = []
                await self.pages(spec, chosen, path, entries.extend)
                if path and not entries:
                    raise CrnodeError(
                        f"Version {chosen.sequence} of {spec.name} has nothing at '{os.fsdecode(path)}'.",
                        "",
                        f"What it has: crnode ls {spec.name} --version {chosen.sequence}; where a name is:"
                        f" crnode search {spec.name} {os.fsdecode(path).rsplit('/', 1)[-1]}",
                        ExitCode.USAGE,
                    )
                top = path
                if not args.get("look") and await self._sides(spec, chosen, path, entries):
                    top = split(path)[0]
                await in_thread(staging.open)
                keep = staging.resumed
                resumed = staging.resumed
                groups = await in_thread(lambda: _link_groups(entries))
                left = await in_thread(lambda: _files_of(_left(staging, entries, top, groups)))
                free, _ = await in_thread(lambda: free_bytes(staging.path))
                need = sum(e.size for e in left)
                if free < need:  # as long as they say they are; holes take nothing
                    need = sum(e.size for e in left if not e.level)
                    need += sum((await self.allocated(spec, [e for e in left if e.level])).values())
                if free < need:
                    raise CrnodeError(
                        f"There is no room for the restore at {to}.",
                        f"It needs {need >> 20} MiB and {free >> 20} MiB are free.",
                        "Choose another place with --to.",
                        ExitCode.FULL,
                    )
                keep = within is None  # cut off from here on, it is gone on with
                put = partial(self._write, spec)
                shared = await put(entries, top, staging, policy, progress, groups, share=share)
                wrong = await self._read_back(spec, staging, entries, top)
                # A power cut came between, and the disk had not all of it; or a live file had changed.
                if wrong and (staging.resumed or shared):
                    staging.resumed, some = False, set(wrong)
                    again = [e for e in entries if e.path in some or e.kind == DIRECTORY]
                    await put(again, top, staging, policy, progress, groups)
                    wrong = await self._read_back(spec, staging, entries, top)
            keep = False
            if wrong:
                raise CrnodeError(
                    f"The restore was written but {len(wrong)} paths do not read back as they should.",
                    f"{os.fsdecode(wrong[0])} for one.",
                    "The disk at the destination may be failing. Nothing was left there.",
                    ExitCode.DAMAGE,
                )
            await in_thread(lambda: _into_place(staging.path, to))
        except (Missing, Damaged, RemoteProtocolError) as error:
            raise damaged_here(spec, str(chosen.sequence), error) from error
        except OSError as error:
            keep = False
            if is_full(error):
                raise full_error(to, error) from error
            about = f" of '{error.filename}'" if error.filename else ""
            hint = "Nothing was left there. Restore to a place on another file system."
            raise CrnodeError(
                f"The restore to {to} failed.",
                f"The system said{about}: {error.strerror}.",
                hint if error.errno in UNFIT else "Nothing was left there.",
            ) from error
        finally:
            self._places.discard(to)
            await in_thread(lambda: staging.close(keep))
        files = await in_thread(lambda: sum(1 for e in entries if e.kind == FILE))
        by = f" as {ordered_by} ordered" if ordered_by is not None else ""
        count = f"{files} file{'' if files == 1 else 's'}"
        if ordered_by is not None or not args.get("look"):
            self.agent.journal.add(
                "restore",
                f"Version {chosen.sequence} of {spec.name} was restored to {to}{by}: {count}.",
                spec.name,
            )
        out: Args = {
            "files": files,
            "bytes": await in_thread(lambda: sum(e.size for e in entries)),
            "seconds": time.monotonic() - begun,
            "verified": True,
            "to": str(to),
            "version": chosen.sequence,
            "time_ns": chosen.at_ns,
            "digest": chosen.digest.hex(),
            "from": chosen.holder,
            "resumed": resumed,
            "shared": shared,
        }
        if not path:
            out["digest_ok"] = True
        return out

    async def _read_back(
        self, spec: ReplicationSet, staging: Staging, entries: list[Entry], top: bytes
    ) -> list[bytes]:
        """Make what was written durable and read it back, both at once; paths that are not as they should."""
        durable = asyncio.ensure_future(in_thread(partial(_make_durable, staging.path)))
        load = self.agent.store.get
        try:
            wrong, lacking = await in_thread(partial(_verify, staging, entries, top, load))
            for _ in range(AGAIN):
                if not lacking:
                    break
                with self.agent.healer.spared():  # a collection took recipes: nothing names them here
                    for at in range(0, len(lacking), BATCH):
                        await self.have(spec, lacking[at : at + BATCH], least=1)
                    more, lacking = await in_thread(partial(_verify, staging, lacking, top, load))
                wrong += more
            wrong += [entry.path for entry in lacking]
        except BaseException:
            await asyncio.wait([durable])
            durable.exception()  # looked at: why nothing was verified counts
            raise
        await durable
        return wrong

    async def _sides(
        self, spec: ReplicationSet, chosen: Chosen, path: bytes, entries: list[Entry]
    ) -> bool:
        """Add to the one file that was asked for those that are one database with it (rule 69); whether there
        are any."""
        if len(entries) != 1 or entries[0].kind != FILE or not await self.is_database(spec, chosen, path):
            return False
        for side in sides_of(path):
            if (found := await self._file(spec, chosen, side)) is not None:
                entries.append(found)
        return len(entries) > 1

    async def _file(self, spec: ReplicationSet, chosen: Chosen, path: bytes) -> Entry | None:
        found: list[Entry] = []
        await self.pages(spec, chosen, path, found.extend)
        return found[0] if len(found) == 1 and found[0].kind == FILE else None

    async def is_database(self, spec: ReplicationSet, chosen: Chosen, path: bytes) -> bool:
        """Whether the version has at `path` a database of SQLite, or what lies beside one: a name alone says
        nothing."""
        entry = await self._file(spec, chosen, base_of(path))
        if entry is None or entry.content is None:
            return False
        name, level, store = entry.content, entry.level, self.agent.store
        with self.agent.healer.spared():
            while name != HOLE:
                await self._get(spec, await in_thread(partial(_lacking, store, [name])), [entry.path])
                data = await in_thread(partial(store.get, name))
                if not level:
                    return bytes(data[: len(SQLITE_MAGIC)]) == SQLITE_MAGIC
                name = next(child for _, child in content.parse_recipe(data, level).iter_items())
                level -= 1
        return False

    def _destination(self, args: Args, ordered_by: str | None, within: Path | None) -> Path:
        """Where to restore to, every link on the way resolved, so that what is checked is what is written."""
        text = args.get("to")
        if not text:
            raise CrnodeError(
                "Say where to restore to.",
                "",
                "Add --to DIR with a directory that does not exist yet or is empty, or --in-place.",
                ExitCode.USAGE,
            )
        to = Path(str(text))
        if not to.is_absolute():
            raise CrnodeError(
                f"The destination {to} is not absolute.", "", "Begin it with '/'.", ExitCode.USAGE
            )
        if to.is_symlink():
            raise _in_use(to)
        to = to.resolve()
        data = self.agent.data.resolve()
        if _inside(to, data) and to.parent != within:
            raise CrnodeError(
                f"{to} lies in the data directory.", "", "Choose another place.", ExitCode.REFUSED
            )
        for name, place in self._taken():
            if _inside(to, place):
                raise CrnodeError(
                    f"The destination {to} lies in {place} of set {name}.",
                    "A restore never mixes with what is replicated.",
                    "Choose a place outside.",
                    ExitCode.REFUSED,
                )
        if ordered_by is not None:
            self.agent.sets.check_allowed(to)
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise _in_use(to)
        if to.is_mount():  # it is written beside it and put there by a rename, which no mount point takes
            raise CrnodeError(
                f"{to} is a disk of its own.",
                "A restore becomes a folder there when it is complete.",
                f"Name a folder on it: --to {to / 'restored'}",
                ExitCode.USAGE,
            )
        return to

    def _taken(self) -> Iterator[tuple[str, Path]]:
        """(set, place) of everything that sets have on this node, whether they run or not."""
        here = self.agent.node.name
        for spec in self.agent.document.sets:
            if spec.source == here:
                for text in spec.paths:
                    yield spec.name, Path(text).resolve()
            if here in spec.targets:
                yield spec.name, self.agent.sets.destination(spec).resolve()

    # -- which version

    async def choose(self, spec: ReplicationSet, wanted: object) -> Chosen:
        """The version asked for (see :meth:`Chosen.called`; None: the newest), from whoever holds it.
        Raises CrnodeError."""
        here = self.agent.node.name
        if len(str(wanted)) == IMAGE_HEX:  # by its whole name it is the same wherever it is
            for one in await self.images(spec, here):
                if one.image.hex() == wanted:
                    return one
        names = (here, *(name for name in self.agent.document.keepers(spec) if name != here))
        silent: set[str] = set()
        held = await asyncio.gather(*(self.images(spec, name, silent) for name in names))
        if not any(held):
            raise CrnodeError(
                f"No version of {spec.name} can be reached.",
                f"None of its targets ({', '.join(spec.targets)}) answers, or has an image yet.",
                "Start their agents.",
                ExitCode.UNREACHABLE,
            )
        text = str(wanted)
        if wanted is not None and not text.strip():
            raise CrnodeError(
                "No version was named.",
                "The text is empty.",
                f"See: crnode versions {spec.name}",
                ExitCode.USAGE,
            )
        lines = (images for name, images in zip(names, held, strict=True) if name == spec.source)
        line = {c.image for images in lines for c in images}
        asked = [[c for c in images if wanted is None or c.called(text)] for images in held]
        chosen = newest_of(asked, held, line)
        if chosen is not None:
            return chosen
        numbers = sorted({c.sequence for images in held for c in images})
        raise CrnodeError(
            f"There is no version {text} of {spec.name}.",
            f"There are {len(numbers)}, from {numbers[0]} to {numbers[-1]}.{_may_have(silent)}",
            f"List them: crnode versions {spec.name}",
            ExitCode.USAGE,
        )

    async def images(
        self, spec: ReplicationSet, name: str, silent: set[str] | None = None
    ) -> list[Chosen]:
        """The versions that node `name` keeps; none when it cannot be reached, or does not answer, and then
        it is added to `silent`."""
        here = self.agent.node.name
        if name == here:
            catalog = self.agent.sets.catalogs.get(spec.uuid)
            if catalog is None or here not in self.agent.document.keepers(spec):
                return []
            images = await self.agent.writer.submit(catalog.images)
            return [
                Chosen(i.id, i.sequence, i.digest, i.entries, i.bytes, name, i.name or "", i.at_ns)
                for i in images
                if i.id is not None
            ]
        link = self.agent.links.get(name)
        with contextlib.suppress(TimeoutError):
            if link is not None and await link.wait_up(2.0):
                try:
                    # A connection outlives a machine that died for some seconds.
                    async with asyncio.timeout(ANSWER_SECONDS):
                        found = await link.images(spec.uuid)
                    return [Chosen(i[0], i[3], i[5], i[6], i[7], name, i[9], i[4]) for i in found]
                except CrnodeError as error:
                    if error.exit_code is not ExitCode.UNREACHABLE:
                        raise
        if silent is not None:
            silent.add(name)
        return []

    @contextlib.asynccontextmanager
    async def held(self, spec: ReplicationSet, chosen: Chosen) -> AsyncIterator[None]:
        """Hold the image while it is restored, if it is ours; another node holds its own while it lists
        it."""
        if chosen.holder != self.agent.node.name:
            yield
            return
        async with self.agent.server.readers.hold(spec.uuid, chosen.image) as image:
            if image is None:
                raise _gone(spec, chosen)
            yield

    @contextlib.asynccontextmanager
    async def _asked_first(self, spec: ReplicationSet, chosen: Chosen) -> AsyncIterator[None]:
        """Whoever has the version is asked for its content before others: it answers, and has all of it."""
        first = self.agent.healer.first
        if chosen.holder == self.agent.node.name or spec.uuid in first:
            yield
            return
        first[spec.uuid] = chosen.holder
        try:
            yield
        finally:
            first.pop(spec.uuid, None)

    async def pages(
        self, spec: ReplicationSet, chosen: Chosen, path: bytes, take: Callable[[Sequence[Entry]], None]
    ) -> int:
        """Give `take`, in a thread, all entries at and below `path`, page by page; returns how many there
        are. That they are the version's is certain only when this returns: a whole version is proven by its
        digest, of a path the number is checked. Raises CrnodeError."""
        state = LtHash()
        size = 0

        def page(entries: Sequence[Entry]) -> int:
            take(entries)
            if not path:
                state.update(entry_bytes(e) for e in entries)
            return sum(e.size for e in entries)

        count = 0
        if chosen.holder == self.agent.node.name:
            catalog = self.agent.sets.catalogs.get(spec.uuid)
            if catalog is None:
                raise _gone(spec, chosen)
            with await in_thread(catalog.reader) as reader:
                image = await in_thread(lambda: reader.image(chosen.image))
                if image is None:
                    raise _gone(spec, chosen)
                entries = reader.subtree(path, image.ordinal)
                while some := await in_thread(lambda: list(itertools.islice(entries, PAGE))):
                    count += len(some)
                    size += await in_thread(partial(page, some))
        else:

            async def came(message: Entries) -> None:
                nonlocal count, size
                count += len(message.changed)
                if count > chosen.entries or (path and not all(_at(path, e.path) for e in message.changed)):
                    raise not_those(spec, chosen, "It gave more than the version has, or than was asked for.")
                size += await in_thread(partial(page, message.changed))

            told = await self.agent.links[chosen.holder].entries(spec.uuid, chosen.image, path, came)
            if not count and not path and chosen.entries:
                raise _gone(spec, chosen)
            if told != count:
                raise not_those(spec, chosen, f"It sent {told} and {count} came.")
        if not path and image_digest(bytes.fromhex(spec.uuid), count, size, state) != chosen.digest:
            raise not_those(spec, chosen, "Their digest differs from the version's.")
        return count

    # -- writing

    async def _write(
        self,
        spec: ReplicationSet,
        entries: list[Entry],
        top: bytes,
        staging: Staging,
        policy: Policy,
        progress: Progress,
        groups: Groups,
        *,
        share: bool = False,
    ) -> int:
        """Write `entries` under `staging`, fetching what is not here batch by batch; returns how many of them
        share their blocks with a live file."""
        root = os.open(staging.tree, os.O_RDONLY | os.O_DIRECTORY)
        temporary = os.open(staging.path / "tmp", os.O_RDONLY | os.O_DIRECTORY)
        writer = TreeWriter(root, temporary, self.agent.store.get, policy, write_back=True)
        done = 0
        live = await in_thread(partial(self._live_files, spec)) if share else None
        writer.share = live.open if live is not None else None
        try:
            for at in range(0, len(entries), BATCH):
                batch = entries[at : at + BATCH]
                left = await in_thread(partial(_left, staging, batch, top, groups))
                with self.agent.healer.spared():
                    for again in reversed(range(AGAIN)):
                        await self.have(spec, left)
                        written = await in_thread(partial(_write_batch, writer, left, top, groups, again > 0))
                        if written == len(left):
                            break
                        left = left[written:]
                done += len(batch)
                progress({"text": f"{done} of {len(entries)} paths", "done": done, "total": len(entries)})
            await in_thread(lambda: _finish(writer, [e for e in entries if e.kind == DIRECTORY], top))
            return writer.shared
        finally:
            if live is not None:
                live.close()
            writer.close()
            os.close(root)
            os.close(temporary)

    def _live_files(self, spec: ReplicationSet) -> _LiveFiles | None:
        running = self.agent.sets.targets.get(spec.uuid)
        if running is None:
            return None
        try:
            return _LiveFiles(running.commit.catalog, running.target.destination)
        except OSError:
            return None

    async def have(
        self, spec: ReplicationSet, batch: Sequence[Entry], but: Container[bytes] = (), least: int = 0
    ) -> int:
        """Fetch every object that the batch needs and that is not whole in our store, except those that are
        `but`, from our own live tree or another node; returns how many bytes came. `least`: the lowest level
        that is needed, 1 for recipes alone. CrnodeError when one cannot be had: FULL without room for it,
        else DAMAGE."""
        paths = [entry.path for entry in batch]
        tops: dict[int, dict[bytes, None]] = {}
        for entry in batch:
            if entry.content is not None:
                tops.setdefault(entry.level, {})[entry.content] = None
        return sum(
            [
                await self._have_below(spec, list(names), level, but, paths, least)
                for level, names in tops.items()
            ]
        )

    async def allocated(self, spec: ReplicationSet, files: Sequence[Entry]) -> dict[bytes, int]:
        """For each of the files, which have recipes, how many bytes it takes on a disk, by path: all but its
        holes. The recipes are fetched. Raises CrnodeError."""
        out: dict[bytes, int] = {}
        load = self.agent.store.get
        for at in range(0, len(files), BATCH):
            some = files[at : at + BATCH]
            await self.have(spec, some, least=1)
            out |= await in_thread(partial(_allocated, some, load))
        return out

    async def _have_below(
        self,
        spec: ReplicationSet,
        names: list[bytes],
        level: int,
        but: Container[bytes],
        paths: Collection[bytes],
        least: int,
    ) -> int:
        """The same for objects of one level and all below them: depth first, so that what is in memory is a
        page of names for each level, however large the files."""
        came = 0
        if level < least:
            return came
        for at in range(0, len(names), PAGE):
            page = [name for name in names[at : at + PAGE] if name not in but]
            came += await self._get(spec, await in_thread(partial(_lacking, self.agent.store, page)), paths)
        if not level:
            return came
        for at in range(0, len(names), RECIPES):
            some = names[at : at + RECIPES]
            below, damaged = await in_thread(partial(_children, self.agent.store, some, level))
            if damaged:
                came += await self._get(spec, damaged, paths)
                below, damaged = await in_thread(partial(_children, self.agent.store, some, level))
            if damaged:
                raise _lost(len(damaged))
            came += await self._have_below(spec, below, level - 1, but, paths, least)
        return came

    async def _get(self, spec: ReplicationSet, lacking: set[bytes], paths: Collection[bytes]) -> int:
        if not lacking:
            return 0
        fetched = await self.agent.healer.fetch(spec.uuid, lacking, paths)
        if lost := lacking - fetched.keys():
            await self.agent.writer.submit(self.agent.store.check_room, 1)
            raise _lost(len(lost))
        locate = self.agent.store.locate
        return await in_thread(lambda: sum(where.raw for name in lacking if (where := locate(name))))


class _LiveFiles:
    """Files of our own live tree that are what the tree says they are. OSError when it cannot be opened."""

    def __init__(self, catalog: Catalog, destination: Path) -> None:
        self._root = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._reader = catalog.reader()
        live = self._reader.live()
        self._at = live.at if live is not None and live.state == "clean" else 0

    def close(self) -> None:
        self._reader.close()
        os.close(self._root)

    def open(self, entry: Entry) -> int | None:
        """A descriptor of the live file that has the content of `entry`, by what is known of it; None where
        there is none."""
        known = self._reader.entry(entry.path, self._at) if self._at else None
        wanted = (entry.content, entry.level, entry.size)
        if known is None or (known.content, known.level, known.size) != wanted:
            return None
        try:
            fd = open_beneath(self._root, entry.path, os.O_RDONLY | os.O_NOFOLLOW, cross_devices=True)
        except OSError:
            return None
        if fingerprint(os.fstat(fd)) == self._reader.fingerprint(entry.path):
            return fd
        os.close(fd)
        return None


def path_of(args: Args) -> bytes:
    """The path that a call names, b'' for all. CrnodeError (USAGE) when it can be none."""
    path = os.fsencode(str(args.get("path") or "")).strip(b"/")
    if odd := problem(path, root=True):
        raise CrnodeError(
            f"'{os.fsdecode(path)[:200]}' is no path of a set.",
            f"{odd[:1].upper()}{odd[1:]}.",
            "Name it as it stands below the set's own folder.",
            ExitCode.USAGE,
        )
    return path


def _inside(path: Path, other: Path) -> bool:
    return path == other or other in path.parents


def _in_use(to: Path) -> CrnodeError:
    return CrnodeError(
        f"The destination {to} is in use.",
        "A restore never mixes with files that are there.",
        "Name a directory that does not exist yet, or an empty one.",
        ExitCode.REFUSED,
    )


def _may_have(silent: set[str]) -> str:
    if not silent:
        return ""
    do = "does" if len(silent) == 1 else "do"
    return f" {' and '.join(sorted(silent))} {do} not answer, and may have it."


def _gone(spec: ReplicationSet, chosen: Chosen) -> CrnodeError:
    return CrnodeError(
        f"{chosen.holder} does not keep version {chosen.sequence} of {spec.name} any more.",
        "It was thinned out meanwhile.",
        f"List what there is: crnode versions {spec.name}",
    )


def not_those(spec: ReplicationSet, chosen: Chosen, why: str) -> CrnodeError:
    return CrnodeError(
        f"The entries that {chosen.holder} gave are not those of version {chosen.sequence} of {spec.name}.",
        why,
        "Run crnode scrub and crnode doctor on that node, or restore from another version.",
        ExitCode.DAMAGE,
    )


def _lost(count: int) -> CrnodeError:
    return CrnodeError(
        f"{count} objects of the version cannot be had.",
        "No node that holds the set answers with them.",
        "Start the other targets and repeat it: it goes on where it was. Or restore another version.",
        ExitCode.DAMAGE,
    )


def damaged_here(spec: ReplicationSet, version: str, error: Exception) -> CrnodeError:
    """A version of which something could not be read, or contradicts itself."""
    return CrnodeError(
        f"Version {version} of {spec.name} is damaged here.",
        f"{type(error).__name__}: {_named(error)}.",
        "Run crnode scrub, then restore again, or restore another version.",
        ExitCode.DAMAGE,
    )


def _named(error: Exception) -> str:
    """What it is about: the beginning of an id, or a sentence."""
    about = error.args[0] if error.args else ""
    return about.hex()[:16] if isinstance(about, bytes) else str(about)


def _at(top: bytes, path: bytes) -> bool:
    return path == top or path.startswith(top + b"/")


def _lacking(store: ObjectStore, names: Iterable[bytes]) -> set[bytes]:
    return {name for name in names if name != HOLE and not store.has(name)}


def _children(store: ObjectStore, names: list[bytes], level: int) -> tuple[list[bytes], set[bytes]]:
    """What the recipes of this level name, each once, and those recipes that cannot be read."""
    below: dict[bytes, None] = {}
    damaged: set[bytes] = set()
    for name in names:
        try:
            recipe = content.parse_recipe(store.get(name), level)
        except (Missing, Damaged):
            damaged.add(name)
        else:
            below.update((child, None) for _, child in recipe.iter_items())
    return list(below), damaged


Groups = dict[tuple[int, bytes], list[Entry]]  # (kind, hard link group) -> its entries


def _link_groups(entries: list[Entry]) -> Groups:
    groups: Groups = {}
    for entry in entries:
        link = link_of(entry)
        if link is not None:
            groups.setdefault((entry.kind, link), []).append(entry)
    return groups


def _files_of(entries: Iterable[Entry]) -> list[Entry]:
    """Of each hard link group one."""
    groups: set[tuple[int, bytes]] = set()
    out = []
    for entry in entries:
        if (link := link_of(entry)) is not None:
            if (entry.kind, link) in groups:
                continue
            groups.add((entry.kind, link))
        out.append(entry)
    return out


def _allocated(files: Iterable[Entry], load: Callable[[bytes], bytes]) -> dict[bytes, int]:
    """By path, the bytes of each that are no hole."""
    out = {}
    for entry in files:
        assert entry.content is not None
        pieces = content.walk(entry.content, entry.level, load, size=entry.size)
        out[entry.path] = sum(length for _, length, name in pieces if name != HOLE)
    return out


def _below(path: bytes, top: bytes) -> bytes:
    """Where a path of the image goes under the destination: a folder's contents directly, a file by its
    name."""
    if not top:
        return path
    if path == top:
        return b""
    return path[len(top) + 1 :]


def _left(staging: Staging, batch: list[Entry], top: bytes, groups: Groups) -> list[Entry]:
    """Those of the batch that a restore which was cut off has not left whole."""
    if not staging.resumed:
        return batch
    out = []
    for entry in batch:
        link = link_of(entry)
        names = len(groups[entry.kind, link]) if link is not None else 1
        if not staging.has(entry, _below(entry.path, top) or top.rpartition(b"/")[2], names):
            out.append(entry)
    return out


def _write_batch(writer: TreeWriter, batch: list[Entry], top: bytes, groups: Groups, again: bool) -> int:
    """How many were written: not all of them where something is missing, if it may be had `again`."""
    for written, entry in enumerate(batch):
        try:
            _write_one(writer, entry, top, groups)
        except Missing:
            if not again:
                raise
            return written
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fsdecode(entry.path)) from error
    return len(batch)


def _write_one(writer: TreeWriter, entry: Entry, top: bytes, groups: Groups) -> None:
    where = _below(entry.path, top)
    if entry.kind == DIRECTORY:
        if where:
            writer.directory(entry._replace(path=where))
        return
    where = where or top.rpartition(b"/")[2]
    placed = entry._replace(path=where)
    link = link_of(entry)
    members = groups[entry.kind, link] if link is not None else []
    if members and members[0].path != entry.path:
        return  # written with the first of its group
    others = tuple(_below(m.path, top) for m in members[1:])
    make = writer.file if entry.kind == FILE else writer.symlink
    make(placed, others)


def _finish(writer: TreeWriter, directories: list[Entry], top: bytes) -> None:
    for entry in sorted(directories, key=lambda e: -e.path.count(b"/") - bool(e.path)):
        writer.finish_directory(entry._replace(path=_below(entry.path, top)))


def _verify(
    staging: Staging, entries: list[Entry], top: bytes, load: Callable[[bytes], bytes]
) -> tuple[list[bytes], list[Entry]]:
    """Paths that do not read back as their entries say, and entries whose recipes are missing."""
    wrong: list[bytes] = []
    lacking: list[Entry] = []
    with contextlib.closing(_Written(staging.tree)) as tree:
        for entry in entries:
            where = _below(entry.path, top) or (b"" if entry.kind == DIRECTORY else top.rpartition(b"/")[2])
            try:
                if not _same(*tree.place(where), entry, load):
                    wrong.append(entry.path)
            except Missing:
                lacking.append(entry)
            except (OSError, Damaged):
                wrong.append(entry.path)
    return wrong, lacking


class _Written:
    """The tree that a restore wrote, by its folders: below a destination a path may be longer than the system
    takes in one go (PATH_MAX)."""

    def __init__(self, tree: Path) -> None:
        # To go through a folder is enough: one that nobody may list is read back, too.
        self._root = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folder: tuple[bytes, int] | None = None

    def place(self, where: bytes) -> tuple[int, bytes]:
        """(open folder, name in it) of a path below, until the next one is asked for. Raises OSError."""
        head, _, name = where.rpartition(b"/")
        if not head:
            return self._root, name or b"."
        if self._folder is None or self._folder[0] != head:
            self._forget()
            self._folder = head, open_beneath(self._root, head, os.O_PATH | os.O_DIRECTORY)
        return self._folder[1], name

    def _forget(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            os.close(folder[1])

    def close(self) -> None:
        self._forget()
        os.close(self._root)


def _same(folder: int, name: bytes, entry: Entry, load: Callable[[bytes], bytes]) -> bool:
    info = os.lstat(name, dir_fd=folder)
    if entry.kind == DIRECTORY:
        return stat.S_ISDIR(info.st_mode)
    if entry.kind == SYMLINK:
        target = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(info.st_mode) else None
        return target is not None and target == Extra.decode(entry.extra).target
    if not stat.S_ISREG(info.st_mode) or info.st_size != entry.size:
        return False
    if entry.content is None:
        return entry.size == 0
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        return _has(fd, content.walk(entry.content, entry.level, load, size=entry.size), entry.size)
    finally:
        os.close(fd)


def _has(fd: int, pieces: Iterator[tuple[int, int, bytes]], size: int) -> bool:
    """Whether a file has these (offset, length, id). A second thread helps with a large one: reading and
    hashing happen without Python's lock."""
    turn, wrong = threading.Lock(), threading.Event()

    def look() -> None:
        while not wrong.is_set():
            with turn:
                some = list(itertools.islice(pieces, PIECES))
            if not some:
                return
            try:
                if any(name != HOLE and chunk_id(os.pread(fd, size, at)) != name for at, size, name in some):
                    wrong.set()
            except BaseException:
                wrong.set()  # the other one need not go on
                raise

    with contextlib.ExitStack() as stack:
        helped: Future[None] | None = None
        if size > ALONE:
            with contextlib.suppress(RuntimeError):  # no further thread can be started
                helped = stack.enter_context(ThreadPoolExecutor(1, "read back")).submit(look)
        look()
        if helped is not None:
            helped.result()
    return not wrong.is_set()


def _make_durable(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs(fd)
    finally:
        os.close(fd)


def _into_place(staging: Path, to: Path) -> None:
    os.rename(staging / "tree", to)
    try:
        fsync_dir(to.parent)
    except OSError as error:
        raise CrnodeError(
            f"The restore is at {to}, and may not outlast a power cut.",
            f"The disk failed to confirm its name: {error.strerror}.",
            "Look at that disk, and restore to another one.",
            ExitCode.DAMAGE,
        ) from error
