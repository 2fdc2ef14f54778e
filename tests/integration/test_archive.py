"""An archive keeps every path that it ever received, whatever takes its name later."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

from harness import Cluster, crnode, wait_for

from crnode.errors import ExitCode

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


def test_an_archive_from_which_half_was_deleted_is_in_sync_and_says_since_when(
    cluster: Cluster, tmp_path: Path
) -> None:
    shop1 = cluster.init()
    cluster.join("box2")
    cluster.join("box3")
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    contents = {
        source / ("sub" if number % 2 else ".") / f"letter {number}": f"letter {number}\n" * 30
        for number in range(60)
    }
    for path, text in contents.items():
        path.write_text(text)
    cluster.add_set(
        "docs", "shop1", source, [f"box2:{tmp_path}/mirror"], archive_to=[f"box3:{tmp_path}/archive"],
        keep=["newest:2"],
    )  # fmt: skip
    cluster.sync("docs")
    first = shop1.call("versions", {"set": "docs"})["versions"][-1]["number"]
    time.sleep(1.2)
    gone = sorted(contents)[::2]
    crnode("brake", "docs", "--percent", "0", "--data", str(shop1.data))  # it is meant
    begun = time.time_ns()
    for path in gone:
        path.unlink()
    cluster.sync("docs")
    time.sleep(1.2)
    answer = shop1.call("deleted", {"set": "docs"})
    assert (answer["node"], answer["mode"], answer["count"]) == ("box3", "archive", 30)
    assert answer["bytes"] == sum(len(contents[path]) for path in gone)
    assert [item["path"] for item in answer["entries"]] == sorted(str(p.relative_to(source)) for p in gone)
    for item in answer["entries"]:
        assert item["after_ns"] < item["gone_ns"] and begun < item["gone_ns"] <= time.time_ns()
        assert item["version"] is not None and item["version"] >= first
    inside = shop1.call("deleted", {"set": "docs", "path": "sub"})
    assert 0 < inside["count"] < 30 and all(i["path"].startswith("sub/") for i in inside["entries"])

    for number in range(4):  # versions that have them go, the archive keeps them
        (source / "diary").write_text(f"day {number}")
        cluster.sync("docs")
        time.sleep(1.2)
    wait_for(lambda: shop1.call("deleted", {"set": "docs", "node": "box2"})["count"] == 0)
    answer = shop1.call("deleted", {"set": "docs"})
    assert answer["count"] == 30 and {item["version"] for item in answer["entries"]} == {None}
    (archive,) = (t for t in shop1.call("status")["sets"][0]["targets"] if t["node"] == "box3")
    assert archive["state"] == "in sync" and archive["lag_s"] == 0
    for path, text in contents.items():
        assert (tmp_path / "archive" / path.relative_to(source)).read_text() == text
    said = crnode("ls", "docs:sub", "--deleted", "--data", str(shop1.data)).stdout
    assert "in the archive" in said and "sub/letter" in said and "kept in its live tree" in said
    done = crnode("ls", "docs", "--deleted", "--version", "1", "--data", str(shop1.data), check=False)
    assert done.returncode == ExitCode.USAGE
