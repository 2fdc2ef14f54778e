"""Which version a person means, and what several nodes say together."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_samples import SET

from crnode.agent.looking import _merged
from crnode.agent.restore import Chosen, Restore
from crnode.errors import CrnodeError, ExitCode

SPEC: Any = SimpleNamespace(name="docs", source="box1", targets={"box2": None, "box3": None}, uuid=SET.hex())


def image(number: int, sequence: int, holder: str = "box2") -> Chosen:
    return Chosen(bytes([number]) * 32, sequence, b"", 1, 1, holder)


def chosen(wanted: object, *found: Chosen) -> Chosen:
    agent: Any = SimpleNamespace(
        node=SimpleNamespace(name="box1"),
        data=Path("/nowhere"),
        document=SimpleNamespace(keepers=lambda spec: tuple(spec.targets)),
    )
    restore = Restore(agent)

    async def images(spec: object, name: str, silent: object = None) -> list[Chosen]:
        return [one for one in found if one.holder == name]

    restore.images = images  # type: ignore[method-assign]
    return asyncio.run(restore.choose(SPEC, wanted))


def test_an_empty_text_is_no_version() -> None:
    """`--version "$V"` with V unset."""
    for text in ("", " "):
        with pytest.raises(CrnodeError) as error:
            chosen(text, image(1, 1), image(2, 2))
        assert error.value.exit_code == ExitCode.USAGE


def test_the_newest_is_what_came_last_whatever_its_number() -> None:
    old, new = [image(n, n) for n in (48, 49, 50)], [image(100 + n, n) for n in (1, 2, 48)]
    assert chosen(None, *old, *new[:2]).image == new[1].image
    assert chosen("48", *old, *new).image == new[2].image
    assert chosen(old[0].image.hex(), *old, *new).image == old[0].image


def test_of_two_with_one_number_that_of_the_living_line_is_meant() -> None:
    """Where a server died, the other one is what nobody had; it has a name, and an id."""
    old = [image(1, 10), image(2, 11)._replace(name="diverged 1")]
    new = [image(1, 10, "box1"), image(3, 11, "box1")]
    for held in ([*old, *new], [*new, *old]):
        assert chosen("11", *held).image == new[1].image
        assert chosen("diverged 1", *held).image == old[1].image


def test_a_node_that_lags_does_not_say_what_is_newest() -> None:
    lagging = [image(n, n, "box2") for n in (48, 49)]
    current = [image(48, 48, "box3"), image(49, 49, "box3"), image(101, 1, "box3")]
    assert chosen(None, *lagging, *current).image == current[-1].image
    assert chosen(None, *lagging).image == lagging[-1].image


def test_what_is_there_now_is_said_by_those_who_have_the_newest() -> None:
    row = {"path": "f", "kind": "file", "size": 1, "first": 1, "first_ns": 1, "last": 5, "last_ns": 5}
    lagging = {"newest_ns": 5, "found": [{**row, "now": True}]}
    current = {"newest_ns": 9, "found": [{**row, "now": False}]}
    together = _merged({"box2": lagging, "box3": current})["f"]
    assert together == {**row, "now": False, "nodes": ["box2", "box3"]}
    assert _merged({"box2": lagging})["f"]["now"]
