"""What crnode itself put into a source's tree is told from what users have there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from crnode.capture.roots import OwnPlaces
from crnode.replicate.place import prepare

SET = bytes(range(16))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield tmp_path, fd
    os.close(fd)


def test_a_destination_and_its_workspace_are_recognised(root: tuple[Path, int]) -> None:
    place, fd = root
    prepare(place / "copy", SET)
    own = OwnPlaces(SET.hex())
    assert own.destination(fd, b"copy") and own.workspace(fd, b".crnode-copy")
    assert not own.destination(fd, b".crnode-copy") and not own.workspace(fd, b"copy")
    other = OwnPlaces("ff" * 16)
    assert not other.destination(fd, b"copy"), "another set's destination may be a source"
    assert other.workspace(fd, b".crnode-copy")
    assert not OwnPlaces("").destination(fd, b"copy")


def test_a_copy_of_a_destination_is_the_users(root: tuple[Path, int]) -> None:
    place, fd = root
    (place / "elsewhere").mkdir()
    prepare(place / "elsewhere" / "projects", SET)
    shutil.copytree(place / "elsewhere", place, dirs_exist_ok=True)  # a target's disk brought back
    assert not OwnPlaces(SET.hex()).destination(fd, b"projects")


def test_folders_that_only_look_like_it_are_the_users(root: tuple[Path, int]) -> None:
    place, fd = root
    own = OwnPlaces(SET.hex())
    (place / ".crnode-notes").mkdir()
    (place / "notes").mkdir()
    assert not own.workspace(fd, b".crnode-notes") and not own.destination(fd, b"notes")
    for body in (b"", b"no json", b"[]", json.dumps({"set": SET.hex()}).encode()):
        (place / ".crnode-notes" / "set").write_bytes(body)
        assert not own.destination(fd, b"notes")
    (place / ".crnode-notes" / "set").unlink()
    os.mkfifo(place / ".crnode-notes" / "set")
    assert not own.workspace(fd, b".crnode-notes")


def test_a_mark_of_another_user_is_none(root: tuple[Path, int]) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a file to another user takes root")
    place, fd = root
    (place / "projects").mkdir()
    (place / ".crnode-projects").mkdir()
    mark = place / ".crnode-projects" / "set"
    mark.write_text(json.dumps({"set": SET.hex(), "inode": (place / "projects").stat().st_ino}))
    own = OwnPlaces(SET.hex())
    assert own.destination(fd, b"projects")
    os.chown(mark, 12345, 12345)
    assert not own.destination(fd, b"projects") and not own.workspace(fd, b".crnode-projects")
