"""The index: it says where things are, from any thread, and keeps nothing that the packs do not say."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import lmdb
import pytest

from crnode.store.index import VALUE, Index, unpack
from crnode.store.packs import Location, StoreFailed


def _where(n: int) -> Location:
    return Location(n % 7 + 1, n * 100, n + 1, n + 2, n % 2, 0, 3)


def _id(n: int) -> bytes:
    return n.to_bytes(4, "big") * 8


def test_pending_and_committed_are_one(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.put(_id(1), _where(1))
    assert index.get(_id(1)) == _where(1)
    assert index.count() == 0
    index.commit({1: 500})
    assert not index.pending
    index.put(_id(2), _where(2))
    assert index.get(_id(1)) == _where(1)
    assert index.missing([_id(1), _id(2), _id(3)]) == [_id(3)]
    assert index.positions() == {1: 500}
    index.close()
    again = Index(tmp_path)
    assert again.get(_id(1)) == _where(1)
    assert again.get(_id(2)) is None
    again.close()


def test_commit_removes_and_a_later_put_wins(tmp_path: Path) -> None:
    index = Index(tmp_path)
    for n in range(10):
        index.put(_id(n), _where(n))
    index.commit({1: 10, 2: 20})
    index.put(_id(3), _where(30))
    index.commit({}, removed=[_id(3), _id(4)], gone=[2])
    assert index.get(_id(3)) == _where(30)
    assert index.get(_id(4)) is None
    assert index.positions() == {1: 10}
    index.put(_id(5), _where(50))
    index.remove([_id(5), _id(6), _id(99)])
    assert index.get(_id(5)) is None
    assert index.get(_id(6)) is None
    assert index.get(_id(7)) == _where(7)
    index.close()


def test_pages_are_everything_in_order(tmp_path: Path) -> None:
    index = Index(tmp_path)
    for n in range(1000):
        index.put(_id(n), _where(n))
    index.commit({})
    met: list[tuple[bytes, Location]] = []
    after = None
    while page := index.page(after, 37):
        met += [(k, unpack(v)) for k, v in page]
        after = page[-1][0]
    assert met == [(_id(n), _where(n)) for n in range(1000)]
    assert met == list(index.items())
    assert index.walk() == 1000
    index.remove([_id(5)])
    assert index.page(_id(4), 1) == [(_id(6), VALUE.pack(*_where(6)))]
    assert index.page(_id(5), 1)[0][0] == _id(6)
    assert index.page(_id(999), 10) == []
    index.close()


def test_a_read_only_index_sees_commits_of_another(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.put(_id(1), _where(1))
    index.commit({})
    reader = Index.__new__(Index)
    with pytest.raises(lmdb.Error):
        Index(tmp_path / "none", readonly=True)
    del reader
    index.close()
    reader = Index(tmp_path, readonly=True)
    assert reader.get(_id(1)) == _where(1)
    with pytest.raises(lmdb.Error):
        reader.commit({1: 1})
    reader.close()


def test_nothing_is_missed_while_it_is_committed(tmp_path: Path) -> None:
    """An id that was put is held at every moment, whichever of `pending` and file has it."""
    index = Index(tmp_path)
    wrong: list[bytes] = []
    known = [0]
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            upto = known[0]
            ids = [_id(n) for n in range(max(0, upto - 300), upto)]
            wrong.extend(index.missing(ids))
            wrong.extend(i for i in ids[-20:] if index.get(i) is None)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for n in range(4000):
            index.put(_id(n), _where(n))
            known[0] = n + 1
            if n % 40 == 0:
                index.commit({})
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    index.close()


def test_who_asks_too_late_or_for_nothing_says_nothing_of_the_file(tmp_path: Path) -> None:
    told: list[Exception] = []
    index = Index(tmp_path / "index", on_damage=told.append)
    for name in (b"", bytes(32)):
        with contextlib.suppress(StoreFailed):
            index.get(name)
    index.close()
    with pytest.raises(StoreFailed):
        index.get(bytes(32))
    assert not told
