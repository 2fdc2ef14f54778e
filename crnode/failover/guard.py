"""What keeps a keeper alive and in time, and what ends its services when it is neither (rules 4 and 7).

The keeper's memory is locked, it is spared by the out-of-memory killer, and it runs before ordinary programs
where that is allowed. systemd is told that it lives by the very loop that renews the lease (sd_notify(3)),
and kills it, with all that is bound to it, when it does not; a watchdog of the machine, armed while it is
active, does the same to the machine (the kernel's Documentation/watchdog/watchdog-api.rst).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
OOM_SCORE = "-1000"
REAL_TIME = 1  # the least of the priorities that go before all ordinary ones
FEED_SECONDS = 0.5
WDIOC_SETTIMEOUT = 0xC0045706  # _IOWR('W', 6, int)
TIMEOUT_SECONDS = 10


def lock_memory() -> bool:
    """Nothing that this process has touched is swapped out (mlockall(2)); False where that may not be. With a
    bound on it, what is asked for later would be refused beyond that: then nothing is locked."""
    if os.geteuid() != 0 and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0)


def spare_memory() -> bool:
    """Others are ended before this process when memory runs out (proc(5), oom_score_adj)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
        return True
    return False


def run_first() -> bool:
    """This thread runs before all ordinary programs (sched(7)); what it starts does not."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(REAL_TIME))
        return True
    return False


class Systemd:
    """systemd, where it started this process as a service that reports (Type=notify)."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._where = environment.get("NOTIFY_SOCKET", "")
        self.watches = "WATCHDOG_USEC" in environment and bool(self._where)
        self._told = 0.0

    def tell(self, what: str) -> None:
        """sd_notify(3)."""
        if self._where:
            where = "\0" + self._where[1:] if self._where.startswith("@") else self._where
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.connect(where)
                out.send(what.encode())

    def alive(self) -> None:
        """Called by the loop that renews the lease."""
        now = time.monotonic()
        if self.watches and now - self._told >= FEED_SECONDS / 2:
            self._told = now
            self.tell("WATCHDOG=1")


class Watchdog:
    """A watchdog device: armed while this node is active, fed while it may be, disarmed when nothing of it is
    left. Not fed, it starts the machine again."""

    def __init__(self, path: str, say: Callable[[str], None]) -> None:
        self.path = path
        self._say = say
        self._fd: int | None = None
        self._fed = 0.0

    @property
    def is_armed(self) -> bool:
        return self._fd is not None

    def arm(self) -> None:
        """From now on it has to be fed."""
        if self._fd is None:
            try:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            except OSError as error:
                self._say(f"The watchdog {self.path} could not be armed: {error.strerror}.")
                return
            with contextlib.suppress(OSError):  # else it has a time of its own
                fcntl.ioctl(self._fd, WDIOC_SETTIMEOUT, struct.pack("i", TIMEOUT_SECONDS))

    @property
    def is_usable(self) -> bool:
        """Whether there is one that may be armed."""
        return self.is_armed or os.access(self.path, os.W_OK)

    def feed(self) -> None:
        """It is as it should be; often enough is a part of the device's time."""
        now = time.monotonic()
        if self._fd is not None and now - self._fed >= FEED_SECONDS:
            self._fed = now
            with contextlib.suppress(OSError):
                os.write(self._fd, b"1")

    def disarm(self) -> None:
        """The magic close: without it the machine would start again."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, b"V")
            os.close(self._fd)
            self._fd = None


__all__ = ["Systemd", "Watchdog", "lock_memory", "run_first", "spare_memory"]
