"""When a changed path is ready: time is an argument, so every case is a literal."""

from __future__ import annotations

from crnode.capture.settle import Change, Settle

MS = 1_000_000


def make() -> Settle:
    return Settle(20 * MS, 1000 * MS)


def test_a_closed_file_is_ready_at_once() -> None:
    settle = make()
    settle.note(b"a", Change.WRITTEN, 0)
    settle.note(b"a", Change.DONE, 1 * MS)
    assert settle.due() == 0
    assert settle.take(1 * MS) == {b"a": False}
    assert settle.due() is None
    assert settle.take(10**12) == {}


def test_an_open_file_is_ready_after_quiet() -> None:
    settle = make()
    settle.note(b"a", Change.WRITTEN, 0)
    settle.note(b"a", Change.WRITTEN, 15 * MS)
    assert settle.due() == 35 * MS
    assert settle.take(34 * MS) == {}
    assert settle.waiting() == 1
    assert settle.take(35 * MS) == {b"a": False}
    assert settle.waiting() == 0


def test_a_file_written_without_pause_is_taken_once_a_second() -> None:
    settle = make()
    taken = []
    for ms in range(0, 3000, 10):
        settle.note(b"hot", Change.WRITTEN, ms * MS)
        if settle.take(ms * MS):
            taken.append(ms)
    assert taken == [1000, 2010]


def test_one_hot_file_does_not_hold_back_others() -> None:
    settle = make()
    settle.note(b"quiet", Change.WRITTEN, 0)
    for ms in range(0, 25, 5):
        settle.note(b"hot", Change.WRITTEN, ms * MS)
    assert settle.take(25 * MS) == {b"quiet": False}


def test_a_tree_stays_a_tree_until_it_is_taken() -> None:
    settle = make()
    settle.note(b"d", Change.TREE, 0)
    settle.note(b"d", Change.DONE, 1)
    settle.note(b"d", Change.WRITTEN, 2)
    assert settle.take(2) == {b"d": True}
    assert settle.take(30 * MS) == {b"d": False}


def test_a_deletion_ends_the_waiting() -> None:
    settle = make()
    settle.note(b"a", Change.WRITTEN, 0)
    settle.note(b"a", Change.DONE, 1)
    assert settle.waiting() == 0
    assert settle.due() == 0
