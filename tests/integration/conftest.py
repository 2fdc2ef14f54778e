"""A cluster for a test, killed and shown when the test fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Cluster


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """An empty cluster under the test's directory."""
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.close()
        print(made.logs())
