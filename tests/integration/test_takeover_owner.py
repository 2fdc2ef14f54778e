"""What the owner may add to a takeover: handing back by itself, commands that switch a machine off and that
bring the clients."""

from __future__ import annotations

import time

import pytest
from harness import wait_for
from shop import Shop


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
    said = shop.said()
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
    shop.check_answers()


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
