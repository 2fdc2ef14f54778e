"""What keeps a keeper alive, and what ends its services when it is not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from crnode.failover import guard
from crnode.failover.guard import Systemd, Watchdog
from crnode.failover.layers import layers


def test_systemd_hears_that_the_keeper_lives_from_the_loop_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1250000"})
        systemd.tell("READY=1")
        assert manager.recv(100) == b"READY=1" and systemd.watches
        for _ in range(3):
            systemd.alive()
        assert manager.recv(100) == b"WATCHDOG=1"
        with pytest.raises(BlockingIOError):
            manager.recv(100)  # twenty times a second would be too often
        now[0] += 0.3
        systemd.alive()
        assert manager.recv(100) == b"WATCHDOG=1"
    systemd.tell("STOPPING=1")  # nobody listens, and nothing happens
    assert not Systemd({}).watches


def test_a_watchdog_is_fed_while_it_is_armed_and_closed_by_its_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: now[0])
    device = tmp_path / "watchdog"
    device.touch()
    said: list[str] = []
    dog = Watchdog(str(device), said.append)
    dog.feed()
    assert device.read_bytes() == b"" and not dog.is_armed
    dog.arm()
    for _ in range(3):
        dog.feed()
    now[0] += 0.6
    dog.feed()
    assert device.read_bytes() == b"11" and dog.is_armed
    dog.disarm()
    dog.disarm()
    assert device.read_bytes() == b"11V" and not dog.is_armed and said == []
    Watchdog(str(tmp_path / "none"), said.append).arm()
    assert said == [f"The watchdog {tmp_path}/none could not be armed: No such file or directory."]


def test_each_layer_says_whether_it_is_live() -> None:
    bare = layers(has_address=False, units=[], bound="", watched=False, device="", fence="", guards={})
    assert {row["name"] for row in bare} == {
        "address", "systemd watchdog", "machine watchdog", "fence command", "keeper",
    }  # fmt: skip
    assert not any(row["live"] for row in bare)
    full = layers(
        has_address=True,
        units=["nginx.service", "mariadb.service"],
        bound="crnode-keeper.service",
        watched=True,
        device="/dev/watchdog",
        fence="off.sh",
        guards={"locked": True, "spared": True, "first": True},
    )
    assert all(row["live"] for row in full) and len(full) == 7
    said = " ".join(row["text"] for row in full)
    assert "nginx.service and mariadb.service only where the lease is" in said
