"""Damage at a target, in its packs, its index, its catalog: found, said, healed from another node."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import apsw
from harness import Cluster, crnode

from crnode.errors import ExitCode


def files(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in root.iterdir()}


def one_set(cluster: Cluster, tmp_path: Path) -> tuple[Path, Path]:
    cluster.init()
    cluster.join("box2")
    source = tmp_path / "source"
    source.mkdir()
    for number in range(50):
        (source / f"f{number}").write_bytes(os.urandom(20_000))
    (source / "big").write_bytes(os.urandom(3 << 20))
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/live"], privileged=False)
    cluster.sync("docs")
    return source, tmp_path / "live"


def test_flipped_bytes_are_found_and_healed_from_the_source(cluster: Cluster, tmp_path: Path) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    box2.stop()
    packs = sorted((box2.data / "store" / "packs").glob("*.pack"), key=lambda p: p.stat().st_size)
    size = packs[-1].stat().st_size
    with open(packs[-1], "r+b") as file:
        for at in (size // 4, size // 2, size * 3 // 4):
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 0xFF]))
    box2.start()
    report = box2.call("scrub")
    assert report["damaged"], "the flipped bytes were not found"
    assert {d["healed_from"] for d in report["damaged"]} == {"shop1"}
    assert box2.call("scrub")["damaged"] == []
    for path in live.iterdir():  # whatever is written from the store now is right again
        path.unlink()
    cluster.sync("docs")
    assert files(live) == files(source)


def test_a_lost_index_and_a_lost_catalog_come_back(cluster: Cluster, tmp_path: Path) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    box2.stop()
    shutil.rmtree(box2.data / "store" / "index")
    (catalog,) = (box2.data / "sets").glob("*.db")
    catalog.write_bytes(b"not a database at all" * 1000)
    for rest in ("-wal", "-shm"):  # SQLite would make the file again from its write-ahead log
        Path(f"{catalog}{rest}").unlink(missing_ok=True)
    box2.start()
    (source / "new").write_bytes(b"new")
    out = cluster.sync("docs")
    assert {t["digest"] for t in out["targets"]} == {out["digest"]}
    assert files(live) == files(source)
    said = " ".join(box2.events())
    assert "rebuilt from the packs" in said
    assert "is damaged" in said
    assert list((box2.data / "sets").glob("*.db.damaged-*"))


def test_collection_frees_what_no_version_needs(cluster: Cluster, tmp_path: Path) -> None:
    source, live = one_set(cluster, tmp_path)
    for _ in range(30):  # points in a burst are no versions: their bytes become garbage
        (source / "big").write_bytes(os.urandom(3 << 20))
        cluster.sync("docs")
    box2 = cluster.nodes["box2"]
    answer = box2.call("gc", {"plan": False}, 120)
    assert answer["hole"] is None
    assert answer["removed_bytes"] > 20 << 20
    assert box2.call("scrub")["damaged"] == []
    assert cluster.master.call("gc", {"plan": False}, 120)["hole"] is None
    (source / "big").write_bytes(os.urandom(1 << 20))
    cluster.sync("docs")
    assert (live / "big").read_bytes() == (source / "big").read_bytes()


def test_rows_that_do_not_give_the_digest_are_made_again(cluster: Cluster, tmp_path: Path) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    (catalog,) = (box2.data / "sets").glob("*.db")
    db = apsw.Connection(str(catalog))
    db.execute("UPDATE entry SET mtime_ns=mtime_ns+1 WHERE name=?", (b"f7",))
    db.close()
    done = crnode("scrub", "--data", str(box2.data), check=False)
    assert done.returncode == ExitCode.DAMAGE
    assert "not its digest" in done.stdout.replace("\n", " ")
    assert any("set aside" in check["text"] for check in box2.call("doctor")["checks"])
    assert list((box2.data / "sets").glob("*.db.damaged-*"))
    (source / "new").write_bytes(b"new")
    out = cluster.sync("docs")
    assert {t["digest"] for t in out["targets"]} == {out["digest"]}
    assert files(live) == files(source)
    assert crnode("scrub", "--data", str(box2.data)).returncode == ExitCode.OK
    assert not any("set aside" in check["text"] for check in box2.call("doctor")["checks"])
