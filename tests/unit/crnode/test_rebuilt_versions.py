"""Which versions a catalog has that was made again, and what is known of them: no more than were there, with
the names that they had, and none is missed in silence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_samples import SET, blank, commit, directory, file, put_file, reachable, small_store
from test_catalog_aside import opened
from test_manifest import _set, _write

from crnode.replicate.commit import TargetCommit
from crnode.store.catalog import Catalog


def spoil(catalog: Catalog) -> None:
    """Any damage that is found when the catalog is opened, though each row can be read."""
    with catalog.transaction():
        catalog.set_meta("set", None)
    catalog.put_away()


@pytest.mark.parametrize("row", [True, False])
def test_a_version_that_is_kept_stays_so(tmp_path: Path, row: bool) -> None:
    """Kept because the source went back behind it, after its manifest was written; with `row` or by the log
    alone."""
    store, catalog, _, _ = _set(tmp_path, files=20)
    newest = catalog.newest()
    assert newest is not None
    _write(store, catalog, newest)
    target = TargetCommit(catalog, store, archive=False, now_ns=lambda: 0, retain_roots=set)
    header: Any = SimpleNamespace(parent=b"\1" * 32, skips=False, incarnation=b"\2" * 16)
    with catalog.transaction():
        target._keep_other_line(header, newest)
    held = catalog.image_at(newest.ordinal)
    assert held is not None and held.name == f"diverged {newest.at_ns // 10**9}"
    spoil(catalog)
    if not row:
        catalog.path.unlink()
    opened(tmp_path, store, [])
    made = Catalog(catalog.path, SET).image(newest.id or b"")
    assert made is not None and (made.pinned, made.name, made.why) == (1, held.name, held.why)


def test_one_that_is_not_kept_any_more_is_not(tmp_path: Path) -> None:
    """A kill came between its row and its line in the log."""
    store, catalog, images, _ = _set(tmp_path, files=20)
    with catalog.transaction():
        catalog.set_pin(images[2].ordinal, "release", "pinned by a person")
    _write(store, catalog, images[2])
    with catalog.transaction():
        catalog.unpin(images[2].ordinal)
    spoil(catalog)
    opened(tmp_path, store, [])
    made = Catalog(catalog.path, SET).image(images[2].id or b"")
    assert made is not None and (made.pinned, made.name) == (0, None)


@pytest.mark.parametrize("later", [None, b"gone"])
def test_an_image_on_its_way_hides_nothing_of_what_an_archive_keeps(
    tmp_path: Path, later: bytes | None
) -> None:
    """It has the path again; `later`: and deletes it in another step."""
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "sets" / f"{SET.hex()}.db", SET)
    only, _ = named = put_file(store, b"the only copy of it", 4)
    commit(catalog, [directory(b""), file(b"gone", named, 19)])
    commit(catalog, [], [b"gone"])
    newest = commit(catalog, [file(b"more", put_file(store, b"y"), 1)])
    store.sync()
    with catalog.transaction():
        while catalog.prune({newest.ordinal}, 500, spare_deleted=True):
            pass
    ordinal = catalog.next_ordinal()
    with catalog.transaction():
        catalog.begin(blank(ordinal))
        totals = catalog.change(ordinal, catalog.totals(), [file(b"gone", put_file(store, b"z"), 1)])
        totals = catalog.change(ordinal, totals, [file(b"here", put_file(store, b"z"), 1)])
        if later is not None:
            totals = catalog.change(ordinal, totals, [], [later])
        catalog.save_staged(totals)
    spoil(catalog)
    said: list[str] = []
    opened(tmp_path, store, said)
    again = Catalog(catalog.path, SET)
    assert only in reachable([again], store) and not again.history(b"here")
    assert not any("what it kept" in text for text in said)
