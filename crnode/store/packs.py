"""Append-only packs: the log that makes object bytes durable.

A pack is a file of records, each a fixed header and the stored bytes behind it::

    magic 4 | kind u8 | codec u8 | reserved u16 | born u32 | raw length u32 | stored length u32 | id 32
    | crc32 of all these

Records are only ever appended; a pack that reached its size is sealed and never changes again. One
`fdatasync` makes everything appended before it durable. The pack is the truth: the index (index.py) is
rebuilt from it. Two packs are open at a time, one for small images and one for bulk, because a small durable
append beside a bulk writer in the same file waits for the bulk's pages as well.

Only the writer thread appends, syncs and removes; any thread may read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import fsync_dir, start_writeback

MAGIC = b"CRp1"
HEADER = struct.Struct(">4sBBHIII32s")
HEADER_LENGTH = HEADER.size + 4  # with the crc32 behind it
PACK_SIZE = (
    256 << 20
)  # bytes at which a pack is sealed: one object for an object store, one step of collection
WRITEBACK = 8 << 20  # bytes after which the disk is told to begin: it works while more is received
STORED_LIMIT = 16 << 20  # no record is larger; a header that says so is damage
_IOV_MAX = 1024
_BUFFER = 1 << 20
_BLOCK = 4096  # bytes that a rotten sector costs while scanning
_READERS = 256  # descriptors of packs kept open for reading

Check = Callable[[bytes, int, int, int, "bytes | memoryview"], bool]


class Lane(Enum):
    """Which of the two open packs an append goes to."""

    SMALL = "small"
    BULK = "bulk"


class Record(NamedTuple):
    """One object to append: content id, kind (0 chunk, 1 recipe), codec, raw length, stored bytes."""

    id: bytes
    kind: int
    codec: int
    raw: int
    stored: bytes | memoryview


class Location(NamedTuple):
    """Where an object lies: pack number, offset of its record in bytes, lengths in bytes, kind, codec, and
    the number of the collection at whose time it was put."""

    pack: int
    offset: int
    stored: int
    raw: int
    kind: int
    codec: int
    born: int

    @property
    def size(self) -> int:
        """Bytes that the whole record takes in its pack."""
        return HEADER_LENGTH + self.stored


class Found(NamedTuple):
    """A whole record met while scanning a pack."""

    id: bytes
    location: Location


class Gap(NamedTuple):
    """Bytes of a pack that are no record: a torn append when `at_end`, else damage. `end` is exclusive."""

    pack: int
    start: int
    end: int
    at_end: bool


class StoreFailed(Exception):
    """The disk did not do what it said (EIO, a failed sync). Never retried: the process ends and starts as
    suspect (rule 33), because after a failed sync the kernel may call lost pages clean."""


def full_error(place: Path, error: OSError) -> CrnodeError:
    """The sentence for a disk without room."""
    return CrnodeError(
        f"No room left in {place}.",
        f"The system said: {os.strerror(error.errno or errno.ENOSPC)}.",
        "Free some space; nothing was lost and work goes on by itself.",
        ExitCode.FULL,
    )


def is_full(error: OSError) -> bool:
    """Whether the error says that there is no room (disk or quota)."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class _Reader:
    """A descriptor that is closed when the last read through it has ended: a removed pack's number must not
    come to name another file while somebody still reads."""

    __slots__ = ("fd",)

    def __init__(self, path: Path) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class _Window:
    """Bytes of a pack for scanning, a buffer at a time; what the disk cannot read stands there as zeros,
    which are no record."""

    def __init__(self, fd: int, end: int) -> None:
        self.end = end
        self._fd = fd
        self._at = 0
        self._data = b""

    def read(self, offset: int, length: int) -> memoryview:
        """`length` bytes at `offset`, fewer at the end. Valid until the next call."""
        start = offset - self._at
        if start < 0 or start + length > len(self._data):
            self._data = self._load(offset, min(max(length, _BUFFER), self.end - offset))
            self._at, start = offset, 0
        return memoryview(self._data)[start : start + length]

    def find(self, what: bytes, start: int) -> int:
        """Offset of `what` at or behind `start`, or the end."""
        while start < self.end:
            self.read(start, min(len(what), self.end - start))
            hit = self._data.find(what, start - self._at)
            if hit >= 0:
                return self._at + hit
            start = max(self._at + len(self._data) - len(what) + 1, start + 1)
        return self.end

    def _load(self, offset: int, length: int) -> bytes:
        try:
            return self._pread(offset, length)
        except OSError:
            parts = []
            while length > 0:
                step = min(_BLOCK - offset % _BLOCK, length)
                try:
                    parts.append(self._pread(offset, step))
                except OSError:
                    parts.append(bytes(step))
                offset += step
                length -= step
            return b"".join(parts)

    def _pread(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data


class Packs:
    """The packs under one directory. See the module's text for who may call what."""

    def __init__(self, directory: Path, pack_size: int = PACK_SIZE) -> None:
        self.directory = directory
        self.pack_size = pack_size
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fsync_dir(directory.parent)
        self._open: dict[
            Lane, tuple[int, int, int]
        ] = {}  # lane -> (pack, descriptor, end of the last whole record)
        self._unsynced: set[Lane] = set()
        self._begun: dict[Lane, int] = {}  # up to where the disk was told to begin with what is not synced
        self._readers: OrderedDict[int, _Reader] = OrderedDict()
        self._lock = threading.Lock()
        numbers = self.numbers()
        self._next = (max(numbers) + 1) if numbers else 1
        self.used = self.total()  # the same as a running total, for who asks often

    # -- names

    def path(self, pack: int) -> Path:
        return self.directory / f"{pack:08d}.pack"

    def numbers(self) -> list[int]:
        """Numbers of all packs there are, ascending."""
        return sorted(int(p.stem) for p in self.directory.glob("*.pack") if p.stem.isdigit())

    def size(self, pack: int) -> int:
        return self.path(pack).stat().st_size

    def open_packs(self) -> set[int]:
        """Packs that may still grow."""
        return {pack for pack, _, _ in self._open.values()}

    def open_lanes(self) -> list[tuple[Lane, int, int]]:
        """(lane, pack, end in bytes) of the packs that may still grow."""
        return [(lane, pack, end) for lane, (pack, _, end) in self._open.items()]

    def total(self) -> int:
        """Bytes of all packs."""
        out = 0
        for path in self.directory.glob("*.pack"):
            with contextlib.suppress(FileNotFoundError):
                out += path.stat().st_size
        return out

    # -- appending (writer thread)

    def append(self, lane: Lane, records: Sequence[Record], born: int) -> list[Location]:
        """Append `records`; they are readable at once and durable after :meth:`sync`.

        Raises CrnodeError (FULL) with the pack cut back to its last whole record, StoreFailed for any other
        error."""
        out: list[Location] = []
        done = 0
        while done < len(records):
            pack, fd, end = self._lane(lane)
            parts: list[bytes | memoryview] = []
            offset = end
            while done < len(records) and len(parts) + 2 <= _IOV_MAX:
                record = records[done]
                length = len(record.stored)
                head = HEADER.pack(MAGIC, record.kind, record.codec, 0, born, record.raw, length, record.id)
                parts.append(head + zlib.crc32(head).to_bytes(4, "big"))
                parts.append(record.stored)
                out.append(Location(pack, offset, length, record.raw, record.kind, record.codec, born))
                offset += HEADER_LENGTH + length
                done += 1
                if offset >= self.pack_size:
                    break
            self._write(fd, end, offset - end, parts)
            self.used += offset - end
            self._open[lane] = (pack, fd, offset)
            self._unsynced.add(lane)
            begun = self._begun.get(lane, end)
            if offset - begun >= WRITEBACK:
                start_writeback(fd, begun, offset - begun)
                begun = offset
            self._begun[lane] = begun
            if offset >= self.pack_size:
                self.seal(lane)
        return out

    def _lane(self, lane: Lane) -> tuple[int, int, int]:
        state = self._open.get(lane)
        if state is None:
            pack = self._next
            fd = -1
            try:
                fd = os.open(self.path(pack), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                fsync_dir(self.directory)
            except OSError as error:
                if fd >= 0:
                    os.close(fd)
                    self.path(pack).unlink(missing_ok=True)
                if is_full(error):
                    raise full_error(self.directory, error) from error
                raise StoreFailed(f"cannot create {self.path(pack)}: {error}") from error
            self._next += 1
            state = self._open[lane] = (pack, fd, 0)
        return state

    def _write(self, fd: int, at: int, length: int, parts: list[bytes | memoryview]) -> None:
        try:
            written = os.pwritev(fd, parts, at)
            if written != length:  # a short write happens at a full disk or a signal: finish it plainly
                rest = memoryview(b"".join(parts))[written:]
                while rest:
                    written = os.pwrite(fd, rest, at + length - len(rest))
                    rest = rest[written:]
        except OSError as error:
            try:
                os.ftruncate(fd, at)
            except OSError as second:
                raise StoreFailed(f"cannot cut a pack back after {error}: {second}") from second
            if is_full(error):
                raise full_error(self.directory, error) from error
            raise StoreFailed(f"append failed: {error}") from error

    def sync(self) -> None:
        """Make all appended records durable. Raises StoreFailed, also where the file system finds out only
        now that it has no room: the kernel has dropped those pages."""
        for lane in list(self._unsynced):
            _, fd, _ = self._open[lane]
            self._fdatasync(fd)
            self._unsynced.discard(lane)
            self._begun.pop(lane, None)

    def _fdatasync(self, fd: int) -> None:
        try:
            os.fdatasync(fd)
        except OSError as error:
            # ENOSPC here is as final as EIO: pages that had no room are dropped by the kernel.
            raise StoreFailed(f"fdatasync of a pack failed: {error}") from error

    def seal(self, lane: Lane) -> None:
        """Sync the lane's pack and let no more be appended to it. It stays in the kernel's cache: a live tree
        reads it next."""
        state = self._open.pop(lane, None)
        self._begun.pop(lane, None)
        if state is None:
            return
        self._fdatasync(state[1])
        self._unsynced.discard(lane)
        os.close(state[1])

    def seal_all(self) -> None:
        for lane in list(self._open):
            self.seal(lane)

    def resume(self, lane: Lane, pack: int) -> None:
        """Go on appending to a pack, whose end must be a record border. For the start of a process."""
        fd = os.open(self.path(pack), os.O_RDWR | os.O_CLOEXEC)
        self._open[lane] = (pack, fd, os.fstat(fd).st_size)

    def truncate(self, pack: int, end: int) -> None:
        """Cut a torn append off. Only for the tail of a pack that is not open."""
        fd = os.open(self.path(pack), os.O_RDWR | os.O_CLOEXEC)
        try:
            self.used -= os.fstat(fd).st_size - end
            os.ftruncate(fd, end)
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def make_durable(self, pack: int) -> None:
        """Sync a pack that is not open: its tail was written by a process that may have died before its own
        sync."""
        fd = os.open(self.path(pack), os.O_RDWR | os.O_CLOEXEC)
        try:
            self._fdatasync(fd)
        finally:
            os.close(fd)

    def remove(self, pack: int) -> None:
        """Unlink a pack whose records nobody needs; readers that hold it open finish undisturbed."""
        with contextlib.suppress(FileNotFoundError):
            size = self.size(pack)
            self.path(pack).unlink()
            self.used -= size
        with self._lock:
            self._readers.pop(pack, None)

    # -- reading (any thread)

    def _reader(self, pack: int) -> _Reader:
        with self._lock:
            reader = self._readers.get(pack)
            if reader is None:
                reader = self._readers[pack] = _Reader(self.path(pack))
                while len(self._readers) > _READERS:
                    self._readers.popitem(last=False)
            return reader

    def read(self, where: Location, scratch: bytearray | None = None) -> memoryview:
        """The stored bytes of a record; with `scratch` they are in that, where it is large enough (new memory
        costs more than what is read into it). Raises FileNotFoundError when its pack is gone (look the id up
        again), ValueError when the record is damaged, OSError when the disk cannot read it."""
        reader = self._reader(where.pack)  # held until the read is over
        if scratch is not None and where.size <= len(scratch):
            data = memoryview(scratch)[: where.size]
            count = os.preadv(reader.fd, [data], where.offset)
        else:
            data = memoryview(os.pread(reader.fd, where.size, where.offset))
            count = len(data)
        if count != where.size or data[:4] != MAGIC:
            raise ValueError(f"record at {where.offset} of pack {where.pack} is damaged")
        return data[HEADER_LENGTH:]

    def scan(self, pack: int, start: int, check: Check, end: int | None = None) -> Iterator[Found | Gap]:
        """All records from offset `start` (a record border) to `end` (default: of the pack), and the gaps
        between.

        `check(id, kind, codec, raw length, stored bytes)` says whether the bytes are what the id names. After
        a broken record the next sound one is searched for, so that one rotten sector costs one record and not
        the rest of the pack."""
        fd = os.open(self.path(pack), os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            end = size if end is None else min(end, size)
            window = _Window(fd, end)
            offset = start
            bad_from: int | None = None
            while offset < end:
                found, length = self._parse(
                    window.read(offset, min(HEADER_LENGTH, end - offset)), pack, offset, end
                )
                if found is not None:
                    where = found.location
                    stored = window.read(offset + HEADER_LENGTH, where.stored)
                    if check(found.id, where.kind, where.codec, where.raw, stored):
                        if bad_from is not None:
                            yield Gap(pack, bad_from, offset, False)
                            bad_from = None
                        yield found
                        offset += length
                        continue
                if bad_from is None:
                    bad_from = offset
                # A sound header with wrong bytes tells where the next record begins; but a torn append may
                # carry an old header too, so the search goes on behind the magic, not behind the claimed
                # length.
                offset = window.find(MAGIC, offset + 1)
            if bad_from is not None:
                yield Gap(pack, bad_from, end, True)
        finally:
            os.close(fd)

    @staticmethod
    def _parse(head: memoryview, pack: int, offset: int, end: int) -> tuple[Found | None, int]:
        if len(head) < HEADER_LENGTH or head[:4] != MAGIC:
            return None, 0
        if zlib.crc32(head[: HEADER.size]) != int.from_bytes(head[HEADER.size :], "big"):
            return None, 0
        _, kind, codec, _, born, raw, stored, name = HEADER.unpack_from(head)
        if stored > STORED_LIMIT or offset + HEADER_LENGTH + stored > end:
            return None, 0
        return Found(name, Location(pack, offset, stored, raw, kind, codec, born)), HEADER_LENGTH + stored

    def close(self) -> None:
        """Close all descriptors; what was appended stays, durable only as far as it was synced."""
        for _, fd, _ in self._open.values():
            os.close(fd)
        self._open.clear()
        with self._lock:
            self._readers.clear()
