"""An address that a node has to reach before it becomes active, its gateway for one (rule 11).

It only ever forbids: who cannot reach it is most likely cut off from its users as well. It is never a vote.
Asked is by ICMP echo (RFC 792, RFC 4443), each second, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import Executor

EVERY_SECONDS = 1.0
WAIT_SECONDS = 1.0
LATELY_SECONDS = 4.0  # who answered within that is reached
ECHO_V4, ECHO_V6 = 8, 128
REPLY_V4, REPLY_V6 = 0, 129


def echo(kind: int, number: int, sequence: int) -> bytes:
    """An echo request with its checksum (RFC 792; that of ICMPv6 the kernel writes)."""
    body = struct.pack(">BBHHH", kind, 0, 0, number, sequence) + b"crnode--"
    summed = sum(struct.unpack(f">{len(body) // 2}H", body))
    while summed >> 16:
        summed = (summed & 0xFFFF) + (summed >> 16)
    return b"".join((body[:2], (~summed & 0xFFFF).to_bytes(2, "big"), body[4:]))


def is_reply(data: bytes, version: int, number: int, sequence: int) -> bool:
    """Whether that packet answers that request; of IPv4 the header comes with it."""
    at = (data[0] & 0x0F) * 4 if version == 4 and data else 0
    if len(data) < at + 8:
        return False
    kind, _, _, about, which = struct.unpack(">BBHHH", data[at : at + 8])
    return kind == (REPLY_V4 if version == 4 else REPLY_V6) and (about, which) == (number, sequence)


def answers(address: str, sequence: int) -> bool:
    """Whether it answers within WAIT_SECONDS. OSError when nothing may be asked here."""
    version = ipaddress.ip_address(address).version
    number = os.getpid() & 0xFFFF
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    deadline = time.monotonic() + WAIT_SECONDS
    with socket.socket(family, socket.SOCK_RAW, protocol) as wire:
        try:
            wire.sendto(echo(ECHO_V4 if version == 4 else ECHO_V6, number, sequence & 0xFFFF), (address, 0))
        except OSError:
            return False  # no way leads there
        while (left := deadline - time.monotonic()) > 0:
            wire.settimeout(left)
            try:
                data, sender = wire.recvfrom(2048)
            except TimeoutError:
                break
            if _same(sender[0], address) and is_reply(data, version, number, sequence & 0xFFFF):
                return True
    return False


def _same(one: str, other: str) -> bool:
    """Whether both texts are one address, however it is written."""
    bare = (ipaddress.ip_address(text.partition("%")[0]) for text in (one, other))
    return next(bare) == next(bare)


class Veto:
    """Asks one address as long as it runs."""

    def __init__(self, address: str, executor: Executor, say: Callable[[str], None]) -> None:
        self.address = address
        self._executor = executor
        self._say = say
        self._heard: float | None = None  # None: never yet
        self._cannot = False

    @property
    def forbids(self) -> str:
        """Why this node may not become active by itself; '' when it may."""
        if self._cannot or (self._heard is not None and time.monotonic() - self._heard < LATELY_SECONDS):
            return ""
        return f"it does not reach {self.address}, and may be cut off from its users"

    async def run(self) -> None:
        """Ask until cancelled."""
        loop, sequence = asyncio.get_running_loop(), 0
        while not self._cannot:
            sequence += 1
            try:
                if await loop.run_in_executor(self._executor, answers, self.address, sequence):
                    self._heard = time.monotonic()
            except OSError as error:
                self._cannot = True
                self._say(f"{self.address} cannot be asked from here: {error.strerror or error}.")
            await asyncio.sleep(EVERY_SECONDS)


__all__ = ["Veto", "answers", "echo", "is_reply"]
