"""Live trees where less can be done: an agent that is not root, and file systems without owners or hard
links."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import random
import shutil
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_samples import directory, file, put_file, small_store
from test_live_tree import LINK, Tree

from crnode.capture.attributes import group_name, user_name
from crnode.replicate.write import Policy, TreeWriter
from crproto.entries import Extra

NOBODY = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that another user may reach."""
    made = Path(tempfile.mkdtemp(prefix="crnode-test-", dir="/var/tmp"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made)


def refuses(*_: Any, **__: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def as_nobody(place: Path, work: Callable[[], None]) -> None:
    """Run `work` in a process of a user who is not root; what fails there fails here."""
    if os.geteuid():
        work()
        return
    os.chown(place, NOBODY, NOBODY)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
        except BaseException:  # noqa: BLE001 - told by the parent
            os.write(write, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    assert not said, said


def test_folders_and_files_that_are_read_only_are_changed_by_an_agent_that_is_not_root(place: Path) -> None:
    Tree(place.parent / f"{place.name}-warm")  # what is imported late is imported as root
    shutil.rmtree(place.parent / f"{place.name}-warm")

    def work() -> None:
        tree = Tree(place)
        one, two = put_file(tree.store, b"one"), put_file(tree.store, b"two")
        closed = directory(b"mod")._replace(mode=0o555)
        tree.move([directory(b""), closed, file(b"mod/a", one, 3), file(b"mod/gone", one, 3)])
        report = tree.move([file(b"mod/a", two, 3, 5), file(b"mod/b", two, 3)], [b"mod/gone"])
        assert not report.unapplied
        assert {p.name: p.read_bytes() for p in (tree.live / "mod").iterdir()} == {"a": b"two", "b": b"two"}
        assert stat.S_IMODE((tree.live / "mod").stat().st_mode) == 0o555
        # A folder whose own mode changes with what is in it, and one that goes.
        report = tree.move([closed._replace(mode=0o500), file(b"mod/b", one, 3, 7)])
        assert not report.unapplied and stat.S_IMODE((tree.live / "mod").stat().st_mode) == 0o500

        before = random.Random(1).randbytes(2 << 20)
        after = before[:5000] + b"0123456789" + before[5010:]
        old, new = put_file(tree.store, before, 1 << 16), put_file(tree.store, after, 1 << 16)
        for number, named in enumerate((old, new)):
            report = tree.move([file(b"big", named, 2 << 20, number)._replace(mode=0o444)])
            assert not report.unapplied
        assert (tree.live / "big").read_bytes() == after
        for mode in (0o200, 0o600, 0o000, 0o640):
            assert not tree.move([file(b"w", one, 3)._replace(mode=mode)]).unapplied
            assert stat.S_IMODE((tree.live / "w").stat().st_mode) == mode
        assert not tree.move([], [b"mod/a", b"mod/b", b"mod"]).unapplied
        assert sorted(os.listdir(tree.live)) == ["big", "w"]

    as_nobody(place, work)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes owners")
def test_a_place_without_owners_holds_all_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exFAT, or a share that maps all to one user: not one file was written."""
    tree = Tree(tmp_path)
    tree.tree.policy = Policy(True, True)
    data = put_file(tree.store, b"one")

    monkeypatch.setattr(os, "fchown", refuses)
    monkeypatch.setattr(os, "chown", refuses)
    mine = file(b"tool", data, 3)._replace(mode=0o4755, owner="", owner_id=1234)
    report = tree.move([directory(b""), mine, file(b"d", data, 3)._replace(owner="", owner_id=0)])
    assert (tree.live / "tool").read_bytes() == b"one"
    assert "owner" in report.unapplied[b"tool"]
    assert stat.S_IMODE((tree.live / "tool").stat().st_mode) == 0o755  # set-id would be root's here


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes owners")
def test_what_is_nobodys_is_never_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 66: of a set that is not privileged nothing stays with root, where its owner cannot be set."""
    tree = Tree(tmp_path)
    tree.tree.policy = Policy(False, True)
    data = put_file(tree.store, b"one")

    monkeypatch.setattr(os, "fchown", refuses)
    monkeypatch.setattr(os, "chown", refuses)
    link = file(b"l", None, 0)._replace(kind=3, extra=Extra(target=b"a").encode(), owner_id=7)
    files = [file(b"f%d" % number, data, 3)._replace(owner_id=number) for number in (0, 7)]
    report = tree.move([directory(b""), *files, link])
    assert {b"f0", b"f7", b"l"} <= report.unapplied.keys() and os.listdir(tree.live) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes owners")
@pytest.mark.parametrize("refused", ["fchown", "fchmod", "link"])
def test_a_restore_leaves_nothing_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """It is the last resort, and says that it failed."""
    store = small_store(tmp_path / "store")
    data = put_file(store, b"one")
    (tmp_path / "tmp").mkdir()
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    temporary = os.open(tmp_path / "tmp", os.O_RDONLY | os.O_DIRECTORY)
    writer = TreeWriter(root, temporary, store.get, Policy(True, True))

    monkeypatch.setattr(os, refused, refuses)
    with pytest.raises(PermissionError):
        writer.file(file(b"f", data, 3, 1, LINK)._replace(owner_id=1234), (b"g",))
    assert os.listdir(tmp_path / "tmp") == [] and not (tmp_path / "f").exists()
    writer.close()
    os.close(root)
    os.close(temporary)


@pytest.mark.parametrize(("most", "code"), [(1, errno.EPERM), (1, errno.ENOTSUP), (40, errno.EMLINK)])
def test_a_place_without_hard_links_or_with_few_has_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, code: int
) -> None:
    tree = Tree(tmp_path)
    data = put_file(tree.store, b"one")
    real, calls = os.link, 0

    def link(source: str, name: str, **more: Any) -> None:
        nonlocal calls
        calls += 1
        if os.stat(source, dir_fd=more["src_dir_fd"]).st_nlink >= most:
            raise OSError(code, os.strerror(code))
        real(source, name, **more)

    monkeypatch.setattr(os, "link", link)
    names = [b"f%03d" % number for number in range(100)]
    report = tree.move([directory(b""), *(file(name, data, 3, 1, LINK) for name in names)])
    assert all((tree.live / os.fsdecode(name)).read_bytes() == b"one" for name in names)
    assert calls < 200 and os.listdir(tree.tree.place.temporary) == []
    assert any("files of their own" in why for why in report.unapplied.values())
    fresh = put_file(tree.store, b"two")
    tree.move([file(name, fresh, 3, 2, LINK) for name in names])
    assert all((tree.live / os.fsdecode(name)).read_bytes() == b"two" for name in names)
    assert not any(".crnode-" in name for name in os.listdir(tree.live))


def test_an_archive_keeps_a_file_of_the_longest_name_again_and_again(tmp_path: Path) -> None:
    """What is replaced by something of another kind gets a name that says so, and no file system has a longer
    one than that was."""
    tree = Tree(tmp_path)
    tree.tree.archive = True
    name = ("ж" * 127 + "x").encode()
    assert len(name) == 255
    contents = [put_file(tree.store, text) for text in (b"one", b"two", b"six")]
    tree.move([directory(b"")])
    for number, data in enumerate(contents):
        assert not tree.move([file(name, data, 3, number)]).unapplied
        assert not tree.move([directory(name)]).unapplied
        assert not tree.move([], [name]).unapplied
        shutil.rmtree(tree.live / os.fsdecode(name))  # an archive keeps it; a person does not
        tree.tree.repair([])
    kept = {path.read_bytes() for path in tree.live.iterdir() if path.is_file()}
    assert kept == {b"one", b"two", b"six"}
    for path in tree.live.iterdir():
        assert len(os.fsencode(path.name)) <= 255 and path.name.isprintable()


def test_an_attribute_whose_name_is_no_text_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path)
    extra = Extra(xattrs=((b"user.\xff", b"1"),)).encode()

    def refuses(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "no attributes here")

    monkeypatch.setattr(os, "setxattr", refuses)
    report = tree.move([directory(b""), file(b"f", put_file(tree.store, b"one"), 3, 1, extra)])
    assert "cannot be stored" in report.unapplied[b"f"] and (tree.live / "f").read_bytes() == b"one"
    assert "cannot be stored" in dict(tree.catalog.reader().unapplied(10))[b"f"]


def test_a_user_whose_name_is_no_text_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_name="m\udcfcller"))
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_name="m\udcfcller"))
    assert (user_name.__wrapped__(4321), group_name.__wrapped__(4321)) == ("", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a file immutable")
def test_what_cannot_be_moved_away_leaves_no_folder_with_each_image(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    one, two = put_file(tree.store, b"one"), put_file(tree.store, b"two")
    tree.move([directory(b""), directory(b"d"), file(b"d/f", one, 3)])
    if subprocess.run(["chattr", "+i", tree.live / "d" / "f"], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        for number in range(3):
            report = tree.move([file(b"d/f", two, 3, number), directory(b"d/f2" + b"%d" % number)])
            assert b"d/f" in report.unapplied
            tree.tree.repair([b"d/f"])
        aside = tree.tree.place.temporary.parent / "aside"
        assert not aside.exists() or list(aside.rglob("*")) == []
    finally:
        subprocess.run(["chattr", "-i", tree.live / "d" / "f"], check=True)
