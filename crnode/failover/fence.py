"""What a keeper does to its machine: the floating address, and processes that end with it.

The address is only ever added with a lifetime, so that the kernel ends it when nobody refreshes it (rule
4): a whole number of seconds that is less than what is left of the lease. A service is a command in the
foreground, in a process group of its own; when its keeper dies, the kernel kills it with it
(PR_SET_PDEATHSIG), and a fence kills the whole group at once, with no graceful phase (rule 6).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1
IP_SECONDS = 1.0  # `ip` takes 2 ms; a machine on which it takes a second serves nobody well
ANNOUNCE_SECONDS = (0.0, 1.0, 5.0)  # after it was taken, and then with ANNOUNCE_AGAIN
ANNOUNCE_AGAIN = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


class Address:
    """The floating address of an interface. Every method may be called at any time, again and again."""

    def __init__(self, address: str, interface: str, say: Callable[[str], None]) -> None:
        self.address = ipaddress.ip_interface(address)
        self.interface = interface
        self.on = False
        self._say = say
        self._until = 0.0
        self._announced = 0
        self._taken = 0.0

    def off(self) -> None:
        """Nobody is answered under it any more."""
        self.on = False
        self._ip("del", str(self.address), "dev", self.interface, quiet=True)

    def hold(self, left_s: float) -> None:
        """Have it for what is left of the lease, less half a second, in whole seconds: after that the kernel
        takes it away."""
        seconds = int(left_s - 0.5)
        if seconds < 1:
            return
        until = time.monotonic() + seconds
        if self.on and until - self._until < 0.5:
            return
        lifetime = str(seconds)
        lifetimes = ("valid_lft", lifetime, "preferred_lft", lifetime)
        if not self._ip("replace", str(self.address), "dev", self.interface, *lifetimes):
            return
        self._until = until
        if not self.on:
            self.on, self._taken, self._announced = True, time.monotonic(), 0
        self._announce()

    def _announce(self) -> None:
        """Tell the neighbours (RFC 5227, an ARP announcement; RFC 4861, an unsolicited advertisement is not
        sent yet): at once, after one and five seconds, and each ten from then on."""
        age = time.monotonic() - self._taken
        due = (
            ANNOUNCE_SECONDS[self._announced]
            if self._announced < len(ANNOUNCE_SECONDS)
            else ANNOUNCE_AGAIN * (self._announced - len(ANNOUNCE_SECONDS) + 1)
        )
        if age < due or self.address.version != 4:
            return
        self._announced += 1
        try:
            text = Path(f"/sys/class/net/{self.interface}/address").read_text().strip()
            mac = bytes.fromhex(text.replace(":", ""))
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
                out.bind((self.interface, 0x0806))
                out.send(announcement(mac, self.address.ip.packed))
        except OSError as error:
            self._say(f"The address {self.address} could not be announced: {error.strerror or error}.")

    def _ip(self, *words: str, quiet: bool = False) -> bool:
        try:
            done = subprocess.run(
                ["ip", "address", *words], capture_output=True, text=True, timeout=IP_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self._say(f"The address {self.address} could not be changed: {error}.")
            return False
        if done.returncode and not quiet:
            self._say(f"The address {self.address} could not be changed: {done.stderr.strip()}")
        return done.returncode == 0


def announcement(mac: bytes, address: bytes) -> bytes:
    """The Ethernet frame of an ARP announcement (RFC 5227, 3): a request for one's own address."""
    broadcast = b"\xff" * 6
    head = struct.pack(">6s6sH", broadcast, mac, 0x0806)
    arp = struct.pack(">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, address, bytes(6), address)
    return head + arp


def signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """To a process and everything that it started in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def die_with_parent() -> None:
    """In the child, before it becomes the service: prctl(2), PR_SET_PDEATHSIG."""
    _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


__all__ = ["Address", "announcement", "die_with_parent", "signal_group"]
