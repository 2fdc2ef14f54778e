"""What the commands print: JSON for programs, tables for people, plain columns when piped, and errors.

Results go to standard output, errors and progress to standard error. rich is imported only for a terminal.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from crnode.errors import CrnodeError

Row = Sequence[object]

MOMENT_S = 0.5
"""A call that takes longer shows that it is under way."""

_GOOD = frozenset({"up", "self", "in sync", "clean", "good", "ok", "yes"})
_BAD = frozenset({"down", "refused", "full", "bad", "failed", "damaged", "offline", "no", "source missing"})
_FAIR = frozenset({"behind", "copying", "paused", "rolling", "fuzzy", "suspect", "unsure", "incomplete"})


def open_streams() -> None:
    """Make standard output and error fit to print on: there, and able to take any text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller (`>&-`)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def stop_writing() -> None:
    """At the end: what can still be written is; python would complain of the rest when it flushes at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):  # one without a file below it has nothing to complain of
                nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def end_with_reader() -> None:
    """From now on this process ends (141) as soon as nobody reads its standard output any more.

    For output that goes on: it may be long until the next line would find that out, and a shell waits for
    the whole pipeline (`crnode events --follow | head -1`).
    """
    try:
        fd = sys.stdout.fileno()
    except OSError:
        return
    watched = select.poll()
    watched.register(fd, 0)  # POLLERR is told without being asked for

    def wait() -> None:
        if any(what & select.POLLERR for _, what in watched.poll()):
            os._exit(141)  # the main thread waits for the agent; there is nothing to put in order

    threading.Thread(target=wait, daemon=True).start()


def print_json(body: object) -> None:
    """One JSON document on standard output, indented, for people's eyes and programs alike."""
    print(_json(body, sys.stdout, indent=2))


def print_json_line(body: object) -> None:
    """One JSON document on one line, at once: for output that goes on."""
    print(_json(body, sys.stdout), flush=True)


def _json(body: object, stream: TextIO, indent: int | None = None) -> str:
    text = json.dumps(body, indent=indent, ensure_ascii=False, default=str)
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:  # a file name that is no UTF-8, or another locale: JSON has escapes for it
        return json.dumps(body, indent=indent, default=str)
    return text


def print_error(error: CrnodeError, as_json: bool) -> None:
    """What happened, why and what to do, on standard error."""
    if as_json:
        print(_json({"error": error.as_dict()}, sys.stderr), file=sys.stderr)
        return
    text = printable(str(error))
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        line = Text("crnode: ", style="bold red").append(text, style="default")
        Console(stderr=True, highlight=False).print(line, soft_wrap=True)
    else:
        print(f"crnode: {text}", file=sys.stderr)


def ended(text: str) -> str:
    """`text` as a sentence: what was said by others may have its full stop already."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def print_warning(text: str) -> None:
    """A sentence that does not stop anything, on standard error."""
    print(f"warning: {printable(text)}", file=sys.stderr)


def printable(text: str) -> str:
    """`text` on one line, with escapes for what cannot be seen: 'a\\nb', '\\x1b[31m', '\\xff'.

    Names of files and nodes come from elsewhere: none may steer a terminal, or look like a line of ours.
    """
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as os.fsdecode gives it
        code -= 0xDC00
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


class _Lines(str):
    """Text whose line breaks are ours: everything else that is shown is one line."""

    __slots__ = ()


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
    """Print texts and tables in order; a text is one line, however many it has."""
    things = tuple(_line(thing) for thing in things)
    if not sys.stdout.isatty():
        for thing in things:
            print(thing)
        return
    from rich.console import Console

    console = Console(highlight=False)
    for thing in things:
        console.print(thing, markup=False)


def _line(thing: Any) -> Any:
    return printable(thing) if isinstance(thing, str) and not isinstance(thing, _Lines) else thing


def _cell(value: object) -> str:
    return "-" if value is None else printable(str(value))


def _style(cell: str) -> str:
    if cell in _GOOD:
        return "green"
    if cell in _BAD:
        return "bold red"
    return "yellow" if cell in _FAIR else ""


def _plain(columns: Sequence[str], cells: Sequence[Sequence[str]], empty: str) -> str:
    if not cells:
        return _Lines(empty)
    lines = [[column.upper() for column in columns], *cells]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    return _Lines(
        "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )
    )


@contextlib.contextmanager
def progress(label: str, as_json: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function to report progress to: a moving line on a terminal, once it takes longer than a moment;
    nothing when piped or with --json.
    """
    if as_json or not sys.stderr.isatty():
        yield lambda body: None
        return
    waiting = _Waiting(printable(label))
    try:
        yield waiting.report
    finally:
        waiting.end()


class _Waiting:
    """A moving line on standard error that appears after MOMENT_S."""

    def __init__(self, label: str) -> None:
        self._label = self._text = label
        self._status: Any = None
        self._lock = threading.Lock()
        self._ended = False
        self._timer = threading.Timer(MOMENT_S, self._appear)
        self._timer.daemon = True
        self._timer.start()

    def _appear(self) -> None:
        from rich.console import Console
        from rich.text import Text

        with self._lock:
            if not self._ended:
                self._status = Console(stderr=True).status(Text(self._text))
                self._status.start()

    def report(self, body: dict[str, Any]) -> None:
        """Say how far it is."""
        from rich.text import Text

        with self._lock:
            self._text = f"{self._label}  {_progress_text(body)}"
            if self._status is not None:
                self._status.update(Text(self._text))

    def end(self) -> None:
        """Take the line away."""
        self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._status is not None:
                self._status.stop()


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
