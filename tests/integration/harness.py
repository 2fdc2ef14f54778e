"""Real agents for integration tests: processes of their own, on loopback, with real TLS and real files."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spawner import SPAWNER, Process

from crnode.errors import CrnodeError
from crnode.net.control import call

START_SECONDS = 20.0


PORTS = 1000
"""of each process of the tests, at most 20 of them; from 10,000 on"""


def _ports() -> Iterator[int]:
    """Below those that the system gives to connections (ip_local_port_range, ip(7)): of these a node that is
    started again would find its own taken now and then. Each with the one above it, for the keeper."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 20
    start = random.randrange(0, PORTS, 2)
    for step in itertools.count(start, 2):
        yield 10_000 + worker * PORTS + step % PORTS


_PORTS = _ports()


def free_port() -> int:
    """A loopback port that nobody uses right now, nor the one above it."""
    for port in itertools.islice(_PORTS, PORTS):
        with socket.socket() as probe, socket.socket() as above:
            try:
                probe.bind(("127.0.0.1", port))
                above.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def crnode(*args: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    with tempfile.TemporaryDirectory() as made:
        out, err = Path(made, "out"), Path(made, "err")
        process = SPAWNER.start(args, out, err)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        done = subprocess.CompletedProcess(process.args, code, out.read_text(), err.read_text())
    if check and done.returncode != 0:
        raise AssertionError(
            f"crnode {' '.join(args)} ended with {done.returncode}: {done.stderr}{done.stdout}"
        )
    return done


def wait_for(what: Callable[[], Any], seconds: float = 20.0, step: float = 0.02) -> Any:
    """Poll until `what` gives something true; AssertionError with its last answer when it does not."""
    deadline = time.monotonic() + seconds
    while True:
        answer = what()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {seconds} s; last answer: {answer!r}")
        time.sleep(step)


def answers(data: Path) -> bool:
    """Whether the agent of a data directory can be called: its socket is there a moment before that."""
    try:
        call(data / "control.sock", "node.list", {}, None, 10)
    except CrnodeError:
        return False
    return True


class Node:
    """One node: its data directory and, while it runs, its agent."""

    def __init__(self, name: str, role: str, data: Path, port: int) -> None:
        self.name = name
        self.role = role
        self.data = data
        self.port = port
        self.process: Process | subprocess.Popen[bytes] | None = None
        self.log = data.parent / f"{name}.log"

    def start(self) -> None:
        """Start the agent and wait until it answers."""
        self.process = SPAWNER.start(["--role", self.role, "--data", str(self.data)], self.log, self.log)
        wait_for(self._answers, START_SECONDS)

    def start_with(self, command: list[str]) -> None:
        """The same with a program of the test's own that becomes the agent."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--role", self.role, "--data", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers, START_SECONDS)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(
                f"{self.name} ended with {self.process.returncode}: {self.log.read_text()[-2000:]}"
            )
        try:
            self.call("node.list")
        except CrnodeError:
            return False
        return True

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not stop: {self.log.read_text()[-2000:]}") from None

    def call(self, name: str, args: dict[str, Any] | None = None, timeout: float = 60.0) -> dict[str, Any]:
        """A call over the control socket."""
        return call(self.data / "control.sock", name, args or {}, None, timeout)

    def events(self) -> list[str]:
        return [e["text"] for e in self.call("events", {"limit": 1000})["events"]]


class Cluster:
    """A cluster under one directory; the first node is its master."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes: dict[str, Node] = {}

    @property
    def master(self) -> Node:
        return next(iter(self.nodes.values()))

    def init(self, name: str = "shop1") -> Node:
        port = free_port()
        data = self.directory / name
        crnode(
            "init",
            "--name",
            name,
            "--cluster",
            "shop",
            "--listen",
            f"127.0.0.1:{port}",
            "--advertise",
            f"127.0.0.1:{port}",
            "--data",
            str(data),
        )
        node = self.nodes[name] = Node(name, "master", data, port)
        node.start()
        return node

    def join(
        self, name: str, role: str = "replica", data: Path | None = None, quota: str | None = None
    ) -> Node:
        token = self.master.call("invite", {"name": name, "role": role, "ttl_s": 600})["token"]
        port = free_port()
        data = data or self.directory / name
        crnode(
            "join",
            token,
            "--listen",
            f"127.0.0.1:{port}",
            "--advertise",
            f"127.0.0.1:{port}",
            "--data",
            str(data),
            *(("--quota", quota) if quota else ()),
        )
        node = self.nodes[name] = Node(name, role, data, port)
        node.start()
        return node

    def add_set(self, name: str, source: str, path: Path, to: list[str], **more: Any) -> str:
        """`set.add`; returns the uuid."""
        args = {
            "name": name,
            "source": source,
            "paths": [str(path)],
            "to": to,
            "privileged": os.geteuid() == 0,
            **more,
        }
        return str(self.master.call("set.add", args)["uuid"])

    def sync(self, name: str, node: str | None = None, timeout: float = 60.0) -> dict[str, Any]:
        at = self.nodes[node] if node else self.master
        return at.call("sync", {"set": name, "timeout_s": timeout}, timeout + 30)

    def close(self) -> None:
        for node in self.nodes.values():
            if node.process is not None and node.process.poll() is None:
                node.process.kill()
                node.process.wait()

    def logs(self) -> str:
        return "\n".join(
            f"== {n.name}\n{n.log.read_text()[-4000:]}" for n in self.nodes.values() if n.log.exists()
        )


def rsync_difference(source: Path, target: Path) -> str:
    """What rsync would change to make `target` equal `source`: '' when they are alike in every respect."""
    done = subprocess.run(
        ["rsync", "-aAXHn", "--checksum", "--delete", "--itemize-changes", f"{source}/", f"{target}/"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"rsync failed: {done.stderr}")
    return done.stdout


__all__ = ["Cluster", "Node", "answers", "crnode", "free_port", "json", "rsync_difference", "wait_for"]
