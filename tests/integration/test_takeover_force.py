"""Takeover without a majority: two nodes without a third, and a person who says that one is switched off."""

from __future__ import annotations

import shutil
import subprocess
import time

import pytest
from harness import wait_for
from house import Host
from shop import Shop

from crnode.errors import CrnodeError, ExitCode
from crnode.net.control import call


def answer(host: Host, *words: str) -> tuple[int, str]:
    """(exit code, what it said) of a command."""
    done = subprocess.run(host.command(*words), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def why_not(host: Host) -> str:
    """Why its keeper does not campaign."""
    try:
        return str(host.asked()["why_not"])
    except CrnodeError:
        return ""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shop", ["two"], indirect=True)
def test_of_two_nodes_the_other_goes_on_when_a_person_says_that_one_is_off(shop: Shop) -> None:
    a, b = shop.keepers()
    shop.turns = ["a"]
    assert a.asked()["voters"] == ["a"]
    code, said = answer(a, "failover", "--dry-run")
    assert code == ExitCode.BEHIND and "Add a third node as a witness" in said
    code, said = answer(b, "failover", "--force", "--i-switched-off", "a")
    assert code == ExitCode.REFUSED and "a is active, and answers" in said

    # A planned switch takes no third: the successor gets a vote, and votes alone afterwards.
    wait_for(lambda: answer(a, "switch-to", "b")[0] == 0)  # b has said that it is able
    assert shop.settled() is b
    shop.turns.append("b")
    wait_for(lambda: b.asked()["voters"] == ["b"])
    wait_for(lambda: shop.in_sync("b", "a"), 30)
    b.run("failback")
    assert shop.settled() is a
    shop.turns.append("a")
    wait_for(lambda: a.asked()["voters"] == ["a"])
    wait_for(lambda: shop.in_sync("a", "b"), 30)
    wait_for(lambda: (b.data / "ca" / "ca.key").exists())

    shop.kill(a)
    time.sleep(6)
    assert b.phase() == "standby"  # it cannot know whether a is dead, or the cable
    assert answer(b, "failover", "--force")[0] == ExitCode.USAGE
    code, said = answer(b, "failover", "--dry-run")
    assert code == ExitCode.BEHIND and "crnode failover --force --i-switched-off a" in said
    said = b.run("failover", "--force", "--i-switched-off", "a")
    assert "b goes on without a" in said
    assert shop.settled() is b
    shop.turns.append("b")
    (shop.site("b") / "written by force").write_text("b alone")

    # The old one comes back as it was: nobody listens to it, and it does not serve.
    shop.boot(a)
    wait_for(lambda: "b has turned this node away" in why_not(a), 30)
    code, said = answer(a, "activate", "--alone")
    assert code == ExitCode.REFUSED and "has to join anew" in said
    code, said = answer(a, "failover")
    assert code == ExitCode.REFUSED and "has to join anew" in said
    code, said = answer(a, "set", "add", "more", "--source", "a", "--path", str(shop.place), "--to", "b")
    assert code == ExitCode.REFUSED and "a is the master no more" in said and "has to join anew" in said
    time.sleep(3)
    assert not a.has_address() and not a.serves() and shop.settled() is b
    code, said = answer(a, "activate")
    assert code == ExitCode.USAGE and "--alone" in said
    shop.kill(b)
    time.sleep(3)  # it is called again meanwhile, and nobody answers: a stays put out
    code, said = answer(a, "failover")
    assert code == ExitCode.REFUSED and "b has turned this node away" in said
    assert a.phase() == "standby" and not a.serves()
    shop.boot(b)
    wait_for(lambda: "b cannot take over: It alone votes" in answer(b, "failover", "--dry-run")[1], 20)
    assert answer(b, "failover", "--dry-run")[0] == ExitCode.BEHIND
    b.run("activate", "--alone")  # a may have been made active by force; who did not do that says so
    assert shop.settled(40) is b

    # It joins as a new one at the new master; what lay there is kept, and b's state comes over it.
    shop.kill(a)
    shutil.rmtree(a.data)
    (shop.site("a") / "only at a").write_text("never sent")
    a.plug("up")
    shop.join(b, a, "repli-master")
    a.keeper = a.start("keeper")
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    shop.quiet()
    wait_for(shop.same, 30)
    assert (shop.site("a") / "written by force").exists() and not (shop.site("a") / "only at a").exists()
    rows = call(a.data / "control.sock", "versions", {"set": "site"}, None, 30)["versions"]
    named = [row["name"] for row in rows if row["node"] == "a" and row["name"]]
    assert named, rows
    back = shop.place / "back"
    a.run("restore", "site:only at a", "--version", named[0], "--to", str(back))
    assert (back / "only at a").read_text() == "never sent"
    b.run("failback")
    wait_for(lambda: a.phase() == "active" and a.serves(), 30)
    shop.check_answers()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shop", ["two"], indirect=True)
def test_who_votes_alone_asks_the_other_one_after_a_start(shop: Shop) -> None:
    a, b = shop.keepers()
    shop.turns = ["a"]
    for host in (a, b):
        shop.kill(host)
    shop.boot(a)
    wait_for(lambda: "b confirmed" in why_not(a), 20)
    time.sleep(4)
    assert a.phase() == "standby"
    shop.boot(b)
    assert shop.settled(40) is a
    for host in (a, b):
        shop.kill(host)
    shop.boot(a)
    wait_for(lambda: "b confirmed" in why_not(a), 20)
    a.run("activate", "--alone")
    wait_for(lambda: a.phase() == "active" and a.serves(), 30)
    shop.check_answers()


@pytest.mark.timeout(300)
def test_with_a_majority_force_is_refused_and_with_one_left_all_have_to_be_named(shop: Shop) -> None:
    a, b, c = shop.keepers()
    shop.turns = ["a", "b"]
    shop.quiet()
    wait_for(lambda: shop.in_sync("a", "b"))
    c.plug("down")
    a.plug("down")
    wait_for(lambda: not a.serves(), 10)
    words = ("failover", "--force", "--i-switched-off", "a")
    wait_for(lambda: "c does not answer either" in answer(b, *words)[1])  # when a's lease is over here
    shop.kill(a)
    c.plug("up")
    wait_for(lambda: b.asked()["keepers"]["c"] and b.phase() == "active", 40)
    code, said = answer(b, "failover", "--force", "--i-switched-off", "a")
    assert code == ExitCode.REFUSED and "b is active" in said

    # b dies, too; c may not become active, and votes: nothing but a's return, or b's, helps.
    shop.kill(b)
    words = ("failover", "--force", "--i-switched-off", "a", "--i-switched-off", "b")
    wait_for(lambda: "no candidate" in answer(c, *words)[1])
    shop.boot(b)
    wait_for(lambda: b.phase() == "active", 40)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shop", ["two"], indirect=True)
def test_force_that_was_cut_off_half_way_is_said_again(shop: Shop) -> None:
    """Its keeper went on, and the agent died before the cluster document said so."""
    a, b = shop.keepers()
    shop.turns = ["a", "b"]
    shop.quiet()
    wait_for(lambda: shop.in_sync("a", "b"))
    wait_for(lambda: (b.data / "ca" / "ca.key").exists())
    wait_for(lambda: why_not(b) and "no candidate" not in why_not(b))  # it has heard of a
    shop.kill(a)
    b.asked("force", accept_loss=False)
    wait_for(lambda: b.phase() == "active" and b.serves(), 40)
    assert b.keeper is not None
    b.keeper.kill()
    b.keeper.wait()
    b.keeper = b.start("keeper")
    wait_for(lambda: "alone votes" in why_not(b), 20)
    said = b.run("failover", "--force", "--i-switched-off", "a")
    assert "b goes on without a" in said
    wait_for(lambda: b.phase() == "active" and b.serves(), 40)
    nodes = {node["name"]: node for node in call(b.data / "control.sock", "node.list", {}, None, 30)["nodes"]}
    assert (nodes["b"]["role"], nodes["a"]["state"]) == ("master", "lost")
    code, said = answer(b, "failover", "--force", "--i-switched-off", "a")
    assert code == ExitCode.REFUSED and "b is active" in said
