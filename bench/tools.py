"""The tools that are compared. A new one is one class: how it is started on two folders, and told to go.

Each runs with what its own documentation calls sensible for speed on a local network. `durable` says whether
it makes the copy durable before it calls it done, `encrypted` whether the wire is, `versions` whether earlier
states stay."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

from bench.meter import Cost, Meter, private_bytes
from bench.network import Failed, Host, Network

Pair = tuple[Path, Path]
"""A folder at the source, and where it goes at the target."""

START_SECONDS = 60.0


def store_bytes(place: Path) -> int:
    """What a folder takes on disk, in bytes."""
    words = ["du", "-s", "--block-size=1", str(place)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0])


class Tool:
    """Base of all: processes, their end, and their cost."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    durable = encrypted = versions = False
    watches = False  # it notices changes by itself; else :meth:`carry` is called
    pause = 0.0  # seconds after a start in which it may still be looking at the tree

    def __init__(self, network: Network, place: Path) -> None:
        self.network, self.place = network, place
        self.pairs: list[Pair] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._clients: set[int] = set()
        self._meters: list[Meter] = []
        self._spent = 0.0  # CPU seconds of clients that have ended
        place.mkdir(parents=True)

    def begin(self, pairs: Sequence[Pair]) -> None:
        """Start on these folders, which exist and are empty; returns when changes are noticed."""
        self.pairs = list(pairs)
        self.start()
        time.sleep(self.pause)

    def start(self) -> None:
        """Start whatever serves :attr:`pairs`."""

    def carry(self, pair: int) -> None:
        """Bring the target of this pair up to date now; different ones may be carried at the same time.
        Nothing to do for a tool that watches. Raises Failed."""

    def close(self) -> None:
        """End everything."""
        for meter in self._meters:
            meter.stop()
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def serve(self, words: Sequence[str], **more: str) -> subprocess.Popen[bytes]:
        """Start a process that stays."""
        with open(self.place / "log", "ab") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **more}
            )
        self._processes.append(process)
        return process

    def client(self, words: Sequence[str], cwd: Path | None = None, **more: str) -> None:
        """Run a command to its end; its CPU time counts. Failed says how it ended otherwise."""
        with open(self.place / "log", "ab") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, env={**os.environ, **more}
            )
        self._clients.add(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self._clients.discard(process.pid)
        self._spent += usage.ru_utime + usage.ru_stime
        if process.returncode:
            raise Failed(f"{words[0]} ended with {process.returncode}")

    def pids(self) -> list[int]:
        """Its processes now; what is below them counts too."""
        return [*(process.pid for process in self._processes if process.poll() is None), *self._clients]

    def meter(self) -> Meter:
        """Measures from now on."""
        self._meters.append(Meter(self.pids, self.network.wire))
        return self._meters[-1]

    def cost(self, meter: Meter, spent: float) -> Cost:
        """The cost since `meter` was made; `spent` is :attr:`spent` of that moment."""
        cost = meter.stop()
        return Cost(cost.cpu + self._spent - spent, cost.memory, cost.there, cost.back)

    @property
    def spent(self) -> float:
        """CPU seconds of its clients so far."""
        return self._spent

    def log(self) -> str:
        place = self.place / "log"
        return place.read_text(errors="replace")[-2000:] if place.exists() else ""

    def wait_until(self, what: str, ready: object, seconds: float = START_SECONDS) -> None:
        """Poll `ready()`; Failed when it does not become true."""
        deadline = time.monotonic() + seconds
        while not ready():  # type: ignore[operator]
            if time.monotonic() > deadline:
                raise Failed(f"{what} did not happen")
            time.sleep(0.02)


EXACT = "--modify-window=-1"
"""rsync compares times to the second unless told otherwise (rsync(1)), and a file that it met while it was
being written would then stay as it met it."""


class RsyncDaemon(Tool):
    """rsync -a to an rsync daemon."""

    name = "rsync"
    packages: ClassVar[tuple[str, ...]] = ("rsync",)
    options: ClassVar[tuple[str, ...]] = ("-a", EXACT)

    def start(self) -> None:
        modules = "".join(f"[m{n}]\npath = {target}\n" for n, (_, target) in enumerate(self.pairs))
        conf = self.place / "rsyncd.conf"
        conf.write_text(
            "use chroot = no\nuid = root\ngid = root\nread only = no\n"
            f"lock file = {self.place}/lock\n{modules}"
        )
        self.serve(
            [
                *self.network.target.enter,
                "rsync",
                "--daemon",
                "--no-detach",
                "--port=8730",
                f"--config={conf}",
            ]
        )
        probe = [*self.network.source.enter, "rsync", "--port=8730", f"{self.network.target.address}::"]
        self.wait_until(
            "its daemon", lambda: subprocess.run(probe, capture_output=True, check=False).returncode == 0
        )

    def carry(self, pair: int) -> None:
        to = f"rsync://{self.network.target.address}:8730/m{pair}/"
        self.client([*self.network.source.enter, "rsync", *self.options, f"{self.pairs[pair][0]}/", to])


class RsyncFsync(RsyncDaemon):
    """The same, durable."""

    name = "rsync --fsync"
    options = ("-a", EXACT, "--fsync")
    durable = True


class RsyncInplace(RsyncDaemon):
    """The same, in place: rsync's best for pages and appends."""

    name = "rsync --inplace"
    options = ("-a", EXACT, "--inplace", "--no-whole-file")


class RsyncSsh(Tool):
    """rsync -a over ssh: encrypted, as ours is."""

    name = "rsync ssh"
    packages = ("rsync", "openssh-server", "openssh-client")
    encrypted = True

    def start(self) -> None:
        for key in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.place / key)], check=True
            )
        shutil.copy(self.place / "user.pub", self.place / "authorized")
        Path("/run/sshd").mkdir(exist_ok=True)
        conf = self.place / "sshd_config"
        conf.write_text(
            f"Port 2222\nHostKey {self.place}/host\nAuthorizedKeysFile {self.place}/authorized\n"
            f"StrictModes no\nPermitRootLogin prohibit-password\nUsePAM no\nPidFile {self.place}/pid\n"
        )
        self.serve([*self.network.target.enter, "/usr/sbin/sshd", "-D", "-e", "-f", str(conf)])
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        self._ssh = f"ssh -p 2222 -i {self.place}/user " + " ".join(f"-o {option}" for option in options)
        words = [
            *self.network.source.enter,
            *self._ssh.split(),
            f"root@{self.network.target.address}",
            "true",
        ]
        self.wait_until(
            "sshd", lambda: subprocess.run(words, capture_output=True, check=False).returncode == 0
        )

    def carry(self, pair: int) -> None:
        source, target = self.pairs[pair]
        to = f"root@{self.network.target.address}:{target}/"
        self.client([*self.network.source.enter, "rsync", "-a", EXACT, "-e", self._ssh, f"{source}/", to])


class Lsyncd(RsyncDaemon):
    """lsyncd at delay 0, its quickest, over an rsync daemon."""

    name = "lsyncd"
    packages = ("rsync", "lsyncd")
    watches = True
    pause = 1.0

    def start(self) -> None:
        super().start()
        syncs = "".join(
            f'sync{{default.rsync, source="{source}", target="rsync://{self.network.target.address}:8730/m{n}/",'
            f' delay=0, rsync={{archive=true, _extra={{"{EXACT}"}}}}}}\n'
            for n, (source, _) in enumerate(self.pairs)
        )
        conf = self.place / "lsyncd.lua"
        conf.write_text(f'settings{{nodaemon=true, logfile="{self.place}/lsyncd.log"}}\n{syncs}')
        self.serve([*self.network.source.enter, "lsyncd", str(conf)])

    def carry(self, pair: int) -> None:
        """It watches."""


class Syncthing(Tool):
    """Syncthing with a watcher delay of 1 s, its least."""

    name = "syncthing"
    packages = ("syncthing",)
    encrypted = watches = True
    pause = 3.0

    def start(self) -> None:
        homes = {side: self.place / side for side in ("source", "target")}
        ids: dict[str, str] = {}
        for side, home in homes.items():
            subprocess.run(["syncthing", "generate", f"--home={home}"], capture_output=True, check=True)
            done = subprocess.run(
                ["syncthing", f"--home={home}", "--device-id"], capture_output=True, text=True, check=True
            )
            ids[side] = done.stdout.strip()
        for side, home in homes.items():
            self._configure(home / "config.xml", side, ids)
        for side, host in (("target", self.network.target), ("source", self.network.source)):
            self.serve(
                [*host.enter, "syncthing", "serve", "--no-browser", "--no-restart", f"--home={homes[side]}"],
                STNOUPGRADE="1", HOME=str(homes[side]),
            )  # fmt: skip
        self.wait_until("a connection", lambda: "Established secure connection" in self.log_all())

    def log_all(self) -> str:
        return (self.place / "log").read_text(errors="replace")

    def _configure(self, file: Path, side: str, ids: dict[str, str]) -> None:
        tree = ElementTree.parse(file)
        root = tree.getroot()
        for kind in ("folder", "device"):
            for old in root.findall(kind):
                root.remove(old)
        for n, (source, target) in enumerate(self.pairs):
            folder = ElementTree.SubElement(
                root, "folder", id=f"f{n}", label=f"f{n}", path=str(source if side == "source" else target),
                type="sendonly" if side == "source" else "receiveonly", rescanIntervalS="3600",
                fsWatcherEnabled="true", fsWatcherDelayS="1",
            )  # fmt: skip
            for device in ids.values():
                ElementTree.SubElement(folder, "device", id=device)
            ElementTree.SubElement(folder, "minDiskFree", unit="%").text = "0"
        addresses = {"source": self.network.source.address, "target": self.network.target.address}
        for name, device in ids.items():
            element = ElementTree.SubElement(root, "device", id=device, name=name, compression="metadata")
            ElementTree.SubElement(element, "address").text = f"tcp://{addresses[name]}:22000"
        options = root.find("options")
        gui = root.find("gui")
        assert options is not None and gui is not None
        gui.set("enabled", "false")
        for key, value in (
            ("listenAddress", f"tcp://{addresses[side]}:22000"), ("globalAnnounceEnabled", "false"),
            ("localAnnounceEnabled", "false"), ("relaysEnabled", "false"), ("natEnabled", "false"),
            ("urAccepted", "-1"), ("crashReportingEnabled", "false"), ("reconnectionIntervalS", "1"),
        ):  # fmt: skip
            for old in options.findall(key):
                options.remove(old)
            ElementTree.SubElement(options, key).text = value
        tree.write(file)
        for pair in self.pairs:  # it wants its mark in a folder that it did not make itself
            (pair[0 if side == "source" else 1] / ".stfolder").mkdir(exist_ok=True)


class Crnode(Tool):
    """crnode as its README sets it up, but for owners and set-id bits, which the others keep too
    (`--privileged`): durable, encrypted, verified, with versions."""

    name = "crnode"
    durable = encrypted = versions = watches = True

    def __init__(self, network: Network, place: Path, targets: int = 1) -> None:
        super().__init__(network, place)
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._kept: dict[int, int] = {}
        self._names = ["shop1", *(f"box{n + 2}" for n in range(targets))]

    def start(self) -> None:
        at = {name: f"{self._host(name).address}:{7400 + n}" for n, name in enumerate(self._names)}
        self._call("shop1", "init", "--name", "shop1", "--listen", at["shop1"], "--advertise", at["shop1"])
        self.start_source()
        for name in self._names[1:]:
            token = json.loads(self._call("shop1", "invite", name, "--role", "replica", "--json"))["token"]
            self._call(name, "join", token, "--listen", at[name], "--advertise", at[name])
            self._agent(name, "replica")
        for n, (source, _) in enumerate(self.pairs):
            to = [f"{name}:{place}" for name, place in zip(self._names[1:], self.places(n), strict=True)]
            self._call("shop1", "set", "add", f"s{n}", "--source", "shop1", "--path", str(source),
                       *(word for item in to for word in ("--to", item)), "--privileged")  # fmt: skip
            self.sync(n)

    def places(self, pair: int) -> list[Path]:
        """Where a pair's folder goes: to the pair's target, and with a number behind its name from the
        second on."""
        target = self.pairs[pair][1]
        return [target, *(target.with_name(f"{target.name}-{name}") for name in self._names[2:])]

    def sync(self, pair: int = 0) -> None:
        """Until all targets have the set; a look at every file of the source is part of it."""
        self._call("shop1", "sync", f"s{pair}", "--timeout", "1800")

    def keep_all(self) -> None:
        """As many versions as there may be, whatever their distance."""
        self._call("shop1", "set", "keep", "s0", "newest:64")

    def snapshot(self, number: int) -> None:
        """It has been taken already; which version it is."""
        rows = json.loads(self._call("box2", "versions", "s0", "--json"))["versions"]
        self._kept[number] = max(int(row["number"]) for row in rows)

    def restore(self, number: int, to: Path) -> None:
        """Bring a version back where it is kept."""
        words = ["restore", "s0", "--version", str(self._kept[number]), "--to", str(to)]
        data = ["--data", str(self.place / "box2")]
        self.client([*self.network.target.enter, sys.executable, "-m", "crnode", *words, *data])

    def store_bytes(self) -> int:
        """What all versions take at the target, catalogs included."""
        ballast = store_bytes(self.place / "box2" / "store" / "ballast")  # room for a full disk, no version
        return sum(store_bytes(self.place / "box2" / part) for part in ("store", "sets")) - ballast

    def everywhere(self, word: str) -> None:
        """One command on each node at once. Raises Failed."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: self._call(name, word), self._names))

    def start_source(self) -> None:
        self._agent("shop1", "master")

    def stop_source(self) -> None:
        """Stop the agent of the source as a service manager does."""
        process = self._agents.pop("shop1")
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    def memory(self) -> tuple[int, int]:
        """Private bytes of the source's agent, and the most that a target's has."""
        source, *targets = (private_bytes([self._agents[name].pid]) for name in self._names)
        return source, max(targets)

    def _host(self, name: str) -> Host:
        return self.network.source if name == "shop1" else self.network.target

    def _agent(self, name: str, role: str) -> None:
        data = self.place / name
        self._agents[name] = self.serve(
            [*self._host(name).enter, sys.executable, "-m", "crnode", "--role", role, "--data", str(data)]
        )
        self.wait_until("an agent", lambda: self._answers(data / "control.sock"))

    def _answers(self, path: Path) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                return False
        return True

    def _call(self, node: str, *words: str) -> str:
        done = subprocess.run(
            [*self._host(node).enter, sys.executable, "-m", "crnode", *words,
             "--data", str(self.place / node)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"crnode {words[0]} ended with {done.returncode}: {done.stderr}")
        return done.stdout


TOOLS: tuple[type[Tool], ...] = (Crnode, RsyncDaemon, RsyncFsync, RsyncInplace, RsyncSsh, Lsyncd, Syncthing)
