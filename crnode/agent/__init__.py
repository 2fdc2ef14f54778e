"""The agent: one process a node. Builds everything, runs it in one task group, and stops it in order."""

from crnode.agent.node import run

__all__ = ["run"]
