"""What the commands print: JSON for programs, tables for people, plain columns when piped, and errors.

Results go to standard output, errors and progress to standard error. rich is imported only for a terminal.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from crnode.errors import CrnodeError

Row = Sequence[object]

_GOOD = frozenset({"up", "self", "in sync", "clean", "good", "ok", "yes"})
_BAD = frozenset({"down", "refused", "full", "bad", "failed", "damaged", "offline", "no"})
_FAIR = frozenset({"behind", "copying", "paused", "rolling", "fuzzy", "suspect", "unsure"})


def print_json(body: object) -> None:
    """One JSON document on standard output, indented, for people's eyes and programs alike."""
    print(json.dumps(body, indent=2, ensure_ascii=False, default=str))


def print_json_line(body: object) -> None:
    """One JSON document on one line, at once: for output that goes on."""
    print(json.dumps(body, ensure_ascii=False, default=str), flush=True)


def print_error(error: CrnodeError, as_json: bool) -> None:
    """What happened, why and what to do, on standard error."""
    if as_json:
        print(json.dumps({"error": error.as_dict()}, ensure_ascii=False), file=sys.stderr)
        return
    text = printable(str(error))
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        line = Text("crnode: ", style="bold red").append(text, style="default")
        Console(stderr=True, highlight=False).print(line, soft_wrap=True)
    else:
        print(f"crnode: {text}", file=sys.stderr)


def print_warning(text: str) -> None:
    """A sentence that does not stop anything, on standard error."""
    print(f"warning: {printable(text)}", file=sys.stderr)


def printable(text: str) -> str:
    """`text` without control characters: names of files and nodes come from elsewhere and must not steer a
    terminal.
    """
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def table(title: str, columns: Sequence[str], rows: Sequence[Row], empty: str = "") -> Any:
    """A table: something for rich on a terminal, a plain text else; give it to :func:`show`."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        return _plain(columns, cells, empty)
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not cells:
        return Text(empty, style="dim")
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for line in cells:
        grid.add_row(*(Text(cell, style=_style(cell)) for cell in line))
    return grid


def show(*things: Any) -> None:
    """Print texts and tables in order."""
    if not sys.stdout.isatty():
        for thing in things:
            print(thing)
        return
    from rich.console import Console

    console = Console(highlight=False)
    for thing in things:
        console.print(thing, markup=False)


def _cell(value: object) -> str:
    return "-" if value is None else printable(str(value)).replace("\n", " ")


def _style(cell: str) -> str:
    if cell in _GOOD:
        return "green"
    if cell in _BAD:
        return "bold red"
    return "yellow" if cell in _FAIR else ""


def _plain(columns: Sequence[str], cells: Sequence[Sequence[str]], empty: str) -> str:
    if not cells:
        return empty
    lines = [[column.upper() for column in columns], *cells]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


@contextlib.contextmanager
def progress(label: str, as_json: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function to report progress to: a moving line on a terminal, nothing when piped or with --json."""
    if as_json or not sys.stderr.isatty():
        yield lambda body: None
        return
    from rich.console import Console

    with Console(stderr=True).status(label) as line:
        yield lambda body: line.update(f"{label}  {_progress_text(body)}")


def _progress_text(body: dict[str, Any]) -> str:
    if "text" in body:
        return printable(str(body["text"]))
    parts = []
    for key, value in body.items():
        if isinstance(value, str | int | float):
            parts.append(size(value) if key.endswith("bytes") else f"{key} {printable(str(value))}")
    return ", ".join(parts)


def size(number: object) -> str:
    """Bytes as a person reads them: '1.4 GiB'."""
    if not isinstance(number, int | float):
        return "-"
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"  # pragma: no cover - the loop always returns


def duration(seconds: object) -> str:
    """A span as a person reads it: '0.4 s', '12 min', '3 h', '5 d'."""
    if not isinstance(seconds, int | float):
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def moment(time_ns: object) -> str:
    """Wall clock nanoseconds as local date and time, to the second."""
    if not isinstance(time_ns, int):
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // 1_000_000_000))


def number(value: object) -> str:
    """A count with thousands set apart."""
    return f"{value:,}" if isinstance(value, int) else "-"
