"""What a live tree sets aside stays in the workspace, is never gone through and never replaced."""

from __future__ import annotations

import os
from pathlib import Path

from store_samples import directory, file, put_file
from test_live_tree import Tree

from crnode.replicate.aside import Aside

NOW = "2026-03-04 05.06.07"


def held(top: Path) -> dict[str, bytes]:
    """relative path -> bytes of every file below `top`; links are not followed."""
    found = [Path(above, name) for above, _, names in os.walk(top) for name in names]
    return {str(path.relative_to(top)): path.read_bytes() for path in found}


def take(aside: Aside, tree: Path, path: str) -> None:
    """Set `path` of `tree` aside."""
    parent = os.open((tree / path).parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        aside.keep(parent, os.fsencode(Path(path).name), os.fsencode(path))
    finally:
        os.close(parent)


def put(path: Path, data: bytes) -> None:
    """A file with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_nothing_is_moved_through_a_link_that_was_set_aside(tmp_path: Path) -> None:
    """Somebody who may write in the live tree makes a link of a folder, and then a file below it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    tree = Tree(tmp_path)
    tree.tree._aside.name = lambda: NOW
    one, two = put_file(tree.store, b"one"), put_file(tree.store, b"two")
    tree.move([directory(b""), directory(b"x"), file(b"x/log", one, 3)])
    (tree.live / "x").rename(tmp_path / "away")
    (tree.live / "x").symlink_to(outside)
    assert tree.move([directory(b"x", 1), file(b"x/log", two, 3)]).set_aside == [b"x"]
    (tree.live / "x" / "log").unlink()
    (tree.live / "x" / "log").write_bytes(b"* * * * * root sh /tmp/mine")
    assert tree.move([file(b"x/log", one, 3, 7)]).set_aside == [b"x/log"]
    assert list(outside.iterdir()) == []
    aside = tree.tree.place.aside
    assert (aside / NOW / "x").is_symlink()
    assert (aside / f"{NOW} 2" / "x" / "log").read_bytes() == b"* * * * * root sh /tmp/mine"
    assert (tree.live / "x" / "log").read_bytes() == b"one"


def test_nothing_that_was_set_aside_is_replaced_or_added_to(tmp_path: Path) -> None:
    tree, place = tmp_path / "tree", tmp_path / "aside"
    aside = Aside(place, lambda: NOW)
    put(tree / "a" / "f", b"1")
    take(aside, tree, "a/f")
    put(tree / "a" / "f", b"2")
    take(aside, tree, "a/f")  # the same path
    put(tree / "a" / "g", b"3")
    take(aside, tree, "a")  # the folder of what is there
    put(tree / "a" / "f", b"4")
    take(aside, tree, "a/f")  # in a folder that was set aside
    put(tree / "b", b"5")
    take(aside, tree, "b")
    put(tree / "b" / "c", b"6")
    take(aside, tree, "b/c")  # below what was a file
    assert held(place) == {
        f"{NOW}/a/f": b"1",
        f"{NOW} 2/a/f": b"2",
        f"{NOW} 3/a/g": b"3",
        f"{NOW} 4/a/f": b"4",
        f"{NOW} 4/b": b"5",
        f"{NOW} 5/b/c": b"6",
    }


def test_a_folder_that_was_found_is_not_used(tmp_path: Path) -> None:
    """The agent was started again within the second, and somebody has made something of that name."""
    tree, place, outside = tmp_path / "tree", tmp_path / "aside", tmp_path / "outside"
    outside.mkdir()
    put(tree / "x" / "f", b"1")
    take(Aside(place, lambda: NOW), tree, "x/f")
    (place / f"{NOW} 2").symlink_to(outside)
    put(tree / "x" / "f", b"2")
    aside = Aside(place, lambda: NOW)
    take(aside, tree, "x/f")
    (place / f"{NOW} 3").rename(tmp_path / "tidied up")
    put(tree / "y", b"3")
    take(aside, tree, "y")
    assert list(outside.iterdir()) == []
    assert held(place) == {f"{NOW}/x/f": b"1", f"{NOW} 4/y": b"3"}
    assert held(tmp_path / "tidied up") == {"x/f": b"2"}
