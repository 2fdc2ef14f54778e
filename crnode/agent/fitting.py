"""What of a list one answer holds: another node may have asked, and gets it in one message."""

from __future__ import annotations

import json
from typing import Any

Args = dict[str, Any]

PAGE_BYTES = 600 << 10


def fitting(rows: list[Args], most: int = PAGE_BYTES) -> tuple[list[Args], bool]:
    """The first rows, as many as one answer holds (`most` bytes of JSON); whether that is not all."""
    size = 0
    for number, row in enumerate(rows):
        size += len(json.dumps(row)) + 2
        if size > most and number:
            return rows[:number], True
    return rows, False


__all__ = ["fitting"]
