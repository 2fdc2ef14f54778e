"""What is one database by its names."""

from __future__ import annotations

import pytest

from crnode.versions.units import base_of, data_directory_above, process_files, sides_of


def test_the_files_of_sqlite_belong_together_whichever_is_named() -> None:
    unit = {b"a/x.db", b"a/x.db-wal", b"a/x.db-journal", b"a/x.db-shm"}
    for one in unit:
        assert {one, *sides_of(one)} == unit and len(sides_of(one)) == 3
    assert base_of(b"a/-wal") == b"a/-wal" and base_of(b"-shm") == b"-shm"  # names of their own
    assert base_of(b"a/plain") == b"a/plain"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (b"pg/base/5/1259", b"pg"),
        (b"pg/PG_VERSION", b"pg"),
        (b"pg", None),  # all of it
        (b"my/shop/orders.ibd", b"my"),
        (b"docs/letter", None),
        (b"letter", None),
        (b"", None),
    ],
)
def test_the_folder_of_a_server_is_one(path: bytes, found: bytes | None) -> None:
    there = {b"pg/PG_VERSION", b"pg/global", b"my/ibdata1", b"my/mysql", b"docs/PG_VERSION"}
    assert data_directory_above(path, lambda p: p in there) == found


def test_a_set_may_be_one_as_a_whole() -> None:
    there = {b"PG_VERSION", b"global"}
    assert data_directory_above(b"base/5/1259", lambda p: p in there) == b""
    assert data_directory_above(b"", lambda p: p in there) is None
    assert process_files(b"pg") == (b"pg/postmaster.pid",) and process_files(b"") == (b"postmaster.pid",)
