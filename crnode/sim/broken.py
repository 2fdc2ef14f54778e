"""Rules taken away on purpose, one at a time: a simulation that finds nothing then proves nothing."""

from __future__ import annotations

from crnode.failover.lease import Lease
from crnode.failover.terms import Config, Effect, Epoch, Fence, Moment, Ok


class NoPromise(Lease):
    """A voter promises to whoever asks."""

    def promised(self, now: Moment) -> bool:
        return False


class FromReceipt(Lease):
    """A lease counts from the answer, not from the question."""

    def _on_ok(self, sender: str, incarnation: bytes, message: Ok, now: Moment) -> list[Effect]:
        asked = self._sent.get(message.nonce)
        if asked is not None:
            self._sent[message.nonce] = (asked[0], now)
        return super()._on_ok(sender, incarnation, message, now)


class NoRestartWait(Lease):
    """A voter that starts again has promised nothing."""

    def start(self, now: Moment) -> list[Effect]:
        out = super().start(now)
        self._promise = None
        return out


class NoMargin(Lease):
    """Clocks are believed."""

    def _held_for(self, promised_ns: int) -> int:
        return promised_ns


class NoMark(Lease):
    """Votes do not look at the data."""

    def _descends(self, data: Epoch) -> bool:
        return True

    def campaign(self, data: Epoch, now: Moment) -> list[Effect] | str:
        return super().campaign(max(data, self.hard.mark), now)


class TwoAtOnce(Lease):
    """Any number of voters may be changed in one step."""

    def change(self, config: Config, now: Moment) -> list[Effect] | str:
        held = self.hard
        differing = sorted(set(config.voters) ^ set(held.config.voters))
        if len(differing) < 2:
            return super().change(config, now)
        first = set(held.config.voters) ^ {differing[0]}
        answer = super().change(config._replace(voters=tuple(sorted(first))), now)
        if isinstance(answer, str):
            return answer
        self.hard = self.hard._replace(config=self.hard.config._replace(voters=config.voters))
        self._before = None
        return [*super()._ask_all(now)]


class ReleaseFirst(Lease):
    """The lease is released when the services are told to stop, not when they have."""

    def hand_over(self, successor: str) -> list[Effect] | str:
        answer = super().hand_over(successor)
        if isinstance(answer, str) or self._renewed is None:
            return answer
        released = super()._release(successor, self._renewed)
        return [*answer, *(effect for effect in released if type(effect) is not Fence)]


class NobodyAsked(Lease):
    """Whoever alone votes serves as soon as it starts."""

    def unconfirmed(self) -> list[str]:
        return []


RULES: dict[str, tuple[type[Lease], str]] = {
    "no-promise": (NoPromise, ""),
    "validity-from-receipt": (FromReceipt, ""),
    "no-restart-wait": (NoRestartWait, ""),
    "no-margin": (NoMargin, ""),
    "no-mark": (NoMark, ""),
    "two-voters-at-once": (TwoAtOnce, "two-voters-at-once"),
    "amnesia": (Lease, "amnesia"),
    "alone-after-a-start": (NobodyAsked, ""),
    "release-before-stop": (ReleaseFirst, ""),
}
"""Name -> the core without it, and what else the world does differently."""
