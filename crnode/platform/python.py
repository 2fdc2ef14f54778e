"""How the agent starts children of its own."""

from __future__ import annotations

import sys


def python(*words: str) -> list[str]:
    """The command line of this interpreter with `words`, for code that is installed and nothing else: without
    `-P` the directory in which the agent was started would come first, and a folder called `crnode` in it
    would run with the agent's rights (https://docs.python.org/3/using/cmdline.html#cmdoption-P)."""
    return [sys.executable, "-P", *words]
