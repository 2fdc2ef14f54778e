"""Databases are brought back as one, and not under whoever runs them (rule 69); with SQLite itself."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from harness import Cluster, crnode

from crnode.errors import ExitCode


def newest(cluster: Cluster) -> str:
    return str(max(row["number"] for row in cluster.master.call("versions", {"set": "docs"})["versions"]))


def orders(database: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [text for (text,) in db.execute("SELECT text FROM orders ORDER BY text")]


@pytest.fixture
def shop(cluster: Cluster, tmp_path: Path) -> tuple[Cluster, Path]:
    """A set of two nodes."""
    cluster.init()
    cluster.join("box2")
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path / 'live'}"], brake_percent=0)
    return cluster, source


def said(cluster: Cluster, *words: str) -> tuple[int, str]:
    done = crnode(*words, "--data", str(cluster.master.data), check=False)
    return done.returncode, done.stderr


def test_a_database_comes_back_with_what_lies_beside_it(shop: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, source = shop
    path = source / "data" / "app.db"
    program = sqlite3.connect(path)
    program.execute("PRAGMA journal_mode=WAL")
    program.execute("PRAGMA wal_autocheckpoint=0")
    program.execute("CREATE TABLE orders (text)")
    program.commit()
    program.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    program.execute("INSERT INTO orders VALUES ('first')")
    program.commit()  # in the -wal, and not in the database
    assert b"first" not in path.read_bytes()
    (source / "letter").write_text("good")
    cluster.sync("docs")
    good = newest(cluster)
    time.sleep(1.1)  # what is followed by quiet stays a version
    program.execute("INSERT INTO orders VALUES ('second')")
    program.commit()
    program.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    cluster.sync("docs")

    # Somewhere else it is what it was, whatever of it was named.
    for number, name in enumerate(("app.db", "app.db-wal")):
        to = tmp_path / f"to{number}"
        words = ("restore", f"docs:data/{name}", "--version", good, "--to", str(to))
        crnode(*words, "--data", str(cluster.master.data))
        assert orders(to / "app.db") == ["first"]

    # To its place not while a program has it, and nothing is changed then; afterwards as one.
    words = ("restore", "docs:data/app.db", "--in-place", "--version", good)
    code, text = said(cluster, *words)
    assert code == ExitCode.REFUSED and "'data/app.db' is a database that somebody has open" in text
    (source / "letter").write_text("of another day")
    cluster.sync("docs")
    all_of_it = ("restore", "docs", "--in-place", "--version", good, "--data", str(cluster.master.data))
    done = crnode(*all_of_it, "--plan", check=False)
    assert "a program has this database open" in done.stdout
    assert (source / "letter").read_text() == "of another day"
    done = crnode(*all_of_it, check=False)
    assert done.returncode == ExitCode.BEHIND and "a program has this database open" in done.stdout
    assert (source / "letter").read_text() == "good" and orders(path) == ["first", "second"]
    program.execute("INSERT INTO orders VALUES ('third')")
    program.commit()
    cluster.sync("docs")
    copy = (source / "data" / "app.db-wal").read_bytes()
    program.close()
    (source / "data" / "app.db-wal").write_bytes(copy)  # of a program that was killed
    cluster.sync("docs")
    crnode(*words, "--data", str(cluster.master.data))
    assert orders(path) == ["first"]


def test_files_that_are_only_called_so_are_no_database(shop: tuple[Cluster, Path], tmp_path: Path) -> None:
    cluster, source = shop
    travel, journal = source / "data" / "travel", source / "data" / "travel-journal"
    travel.write_text("to Rome " * 200)
    cluster.sync("docs")
    good = newest(cluster)
    time.sleep(1.1)
    travel.write_text("to Paris " * 200)
    journal.write_text("day one")
    cluster.sync("docs")
    data = ("--data", str(cluster.master.data))
    crnode("restore", "docs:data/travel", "--in-place", "--version", good, *data)
    assert "Rome" in travel.read_text() and journal.read_text() == "day one"
    crnode("restore", "docs:data/travel-journal", "--to", str(tmp_path / "to"), *data)
    assert os.listdir(tmp_path / "to") == ["travel-journal"]


def test_a_file_of_a_data_directory_does_not_come_back_alone(shop: tuple[Cluster, Path]) -> None:
    cluster, source = shop
    place = source / "data" / "main"
    (place / "global").mkdir(parents=True)
    (place / "base" / "5").mkdir(parents=True)
    (place / "PG_VERSION").write_text("16\n")
    (place / "base" / "5" / "1259").write_bytes(b"good")
    cluster.sync("docs")
    good = newest(cluster)
    time.sleep(1.1)
    (place / "base" / "5" / "1259").write_bytes(b"other")
    cluster.sync("docs")
    code, text = said(cluster, "restore", "docs:data/main/base/5/1259", "--in-place", "--version", good)
    assert code == ExitCode.REFUSED and "crnode restore docs:data/main --in-place" in text

    server = subprocess.Popen(["sleep", "600"], cwd=place)
    try:
        (place / "postmaster.pid").write_text(f"{server.pid}\n{place}\n")
        cluster.sync("docs")
        words = ("restore", "docs:data/main", "--in-place", "--version", good)
        code, text = said(cluster, *words)
        assert code == ExitCode.REFUSED and "'data/main' is a database that somebody has open" in text
        assert (place / "base" / "5" / "1259").read_bytes() == b"other"
    finally:
        server.kill()
        server.wait()
    crnode(*words, "--data", str(cluster.master.data))
    assert (place / "base" / "5" / "1259").read_bytes() == b"good"
    assert not os.path.exists(place / "postmaster.pid")
