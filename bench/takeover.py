"""W9: how long customers wait when the server dies, or a service on it, beside keepalived at its defaults.

Hosts are network namespaces at one bridge; a client asks a page under the floating address every 20 ms. What
is measured is the longest time without an answer, from the last one of the old server to the first one of the
new. `killed`: the cable is cut and every process of the host is killed at once. `service`: the web server is
killed and cannot be started again there; keepalived learns of it by a track_script that runs each second.

keepalived moves an address to a server that runs already, and copies nothing. crnode moves data, services and
address, with a majority, and serves from an image that it has opened.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

FLOATING = "10.78.0.100"
ASK_SECONDS = 0.02
WAIT_SECONDS = 40.0
SERVER = """
import http.server, os, sys
name, folder = sys.argv[1:]
if os.path.exists(os.path.join(os.path.dirname(__file__), f"broken-{name}")):
    sys.exit("broken")

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with open(os.path.join(folder, "page"), "rb") as file:
            body = file.read()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(name.encode() + b" " + body)

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("0.0.0.0", 80), Answer).serve_forever()
"""
CLIENT = f"""
import socket, sys, time
out = open(sys.argv[1], "a", buffering=1)
while True:
    begun = time.monotonic()
    try:
        with socket.create_connection(("{FLOATING}", 80), timeout=0.2) as one:
            one.settimeout(0.2)
            one.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            data = b""
            while part := one.recv(1000):
                data += part
        who = data.rpartition(b"\\r\\n\\r\\n")[2].split()[0].decode()
        out.write(f"{{time.monotonic():.4f}} {{who}}\\n")
    except (OSError, IndexError):
        pass
    time.sleep(max(0.0, {ASK_SECONDS} - (time.monotonic() - begun)))
"""
KEEPALIVED = """
global_defs {{
    script_user root
    enable_script_security
}}
vrrp_script web {{
    script "{check}"
    interval 1
    fall 1
    rise 1
}}
vrrp_instance shop {{
    state {state}
    interface eth0
    virtual_router_id 51
    priority {priority}
    virtual_ipaddress {{
        {address}/24
    }}
    track_script {{
        web
    }}
}}
"""


def ip(*words: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=20)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr}")
    return done.stdout


class Site:
    """Hosts at one bridge, in a folder of their own."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="crnode-bench-takeover-"))
        self.prefix = f"w{os.getpid() % 100000}"
        self.hub = f"{self.prefix}-hub"
        self.numbers = {name: number for number, name in enumerate((*names, "client"), 1)}
        self.processes: list[subprocess.Popen[bytes]] = []
        ip("netns", "add", self.hub)
        ip("-n", self.hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.hub, "link", "set", "bridge", "up")
        for name, number in self.numbers.items():
            space = self.space(name)
            ip("netns", "add", space)
            end = f"{self.prefix}{number}"
            ip("link", "add", end, "netns", self.hub, "type", "veth", "peer", "eth0", "netns", space)
            ip("-n", self.hub, "link", "set", end, "master", "bridge", "up")
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
        (self.place / "server.py").write_text(SERVER)
        (self.place / "client.py").write_text(CLIENT)
        (self.place / "answers").touch()

    def space(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def address(self, name: str) -> str:
        return f"10.78.0.{self.numbers[name]}"

    def start(self, name: str, *command: str) -> None:
        with open(self.place / f"{name}.log", "ab") as log:
            words = ["ip", "netns", "exec", self.space(name), *command]
            self.processes.append(
                subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def run(self, name: str, *command: str) -> str:
        words = ["ip", "netns", "exec", self.space(name), *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}{done.stdout}")
        return done.stdout

    def watch(self) -> None:
        self.start("client", sys.executable, str(self.place / "client.py"), str(self.place / "answers"))

    def answers(self) -> list[tuple[float, str]]:
        lines = [line.split() for line in (self.place / "answers").read_text().splitlines()]
        return [(float(words[0]), words[1]) for words in lines if len(words) == 2]

    def wait(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not what():
            if time.monotonic() > deadline:
                logs = "".join(f"\n== {p.name}\n{p.read_text()[-3000:]}" for p in self.place.glob("*.log"))
                raise RuntimeError(f"It did not happen within {WAIT_SECONDS:g} s.{logs}")
            time.sleep(0.05)

    def kill(self, name: str) -> None:
        """Power off."""
        ip("-n", self.hub, "link", "set", f"{self.prefix}{self.numbers[name]}", "down")
        for pid in ip("netns", "pids", self.space(name)).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def break_service(self, name: str) -> None:
        """The web server ends, and ends at once whenever it is started."""
        (self.place / f"broken-{name}").touch()
        for pid in ip("netns", "pids", self.space(name)).split():
            with contextlib.suppress(OSError):
                if "server.py" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(int(pid), signal.SIGKILL)

    def close(self) -> None:
        for name in self.numbers:
            for pid in ip("netns", "pids", self.space(name), check=False).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for process in self.processes:
            process.wait()
        for name in self.numbers:
            ip("netns", "delete", self.space(name), check=False)
        ip("netns", "delete", self.hub, check=False)
        shutil.rmtree(self.place, ignore_errors=True)


def crnode(site: Site) -> None:
    """Three nodes: a and b have the set and may be active, c votes."""
    names = ("a", "b", "c")
    data = {name: str(site.place / f"data-{name}") for name in names}
    me = [sys.executable, "-m", "crnode"]
    at = {name: f"{site.address(name)}:7400" for name in names}
    for name in ("a", "b"):
        (site.place / f"site-{name}").mkdir()
    (site.place / "site-a" / "page").write_bytes(b"welcome")
    words = ["--listen", at["a"], "--advertise", at["a"], "--data", data["a"]]
    site.run("a", *me, "init", "--name", "a", "--cluster", "shop", *words)
    site.start("a", *me, "--role", "master", "--data", data["a"])
    site.wait(lambda: (Path(data["a"]) / "control.sock").exists())
    for name in ("b", "c"):
        token = site.run("a", *me, "invite", name, "--role", "replica", "--data", data["a"], "--json")
        words = ["--listen", at[name], "--advertise", at[name], "--data", data[name]]
        site.run(name, *me, "join", _token(token), *words)
        site.start(name, *me, "--role", "replica", "--data", data[name])
        site.wait(lambda name=name: (Path(data[name]) / "control.sock").exists())  # type: ignore[misc]
    source = ["--source", "a", "--path", str(site.place / "site-a"), "--privileged"]
    target = f"b:{site.place / 'site-b'}"
    site.run("a", *me, "set", "add", "site", *source, "--to", target, "--data", data["a"])
    site.run("a", *me, "sync", "site", "--data", data["a"])
    script = f"cd {site.place}; me=$(test -e /proc/self && ip -4 -o address show dev eth0 | head -1);"
    script += f" case $me in *{site.address('a')}/*) me=a;; *) me=b;; esac;"
    script += f" exec {sys.executable} {site.place / 'server.py'} $me {site.place}/site-$me"
    voters = [word for name in names for word in ("--voter", name)]
    more = ["--candidate", "a", "--candidate", "b", "--set", "site", "--service", f"web=sh -c '{script}'"]
    more += ["--address", f"{FLOATING}/24", "--interface", "eth0", "--probe", "web=tcp:127.0.0.1:80"]
    site.run("a", *me, "takeover", "set", *voters, *more, "--data", data["a"])
    site.wait(lambda: all(b'"takeover": {' in (Path(d) / "cluster.json").read_bytes() for d in data.values()))
    for name in names:
        site.start(name, *me, "keeper", "--data", data[name])
    site.watch()
    site.wait(lambda: [who for _, who in site.answers()][-1:] == ["a"])
    for name in names:
        words = [*me, "takeover", "status", "--data", data[name]]
        site.wait(lambda name=name, words=words: "a, b, c" in site.run(name, *words))  # type: ignore[misc]
    site.wait(lambda: "b could take over" in site.run("a", *me, "failover", "--dry-run", "--data", data["a"]))


def _token(text: str) -> str:
    import json

    return str(json.loads(text)["token"])


def keepalived(site: Site) -> None:
    """Two hosts whose web servers run all the time."""
    for name, priority in (("a", 150), ("b", 100)):
        folder = site.place / f"site-{name}"
        folder.mkdir()
        (folder / "page").write_bytes(b"welcome")
        site.start(name, sys.executable, str(site.place / "server.py"), name, str(folder))
        check = site.place / f"check-{name}.sh"
        pattern = f"server.py {name} "
        check.write_text(f"#!/bin/sh\nexec pgrep -f '{pattern}' >/dev/null\n")
        check.chmod(0o755)
        conf = site.place / f"keepalived-{name}.conf"
        state = "MASTER" if name == "a" else "BACKUP"
        conf.write_text(KEEPALIVED.format(check=check, state=state, priority=priority, address=FLOATING))
        pids = [word for flag in "pr" for word in (f"-{flag}", str(site.place / f"{name}.{flag}.pid"))]
        site.start(name, "keepalived", "-n", "-l", "-D", "-f", str(conf), *pids)
    site.watch()
    site.wait(lambda: [who for _, who in site.answers()][-1:] == ["a"])
    time.sleep(3)


TOOLS: dict[str, Callable[[Site], None]] = {"crnode": crnode, "keepalived": keepalived}
FAULTS: dict[str, Callable[[Site], None]] = {
    "killed": lambda site: site.kill("a"),
    "service": lambda site: site.break_service("a"),
}


def measure(tool: str, fault: str) -> float:
    """Seconds without an answer."""
    site = Site(("a", "b", "c") if tool == "crnode" else ("a", "b"))
    try:
        TOOLS[tool](site)
        time.sleep(1.0 + time.monotonic() % 1.0)  # not in step with anybody's timers
        FAULTS[fault](site)
        site.wait(lambda: [who for _, who in site.answers()][-1:] == ["b"])
        said = site.answers()
        first = next(at for at, (_, who) in enumerate(said) if who == "b")
        return said[first][0] - said[first - 1][0]
    finally:
        site.close()


def main() -> int:
    """Alternate the tools, and print medians with what they range over."""
    parser = argparse.ArgumentParser(prog="python -m bench.takeover", description=__doc__)
    parser.add_argument("fault", nargs="*", choices=[*FAULTS, []], help="which of them (default: all)")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("keepalived") is None:
        print("It takes root, and keepalived: apt-get install keepalived", file=sys.stderr)
        return 2
    for fault in args.fault or FAULTS:
        times: dict[str, list[float]] = {tool: [] for tool in TOOLS}
        for _ in range(args.runs):
            for tool, found in times.items():
                found.append(measure(tool, fault))
                print(f"{fault} {tool} {found[-1]:.2f} s", file=sys.stderr, flush=True)
        for tool, found in times.items():
            spread = f"[{min(found):.2f}-{max(found):.2f}]"
            print(f"W9 {fault}: {tool} {statistics.median(found):.2f} s {spread} of {len(found)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
