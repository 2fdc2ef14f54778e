"""The agent's side of the deep pass (see capture/deep.py): a stretch of it when the node is idle, all of it
in a scrub. What differs goes to capture, which tells damage from a change."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crnode.capture import deep
from crnode.capture.guard import VERIFIED
from crnode.capture.rot import Stretch, Verified, ranges
from crnode.capture.source import SourceSet
from crnode.replicate.receive import TargetSet
from crnode.store.catalog import Catalog
from crnode.store.child import Child

PERIOD_NS = 7 * 86_400 * 10**9  # between the beginnings of two passes over a set
SAVE_SECONDS = 10.0
CHANGED = 1000  # paths of a live tree that are put right in one go
NAMED = 20  # of them that an answer names
UNREAD_MOST = 1000  # a pass that could not compare more than this proves nothing
META, META_LIVE = "deep", "deep_live"

Progress = Callable[[dict[str, Any]], None]


@dataclass
class Compared:
    """What a pass, or a part of one, found."""

    files: int = 0
    size: int = 0  # bytes compared
    changed: int = 0  # files that capture had not seen yet
    unread: int = 0  # files that, or whose recipe, could not be read
    differing: list[tuple[bytes, str]] = field(default_factory=list)  # path, which bytes
    ended: bool = False


@dataclass
class State:
    """Where the passes over a set are; kept in its catalog, so that a restart goes on."""

    begun_ns: int = 0
    place: deep.Place | None = None
    running: bool = False
    ordinal: int = 0  # of the newest image when the pass began; 0: it proves nothing
    unread: list[str] = field(default_factory=list)  # paths, hex, that this pass did not find equal

    def proves_nothing_of(self, path: str) -> None:
        """This path, in hex, was not found to be what was captured."""
        self.unread.append(path)
        if len(self.unread) > UNREAD_MOST:
            self.ordinal, self.unread = 0, []

    def due(self, now_ns: int) -> bool:
        """Whether there is something to do."""
        return self.running or not 0 <= now_ns - self.begun_ns < PERIOD_NS


async def state_of(source: SourceSet) -> State:
    """The state that the catalog has; of a new set the first pass is due a period after it was made."""
    value = await source.writer.submit(source.catalog.meta, META)
    return State(**json.loads(value)) if value is not None else State(source.spec.created_at_ns)


async def compare(
    source: SourceSet,
    *,
    pace: int = 0,
    seconds: float = 0.0,
    anew: bool = False,
    progress: Progress = lambda _: None,
) -> Compared:
    """Go on with the pass over a set for about `seconds` (0: to its end), or begin one `anew`.

    Raises child.ChildFailed, CrnodeError when there is no room to note how far it came."""
    state = await state_of(source)
    if anew or not state.running:
        newest = await source.writer.submit(source.catalog.newest)
        state = State(source.now_ns(), None, True, newest.ordinal if newest is not None else 0)
    out = Compared()
    store = source.store
    await source.writer.submit(store.flush_index)  # the child sees the committed index alone
    request = deep.request_for(
        list(source.spec.paths), source.catalog.path, store.directory, state.place, pace, seconds
    )
    saved = time.monotonic()
    async with Child("crnode.capture.deep", request) as process:
        while (line := await process.line()) is not None:
            match line["event"]:
                case "changed":
                    out.changed += 1
                    state.proves_nothing_of(line["path"])
                    source.look_at(bytes.fromhex(line["path"]))
                case "unread":
                    state.proves_nothing_of(line["path"])
                case "differs":
                    if not await _suspect(source, bytes.fromhex(line["path"]), line["stretches"], out):
                        # Capture may come to it only when the pass has ended: it was not read as captured.
                        state.proves_nothing_of(line["path"])
                case "at" | "end":
                    out.files, out.size, out.unread = line["files"], line["bytes"], line["unread"]
                    state.place = line["place"]
                    out.ended = line["event"] == "end" and state.place is None
                    text = f"{out.files} files compared, {out.size >> 20} MiB"
                    progress({"text": f"{source.spec.name}: {text}"})
            if time.monotonic() - saved > SAVE_SECONDS:
                saved = time.monotonic()
                await _save(source, state)
    if out.ended:
        state.running = False
        if state.ordinal:
            verified = Verified(state.begun_ns, state.ordinal, frozenset(map(bytes.fromhex, state.unread)))
            await source.writer.submit(source.commit.save_meta, VERIFIED, verified.encode())
        state.unread = []
    await _save(source, state)
    return out


async def _save(source: SourceSet, state: State) -> None:
    await source.writer.submit(source.commit.save_meta, META, json.dumps(vars(state)).encode())


async def _suspect(source: SourceSet, path: bytes, stretches: list[list[int]], out: Compared) -> bool:
    """Whether what differs may be damage; else it is a change, and captured."""
    if await source.examine(path, [start for start, _ in stretches]):
        out.differing.append((path, ranges(Stretch(start, end, b"") for start, end in stretches)))
        return True
    out.changed += 1
    source.look_at(path)
    return False


@dataclass
class Mended:
    """What a pass over a live tree found."""

    files: int = 0
    size: int = 0
    mended: list[dict[str, Any]] = field(default_factory=list)  # set, path, bytes, and whether it is whole
    changed: int = 0  # files that somebody changed or removed
    put_right: int = 0  # of them
    named: list[dict[str, Any]] = field(default_factory=list)  # some: set, path, and whether it is whole

    def note_changed(self, name: str, found: dict[bytes, bool]) -> None:
        """Files of a set that somebody changed, each with whether it was put right."""
        self.changed += len(found)
        self.put_right += sum(found.values())
        for path, whole in sorted(found.items(), key=lambda one: (one[1], one[0]))[: NAMED - len(self.named)]:
            self.named.append({"set": name, "path": _spoken(path), "whole": whole})


async def compare_live(
    target: TargetSet,
    *,
    pace: int = 0,
    seconds: float = 0.0,
    anew: bool = False,
    progress: Progress = lambda _: None,
) -> Mended:
    """The same for a live tree: compare its files with what was written there, and write anew what differs.
    Those that somebody changed are put right at once, not with the next look at the whole tree. Raises
    child.ChildFailed, CrnodeError."""
    state = await live_state_of(target)
    if anew or not state.running:
        state = State(target.commit.now_ns(), None, True)
    out = Mended()
    await target.writer.submit(target.store.flush_index)
    request = deep.request_for(
        [str(target.destination)], target.catalog.path, target.store.directory, state.place, pace, seconds,
        live=True,
    )  # fmt: skip
    ended = False
    changed: list[bytes] = []
    async with Child("crnode.capture.deep", request) as process:
        while (line := await process.line()) is not None:
            match line["event"]:
                case "differs":
                    path = bytes.fromhex(line["path"])
                    text = ranges(Stretch(start, end, b"") for start, end in line["stretches"])
                    row = {"set": target.spec.name, "path": _spoken(path), "bytes": text}
                    out.mended.append({**row, "whole": await target.mend(path, text)})
                case "changed":
                    changed.append(bytes.fromhex(line["path"]))
                    if len(changed) >= CHANGED:
                        out.note_changed(target.spec.name, await target.put_right(changed))
                        changed = []
                case "at" | "end":
                    out.files, out.size, state.place = line["files"], line["bytes"], line["place"]
                    ended = line["event"] == "end" and state.place is None
                    text = f"{out.files} files compared, {out.size >> 20} MiB"
                    progress({"text": f"live tree of {target.spec.name}: {text}"})
    if changed:
        out.note_changed(target.spec.name, await target.put_right(changed))
    state.running = not ended
    await target.writer.submit(_keep_state, target.catalog, state)
    return out


async def live_state_of(target: TargetSet) -> State:
    """Where the passes over a live tree are; of a new set the first is due a period after it was made."""
    value = await target.writer.submit(target.catalog.meta, META_LIVE)
    return State(**json.loads(value)) if value is not None else State(target.spec.created_at_ns)


def _keep_state(catalog: Catalog, state: State) -> None:
    with catalog.transaction():
        catalog.set_meta(META_LIVE, json.dumps(vars(state)).encode())


def _spoken(path: bytes) -> str:
    return os.fsdecode(path).encode("utf-8", "replace").decode()


def rows(name: str, found: Compared) -> list[dict[str, str]]:
    """What differs, for the answer of a scrub."""
    return [
        {"set": name, "path": _spoken(path), "bytes": text}
        for path, text in found.differing
    ]
