"""The lease, step by step: each rule by a case of its own, with hands in place of a network."""

from __future__ import annotations

from collections.abc import Iterable

from crnode.failover.lease import Lease, Phase
from crnode.failover.terms import (
    EPOCH_JUMP,
    LAN,
    NO_EPOCH,
    SECOND,
    WAN,
    AddressOff,
    AddressOn,
    CommitOpening,
    Config,
    ConfigId,
    Effect,
    Epoch,
    Extend,
    Fence,
    Gather,
    Grant,
    Hard,
    Message,
    Moment,
    No,
    Ok,
    Open,
    Opened,
    PreVote,
    PreVoted,
    Release,
    Renew,
    Save,
    Send,
    Serve,
    Stop,
    Voter,
    timers_of,
)

L = 3 * SECOND
NAMES = ("a", "b", "c")
MS = SECOND // 1000


def inc(name: str) -> bytes:
    return name.encode() * 16


def config(names: Iterable[str] = NAMES, version: int = 1, epoch: Epoch = NO_EPOCH) -> Config:
    slots = tuple((name, number) for number, name in enumerate("abcd", 1))
    return Config(ConfigId(1, epoch, version), tuple(Voter(n, inc(n)) for n in names), slots, L)


def hard(name: str, **more: object) -> Hard:
    return Hard(inc(name), NO_EPOCH, "", config(), 0, NO_EPOCH)._replace(**more)  # type: ignore[arg-type]


def at(seconds: float) -> Moment:
    return Moment(int(seconds * SECOND), int(seconds * SECOND))


def lease(name: str, **more: object) -> Lease:
    """A keeper that started long ago."""
    one = Lease(name, hard(name, **more), LAN, lambda: 0.5)
    one.start(at(-1000))
    return one


def sent(effects: object, kind: type) -> list[tuple[str, Message]]:
    assert isinstance(effects, list)
    return [(e.to, e.message) for e in effects if type(e) is Send and type(e.message) is kind]


def kinds(effects: object) -> list[type]:
    assert isinstance(effects, list)
    return [type(effect) for effect in effects]


def answer(effects: list[Effect]) -> Message:
    (one,) = [effect.message for effect in effects if type(effect) is Send]
    return one


FIRST = Epoch(1, 1)


def ask(epoch: Epoch = FIRST, data: Epoch = NO_EPOCH, held: Config | None = None) -> Grant:
    return Grant(7, epoch, data, held or config())


# -- voter


def test_a_vote_is_saved_before_it_is_said() -> None:
    voter = lease("b")
    out = voter.receive("a", inc("a"), ask(), at(0))
    assert kinds(out) == [Save, Send]
    assert answer(out) == Ok(7, Epoch(1, 1), L, config().id)
    assert out[0] == Save(voter.hard) and (voter.hard.epoch, voter.hard.to) == (Epoch(1, 1), "a")
    assert voter.hard.longest_ns == L


def test_while_its_promise_runs_a_voter_promises_to_nobody_else() -> None:
    voter = lease("b")
    voter.receive("a", inc("a"), ask(), at(0))
    refused = voter.receive("c", inc("c"), ask(Epoch(2, 3)), at(2.9))
    assert answer(refused) == No(7, Epoch(1, 1), "a", config()) and Save not in kinds(refused)
    assert type(answer(voter.receive("c", inc("c"), ask(Epoch(2, 3)), at(3.01)))) is Ok


def test_a_voter_counts_by_the_slower_of_its_clocks_and_a_holder_by_the_faster() -> None:
    voter = lease("b")
    voter.receive("a", inc("a"), ask(), Moment(0, 0))
    one_stood_still = Moment(9 * SECOND, 2 * SECOND)
    assert type(answer(voter.receive("c", inc("c"), ask(Epoch(2, 3)), one_stood_still))) is No
    holder = active()
    left = holder.left(at(1))
    assert holder.left(Moment(2 * SECOND, SECOND)) == left - SECOND
    assert holder.left(Moment(SECOND, 2 * SECOND)) == left - SECOND


def test_an_epoch_is_promised_once_and_the_same_candidate_may_have_a_greater_one() -> None:
    voter = lease("b")
    voter.receive("a", inc("a"), ask(), at(0))
    assert type(answer(voter.receive("a", inc("a"), ask(Epoch(1, 1)), at(1)))) is No
    assert type(answer(voter.receive("a", inc("a"), ask(Epoch(2, 1)), at(1)))) is Ok


def test_an_epoch_belongs_to_the_slot_of_its_candidate() -> None:
    assert type(answer(lease("b").receive("a", inc("a"), ask(Epoch(1, 3)), at(0)))) is No
    assert type(answer(lease("b").receive("x", inc("x"), ask(Epoch(1, 9)), at(0)))) is No  # no candidate


def test_no_vote_for_data_that_does_not_descend_from_the_mark() -> None:
    voter = lease("b", mark=Epoch(4, 3))
    assert type(answer(voter.receive("a", inc("a"), ask(Epoch(5, 1), Epoch(3, 1)), at(0)))) is No
    assert type(answer(voter.receive("a", inc("a"), ask(Epoch(5, 1), Epoch(4, 3)), at(0)))) is Ok


def test_no_vote_under_an_older_configuration_and_a_newer_one_is_taken_over() -> None:
    voter = lease("b", config=config(version=5))
    assert type(answer(voter.receive("a", inc("a"), ask(held=config(version=4)), at(0)))) is No
    newer = config(version=6)
    out = voter.receive("a", inc("a"), ask(held=newer), at(0))
    assert type(answer(out)) is Ok and voter.hard.config == newer


def test_a_leap_of_epochs_poisons_nobody() -> None:
    voter = lease("b")
    far = Epoch(EPOCH_JUMP + 1, 1)
    assert type(answer(voter.receive("a", inc("a"), ask(far), at(0)))) is No and voter.hard.epoch == NO_EPOCH
    voter.receive("a", inc("a"), PreVoted(1, True, Epoch(2**60, 1)), at(0))
    out = voter.campaign(NO_EPOCH, at(0))
    assert isinstance(out, list)
    (_, asked), *_ = sent(out, PreVote)
    assert isinstance(asked, PreVote)
    out = voter.receive("a", inc("a"), PreVoted(asked.nonce, True, NO_EPOCH), at(0.01))
    assert voter.epoch == Epoch(1, 2)


def test_a_voter_that_was_made_anew_is_somebody_else() -> None:
    voter = Lease("b", hard("b", incarnation=b"x" * 16), LAN, lambda: 0.5)
    voter.start(at(-1000))
    assert type(answer(voter.receive("a", inc("a"), ask(), at(0)))) is No
    assert "not a voter" in str(voter.campaign(NO_EPOCH, at(0)))
    assert lease("b").receive("a", b"y" * 16, ask(), at(0)) == []  # it is not heard as the one that it was


def test_after_a_start_only_whom_it_promised_is_answered_until_the_longest_promise_is_over() -> None:
    promised = hard("b", epoch=Epoch(3, 1), to="a", longest_ns=10 * SECOND)
    voter = Lease("b", promised, LAN, lambda: 0.5)
    assert voter.start(at(0)) == [Fence("the keeper starts")]
    assert type(answer(voter.receive("c", inc("c"), ask(Epoch(4, 3)), at(9)))) is No
    assert type(answer(voter.receive("a", inc("a"), Renew(1, Epoch(3, 1), config()), at(0.1)))) is Ok
    other = Lease("b", promised, LAN, lambda: 0.5)
    other.start(at(0))
    assert type(answer(other.receive("c", inc("c"), ask(Epoch(4, 3)), at(10.1)))) is Ok


def test_a_renewal_never_shortens_a_promise() -> None:
    voter = lease("b", config=config()._replace(lease_ns=10 * SECOND))
    long = config()._replace(lease_ns=10 * SECOND)
    voter.receive("a", inc("a"), ask(held=long), at(0))
    short = config(version=2)
    out = voter.receive("a", inc("a"), Renew(2, Epoch(1, 1), short), at(1))
    assert answer(out) == Ok(2, Epoch(1, 1), L, short.id)
    assert voter.promise_left(at(1)) == 9 * SECOND and voter.hard.longest_ns == 10 * SECOND


def test_the_mark_is_taken_from_whom_the_epoch_was_promised_to_alone() -> None:
    voter = lease("b")
    voter.receive("a", inc("a"), ask(), at(0))
    assert voter.receive("c", inc("c"), Open(1, Epoch(1, 1)), at(0.1)) == []
    assert voter.receive("a", inc("a"), Open(1, Epoch(2, 1)), at(0.1)) == []
    out = voter.receive("a", inc("a"), Open(1, Epoch(1, 1)), at(0.1))
    assert kinds(out) == [Save, Send] and answer(out) == Opened(1, Epoch(1, 1))
    assert voter.hard.mark == Epoch(1, 1)
    again = voter.receive("a", inc("a"), Open(2, Epoch(1, 1)), at(0.2))
    assert kinds(again) == [Send] and answer(again) == Opened(2, Epoch(1, 1))


def test_a_release_shortens_the_wait_of_its_successor_alone() -> None:
    voter = lease("b")
    voter.receive("a", inc("a"), ask(), at(0))
    voter.receive("c", inc("c"), Release(Epoch(1, 1), "c"), at(0.1))  # not the holder
    assert type(answer(voter.receive("c", inc("c"), ask(Epoch(2, 3)), at(0.2)))) is No
    voter.receive("a", inc("a"), Release(Epoch(9, 1), "c"), at(0.3))  # of another epoch, or late
    assert type(answer(voter.receive("c", inc("c"), ask(Epoch(2, 3)), at(0.4)))) is No
    voter.receive("a", inc("a"), Release(Epoch(1, 1), "c"), at(0.5))
    assert type(answer(voter.receive("c", inc("c"), ask(Epoch(2, 3)), at(0.6)))) is Ok
    assert voter.released is None
    assert type(answer(voter.receive("b", inc("b"), ask(Epoch(3, 2)), at(0.7)))) is No


def test_a_pre_vote_changes_nothing() -> None:
    voter = lease("b", mark=Epoch(2, 1))
    before = voter.hard
    yes = answer(voter.receive("a", inc("a"), PreVote(1, Epoch(2, 1), config()), at(0)))
    assert yes == PreVoted(1, True, NO_EPOCH)
    no = answer(voter.receive("a", inc("a"), PreVote(1, Epoch(1, 1), config()), at(0)))
    assert no == PreVoted(1, False, NO_EPOCH)
    assert voter.hard == before and not voter.promised(at(0))
    voter.receive("a", inc("a"), ask(Epoch(3, 1), Epoch(2, 1)), at(0))
    later = answer(voter.receive("c", inc("c"), PreVote(1, Epoch(2, 1), config()), at(1)))
    assert later == PreVoted(1, False, Epoch(3, 1))


def test_a_voter_that_was_just_added_votes_though_it_does_not_know_it_yet() -> None:
    voter = Lease("d", Hard(inc("d"), NO_EPOCH, "", config(), 0, NO_EPOCH), LAN, lambda: 0.5)
    voter.start(at(-10))
    new = config("acd", version=2)
    said = answer(voter.receive("a", inc("a"), PreVote(1, NO_EPOCH, new), at(0)))
    assert said == PreVoted(1, True, NO_EPOCH)
    assert type(answer(voter.receive("a", inc("a"), ask(held=new), at(0)))) is Ok


# -- candidate and holder


def campaigning(name: str = "a", now: float = 0) -> tuple[Lease, dict[str, Grant]]:
    """A candidate that was told yes by everybody."""
    one = lease(name)
    out = one.campaign(NO_EPOCH, at(now))
    assert isinstance(out, list)
    for to, asked in sent(out, PreVote):
        assert isinstance(asked, PreVote)
        out = one.receive(to, inc(to), PreVoted(asked.nonce, True, NO_EPOCH), at(now))
        if one.phase is Phase.CAMPAIGNING:
            break
    grants = {to: asked for to, asked in sent(out, Grant) if isinstance(asked, Grant)}
    assert kinds(out)[0] is Save and one.hard.to == name
    return one, grants


def renewals(effects: list[Effect]) -> dict[str, Renew]:
    return {to: asked for to, asked in sent(effects, Renew) if isinstance(asked, Renew)}


def ok(one: Lease, to: str, question: Grant | Renew, now: float, promised: int = L) -> list[Effect]:
    return one.receive(to, inc(to), Ok(question.nonce, one.epoch, promised, question.config.id), at(now))


def active(now: float = 0) -> Lease:
    """`a` is active, `b` answered, `c` is away."""
    one, grants = campaigning("a", now)
    out = ok(one, "b", grants["b"], now)
    assert one.phase is Phase.CONFIRMING and one.hard.config.id == ConfigId(1, Epoch(1, 1), 2)
    assert kinds(out)[0] is Save
    out = ok(one, "b", renewals(out)["b"], now)
    assert one.phase is Phase.GATHERING and Gather(Epoch(1, 1)) in out
    assert one.gathered(at(now)) == [CommitOpening(Epoch(1, 1))]
    out = one.committed(at(now))
    assert kinds(out)[0] is Save and one.hard.mark == Epoch(1, 1) and not one.serves
    opens = {to: asked for to, asked in sent(out, Open) if isinstance(asked, Open)}
    out = one.receive("b", inc("b"), Opened(opens["b"].nonce, one.epoch), at(now))
    assert kinds(out) == [Serve, Extend] and one.phase is Phase.ACTIVE
    return one


def test_nothing_serves_before_a_majority_has_the_mark() -> None:
    assert active().serves


def test_a_voter_whose_promise_ends_a_moment_later_is_asked_again() -> None:
    one = lease("a")
    out = one.campaign(NO_EPOCH, at(0))
    for to, asked in sent(out, PreVote):
        assert isinstance(asked, PreVote)
        one.receive(to, inc(to), PreVoted(asked.nonce, False, NO_EPOCH), at(0))
    assert one.tick(at(0.05)) == [] and one.wake_in(at(0.05)) == SECOND // 20
    again = sent(one.tick(at(0.1)), PreVote)
    assert [to for to, _ in again] == ["b", "c"]
    (to, asked), *_ = again
    assert isinstance(asked, PreVote)
    one.receive(to, inc(to), PreVoted(asked.nonce, True, NO_EPOCH), at(0.1))
    assert one.phase is Phase.CAMPAIGNING


def test_a_candidate_asks_before_it_takes_an_epoch() -> None:
    one = lease("a")
    assert one.campaign(NO_EPOCH, at(0)) and one.phase is Phase.ASKING and one.hard.epoch == NO_EPOCH
    out = one.tick(at(1.1))
    assert one.phase is Phase.STANDBY and out
    assert "waits before it tries again" in str(one.campaign(NO_EPOCH, at(1.2)))
    assert isinstance(one.campaign(NO_EPOCH, at(1.2 + 4.6)), list)


def test_why_it_may_not_campaign_is_a_sentence() -> None:
    assert "epoch 4.3 was opened since" in str(lease("a", mark=Epoch(4, 3)).campaign(Epoch(3, 1), at(0)))
    voter = lease("a")
    voter.receive("b", inc("b"), ask(Epoch(1, 2)), at(0))
    assert "promised the lease to b" in str(voter.campaign(NO_EPOCH, at(1)))
    assert isinstance(voter.campaign(NO_EPOCH, at(3.1)), list)
    assert "at it already" in str(active().campaign(NO_EPOCH, at(0)))


def test_a_lease_counts_from_the_question_not_from_the_answer() -> None:
    one, grants = campaigning("a")
    ok(one, "b", grants["b"], 2.0)
    # 3 s less 2 % and the margin of 150 ms, from 0 on
    assert one.left(at(2.0)) == int(2.79 * SECOND) - 2 * SECOND


def test_an_answer_to_nothing_that_was_asked_counts_for_nothing() -> None:
    one, grants = campaigning("a")
    wrong = [
        ("c", inc("c"), Ok(grants["b"].nonce, one.epoch, L, config().id)),  # another was asked that
        ("b", inc("x"), Ok(grants["b"].nonce, one.epoch, L, config().id)),  # somebody else by that name
        ("b", inc("b"), Ok(grants["b"].nonce, Epoch(9, 1), L, config().id)),  # of another epoch
        ("b", inc("b"), Ok(12345, one.epoch, L, config().id)),
    ]
    for sender, who, message in wrong:
        fresh, _ = campaigning("a")
        assert fresh.receive(sender, who, message, at(0.1)) == [] and fresh.phase is Phase.CAMPAIGNING


def test_a_holder_fences_before_its_lease_ends_with_no_help() -> None:
    one = active()
    wait = one.wake_in(at(0))
    assert wait is not None and wait <= LAN.renew_ns
    for tenth in range(1, 25):
        assert Fence not in kinds(one.tick(at(tenth / 10)))
    out = one.tick(at(2.5))  # 2.79 s less the 0.3 s for stopping
    assert type(out[0]) is Fence and one.phase is Phase.STANDBY and one.left(at(2.5)) == 0
    assert one.tick(at(2.6)) == []


def test_it_is_renewed_twice_a_second_and_each_answer_extends_it() -> None:
    one = active()
    out = one.tick(at(0.25)) + one.tick(at(0.5))
    assert set(renewals(out)) == {"b", "c"}
    assert {to for to, _ in sent(out, Open)} == {"c"}  # who has not the mark is told again
    out = ok(one, "b", renewals(out)["b"], 0.6)
    assert Extend(one.left(at(0.6))) in out and one.left(at(0.6)) == int(2.79 * SECOND) - 100 * MS


def test_a_promise_of_a_shorter_lease_counts_as_that() -> None:
    one, grants = campaigning("a")
    ok(one, "b", grants["b"], 0, promised=SECOND)
    assert one.left(at(0)) == SECOND - SECOND // 50 - 50 * MS


def test_after_a_jump_of_time_the_address_is_off_until_a_majority_answers_anew() -> None:
    one = active()
    old = renewals(one.tick(at(0.25)) + one.tick(at(0.5)))["b"]
    out = one.tick(at(1.2))  # more than half a second since the tick before
    assert AddressOff in kinds(out) and one.doubts and one.serves
    assert AddressOn not in kinds(ok(one, "b", old, 1.25))  # asked before
    out = ok(one, "b", renewals(out)["b"], 1.3)
    assert AddressOn() in out and not one.doubts


def test_a_later_epoch_that_one_voter_knows_is_a_doubt_and_of_a_majority_the_end() -> None:
    one = active()
    asked = renewals(one.tick(at(0.25)) + one.tick(at(0.5)))
    out = one.receive("c", inc("c"), No(asked["c"].nonce, Epoch(2, 3), "c", config()), at(0.6))
    assert AddressOff in kinds(out) and one.holds
    out = one.receive("b", inc("b"), No(asked["b"].nonce, Epoch(2, 3), "c", config()), at(0.6))
    assert type(out[0]) is Fence and not one.holds


def test_who_grants_a_later_epoch_serves_no_more() -> None:
    one = active()
    one.hard = one.hard._replace(epoch=Epoch(1, 1))
    out = one.receive("c", inc("c"), ask(Epoch(2, 3), Epoch(1, 1), one.hard.config), at(3.5))
    assert kinds(out)[0] is Fence and Save in kinds(out) and kinds(out)[-1] is Send and not one.holds


def test_a_switch_holds_the_lease_while_services_stop_and_ends_the_epoch_for_good() -> None:
    one = active()
    assert "no other candidate" in str(one.hand_over("a"))
    out = one.hand_over("b")
    assert isinstance(out, list) and kinds(out) == [AddressOff, Stop]
    assert renewals(one.tick(at(0.25)) + one.tick(at(0.5)))  # it goes on being renewed
    out = one.stopped(at(0.6))
    assert type(out[0]) is Fence and {to for to, _ in sent(out, Release)} == {"b", "c"}
    assert one.phase is Phase.STANDBY and one.take_back() == []
    assert "waits" in str(one.campaign(Epoch(1, 1), at(1)))
    assert isinstance(one.campaign(Epoch(1, 1), at(6.7)), list)  # nobody took it


def test_nobody_hands_over_to_a_voter_that_would_not_hear_of_it() -> None:
    """One that has just started holds to what it promised before: a release of an epoch that it never
    promised says nothing to it, and nobody would be active until the next campaign."""
    one = active()  # c has not answered
    assert "promised nothing in this epoch" in str(one.hand_over("c")) and one.phase is Phase.ACTIVE
    ok(one, "c", renewals(one.tick(at(0.25)) + one.tick(at(0.5)))["c"], 0.5)
    assert isinstance(one.hand_over("c"), list)


def test_a_switch_is_taken_back_before_the_release() -> None:
    one = active()
    one.hand_over("b")
    assert one.take_back() == [Serve(Epoch(1, 1)), AddressOn()] and one.phase is Phase.ACTIVE


def test_an_epoch_that_is_not_open_yet_may_be_left_to_a_better_node() -> None:
    one, grants = campaigning("a")
    ok(one, "b", grants["b"], 0)
    out = one.give_way("b", at(0.1))
    assert {to for to, _ in sent(out, Release)} == {"b", "c"} and one.phase is Phase.STANDBY
    assert active().give_way("b", at(0)) == []


def test_voters_change_one_at_a_time_and_the_new_ones_count_when_they_have_it() -> None:
    one = active()
    assert "one at a time" in str(one.change(config("ad"), at(0.1)))
    assert "cannot take itself out" in str(one.change(config("bc"), at(0.1)))
    moved = config("abcd")._replace(slots=(("a", 2), ("b", 1)))
    assert "never changes" in str(one.change(moved, at(0.1)))
    out = one.change(config("ab"), at(0.1))
    assert isinstance(out, list) and kinds(out)[0] is Save
    assert one.hard.config.id == ConfigId(1, Epoch(1, 1), 3)
    assert "not complete" in str(one.change(config("abd"), at(0.1)))
    asked = renewals(out)
    assert set(asked) == {"b", "c"}  # who leaves is told, too
    before = one.left(at(0.4))
    assert "complete" in str(ok(one, "b", asked["b"], 0.4)[-1]) and one.left(at(0.4)) > before
    asked = renewals(one.tick(at(0.35)) + one.tick(at(0.61)))
    assert set(asked) == {"b"}
    ok(one, "b", asked["b"], 0.62)

    out = one.change(config("abd"), at(0.63))
    assert isinstance(out, list) and set(renewals(out)) == {"b", "d"}
    one.receive("b", inc("b"), No(0, NO_EPOCH, "", config()), at(0.64))  # an answer to nothing
    assert "complete" in str(ok(one, "b", renewals(out)["b"], 0.65)[-1])
    for quarter in range(3, 20):
        asked = renewals(one.tick(at(quarter / 4)))
        if "b" in asked:
            ok(one, "b", asked["b"], quarter / 4)
    assert one.phase is Phase.ACTIVE


def test_a_change_that_comes_to_nothing_costs_no_lease_and_is_taken_back() -> None:
    one = active()
    out = one.change(config("abcd"), at(0.1))  # c is away, and d does not answer: 2 of 4
    assert isinstance(out, list)
    for quarter in range(1, 12):
        asked = renewals(one.tick(at(quarter / 4)))
        if "b" in asked:
            ok(one, "b", asked["b"], quarter / 4)
    assert one.phase is Phase.ACTIVE and one.left(at(2.75)) > 0
    assert "not complete" in str(one.change(config("abde"), at(2.8)))
    back = one.change(config("abc"), at(2.8))
    assert isinstance(back, list)
    assert "complete" in str(ok(one, "b", renewals(back)["b"], 2.81)[-1])


def test_a_lone_voter_adds_another_one() -> None:
    one = lease("a", config=config("a"))
    one.campaign(NO_EPOCH, at(0))
    one.gathered(at(0))
    one.committed(at(0))
    out = one.change(config("ab"), at(0.1))
    assert isinstance(out, list) and one.left(at(0.1)) > SECOND
    ok(one, "b", renewals(out)["b"], 0.2)
    opens = {to: m for to, m in sent(one.tick(at(0.4)) + one.tick(at(0.61)), Open) if isinstance(m, Open)}
    out = one.receive("b", inc("b"), Opened(opens["b"].nonce, one.epoch), at(0.7))
    assert "complete" in str(out[-1])


def test_a_lone_voter_holds_by_itself() -> None:
    one = lease("a", config=config("a"))
    out = one.campaign(NO_EPOCH, at(0))
    assert isinstance(out, list) and Gather(Epoch(1, 1)) in out
    assert one.gathered(at(0)) and Serve(Epoch(1, 1)) in one.committed(at(0))
    for half in range(1, 20):
        one.tick(at(half / 4))
    assert one.phase is Phase.ACTIVE


def test_nothing_is_opened_when_the_lease_ended_meanwhile() -> None:
    one, grants = campaigning("a")
    out = ok(one, "b", grants["b"], 0)
    ok(one, "b", renewals(out)["b"], 0)
    assert one.gathered(at(2.6)) == []
    assert one.phase is Phase.GATHERING and type(one.tick(at(2.7))[0]) is Fence


# -- alone, and by force


def test_who_votes_alone_waits_after_a_start_until_the_other_candidates_confirmed() -> None:
    only = config("a")._replace(slots=(("a", 1), ("b", 2)))
    waits = lease("a", config=only, mark=FIRST)
    assert "waits until b confirmed" in str(waits.campaign(FIRST, at(0)))
    waits.heard("b", only, NO_EPOCH)
    assert type(waits.campaign(FIRST, at(0))) is list

    waits = lease("a", config=only, mark=FIRST)
    waits.activate_alone()
    assert type(waits.campaign(FIRST, at(0))) is list

    replaced = lease("a", config=only, mark=FIRST)  # b was made active by force meanwhile
    alone = only._replace(id=ConfigId(1 << 8 | 2, NO_EPOCH, 1), voters=(Voter("b", inc("b")),))
    replaced.heard("b", alone, Epoch(2000, 2))
    assert not replaced.is_voter and isinstance(replaced.campaign(FIRST, at(0)), str)


def test_the_first_of_a_cluster_waits_for_nobody() -> None:
    assert type(lease("a", config=config("a")).campaign(NO_EPOCH, at(0))) is list


def test_by_force_a_candidate_begins_a_generation_in_which_it_alone_votes() -> None:
    one = lease("b", epoch=Epoch(7, 1), to="a", mark=Epoch(7, 1))
    out = one.force(Epoch(7, 1))
    assert kinds(out)[0] is Save and one.hard.to == ""
    assert [voter.name for voter in one.hard.config.voters] == ["b"]
    assert one.hard.config.id > config(version=9, epoch=Epoch(900, 1)).id
    begun = one.campaign(Epoch(7, 1), at(0))
    assert type(begun) is list and one.holds
    assert one.epoch.counter > 7 + 1000  # others may have come to epochs of which nobody here heard
    assert one.epoch.slot == 2


def test_who_went_on_by_force_and_opened_nothing_asks_after_a_start_as_well() -> None:
    one = lease("b")
    one.force(NO_EPOCH)
    again = lease("b", config=one.hard.config, epoch=one.hard.epoch)
    assert again.unconfirmed() == ["a", "c", "d"] and isinstance(again.campaign(NO_EPOCH, at(0)), str)


def test_what_the_data_knows_of_a_later_epoch_is_gone_beyond() -> None:
    one = lease("b", config=config("b"))
    one.hear(Epoch(40, 1))
    assert type(one.campaign(NO_EPOCH, at(0))) is list and one.epoch == Epoch(41, 2)


def test_two_that_go_on_by_force_begin_two_generations() -> None:
    b, c = lease("b"), lease("c")
    b.force(NO_EPOCH)
    c.force(NO_EPOCH)
    assert b.hard.config.id.generation != c.hard.config.id.generation


def test_force_takes_data_that_was_served_last_or_a_person_who_accepts_the_loss() -> None:
    one = lease("b", mark=Epoch(7, 1))
    assert "was opened since" in str(one.force(Epoch(5, 2)))
    assert type(one.force(Epoch(5, 2), accept_loss=True)) is list
    assert type(one.campaign(Epoch(5, 2), at(0))) is list
    assert "no candidate" in str(Lease("x", hard("x"), LAN, lambda: 0.5).force(NO_EPOCH))


def test_nothing_is_renewed_for_a_generation_that_is_over() -> None:
    voter = lease("c")
    voter.receive("a", inc("a"), ask(), at(0))
    assert type(answer(voter.receive("a", inc("a"), Renew(8, FIRST, config()), at(1)))) is Ok
    forced = config("b")._replace(id=ConfigId(1 << 8 | 2, Epoch(2000, 2), 1))
    assert kinds(voter.heard("b", forced, NO_EPOCH)) == [Save]
    assert type(answer(voter.receive("a", inc("a"), Renew(9, FIRST, config()), at(1)))) is No


def test_a_candidate_without_a_vote_learns_what_there_is_to_know() -> None:
    one = Lease("b", hard("b", config=Config(ConfigId(0, NO_EPOCH, 0), (), (), 0)), LAN, lambda: 0.5)
    one.start(at(-1000))
    assert kinds(one.heard("a", config("a"), FIRST)) == [Save]
    assert (one.hard.config, one.hard.mark) == (config("a"), FIRST)
    assert one.heard("a", config("a"), FIRST) == []
    assert one.heard("a", config("a"), Epoch(EPOCH_JUMP + 9, 1)) == []  # rule 19
    far = config("a")._replace(id=ConfigId(99 << 8, NO_EPOCH, 1))
    assert one.heard("a", far, NO_EPOCH) == []
    assert one.heard("b", config("a"), Epoch(7, 1)) == []  # nobody speaks for another's epoch
    assert (one.hard.mark, one.hard.config) == (FIRST, config("a"))


def test_a_node_that_was_removed_is_not_asked_whether_it_is_active() -> None:
    only = config("a")._replace(slots=(("a", 1), ("b", 2)))
    one = lease("a", config=only, mark=FIRST)
    assert one.unconfirmed() == ["b"]
    one.removed = frozenset({"b"})
    assert one.unconfirmed() == [] and type(one.campaign(FIRST, at(0))) is list


def test_a_removal_that_is_taken_back_leaves_what_a_voter_promised() -> None:
    holder = active()
    three = holder.hard.config
    two = three._replace(voters=tuple(v for v in three.voters if v.name != "c"))
    assert type(holder.change(two, at(0.2))) is list
    left = holder.left(at(0.3))
    assert type(holder.change(three, at(0.3))) is list  # b does not answer: it is not confirmed
    assert holder.left(at(0.3)) == left > 0


def test_a_later_epoch_that_a_voter_promised_is_a_reason_for_doubt_once() -> None:
    holder = active()
    now = 0.0

    def round_of_questions() -> list[type]:
        """b has promised a later epoch to itself, c goes on with ours."""
        nonlocal now
        asked: dict[str, Message] = {}
        while not asked:
            now += 0.2
            asked = dict(sent(holder.tick(at(now)), Renew))
        b, c = asked["b"], asked["c"]
        assert type(b) is Renew and type(c) is Renew
        out = holder.receive("b", inc("b"), No(b.nonce, Epoch(9, 2), "b", config()), at(now))
        fine = Ok(c.nonce, holder.epoch, L, holder.hard.config.id)
        return kinds([*out, *holder.receive("c", inc("c"), fine, at(now))])

    first = round_of_questions()
    assert first.index(AddressOff) < first.index(AddressOn) and not holder.doubts
    assert AddressOff not in round_of_questions()


def test_a_lease_that_changes_its_length_is_renewed_as_the_shorter_one_asks() -> None:
    holder = active()
    longer = holder.hard.config._replace(lease_ns=10 * SECOND)
    assert holder.lease_ns == L
    assert type(holder.change(longer, at(0.2))) is list
    assert holder.lease_ns == L and timers_of(holder.lease_ns) == LAN
    holder._before = None  # it is complete
    assert timers_of(holder.lease_ns) == WAN
