"""What crnode says when it cannot do what it was asked.

Every failure that a person can meet is a :class:`CrnodeError`: what happened, why, and what to do about it,
with the exit code that a script sees. Anything else that reaches a user is a defect.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line, stable for scripts."""

    OK = 0
    FAILED = 1  # it did not work, for the reason given
    USAGE = 2  # the words of the command are off
    UNREACHABLE = 3  # no agent or node answers
    REFUSED = 4  # a rule forbids it; nothing was changed
    BEHIND = 5  # a target has not acknowledged what was asked for
    DAMAGE = 6  # damaged data was found that could not be healed
    FULL = 7  # no room


class CrnodeError(Exception):
    """A failure told to a person: `what` happened, `why`, and a `hint` of what to do; one sentence each."""

    def __init__(
        self, what: str, why: str = "", hint: str = "", exit_code: ExitCode = ExitCode.FAILED
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.hint) if part)

    def as_dict(self) -> dict[str, str | int]:
        """The form in which the control socket and `--json` carry it."""
        return {"what": self.what, "why": self.why, "hint": self.hint, "exit_code": int(self.exit_code)}

    @classmethod
    def from_dict(cls, body: dict[str, object]) -> CrnodeError:
        """The error that :meth:`as_dict` wrote; unknown exit codes become FAILED."""
        try:
            code = ExitCode(int(str(body.get("exit_code", 1))))
        except ValueError:
            code = ExitCode.FAILED
        return cls(str(body.get("what", "")), str(body.get("why", "")), str(body.get("hint", "")), code)
