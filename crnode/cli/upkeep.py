"""doctor, scrub, gc: is it healthy, is it whole, is there room."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from crnode.cli.common import Data, Json, ask
from crnode.cli.output import duration, number, print_json, progress, show, size, table
from crnode.errors import ExitCode


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: crnode doctor")(doctor)
    app.command(epilog="Example: crnode scrub")(scrub)
    app.command(epilog="Example: crnode gc --plan")(gc)


def doctor(data: Data = None, as_json: Json = False) -> int:
    """Check this node and its surroundings, and say what to do. Exit code 1 when something is wrong."""
    with progress("Checking", as_json) as report:
        answer = ask(data, "doctor", {}, report, timeout_s=120)
    checks: list[dict[str, Any]] = answer["checks"]
    if as_json:
        print_json(answer)
    else:
        words = {True: "ok", False: "failed", None: "unsure"}
        rows = [
            (words[check["ok"]], check["name"], check["text"], check.get("hint") or None) for check in checks
        ]
        show(
            table("Checks", ("result", "check", "what was found", "what to do"), rows, "Nothing was checked.")
        )
    return int(ExitCode.FAILED if any(check["ok"] is False for check in checks) else ExitCode.OK)


def scrub(
    name: Annotated[
        str | None,
        typer.Argument(metavar="SET", help="Report only damage that this set needs (default: all)."),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> int:
    """Read everything that is stored, verify it, and heal what is damaged. Exit code 6 when something stays
    damaged.
    """
    with progress("Scrubbing", as_json) as report:
        answer = ask(data, "scrub", {"set": name} if name else {}, report, timeout_s=None)
    damaged: list[dict[str, Any]] = answer["damaged"]
    if as_json:
        print_json(answer)
    else:
        rows = [(item["id"], item["pack"], item.get("healed_from") or "no") for item in damaged]
        took = duration(answer.get("seconds"))
        show(f"{number(answer['objects'])} objects, {size(answer['bytes'])}, were read in {took}.")
        show(table("Damaged", ("object", "pack", "healed from"), rows, "Nothing is damaged."))
    return int(ExitCode.DAMAGE if any(not item.get("healed_from") for item in damaged) else ExitCode.OK)


def gc(
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Give the room back that no version needs any more."""
    with progress("Collecting", as_json) as report:
        answer = ask(data, "gc", {"plan": plan}, report, timeout_s=None)
    if as_json:
        print_json(answer)
        return
    verb = "would be" if plan else "were"
    show(
        f"{size(answer['removed_bytes'])} {verb} given back, {size(answer['copied_bytes'])} {verb} moved, "
        f"{size(answer['kept_bytes'])} stay, in {number(answer['packs'])} packs; "
        f"{duration(answer.get('seconds'))}."
    )
