"""The object store: what it reported as durable is there after anything, and it claims nothing else."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from store_samples import chunk, flip, random_chunks, small_store

from crnode.errors import CrnodeError, ExitCode
from crnode.store import index as index_module
from crnode.store import store as store_module
from crnode.store.packs import Lane, StoreFailed
from crnode.store.store import Damaged, Missing, ObjectStore

APPENDS = """
import random, sys
from pathlib import Path
from typing import Any
from crnode.store.packs import Lane, Record
from crnode.store.store import ObjectStore
from crproto.ids import chunk_id
store = ObjectStore(Path(sys.argv[1]), pack_size=200_000, ballast=0)
source = random.Random(int(sys.argv[2]))
while True:
    records = []
    for _ in range(source.randint(1, 20)):
        data = source.randbytes(source.randint(1, 6000))
        records.append(Record(chunk_id(data), 0, 0, len(data), data))
    store.put(records, Lane.SMALL if len(records) < 8 else Lane.BULK)
    store.sync()
    sys.stdout.write("".join(r.id.hex() + "\\n" for r in records))
    sys.stdout.flush()
    if source.random() < 0.3:
        store.tick(force=True)
"""


def test_put_get_and_again_after_reopening(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    records = random_chunks(100, 3000)
    assert store.put(records, Lane.BULK) > 300_000
    assert store.put(records, Lane.SMALL) == 0
    store.sync()
    store.close()
    again = small_store(tmp_path)
    assert not again.recovery.rebuilt
    assert again.missing([r.id for r in records] + [bytes(32)]) == [bytes(32)]
    for record in records:
        assert again.get(record.id) == record.stored
    with pytest.raises(Missing):
        again.get(bytes(32))
    again.close()


def test_a_torn_tail_at_every_byte_of_the_last_record(tmp_path: Path) -> None:
    store = small_store(tmp_path / "one")
    records = random_chunks(3, 30)
    store.put(records[:2], Lane.SMALL)
    store.sync()
    store.tick(force=True)
    store.put(records[2:], Lane.SMALL)
    store.sync()
    last = store.locate(records[2].id)
    assert last is not None
    store.index.pending.clear()  # as if the process had died
    store.close(clean=False)
    pack = tmp_path / "one" / "packs" / "00000001.pack"
    whole = pack.read_bytes()
    index = Path(shutil.copytree(tmp_path / "one" / "index", tmp_path / "index"))
    for cut in range(last.offset, len(whole) + 1):
        pack.write_bytes(whole[:cut])
        shutil.rmtree(tmp_path / "one" / "index")
        shutil.copytree(index, tmp_path / "one" / "index")
        (tmp_path / "one" / "clean").write_text("x")  # spare the walk of the index by another process
        again = small_store(tmp_path / "one")
        assert again.recovery.torn_bytes == (cut - last.offset if cut < len(whole) else 0)
        assert not again.recovery.damaged
        assert again.has(records[2].id) == (cut == len(whole))
        assert [again.get(r.id) for r in records[:2]] == [r.stored for r in records[:2]]
        again.put(records[2:], Lane.SMALL)
        assert again.get(records[2].id) == records[2].stored
        again.close(clean=False)


def test_a_flipped_byte_is_found_on_reading_and_replaced_by_a_put(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    records = random_chunks(5, 500)
    store.put(records, Lane.BULK, cache=False)
    store.sync()
    where = store.locate(records[2].id)
    assert where is not None
    flip(store.packs.path(where.pack), where.offset + 200)
    with pytest.raises(Damaged):
        store.get(records[2].id)
    assert not store.has(records[2].id)
    assert store.missing([r.id for r in records]) == [records[2].id]
    store.put(records, Lane.BULK, cache=False)
    assert store.get(records[2].id) == records[2].stored
    assert store.has(records[2].id)
    store.close()
    again = small_store(tmp_path)
    assert again.get(records[2].id) == records[2].stored
    again.close()


def test_a_lost_index_is_rebuilt_without_what_is_damaged(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    records = random_chunks(60, 3000)
    store.put(records, Lane.BULK)
    where = store.locate(records[10].id)
    assert where is not None
    store.close()
    flip(tmp_path / "packs" / f"{where.pack:08d}.pack", where.offset + 100)
    shutil.rmtree(tmp_path / "index")
    again = small_store(tmp_path)
    assert again.recovery.rebuilt
    assert len(again.recovery.damaged) == 1
    assert again.missing([r.id for r in records]) == [records[10].id]
    again.close()


@pytest.mark.parametrize("how", ["garbage", "meta", "middle", "short", "empty"])
def test_a_damaged_index_costs_a_scan_and_no_data(tmp_path: Path, how: str) -> None:
    store = small_store(tmp_path)
    records = random_chunks(3000, 20)
    store.put(records, Lane.BULK)
    store.close()
    (tmp_path / "clean").unlink()  # the process did not end well
    data = tmp_path / "index" / "data.mdb"
    size = data.stat().st_size
    with open(data, "r+b") as file:
        if how == "garbage":
            file.write(random.Random(1).randbytes(size))
        elif how == "meta":
            file.write(random.Random(2).randbytes(8192))
        elif how == "middle":
            file.seek(8192)
            file.write(random.Random(3).randbytes(size - 8192))
        elif how == "short":
            file.truncate(size // 2)
        else:
            file.truncate(0)
    again = small_store(tmp_path)
    assert again.recovery.rebuilt
    assert again.missing([r.id for r in records]) == []
    assert all(again.get(r.id) == r.stored for r in records[::50])
    again.close()


def test_everything_that_was_reported_survives_kill_9(tmp_path: Path) -> None:
    source = random.Random(11)
    reported: list[bytes] = []
    for round_ in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", APPENDS, str(tmp_path), str(round_)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        line = child.stdout.readline()  # it is at work
        time.sleep(source.random() * 0.15)
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().splitlines(keepends=True)
        child.wait()
        child.stdout.close()
        reported += [bytes.fromhex(text) for text in [line, *rest] if text.endswith("\n")]
        store = small_store(tmp_path, 200_000)
        assert store.missing(reported) == []
        assert not store.recovery.damaged
        for name in reported[-200:]:
            store.get(name)
        store.close(clean=round_ % 2 == 0)
    assert len(reported) > 100


def test_what_a_dead_process_never_synced_is_synced_before_it_counts_as_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = small_store(tmp_path)
    records = random_chunks(3, 100)
    store.put(records, Lane.SMALL)
    store.index.pending.clear()
    store.close(clean=False)
    synced: list[str] = []
    real = os.fdatasync

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fdatasync", note)
    again = small_store(tmp_path)
    assert again.missing([r.id for r in records]) == []
    assert any(name.endswith("00000001.pack") for name in synced)
    again.close()


def test_a_pack_that_vanished_is_missing_and_not_held(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    records = random_chunks(60, 3000)
    store.put(records, Lane.BULK)
    where = {r.id: store.locate(r.id) for r in records}
    store.close()
    (tmp_path / "packs" / "00000002.pack").unlink()
    again = small_store(tmp_path)
    lost = [r.id for r in records if where[r.id].pack == 2]  # type: ignore[union-attr]
    assert lost
    assert again.missing([r.id for r in records]) == lost
    assert again.recovery.lost_packs == [2]
    again.close()
    assert not small_store(tmp_path).recovery.lost_packs


def test_a_pack_shorter_than_the_index_says_is_damage(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    records = random_chunks(4, 1000)
    store.put(records, Lane.BULK)
    where = store.locate(records[2].id)
    assert where is not None
    store.close()
    os.truncate(tmp_path / "packs" / "00000001.pack", where.offset)
    again = small_store(tmp_path)
    assert set(again.missing([r.id for r in records])) == {records[2].id, records[3].id}
    again.put(records, Lane.BULK)
    assert [again.get(r.id) for r in records] == [r.stored for r in records]
    again.close()


def test_an_unclean_boot_reads_recent_records_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small_store(tmp_path)
    records = random_chunks(10, 1000)
    store.put(records, Lane.BULK)
    store.tick(force=True)
    where = store.locate(records[4].id)
    assert where is not None
    store.close(clean=False)
    flip(tmp_path / "packs" / f"{where.pack:08d}.pack", where.offset + 500)
    same = small_store(tmp_path)
    assert same.has(records[4].id)  # the same boot: nobody looked
    assert not same.recovery.unclean_boot
    same.close(clean=False)
    monkeypatch.setattr(store_module, "boot_id", lambda: "another boot")
    again = small_store(tmp_path)
    assert again.recovery.unclean_boot
    assert again.recovery.rehashed_bytes > 0
    assert not again.has(records[4].id)
    again.close()  # clean
    after = small_store(tmp_path)
    assert not after.recovery.unclean_boot
    assert not (tmp_path / "clean").exists()
    after.close(clean=False)
    (tmp_path / "boot").unlink()  # what the agent does when the disk failed
    assert small_store(tmp_path).recovery.unclean_boot


def test_too_many_open_files_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small_store(tmp_path)
    record = chunk(b"here")
    store.put([record], Lane.SMALL, cache=False)

    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(OSError, match="Too many"):
            store.get(record.id)
    assert store.has(record.id)
    assert store.get(record.id) == b"here"
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("a loop mount needs root")
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(24 << 20)
    for command in (
        ["mkfs.ext4", "-q", "-m", "0", str(image)],
        ["mount", "-o", "loop", str(image), str(place)],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            pytest.skip(f"no loop mount here: {error}")
        if done.returncode:
            pytest.skip(f"no loop mount here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_said_and_nothing_is_lost(small_disk: Path) -> None:
    store = ObjectStore(small_disk / "store", pack_size=1 << 20)
    held: list[bytes] = []

    def fill() -> None:
        for seed in range(1000):
            records = random_chunks(16, 16 << 10, seed)
            store.put(records, Lane.BULK, cache=False)
            store.sync()
            held.extend(r.id for r in records)

    with pytest.raises(CrnodeError) as caught:
        fill()
    assert caught.value.exit_code == ExitCode.FULL
    with pytest.raises(CrnodeError):
        store.check_room()
    assert len(held) > 200
    assert all(store.get(name) for name in held)
    store.tick(force=True)
    store.close(clean=False)
    again = ObjectStore(small_disk / "store", pack_size=1 << 20)
    assert again.missing(held) == []
    assert all(again.get(name) for name in held[::7])
    again.close(clean=False)


def _closed(place: Path) -> tuple[list[bytes], Path]:
    """A store that was closed in order, with more than one pack; its objects, and the index's file."""
    store = small_store(place)
    records = random_chunks(4000, 20)
    for at in range(0, len(records), 500):
        store.put(records[at : at + 500], Lane.BULK)
        store.tick(force=True)
    store.close()
    assert (place / "clean").exists()
    return [r.id for r in records], place / "index" / "data.mdb"


def _opens_in_a_process(place: Path, count: int) -> None:
    """In a process of its own: a damaged index ends the one that maps it."""
    code = (
        "import sys; from pathlib import Path; from crnode.store.store import ObjectStore\n"
        "store = ObjectStore(Path(sys.argv[1]), pack_size=64 << 10, ballast=0)\n"
        f"assert store.recovery.rebuilt and store.index.count() == {count}; store.close()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.parametrize("seed", range(4))
def test_an_index_damaged_after_a_clean_end_is_made_again(tmp_path: Path, seed: int) -> None:
    names, data = _closed(tmp_path)
    source = random.Random(seed)
    for _ in range(300):
        flip(data, source.randrange(data.stat().st_size))
    _opens_in_a_process(tmp_path, len(names))
    again = small_store(tmp_path)
    assert not again.recovery.rebuilt
    assert again.missing(names) == []
    again.close()


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.9])
def test_an_index_cut_short_after_a_clean_end_is_made_again(tmp_path: Path, part: float) -> None:
    names, data = _closed(tmp_path)
    with open(data, "r+b") as file:
        file.truncate(int(data.stat().st_size * part))
    _opens_in_a_process(tmp_path, len(names))


def test_an_index_too_large_to_be_hashed_is_told_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_SEAL_BYTES", 1000)
    names, data = _closed(tmp_path)
    assert (tmp_path / "clean").read_text().endswith(" -")
    small_store(tmp_path).close()
    with open(data, "r+b") as file:
        file.truncate(data.stat().st_size // 2)
    again = small_store(tmp_path)
    assert again.recovery.rebuilt
    assert again.missing(names) == []
    again.close()


@pytest.mark.parametrize("error", [lmdb.CorruptedError("x"), lmdb.BadTxnError("x"), lmdb.Error("EIO")])
def test_an_index_that_cannot_be_committed_at_opening_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: lmdb.Error
) -> None:
    names, _ = _closed(tmp_path)
    real, calls = index_module.Index.commit, []

    def commit(self: index_module.Index, *args: Any, **more: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            raise error
        real(self, *args, **more)

    monkeypatch.setattr(index_module.Index, "commit", commit)
    again = small_store(tmp_path)
    assert again.recovery.rebuilt
    assert not again.recovery.unclean_boot
    assert again.missing(names) == []
    assert not (tmp_path / "index-damaged").exists()
    again.close()


@pytest.mark.parametrize("when", ["commit", "read"])
def test_an_index_found_damaged_at_run_time_is_made_again_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    names, _ = _closed(tmp_path)
    store = small_store(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise lmdb.CorruptedError("MDB_CORRUPTED")

    with monkeypatch.context() as patch, pytest.raises(StoreFailed, match="store is damaged"):
        if when == "commit":
            patch.setattr(store.index, "commit", fail)
            store.put([chunk(b"more")], Lane.SMALL)
            store.tick(force=True)
        else:
            patch.setattr(index_module, "unpack", fail)
            store.locate(names[0])
    store.close(clean=False)
    again = small_store(tmp_path)
    assert again.recovery.rebuilt
    assert again.missing(names) == []
    again.close()
    assert not small_store(tmp_path).recovery.rebuilt


def test_a_record_that_a_cut_pack_holds_half_of_is_not_held(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", 1 << 20)
    records = random_chunks(3, 5000)
    store.put(records, Lane.BULK, cache=False)
    store.sync()
    where = store.locate(records[1].id)
    assert where is not None
    store.close()
    os.truncate(store.packs.path(where.pack), where.offset + 2000)
    again = small_store(tmp_path / "store", 1 << 20)
    assert again.missing([r.id for r in records]) == [records[1].id, records[2].id]


@pytest.mark.parametrize("name", ["clean", "boot"])
def test_a_small_file_that_rots_keeps_no_store_from_opening(tmp_path: Path, name: str) -> None:
    store = small_store(tmp_path / "store")
    store.put(random_chunks(3, 500), Lane.BULK)
    store.sync()
    store.close(clean=name == "clean")
    (tmp_path / "store" / name).write_bytes(b"\xff\xfe" * 20)
    small_store(tmp_path / "store").close()


def test_an_index_that_shows_damage_when_its_positions_are_read_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it is larger than what is sealed by a hash."""
    monkeypatch.setattr(index_module, "_SEAL_BYTES", 0)
    store = small_store(tmp_path / "store")
    records = random_chunks(3, 500)
    store.put(records, Lane.BULK, cache=False)
    store.sync()
    store.close()
    place = tmp_path / "store" / "index"
    env = lmdb.open(str(place), map_size=64 << 30, max_dbs=2)
    db = env.open_db(b"positions")
    with env.begin(write=True, db=db) as txn:
        txn.put(b"%08d" % 1, b"abc")
    env.close()
    again = small_store(tmp_path / "store")
    assert again.recovery.rebuilt
    assert again.missing([r.id for r in records]) == []
    again.put(random_chunks(3, 500, seed=5), Lane.BULK)
    again.sync()
    again.close()
    last = small_store(tmp_path / "store")
    assert last.missing([r.id for r in records]) == []
    last.close()
