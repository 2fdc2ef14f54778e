"""Damage at a target, in its packs, its index, its catalog: found, said, healed from another node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import apsw
import pytest
from harness import Cluster, Node, crnode, wait_for

from crnode.errors import CrnodeError, ExitCode
from crnode.net.control import call
from crnode.store.catalog import Catalog
from crnode.store.manifest import write_manifest
from crnode.store.store import ObjectStore
from crnode.store.writer import Writer


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
    assert {d["healed_from"] for d in report["damaged"]} <= {"shop1", "its own live tree"}
    assert box2.call("scrub")["damaged"] == []
    for path in live.iterdir():  # whatever is written from the store now is right again
        path.unlink()
    cluster.sync("docs")
    assert files(live) == files(source)


def test_a_flipped_byte_in_a_live_tree_is_found_named_and_mended(
    cluster: Cluster, tmp_path: Path, small_disk: Path
) -> None:
    """Beneath the file system, so that no time of it moves; what is there is kept aside."""
    source = tmp_path / "source"
    source.mkdir()
    good = {"big": os.urandom(3 << 20), "small": os.urandom(9000)}
    for name, data in good.items():
        (source / name).write_bytes(data)
    os.link(source / "small", source / "again")
    cluster.init()
    box2 = cluster.join("box2")
    live = small_disk / "live"
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"], privileged=False)
    cluster.sync("docs")
    os.sync()
    for name, at in (("big", 1 << 20), ("small", 4096)):
        with open(tmp_path / "disk.img", "r+b") as disk, open(live / name, "rb") as file:
            disk.seek(disk.read().index(good[name][at : at + 512]))
            disk.write(bytes([good[name][at] ^ 0xFF]))
            disk.flush()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert (live / name).read_bytes() != good[name]
    cluster.sync("docs")  # a scan sees nothing: no time moved
    assert (live / "big").read_bytes() != good["big"]
    done = crnode("scrub", "--data", str(box2.data))
    assert "files of live trees" in done.stdout and "written anew" in done.stdout
    assert "bytes 1" in done.stdout and "big" in done.stdout
    for name, data in good.items():
        assert (live / name).read_bytes() == data
    assert (live / "again").samefile(live / "small")
    assert any("big in the live tree is not what was written" in text for text in box2.events())
    report = box2.call("scrub")
    nothing = {"mended": [], "changed": 0, "put_right": 0, "changed_files": [], "failed": []}
    assert report["live"] == {"checked": 3, "bytes": 3 * (1 << 20) + 2 * 9000, **nothing}
    aside = [path for path in small_disk.rglob("*") if path.is_file() and live not in path.parents]
    assert any(path.stat().st_size == 3 << 20 and path.read_bytes() != good["big"] for path in aside)


def overwrite(path: Path, at: int, data: bytes) -> None:
    """As somebody who puts the time of the last change back."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_somebody_changed_in_a_live_tree_is_said_and_put_right_by_a_scrub(
    cluster: Cluster, tmp_path: Path
) -> None:
    source, live = tmp_path / "source", tmp_path / "live"
    (source / "folder" / "below").mkdir(parents=True)
    for number in range(30):
        (source / "folder" / "below" / f"f{number}").write_bytes(os.urandom(3000))
    (source / "bill").write_bytes(os.urandom(9000))
    (source / "empty").touch()
    (source / "linked").write_bytes(os.urandom(9000))
    os.link(source / "linked", source / "again")
    cluster.init()
    box2 = cluster.join("box2")
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"], privileged=False)
    cluster.sync("docs")
    assert "All are what was written." in crnode("scrub", "--data", str(box2.data)).stdout

    overwrite(live / "bill", 4096, b"forged")
    done = crnode("scrub", "--data", str(box2.data))
    assert "All are what was written." not in done.stdout
    assert "1 file of live trees was changed by somebody" in done.stdout, done.stdout
    assert "bill" in done.stdout and "written anew, the other set aside" in done.stdout
    assert (live / "bill").read_bytes() == (source / "bill").read_bytes()
    aside = [p for p in tmp_path.rglob("bill") if p not in (source / "bill", live / "bill")]
    assert [path.read_bytes()[4096:4102] for path in aside] == [b"forged"]
    assert any("changed locally and put right: bill" in text for text in box2.events())

    overwrite(live / "empty", 0, b"not any more")
    overwrite(live / "linked", 100, b"forged, too")  # of several names: only its bytes tell
    shutil.rmtree(live / "folder")
    done = crnode("scrub", "--json", "--data", str(box2.data))
    found = json.loads(done.stdout)["live"]
    assert (found["changed"], found["put_right"], len(found["changed_files"])) == (31, 31, 20)
    assert found["changed_files"][0] == {"set": "docs", "path": "empty", "whole": True}
    assert {row["path"] for row in found["mended"]} <= {"linked", "again"} and found["mended"]
    assert (live / "linked").read_bytes() == (source / "linked").read_bytes()
    assert (live / "linked").samefile(live / "again")
    assert (live / "empty").read_bytes() == b""
    assert files(live / "folder" / "below") == files(source / "folder" / "below")
    assert "All are what was written." in crnode("scrub", "--data", str(box2.data)).stdout


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


def shown(cluster: Cluster) -> tuple[str, str]:
    target = cluster.master.call("status")["sets"][0]["targets"][0]
    return target["state"], target["reason"]


def test_a_store_that_was_lost_beside_its_catalogs_is_noticed_and_made_whole(
    cluster: Cluster, tmp_path: Path
) -> None:
    source, _ = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    box2.stop()
    shutil.rmtree(box2.data / "store")
    box2.start()
    out = cluster.sync("docs")
    assert {t["digest"] for t in out["targets"]} == {out["digest"]}
    said = " ".join(box2.events())
    assert "looked up before anything is acknowledged" in said
    assert "its own live tree" in said and "shop1" in said  # chunks from here, recipes from there
    answer = box2.call("scrub")
    assert answer["damaged"] == [] and answer["lacking"] == 0 and answer["looked_up"] > 100
    box2.call("restore", {"set": "docs", "to": str(tmp_path / "back")})
    assert files(tmp_path / "back") == files(source)
    box2.stop()
    box2.start()
    cluster.sync("docs")
    assert " ".join(box2.events()).count("looked up before anything is acknowledged") == 1


def test_a_store_put_back_from_an_older_copy_is_noticed(cluster: Cluster, tmp_path: Path) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    box2.stop()
    shutil.copytree(box2.data / "store", tmp_path / "old store")
    box2.start()
    (source / "later").write_bytes(os.urandom(5000))
    (source / "big").write_bytes(os.urandom(2 << 20))
    cluster.sync("docs")
    box2.stop()
    shutil.rmtree(box2.data / "store")
    shutil.copytree(tmp_path / "old store", box2.data / "store")
    shutil.rmtree(live)  # so that only the source has what is lacking
    box2.start()
    wait_for(lambda: any("looked up before" in text for text in box2.events()))
    cluster.sync("docs")
    assert box2.call("scrub")["lacking"] == 0
    box2.call("restore", {"set": "docs", "to": str(tmp_path / "back")})
    assert files(tmp_path / "back") == files(source)
    assert box2.call("scrub")["lacking"] == 0


def test_what_no_node_has_is_said_everywhere_and_heals_when_its_holder_is_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    box2.stop()
    cluster.master.stop()
    for pack in (box2.data / "store" / "packs").glob("*.pack"):
        pack.unlink()
    shutil.rmtree(live)
    box2.start()
    wait_for(lambda: any("no node that can be reached" in text for text in box2.events()), 40)
    scrubbed = crnode("scrub", "--data", str(box2.data), check=False)
    assert scrubbed.returncode == ExitCode.DAMAGE
    assert "docs: f" in scrubbed.stdout and "newest version" in scrubbed.stdout
    checks = {c["name"]: c for c in box2.call("doctor")["checks"]}
    assert checks["set docs here"]["ok"] is False
    (version,) = box2.call("versions", {"set": "docs"})["versions"][-1:]
    assert version["verdict"] == "bad"
    # The source goes on writing: the next image is only acknowledged when what was lost is here again.
    (source / "f49").write_bytes(b"changed while the other was ill")
    cluster.master.start()
    wait_for(lambda: shown(cluster)[0] in ("damaged", "in sync"))
    out = cluster.sync("docs")
    assert {t["digest"] for t in out["targets"]} == {out["digest"]}
    wait_for(lambda: shown(cluster)[0] == "in sync")
    assert files(live) == files(source)
    # What the source had changed by then is gone for good: of the version before, one file, and it is said.
    left = box2.call("scrub")
    assert left["lacking"] == 1
    assert [(d["path"], d["newest"]) for d in left["damaged"] if d["healed_from"] is None] == [("f49", False)]
    assert any("earlier versions need" in w for w in cluster.master.call("status")["warnings"])
    box2.call("restore", {"set": "docs", "to": str(tmp_path / "back")})
    assert files(tmp_path / "back") == files(source)


def test_a_source_that_lost_its_store_makes_its_recipes_again(cluster: Cluster, tmp_path: Path) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    box2.stop()
    cluster.master.stop()
    shutil.rmtree(cluster.master.data / "store")
    cluster.master.start()
    with open(source / "big", "r+b") as file:
        file.seek(1 << 20)
        file.write(os.urandom(100))
    cluster.join("box3")
    box2.start()
    cluster.sync("docs")
    assert files(live) == files(source)
    wait_for(lambda: cluster.master.call("scrub")["lacking"] == 0)
    with pytest.raises(CrnodeError):
        cluster.master.call("restore", {"set": "docs", "to": str(source)})


@pytest.mark.parametrize("what", ["sets", "store"])
def test_data_removed_under_a_running_agent_ends_its_acknowledgements(
    cluster: Cluster, tmp_path: Path, what: str
) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    shutil.rmtree(box2.data / what)
    assert box2.process is not None
    assert box2.process.wait(20) == ExitCode.FAILED
    assert "while it was in use" in box2.log.read_text()
    (source / "later").write_bytes(b"later")
    box2.start()
    cluster.sync("docs")
    assert files(live) == files(source)
    assert box2.call("scrub")["lacking"] == 0


@pytest.mark.parametrize("mode", ["mirror", "archive"])
def test_a_lost_pack_costs_no_version_that_is_whole(cluster: Cluster, tmp_path: Path, mode: str) -> None:
    cluster.init()
    cluster.join("box2")
    box2 = cluster.nodes["box2"]
    source, live = tmp_path / "source", tmp_path / "live"
    source.mkdir()
    precious = os.urandom(30_000)
    (source / "precious").write_bytes(precious)
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"], privileged=False, mode=mode)
    cluster.sync("docs")
    (catalog,) = (box2.data / "sets").glob("*.db")
    box2.stop()
    db = Catalog(catalog, bytes.fromhex(catalog.stem))
    newest = db.newest()
    assert newest is not None
    with db.transaction():
        db.set_pin(newest.ordinal, "release", "a person")
    db.put_away()
    first = newest.sequence
    for number in range(2500):
        (source / f"f{number}").write_bytes(b"%d" % number)
    (source / "precious").unlink()
    box2.start()
    cluster.sync("docs")
    box2.stop()
    cluster.master.stop()
    for path in source.iterdir():  # nobody has what the target loses: the source has other content by now
        path.write_bytes(path.read_bytes() + b" changed")
    for pack in (box2.data / "store" / "packs").glob("*.pack"):
        if precious[:100] not in pack.read_bytes():
            pack.unlink()
    for path in live.glob("f*"):
        path.unlink()
    cluster.master.start()
    box2.start()
    out = cluster.sync("docs")
    if mode == "mirror":
        assert files(live) == files(source)
        assert {t["digest"] for t in out["targets"]} == {out["digest"]}
    assert not list((box2.data / "sets").glob("*.damaged-*"))
    assert box2.call("status")["sets"][0]["targets"][0]["state"] == "in sync"
    where = ("--node", "box2", "--to", str(tmp_path / "out"), "--data", str(box2.data))
    crnode("restore", "docs:precious", "--version", str(first), *where)
    assert (tmp_path / "out" / "precious").read_bytes() == precious


def spoil(node: Node, content: bytes) -> None:
    """Flip a byte of the one record that holds these bytes."""
    places = [(p, at) for p in (node.data / "store" / "packs").glob("*.pack")
              if (at := p.read_bytes().find(content[1000:1100])) >= 0]  # fmt: skip
    ((pack, at),) = places
    with open(pack, "r+b") as file:
        file.seek(at)
        file.write(bytes([content[1000] ^ 0xFF]))


def test_damage_that_a_repair_meets_is_fetched(cluster: Cluster, tmp_path: Path) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    box2.stop()
    spoil(box2, (source / "f7").read_bytes())
    (live / "f7").unlink()
    box2.start()
    (target,) = cluster.sync("docs")["targets"]
    assert files(live) == files(source)
    assert target["unapplied"] == 0


def test_a_kill_after_a_scrub_found_damage_forgets_nothing(cluster: Cluster, tmp_path: Path) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    box2.stop()
    cluster.master.stop()
    spoil(box2, (source / "f7").read_bytes())
    (live / "f7").unlink()
    box2.start()

    def scrub() -> None:
        with contextlib.suppress(CrnodeError):
            box2.call("scrub")

    asking = threading.Thread(target=scrub)
    asking.start()
    # It tells the index next, and waits for the source, which is down. (Killed in between it would know as
    # much as before the scrub, and find it again.)
    wait_for(lambda: not (box2.data / "store" / "id").exists())
    time.sleep(0.7)
    box2.kill()
    asking.join()
    cluster.master.start()
    box2.start()
    wait_for(lambda: any("whole again" in text for text in box2.events()), 60)
    cluster.sync("docs")
    assert files(live) == files(source)
    assert box2.call("scrub")["lacking"] == 0
    assert (box2.data / "store" / "id").exists()


def test_a_doubted_store_and_an_unreadable_catalog_at_once(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    cluster.join("box2")
    box2 = cluster.nodes["box2"]
    source, live = tmp_path / "source", tmp_path / "live"
    source.mkdir()
    for number in range(1500):
        (source / f"file-number-{number}").write_bytes(b"%d" % number)
    cluster.add_set("docs", "shop1", source, [f"box2:{live}"], privileged=False)
    cluster.sync("docs")
    box2.stop()
    (box2.data / "store" / "id").unlink()
    (catalog,) = (box2.data / "sets").glob("*.db")
    db = apsw.Connection(str(catalog))
    db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)  # or the pages in the log are read instead
    leaves = [page for (page,) in db.execute(
        "SELECT pageno FROM dbstat WHERE name IN ('entry', 'entry_born') AND pagetype='leaf'"
    )]  # fmt: skip
    db.close()
    data = bytearray(catalog.read_bytes())
    spoiled = 0
    for page in leaves:  # of rows and of the index; other pages may have such bytes where nothing is in use
        at = (page - 1) * 4096
        if b"file-number-70" in data[at : at + 4096]:
            data[at : at + 16] = b"\xff" * 16  # no kind of page has that number
            spoiled += 1
    assert spoiled
    catalog.write_bytes(data)
    db = apsw.Connection(str(catalog))
    with pytest.raises(apsw.Error):
        list(db.execute("SELECT * FROM entry"))
    db.close()
    box2.start()
    (source / "new").write_bytes(b"new")
    out = wait_for(lambda: tried(cluster), 140)
    assert {t["digest"] for t in out["targets"]} == {out["digest"]}
    assert files(live) == files(source)
    assert any("set aside" in text for text in box2.events())


def tried(cluster: Cluster) -> dict[str, Any] | None:
    """`crnode sync`; None while it cannot be."""
    try:
        return cluster.sync("docs", timeout=20)
    except CrnodeError:
        return None


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


def keep_newest(node: Node, manifest: bool) -> str:
    """Pin the newest version of a node that is stopped, with or without a manifest; its id."""
    (path,) = (node.data / "sets").glob("*.db")

    async def write() -> str:
        catalog = Catalog(path, bytes.fromhex(path.stem))
        store = ObjectStore(node.data / "store")
        writer = Writer(asyncio.get_running_loop(), lambda: None, print)
        newest = catalog.newest()
        assert newest is not None and newest.id is not None
        with catalog.transaction():
            catalog.set_pin(newest.ordinal, f"v{newest.sequence}", "a person")
        image = catalog.image_at(newest.ordinal)
        assert image is not None
        if manifest:
            await write_manifest(store, writer, catalog, image)
        await writer.close()
        store.close()
        catalog.put_away()
        return newest.id.hex()

    return asyncio.run(write())


def versions_kept(cluster: Cluster, source: Path, manifests: list[bool]) -> list[str]:
    """Pinned versions at box2, oldest first; box2 is stopped then."""
    box2 = cluster.nodes["box2"]
    out = []
    for number, written in enumerate(manifests):
        (source / "f0").write_bytes(b"version %d" % number)
        cluster.sync("docs")
        box2.stop()
        out.append(keep_newest(box2, written))
        if number < len(manifests) - 1:
            box2.start()
    return out


def ids_of(path: Path) -> set[str]:
    db = apsw.Connection(str(path))
    found = {row[0].hex() for row in db.execute("SELECT id FROM image WHERE state=1")}
    db.close()
    return found


def damage_said(node: Node) -> str:
    return " ".join(
        e["text"] for e in node.call("events", {"limit": 1000})["events"] if e["kind"] == "damage"
    )


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_a_catalog_that_is_gone_is_made_again_from_the_manifests(
    cluster: Cluster, tmp_path: Path, how: str
) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    kept = versions_kept(cluster, source, [True, True])
    (catalog,) = (box2.data / "sets").glob("*.db")
    if how == "removed":
        shutil.rmtree(box2.data / "sets")
    else:
        catalog.write_bytes(b"")
    box2.start()
    assert set(kept) <= ids_of(catalog)
    said = damage_said(box2)
    assert "it is gone and made again with 2 of its versions" in said
    assert "versions may be lost" in said
    (source / "new").write_bytes(b"new")
    out = cluster.sync("docs")
    assert {t["digest"] for t in out["targets"]} == {out["digest"]}
    assert files(live) == files(source)
    assert box2.call("scrub")["lacking"] == 0
    box2.stop()
    box2.start()
    assert damage_said(box2).count("it is gone") == 1


def test_a_catalog_that_is_gone_and_has_no_manifest_is_said(cluster: Cluster, tmp_path: Path) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    assert "catalog" not in damage_said(box2)  # a new set is no loss
    box2.stop()
    shutil.rmtree(box2.data / "sets")
    box2.start()
    said = damage_said(box2)
    assert "it is gone and is begun anew, without any earlier version" in said
    cluster.sync("docs")
    assert files(live) == files(source)


def test_a_damaged_catalog_loses_no_version_whose_rows_are_whole(cluster: Cluster, tmp_path: Path) -> None:
    source, _ = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    kept = versions_kept(cluster, source, [True, False, False])
    (catalog,) = (box2.data / "sets").glob("*.db")
    db = apsw.Connection(str(catalog))
    (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name='live'").fetchone()
    db.close()
    with open(catalog, "r+b") as file:  # a table that says nothing of any version
        file.seek((root - 1) * 4096)
        file.write(os.urandom(300))
    box2.start()
    wait_for(lambda: "made again" in damage_said(box2))
    cluster.sync("docs")
    assert set(kept) <= ids_of(catalog)


def test_what_a_damaged_catalog_lost_is_said_and_stays_said(cluster: Cluster, tmp_path: Path) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    kept = versions_kept(cluster, source, [True, False, False])
    (catalog,) = (box2.data / "sets").glob("*.db")
    held = ids_of(catalog)
    db = apsw.Connection(str(catalog))
    (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name='entry'").fetchone()
    (meta,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name='meta'").fetchone()
    db.close()
    with open(catalog, "r+b") as file:
        for page in (root, meta):
            file.seek((page - 1) * 4096)
            file.write(os.urandom(300))
    box2.start()
    cluster.sync("docs")
    assert kept[0] in ids_of(catalog)
    lost = f"made again with 1 of its versions. {len(held) - 1} more that it named are lost"
    assert lost in damage_said(box2)
    assert files(live) == files(source)
    assert box2.call("scrub")["damaged"] == []
    assert crnode("scrub", "--data", str(box2.data)).returncode == ExitCode.OK
    (aside,) = [p for p in (box2.data / "sets").glob("*.damaged-*") if not p.name.endswith(("-wal", "-shm"))]
    (check,) = [c for c in box2.call("doctor")["checks"] if str(aside) in c["text"]]
    assert check["ok"] is None
    assert "may be missing" in check["text"] and f"rm {aside}" in check["hint"]
    for path in (box2.data / "sets").glob("*.damaged-*"):
        path.unlink()
    assert not any("old catalog" in c["name"] for c in box2.call("doctor")["checks"])


@pytest.mark.parametrize("pages", [0, 1, 2, 3, 5, 10])
def test_a_catalog_cut_short_is_made_again(cluster: Cluster, tmp_path: Path, pages: int) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    kept = versions_kept(cluster, source, [True])
    (catalog,) = (box2.data / "sets").glob("*.db")
    with open(catalog, "r+b") as file:
        file.truncate(pages * 4096)
    box2.start()
    wait_for(lambda: "made again with" in damage_said(box2))
    out = wait_for(lambda: tried(cluster), 60)
    assert {t["digest"] for t in out["targets"]} == {out["digest"]}
    assert files(live) == files(source)
    assert set(kept) <= ids_of(catalog)
    assert box2.call("status")["sets"][0]["targets"][0]["state"] == "in sync"


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_catalog_damaged_under_a_running_agent_is_made_again(
    cluster: Cluster, tmp_path: Path, role: str
) -> None:
    source, live = one_set(cluster, tmp_path)
    node = cluster.nodes["box2"] if role == "target" else cluster.master
    (catalog,) = (node.data / "sets").glob("*.db")
    spoil_pages(catalog)
    deadline = time.monotonic() + 60
    number = 0
    while "made again" not in damage_said(node) and "begun anew" not in damage_said(node):
        assert time.monotonic() < deadline, node.log.read_text()
        number += 1
        (source / f"more{number}").write_bytes(os.urandom(3000))
        (source / f"f{number % 50}").write_bytes(os.urandom(3000))
        time.sleep(0.2)
    assert node.process is not None and node.process.poll() is None
    out = wait_for(lambda: tried(cluster), 140)
    assert {t["digest"] for t in out["targets"]} == {out["digest"]}
    assert files(live) == files(source)
    assert "Traceback" not in node.log.read_text()


def test_a_target_that_lost_the_row_of_its_newest_version_has_its_catalog_looked_at(
    cluster: Cluster, tmp_path: Path
) -> None:
    """One bit in the page of the images. No image of the source fits what is left."""
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    time.sleep(1.1)  # the first version is followed by quiet, and stays
    (source / "last").touch()
    cluster.sync("docs")
    box2.stop()
    (catalog,) = (box2.data / "sets").glob("*.db")
    lose_last_row(catalog)
    before = cluster.master.call("status")["sets"][0]["sequence"]
    (source / "last").unlink()  # it came with the version whose row is gone
    (source / "f0").write_bytes(b"after")
    # Captured before the target is back: that version itself, sent again, would fit.
    wait_for(lambda: cluster.master.call("status")["sets"][0]["sequence"] > before)
    time.sleep(0.5)
    box2.start()
    wait_for(lambda: "made again" in damage_said(box2), 60)
    assert wait_for(lambda: tried(cluster), 60)["targets"]
    assert files(live) == files(source)
    refused = [e for e in box2.call("events", {"limit": 1000})["events"] if e["kind"] == "refused"]
    assert refused and all("digest" in event["text"] for event in refused)


def lose_last_row(catalog: Path) -> None:
    """Let the page of the images say that it has one row less."""
    db = apsw.Connection(str(catalog))
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name='image'").fetchone()
    (count,) = db.execute("SELECT count(*) FROM image NOT INDEXED").fetchone()
    db.close()
    data = bytearray(catalog.read_bytes())
    at = (root - 1) * 4096
    assert data[at] == 13 and int.from_bytes(data[at + 3 : at + 5], "big") == count > 1
    data[at + 4] -= 1
    catalog.write_bytes(data)


def spoil_pages(catalog: Path) -> None:
    """Overwrite all pages but the first, in the file and in what the write-ahead log would put over them."""
    for path, start in ((catalog, 4096), (Path(f"{catalog}-wal"), 32)):
        size = path.stat().st_size
        with open(path, "r+b") as file:
            file.seek(start)
            file.write(os.urandom(max(size - start, 0)))


def test_a_catalog_that_names_no_set_is_damaged_and_not_another_ones(
    cluster: Cluster, tmp_path: Path
) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    kept = versions_kept(cluster, source, [False])
    (catalog,) = (box2.data / "sets").glob("*.db")
    db = apsw.Connection(str(catalog))
    db.execute("DELETE FROM meta WHERE key='set'")
    db.close()
    box2.start()
    assert "does not say which set it belongs to" in damage_said(box2)
    cluster.sync("docs")
    assert files(live) == files(source)
    assert set(kept) <= ids_of(catalog)


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_an_index_damaged_while_the_agent_is_stopped_is_made_again(
    cluster: Cluster, tmp_path: Path, how: str
) -> None:
    source, live = one_set(cluster, tmp_path)
    box2 = cluster.nodes["box2"]
    assert box2.stop() == ExitCode.OK
    index = box2.data / "store" / "index" / "data.mdb"
    data = bytearray(index.read_bytes())
    if how == "flipped":
        for at in range(0, len(data), max(len(data) // 300, 1)):
            data[at] ^= 0xFF
    else:
        del data[len(data) // 2 :]
    index.write_bytes(data)
    box2.start()
    assert any("rebuilt from the packs" in text for text in box2.events())
    (source / "new").write_bytes(os.urandom(9000))
    out = cluster.sync("docs")
    assert {t["digest"] for t in out["targets"]} == {out["digest"]}
    assert files(live) == files(source)
    assert box2.call("scrub")["lacking"] == 0
    box2.stop()
    box2.start()
    assert " ".join(box2.events()).count("rebuilt from the packs") == 1


def test_a_scrub_goes_on_where_a_live_tree_is_gone_or_received_no_more(
    cluster: Cluster, tmp_path: Path
) -> None:
    _, live = one_set(cluster, tmp_path)
    box2, other = cluster.nodes["box2"], tmp_path / "other"
    other.mkdir()
    for number in range(20):
        (other / f"o{number}").write_bytes(os.urandom(200_000))
    cluster.add_set("more", "shop1", other, [f"box2:{tmp_path}/more"], privileged=False)
    cluster.sync("more")
    live.rename(tmp_path / "moved away")
    live.mkdir()
    (live / "mine").write_bytes(b"of somebody")  # another folder by now, which is not written to
    done = crnode("scrub", "--data", str(box2.data), check=False)
    assert done.returncode == ExitCode.DAMAGE, done.stdout + done.stderr
    assert "The live tree of docs was not looked through" in done.stderr and "defect" not in done.stderr
    assert "20 files of live trees" in done.stdout and "Nothing is damaged" in done.stdout

    (tmp_path / "more" / "o0").write_bytes(b"changed by somebody")  # told first, put right last
    removed: list[bool] = []

    def remove(progress: dict[str, Any]) -> None:
        if "live tree of more" in str(progress.get("text")) and not removed:
            removed.append(True)
            cluster.master.call("set.remove", {"name": "more", "now": True})

    pace = {"bytes_per_second": 1_500_000}
    answer = call(box2.data / "control.sock", "scrub", pace, remove, 60)
    assert removed and [one["set"] for one in answer["live"]["failed"]] == ["docs", "more"], answer["live"]
    assert not any("defect" in text for text in box2.events())
