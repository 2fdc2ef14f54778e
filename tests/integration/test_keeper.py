"""Keepers in network namespaces: three hosts with addresses of their own, one floating address, a service
that says who it is, and a client that asks it all the time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import wait_for
from house import FLOATING, House, check_namespaces, closing, inner

from crnode.errors import ExitCode


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    check_namespaces()
    with closing(House(tmp_path)) as one:
        one.build()
        yield one


@pytest.mark.timeout(300)
def test_the_address_and_the_service_are_where_the_lease_is_and_never_twice(house: House) -> None:
    a, b, c = house.keepers()
    for host in (a, b, c):
        host.keeper = host.start("keeper")
    assert house.settled() is a  # the one that was first, as the only voter
    wait_for(lambda: a.asked()["voters"] == ["a", "b", "c"])
    wait_for(lambda: all(h.asked()["is_voter"] for h in (b, c)))
    house.turns = ["a"]

    # Everything of the active node is killed: the kernel ends the service, and the address by itself.
    a.keeper.kill()
    a.keeper.wait()
    wait_for(lambda: not a.serves(), 2.0)
    wait_for(lambda: not a.has_address(), 4.0)
    second = house.settled()
    assert second in (b, c)
    third = c if second is b else b
    house.turns.append(second.name)
    a.keeper = a.start("keeper")
    wait_for(lambda: a.phase() == "standby")

    # Its cable is cut: it fences by itself, and another one takes over.
    second.plug("down")
    wait_for(lambda: not second.has_address() and not second.serves(), 6.0)
    found = house.settled()
    assert found in (a, third)
    house.turns.append(found.name)
    second.plug("up")
    wait_for(lambda: second.phase() == "standby" and second.asked()["holder"] == found.name, 15.0)

    # Its keeper stands still: the kernel takes the address off, and it fences when it goes on.
    os.kill(inner(found), signal.SIGSTOP)
    wait_for(lambda: not found.has_address(), 6.0)
    rest = [host for host in (a, b, c) if host is not found]
    other = wait_for(lambda: next((host for host in rest if host.phase() == "active"), None), 20)
    os.kill(inner(found), signal.SIGCONT)
    wait_for(lambda: not found.serves(), 5.0)
    assert house.settled() is other
    house.turns.append(other.name)

    # A person asks for a switch, and it takes no lease's end.
    to = next(host for host in (a, b, c) if host is not other)
    begun = time.monotonic()
    other.run("switch-to", to.name)
    assert house.settled() is to and time.monotonic() - begun < 10
    house.turns.append(to.name)
    house.check_answers()


@pytest.mark.timeout(300)
def test_all_keepers_start_again_in_any_order_and_one_alone_is_nobody(house: House) -> None:
    a, b, c = house.keepers()
    for host in (a, b, c):
        host.keeper = host.start("keeper")
    assert house.settled() is a
    wait_for(lambda: a.asked()["voters"] == ["a", "b", "c"])
    wait_for(lambda: all(h.asked()["is_voter"] for h in (b, c)))
    for host in (a, b, c):
        assert host.keeper is not None
        host.keeper.terminate()
        assert host.keeper.wait() == 0
    assert not any(host.has_address() or host.serves() for host in (a, b, c))
    c.keeper = c.start("keeper")
    wait_for(lambda: c.phase() == "standby")
    time.sleep(6)
    assert c.phase() != "active" and not c.has_address()  # one of three
    a.keeper = a.start("keeper")
    assert house.settled() is a  # two of three, and the one that was active last goes first
    # A second keeper says that there is one, and touches nothing of what that runs.
    (before,) = a.service()
    for _ in range(2):
        done = subprocess.run(a.command("keeper"), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == ExitCode.REFUSED and "A keeper of a runs already" in done.stderr
    assert a.service() == [before] and a.has_address()
    # A service that ends is started again where it is.
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: a.service() not in ([], [before]), 5.0)
    assert house.settled() is a
    status = a.run("takeover", "status")
    assert "active in epoch" in status and FLOATING in status
    told = a.asked()
    for name in ("late_ms", "answers_ms"):
        assert 0 < told[name]["p50"] <= told[name]["p99"] <= told[name]["max"]
    assert 0.3 < told["least_left_s"] < 2.5
    assert c.asked()["answers_ms"] == {} and c.asked()["least_left_s"] is None
    assert "a, b, c" in a.run("takeover", "show")


@pytest.mark.timeout(120)
def test_a_watchdog_is_fed_by_the_active_node_and_left_in_peace_when_it_ends_well(tmp_path: Path) -> None:
    """With a file in the place of the device: what is written to it is what counts there, too."""
    check_namespaces()
    device = Path(f"/dev/shm/crnode-watchdog-{os.getpid()}")
    device.touch()
    try:
        with closing(House(tmp_path)) as house:
            house.build("--candidate", "a", "--watchdog", str(device))
            a = house.hosts["a"]
            for host in house.keepers():
                host.keeper = host.start("keeper")
            house.settled()
            wait_for(lambda: len(device.read_bytes()) >= 3)
            assert set(device.read_bytes()) == {ord("1")}
            a.keeper.terminate()
            assert a.keeper.wait(10) == 0
            assert device.read_bytes().endswith(b"V") and not a.serves() and not a.has_address()
            os.truncate(device, 0)

            a.keeper = a.start("keeper")
            house.settled()
            wait_for(lambda: len(device.read_bytes()) >= 3)
            a.keeper.kill()  # nobody disarms it: the machine would start again
            a.keeper.wait()
            assert set(device.read_bytes()) == {ord("1")}
    finally:
        device.unlink()
