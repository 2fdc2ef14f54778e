"""What is said of takeover while it runs: another length of the lease, a service that was misspelt, who may
be active."""

from __future__ import annotations

import contextlib
import subprocess
import time

import pytest
from harness import wait_for
from house import Host
from shop import Shop

from crnode.errors import CrnodeError, ExitCode
from crnode.net.control import call


def says(host: Host, *words: str) -> tuple[int, str]:
    done = subprocess.run(host.command(*words), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def holder(host: Host) -> str:
    with contextlib.suppress(CrnodeError):
        return str(host.asked()["holder"])
    return ""


@pytest.mark.timeout(300)
def test_the_lease_may_become_longer_and_shorter_while_it_is_held(shop: Shop) -> None:
    a, b, c = shop.keepers()
    shop.turns = ["a"]
    a.run("takeover", "set", *shop.said, "--wan")
    wait_for(lambda: a.asked()["left_s"] > 6, 20)
    for host in (b, c):
        assert host.keeper is not None
        host.keeper.terminate()
        host.keeper.wait()
        host.keeper = host.start("keeper")
        wait_for(lambda host=host: holder(host) == "a", 30)  # type: ignore[misc]
    assert a.phase() == "active" and a.asked()["left_s"] > 5
    a.run("takeover", "set", *shop.said)
    wait_for(lambda: a.asked()["left_s"] < 2.6, 20)
    time.sleep(3)
    assert shop.settled() is a
    shop.check_answers()


@pytest.mark.timeout(300)
def test_who_is_active_stays_a_candidate_and_a_service_that_was_mended_is_tried(shop: Shop) -> None:
    a, b, _ = shop.keepers()
    shop.turns = ["a"]
    words = [word for at, word in enumerate(shop.said) if shop.said[at - (at % 2)] != "--candidate"]
    code, said = says(a, "takeover", "set", *words, "--candidate", "b", "--leave", "site")
    assert code == ExitCode.REFUSED and "is a, which may not become active" in said

    # Misspelt, it cannot be started on either; said rightly, it is.
    wrong = [word.replace("/service.py", "/servcie.py") for word in shop.said]
    a.run("takeover", "set", *wrong)
    wait_for(lambda: not (a.serves() or b.serves()), 20)
    time.sleep(3)
    a.run("takeover", "set", *shop.said)

    def serves() -> bool:
        with contextlib.suppress(CrnodeError):
            return a.serves() or b.serves()
        return False

    wait_for(serves, 30)
    events = [
        event["text"]
        for name in "ab"
        for event in call(shop.hosts[name].data / "control.sock", "events", {"limit": 1000}, None,
        30)["events"]
    ]
    assert any("The service web does not serve" in text for text in events)
    wait_for(lambda: shop.settled(20) is not None, 40)
