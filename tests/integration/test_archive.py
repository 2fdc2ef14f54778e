"""An archive keeps every path that it ever received, whatever takes its name later."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from harness import Cluster

KINDS = ("folder", "file", "link")


def remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def put(path: Path, kind: str, token: str) -> None:
    """Something of this kind that the token can be found in."""
    remove(path)
    if kind == "folder":
        (path / "below").mkdir(parents=True)
        (path / "below" / "file").write_text(token)
    elif kind == "file":
        path.write_text(token)
    else:
        path.symlink_to(token)


def tokens(root: Path) -> set[str]:
    """All that is in a tree."""
    out = set()
    for folder, names, files in os.walk(root):
        for name in names + files:
            path = Path(folder) / name
            if path.is_symlink():
                out.add(os.readlink(path))
            elif path.is_file():
                out.add(path.read_text())
    return out


def test_what_something_of_another_kind_replaces_is_kept(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    box2 = cluster.join("box2")
    source, live = tmp_path / "source", tmp_path / "live"
    (source / "sub").mkdir(parents=True)
    (source / "stays").write_text("stays")
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"], mode="archive")
    chance = random.Random(5)
    names = [source / "a", source / "b", source / "sub" / "c", source / "sub" / "d"]
    held = dict.fromkeys(names, "")  # what the archive has there: never replaced by one of its own kind
    received = set()
    for turn in range(14):
        for name in chance.sample(names, 3):
            if held[name] and chance.random() < 0.3:
                remove(name)  # what comes in its place comes in a later image
                continue
            held[name] = chance.choice([kind for kind in KINDS if kind != held[name]])
            put(name, held[name], f"{name.name} {turn} {held[name]}")
        if turn == 6:
            box2.kill()
        if turn == 9:  # several images in one move
            box2.start()
        if turn < 6 or turn >= 9:
            cluster.sync("docs")
            received |= tokens(source)
            assert received <= tokens(live), f"turn {turn}"
    assert box2.call("status")["sets"][0]["targets"][0]["unapplied"] == 0
