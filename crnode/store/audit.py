"""Auditing a catalog: do its rows still give the digests of its images? Runs as a child process.

One pass over all rows, whatever the number of images: a row that is valid from one ordinal to another adds
its entry to the hash of the first image that has it and takes it out at the first that has it no more, and
the sums from image to image are their states. Rows are read a page at a time by their key, without a snapshot
that would hold up the WAL (rule 36): what commits and pruning do meanwhile changes nothing of images that
were there before and still are."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path

import apsw

from crnode.store import child
from crnode.store.reader import Image, Reader, open_reader
from crproto.entries import LtHash, entry_bytes, image_digest
from crproto.errors import RemoteProtocolError

PAGE = 2000


class _Sum:
    """What changes from the image before to this one."""

    __slots__ = ("bytes", "entries", "lthash")

    def __init__(self) -> None:
        self.entries = self.bytes = 0
        self.lthash = LtHash()


def states(reader: Reader, images: list[Image]) -> list[tuple[int, int, LtHash]]:
    """(entries, bytes, LtHash state) of each of `images` (oldest first) as the rows have them."""
    ordinals = [image.ordinal for image in images]
    sums = [_Sum() for _ in images]
    after: tuple[int, bytes, int] | None = None
    while page := reader.rows(after, PAGE):
        for _, born, died, entry in page:
            first, last = bisect_left(ordinals, born), bisect_left(ordinals, died)
            if first == last:
                continue  # no image that is kept has it
            data = entry_bytes(entry)
            here = sums[first]
            here.entries += 1
            here.bytes += entry.size
            here.lthash.add(data)
            if last < len(sums):
                there = sums[last]
                there.entries -= 1
                there.bytes -= entry.size
                there.lthash.remove(data)
        after = page[-1][0]
    out: list[tuple[int, int, LtHash]] = []
    count = size = 0
    state = LtHash()
    for one in sums:
        count += one.entries
        size += one.bytes
        state.merge(one.lthash)
        out.append((count, size, state.copy()))
    return out


def audit(reader: Reader, set_uuid: bytes) -> tuple[list[tuple[Image, str]], list[Image]]:
    """(images whose rows are not what their digest says, with what is wrong; all that were checked)."""
    images = reader.images()
    found = states(reader, images) if images else []
    still = {image.ordinal: image for image in reader.images()}
    wrong: list[tuple[Image, str]] = []
    for image, (count, size, state) in zip(images, found, strict=True):
        held = still.get(image.ordinal)
        if held is None or held.id != image.id:
            continue  # pruned meanwhile, with some of its rows
        if image_digest(set_uuid, count, size, state) != image.digest:
            wrong.append((image, f"its rows have {count} entries and {size} bytes and not its digest"))
    with reader.snapshot():
        newest, totals = reader.newest(), reader.totals()
    known = {image.ordinal for image, _ in wrong}
    if newest is not None and newest.ordinal not in known:
        digest = image_digest(set_uuid, totals.entries, totals.bytes, totals.lthash)
        if digest != newest.digest:
            wrong.append((newest, "the state that the next image would be made from is not its digest"))
    return wrong, images


def main() -> None:
    """Check one catalog and say what is wrong."""
    body = child.request()
    try:
        with open_reader(Path(body["catalog"])) as reader:
            said = reader.quick_check()
            if said != "ok":
                child.say(event="damaged", why=f"SQLite's check says: {said}")
                return
            wrong, checked = audit(reader, bytes.fromhex(body["set"]))
    except (apsw.CorruptError, apsw.NotADBError, apsw.IOError, apsw.SQLError, RemoteProtocolError) as error:
        child.say(event="damaged", why=f"{type(error).__name__}: {error}")
        return
    for image, why in wrong:
        assert image.id is not None
        last = image.ordinal >= checked[-1].ordinal  # what came since goes on from the same rows
        child.say(event="image", id=image.id.hex(), sequence=image.sequence, newest=last, why=why)
    child.say(event="end", checked=len(checked))


if __name__ == "__main__":
    main()
