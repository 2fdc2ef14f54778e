"""W9: how long customers wait when the server dies, or a service on it, beside keepalived at its defaults.

Hosts are network namespaces at one bridge; a client asks a page under the floating address every 20 ms. Each
host has a PostgreSQL of its own and a web server that makes the page from a file and from what its PostgreSQL
answers: a page proves both. What is measured is the time without one, from the last one of the old server to
the first one of the new. `killed`: the cable is cut and every process of the host is killed at once.
`service`: the web server is killed and cannot be started again there. `database`: PostgreSQL is. keepalived
learns of these by a track_script that asks for both each second; crnode by probes each second, and by the end
of what it started itself.

keepalived moves an address to servers that run already, and copies nothing. crnode moves data, services and
address, with a majority, and serves from an image that it has opened. Its PostgreSQL is started where the
lease is, and then its web server: that is part of its time, and so is a recovery, because the files of each
PostgreSQL are those of one that was killed after some writing. They are a copy that each host has from the
beginning, and not in the set that moves.

`--plain` leaves PostgreSQL out: the web server alone, as it was measured at first.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from crnode.failover.probes import sql_command

FLOATING = "10.78.0.100"
ASK_SECONDS = 0.02
WAIT_SECONDS = 40.0
DATABASE_URL = "postgresql://postgres@127.0.0.1/postgres"
SERVER = """
import http.server, os, sys, threading
name, folder, *database = sys.argv[1:]
if os.path.exists(os.path.join(os.path.dirname(__file__), f"broken-web-{name}")):
    sys.exit("broken")
if database:
    import psycopg

class Database:
    lock, connection = threading.Lock(), None

    def ask(self):
        with self.lock:
            try:
                if self.connection is None:
                    self.connection = psycopg.connect(host=database[0], user="postgres", autocommit=True)
                query = "SELECT current_setting('cluster_name') || ' ' || text FROM page"
                return self.connection.execute(query).fetchone()[0].encode()
            except psycopg.Error:
                self.connection = None
                raise

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with open(os.path.join(folder, "page"), "rb") as file:
            body = file.read()
        said = DATABASE.ask() if database else name.encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(said + b" " + body)

    def log_message(self, *args):
        pass

DATABASE = Database()
http.server.ThreadingHTTPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("0.0.0.0", 80), Answer).serve_forever()
"""
# What runs on a host, the same for both tools. A process that changes its user loses the signal for the end
# of its parent, so that is asked for once more; what PostgreSQL shares ends with it.
SERVE = """#!/bin/sh
cd {place}
case $(ip -4 -o address show dev eth0) in *{a}/*) me=a;; *) me=b;; esac
case $1 in
web) exec {python} {place}/server.py $me {place}/site-$me {database} ;;
db)
    test ! -e broken-db-$me || exit 1
    exec unshare --ipc setpriv --reuid postgres --regid postgres --init-groups --pdeathsig KILL \\
        {postgres}/postgres -D {place}/db-$me -k {place}/db-$me -c cluster_name=$me ;;
esac
"""
POSTGRESQL_CONF = """
listen_addresses = '*'
log_line_prefix = '%m '
dynamic_shared_memory_type = mmap
"""
NOTE = """W9 with PostgreSQL and a web server behind the address. keepalived: both run all the time on each
host. crnode: they are started where the lease is; its time has that in it, and PostgreSQL's recovery."""
ROWS = 100_000  # written after the last checkpoint, so that there is something to recover
TABLES = f"""
CREATE TABLE page (text text);
INSERT INTO page VALUES ('welcome');
CREATE TABLE sold (number int PRIMARY KEY, text text);
CHECKPOINT;
INSERT INTO sold SELECT number, repeat('x', 100) FROM generate_series(1, {ROWS}) AS number;
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
        head, _, body = data.partition(b"\\r\\n\\r\\n")
        if b" 200 " in head:
            out.write(f"{{time.monotonic():.4f}} {{body.split()[0].decode()}}\\n")
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


def postgresql() -> Path | None:
    """Where the newest PostgreSQL has its programs."""
    found = [file.parent for file in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(found, key=lambda folder: int(folder.parent.name), default=None)


class Database:
    """The files of a PostgreSQL that was killed, once; each host gets a copy."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self.place = Path(tempfile.mkdtemp(prefix="crnode-bench-database-"))
        shutil.chown(self.place, "postgres", "postgres")
        self.files = self.place / "files"
        self._run("initdb", "-D", str(self.files), "-A", "trust", "--no-sync")
        with open(self.files / "pg_hba.conf", "a") as hba:
            hba.write("host all all samenet trust\n")
        with open(self.files / "postgresql.conf", "a") as conf:
            conf.write(POSTGRESQL_CONF)
        own = f"-c listen_addresses= -k {self.place}"
        self._run("pg_ctl", "-D", str(self.files), "-w", "-l", str(self.place / "log"), "-o", own, "start")
        try:
            self._run("psql", "-h", str(self.place), "-q", "-v", "ON_ERROR_STOP=1", stdin=TABLES)
        finally:
            self._run("pg_ctl", "-D", str(self.files), "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *words: str, stdin: str = "") -> None:
        command = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups"]
        command += [str(self.programs / program), *words]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, cwd=self.place, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}{done.stdout}")

    def copy(self, folder: Path) -> None:
        """Make `folder` such files."""
        subprocess.run(["cp", "-a", str(self.files), str(folder)], check=True)
        os.sync()  # they lie there since long: PostgreSQL syncs them all before it recovers

    def close(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)


class Site:
    """Hosts at one bridge, in a folder of their own; `database` is what each has of PostgreSQL, None for
    nothing."""

    def __init__(self, names: tuple[str, ...], database: Database | None = None) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="crnode-bench-takeover-"))
        self.place.chmod(0o755)  # PostgreSQL is somebody else
        self.database = database
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
        words = {"place": self.place, "python": sys.executable, "a": self.address(names[0])}
        words["database"] = f"{self.place}/db-$me" if database is not None else ""
        words["postgres"] = database.programs if database is not None else ""
        (self.place / "serve.sh").write_text(SERVE.format(**words))
        (self.place / "answers").touch()

    def space(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def address(self, name: str) -> str:
        return f"10.78.0.{self.numbers[name]}"

    def furnish(self, name: str) -> None:
        """What this host serves, before anything of it runs."""
        (self.place / f"site-{name}").mkdir()
        if self.database is not None:
            self.database.copy(self.place / f"db-{name}")

    @property
    def services(self) -> tuple[str, ...]:
        """What runs on a host, in this order."""
        return ("web",) if self.database is None else ("db", "web")

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

    def succeeds(self, name: str, *command: str) -> bool:
        words = ["ip", "netns", "exec", self.space(name), *command]
        return subprocess.run(words, capture_output=True, check=False, timeout=120).returncode == 0

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

    def break_service(self, name: str, service: str) -> None:
        """The web server or PostgreSQL is killed, and ends at once whenever it is started."""
        (self.place / f"broken-{service}-{name}").touch()
        for pid in ip("netns", "pids", self.space(name)).split():
            with contextlib.suppress(OSError):
                is_web = "server.py" in Path(f"/proc/{pid}/cmdline").read_text()
                is_db = os.readlink(f"/proc/{pid}/exe").endswith("/postgres")
                if is_web if service == "web" else is_db:
                    os.kill(int(pid), signal.SIGKILL)

    def keep_logs(self, folder: Path) -> None:
        """Copy what the hosts and their services said."""
        for log in self.place.rglob("*.log"):
            copy = folder / log.relative_to(self.place)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, copy)

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
        site.furnish(name)
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
    voters = [word for name in names for word in ("--voter", name)]
    more = ["--candidate", "a", "--candidate", "b", "--set", "site"]
    more += ["--address", f"{FLOATING}/24", "--interface", "eth0"]
    for service in site.services:
        probe = DATABASE_URL if service == "db" else "tcp:127.0.0.1:80"
        more += ["--service", f"{service}=sh {site.place}/serve.sh {service}"]
        more += ["--probe", f"{service}={probe}"]
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
    """Two hosts whose servers run all the time."""
    for name, priority in (("a", 150), ("b", 100)):
        site.furnish(name)
        (site.place / f"site-{name}" / "page").write_bytes(b"welcome")
        for service in site.services:
            site.start(name, "sh", str(site.place / "serve.sh"), service)
        check = site.place / f"check-{name}.sh"
        asks = [f"pgrep -f '{site.place}/server.py {name} '"]
        asks += [shlex.join(sql_command(DATABASE_URL))] if site.database is not None else []
        check.write_text("#!/bin/sh\n" + "".join(f"{ask} >/dev/null || exit 1\n" for ask in asks))
        check.chmod(0o755)
        site.wait(lambda check=check, name=name: site.succeeds(name, str(check)))  # type: ignore[misc]
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
    "service": lambda site: site.break_service("a", "web"),
    "database": lambda site: site.break_service("a", "db"),
}


def measure(tool: str, fault: str, database: Database | None, logs: Path | None) -> float:
    """Seconds without an answer."""
    site = Site(("a", "b", "c") if tool == "crnode" else ("a", "b"), database)
    try:
        TOOLS[tool](site)
        time.sleep(1.0 + time.monotonic() % 1.0)  # not in step with anybody's timers
        (site.place / "fault.log").write_text(f"{datetime.now()} {fault}\n")
        FAULTS[fault](site)
        site.wait(lambda: [who for _, who in site.answers()][-1:] == ["b"])
        (site.place / "answered.log").write_text(f"{datetime.now()} b answers\n")
        said = site.answers()
        first = next(at for at, (_, who) in enumerate(said) if who == "b")
        return said[first][0] - said[first - 1][0]
    finally:
        if logs is not None:
            site.keep_logs(logs / f"{fault}-{tool}-{datetime.now():%H%M%S}")
        site.close()


def main() -> int:
    """Print medians with what they range over."""
    parser = argparse.ArgumentParser(prog="python -m bench.takeover", description=__doc__)
    parser.add_argument("fault", nargs="*", choices=[*FAULTS, []], help="which of them (default: all)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--plain", action="store_true", help="without PostgreSQL")
    parser.add_argument("--logs", type=Path, help="a folder into which what the hosts said is copied")
    args = parser.parse_args()
    if args.plain and "database" in args.fault:
        parser.error("--plain has no database that could die")
    needed = {"keepalived": "keepalived"} | ({} if args.plain else {"psql": "postgresql"})
    missing = [package for program, package in needed.items() if shutil.which(program) is None]
    programs = None if args.plain else postgresql()
    if os.geteuid() != 0 or missing or (programs is None and not args.plain):
        print("It takes root, and: apt-get install keepalived postgresql", file=sys.stderr)
        return 2
    if not args.plain and importlib.util.find_spec("psycopg") is None:
        print("It takes psycopg, too: make .venv/bench", file=sys.stderr)
        return 2
    faults = args.fault or [fault for fault in FAULTS if fault != "database" or not args.plain]
    database = Database(programs) if programs is not None else None
    try:
        if database is not None:
            print(NOTE)
        for fault in faults:
            compare(fault, args.runs, database, args.logs)
    finally:
        if database is not None:
            database.close()
    return 0


def compare(fault: str, runs: int, database: Database | None, logs: Path | None) -> None:
    """Measure one fault, by turns, and print it."""
    times: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    for _ in range(runs):
        for tool, found in times.items():
            found.append(measure(tool, fault, database, logs))
            print(f"{fault} {tool} {found[-1]:.2f} s", file=sys.stderr, flush=True)
    for tool, found in times.items():
        spread = f"[{min(found):.2f}-{max(found):.2f}]"
        median = statistics.median(found)
        print(f"W9 {fault}: {tool} {median:.2f} s {spread} of {len(found)} runs", flush=True)


if __name__ == "__main__":
    sys.exit(main())
