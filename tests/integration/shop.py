"""A shop in network namespaces: hosts, a set that moves between two of them, a service that counts in a file
of it, and a client that counts with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import rsync_difference, wait_for
from house import Host, House, ip

from crnode.errors import CrnodeError
from crnode.net.control import call

SERVICE = """
import http.server, os, subprocess
shown = ["ip", "-4", "-o", "address", "show", "dev", "eth0"]
out = subprocess.run(shown, capture_output=True, text=True).stdout
me = "abcde"[int(out.split()[3].split("/")[0].split(".")[3]) - 1]
place = os.path.dirname(__file__)
if os.path.exists(os.path.join(place, f"broken-{me}")):
    raise SystemExit("broken")
site = os.path.join(place, f"site-{me}")

class Count(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with open(os.path.join(site, "count"), "r+b", buffering=0) as file:
            number = int(file.read() or b"0")
            if self.path == "/more":
                number += 1
                file.seek(0)
                file.write(b"%020d" % number)
                os.fsync(file.fileno())
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{me} {number}".encode())

    def log_message(self, *args):
        pass

http.server.HTTPServer(("0.0.0.0", 8080), Count).serve_forever()
"""


PROBE = """
import os, sys, urllib.request
flap = os.path.join(os.path.dirname(__file__), "flap")
if os.path.exists(flap):
    turn = os.path.getsize(flap)
    open(flap, "a").write("x")
    if turn % 2:
        sys.exit("it fails now and then")
urllib.request.urlopen("http://127.0.0.1:8080/", timeout=1.5).read()
"""


FENCE = """
echo $CRNODE_NODE >> {0}/fenced
exit $(cat {0}/code 2>/dev/null || echo 0)
"""
CLIENTS = """
echo $CRNODE_ACTION $CRNODE_NODE >> {0}/clients
"""


class Shop(House):
    """A house in which a set moves: a and b have it and may be active, c votes."""

    differs = ""

    def open(self, *, third: bool = False, words: Sequence[str] = ()) -> None:
        """`third`: c keeps a copy as well; `words`: more of `crnode takeover set`."""
        more = [word.format(place=self.place) for word in words]
        for name in ("a", "b", "c") if third else ("a", "b"):
            (self.place / f"site-{name}").mkdir()
        site = self.place / "site-a"
        (site / "count").write_bytes(b"%020d" % 0)
        for number in range(50):
            (site / f"page {number}").write_text(f"page {number}\n" * 100)
        (site / "folder").mkdir()
        (site / "folder" / "link").symlink_to("../count")

        def prepare() -> None:
            a = self.hosts["a"]
            at = f"b:{self.place / 'site-b'}"
            words = ["--source", "a", "--path", str(site), "--to", at, "--privileged"]
            if third:
                words += ["--to", f"c:{self.place / 'site-c'}"]
            a.run("set", "add", "site", *words)
            a.run("sync", "site", "--timeout", "30")

        words = ["--candidate", "a", "--candidate", "b", "--set", "site", "--active-port", "9000"]
        words += ["--probe", f"web=sh:{sys.executable} {self.place / 'probe.py'}", "--within", "2"]
        (self.place / "probe.py").write_text(PROBE)
        (self.place / "fence.sh").write_text(FENCE.format(self.place))
        (self.place / "clients.sh").write_text(CLIENTS.format(self.place))
        self.build(*words, *more, service=SERVICE, prepare=prepare)
        for host in self.keepers():
            host.keeper = host.start("keeper")
        assert self.settled(40) is self.hosts["a"]
        a = self.hosts["a"]
        if len(self.names) > 2:
            wait_for(lambda: a.asked()["voters"] == list(self.names))
            wait_for(lambda: all(host.asked()["is_voter"] for host in self.keepers()))
        wait_for(lambda: self.in_sync("a", "b"))

    def counted(self) -> list[tuple[str, int]]:
        """What the service answered: (who, which number)."""
        out = []
        for line in (self.place / "answers").read_text().splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in self.names:
                out.append((words[1], int(words[2])))
        return out

    def answers(self) -> list[str]:
        lines = (self.place / "answers").read_text().splitlines()
        return [line.split()[1] for line in lines if len(line.split()) >= 2]

    def site(self, name: str) -> Path:
        return self.place / f"site-{name}"

    def status(self, name: str) -> dict[str, Any]:
        answer = call(self.hosts[name].data / "control.sock", "status", {}, None, 30)
        return next(item for item in answer["sets"] if item["name"] == "site")

    def source(self, name: str) -> str:
        """Whom a host takes for the source, '' while its agent does not answer."""
        with contextlib.suppress(CrnodeError):
            return str(self.status(name)["source"])
        return ""

    def in_sync(self, source: str, target: str) -> bool:
        row = self.status(source)
        states = {one["node"]: one["state"] for one in row["targets"]}
        return row["source"] == source and states.get(target) == "in sync"

    def events(self, name: str) -> list[str]:
        answer = call(self.hosts[name].data / "control.sock", "events", {"limit": 1000}, None, 30)
        return [event["text"] for event in answer["events"]]

    def balancer(self, name: str) -> int:
        """What a load balancer is told by a host."""
        words = ["ip", "netns", "exec", self.hosts["client"].space, "curl", "-s", "-o", "/dev/null"]
        words += ["-m", "2", "-w", "%{http_code}", f"http://{self.hosts[name].address}:9000/active"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return int(done.stdout or 0)

    def quiet(self) -> None:
        """Nobody counts from now on."""
        self.hosts["client"].plug("down")

    def same(self) -> bool:
        """Whether both have the same; what differs is told when a test ends."""
        try:
            self.differs = rsync_difference(self.site("a"), self.site("b"))
        except AssertionError as error:
            self.differs = str(error)
        return not self.differs

    def kill(self, host: Host) -> None:
        """Power off: everything of it is gone at once."""
        host.plug("down")
        for pid in ip("netns", "pids", host.space).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for process in (host.agent, host.keeper):
            assert process is not None
            process.wait()

    def boot(self, host: Host) -> None:
        host.plug("up")
        host.agent = host.start("--role", "master" if host.name == "a" else "replica")
        host.keeper = host.start("keeper")


SHOPS: dict[str, dict[str, Any]] = {
    "": {},
    "third": {"third": True},
    "two": {"names": "ab"},
    "small": {"small": "b"},
    "veto": {"words": ["--veto", "10.77.0.9"]},
    "home": {"words": ["--failback", "3s"]},
    "no loss": {"words": ["--max-loss", "1s"]},
    "hooks": {"words": ["--fence-hook", "sh {place}/fence.sh", "--address-hook", "sh {place}/clients.sh"]},
    "five": {"names": "abcde"},
}
