"""Hosts in network namespaces: each with an address of its own, one floating address, a service that says
who it is, and a client that asks it all the time."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from harness import answers, wait_for

from crnode.errors import CrnodeError
from crnode.net.control import call

NAMES = ("a", "b", "c")
FLOATING = "10.77.0.100"
SERVICE = """
import http.server, subprocess
shown = ["ip", "-4", "-o", "address", "show", "dev", "eth0"]
out = subprocess.run(shown, capture_output=True, text=True).stdout
me = "abcde"[int(out.split()[3].split("/")[0].split(".")[3]) - 1]

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(me.encode())

    def log_message(self, *args):
        pass

http.server.HTTPServer(("0.0.0.0", 8080), Answer).serve_forever()
"""
CLIENT = """
import socket, sys, time
out = open(sys.argv[1], "a", buffering=1)
while True:
    begun = time.monotonic()
    try:
        with socket.create_connection(("10.77.0.100", 8080), timeout=0.5) as one:
            one.settimeout(0.5)
            one.sendall(b"GET /more HTTP/1.0\\r\\n\\r\\n")
            data = b""
            while part := one.recv(1000):
                data += part
        answer = data.rpartition(b"\\r\\n\\r\\n")[2].decode() or "-"
    except OSError:
        answer = "-"
    out.write(f"{begun:.3f} {answer}\\n")
    time.sleep(max(0.0, 0.05 - (time.monotonic() - begun)))
"""


def ip(*words: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=20)
    if check and done.returncode:
        raise AssertionError(f"ip {' '.join(words)}: {done.stderr}")
    return done.stdout


class Host:
    """A network namespace with a node in it."""

    def __init__(self, house: House, name: str, number: int) -> None:
        self.house, self.name = house, name
        self.address = f"10.77.0.{number}"
        self.space = f"{house.prefix}-{name}"
        self.data = house.data.get(name, house.place / name)
        self.agent: subprocess.Popen[bytes] | None = None
        self.keeper: subprocess.Popen[bytes] | None = None
        ip("netns", "add", self.space)
        end = f"{house.prefix}{name}"
        ip("link", "add", end, "netns", house.hub, "type", "veth", "peer", "eth0", "netns", self.space)
        ip("-n", house.hub, "link", "set", f"{house.prefix}{name}", "master", "bridge", "up")
        for words in (["link", "set", "lo", "up"], ["address", "add", f"{self.address}/24", "dev", "eth0"]):
            ip("-n", self.space, *words)
        ip("-n", self.space, "link", "set", "eth0", "up")

    def command(self, *words: str) -> list[str]:
        crnode = [sys.executable, "-m", "crnode", *words, "--data", str(self.data)]
        return ["ip", "netns", "exec", self.space, *crnode]

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with open(self.house.place / f"{self.name}.log", "ab") as log:
            return subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def run(self, *words: str) -> str:
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"crnode {' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout

    def asked(self, what: str = "status", **args: Any) -> dict[str, Any]:
        return call(self.data / "keeper.sock", what, args, None, 10.0)

    def phase(self) -> str:
        try:
            return str(self.asked()["phase"])
        except CrnodeError:
            return "away"

    def has_address(self) -> bool:
        return FLOATING in ip("-n", self.space, "-4", "-o", "address", "show", "dev", "eth0")

    def service(self) -> list[int]:
        """The processes of the service."""
        found = []
        for pid in ip("netns", "pids", self.space).split():
            with contextlib.suppress(OSError):
                if "service.py" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(int(pid))
        return found

    def serves(self) -> bool:
        return bool(self.service())

    def plug(self, state: str) -> None:
        ip("-n", self.house.hub, "link", "set", f"{self.house.prefix}{self.name}", state)


Some = TypeVar("Some", bound="House")


class House:
    """Hosts and a client at one bridge."""

    def __init__(self, place: Path, names: Sequence[str] = NAMES) -> None:
        self.place = place
        self.names = tuple(names)
        self.prefix = f"k{os.getpid() % 100000}"
        self.hub = f"{self.prefix}-hub"
        self.client: subprocess.Popen[bytes] | None = None
        self.hosts: dict[str, Host] = {}
        self.data: dict[str, Path] = {}  # of hosts whose data directory is somewhere else
        self.said: list[str] = []  # after `crnode takeover set`
        self.turns: list[str] = []  # who was active, in the order of it
        ip("netns", "add", self.hub)
        ip("-n", self.hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.hub, "link", "set", "bridge", "up")

    def build(
        self, *takeover: str, service: str = SERVICE, prepare: Callable[[], None] = lambda: None
    ) -> None:
        """Nodes of one cluster, a its master, all of them voters. `takeover`: more words of `crnode takeover
        set`; `prepare` is done before that is said."""
        for number, name in enumerate(self.names, 1):
            self.hosts[name] = Host(self, name, number)
        a, *others = self.keepers()
        at = f"{a.address}:7400"
        a.run("init", "--name", "a", "--cluster", "house", "--listen", at, "--advertise", at)
        a.agent = a.start("--role", "master")
        wait_for(lambda: answers(a.data))
        for host in others:
            self.join(a, host)
        prepare()
        (self.place / "service.py").write_text(service)
        voters = [word for name in self.names for word in ("--voter", name)]
        command = f"web={sys.executable} {self.place / 'service.py'}"
        address = ["--address", f"{FLOATING}/24", "--interface", "eth0"]
        self.said = [*voters, *address, "--service", command, *takeover]
        a.run("takeover", "set", *self.said)
        for host in self.hosts.values():
            wait_for(partial(knows, host.data / "cluster.json"))
        outside = Host(self, "client", 9)
        (self.place / "client.py").write_text(CLIENT)
        words = [sys.executable, str(self.place / "client.py"), str(self.place / "answers")]
        self.client = subprocess.Popen(["ip", "netns", "exec", outside.space, *words])
        self.hosts["client"] = outside

    def join(self, master: Host, host: Host, role: str = "replica") -> None:
        """Invite a host at the master, and start its agent."""
        where = f"{host.address}:7400"
        wish = {"name": host.name, "role": role, "ttl_s": 600}
        token = call(master.data / "control.sock", "invite", wish, None, 30)
        host.run("join", token["token"], "--listen", where, "--advertise", where)
        host.agent = host.start("--role", role)

    def keepers(self) -> list[Host]:
        return [self.hosts[name] for name in self.names]

    def active(self) -> Host | None:
        found = [host for host in self.keepers() if host.phase() == "active"]
        assert len(found) <= 1, "two say that they are active"
        return found[0] if found else None

    def settled(self, seconds: float = 25.0) -> Host:
        """Somebody is active, serves under the address, and nobody else does."""

        def one() -> Host | None:
            found = self.active()
            if found is None or not (found.has_address() and found.serves()):
                return None
            return found if self.answers()[-1:] == [found.name] else None

        found: Host = wait_for(one, seconds, 0.1)
        return found

    def answers(self) -> list[str]:
        lines = (self.place / "answers").read_text().splitlines()
        return [line.split()[1] for line in lines if len(line.split()) == 2]

    def check_answers(self) -> None:
        """Answers came from one node at a time, in the order in which they were active."""
        said = [answer for answer in self.answers() if answer != "-"]
        turns = [name for at, name in enumerate(said) if at == 0 or said[at - 1] != name]
        assert turns == self.turns, f"answers came from {turns}, active were {self.turns}"

    def close(self) -> None:
        if self.client is not None:
            self.client.kill()
            self.client.wait()
        for host in self.hosts.values():
            for pid in ip("netns", "pids", host.space, check=False).split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for process in (host.agent, host.keeper):
                if process is not None:
                    process.wait()
            ip("netns", "delete", host.space, check=False)
        ip("netns", "delete", self.hub, check=False)


def check_namespaces() -> None:
    """Skip, and say why, where no network namespace can be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and iproute2")
    probe = f"k{os.getpid() % 100000}-probe"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")
    ip("netns", "delete", probe)


@contextlib.contextmanager
def closing(one: Some) -> Iterator[Some]:
    """What was said is shown when a test fails, and nothing is left."""
    try:
        yield one
    finally:
        one.close()
        for name in one.names:
            log = one.place / f"{name}.log"
            if log.exists():
                print(f"== {name}\n{log.read_text()[-6000:]}")


def inner(host: Host) -> int:
    """The keeper itself: `ip netns exec` becomes what it runs."""
    assert host.keeper is not None
    return host.keeper.pid


def knows(document: Path) -> bool:
    return b'"takeover": {' in document.read_bytes()
