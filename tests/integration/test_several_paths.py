"""A set of several folders: each lies below its own name at the targets."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from harness import Cluster, crnode, rsync_difference

from crnode.errors import ExitCode


def test_folders_of_one_set(cluster: Cluster, tmp_path: Path) -> None:
    """The second and the third have one name, so the third gets another at the targets."""
    cluster.init()
    cluster.join("box2")
    roots = [tmp_path / "a" / "letters", tmp_path / "b" / "bills", tmp_path / "c" / "bills"]
    for number, root in enumerate(roots):
        (root / "d").mkdir(parents=True)
        (root / "f").write_bytes(b"%d" % number)
        (root / "d" / "g").write_bytes(os.urandom(100_000))
        os.link(root / "f", root / "d" / "h")
        (root / "l").symlink_to("f")
    words = [word for root in roots for word in ("--path", str(root))]
    words += ["--to", f"box2:{tmp_path}/live", "--archive-to", "box3", "--privileged"]
    cluster.join("box3")
    crnode("set", "add", "office", "--source", "shop1", *words, "--data", str(cluster.master.data))
    cluster.sync("office")

    def check(live: Path) -> None:
        for root, label in zip(roots, ("letters", "bills", "bills-2"), strict=True):
            assert rsync_difference(root, live / label) == "", label
        assert sorted(os.listdir(live)) == ["bills", "bills-2", "letters"]

    check(tmp_path / "live")
    time.sleep(1.1)
    good = max(v["number"] for v in cluster.master.call("versions", {"set": "office"})["versions"])
    for number, root in enumerate(roots):
        shutil.copytree(root, tmp_path / f"was{number}", symlinks=True)
    os.rename(roots[0] / "d", roots[1] / "moved")
    (roots[1] / "f").write_bytes(b"changed")
    shutil.rmtree(roots[2] / "d")
    (roots[2] / "d").write_bytes(b"a file now")
    (roots[0] / "new" / "deep").mkdir(parents=True)
    cluster.sync("office")
    check(tmp_path / "live")
    cluster.master.kill()
    (roots[2] / "while it was away").write_bytes(b"x")
    (roots[0] / "l").unlink()
    cluster.master.start()
    cluster.sync("office")
    check(tmp_path / "live")
    assert (cluster.nodes["box3"].data / "trees" / "office" / "letters" / "l").is_symlink()  # an archive
    out = cluster.nodes["box2"].call(
        "restore", {"set": "office", "version": str(good), "to": str(tmp_path / "back")}
    )
    assert out["digest_ok"]
    out = cluster.master.call("restore", {"set": "office", "version": str(good), "in_place": True}, 60)
    assert out["verified"], out["skipped"]
    for label, root in zip(("letters", "bills", "bills-2"), roots, strict=True):
        assert rsync_difference(tmp_path / "back" / label, root) == "", label
        assert not (root / ".crnode").exists()
    cluster.sync("office")
    check(tmp_path / "live")
    for root in roots:
        shutil.rmtree(root / "d")
    out = cluster.master.call(
        "restore", {"set": "office", "path": "bills/d", "version": str(good), "in_place": True}, 60
    )
    assert out["verified"] and (roots[1] / "d" / "g").exists() and not (roots[0] / "d").exists()
    assert cluster.master.process is not None and cluster.master.process.poll() is None


def test_versions_of_several_folders_are_looked_at(cluster: Cluster, tmp_path: Path) -> None:
    """Nothing of such a set is the folder that holds its folders; it is looked at and brought back as one."""
    cluster.init()
    cluster.join("box2")
    docs, scans = tmp_path / "a" / "docs", tmp_path / "b" / "scans"
    for root in (docs, scans):
        root.mkdir(parents=True)
        (root / "stays").write_text(f"of {root.name}")
        (root / "goes").write_text("soon gone")
    words = ["--path", str(docs), "--path", str(scans), "--to", f"box2:{tmp_path}/live"]
    crnode("set", "add", "office", "--source", "shop1", *words, "--data", str(cluster.master.data))

    def run(*args: str, check: bool = True) -> tuple[int, str, str]:
        done = crnode(*args, "--data", str(cluster.master.data), check=check)
        return done.returncode, done.stdout, done.stderr

    def ask(*args: str) -> Any:
        return json.loads(run(*args, "--json")[1])

    def version() -> str:
        cluster.sync("office")
        time.sleep(1.2)  # what is followed by a quiet second is kept
        return str(max(item["number"] for item in ask("versions", "office")["versions"]))

    first = version()
    then = datetime.datetime.now()
    time.sleep(1.0)
    for root in (docs, scans):
        (root / "goes").unlink()
    (docs / "new").write_text("new")
    second = version()

    at = f"{then:%d.%m.%Y %H:%M:%S}"
    for place in ("office", "office:", "office:/"):
        for more in ([], ["--version", first], ["--at", at]):
            answer = ask("ls", place, *more)
            assert [(e["name"], e["path"], e["kind"]) for e in answer["entries"]] == [
                ("docs", "docs", "folder"),
                ("scans", "scans", "folder"),
            ]
            assert str(answer["version"]) == (first if more else second)
    assert ask("ls", "office", "--at", at)["at_ns"] // 1_000_000_000 == int(then.timestamp())
    shown = run("ls", "office")[1]
    assert "docs" in shown and "scans" in shown
    assert [e["name"] for e in ask("ls", "office:docs", "--at", at)["entries"]] == ["goes", "stays"]
    assert [e["name"] for e in ask("ls", "office:docs")["entries"]] == ["new", "stays"]
    assert [e["path"] for e in ask("ls", "office", "--deleted")["entries"]] == ["docs/goes", "scans/goes"]
    assert [e["path"] for e in ask("ls", "office:scans", "--deleted")["entries"]] == ["scans/goes"]

    assert run("cat", "office:scans/stays")[1] == "of scans"
    assert run("cat", "office:docs/goes", "--at", at)[1] == "soon gone"
    changes = {("deleted", "docs/goes"), ("deleted", "scans/goes"), ("added", "docs/new")}
    assert {(row["what"], row["path"]) for row in ask("diff", "office", first)["rows"]} == changes
    assert [row["path"] for row in ask("diff", "office:scans", first, second)["rows"]] == ["scans/goes"]
    assert ask("versions", "office", "docs/goes")["versions"]
    assert ask("versions", "office", "docs")["versions"]
    assert [row["path"] for row in ask("search", "office", "goes")["found"]] == ["docs/goes", "scans/goes"]

    for words, code, said in (
        (("ls", "office:none"), ExitCode.USAGE, "crnode search office none"),
        (("cat", "office"), ExitCode.USAGE, "crnode cat office:PATH"),
        (("cat", "office:docs"), ExitCode.USAGE, f"crnode ls office:docs --version {second}"),
        (("restore", "office:none", "--to", f"{tmp_path}/x"), ExitCode.USAGE, "crnode search office none"),
        (("versions", "office", "none"), ExitCode.USAGE, "crnode ls office"),
        (("ls", "office", "--at", "11/05/2026"), ExitCode.USAGE, "11 May"),
        (("ls", "office", "--at", "1.1.2020"), ExitCode.REFUSED, "that is 2020-01-01 23:59:59, or before"),
    ):
        returned, _, error = run(*words, check=False)
        assert (returned, said in error) == (code, True), error

    back = tmp_path / "back"
    out = run("restore", "office", "--at", at, "--to", str(back / "all"))[1]
    assert f"Version {first} of " in out and f"the last one until {then:%Y-%m-%d %H:%M:%S}: 4 files" in out
    assert sorted(p.relative_to(back).as_posix() for p in back.rglob("*") if p.is_file()) == [
        f"all/{name}" for name in ("docs/goes", "docs/stays", "scans/goes", "scans/stays")
    ]
    run("restore", "office:docs", "--version", first, "--to", str(back / "docs"))
    assert sorted(os.listdir(back / "docs")) == ["goes", "stays"]
    plan = ask("restore", "office:scans", "--at", at, "--plan")
    assert {item["path"] for item in plan["paths"]} == {"scans", "scans/goes"}  # one for its time
    assert not (scans / "goes").exists()
    said = run("restore", "office:scans", "--at", at, "--in-place")[1]
    assert f"back at version {first}" in said and f"the last one until {then:%Y-%m-%d %H:%M:%S}" in said
    assert (scans / "goes").read_text() == "soon gone" and not (docs / "goes").exists()
