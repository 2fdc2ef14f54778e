"""Scrub: reading every record of every pack again, so that rot is found while another holder can still heal
it.

A child process reads, at a set pace, and prints JSON lines; a damaged stretch of a pack matters where the
index has an object in it *now*: what was healed since lies elsewhere, and its old place stays damaged until
collection takes the pack. The agent marks the objects damaged, so that they count as missing; an
inventory (inventory.py) says who needs them and has them fetched from other holders."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from crnode.store import child
from crnode.store.index import unpack
from crnode.store.packs import Gap
from crnode.store.store import Damaged, Missing, ObjectStore, StoreReader, sound
from crnode.store.writer import Writer

_PAGE = 20_000
_TOLD_SECONDS = 0.5
_PACE_BYTES = 1 << 20  # the pace is kept over stretches of this size

Progress = Callable[[dict[str, Any]], None]


class Rotten(NamedTuple):
    """A damaged object: its id and the pack it lies in."""

    id: bytes
    pack: int


@dataclass
class Findings:
    """What a scrub found."""

    objects: int = 0
    bytes: int = 0
    stretches: list[Gap] = field(default_factory=list)
    damaged: list[Rotten] = field(default_factory=list)
    seconds: float = 0.0


async def scrub(
    store: ObjectStore,
    writer: Writer,
    progress: Progress = lambda _: None,
    *,
    bytes_per_second: int = 0,
    packs: Sequence[int] | None = None,
) -> Findings:
    """Read everything, or only these packs; what is damaged is in `store.damaged` afterwards. Raises
    CrnodeError, StoreFailed, child.ChildFailed."""
    begun = time.monotonic()
    out = Findings()

    def start() -> dict[str, int]:
        store.packs.sync()
        store.flush_index()
        return {str(pack): end for _, pack, end in store.packs.open_lanes()}

    request = {
        "store": str(store.directory),
        "bytes_per_second": bytes_per_second,
        "ends": await writer.submit(start),
        "packs": packs,
    }
    found: dict[bytes, tuple[int, int]] = {}
    async with child.Child("crnode.store.scrub", request) as process:
        while (line := await process.line()) is not None:
            match line["event"]:
                case "progress":
                    progress({"text": f"{line['bytes'] >> 20} MiB read, {line['damaged']} damaged stretches"})
                case "stretch":
                    out.stretches.append(Gap(line["pack"], line["start"], line["end"], line["at_end"]))
                case "object":
                    found[bytes.fromhex(line["id"])] = (line["pack"], line["offset"])
                case "end":
                    out.objects, out.bytes = line["objects"], line["bytes"]

    def note() -> list[bytes]:
        still = []
        for name, place in found.items():
            where = store.index.get(name)
            if where is not None and (where.pack, where.offset) == place:
                still.append(name)
        if still:
            store.note_lost(still)
        return still

    for name in await writer.submit(note):
        out.damaged.append(Rotten(name, found[name][0]))
    out.seconds = time.monotonic() - begun
    return out


# -- the child


class Pace:
    """Sleeps so that no more than so many bytes a second are read; 0 is no bound."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._due = time.monotonic()
        self._gathered = 0

    def took(self, size: int) -> None:
        if not self._rate:
            return
        self._gathered += size
        if self._gathered >= min(_PACE_BYTES, self._rate):
            self._due = max(self._due + self._gathered / self._rate, time.monotonic() - 1.0)
            self._gathered = 0
            time.sleep(max(self._due - time.monotonic(), 0.0))


def _read_all(body: dict[str, Any], reader: StoreReader) -> tuple[int, int, list[Gap]]:
    pace = Pace(body["bytes_per_second"])
    ends = {int(pack): end for pack, end in body["ends"].items()}
    objects = size = 0
    gaps: list[Gap] = []
    told = time.monotonic()
    for pack in reader.packs.numbers() if body["packs"] is None else body["packs"]:
        with contextlib.suppress(FileNotFoundError):  # collected meanwhile
            _forget_cached(reader.packs.path(pack))
            end = ends.get(pack)
            for met in reader.packs.scan(pack, 0, sound, end):
                if isinstance(met, Gap):
                    gaps.append(met)
                    child.say(event="stretch", pack=pack, start=met.start, end=met.end, at_end=met.at_end)
                    pace.took(met.end - met.start)
                    size += met.end - met.start
                else:
                    objects += 1
                    size += met.location.size
                    pace.took(met.location.size)
                if time.monotonic() - told > _TOLD_SECONDS:
                    told = time.monotonic()
                    child.say(event="progress", bytes=size, objects=objects, damaged=len(gaps))
            _forget_cached(reader.packs.path(pack))
    return objects, size, gaps


def _forget_cached(path: Path) -> None:
    """Let the disk answer and not the page cache, and leave the cache to others."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _tell_objects_in(reader: StoreReader, gaps: list[Gap]) -> None:
    """Say each id whose place is in a damaged stretch, or where no pack reaches."""
    by_pack: dict[int, list[Gap]] = {}
    for gap in gaps:
        by_pack.setdefault(gap.pack, []).append(gap)
    sizes: dict[int, int] = {}
    for pack in reader.packs.numbers():
        with contextlib.suppress(FileNotFoundError):
            sizes[pack] = reader.packs.size(pack)
    after: bytes | None = None
    while page := reader.index.page(after, _PAGE):
        after = page[-1][0]
        for name, value in page:
            where = unpack(value)
            bad = where.offset + where.size > sizes.get(where.pack, 0)
            bad = bad or any(gap.start <= where.offset < gap.end for gap in by_pack.get(where.pack, ()))
            if bad and not _readable(reader, name):  # what was made or moved meanwhile is no damage
                child.say(event="object", id=name.hex(), pack=where.pack, offset=where.offset)


def _readable(reader: StoreReader, name: bytes) -> bool:
    try:
        reader.get(name)
    except Damaged:
        return False
    except Missing:
        return reader.index.get(name) is None
    return True


def main() -> None:
    """Read every pack."""
    body = child.request()
    reader = StoreReader(Path(body["store"]))
    objects, size, gaps = _read_all(body, reader)
    if gaps or body["packs"] is None:  # of some packs alone, what they lack is seen in them
        _tell_objects_in(reader, gaps)
    child.say(event="end", objects=objects, bytes=size)


if __name__ == "__main__":
    main()
