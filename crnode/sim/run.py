"""Many worlds, one after the other or in several processes; the story of one that broke."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from typing import NamedTuple

from crnode.failover.lease import Lease
from crnode.sim.broken import RULES
from crnode.sim.world import Violation, World

PART = 200  # worlds between two signs of life


class Broken(NamedTuple):
    """A world in which a promise was broken."""

    seed: int
    what: str


class Found(NamedTuple):
    """What some worlds came to."""

    worlds: int
    opened: int  # epochs that were opened in them
    events: int
    broken: list[Broken]


def live(seeds: range, rule: str = "") -> Found:
    """Live through these worlds. `rule`: without it, see :data:`crnode.sim.broken.RULES`."""
    core, trait = RULES[rule] if rule else (Lease, "")
    broken: list[Broken] = []
    opened = events = 0
    for seed in seeds:
        world = World(seed, core, trait)
        try:
            world.run()
        except Violation as violation:
            broken.append(Broken(seed, str(violation)))
        opened += len(world.opened)
        events += world.counter
    return Found(len(seeds), opened, events, broken)


def _live(job: tuple[range, str]) -> Found:
    return live(*job)


def live_all(
    first: int, count: int, rule: str = "", jobs: int = 1, progress: Callable[[int], None] = lambda _: None
) -> Found:
    """The worlds of `count` seeds from `first` on, in `jobs` processes; `progress` is told how many are over.
    Stops at the first part in which something broke."""
    parts = [(range(at, min(at + PART, first + count)), rule) for at in range(first, first + count, PART)]
    total = Found(0, 0, 0, [])
    for found in _results(parts, jobs):
        total = Found(
            total.worlds + found.worlds,
            total.opened + found.opened,
            total.events + found.events,
            total.broken + found.broken,
        )
        progress(total.worlds)
        if total.broken:
            break
    return total


def _results(parts: list[tuple[range, str]], jobs: int) -> Iterator[Found]:
    if jobs == 1:
        yield from map(_live, parts)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_live, parts)


def story(seed: int, rule: str = "") -> list[str]:
    """What happens in one world, line by line; the last one says what broke, if anything did."""
    core, trait = RULES[rule] if rule else (Lease, "")
    world = World(seed, core, trait, story=True)
    told = world.told
    assert told is not None
    try:
        world.run()
    except Violation as violation:
        world.say(f"BROKEN: {violation}")
    return told


__all__ = ["Broken", "Found", "live", "live_all", "story"]
