"""Catching up when cursors differ: two nodes compare what they hold by ranges of paths and find what differs.

One question with a border every so many entries, one answer with a digest for each range, then lists of the
ranges that differ: two round trips for a few differences in a million entries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from crnode.replicate.difference import Part, objects_of, removals
from crnode.store.reader import Reader
from crproto.entries import Entry, entry_bytes, entry_digest, range_digest
from crproto.messages import Compare, Compared, List, Listed
from crproto.paths import split

T = TypeVar("T")
Ask = Callable[[Compare | List], Awaitable[Compared | Listed]]
Run = Callable[[Callable[[], T]], Awaitable[T]]

RANGE_ENTRIES = 256  # entries of ours between two borders
RANGES = 4000  # borders of one question
LISTED = 4000  # items of one answer
TOLD_BYTES = 700 << 10  # of paths in one question or answer, about: long ones fill a message before so many
ITEM_BYTES = 48  # of a digest, and of what msgpack puts around it and the path

Key = tuple[bytes, bytes]


def ranges(reader: Reader, ordinal: int, borders: Sequence[Key]) -> list[tuple[int, bytes]]:
    """(count, digest) of each range that the borders cut image `ordinal` into: the answer to Compare."""
    lows: list[Key] = [(b"", b""), *borders]
    highs: list[Key | None] = [*borders, None]
    out: list[tuple[int, bytes]] = []
    for low, high in zip(lows, highs, strict=True):
        out.append(
            range_digest(entry_digest(entry_bytes(e)) for e in reader.in_key_order(ordinal, low, high))
        )
    return out


def listing(
    reader: Reader, ordinal: int, low: Key, high: Key | None
) -> tuple[list[tuple[bytes, bytes]], bool]:
    """(path, entry digest) of a range, at most LISTED, and whether that was all: the answer to List."""
    out: list[tuple[bytes, bytes]] = []
    size = 0
    for entry in reader.in_key_order(ordinal, low, high):
        if len(out) == LISTED or size > TOLD_BYTES:
            return out, False
        out.append((entry.path, entry_digest(entry_bytes(entry))))
        size += len(entry.path) + ITEM_BYTES
    return out, True


async def difference(
    reader: Reader, ordinal: int, ask: Ask, run: Run[object]
) -> tuple[list[bytes], list[bytes]]:
    """(paths that the other side lacks or has otherwise, paths that only the other side has)."""
    borders = await _run(run, lambda: _borders(reader, ordinal))
    changed: list[bytes] = []
    removed: list[bytes] = []
    number = 0
    for at, to in _questions(borders):
        # Each further question begins at the border where the one before ended; its first range was compared
        # already.
        here = borders[max(at - 1, 0) : to]
        ours = await _run(run, lambda h=here: ranges(reader, ordinal, h))  # type: ignore[misc]
        number += 1
        answer = await ask(Compare(number, tuple(here)))
        assert isinstance(answer, Compared)
        lows: list[Key] = [(b"", b""), *here]
        highs: list[Key | None] = [*here, None]
        more = to < len(borders)
        for low, high, mine, theirs in zip(lows, highs, ours, answer.ranges, strict=True):
            if (at and low == (b"", b"")) or (high is None and more) or mine == theirs:
                continue
            number = await _list(reader, ordinal, ask, run, low, high, number, changed, removed)
    return changed, removed


async def _list(
    reader: Reader,
    ordinal: int,
    ask: Ask,
    run: Run[object],
    low: Key,
    high: Key | None,
    number: int,
    changed: list[bytes],
    removed: list[bytes],
) -> int:
    theirs: dict[bytes, bytes] = {}
    at = low
    while True:
        number += 1
        end = high or (b"", b"")
        answer = await ask(List(number, at[0], at[1], end[0], end[1], high is None))
        assert isinstance(answer, Listed)
        theirs.update(answer.items)
        if answer.last or not answer.items:
            break
        # The last one comes once more: no name lies between it and the next that could be said instead.
        before, at = at, split(answer.items[-1][0])
        if at == before:
            break  # whoever answers so says nothing more
    mine = await _run(
        run, lambda: {e.path: entry_digest(entry_bytes(e)) for e in reader.in_key_order(ordinal, low, high)}
    )
    changed += [path for path, digest in mine.items() if theirs.get(path) != digest]
    removed += [path for path in theirs if path not in mine]
    return number


async def _run(run: Run[object], work: Callable[[], T]) -> T:
    return await run(work)  # type: ignore[return-value]


def _questions(borders: Sequence[Key]) -> Iterator[tuple[int, int]]:
    """From which border to which each question goes, so that each fits in a message."""
    at = size = 0
    for to, border in enumerate(borders):
        if to - at == RANGES or size > TOLD_BYTES:
            yield at, to
            at, size = to, 0
        size += sum(map(len, border)) + ITEM_BYTES
    yield at, len(borders)


def _borders(reader: Reader, ordinal: int) -> list[Key]:
    out: list[Key] = []
    for count, entry in enumerate(reader.in_key_order(ordinal, (b"", b""), None)):
        if count and count % RANGE_ENTRIES == 0:
            out.append(split(entry.path))
    return out


def parts(
    reader: Reader,
    ordinal: int,
    changed: Sequence[bytes],
    removed: Sequence[bytes],
    load: Callable[[bytes], bytes],
) -> Iterator[Part]:
    """The difference found, as batches to push."""
    for group in removals(removed):
        yield Part(removed=group)
    part = Part()
    for path in changed:
        entry: Entry | None = reader.entry(path, ordinal)
        if entry is None:
            continue
        for wanted in objects_of(entry, None, load):
            part.objects.append(wanted)
            part.bytes += wanted.length
            if part.full():
                yield part
                part = Part()
        part.add(entry)
        if part.full():
            yield part
            part = Part()
    if part.objects or part.entries:
        yield part
