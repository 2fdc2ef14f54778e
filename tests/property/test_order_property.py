"""The order of images is the one that its definition gives, whatever clocks and sequences say."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from crnode.store.order import in_order
from crnode.store.reader import NO_IMAGE, Image


def slowly(held: Sequence[Image], logged: Sequence[Image]) -> list[Image]:
    """One by one, each behind the last that it follows on."""
    out = list(held)
    known = {image.id for image in held}
    alone = (image for image in logged if image.id not in known)
    for image in sorted(alone, key=lambda one: (one.epoch, one.at_ns)):
        at = 0
        for number, other in enumerate(out, 1):
            if (other.incarnation, other.epoch) == (image.incarnation, image.epoch):
                if other.sequence > image.sequence:
                    break
                at = number
            elif (
                other.epoch < image.epoch
                or other.id == image.parent
                or (
                    other.at_ns < image.at_ns and (other.received_ns < image.received_ns or not other.ordinal)
                )
            ):
                at = number
        out.insert(at, image)
    return out


def image(number: int, line: int, epoch: int, sequence: int, at: int, received: int, parent: int) -> Image:
    return Image(
        0, number.to_bytes(32, "big"), parent.to_bytes(32, "big"), bytes([line]) * 16, epoch, sequence, at,
        received, NO_IMAGE, 0, 0, 0, 1, 0, None, None, 0, None, None,
    )  # fmt: skip


few = st.integers(0, 5)
row = st.tuples(st.integers(0, 2), st.integers(0, 2), few, few, few, st.integers(0, 20))
rows = st.lists(row, max_size=20)


@settings(max_examples=300, deadline=None)
@given(rows, rows, st.integers(0, 3))
def test_it_is_that_of_its_definition(
    first: list[tuple[int, ...]], second: list[tuple[int, ...]], both: int
) -> None:
    held = [image(n, *row)._replace(ordinal=n) for n, row in enumerate(first, 1)]
    logged = [image(n, *row) for n, row in enumerate(second, len(held) + 1)]
    logged += [one._replace(ordinal=0) for one in held[:both]]
    assert in_order(held, logged) == slowly(held, logged)


def test_it_is_that_of_its_definition_for_many() -> None:
    source = random.Random(5)
    for size in (50, 200):
        made = [
            image(
                n, source.randrange(4), source.randrange(3), source.randrange(100), source.randrange(1000),
                source.randrange(1000), source.randrange(2 * size),
            )
            for n in range(1, 2 * size)
        ]  # fmt: skip
        held = [one._replace(ordinal=n) for n, one in enumerate(made[:size], 1)]
        assert in_order(held, made[size:]) == slowly(held, made[size:])


def test_a_log_of_many_lines_holds_nobody_up() -> None:
    lines = [image(n, n % 3, 0, n, n, n, 0) for n in range(1, 20_001)]
    held = [one._replace(ordinal=n) for n, one in enumerate(lines[::2], 1)]
    begun = time.monotonic()
    assert in_order([], lines[::-1]) == lines
    together = list(lines)
    together[::2] = held
    assert in_order(held, lines[::-1]) == together
    assert time.monotonic() - begun < 10  # a minute for each, one by one
