"""What the owner may add to a takeover: handing back by itself, commands that switch a machine off and that
bring the clients."""

from __future__ import annotations

import contextlib
import subprocess
import time

import pytest
from harness import wait_for
from house import FLOATING, ip
from shop import Shop

from crnode.errors import CrnodeError, ExitCode
from crnode.net.control import call


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shop", ["home"], indirect=True)
def test_it_hands_back_by_itself_when_home_has_been_able_for_a_while(shop: Shop) -> None:
    a, b = shop.hosts["a"], shop.hosts["b"]
    shop.turns = ["a", "b", "a"]
    time.sleep(0.5)
    wait_for(lambda: shop.in_sync("a", "b"))
    shop.kill(a)
    assert shop.settled(40) is b
    (shop.site("b") / "written at b").write_text("while a was away")
    shop.boot(a)
    wait_for(lambda: a.phase() == "active", 60)
    assert shop.settled(40) is a
    assert (shop.site("a") / "written at b").exists()
    log = (shop.place / "b.log").read_text()
    assert "a has been able for 3 s, and is to serve again" in log
    said = shop.counted()
    back = max(at for at in range(1, len(said)) if (said[at - 1][0], said[at][0]) == ("b", "a"))
    assert 1 <= said[back][1] - said[back - 1][1] <= 3  # nothing that was counted is lost
    time.sleep(5)
    assert shop.settled() is a and b.phase() == "standby"
    shop.check_answers()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shop", ["hooks"], indirect=True)
def test_nobody_serves_before_the_other_machine_was_switched_off(shop: Shop) -> None:
    a, b = shop.hosts["a"], shop.hosts["b"]
    shop.turns = ["a", "b", "a"]
    fenced, clients = shop.place / "fenced", shop.place / "clients"
    wait_for(lambda: clients.exists() and clients.read_text() == "take a\n")
    assert not fenced.exists()  # nobody was active before it
    time.sleep(0.5)
    wait_for(lambda: shop.in_sync("a", "b"))
    (shop.place / "code").write_text("7")  # the power distribution unit does not answer
    shop.kill(a)
    wait_for(lambda: "a could not be switched off: it ended with 7" in (shop.place / "b.log").read_text(), 30)
    assert not b.has_address() and not b.serves()
    dry = subprocess.run(b.command("failover", "--dry-run"), capture_output=True, text=True, timeout=60)
    assert dry.returncode == ExitCode.BEHIND, dry
    assert "b cannot take over: a could not be switched off: it ended with 7." in dry.stdout
    (shop.place / "code").write_text("0")
    assert shop.settled(60) is b
    assert set(fenced.read_text().split()) == {"a"}
    wait_for(lambda: clients.read_text().endswith("take b\n"))
    times = fenced.read_text()

    # Handing over is no reason to switch anybody off.
    shop.boot(a)
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    a.run("failback")
    assert shop.settled(40) is a
    wait_for(lambda: clients.read_text().endswith("take a\n"))
    assert "drop b\n" in clients.read_text() and fenced.read_text() == times
    wait_for(lambda: "b could take over" in a.run("failover", "--dry-run"), 30)
    shop.check_answers()

    # What was said before takes them away, then what is said now brings them.
    before = clients.read_text()
    shop.quiet()
    words = [f"{word} anew" if word.endswith("clients.sh") else word for word in shop.said]
    a.run("takeover", "set", *words)
    wait_for(lambda: clients.read_text() == f"{before}drop a\ntake a\n", 10)
    other = FLOATING.rpartition(".")[0] + ".222"
    a.run("takeover", "set", *[word.replace(FLOATING, other) for word in words])
    wait_for(lambda: clients.read_text() == before + 2 * "drop a\ntake a\n", 10)
    wait_for(lambda: other in ip("-n", a.space, "-4", "-o", "address", "show", "dev", "eth0"), 10)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shop", ["veto"], indirect=True)
def test_who_does_not_reach_the_gateway_leaves_it_to_others(shop: Shop) -> None:
    """The address is never a vote: that one reaches it does not make it active."""
    a, b = shop.hosts["a"], shop.hosts["b"]
    shop.turns = ["a", "b"]
    time.sleep(0.5)
    wait_for(lambda: shop.in_sync("a", "b"))
    client = shop.hosts["client"]
    client.plug("down")
    time.sleep(5)
    assert a.phase() == "active"  # who is active goes on
    shop.kill(a)
    wait_for(lambda: "does not reach 10.77.0.9" in b.asked()["why_not"], 20)
    time.sleep(4)
    assert b.phase() == "standby"
    client.plug("up")
    assert shop.settled(40) is b
    shop.check_answers()


@pytest.mark.timeout(300)
def test_a_set_may_begin_to_move_while_a_node_is_active(shop: Shop) -> None:
    """It is opened in the epoch that is held: else nobody's data would descend from that any more."""
    a, b = shop.hosts["a"], shop.hosts["b"]
    shop.turns = ["a", "b"]
    for name in "ab":
        (shop.place / f"more-{name}").mkdir()
    (shop.place / "more-a" / "file").write_text("moves, too")
    words = ["--source", "a", "--path", str(shop.place / "more-a"), "--to", f"b:{shop.place / 'more-b'}"]
    a.run("set", "add", "more", *words, "--privileged")
    a.run("sync", "more", "--timeout", "30")
    a.run("takeover", "set", *shop.said, "--set", "more")

    def opened() -> bool:
        with contextlib.suppress(CrnodeError):
            rows = call(b.data / "control.sock", "takeover.state", {}, None, 30)["sets"]
            return len(rows) == 2 and min(row["epoch"] for row in rows) > 0
        return False

    wait_for(opened, 30)
    (shop.place / "more-a" / "file").write_text("and goes on")
    a.run("sync", "more", "--timeout", "30")
    a.keeper.terminate()
    a.keeper.wait()
    a.keeper = a.start("keeper")  # whoever it is, it can be active
    found = shop.settled(60)
    if found is b:
        assert (shop.place / "more-b" / "file").read_text() == "and goes on"
    else:
        shop.turns = ["a"]
        shop.kill(a)
        assert shop.settled(60) is b
        shop.turns.append("b")
    rows = call(b.data / "control.sock", "status", {}, None, 30)["sets"]
    assert {row["name"]: row["source"] for row in rows} == {"site": "b", "more": "b"}
    shop.check_answers()
