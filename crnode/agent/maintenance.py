"""Collection, scrub and manifests: what a node does when it is idle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from crnode.errors import CrnodeError

if TYPE_CHECKING:
    from crnode.agent.node import Agent


class Maintenance:
    """Being written."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    async def scrub(self, args: dict[str, Any], progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        raise CrnodeError("Not yet.")

    async def collect(self, args: dict[str, Any], progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        raise CrnodeError("Not yet.")
