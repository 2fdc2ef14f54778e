"""Hard links, of files and of symbolic links, are the same groups at the target as at the source, whatever
joins and leaves them, and in a restore."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from harness import Cluster, rsync_difference, wait_for

NAMES = [f"{folder}/{name}" for folder in ("a", "b/c") for name in ("one", "two", "three", "four", "five")]


def groups(root: Path) -> set[frozenset[str]]:
    """The names below `root`, by inode."""
    found: dict[int, set[str]] = {}
    for folder, names, files in os.walk(root):
        for name in files + [n for n in names if os.path.islink(os.path.join(folder, n))]:
            path = os.path.join(folder, name)
            found.setdefault(os.lstat(path).st_ino, set()).add(os.path.relpath(path, root))
    return {frozenset(names) for names in found.values()}


def change(root: Path, chance: random.Random) -> None:
    """One name becomes something new, or another name of what some name is; or what a name is changes."""
    path, other = (root / name for name in chance.sample(NAMES, 2))
    match chance.randrange(5):
        case 0:
            path.unlink(missing_ok=True)
            path.write_bytes(os.urandom(chance.randrange(9000)))
        case 1:
            path.unlink(missing_ok=True)
            path.symlink_to(f"to {chance.randrange(99)}")
        case 2 | 3 if os.path.lexists(other):
            path.unlink(missing_ok=True)
            os.link(other, path, follow_symlinks=False)
        case 4 if path.is_symlink():
            os.utime(path, ns=(5, chance.randrange(10**12)), follow_symlinks=False)
        case 4 if path.is_file():
            with open(path, "ab") as file:
                file.write(b"more")


def test_groups_of_hard_links_are_kept(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    box2 = cluster.join("box2")
    source, live = tmp_path / "source", tmp_path / "live"
    for name in NAMES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"])
    chance = random.Random(65)
    linked = 0
    for turn in range(16):
        for _ in range(chance.randrange(1, 12)):
            change(source, chance)
        if turn == 7:
            box2.kill()
        elif turn == 9:  # several images in one move
            box2.start()
        if turn not in (7, 8):
            cluster.sync("docs")
            assert groups(live) == groups(source), f"turn {turn}"
            assert rsync_difference(source, live) == ""
        linked += sum(len(g) > 1 and os.path.islink(source / min(g)) for g in groups(source))
    assert linked > 5  # else this is no test of symbolic links with several names
    place = tmp_path / "restored"
    out = box2.call("restore", {"set": "docs", "to": str(place)})
    assert out["digest_ok"]
    assert groups(place) == groups(source)
    said = [text for node in cluster.nodes.values() for text in node.events()]
    assert not [text for text in said if "changed locally" in text]


def _linked(cluster: Cluster, tmp_path: Path) -> tuple[Path, Path]:
    source, live = tmp_path / "source", tmp_path / "live"
    for name in "abc":
        (source / name).mkdir(parents=True)
    (source / "a" / "one").write_bytes(b"data")
    os.link(source / "a" / "one", source / "b" / "two")
    (source / "f").write_bytes(b"a file")
    cluster.init()
    cluster.join("box2")
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"])
    cluster.sync("docs")
    assert rsync_difference(source, live) == ""
    return source, live


def test_a_third_name_moves_the_time_of_no_other_folder(cluster: Cluster, tmp_path: Path) -> None:
    source, live = _linked(cluster, tmp_path)
    os.link(source / "a" / "one", source / "c" / "three")
    wait_for(lambda: (live / "c" / "three").exists())
    wait_for(lambda: rsync_difference(source, live) == "")
    assert rsync_difference(source, live) == ""


def test_a_group_with_a_name_in_what_was_a_file(cluster: Cluster, tmp_path: Path) -> None:
    source, live = _linked(cluster, tmp_path)
    cluster.nodes["box2"].kill()
    (source / "e").write_bytes(b"linked")
    (source / "f").unlink()
    (source / "f").mkdir()
    os.link(source / "e", source / "f" / "x")
    time.sleep(1)
    cluster.nodes["box2"].start()
    wait_for(lambda: (live / "e").exists())
    wait_for(lambda: rsync_difference(source, live) == "")
    assert rsync_difference(source, live) == ""
