"""The floating address in network namespaces: what the kernel and the neighbours make of what is said."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from harness import wait_for
from house import check_namespaces, ip

HOLD = """
import sys, time
from crnode.failover.fence import Address
address = Address(sys.argv[1], "eth0", print)
for _ in range(int(sys.argv[2])):
    address.hold(float(sys.argv[3]))
    time.sleep(0.1)
"""
LOOK = """
import sys
from crnode.failover.fence import Address
print("found", Address(sys.argv[1], "eth0", print).other_holder())
"""
REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), timeout=1.0)
except ConnectionRefusedError:
    print("refused")
except OSError as error:
    print(error)
"""
PLACES = ("one", "two", "client")
FLOATING = {"v4": "10.79.0.100/24", "v6": "fd79::100/64"}


@pytest.fixture
def street() -> Iterator[dict[str, str]]:
    """Three hosts at one bridge: name -> namespace."""
    check_namespaces()
    prefix = f"f{os.getpid() % 100000}"
    spaces = {name: f"{prefix}-{name}" for name in ("hub", *PLACES)}
    try:
        for space in spaces.values():
            ip("netns", "add", space)
        ip("-n", spaces["hub"], "link", "add", "bridge", "type", "bridge")
        ip("-n", spaces["hub"], "link", "set", "bridge", "up")
        for number, name in enumerate(PLACES, 1):
            space, end = spaces[name], f"{prefix}{number}"
            ends = ["netns", spaces["hub"], "type", "veth", "peer", "eth0", "netns", space]
            ip("link", "add", end, *ends)
            ip("-n", spaces["hub"], "link", "set", end, "master", "bridge", "up")
            ip("-n", space, "address", "add", f"10.79.0.{number}/24", "dev", "eth0")
            ip("-n", space, "address", "add", f"fd79::{number}/64", "dev", "eth0", "nodad")
            ip("-n", space, "link", "set", "eth0", "up")
        yield spaces
    finally:
        for space in spaces.values():
            for pid in ip("netns", "pids", space, check=False).split():
                os.kill(int(pid), 9)
            ip("netns", "delete", space, check=False)


def python(space: str, script: str, *words: str) -> subprocess.Popen[str]:
    command = ["ip", "netns", "exec", space, sys.executable, "-c", script, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def reaches(spaces: dict[str, str], address: str) -> bool:
    """Whether the client gets an answer: that nobody listens there is one."""
    done = python(spaces["client"], REACH, address.split("/")[0])
    return done.communicate(timeout=20)[0].strip() == "refused"


def known_mac(spaces: dict[str, str], address: str) -> str:
    """Who the client takes to have the address."""
    words = ip("-n", spaces["client"], "neigh", "show", address.split("/")[0]).split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""


def mac(space: str) -> str:
    words = ip("-n", space, "link", "show", "eth0").split()
    return words[words.index("link/ether") + 1]


def has(space: str, address: str) -> bool:
    return address.split("/")[0] in ip("-n", space, "-o", "address", "show", "dev", "eth0")


@pytest.mark.parametrize("kind", FLOATING)
def test_clients_follow_the_address_at_once(street: dict[str, str], kind: str) -> None:
    address = FLOATING[kind]
    first = python(street["one"], HOLD, address, "600", "2.5")
    wait_for(lambda: has(street["one"], address))
    wait_for(lambda: reaches(street, address))
    assert known_mac(street, address) == mac(street["one"])
    first.kill()
    first.wait()
    # Nobody takes it off: the kernel does, two seconds after the last time that it was held.
    wait_for(lambda: not has(street["one"], address), 4.0)
    second = python(street["two"], HOLD, address, "600", "2.5")
    wait_for(lambda: has(street["two"], address))
    wait_for(lambda: known_mac(street, address) == mac(street["two"]), 3.0, 0.02)  # it need not ask anew
    assert reaches(street, address)
    second.kill()
    second.wait()


@pytest.mark.parametrize("kind", FLOATING)
def test_a_machine_that_still_answers_for_the_address_is_named(street: dict[str, str], kind: str) -> None:
    address = FLOATING[kind]
    assert not reaches(street, address)
    nobody = python(street["two"], LOOK, address)
    assert nobody.communicate(timeout=20)[0].strip() == "found"
    ip("-n", street["one"], "address", "add", address, "dev", "eth0", *(["nodad"] if kind == "v6" else []))
    found = python(street["two"], LOOK, address)
    assert found.communicate(timeout=20)[0].strip() == f"found {mac(street['one'])}"


@pytest.mark.parametrize("kind", FLOATING)
def test_a_lease_that_is_nearly_over_takes_no_address(street: dict[str, str], kind: str) -> None:
    address = FLOATING[kind]
    done = python(street["one"], HOLD, address, "3", "1.4")
    assert done.communicate(timeout=20)[0] == ""
    assert not has(street["one"], address)
    done = python(street["one"], HOLD, address, "1", "1.6")
    begun = time.monotonic()
    assert done.communicate(timeout=20)[0] == ""
    wait_for(lambda: not has(street["one"], address), 3.0)
    assert time.monotonic() - begun < 4.0
