"""The keeper as a service of a real systemd, which runs as the first process of namespaces made for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import answers, free_port, wait_for

from crnode.net.control import call
from crnode.platform.cgroups import mount_point

SYSTEMD = Path("/usr/lib/systemd/systemd")
ADDRESS = "10.80.0.100"
BOOT = """
set -e
mount --make-rprivate /
mount --bind {place} {place}
mount -o remount,bind,ro /
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs run /run
for folder in /usr/lib/systemd/system /usr/lib/systemd/system-generators /etc/systemd/system; do
    mount -t tmpfs units $folder
done
cp {place}/units/* /etc/systemd/system/
mkdir /etc/systemd/system/boot.target.wants
ln -s ../shop-web.service /etc/systemd/system/boot.target.wants/
ip link set lo up
ip link add eth0 type veth peer name eth1
ip link set eth0 up
ip link set eth1 up
exec env -i container=crnode PATH=$PATH {systemd} --system --unit=boot.target --log-target=console \\
    --log-level=info
"""
"""This machine's own units are hidden from it, and its files may only be read: what a system does when it
starts (cleaning /tmp, for one) is not for here."""
WEB = """
[Unit]
Description=the shop's web server
[Service]
ExecStart=/bin/sleep 100000
Restart=always
RestartSec=100ms
"""
TARGET = """
[Unit]
Description=a target
DefaultDependencies=no
"""
TARGETS = ("boot", "sysinit", "basic", "shutdown", "network-online", "local-fs", "multi-user")


class Machine:
    """A systemd with a keeper's unit and a service's, neither of them running."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.data = place / "data"
        self.group = (mount_point() or Path("/sys/fs/cgroup")) / f"crnode-test-{os.getpid()}"
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def crnode(self, *words: str) -> None:
        command = [sys.executable, "-m", "crnode", *words, "--data", str(self.data)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    def prepare(self) -> None:
        """A cluster of one, whose service is a unit."""
        at = f"127.0.0.1:{free_port()}"
        self.crnode("init", "--name", "a", "--cluster", "shop", "--listen", at, "--advertise", at)
        agent = subprocess.Popen(
            [sys.executable, "-m", "crnode", "--role", "master", "--data", str(self.data)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(lambda: answers(self.data))
        address = ["--address", f"{ADDRESS}/24", "--interface", "eth0"]
        self.crnode("takeover", "set", "--voter", "a", *address, "--service", "web=unit:shop-web.service")
        agent.terminate()
        assert agent.wait(20) == 0
        units = self.place / "units"
        units.mkdir()
        text = (Path(__file__).parents[2] / "examples" / "crnode-keeper.service").read_text()
        text = text.replace("/usr/local/bin/crnode", f"{sys.executable} -m crnode")
        text = text.replace("/var/lib/crnode", str(self.data)).replace("RequiresMountsFor=", "# ")
        environment = f"Environment=PATH={os.environ['PATH']}\nWorkingDirectory={Path(__file__).parents[2]}\n"
        (units / "crnode-keeper.service").write_text(text.replace("[Service]\n", f"[Service]\n{environment}"))
        (units / "shop-web.service").write_text(WEB)
        for target in TARGETS:
            (units / f"{target}.target").write_text(TARGET)
        (self.place / "boot.sh").write_text(BOOT.format(place=self.place, systemd=SYSTEMD))

    def boot(self) -> None:
        try:
            self.group.mkdir()
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        with open(self.place / "systemd.log", "wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--fork", "--pid", "--mount", "--cgroup", "--net", "--mount-proc",
                 "sh", str(self.place / "boot.sh")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=lambda: (self.group / "cgroup.procs").write_text(str(os.getpid())) and None,
            )  # fmt: skip

        def first() -> int:
            assert self.process is not None
            if self.process.poll() is not None:
                said = (self.place / "systemd.log").read_text()[-300:]
                pytest.skip(f"no systemd in namespaces here: {said}")
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            return int(children[0]) if children else 0

        self.pid = wait_for(first)
        wait_for(lambda: self.inside("systemctl", "is-active", "boot.target")[0] == 0, 20)

    def inside(self, *words: str) -> tuple[int, str]:
        """(exit code, what it said) of a command in the machine."""
        spaces = [f"--{kind}" for kind in ("mount", "pid", "net", "cgroup")]
        command = ["nsenter", "--target", str(self.pid), *spaces, "env", "-i", f"PATH={os.environ['PATH']}",
        *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stdout.strip()

    def state(self, unit: str) -> str:
        return self.inside("systemctl", "is-active", unit)[1]

    def keeper(self) -> int:
        """Its process, as this machine counts."""
        inner = int(self.inside("systemctl", "show", "--property=MainPID", "--value", "crnode-keeper")[1] or
        0)
        if inner:
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    for line in (folder / "status").read_text().splitlines():
                        if line.startswith("NSpid:") and line.split()[1:] == [folder.name, str(inner)]:
                            return int(folder.name)
        return 0

    def has_address(self) -> bool:
        return ADDRESS in self.inside("ip", "-o", "address", "show", "dev", "eth0")[1]

    def serves(self) -> bool:
        return self.state("shop-web.service") == "active" and self.has_address()

    def close(self) -> None:
        if self.process is not None:
            if self.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)  # the first of its namespace: all others end with it
            self.process.kill()
            self.process.wait()
        for folder in sorted(self.group.rglob("*/"), reverse=True) if self.group.exists() else []:
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            self.group.rmdir()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if os.geteuid() != 0 or not SYSTEMD.exists() or shutil.which("unshare") is None:
        pytest.skip("it takes root, systemd and unshare")
    one = Machine(tmp_path)
    try:
        one.prepare()
        one.boot()
        yield one
    finally:
        one.close()
        for name in ("systemd.log",):
            if (tmp_path / name).exists():
                print((tmp_path / name).read_text()[-6000:])


@pytest.mark.timeout(240)
def test_a_unit_runs_where_the_lease_is_and_ends_with_it_whatever_happens(machine: Machine) -> None:
    assert machine.inside("systemctl", "start", "crnode-keeper")[0] == 0
    wait_for(machine.serves, 20)
    state = call(machine.data / "keeper.sock", "status", {}, None, 10.0)
    live = {row["name"]: row["live"] for row in state["layers"]}
    del live["keeper"]  # what it may be allowed is not the same everywhere
    assert live == {
        "address": True, "gates": True, "binding": True, "systemd watchdog": True, "machine watchdog": False,
        "fence command": False,
    }  # fmt: skip
    text = machine.inside("cat", "/etc/systemd/system/shop-web.service.d/50-crnode.conf")[1]
    assert "BindsTo=crnode-keeper.service" in text

    # In good order: what is bound to the keeper ends, and cannot be started by anybody else.
    machine.inside("systemctl", "stop", "crnode-keeper")
    wait_for(lambda: machine.state("shop-web.service") != "active", 5)
    assert not machine.has_address()
    assert not machine.inside("ls", "/run/crnode/active")[1]
    # (Without what it depends on: else the keeper is started, too, and may serve the next moment.)
    machine.inside("systemctl", "start", "--job-mode=ignore-dependencies", "shop-web.service")
    assert machine.state("shop-web.service") != "active"
    asked = machine.inside("systemctl", "show", "--property=ConditionResult", "--value", "shop-web.service")
    assert asked[1] == "no"  # the gate was what kept it

    # Killed: systemd fences, and starts a new keeper, which serves again by itself.
    machine.inside("systemctl", "reset-failed")
    machine.inside("systemctl", "start", "shop-web.service")  # starts the keeper, which decides
    wait_for(machine.serves, 20)
    before = machine.keeper()
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: machine.state("shop-web.service") != "active", 5)
    wait_for(lambda: machine.keeper() not in (0, before), 20)
    wait_for(machine.serves, 20)

    # Standing still: nobody tells systemd any more that it lives.
    before = machine.keeper()
    os.kill(before, signal.SIGSTOP)
    wait_for(lambda: machine.state("shop-web.service") != "active", 6)
    wait_for(lambda: machine.keeper() not in (0, before), 20)
    wait_for(machine.serves, 20)

    # The service itself dies: systemd starts it again (Restart=always), as nobody forbids it.
    assert machine.inside("systemctl", "kill", "--signal=KILL", "shop-web.service")[0] == 0
    wait_for(machine.serves, 10)
