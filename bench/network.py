"""Two hosts on one machine: network namespaces joined by a veth pair, whose counters say what crossed it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

SOURCE, TARGET = "10.77.0.1", "10.77.0.2"


class Failed(Exception):
    """A program did not do what it was told."""


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Host:
    """A namespace. Programs in it are started behind :attr:`enter`; `ip netns exec` replaces itself by them,
    so that their pid is the one that was started."""

    name: str
    address: str

    @property
    def enter(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]


class Network:
    """Makes both hosts; removes them again when it is closed."""

    def __init__(self) -> None:
        tag = f"crb{os.getpid()}"
        self.source = Host(f"{tag}s", SOURCE)
        self.target = Host(f"{tag}t", TARGET)
        self._link = (f"{tag[:11]}s0", f"{tag[:11]}t0")
        for host in (self.source, self.target):
            _run("ip", "netns", "add", host.name)
        ours, theirs = self._link
        _run("ip", "link", "add", ours, "netns", self.source.name, "type", "veth", "peer", "name", theirs,
             "netns", self.target.name)  # fmt: skip
        for host, link in ((self.source, ours), (self.target, theirs)):
            _run("ip", "-n", host.name, "address", "add", f"{host.address}/24", "dev", link)
            _run("ip", "-n", host.name, "link", "set", link, "up")
            _run("ip", "-n", host.name, "link", "set", "lo", "up")

    def wire(self) -> tuple[int, int]:
        """Bytes (there, back) that have crossed the link, headers included."""
        place = f"/sys/class/net/{self._link[0]}/statistics"
        words = [*self.source.enter, "cat", f"{place}/tx_bytes", f"{place}/rx_bytes"]
        there, back = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        return int(there), int(back)

    def close(self) -> None:
        for host in (self.source, self.target):
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True, check=False)
