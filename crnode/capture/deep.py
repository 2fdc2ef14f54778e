"""The deep pass: every file of a source is read again and compared by BLAKE3 with what was captured of it;
and every file of a live tree with what was written there.

What capture compares by is a fast hash (rule 57) and the times of a file; what both miss is found here,
weekly: contents made to have one xxh3, and rot (rule 58). A child process reads, at a set pace, and prints
JSON lines; it goes through the newest image in the order of (directory, name) and can stop and go on
anywhere, also in the middle of a large file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from crnode.capture.read import fingerprint_of
from crnode.capture.roots import OpenRoots, labels
from crnode.capture.rot import Stretch
from crnode.capture.verify import compared, open_file
from crnode.store import child
from crnode.store.reader import Fingerprint, open_reader
from crnode.store.scrub import Pace
from crnode.store.store import Damaged, Missing, StoreReader
from crproto.entries import FILE, Entry, link_of
from crproto.errors import RemoteProtocolError
from crproto.paths import split

PAGE = 200  # entries of the newest image looked at before it is asked for anew
TOLD_SECONDS = 0.5
STRETCHES_MOST = 100  # told of one file
MOVING_LOOKS, MOVING_SECONDS = 100, 0.1  # while a live tree goes to another image

Place = dict[str, Any]
"""Where a pass is: {"dir", "name"} of the last file, hex, and {"offset", "content"} while it is inside it."""


def request_for(
    paths: list[str],
    catalog: Path,
    store: Path,
    place: Place | None,
    pace: int,
    seconds: float,
    *,
    live: bool = False,
) -> dict[str, Any]:
    """The request of the child: from `place` on, at most `pace` bytes a second (0: no bound), for about
    `seconds` (0: to the end). `live`: the paths are the one of a live tree, which shows what it shows."""
    return {
        "paths": paths, "catalog": str(catalog), "store": str(store), "place": place,
        "pace": pace, "seconds": seconds, "live": live,
    }  # fmt: skip


class _Moving(Exception):
    """The live tree goes from one image to the next, and has not come there for a while."""


class _Pass:
    def __init__(self, body: dict[str, Any]) -> None:
        self.roots = OpenRoots(labels(body["paths"]))
        self.catalog = open_reader(Path(body["catalog"]))
        self.store = StoreReader(Path(body["store"]))
        self.pace = Pace(body["pace"])
        self.until = time.monotonic() + body["seconds"] if body["seconds"] else float("inf")
        self.files = self.bytes = self.unread = 0
        self.place: Place | None = body["place"]
        self.live = bool(body.get("live"))
        self._told = time.monotonic()

    def run(self) -> bool:
        """True when the pass came to its end, False when its time was over."""
        try:
            return self._run()
        except _Moving:
            return False

    def _run(self) -> bool:
        for entry in self._entries():
            if entry.kind != FILE or (entry.content is None and not self.live):
                self._at(entry)
                continue
            start = self._start(entry)
            if not self._file(entry, start):
                return False
            self._at(entry)
            if time.monotonic() >= self.until:
                return False
        return True

    def _entries(self) -> Iterator[Entry]:
        """The entries of whatever image is the newest, a page at a time: none has to be kept for this."""
        place = self.place
        after: tuple[bytes, bytes] | None = None
        if place is not None and "content" in place:  # it stands inside a file: that one once more
            inside = bytes.fromhex(place["dir"]), bytes.fromhex(place["name"])
            entry = self._newest_entry(b"/".join(part for part in inside if part))
            if entry is not None:
                yield entry
            after = inside
        elif place is not None:
            after = bytes.fromhex(place["dir"]), bytes.fromhex(place["name"])
        while (ordinal := self._ordinal()) is not None:
            page = list(islice(self.catalog.walk(ordinal, PAGE, after), PAGE))
            yield from page
            if len(page) < PAGE:
                return
            after = split(page[-1].path)

    def _ordinal(self) -> int | None:
        """The image that the files have to be like; None: there is none."""
        if not self.live:
            newest = self.catalog.newest()
            return newest.ordinal if newest is not None else None
        for _ in range(MOVING_LOOKS):
            live = self.catalog.live()
            if live is None or (live.state == "clean" and not live.at):
                return None
            if live.state == "clean":
                return live.at
            time.sleep(MOVING_SECONDS)
        raise _Moving

    def _newest_entry(self, path: bytes) -> Entry | None:
        ordinal = self._ordinal()
        return self.catalog.entry(path, ordinal) if ordinal is not None else None

    def _start(self, entry: Entry) -> int:
        place = self.place
        if place is None or entry.content is None or place.get("content") != entry.content.hex():
            return 0
        head, name = split(entry.path)
        return int(place["offset"]) if (place["dir"], place["name"]) == (head.hex(), name.hex()) else 0

    def _at(self, entry: Entry, offset: int | None = None) -> None:
        head, name = split(entry.path)
        self.place = {"dir": head.hex(), "name": name.hex()}
        if offset is not None and entry.content is not None:
            self.place |= {"offset": offset, "content": entry.content.hex()}
        now = time.monotonic()
        if now - self._told >= TOLD_SECONDS:
            self._told = now
            child.say(event="at", place=self.place, files=self.files, bytes=self.bytes, unread=self.unread)

    def _file(self, entry: Entry, start: int) -> bool:
        """Compare one file; False when the time was over inside it."""
        recorded = self.catalog.fingerprint(entry.path)
        try:
            fd = open_file(self.roots, entry.path)
        except (FileNotFoundError, NotADirectoryError, KeyError):
            child.say(event="changed", path=entry.path.hex())
            return True
        except OSError:
            self._unread(entry)
            child.say(event="changed", path=entry.path.hex())
            return True
        try:
            return self._compare(fd, entry, recorded, start)
        finally:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # leave the cache to others
            os.close(fd)

    def _compare(self, fd: int, entry: Entry, recorded: Fingerprint | None, start: int) -> bool:
        here = fingerprint_of(os.fstat(fd))
        if here != recorded and not self._may_be_ours(entry, here, recorded):
            self._changed(entry, recorded)
            return True
        bad: list[Stretch] = []
        whole = True
        try:
            for one, same in compared(fd, entry, self.store.get, start):
                if not same and len(bad) < STRETCHES_MOST:
                    bad.append(one)
                size = one.end - one.start
                self.bytes += size
                self.pace.took(size)
                self._at(entry, one.end)
                if time.monotonic() >= self.until and one.end < entry.size:
                    whole = False
                    break
        except (Missing, Damaged, RemoteProtocolError):
            self._unread(entry)  # a recipe captured this moment, or one that a scrub heals
            return True
        except OSError:
            self._unread(entry)
            child.say(event="changed", path=entry.path.hex())
            return True
        self.files += whole
        known = self.catalog.fingerprint(entry.path)
        if bad and (fingerprint_of(os.fstat(fd)), known) == (here, recorded):
            pairs = [(one.start, one.end) for one in bad]
            child.say(event="differs", path=entry.path.hex(), stretches=pairs)
        elif bad:
            self._changed(entry, recorded)
        return whole

    def _may_be_ours(self, entry: Entry, here: Fingerprint, recorded: Fingerprint | None) -> bool:
        """Whether writing another name of the file may have moved its ctime: then its bytes say it."""
        if not self.live or recorded is None or link_of(entry) is None:
            return False
        return here._replace(ctime_ns=0) == recorded._replace(ctime_ns=0)

    def _unread(self, entry: Entry) -> None:
        self.unread += 1
        child.say(event="unread", path=entry.path.hex())

    def _changed(self, entry: Entry, recorded: Fingerprint | None) -> None:
        if self.catalog.fingerprint(entry.path) == recorded:  # else it was captured this moment
            child.say(event="changed", path=entry.path.hex())


def main() -> None:
    """Compare from the place that was asked for until the time is over or the set is through."""
    request = child.request()
    if request.get("live") and not all(map(os.path.isdir, request["paths"])):
        # A live tree that is away is told as that, and nothing of it is damaged.
        child.say(event="end", place=None, files=0, bytes=0, unread=0)
        return
    work = _Pass(request)
    whole = work.run()
    child.say(
        event="end", place=None if whole else work.place, files=work.files, bytes=work.bytes,
        unread=work.unread,
    )  # fmt: skip


if __name__ == "__main__":
    main()
