"""What a keeper does to its machine: the floating address, and commands of the owner that move one.

The address is only ever added with a lifetime, so that the kernel ends it when nobody refreshes it (rule
4): a whole number of seconds that is less than what is left of the lease. Where no address can be moved (a
name in the DNS, a cloud), a command of the owner does what is needed; and where machines can be switched off
(a hypervisor, a power distribution unit), another one does that before anybody serves (rule 2).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from crnode.failover.frames import (
    ETH_ARP,
    ETH_IPV6,
    arp_announcement,
    arp_holder,
    arp_probe,
    neighbour_advertisement,
    neighbour_holder,
    neighbour_probe,
)

PR_SET_PDEATHSIG = 1
IP_SECONDS = 1.0  # `ip` takes 2 ms; a machine on which it takes a second serves nobody well
# after it was taken, and then with ANNOUNCE_AGAIN (rule 22)
ANNOUNCE_SECONDS = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
ANNOUNCE_AGAIN = 10.0
PROBE_SECONDS = 0.3  # who has the address answers within that
HOOK_SECONDS = 30.0
DROP_LOOK_SECONDS = 0.05
SAID_BYTES = 500  # of what a hook prints that are told
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
        words = [str(self.address), "dev", self.interface, "valid_lft", str(seconds)]
        words += ["preferred_lft", str(seconds)]
        if self.address.version == 6:
            # whether another one has it was asked before, and is no reason not to serve
            words.append("nodad")
        if not self._ip("replace", *words):
            return
        self._until = until
        if not self.on:
            self.on, self._taken, self._announced = True, time.monotonic(), 0
        self._announce()

    def _announce(self) -> None:
        """Tell the neighbours: five times at first, after five seconds, and each ten from then on."""
        age = time.monotonic() - self._taken
        due = (
            ANNOUNCE_SECONDS[self._announced]
            if self._announced < len(ANNOUNCE_SECONDS)
            else ANNOUNCE_AGAIN * (self._announced - len(ANNOUNCE_SECONDS) + 1)
        )
        if age < due:
            return
        self._announced += 1
        packed = self.address.ip.packed
        try:
            mac = self._mac()
            if self.address.version == 4:
                protocol, frame = ETH_ARP, arp_announcement(mac, packed)
            else:
                protocol, frame = ETH_IPV6, neighbour_advertisement(mac, packed)
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
                out.bind((self.interface, protocol))
                out.send(frame)
        except OSError as error:
            self._say(f"The address {self.address} could not be announced: {error.strerror or error}.")

    def announce_more(self) -> None:
        """Called now and then while it is held: what is due is announced."""
        if self.on:
            self._announce()

    def _mac(self) -> bytes:
        text = Path(f"/sys/class/net/{self.interface}/address").read_text().strip()
        return bytes.fromhex(text.replace(":", ""))

    def other_holder(self) -> str:
        """The MAC of another machine that answers for the address now, '' for none (rule 22). Takes
        PROBE_SECONDS; OSError when the interface cannot be asked. In a thread."""
        packed, mac = self.address.ip.packed, self._mac()
        if self.address.version == 4:
            protocol, frame, holder = ETH_ARP, arp_probe(mac, packed), arp_holder
        else:
            protocol, frame, holder = ETH_IPV6, neighbour_probe(mac, packed), neighbour_holder
        deadline = time.monotonic() + PROBE_SECONDS
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol)) as wire:
            wire.bind((self.interface, protocol))
            wire.send(frame)
            while (left := deadline - time.monotonic()) > 0:
                wire.settimeout(left)
                try:
                    found = holder(wire.recv(2048), packed)
                except TimeoutError:
                    break
                if found and found != mac:
                    return found.hex(":")
        return ""

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


async def run_hook(
    command: str, begun: Callable[[asyncio.subprocess.Process], None] = lambda _: None, **said: str
) -> str:
    """Run a command of the owner, by the shell, with `said` in its environment. `begun` is told the process.
    '' when it ended with 0 in time, else why not, as a sentence without its full stop."""
    try:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **said},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    except OSError as error:
        return f"it could not be run: {error.strerror or error}"
    begun(process)
    try:
        async with asyncio.timeout(HOOK_SECONDS):
            out, _ = await process.communicate()
    except TimeoutError:
        signal_group(process, signal.SIGKILL)
        await process.wait()
        return f"it did not end within {HOOK_SECONDS:g} s"
    if process.returncode == 0:
        return ""
    text = out[-SAID_BYTES:].decode(errors="replace").strip()
    return f"it ended with {process.returncode}" + (f": {text}" if text else "")


class Clients:
    """The owner's command that brings the clients here and takes them away; what was said last counts, also
    by the one `before`."""

    def __init__(self, command: str, address: str, node: str, before: Clients | None = None) -> None:
        self.command, self.address = command, address
        self.taken = False  # or it may be
        self._said = {"CRNODE_ADDRESS": address, "CRNODE_NODE": node}
        self._taking: asyncio.subprocess.Process | None = None
        self._dropping: subprocess.Popen[bytes] | None = before._dropping if before is not None else None

    async def take(self) -> str:
        """Bring them here, once what takes them away has ended; '' or why not."""
        self.taken = True
        for _ in range(int(HOOK_SECONDS / DROP_LOOK_SECONDS)):
            if self._dropping is None or self._dropping.poll() is not None:
                break
            await asyncio.sleep(DROP_LOOK_SECONDS)
        if not self.taken:
            return "they were taken away meanwhile"
        return await run_hook(self.command, self._begun, **self._said, CRNODE_ACTION="take")

    def _begun(self, process: asyncio.subprocess.Process) -> None:
        self._taking = process

    def drop(self) -> None:
        """Take them away. A fence waits for nobody; what brings them yet is ended first (rule 17)."""
        if not self.taken:
            return
        self.taken = False
        if self._taking is not None and self._taking.returncode is None:
            signal_group(self._taking, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._dropping = subprocess.Popen(
                ["sh", "-c", self.command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **self._said, "CRNODE_ACTION": "drop"},
                start_new_session=True,
                preexec_fn=not_spared,
            )


def signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """To a process and everything that it started in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def die_with_parent() -> None:
    """In the child, before it becomes something else: prctl(2), PR_SET_PDEATHSIG. What protects a keeper from
    the out-of-memory killer is not for what it starts."""
    _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    not_spared()


def not_spared() -> None:
    """In the child: memory may be had of it as of any other."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")


__all__ = ["Address", "Clients", "die_with_parent", "not_spared", "run_hook", "signal_group"]
