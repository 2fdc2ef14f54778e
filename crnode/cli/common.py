"""What all commands share: the options, the data directory, the call to the agent."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", help="The node's data directory; else $CRNODE_DATA, else the usual place."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

QUICK_S = 30.0
"""Longest silence of an agent that is asked for what it knows anyway, in seconds."""

_chosen: Path | None = None


def choose_data(data: Path | None) -> None:
    """Remember the --data given before the command (`crnode --data DIR status`)."""
    global _chosen
    _chosen = data


def data_dir(data: Path | None) -> Path:
    """The data directory to use: --data, $CRNODE_DATA, /var/lib/crnode for root, ~/.local/share/crnode
    otherwise.
    """
    if given := data or _chosen:
        return given.expanduser().absolute()
    return usual_data_dir()


def usual_data_dir() -> Path:
    """The data directory where none is named: what a command without --data finds."""
    if named := os.environ.get("CRNODE_DATA"):
        return Path(named).expanduser().absolute()
    return Path("/var/lib/crnode") if os.geteuid() == 0 else Path.home() / ".local/share/crnode"


def ask(
    data: Path | None,
    name: str,
    args: dict[str, Any] | None = None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    timeout_s: float | None = QUICK_S,
) -> dict[str, Any]:
    """Call the agent; CrnodeError when it refuses or none runs."""
    from crnode.net.control import call

    return call(data_dir(data) / "control.sock", name, args, on_progress, timeout_s)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A polite kill or a closed terminal ends what is done meanwhile as Ctrl-C does: in order."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
