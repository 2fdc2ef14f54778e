"""Takeover with data, between hosts in network namespaces: a service that counts in a file of a set, a
client that counts with it, and a server that dies, is cut off, stands still, comes back, or hands over."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from functools import partial

import pytest
from harness import rsync_difference, wait_for
from house import FLOATING, Host, ip
from shop import Shop

from crnode.errors import ExitCode
from crnode.net.control import call
from crnode.store.reader import open_reader


def foretold(host: Host) -> tuple[int, str]:
    """The exit code of `crnode failover --dry-run` on a host, and what it says."""
    done = subprocess.run(host.command("failover", "--dry-run"), capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.timeout(300)
def test_the_server_dies_and_the_other_one_serves_what_was_there_and_hands_back(shop: Shop) -> None:
    a, b = shop.hosts["a"], shop.hosts["b"]
    shop.turns = ["a"]
    time.sleep(1)
    wait_for(lambda: shop.in_sync("a", "b"))
    with open(shop.site("b") / "page 3", "a") as page:  # by somebody, in the folder of the standby
        page.write("not the shop's")
    (shop.site("b") / "stray").write_text("nor this")
    last = shop.counted()[-1]
    shop.kill(a)
    assert shop.settled(40) is b
    shop.turns.append("b")
    assert not (shop.site("b") / "stray").exists()
    assert (shop.site("b") / "page 3").read_bytes() == (shop.site("a") / "page 3").read_bytes()
    assert any("changed locally and put right" in text and "stray" in text for text in shop.events("b"))
    first = next(number for who, number in shop.counted() if who == "b")
    assert first >= last[1] - 60  # not more than what the last moments had
    assert FLOATING in ip("-n", b.space, "-4", "-o", "address", "show", "dev", "eth0")
    assert shop.status("b")["source"] == "b"
    (shop.site("b") / "written at b").write_text("while a was away")

    shop.boot(a)
    wait_for(lambda: a.phase() == "standby", 30)
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    assert any("follows it" in text for text in shop.events("a"))
    wait_for(lambda: (shop.site("a") / "written at b").exists())

    # Back to the old one, without loss: the number that the client saw last goes on.
    wait_for(lambda: foretold(b)[0] == ExitCode.OK)  # a has to hear of the lease first
    said = b.run("failover", "--dry-run")
    assert "b is active in epoch" in said and "a could take over with version" in said
    assert "b is active in epoch" in b.run("status")
    assert "If b fails, a serves after about" in said
    assert "a is active already" not in a.run("failback")  # asked there, done by b
    assert shop.settled(40) is a
    assert "a is active already" in b.run("failback")
    shop.turns.append("a")
    said = shop.counted()
    back = max(at for at in range(1, len(said)) if (said[at - 1][0], said[at][0]) == ("b", "a"))
    # One more may have been counted whose answer the client did not get.
    assert 1 <= said[back][1] - said[back - 1][1] <= 3
    wait_for(lambda: shop.in_sync("a", "b"), 60)
    shop.check_answers()
    versions = call(a.data / "control.sock", "versions", {"set": "site"}, None, 30)["versions"]
    diverged = {row["node"] for row in versions if (row["name"] or "").startswith("diverged")}
    assert diverged <= {"a"}  # when it was killed, something may have been on its way; never afterwards

    # From now on it stays at home, and goes on to where it went.
    shop.quiet()
    words = [word for name in "abc" for word in ("--voter", name)]
    a.run("takeover", "set", *words, "--candidate", "a", "--candidate", "b", "--leave", "site")
    (shop.site("a") / "at home").write_text("it moves no more")
    a.run("sync", "site", "--timeout", "30")
    assert (shop.site("b") / "at home").exists()
    wait_for(lambda: shop.same(), 30)
    a.run("set", "remove", "site")


@pytest.mark.timeout(300)
def test_a_server_that_was_cut_off_keeps_what_it_wrote_as_a_version(shop: Shop) -> None:
    a, b = shop.hosts["a"], shop.hosts["b"]
    shop.turns = ["a", "b"]
    time.sleep(0.5)
    wait_for(lambda: shop.in_sync("a", "b"))
    a.plug("down")
    (shop.site("a") / "nobody has it").write_bytes(b"written while the cable was out")
    (shop.site("a") / "page 7").write_bytes(b"changed while the cable was out")
    wait_for(lambda: not a.has_address() and not a.serves(), 6.0)
    assert shop.settled(40) is b
    (shop.site("b") / "page 8").write_bytes(b"changed at the new one")
    a.plug("up")
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    shop.quiet()
    wait_for(shop.same, 30)
    assert not (shop.site("a") / "nobody has it").exists()
    told = next(text for text in shop.events("a") if "took over without" in text)
    assert "nobody has it" in told and "page 7" in told
    versions = call(a.data / "control.sock", "versions", {"set": "site"}, None, 30)["versions"]
    (kept,) = [row for row in versions if (row["name"] or "").startswith("diverged") and row["node"] == "a"]
    to = shop.place / "back"
    a.run("restore", "site:nobody has it", "--version", kept["name"], "--to", str(to))
    assert (to / "nobody has it").read_bytes() == b"written while the cable was out"
    shop.check_answers()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shop", ["third"], indirect=True)
def test_what_only_a_third_node_has_is_fetched_before_anybody_serves(shop: Shop) -> None:
    a, b, c = shop.keepers()
    shop.quiet()
    wait_for(lambda: shop.in_sync("a", "b") and shop.in_sync("a", "c"))
    assert b.agent is not None
    os.kill(b.agent.pid, signal.SIGSTOP)  # its disk is slow, say
    for number in range(30):
        (shop.site("a") / f"only at c {number}").write_bytes(os.urandom(40_000))
    (shop.site("a") / "page 3").unlink()
    wait_for(lambda: (shop.site("c") / "only at c 29").exists() and shop.in_sync("a", "c"))
    shop.kill(a)
    os.kill(b.agent.pid, signal.SIGCONT)
    wait_for(lambda: b.phase() == "active" and b.serves(), 40)
    wait_for(lambda: rsync_difference(shop.site("b"), shop.site("c")) == "", 30)
    assert (shop.site("b") / "only at c 29").exists() and not (shop.site("b") / "page 3").exists()
    assert any("was fetched from c" in text for text in shop.events("b"))
    wait_for(lambda: shop.in_sync("b", "c"), 60)
    rows = call(b.data / "control.sock", "versions", {"set": "site"}, None, 60)["versions"]
    assert not [row for row in rows if (row["name"] or "").startswith("diverged")]
    assert c.phase() == "standby"


@pytest.mark.timeout(300)
def test_a_server_that_dies_while_it_sends_a_large_image(shop: Shop) -> None:
    """What was staged of it is nobody's: the new source begins with what was whole."""
    a, b = shop.hosts["a"], shop.hosts["b"]
    shop.quiet()
    wait_for(lambda: shop.in_sync("a", "b"))
    catalog = next((b.data / "sets").glob("*.db"))

    def staging() -> bool:
        with open_reader(catalog) as reader:
            return reader.staging() is not None

    many = shop.site("a") / "many"
    many.mkdir()

    def is_met() -> bool:
        """b has begun to stage a large image. Written slowly, they go as many small ones: then once more."""
        for number in range(12_000):
            (many / f"{time.monotonic_ns()}").write_bytes(b"%d" % number * 20)
        with contextlib.suppress(AssertionError):
            wait_for(staging, 10, 0.005)
            return True
        return False

    assert any(is_met() for _ in range(5))
    shop.kill(a)
    had = len(list(many.glob("*")))
    wait_for(lambda: b.phase() == "active" and b.serves(), 30)
    assert not staging()
    before = len(list((shop.site("b") / "many").glob("*"))) if (shop.site("b") / "many").exists() else 0
    (shop.site("b") / "written at b").write_text("on with the work")
    shop.boot(a)
    wait_for(lambda: shop.in_sync("b", "a"), 90)
    wait_for(shop.same, 60)
    assert (shop.site("a") / "written at b").exists()
    assert len(list((shop.site("a") / "many").glob("*"))) == before or before == 0
    versions = call(a.data / "control.sock", "versions", {"set": "site"}, None, 30)["versions"]
    kept = [row for row in versions if (row["name"] or "").startswith("diverged") and row["node"] == "a"]
    if before < had:
        assert len(kept) == 1 and kept[0]["entries"] > had  # all that a had


@pytest.mark.timeout(300)
def test_whatever_stands_still_at_most_one_serves(shop: Shop) -> None:
    """SIGSTOP of the agent, of the keeper, of both."""
    a, b = shop.hosts["a"], shop.hosts["b"]
    assert a.agent is not None and a.keeper is not None
    shop.turns = ["a"]
    os.kill(a.agent.pid, signal.SIGSTOP)  # replication stands still, the shop does not
    time.sleep(6)
    assert a.phase() == "active" and b.phase() == "standby"
    assert shop.answers()[-1] == "a"
    os.kill(a.agent.pid, signal.SIGCONT)
    wait_for(lambda: shop.in_sync("a", "b"), 30)

    for process in (a.agent, a.keeper):  # all of ours: what the kernel holds ends by itself
        os.kill(process.pid, signal.SIGSTOP)
    assert shop.settled(40) is b
    assert not a.has_address()
    shop.turns.append("b")
    for process in (a.keeper, a.agent):
        os.kill(process.pid, signal.SIGCONT)
    wait_for(lambda: not a.serves(), 5.0)
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    wait_for(lambda: a.phase() == "standby")
    shop.check_answers()


@pytest.mark.timeout(300)
def test_a_newest_version_that_was_found_bad_is_walked_back_from(shop: Shop) -> None:
    a, b = shop.hosts["a"], shop.hosts["b"]
    shop.quiet()
    time.sleep(1.5)
    (shop.site("a") / "state").write_text("fit")
    a.run("sync", "site", "--timeout", "30")
    b.run("drill", "site", "--every", "10h", "--run", "grep -q fit state")
    time.sleep(1.2)
    (shop.site("a") / "state").write_text("broken")
    a.run("sync", "site", "--timeout", "30")
    planned = b.command("drill", "site", "--planned")
    done = subprocess.run(planned, capture_output=True, text=True, check=False)
    assert "bad" in done.stdout, done.stdout + done.stderr
    shop.kill(a)
    wait_for(lambda: b.phase() == "active" and b.serves(), 30)
    assert (shop.site("b") / "state").read_text() == "fit"
    told = next(text for text in shop.events("b") if "was found bad" in text and "serves version" in text)
    assert "older" in told
    versions = call(b.data / "control.sock", "versions", {"set": "site"}, None, 30)["versions"]
    (left,) = [row for row in versions if (row["name"] or "").startswith("walked back from")]
    assert left["verdict"] == "bad"
    # Who is active keeps versions, too, and shows them.
    assert "state" in b.run("ls", "site", "--version", str(left["number"]))
    assert b.run("cat", "site:state", "--version", str(left["number"])) == "broken"
    assert "state" in b.run("diff", "site", str(left["number"]))
    assert "state" in b.run("search", "site", "state")
    shop.boot(a)
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    wait_for(shop.same, 30)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("shop", "older"), [("", True), ("no loss", False)], indirect=["shop"])
def test_what_the_brake_holds_is_served_where_what_was_before_is_too_old(shop: Shop, older: bool) -> None:
    """Rule 82: files that were encrypted a minute before the crash, and a day's work that looks like it."""
    a, b = shop.hosts["a"], shop.hosts["b"]
    shop.quiet()
    shop.turns = ["a", "b"]
    wait_for(shop.same)
    pages = sorted(shop.site("a").glob("page *"))
    was = {page.name: page.read_bytes() for page in pages}
    time.sleep(2.5)
    for page in pages:
        page.write_bytes(os.urandom(2000))
    call_brake = partial(call, a.data / "control.sock", "brake", {"set": "site"}, None, 30)
    wait_for(lambda: any(row["held"] for row in call_brake()["targets"]), 30)

    def has_all() -> bool:
        """b has what it does not show."""
        rows = call(a.data / "control.sock", "versions", {"set": "site"}, None, 30)["versions"]
        return {max(row["number"] for row in rows if row["node"] == name) for name in "ab"} == {
            max(row["number"] for row in rows)
        }

    wait_for(has_all)
    shop.kill(a)
    wait_for(lambda: b.phase() == "active" and b.serves(), 30)
    now = {page.name: (shop.site("b") / page.name).read_bytes() for page in pages}
    told = next(text for text in shop.events("b") if "was held at version" in text)
    versions = call(b.data / "control.sock", "versions", {"set": "site"}, None, 30)["versions"]
    names = {row["name"] for row in versions if row["node"] == "b" and row["name"]}
    assert any(name.startswith("before the mass change") for name in names)
    if older:
        assert now == was and "It serves that one" in told
        (kept,) = [name for name in names if name.startswith("held when b took over")]
        assert kept in told
        b.run("restore", "site:page 7", "--version", kept, "--to", str(shop.place / "seen"))
        assert (shop.place / "seen" / "page 7").read_bytes() == pages[0].with_name("page 7").read_bytes()
    else:
        assert now == {page.name: page.read_bytes() for page in pages} and "It serves what came since" in told
    shop.boot(a)
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    shop.quiet()
    wait_for(shop.same, 30)


@pytest.mark.timeout(300)
def test_a_newest_version_that_nothing_has_judged_is_judged_before_anybody_serves(shop: Shop) -> None:
    a, b = shop.hosts["a"], shop.hosts["b"]
    shop.quiet()
    time.sleep(1.5)
    (shop.site("a") / "state").write_text("fit")
    a.run("sync", "site", "--timeout", "30")
    b.run("drill", "site", "--every", "10h", "--run", "grep -q fit state")
    b.run("drill", "site", "--planned")
    time.sleep(1.2)
    (shop.site("a") / "state").write_text("broken")
    a.run("sync", "site", "--timeout", "30")
    shop.kill(a)
    wait_for(lambda: b.phase() == "active" and b.serves(), 60)
    assert (shop.site("b") / "state").read_text() == "fit"
    assert any("was found bad" in text and "serves version" in text for text in shop.events("b"))
    shop.boot(a)
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    wait_for(shop.same, 30)

    # And back, with one that is fit: that is said, too.
    a.run("drill", "site", "--every", "10h", "--run", "grep -q fit state")
    wait_for(lambda: a.asked()["holder"] == "b")  # else it would leave two minutes to b, after its start
    (shop.site("b") / "state").write_text("fit again")
    b.run("sync", "site", "--timeout", "30")
    shop.kill(b)
    wait_for(lambda: a.phase() == "active" and a.serves(), 60)
    assert (shop.site("a") / "state").read_text() == "fit again"
    assert any("was found good" in text for text in shop.events("a"))


@pytest.mark.timeout(300)
def test_all_start_again_and_one_that_is_missing_is_not_needed(shop: Shop) -> None:
    a, b, c = shop.keepers()
    shop.turns = ["a"]
    time.sleep(0.5)
    for host in (a, b, c):
        shop.kill(host)
    shop.boot(c)
    shop.boot(a)  # b is missing; a was active last, and goes first
    assert shop.settled(60) is a
    shop.boot(b)
    wait_for(lambda: shop.in_sync("a", "b"), 60)
    shop.quiet()
    wait_for(shop.same, 30)
    shop.check_answers()


@pytest.mark.timeout(300)
def test_a_service_is_started_again_and_one_that_goes_on_failing_moves(shop: Shop) -> None:
    a, b = shop.hosts["a"], shop.hosts["b"]
    shop.turns = ["a"]
    if shutil.which("curl"):
        assert (shop.balancer("a"), shop.balancer("b")) == (200, 503)
    (first,) = a.service()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: a.service() not in ([], [first]), 5.0)
    assert shop.settled() is a
    wait_for(lambda: shop.in_sync("a", "b"))
    wait_for(lambda: a.asked()["services"] == {"web": "up"})
    (second,) = a.service()
    os.kill(second, signal.SIGSTOP)  # it hangs: it runs, has its port, and answers nobody
    wait_for(lambda: b.phase() == "active", 30)
    assert shop.settled() is b
    shop.turns.append("b")
    assert not a.has_address() and not a.serves()
    said = shop.counted()
    moved = max(at for at in range(1, len(said)) if (said[at - 1][0], said[at][0]) == ("a", "b"))
    assert said[moved][1] >= said[moved - 1][1] + 1  # what was counted is not lost
    log = (shop.place / "a.log").read_text()
    assert "The service web fails again and again" in log and "b is to serve" in log
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    if shutil.which("curl"):
        assert (shop.balancer("a"), shop.balancer("b")) == (503, 200)
    shop.check_answers()


@pytest.mark.timeout(300)
def test_a_probe_that_fails_now_and_then_moves_nothing(shop: Shop) -> None:
    a = shop.hosts["a"]
    shop.turns = ["a"]
    (before,) = a.service()
    (shop.place / "flap").touch()
    time.sleep(12)
    (shop.place / "flap").unlink()
    assert shop.settled() is a
    assert a.service() == [before]
    shop.check_answers()


@pytest.mark.timeout(300)
def test_without_the_witness_it_goes_on_and_without_two_nobody_serves(shop: Shop) -> None:
    a, b, c = shop.keepers()
    shop.turns = ["a"]
    shop.kill(c)
    time.sleep(5)
    assert shop.settled() is a
    code, said = foretold(a)
    assert code == ExitCode.BEHIND and "nothing would take over" in said
    b.plug("down")
    wait_for(lambda: not a.has_address() and not a.serves(), 8.0)  # one of three: it stops by itself
    b.plug("up")
    found = shop.settled(40)
    assert found in (a, b)
    if found is b:
        shop.turns.append("b")
    shop.boot(c)
    wait_for(lambda: c.phase() == "standby", 20)
    shop.check_answers()


@pytest.mark.timeout(300)
def test_a_server_that_hears_and_is_not_heard_stops(shop: Shop) -> None:
    """One way only: nothing of what it sends to the others leaves it, and its clients reach it well."""
    a, b, _ = shop.keepers()
    shop.turns = ["a"]
    for number in (2, 3):
        ip("-n", a.space, "route", "add", "blackhole", f"10.77.0.{number}/32")
    wait_for(lambda: not a.has_address() and not a.serves(), 8.0)
    assert shop.settled(40) is b
    shop.turns.append("b")
    for number in (2, 3):
        ip("-n", a.space, "route", "del", "blackhole", f"10.77.0.{number}/32")
    wait_for(lambda: shop.in_sync("b", "a"), 60)
    wait_for(lambda: a.phase() == "standby")
    shop.check_answers()
