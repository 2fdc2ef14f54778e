"""Comparing the tree on disk with the newest image by stat alone: which paths have to be captured.

Used in the capture thread for a directory that appeared, and as a process of its own for a whole set
(`python -m crnode.capture.scan`), so that a million stats never hold up a heartbeat or an acknowledgement.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw

from crnode.capture.roots import OpenRoots, OwnPlaces, Selection, labels
from crnode.platform.files import open_beneath
from crnode.store.reader import Fingerprint, Reader, open_reader, signed
from crproto.entries import DIRECTORY, FILE, SYMLINK
from crproto.paths import join, problem

_LENGTH = struct.Struct(">I")
CATALOG_DAMAGED = 3  # exit code: the catalog cannot be used, what SQLite says is on standard error


def dirty_paths(
    roots: OpenRoots,
    catalog: Reader,
    ordinal: int,
    takes: Callable[[bytes, bool], bool],
    top: bytes,
    own: OwnPlaces,
    on_directory: Callable[[bytes], None] | None = None,
) -> Iterator[bytes]:
    """Paths at and below `top` whose disk state differs from image `ordinal`, vanished ones included.

    `on_directory` is called with each directory before it is listed, so that a watch can be there first.
    """
    try:
        root_fd, below = roots.resolve(top)
        device = os.fstat(root_fd).st_dev
        fd = open_beneath(root_fd, below, os.O_RDONLY | os.O_DIRECTORY)
    except (OSError, KeyError):
        yield top  # not a directory (any more): capturing it says what it is
        return
    yield from _below(fd, top, device, catalog, ordinal, takes, own, on_directory)


def _below(
    fd: int,
    path: bytes,
    device: int,
    catalog: Reader,
    ordinal: int,
    takes: Callable[[bytes, bool], bool],
    own: OwnPlaces,
    on_directory: Callable[[bytes], None] | None,
) -> Iterator[bytes]:
    """Walks with one descriptor a level; takes ownership of `fd`."""
    try:
        if on_directory is not None:
            on_directory(path)
        # Once it is watched: what changed since its parent was listed made no event.
        if _differs(os.fstat(fd), catalog.fingerprint(path)):
            yield path
        known = catalog.names(path, ordinal)
        subdirectories: list[bytes] = []
        with os.scandir(fd) as listing:
            while True:
                try:
                    item = next(listing, None)
                except OSError:  # a damaged folder: what was in it is not known to be gone
                    yield path
                    known = {}
                    break
                if item is None:
                    break
                name = os.fsencode(item.name)
                child = join(path, name)
                try:
                    info = item.stat(follow_symlinks=False)
                except OSError:
                    continue  # gone again; if it was known, it is left in `known` and reported below
                is_dir = stat.S_ISDIR(info.st_mode)
                if not takes(child, is_dir) or (is_dir and own.workspace(fd, name)):
                    continue
                if is_dir and own.destination(fd, name):
                    yield child  # whoever captures it says what it is
                    known.pop(name, None)
                    continue
                old = known.pop(name, None)
                if old is None or old[0] != _kind(info.st_mode) or _differs(info, old[1]):
                    yield child
                if is_dir and info.st_dev == device and not problem(child):
                    subdirectories.append(name)  # what is too deep is reported by whoever captures it
        for name in known:
            yield join(path, name)
        for name in subdirectories:
            try:
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            except OSError:
                yield join(path, name)
                continue
            yield from _below(below, join(path, name), device, catalog, ordinal, takes, own, on_directory)
    finally:
        os.close(fd)


def _kind(mode: int) -> int:
    if stat.S_ISDIR(mode):
        return DIRECTORY
    if stat.S_ISLNK(mode):
        return SYMLINK
    return FILE


def _differs(info: os.stat_result, known: Fingerprint | None) -> bool:
    # As Fingerprint.of says it, for a million files: times out of range are captured of none.
    ino = info.st_ino if info.st_ino < 1 << 63 else signed(info.st_ino)
    return known is None or (
        known.ino != ino
        or known.ctime_ns != info.st_ctime_ns
        or known.mtime_ns != info.st_mtime_ns
        or (not stat.S_ISDIR(info.st_mode) and known.size != info.st_size)
    )


def encode_request(
    paths: list[str], include: list[str], exclude: list[str], catalog: Path, ordinal: int, set_uuid: str
) -> str:
    """What the scanning process reads from its input (an argument may not be longer than 128 KiB)."""
    return json.dumps(
        {
            "paths": paths,
            "include": include,
            "exclude": exclude,
            "catalog": str(catalog),
            "ordinal": ordinal,
            "set": set_uuid,
        }
    )


def catalog_of(request: str) -> Path:
    """The catalog that a request names."""
    return Path(json.loads(request)["catalog"])


def differing(request: str) -> Iterator[bytes]:
    """The dirty paths of a whole set. Raises OSError where a folder of it cannot be opened, apsw.Error."""
    body = json.loads(request)
    selection = Selection(body["include"], body["exclude"])
    own = OwnPlaces(body["set"])
    roots = OpenRoots(labels(body["paths"]))
    try:
        with open_reader(Path(body["catalog"])) as catalog:
            for top in roots.tops():
                yield from dirty_paths(roots, catalog, body["ordinal"], selection.takes, top, own)
    finally:
        roots.close()


def main(request: str) -> int:
    """Scan a whole set and write its dirty paths to standard output, each with its length in four bytes
    before it; a length of 2^32-1 says that the scan came to its end."""
    os.nice(10)
    out = sys.stdout.buffer
    try:
        for path in differing(request):
            out.write(_LENGTH.pack(len(path)) + path)
    except OSError as error:  # it went away since somebody looked: no defect, and no traceback in a log
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)  # noqa: T201 - for whoever asked
        return 1
    except (apsw.CorruptError, apsw.NotADBError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - for whoever asked
        return CATALOG_DAMAGED
    out.write(_LENGTH.pack(0xFFFFFFFF))
    out.flush()
    return 0


def decode_paths(data: bytes) -> tuple[list[bytes], bytes, bool]:
    """(whole paths, rest of `data`, whether the end mark was met) of what :func:`main` writes."""
    out: list[bytes] = []
    at = 0
    while at + 4 <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        if length == 0xFFFFFFFF:
            return out, data[at + 4 :], True
        if at + 4 + length > len(data):
            break
        out.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return out, data[at:], False


if __name__ == "__main__":
    sys.exit(main(sys.stdin.read()))
