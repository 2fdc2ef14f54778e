"""A push that met bytes which are not those of its image, under an unchanged fingerprint: the source's disk
has damaged them, so they come from another holder (rule 58)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from crnode.capture.commit import SourceCommit
from crnode.capture.rot import ranges
from crnode.capture.source import SourceSet

CERTAIN_SECONDS = 30.0  # beyond the wait between two looks
HOLDER_SECONDS = 10.0  # between questions to holders that do not answer


async def mend(
    source: SourceSet,
    commit: SourceCommit,
    path: bytes,
    target: str,
    heal: Callable[[str, set[bytes]], Awaitable[set[bytes]]],
    journal: Callable[[str, str], None],
) -> bool:
    """True when the push can be tried again at once: the good bytes of `path` are in our store now, or the
    path was left out because no node has them. False when the file was changed and a newer image follows."""
    stretches = await source.examine(path)
    if not stretches:
        source.look_at(path)  # no time of it has to have moved: capture does not come upon it by itself
        return False
    wanted = {one.id for one in stretches if not source.store.has(one.id)}
    if wanted <= await heal(source.spec.uuid, wanted):
        journal(
            "healed",
            f"Set {source.spec.name}: {ranges(stretches)} of {os.fsdecode(path)!r} are not what was captured,"
            " though the file's times are; the bytes from before were fetched from another node.",
        )
        return True
    source.look_at(path)
    try:
        async with asyncio.timeout(source.guard.suspicions.wait_ns / 1e9 + CERTAIN_SECONDS):
            if not await source.certain(path):
                return False
    except TimeoutError:  # capture stands still, for a reason that the status says
        return False
    before = source.newest
    await source.publish(commit.leave_out, path, target)
    if source.newest is before:  # another target acknowledged the good bytes: they come when it is back
        await asyncio.sleep(HOLDER_SECONDS)
        return True
    journal(
        "damage",
        f"Set {source.spec.name}: {os.fsdecode(path)!r} is damaged on this disk and no other node has the"
        " good bytes, so it is taken as it is.",
    )
    source.guard.suspicions.clear(path)
    source.look_at(path)
    return True
