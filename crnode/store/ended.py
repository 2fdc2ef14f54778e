"""What a damaged catalog still says of deleted paths: the last row of each, which an archive keeps for ever
(rule 49) and which no image has.

No digest vouches for such a row, so only one that makes sense and whose content is held is taken over. In the
new catalog it begins and ends with the image at which the path was gone: no image can come to have it."""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import apsw

from crnode.store.catalog import Catalog, lies_beside, out_of_reach
from crnode.store.damaged import UNREADABLE, connect_damaged
from crnode.store.reader import ENTRY, NAMES, OPEN, STAGING, Image, entry_of
from crnode.store.store import CHUNK, RECIPE, Damaged, Missing, ObjectStore
from crproto.content import parse_recipe
from crproto.entries import Entry, entry_from_wire
from crproto.errors import RemoteProtocolError
from crproto.paths import join

_BATCH_ROWS = 2000
_FOLDERS = "SELECT id,path FROM dir ORDER BY id {0}"
_ROWS = "SELECT name,born,died FROM entry WHERE dir=? ORDER BY name {0},born {0}"
_IMAGES = "SELECT ordinal,state FROM image ORDER BY ordinal {0}"
_ONE = f"SELECT {ENTRY} FROM entry e {NAMES} WHERE e.dir=? AND e.name=? AND e.born=?"


def keep_ended(catalog: Catalog, store: ObjectStore, aside: Path, named: Sequence[Image]) -> bool:
    """Take over the last rows of deleted paths from the damaged catalog `aside`, which had the images `named`
    (oldest first); whether all that it had could be read. `catalog` has its images already. Raises
    CrnodeError when it is out of reach."""
    made = {image.id: image.ordinal for image in catalog.images()}
    newest = max(made.values(), default=0)
    here = [image for image in named if image.id in made]
    ordinals = [image.ordinal for image in here]
    whole, count = True, 0
    try:
        with contextlib.closing(connect_damaged(aside)) as db:
            db.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)  # see Reader
            found = _ended(db)
            while batch := list(islice(found, _BATCH_ROWS)):
                with catalog.transaction():
                    for one in batch:
                        if one is None or not _is_held(store, one[1]):
                            whole = False
                            continue
                        died, entry = one
                        first = bisect_left(ordinals, died)
                        at = made[here[first].id] if first < len(here) else newest
                        count += _keep(catalog, entry, at)
    except UNREADABLE as error:  # it cannot be opened
        if lies_beside(error):
            raise out_of_reach(aside, error) from error
        return False
    if count:
        with catalog.transaction():
            catalog.set_meta("pruning", b"1")  # a mirror needs none of them
    return whole


def _keep(catalog: Catalog, entry: Entry, at: int) -> bool:
    """Keep a row that ended at image `at`, unless the path was there later, or the row came with an image."""
    rows = catalog.history(entry.path)
    if rows and (rows[-1][1] > at or rows[-1][2] == entry):
        return False
    catalog.keep_ended(entry, at)
    return True


def _is_held(store: ObjectStore, entry: Entry) -> bool:
    """Whether the content that a row names is one: a name that damage made would be missed for ever."""
    if entry.content is None:
        return True
    where = store.locate(entry.content)
    if where is None or where.kind != (RECIPE if entry.level else CHUNK):
        return False
    try:
        if entry.level:
            parse_recipe(store.get(entry.content), entry.level)
    except (Missing, Damaged):  # that is told and healed as for any other
        return True
    except RemoteProtocolError:
        return False
    return True


def _ended(db: apsw.Connection) -> Iterator[tuple[int, Entry] | None]:
    """(ordinal at which it ended, entry) of the last row of each path that is deleted, and None for each
    place that cannot be read. A row of an image that was on its way is none: that is never completed now."""
    staged = _staged(db)
    for folder in _from_both_ends(db, _FOLDERS, (), 1):
        if folder is None:
            yield None
            continue
        number, directory = folder
        for last in _last_of_each(_from_both_ends(db, _ROWS, (number,), 2), staged):
            try:
                if last is None:
                    yield None
                elif last[2] < OPEN:
                    name, born, died = last
                    row: Any = db.execute(_ONE, (number, name, born)).fetchone()
                    yield died, entry_from_wire(tuple(entry_of(join(directory, name), row)))
            except UNREADABLE:
                yield None


def _staged(db: apsw.Connection) -> set[int]:
    """Ordinals of images that were on their way."""
    return {row[0] for row in _from_both_ends(db, _IMAGES, (), 1) if row is not None and row[1] == STAGING}


def _last_of_each(
    rows: Iterable[tuple[Any, ...] | None], staged: Container[int]
) -> Iterator[tuple[Any, ...] | None]:
    """Of the rows (name, born, died) of a folder the last one of each name, but for those born in `staged`
    images."""
    last: tuple[Any, ...] | None = None
    for row in rows:
        if row is not None and row[1] in staged:
            continue
        if last is not None and (row is None or row[0] != last[0]):
            yield last
            last = None
        if row is None:
            yield None
        elif last is None or row[1] > last[1]:
            last = row
    if last is not None:
        yield last


def _from_both_ends(
    db: apsw.Connection, sql: str, args: tuple[Any, ...], key: int
) -> Iterator[tuple[Any, ...] | None]:
    """Rows by their first `key` columns, rising; where they can be read no further None, and then what can be
    read from the other end. Keys that do not rise are damage, which may lead in a circle."""
    low: tuple[Any, ...] | None = None
    high: tuple[Any, ...] | None = None
    with contextlib.suppress(*UNREADABLE):
        for row in db.execute(sql.format(""), args):
            if low is not None and row[:key] <= low:
                break
            low = row[:key]
            yield row
        else:
            return
    yield None
    with contextlib.suppress(*UNREADABLE):
        for row in db.execute(sql.format("DESC"), args):
            if (low is not None and row[:key] <= low) or (high is not None and row[:key] >= high):
                return
            high = row[:key]
            yield row
