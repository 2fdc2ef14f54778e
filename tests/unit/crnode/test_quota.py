"""What one session may stage."""

from __future__ import annotations

from crnode.replicate.quota import SMALL, Staged

MIB = 1 << 20


def test_a_quarter_of_what_was_free_when_it_began() -> None:
    staged = Staged()
    assert staged.take(60 * MIB, 400 * MIB, 0) == ""
    assert staged.take(40 * MIB, 340 * MIB, 0) == ""  # the bound does not shrink with the room it takes
    why = staged.take(1, 300 * MIB, 0)
    assert "100 MiB" in why and "quarter" in why
    assert staged.bytes == 100 * MIB
    staged.over()
    assert staged.take(75 * MIB, 300 * MIB, 0) == ""
    assert staged.take(1, 300 * MIB, 0)


def test_a_small_image_and_a_growing_set_are_granted() -> None:
    staged = Staged()
    assert staged.take(SMALL, 0, 0) == ""
    assert staged.take(1, 0, 0)
    assert staged.take(500 * MIB, 0, 600 * MIB) == ""  # a first copy
    assert staged.take(200 * MIB, 0, 600 * MIB)
