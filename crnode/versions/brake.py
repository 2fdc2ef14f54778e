"""The mass-change brake: whether what happened to a set within an hour leaves what is usual for it. Pure.

An emptied folder, a disk that is not mounted, a program that encrypts everything: each looks like work, only
of more files than anybody touches in an hour. Whoever judges knows how many files there were, how many of
them are gone or hold something else now, and the same of earlier hours and days. Names and extensions are no
criterion (rules 82 and 83).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

HOUR_NS = 3600 * 10**9
PERCENT = 50
"""Share of a set's files that trips the brake unless its owner said otherwise; 0: there is no brake."""
LEAST = 20
"""Files that a change has to concern: of five, somebody rewrites three before lunch."""
USUAL = 1.25
"""Times what an earlier version of the set saw: a job that rewrites everything each night is usual."""
STRUCTURE = 0.9
"""A file whose beginning compresses to this part of its size or less has structure; above, it is noise, as
what is compressed or encrypted."""
SCRAMBLED = 0.6
"""Share of the sampled rewritten files that had structure and have none now, from which on half of the usual
percentage is enough."""


class Counts(NamedTuple):
    """What became of the files of an earlier image: `deleted` are gone and under no other name; `rewritten`
    hold something else; `scrambled` is the share of sampled rewritten ones that lost their structure."""

    files: int
    deleted: int
    rewritten: int
    scrambled: float = 0.0

    @property
    def share(self) -> float:
        """Of the files, those that are gone or hold something else: 0 to 1."""
        return (self.deleted + self.rewritten) / self.files if self.files else 0.0


def is_large(found: Counts, percent: int) -> bool:
    """Whether so much changed that the history of the set is worth a look."""
    if percent <= 0 or found.deleted + found.rewritten < LEAST:
        return False
    return found.share >= percent / 100 or _is_scrambled(found, percent)


def _is_scrambled(found: Counts, percent: int) -> bool:
    rewritten = found.rewritten / found.files if found.files else 0.0
    return found.scrambled >= SCRAMBLED and found.rewritten >= LEAST and rewritten >= percent / 200


def is_small(found: Counts, percent: int) -> bool:
    """Whether so little of what was held is left that somebody has gone back: a quarter of what trips it, so
    that what has just tripped it never lets go by itself."""
    return found.deleted + found.rewritten < LEAST // 2 or found.share < percent / 400


def judge(found: Counts, usual: Iterable[Counts], percent: int, span_ns: int = HOUR_NS) -> str:
    """Why the brake trips, as a sentence for people; '' when it does not. `usual`: the same counts between
    versions before; `span_ns`: how long this took, for the sentence."""
    if not is_large(found, percent):
        return ""
    if any(found.share <= USUAL * before.share for before in usual if before.files >= LEAST):
        return ""
    parts = []
    if found.deleted:
        parts.append(f"{found.deleted:,} deleted")
    if found.rewritten:
        parts.append(f"{found.rewritten:,} rewritten")
    hours = -(-span_ns // HOUR_NS)
    within = "an hour" if hours <= 1 else f"{hours} hours" if hours < 48 else f"{hours // 24} days"
    text = f"Of {found.files:,} files {' and '.join(parts)} within {within}."
    if _is_scrambled(found, percent):
        text += " What was readable is noise now, as if it had been encrypted."
    return text
