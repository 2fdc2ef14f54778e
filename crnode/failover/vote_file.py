"""The vote file on the disk: two preallocated slots, written in turn, durable before anything is answered.

A full disk stops no vote, because nothing is allocated when one is written. What is in a slot is said in
hard_state.py.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from crnode.failover.hard_state import FILE_BYTES, NoState, decode, encode_slot, offset
from crnode.failover.terms import NO_EPOCH, Config, ConfigId, Hard
from crnode.platform.files import fsync_dir

NAME = "votes"
NO_CONFIG = Config(ConfigId(0, NO_EPOCH, 0), (), (), 0)
"""Of a keeper that nobody has told yet who votes: it votes for nobody."""


class VoteFile:
    """One keeper's. Opened for synchronous writing: a write that returned is on the disk (open(2),
    O_DSYNC)."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make a new one under a new incarnation when there is none, or none that can be
        read: that keeper is nobody that ever voted (rule 8). Raises OSError."""
        self.path = path
        self.is_new = False
        self._number = -1
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_DSYNC | os.O_CLOEXEC | os.O_NOFOLLOW)
            self.hard, self._number = decode(os.pread(self._fd, FILE_BYTES, 0))
        except FileNotFoundError:
            self._make()
        except NoState:
            os.close(self._fd)
            path.rename(path.with_name(f"{NAME}.unreadable"))
            self._make()

    def _make(self) -> None:
        self.is_new = True
        temporary = self.path.with_name(f".{NAME}.new")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_DSYNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(temporary, flags, 0o600)
        os.pwrite(self._fd, bytes(FILE_BYTES), 0)
        self.save(Hard(secrets.token_bytes(16), NO_EPOCH, "", NO_CONFIG, 0, NO_EPOCH))
        temporary.rename(self.path)
        fsync_dir(self.path.parent)

    def lock(self) -> bool:
        """Be the only keeper of this file for as long as it is open; False where another one is."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def save(self, hard: Hard) -> None:
        """Durable when it returns. Raises OSError: then nothing that depends on it may be said."""
        number = self._number + 1
        slot = encode_slot(hard, number)
        if os.pwrite(self._fd, slot, offset(number)) != len(slot):
            raise OSError(5, "the vote file was written in part only")
        self.hard, self._number = hard, number

    def close(self) -> None:
        os.close(self._fd)
