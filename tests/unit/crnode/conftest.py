"""Fixtures of the tests of the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cli_samples import Agent


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    running = Agent(tmp_path)
    monkeypatch.setenv("CRNODE_DATA", str(tmp_path))
    yield running
    running.stop()
