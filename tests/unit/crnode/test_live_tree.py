"""Moves of a live tree that no source makes easily."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from store_samples import SET, commit, directory, file, put_file, small_store

from crnode.platform.files import boot_id
from crnode.replicate.live_tree import LiveTree
from crnode.replicate.place import prepare
from crnode.replicate.write import Policy
from crnode.store.catalog import Catalog
from crnode.store.reader import Live
from crproto.entries import SYMLINK, Entry, Extra, entry_from_wire


def test_groups_of_files_and_of_symbolic_links_may_have_one_name(tmp_path: Path) -> None:
    """Inode numbers are handed out again, and a peer may lie."""
    store = small_store(tmp_path / "store")
    catalog = Catalog(tmp_path / "sets" / "one.db", SET)
    link = bytes(9) + b"\7"
    named = put_file(store, b"data")
    files = [file(p, named, 4, extra=Extra(None, (), None, None, link, False).encode()) for p in (b"a", b"b")]
    links = [
        Entry(p, SYMLINK, 0o777, "u", 1, "g", 2, 0, 0, None, 0, Extra(b"there", link=link).encode())
        for p in (b"c", b"d")
    ]
    for entry in files + links:
        entry_from_wire(tuple(entry))  # any target takes them
    image = commit(catalog, [directory(b""), *files, *links])
    with catalog.transaction():
        catalog.set_live(Live(0, image.ordinal, 0, "moving", boot_id()))

    def record(work: Any) -> None:
        with catalog.transaction():
            work()

    place, _ = prepare(tmp_path / "live", SET)
    tree = LiveTree(place, catalog, catalog.reader(), record, store.get, Policy(False, False), archive=False)
    report = tree.move()
    assert report is not None and not report.unapplied
    live = catalog.live()
    assert live is not None and (live.at, live.state) == (image.ordinal, "clean")
    assert sorted(os.listdir(tmp_path / "live")) == ["a", "b", "c", "d"]
