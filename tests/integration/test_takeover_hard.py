"""Takeover when more than one thing is wrong: two of five lost, a disk that is full, a machine that stands
still as a whole."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from harness import wait_for
from house import Host, ip
from shop import Shop

from crnode.errors import ExitCode


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shop", ["five"], indirect=True)
def test_of_five_voters_two_may_be_lost_and_not_three(shop: Shop) -> None:
    a, b, c, d, e = shop.keepers()
    shop.turns = ["a", "b"]
    for host in (d, e):
        shop.kill(host)
    time.sleep(4)
    assert shop.settled() is a
    for host in (d, e):
        shop.boot(host)
    wait_for(lambda: a.asked()["keepers"] == dict.fromkeys("bcde", True), 20)
    wait_for(lambda: shop.in_sync("a", "b"))

    for host in (a, c):  # the active one is among them
        shop.kill(host)
    assert shop.settled(40) is b
    d.plug("down")
    wait_for(lambda: not b.has_address() and not b.serves(), 8.0)  # two of five
    time.sleep(4)
    assert shop.active() is None
    d.plug("up")
    assert shop.settled(40) is b
    for host in (a, c):
        shop.boot(host)
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    assert shop.settled() is b
    shop.check_answers()


def fill(place: Path) -> Path:
    """A file that takes the last byte."""
    filler = place / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return filler


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shop", ["small"], indirect=True)
def test_a_full_disk_does_not_keep_a_node_from_voting_and_taking_over(shop: Shop, small_disk: Path) -> None:
    a, b, c = shop.keepers()
    shop.turns = ["a", "b"]
    time.sleep(1)
    filler = fill(small_disk)

    def is_full() -> bool:
        (row,) = shop.status("a")["targets"]
        return row["state"] == "full" or "room" in row["reason"]

    wait_for(is_full, 30)
    assert shop.settled() is a  # what b does not take any more is no reason to stop
    shop.kill(c)
    time.sleep(4)
    assert shop.settled() is a  # b votes
    shop.boot(c)
    wait_for(lambda: c.phase() == "standby")
    shop.kill(a)
    assert shop.settled(60) is b
    filler.unlink()
    shop.boot(a)
    wait_for(lambda: shop.in_sync("b", "a"), 90)
    shop.quiet()
    wait_for(shop.same, 60)
    shop.check_answers()


def stop_all(host: Host, number: signal.Signals) -> None:
    """To every process of a host."""
    for pid in ip("netns", "pids", host.space).split():
        with contextlib.suppress(ProcessLookupError):  # a probe that has ended meanwhile
            os.kill(int(pid), number)


@pytest.mark.timeout(300)
def test_a_machine_that_stands_still_as_a_whole_is_never_a_second_one(shop: Shop) -> None:
    """Its kernel goes on: what it holds of the lease ends by itself."""
    a, b, _ = shop.keepers()
    shop.turns = ["a", "b", "a"]
    stop_all(a, signal.SIGSTOP)
    assert shop.settled(40) is b
    assert not a.has_address()
    time.sleep(2)
    stop_all(a, signal.SIGCONT)
    wait_for(lambda: not a.serves(), 5.0)
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    stop_all(b, signal.SIGSTOP)
    assert shop.settled(40) is a
    stop_all(b, signal.SIGCONT)
    wait_for(lambda: not b.serves(), 5.0)
    wait_for(lambda: shop.in_sync("a", "b"), 60)
    shop.check_answers()
    shop.quiet()
    wait_for(shop.same, 60)


@pytest.mark.timeout(300)
def test_an_agent_that_dies_in_the_midst_of_taking_over_begins_again(shop: Shop) -> None:
    a, b, _ = shop.keepers()
    shop.quiet()
    for number in range(300):
        (shop.site("a") / f"more {number}").write_bytes(os.urandom(5000))
    a.run("sync", "site", "--timeout", "30")
    shop.kill(a)
    log = shop.place / "b.log"
    wait_for(lambda: "It holds the lease" in log.read_text(), 30, 0.002)
    assert b.agent is not None
    b.agent.kill()  # wherever it is between gathering and opening
    b.agent.wait()
    assert not b.serves() or "is active in epoch" in log.read_text()
    b.agent = b.start("--role", "replica")
    wait_for(lambda: b.phase() == "active" and b.serves(), 60)
    assert (shop.site("b") / "more 299").exists()
    wait_for(lambda: "b serves: it made its data ready in" in log.read_text())
    shop.boot(a)
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    wait_for(shop.same, 60)


@pytest.mark.timeout(300)
def test_a_service_that_cannot_be_started_moves_and_a_person_may_have_it_tried_again(shop: Shop) -> None:
    a, b, _ = shop.keepers()
    shop.turns = ["a", "b", "a"]
    (shop.place / "broken-a").touch()
    (number,) = a.service()
    os.kill(number, signal.SIGKILL)
    assert shop.settled(40) is b
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    (shop.place / "broken-a").unlink()

    # What failed there does not make it active by itself, for a while; a person may know better.
    shop.kill(b)
    wait_for(lambda: "its service web fails again and again" in a.asked()["why_not"], 30)
    time.sleep(5)
    assert a.phase() == "standby"
    a.run("failover")
    assert shop.settled(40) is a
    shop.boot(b)
    wait_for(lambda: shop.in_sync("a", "b"), 60)
    shop.check_answers()


@pytest.mark.timeout(300)
def test_what_the_active_node_forgot_of_being_it_its_keeper_knows(shop: Shop) -> None:
    a, b, _ = shop.keepers()
    shop.turns = ["a", "b"]
    shop.kill(a)
    assert shop.settled(40) is b
    assert b.agent is not None
    b.agent.kill()
    b.agent.wait()
    (b.data / "moves.json").write_bytes(b"{torn")
    done = subprocess.run(b.command("--role", "replica"), capture_output=True, text=True, timeout=60,
    check=False)
    assert done.returncode == ExitCode.DAMAGE and "does not say who has the sets" in done.stderr
    (b.data / "moves.json").unlink()
    b.agent = b.start("--role", "replica")
    wait_for(lambda: shop.source("b") == "b", 20)
    (shop.site("b") / "written at b").write_text("on with the work")
    shop.boot(a)
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    wait_for((shop.site("a") / "written at b").exists, 30)
    assert shop.settled() is b
    shop.check_answers()
