"""A keeper around its core: one whose vote file cannot be written says nothing that rests on it; a switch
that is asked for twice is one."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crnode.errors import CrnodeError
from crnode.failover.keeper import Keeper
from crnode.failover.lease import Lease, Phase
from crnode.failover.terms import (
    LAN,
    LAN_LEASE_NS,
    NO_EPOCH,
    Config,
    ConfigId,
    Epoch,
    Grant,
    Message,
    Moment,
    Ok,
    Renew,
    Voter,
)
from crnode.failover.vote_file import NAME, VoteFile
from crnode.failover.wire import Envelope

CLUSTER = bytes(16)
NOW = Moment(10**12, 10**12)


@pytest.fixture
def keeper(tmp_path: Path) -> Any:
    """b's, with its vote file and its lease, and nobody to talk to."""
    votes = VoteFile(tmp_path / NAME)
    voters = (Voter("a", b"a" * 16), Voter("b", votes.hard.incarnation), Voter("c", b"c" * 16))
    config = Config(ConfigId(1, NO_EPOCH, 1), voters, (("a", 1), ("b", 2), ("c", 3)), LAN_LEASE_NS)
    votes.save(votes.hard._replace(config=config))
    one = object.__new__(Keeper)
    one.votes, one.lease = votes, Lease("b", votes.hard, LAN, lambda: 0.5)
    one.links = {"a": SimpleNamespace(heard=0.0, incarnation=b"", able=True, renewals={})}  # type: ignore[dict-item]
    one.document = SimpleNamespace(id=CLUSTER.hex(), node=lambda _: SimpleNamespace(lost=False))  # type: ignore[assignment]
    one.node = SimpleNamespace(name="b")  # type: ignore[assignment]
    one._broken, one._is_unsaved, one._answers = None, False, []  # type: ignore[assignment]
    return one


def test_no_promise_is_repeated_that_could_not_be_kept(
    keeper: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Message] = []
    monkeypatch.setattr(keeper, "_send", lambda _, message: said.append(message))
    config, epoch = keeper.lease.hard.config, Epoch(1, 1)
    real, full = keeper.votes._fd, os.open("/dev/full", os.O_RDWR)
    keeper.votes._fd = full
    with pytest.raises(CrnodeError, match=r"vote file .* cannot be written. .*No space left"):
        keeper._take("a", Envelope(CLUSTER, b"a" * 16, Grant(1, epoch, NO_EPOCH, config)))
    # What it holds in memory says that it promised; the disk knows nothing of it.
    keeper.votes._fd = real
    keeper._take("a", Envelope(CLUSTER, b"a" * 16, Renew(2, epoch, config)))
    keeper._take("a", Envelope(CLUSTER, b"a" * 16, Grant(3, Epoch(2, 1), NO_EPOCH, config)))
    assert said == [] and isinstance(keeper._broken, CrnodeError)  # with which the next tick ends it
    os.close(full)
    keeper.votes.close()
    again = VoteFile(tmp_path / NAME)
    assert again.hard.epoch == NO_EPOCH and again.hard.to == ""
    again.close()


def test_a_promise_that_was_kept_is_said(keeper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Message] = []
    monkeypatch.setattr(keeper, "_send", lambda _, message: said.append(message))
    keeper._take("a", Envelope(CLUSTER, b"a" * 16, Grant(1, Epoch(1, 1), NO_EPOCH, keeper.lease.hard.config)))
    assert [type(one) for one in said] == [Ok]
    keeper.votes.close()


def test_a_switch_that_is_asked_for_twice_is_one(keeper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one was told that this node is not active, or that b did not answer, while b took over."""
    begun: list[str] = []

    async def begin(successor: str) -> None:
        begun.append(successor)
        await asyncio.sleep(0.05)
        keeper.lease.phase, keeper.lease._successor = Phase.HANDING, successor

    async def ask() -> None:
        keeper._switching, keeper._handed_to = asyncio.Lock(), ""
        both = [keeper._switch({"to": "c"}, None) for _ in range(2)]
        assert await asyncio.gather(*both) == [{"to": "c"}] * 2
        with pytest.raises(CrnodeError, match="being handed over to c"):
            await keeper._switch({"to": "a"}, None)
        keeper.lease.phase, keeper._handed_to = Phase.STANDBY, "c"
        assert await keeper._switch({"to": "c"}, None) == {"to": "c"}  # it has just ended
        assert begun == ["c"]

    monkeypatch.setattr(keeper, "_begin_switch", begin)
    asyncio.run(ask())
    keeper.votes.close()


def test_who_forgot_that_others_opened_an_epoch_descends_from_nothing(
    keeper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent says that nobody opened these sets; its vote file knows better, and so do the others."""
    takeover = SimpleNamespace(sets=("site",), candidates=("a", "b"))
    monkeypatch.setattr(keeper, "takeover", lambda: takeover)
    keeper._data, keeper._is_new, keeper._able = (1e12, NO_EPOCH, ""), True, ""
    for mark, descent in ((NO_EPOCH, NO_EPOCH), (Epoch(7, 1), NO_EPOCH), (Epoch(7, 2), Epoch(7, 2))):
        keeper.lease.hard = keeper.lease.hard._replace(mark=mark)
        assert keeper.descent == descent
    keeper._is_new = False
    assert keeper.descent == NO_EPOCH and keeper._why_not() == ""
    takeover.candidates = ("a", "c")  # its slot it keeps for ever
    assert keeper._why_not() == "it is no candidate"
    keeper.votes.close()
