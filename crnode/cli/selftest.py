"""selftest: does the protocol of taking over keep its promises in worlds of bad luck?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from crnode.cli.common import Json
from crnode.cli.output import number, print_json, progress, show
from crnode.errors import CrnodeError, ExitCode


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(
        epilog="Example: crnode selftest --seed 1 --count 10000\n\n"
        "Example: crnode selftest --story tests/scenarios/01-server-dies.txt"
    )(selftest)


def selftest(
    script: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A story to tell instead: a script of commands.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The first world.")] = 1,
    count: Annotated[int, typer.Option(min=1, help="How many worlds.")] = 1000,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Processes.")] = 1,
    break_: Annotated[
        str, typer.Option("--break", metavar="RULE", help="Take a rule away, to see that it is missed.")
    ] = "",
    story: Annotated[
        bool, typer.Option("--story", help="Tell what happens in the first world, or in FILE.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Simulate clusters in virtual time: nodes die, stand still and sleep, clocks are wrong, the network
    fails.

    In each world it is checked that at no instant two nodes hold the lease or serve, that nothing is lost
    that was acknowledged, and that in the end somebody is active. The same seed is the same world. Exit
    code 1 when a promise is broken: then the story of that world is told. With FILE the commands in it
    are carried out instead, and what happens is told.
    """
    from crnode.sim.broken import RULES
    from crnode.sim.run import live_all
    from crnode.sim.run import story as told

    if break_ and break_ not in RULES:
        raise CrnodeError(
            f"There is no rule '{break_}'.",
            f"Rules: {', '.join(RULES)}.",
            "Name one of them.",
            ExitCode.USAGE,
        )
    if script is not None:
        return _tell(script, break_, as_json)
    if story:
        lines = told(seed, break_)
        if as_json:
            print_json({"seed": seed, "story": lines})
        else:
            show(*lines)
        return int(ExitCode.FAILED if lines and "BROKEN" in lines[-1] else ExitCode.OK)
    begun = time.monotonic()
    with progress("Living", as_json) as report:

        def tell(done: int) -> None:
            text = f"{number(done)} of {number(count)} worlds"
            report({"text": text, "done": done, "total": count})

        found = live_all(seed, count, break_, jobs, tell)
    took = time.monotonic() - begun
    first = found.broken[0] if found.broken else None
    if as_json:
        print_json(
            {
                "worlds": found.worlds,
                "epochs": found.opened,
                "events": found.events,
                "seconds": took,
                "broken": [{"seed": one.seed, "what": one.what} for one in found.broken],
                "story": told(first.seed, break_) if first is not None else [],
            }
        )
    else:
        if first is not None:
            show(*told(first.seed, break_), "")
            rule = f" --break {break_}" if break_ else ""
            show(f"Again with: crnode selftest --seed {first.seed} --story{rule}")
        a_minute = found.worlds / took * 60 if took else 0
        show(
            f"{number(found.worlds)} worlds with {number(found.opened)} takeovers, {number(found.events)}"
            f" events: {number(len(found.broken))} broken. {number(round(a_minute))} worlds a minute."
        )
    return int(ExitCode.FAILED if found.broken else ExitCode.OK)


def _tell(script: Path, rule: str, as_json: bool) -> int:
    """The transcript of a script."""
    from crnode.failover.lease import Lease
    from crnode.sim.broken import RULES
    from crnode.sim.scenario import BadLine, tell

    try:
        told = tell(script.read_text(), RULES[rule][0] if rule else Lease)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "It is no text."
        raise CrnodeError(f"{script} cannot be read.", f"{why}", "Name a script.", ExitCode.USAGE) from error
    except BadLine as error:
        hint = "What may be said stands in crnode/sim/scenario.py."
        raise CrnodeError(f"{script} is no story.", str(error), hint, ExitCode.USAGE) from error
    if as_json:
        print_json({"file": str(script), "story": told.lines, "broken": told.broken})
    else:
        show(*told.lines)
    return int(ExitCode.FAILED if told.broken else ExitCode.OK)
