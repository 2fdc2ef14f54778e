"""Packs: what was appended is found again, and damage costs what was damaged."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
from store_samples import chunk, flip, random_chunks

from crnode.errors import CrnodeError
from crnode.store.packs import HEADER_LENGTH, MAGIC, Found, Gap, Lane, Packs, StoreFailed
from crnode.store.store import sound


def _scan(packs: Packs, pack: int, start: int = 0, end: int | None = None) -> tuple[list[bytes], list[Gap]]:
    met = list(packs.scan(pack, start, sound, end))
    return [m.id for m in met if isinstance(m, Found)], [m for m in met if isinstance(m, Gap)]


def test_what_was_appended_is_read_and_found_by_a_scan(tmp_path: Path) -> None:
    packs = Packs(tmp_path / "packs", pack_size=4000)
    records = [*random_chunks(30, 300), chunk(b"x")]
    places = packs.append(Lane.BULK, records, born=7)
    packs.sync()
    assert len(packs.numbers()) > 2
    for record, where in zip(records, places, strict=True):
        assert packs.read(where) == record.stored
        assert where.born == 7
    found = [name for pack in packs.numbers() for name in _scan(packs, pack)[0]]
    assert found == [r.id for r in records]
    assert packs.total() == sum(where.size for where in places)
    packs.close()


def test_lanes_are_separate_packs_and_a_sealed_one_grows_no_more(tmp_path: Path) -> None:
    packs = Packs(tmp_path)
    one, two = random_chunks(2, 100)
    (first,) = packs.append(Lane.SMALL, [one], 1)
    (second,) = packs.append(Lane.BULK, [two], 1)
    assert first.pack != second.pack
    packs.seal(Lane.SMALL)
    (third,) = packs.append(Lane.SMALL, [chunk(b"after")], 1)
    assert third.pack not in (first.pack, second.pack)
    packs.close()


def test_a_tail_torn_at_any_byte_is_one_gap_at_the_end(tmp_path: Path) -> None:
    packs = Packs(tmp_path)
    records = random_chunks(3, 40)
    places = packs.append(Lane.BULK, records, 1)
    packs.close()
    path = packs.path(places[0].pack)
    whole = path.read_bytes()
    last = places[-1].offset
    for cut in range(last + 1, len(whole)):
        path.write_bytes(whole[:cut])
        ids, gaps = _scan(packs, 1)
        assert ids == [r.id for r in records[:2]]
        assert gaps == [Gap(1, last, cut, True)], cut


def test_a_flipped_byte_anywhere_costs_one_record(tmp_path: Path) -> None:
    packs = Packs(tmp_path)
    records = random_chunks(3, 30)
    places = packs.append(Lane.BULK, records, 1)
    packs.close()
    path = packs.path(1)
    whole = path.read_bytes()
    for at in range(places[1].offset, places[2].offset):
        flip(path, at)
        ids, gaps = _scan(packs, 1)
        assert ids == [records[0].id, records[2].id], at
        assert gaps == [Gap(1, places[1].offset, places[2].offset, False)]
        path.write_bytes(whole)


def test_content_that_looks_like_a_pack_does_not_mislead_a_scan(tmp_path: Path) -> None:
    inner = Packs(tmp_path / "inner")
    inner.append(Lane.BULK, [chunk(b"inner")], 1)
    inner.close()
    image = inner.path(1).read_bytes()
    packs = Packs(tmp_path / "outer")
    records = [chunk(MAGIC * 50), chunk(image), chunk(b"tail")]
    places = packs.append(Lane.BULK, records, 1)
    packs.close()
    assert _scan(packs, 1) == ([r.id for r in records], [])
    flip(packs.path(1), places[1].offset)  # now the search inside meets a record that is one
    ids, gaps = _scan(packs, 1)
    assert ids == [records[0].id, chunk(b"inner").id, records[2].id]
    assert gaps and not any(g.at_end for g in gaps)


def test_a_record_larger_than_the_scan_buffer(tmp_path: Path) -> None:
    packs = Packs(tmp_path)
    records = [chunk(bytes(3 << 20)), chunk(b"small"), chunk(b"\1" * (1 << 20))]
    packs.append(Lane.BULK, records, 1)
    packs.close()
    assert _scan(packs, 1) == ([r.id for r in records], [])
    flip(packs.path(1), 100)
    assert _scan(packs, 1)[0] == [r.id for r in records[1:]]


def test_a_scan_stops_at_its_end(tmp_path: Path) -> None:
    packs = Packs(tmp_path)
    records = random_chunks(4, 50)
    places = packs.append(Lane.BULK, records, 1)
    assert _scan(packs, 1, end=places[2].offset) == ([r.id for r in records[:2]], [])
    assert _scan(packs, 1, start=places[1].offset)[0] == [r.id for r in records[1:]]
    packs.close()


def test_removed_while_being_read(tmp_path: Path) -> None:
    """A descriptor must not be closed, and its number not come to name another file, under a reader."""
    packs = Packs(tmp_path, pack_size=1)
    records = random_chunks(200, 2000)
    places = packs.append(Lane.BULK, records, 1)
    wrong: list[object] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for record, where in zip(records, places, strict=True):
                try:
                    if packs.read(where) != record.stored:
                        wrong.append("other bytes")
                except FileNotFoundError:
                    pass
                except (OSError, ValueError) as error:
                    wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    other = tmp_path / "other"
    other.write_bytes(os.urandom(5000))
    try:
        for where in places:
            packs.remove(where.pack)
            for _ in range(5):
                os.close(os.open(other, os.O_RDONLY))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    packs.close()


def test_descriptors_are_bounded_and_closed(tmp_path: Path) -> None:
    packs = Packs(tmp_path, pack_size=1)
    places = packs.append(Lane.BULK, random_chunks(400, 10), 1)
    before = len(os.listdir("/proc/self/fd"))
    for where in places:
        packs.read(where)
    assert len(os.listdir("/proc/self/fd")) - before <= 260
    packs.close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_failed_append_leaves_whole_records_only(tmp_path: Path) -> None:
    packs = Packs(tmp_path)
    first = random_chunks(1, 100)[0]
    packs.append(Lane.BULK, [first], 1)
    pack, fd, end = packs._open[Lane.BULK]
    readonly = os.open(packs.path(pack), os.O_RDONLY)
    packs._open[Lane.BULK] = (pack, readonly, end)
    with pytest.raises((StoreFailed, CrnodeError)):
        packs.append(Lane.BULK, [chunk(b"second")], 1)
    os.close(readonly)
    packs._open[Lane.BULK] = (pack, fd, end)
    assert packs.size(pack) == HEADER_LENGTH + 100
    packs.append(Lane.BULK, [chunk(b"third")], 1)
    assert _scan(packs, pack)[0] == [first.id, chunk(b"third").id]
    packs.close()
