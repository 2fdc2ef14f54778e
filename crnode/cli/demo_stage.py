"""What `crnode demo` stands on: agents as child processes, folders compared by digest, three ways to show it.

Folders are compared with nothing but `os` and `hashlib`, so that the demo's verdict does not rest on the code
that it judges.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from crnode.cli.output import duration, print_json_line, printable, size
from crnode.errors import CrnodeError
from crnode.net.control import call

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

START_S = 20.0
"""An agent that does not answer after this long has failed, in seconds."""
COMMAND_S = 60.0
"""Longest run of one command, in seconds."""
STOP_S = 5.0
"""An agent that was asked to stop and runs on is killed after this long, in seconds."""
POLL_S = 0.25
"""How often the status is asked for, in seconds."""
SAY_S = 2.0
"""Without a terminal the status is told this often while bytes flow, and at once when a state changes."""


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody uses, below the range from which the system takes outgoing ones."""
    held: list[socket.socket] = []
    try:
        for port in random.sample(range(20_000, 32_000), 500):
            probe = socket.socket()
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                probe.close()
                continue
            held.append(probe)
            if len(held) == count:
                return [int(item.getsockname()[1]) for item in held]
    finally:
        for item in held:
            item.close()
    raise CrnodeError("The demo found no free ports on 127.0.0.1.", "500 were tried.", "Try again.")


# -- folders


class Item(NamedTuple):
    """One path of a folder: all that must be equal at both ends.

    Owners are left out: without --privileged files of root are given to nobody at the target, and without
    root to the user who runs the agent.
    """

    kind: str
    mode: int
    mtime_ns: int
    what: str  # SHA-256 of a file, target of a link


Folder = dict[str, Item]


def read_folder(top: Path) -> Folder:
    """Everything below `top`, itself included as '.'."""
    found: Folder = {}
    waiting = [top]
    while waiting:
        path = waiting.pop()
        info = path.lstat()
        name = str(path.relative_to(top))
        mode = stat.S_IMODE(info.st_mode) & 0o1777  # set-id bits are taken away on purpose
        if stat.S_ISDIR(info.st_mode):
            found[name] = Item("folder", mode, info.st_mtime_ns, "")
            waiting.extend(path.iterdir())
        elif stat.S_ISLNK(info.st_mode):
            found[name] = Item("link", 0, info.st_mtime_ns, os.readlink(path))
        else:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[name] = Item("file", mode, info.st_mtime_ns, digest)
    return found


def difference(one: Mapping[str, Item], other: Mapping[str, Item]) -> str:
    """'' when both are equal; else the first path that differs, and how."""
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            return f"{name}: {one.get(name, 'nothing')} against {other.get(name, 'nothing')}"
    return ""


def fingerprint(folder: Mapping[str, Item]) -> str:
    """One short digest of a whole folder, for people to compare by eye."""
    text = json.dumps(sorted((name, *item) for name, item in folder.items()))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


# -- nodes


def _environment() -> dict[str, str]:
    """For child processes: the same package as ours, and no data directory but the one that is named."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CRNODE_")}
    home = str(Path(__file__).resolve().parents[2])
    paths = [home, *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def crnode(*words: str, node: Path) -> dict[str, Any]:
    """Run one command of the real command line, with --json, on the node whose directory is `node`."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "crnode", *words, "--data", str(node), "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        env=_environment(),
    )
    if done.returncode != 0:
        try:
            raise CrnodeError.from_dict(json.loads(done.stderr.splitlines()[-1])["error"])
        except (ValueError, LookupError, TypeError):
            raise CrnodeError(
                f"'crnode {' '.join(words)}' failed.", f"It ended with code {done.returncode}: {done.stderr}"
            ) from None
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


class Machine:
    """One node of the demo: its directory and its agent, a process of its own."""

    def __init__(self, name: str, role: str, top: Path, port: int) -> None:
        self.name = name
        self.role = role
        self.data = top / name
        self.log = top / f"{name}.log"
        self.address = f"127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the agent and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "crnode", "--role", self.role, "--data", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                process_group=0,  # Ctrl-C is for the demo, which stops its agents in order
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.ask("node.list")
                return
            except CrnodeError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise CrnodeError(
                        f"The agent of {self.name} did not start.", self.said() or str(error)
                    ) from None
            time.sleep(0.05)

    def ask(self, name: str) -> dict[str, Any]:
        """A control call to the agent."""
        return call(self.data / "control.sock", name, timeout_s=10)

    def said(self) -> str:
        """The end of what the agent printed."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-1500:].strip()
        return ""

    def kill(self) -> None:
        """As a power cut: no chance to do anything more."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """In order if it obeys, else not."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()


# -- what the audience sees


class Show:
    """Plain lines: a step, what happens in it, what was checked. The two others build on it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.steps = 0
        self.checks = 0
        self.failed: list[str] = []
        self._told: list[tuple[str, str]] = []
        self._told_bytes = 0
        self._told_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def step(self, title: str, text: str) -> None:
        """A new chapter."""
        with self.lock:
            self.steps += 1
            self._step(self.steps, title, text)

    def say(self, text: str) -> None:
        """A sentence."""
        with self.lock:
            self._say(text)

    def command(self, node: str, words: str) -> None:
        """A command that is run now, as a person would type it."""
        with self.lock:
            self._command(node, words)

    def check(self, text: str, ok: bool, detail: str = "") -> bool:
        """Something that must hold. The demo goes on, but it ends with exit code 1 when one does not."""
        with self.lock:
            self.checks += 1
            if not ok:
                self.failed.append(text)
            self._check(text, ok, "" if ok else detail)
        return ok

    def status(self, answer: dict[str, Any]) -> None:
        """The answer of the control call `status`, several times a second."""
        targets: list[dict[str, Any]] = [row for item in answer.get("sets", []) for row in item["targets"]]
        with self.lock:
            self._status(answer, targets)

    def done(self, ok: bool, text: str, seconds: float) -> None:
        """The end."""
        with self.lock:
            self._done(ok, text, seconds)

    def _step(self, number: int, title: str, text: str) -> None:
        print(f"\n{number}. {title}\n   {text}", flush=True)

    def _say(self, text: str) -> None:
        print(f"   {text}", flush=True)

    def _command(self, node: str, words: str) -> None:
        print(f"   {node}$ crnode {words}", flush=True)

    def _check(self, text: str, ok: bool, detail: str) -> None:
        print(f"   {'ok    ' if ok else 'FAILED'} {text}", flush=True)
        if detail:
            print(f"          {printable(detail)}", flush=True)

    def _status(self, answer: dict[str, Any], targets: list[dict[str, Any]]) -> None:
        if not self._news(targets):
            return
        parts = [
            f"{row['node']} {row['state']}, lag {duration(row.get('lag_s'))}, "
            f"{size(row.get('sent_bytes'))} sent"
            for row in targets
        ]
        print(f"   .. {'; '.join(parts)}", flush=True)

    def _news(self, targets: list[dict[str, Any]]) -> bool:
        """Whether this status is worth a line: a state changed, or bytes flowed for a while."""
        states = [(str(row["node"]), str(row["state"])) for row in targets]
        sent = sum(int(row.get("sent_bytes") or 0) for row in targets)
        now = time.monotonic()
        if states == self._told and (sent == self._told_bytes or now - self._told_at < SAY_S):
            return False
        self._told, self._told_bytes, self._told_at = states, sent, now
        return bool(targets)

    def _done(self, ok: bool, text: str, seconds: float) -> None:
        print(f"\n{text}", flush=True)


class JsonShow(Show):
    """One JSON object a line, for programs."""

    def _step(self, number: int, title: str, text: str) -> None:
        print_json_line({"event": "step", "number": number, "title": title, "text": text})

    def _say(self, text: str) -> None:
        print_json_line({"event": "say", "text": text})

    def _command(self, node: str, words: str) -> None:
        print_json_line({"event": "command", "node": node, "command": f"crnode {words}"})

    def _check(self, text: str, ok: bool, detail: str) -> None:
        print_json_line({"event": "check", "ok": ok, "text": text, "detail": detail})

    def _status(self, answer: dict[str, Any], targets: list[dict[str, Any]]) -> None:
        if self._news(targets):
            keys = ("node", "mode", "state", "lag_s", "last_lag_s", "sent_bytes", "sequence", "digest")
            rows = [{key: row.get(key) for key in keys} for row in targets]
            print_json_line({"event": "status", "targets": rows})

    def _done(self, ok: bool, text: str, seconds: float) -> None:
        body = {
            "event": "done",
            "ok": ok,
            "checks": self.checks,
            "failed": self.failed,
            "seconds": round(seconds, 1),
        }
        print_json_line({**body, "text": text})


class LiveShow(Show):
    """On a terminal: the story scrolls, and below it a table moves."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live: Live = Live(console=self._console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(printable(text), style=style or None, markup=False)

    def _step(self, number: int, title: str, text: str) -> None:
        self._print(f"\n{number}. {title}", "bold cyan")
        self._print(f"   {text}")

    def _say(self, text: str) -> None:
        self._print(f"   {text}")

    def _command(self, node: str, words: str) -> None:
        self._print(f"   {node}$ crnode {words}", "dim")

    def _check(self, text: str, ok: bool, detail: str) -> None:
        self._print(f"   {'✓' if ok else '✗'} {text}", "green" if ok else "bold red")
        if detail:
            self._print(f"     {detail}", "red")

    def _status(self, answer: dict[str, Any], targets: list[dict[str, Any]]) -> None:
        self._live.update(self._table(answer, targets))

    def _table(self, answer: dict[str, Any], targets: list[dict[str, Any]]) -> Group:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=box.SIMPLE_HEAD, header_style="bold")
        for column in ("copy on", "kind", "state", "lag", "last change took", "sent so far"):
            grid.add_column(column)
        for row in targets:
            good = row["state"] == "in sync"
            last = row.get("last_lag_s")
            grid.add_row(
                str(row["node"]),
                str(row["mode"]),
                Text(str(row["state"]), style="green" if good else "yellow"),
                duration(row.get("lag_s")),
                f"{last * 1000:.0f} ms" if isinstance(last, int | float) else "-",
                size(row.get("sent_bytes")),
            )
        files = sum(int(item.get("files") or 0) for item in answer.get("sets", []))
        total = sum(int(item.get("bytes") or 0) for item in answer.get("sets", []))
        return Group(grid, Text(f"  {files} files and folders, {size(total)}, are protected", style="dim"))

    def _done(self, ok: bool, text: str, seconds: float) -> None:
        self._live.stop()
        self._print(f"\n{text}", "bold green" if ok else "bold red")


class Follower:
    """Asks a machine for its status several times a second, in a thread of its own, and passes it on."""

    def __init__(self, machine: Machine, tell: Callable[[dict[str, Any]], None]) -> None:
        self._machine = machine
        self._tell = tell
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; nothing is told afterwards."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(15)

    def _run(self) -> None:
        while not self._end.wait(POLL_S):
            # OSError: whoever read our output went away; the story itself meets that too, and ends.
            with contextlib.suppress(CrnodeError, OSError):
                answer = self._machine.ask("status")
                if not self._end.is_set():
                    self._tell(answer)
