"""Starts crnode processes from one process that has read crnode's modules already.

A start spends most of its time on reading modules (0.6 s of processor time), and the tests start hundreds.
What is started here is a process of its own all the same: its own pid to kill, its files, sockets, exit code.
The demo, the examples and tests of the command line start theirs as a user does.

Run as a program it takes one JSON document a line, `{"argv", "env", "cwd", "out", "err"}`, and answers the
pid; `{"ended": pid}` waits for that process and answers its exit code as `subprocess` gives it.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Process:
    """A process that the spawner started; what `subprocess.Popen` has of the same names."""

    def __init__(self, spawner: Spawner, args: Sequence[str], pid: int) -> None:
        self.args = args
        self.pid = pid
        self.returncode: int | None = None
        self._spawner = spawner
        self._fd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended; `subprocess.TimeoutExpired`."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing happens when it has ended."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._fd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._fd, select.POLLIN)
            if ended.poll(None if timeout is None else timeout * 1000):
                self.returncode = int(self._spawner.ask({"ended": self.pid}))
                os.close(self._fd)
        return self.returncode


class Spawner:
    """The process that starts them; it is started when it is needed first and ends with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def start(self, args: Sequence[str], out: Path, err: Path) -> Process:
        """`crnode ARGS`, with its output appended to the files."""
        asked = {
            "argv": list(args),
            "env": dict(os.environ),
            "cwd": os.getcwd(),
            "out": str(out),
            "err": str(err),
        }
        return Process(self, ["crnode", *args], int(self.ask(asked)))

    def ask(self, what: dict[str, Any]) -> Any:
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                atexit.register(self._process.wait)
                atexit.register(self._process.stdin.close)  # type: ignore[union-attr] # called first
            assert self._process.stdin is not None and self._process.stdout is not None
            print(json.dumps(what), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())


def _serve() -> None:
    """Until standard input ends; in what it started it returns after that process's own end."""
    import crnode.agent
    import crnode.agent.node
    import crnode.cli.app  # noqa: F401 - what an agent reads is there for all

    assert threading.active_count() == 1, "a thread would not be there in what is forked"
    while line := sys.stdin.buffer.raw.readline():  # type: ignore[attr-defined] # nothing is read ahead
        what = json.loads(line)
        if "ended" in what:
            answer = os.waitstatus_to_exitcode(os.waitpid(what["ended"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                _become(what)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _become(what: dict[str, Any]) -> None:
    """Be the process that was asked for, up to its end."""
    import crnode.__main__

    nowhere = os.open(os.devnull, os.O_RDONLY)
    out, err = (os.open(what[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for name in ("out", "err"))
    for fd, place in ((nowhere, 0), (out, 1), (err, 2)):
        os.dup2(fd, place)
        os.close(fd)
    os.environ.clear()
    os.environ.update(what["env"])
    os.chdir(what["cwd"])
    sys.argv = ["crnode", *what["argv"]]
    sys.exit(crnode.__main__.main())


SPAWNER = Spawner()

if __name__ == "__main__":
    _serve()
