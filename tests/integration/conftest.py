"""A cluster for a test, killed and shown when the test fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Cluster
from house import check_namespaces, closing
from shop import SHOPS, Shop


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """An empty cluster under the test's directory."""
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.close()
        print(made.logs())


@pytest.fixture
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    """A shop of three nodes; "third": the witness keeps a copy, too; "two": there is no witness; "five":
    three of them."""
    check_namespaces()
    kind = SHOPS[getattr(request, "param", "")]
    with closing(Shop(tmp_path, str(kind.get("names", "abc")))) as one:
        one.open(third=bool(kind.get("third")))
        yield one
