"""Data that the micro benchmarks share: the same bytes each time."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "unit" / "crnode"))  # store_samples

MIB = 1 << 20


@pytest.fixture(scope="session")
def noise() -> bytes:
    """16 MiB of random bytes."""
    return random.Random(1).randbytes(16 * MIB)
