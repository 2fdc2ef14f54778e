"""When a candidate tries, who votes next, and the vote file on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crnode.failover.frames import arp_announcement
from crnode.failover.hard_state import SLOT_BYTES
from crnode.failover.lease import Lease
from crnode.failover.machine import Facts, hindrance, next_voters, sentence
from crnode.failover.terms import LAN, NO_EPOCH, SECOND, Config, ConfigId, Epoch, Grant, Hard, Moment, Voter
from crnode.failover.vote_file import NAME, NO_CONFIG, VoteFile

VOTERS = tuple(Voter(name, name.encode() * 16) for name in "abc")
CONFIG = Config(ConfigId(1, NO_EPOCH, 1), VOTERS, (("a", 1), ("b", 2)), 3 * SECOND)


def at(seconds: float) -> Moment:
    return Moment(int(seconds * SECOND), int(seconds * SECOND))


def lease(name: str = "b", mark: Epoch = NO_EPOCH) -> Lease:
    hard = Hard(name.encode() * 16, NO_EPOCH, "", CONFIG, 0, mark)
    return Lease(name, hard, LAN, lambda: 0.5)


def facts(**more: object) -> Facts:
    known = Facts("b", "lan", at(0), "", True, (), False)
    return known._replace(**more)  # type: ignore[arg-type]


def test_a_candidate_campaigns_unless_something_speaks_against_it() -> None:
    assert hindrance(facts(), lease(), at(1)) == ""
    assert "no candidate" in hindrance(facts(me="c"), lease(), at(1))
    assert "its disk is full" in hindrance(facts(able="its disk is full"), lease(), at(1))
    cut_off = facts(cut_off="it does not reach its gateway")
    assert "does not reach its gateway" in hindrance(cut_off, lease(), at(1))
    assert hindrance(cut_off._replace(asked=True), lease(), at(1)) == ""  # a person knows better


def test_after_a_cold_start_the_node_that_was_active_last_goes_first() -> None:
    mark = Epoch(4, 1)  # opened by a
    assert "leaves 119 s" in hindrance(facts(), lease(mark=mark), at(0.5))
    assert hindrance(facts(), lease(mark=mark), at(121)) == ""
    assert hindrance(facts(network="wan"), lease(mark=mark), at(121)) != ""
    assert hindrance(facts(owner_able=False), lease(mark=mark), at(1)) == ""
    assert hindrance(facts(asked=True), lease(mark=mark), at(1)) == ""
    assert hindrance(facts(), lease(mark=Epoch(4, 2)), at(1)) == ""  # it was this one
    seen = lease(mark=mark)  # it has voted since: the cluster did not just start
    seen.receive("a", b"a" * 16, Grant(1, Epoch(5, 1), mark, CONFIG), at(0.2))
    assert hindrance(facts(), seen, at(1)) == ""


def test_two_takeovers_within_an_hour_and_a_person_has_to_say_what_is_wrong() -> None:
    assert hindrance(facts(takeovers=(at(0),)), lease(), at(60)) == ""
    twice = facts(takeovers=(at(0), at(30)))
    assert "2 times within the hour" in hindrance(twice, lease(), at(60))
    assert hindrance(twice, lease(), at(3601)) == ""
    assert hindrance(twice._replace(asked=True), lease(), at(60)) == ""


def heard(*names: str) -> dict[str, bytes]:
    return {name: name.encode() * 16 for name in names}


def only(*names: str) -> Config:
    return CONFIG._replace(voters=tuple(voter for voter in VOTERS if voter.name in names))


def names(config: Config | None) -> list[str] | None:
    return [voter.name for voter in config.voters] if config is not None else None


def test_voters_come_one_at_a_time_and_two_alone_are_not_wanted() -> None:
    wanted = ("a", "b", "c")
    assert next_voters(only("a"), wanted, heard("a"), "a") is None
    assert next_voters(only("a"), wanted, heard("a", "b"), "a") is None  # one of two would be no majority
    assert names(next_voters(only("a"), wanted, heard("a", "b", "c"), "a")) == ["a", "b"]
    assert names(next_voters(only("a", "b"), wanted, heard("a", "b", "c"), "a")) == ["a", "b", "c"]
    assert next_voters(CONFIG, wanted, heard("a", "b", "c"), "a") is None


def test_with_two_nodes_the_active_one_votes_alone() -> None:
    assert next_voters(only("a"), ("a", "b"), heard("a", "b"), "a") is None
    assert names(next_voters(only("a", "b"), ("a", "b"), heard("a", "b"), "b")) == ["b"]  # after a switch


def test_a_voter_that_is_not_wanted_or_came_back_as_somebody_else_goes_first() -> None:
    assert names(next_voters(CONFIG, ("a", "b", "d"), heard(*"abcd"), "a")) == ["a", "b"]
    wiped = {**heard("a", "b"), "c": b"x" * 16}
    found = next_voters(CONFIG, ("a", "b", "c"), wiped, "a")
    assert names(found) == ["a", "b"] and found is not None
    again = next_voters(found, ("a", "b", "c"), wiped, "a")
    assert again is not None and again.incarnation("c") == b"x" * 16


def test_of_voters_that_are_not_wanted_who_is_away_goes_first() -> None:
    """The ones that are there are needed to confirm it."""
    assert names(next_voters(CONFIG, ("a",), heard("a", "c"), "a")) == ["a", "c"]
    assert names(next_voters(CONFIG, ("a",), heard("a", "b"), "a")) == ["a", "b"]


def test_what_a_node_is_is_a_sentence() -> None:
    one = lease()
    assert "nobody holds a lease" in sentence(one, at(0))
    one.receive("a", b"a" * 16, Grant(1, Epoch(5, 1), NO_EPOCH, CONFIG), at(0))
    assert sentence(one, at(1)) == "standby; it has promised epoch 5.1 to a"


def test_the_vote_file_comes_back_and_a_torn_write_leaves_the_state_before(tmp_path: Path) -> None:
    file = VoteFile(tmp_path / NAME)
    assert file.is_new and file.hard.config == NO_CONFIG and len(file.hard.incarnation) == 16
    first = file.hard._replace(epoch=Epoch(1, 1), to="a", config=CONFIG)
    file.save(first)
    second = first._replace(epoch=Epoch(2, 2), to="b")
    file.save(second)
    file.close()
    again = VoteFile(tmp_path / NAME)
    assert not again.is_new and again.hard == second
    again.close()
    with open(tmp_path / NAME, "r+b") as torn:  # the third state is in the first slot
        torn.seek(20)
        torn.write(b"\xff" * 50)
    before = VoteFile(tmp_path / NAME)
    assert before.hard == first
    before.save(second)
    before.close()
    assert VoteFile(tmp_path / NAME).hard == second


def test_a_vote_file_of_which_nothing_is_whole_is_another_voter(tmp_path: Path) -> None:
    file = VoteFile(tmp_path / NAME)
    was = file.hard.incarnation
    file.save(file.hard._replace(epoch=Epoch(9, 1), to="a"))
    file.close()
    (tmp_path / NAME).write_bytes(os.urandom(2 * SLOT_BYTES))
    new = VoteFile(tmp_path / NAME)
    assert new.is_new and new.hard.incarnation != was and new.hard.epoch == NO_EPOCH
    assert (tmp_path / f"{NAME}.unreadable").exists()
    new.close()
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


def test_a_vote_is_never_said_when_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = VoteFile(tmp_path / NAME)
    held = file.hard
    monkeypatch.setattr(os, "pwrite", lambda *_: 100)
    with pytest.raises(OSError, match="in part"):
        file.save(held._replace(epoch=Epoch(1, 1)))
    assert file.hard == held
    file.close()


def test_an_arp_announcement_is_these_bytes() -> None:
    """RFC 5227, 3: the sender's and the target's protocol address are one, the target's hardware none."""
    frame = arp_announcement(bytes.fromhex("020000000001"), bytes([192, 0, 2, 10]))
    ethernet, arp = "ffffffffffff0200000000010806", "0001080006040001"
    assert frame.hex() == ethernet + arp + "020000000001c000020a" + "000000000000c000020a"
