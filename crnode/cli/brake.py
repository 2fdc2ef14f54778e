"""brake: what to do when too much of a set changed at once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from crnode.cli.common import Data, Json, ask
from crnode.cli.output import moment, print_json, print_warning, progress, show, table
from crnode.errors import CrnodeError, ExitCode


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command(epilog="Example: crnode brake web --roll-back")(brake)


def brake(
    name: Annotated[
        str | None, typer.Argument(metavar="SET", help="The set; without it all are shown.")
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="The change is meant: the copies follow it.")
    ] = False,
    roll_back: Annotated[
        bool,
        typer.Option(
            "--roll-back",
            help="The change is not meant: the source gets back what it had before; what it has now is kept.",
        ),
    ] = False,
    percent: Annotated[
        int | None,
        typer.Option(
            min=0, max=100, help="From which share of the files on it holds, within an hour; 0: never."
        ),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> int:
    """Show whether a mass change is held back, and say what becomes of it.

    When more files of a set than usual are deleted or rewritten within an hour, versions go on being kept,
    and the copies that people and services see wait. Exit code 5 while one is held.
    """
    wishes = [wish for wish in (accept, roll_back, percent is not None) if wish]
    if len(wishes) > 1:
        raise CrnodeError(
            "--accept, --roll-back and --percent are three things.", "", "Choose one of them.", ExitCode.USAGE
        )
    if name is None:
        if wishes:
            raise CrnodeError(
                "No set was named.", "What a brake holds is judged set by set.", "Name one.", ExitCode.USAGE
            )
        return _all(data, as_json)
    args: dict[str, Any] = {"set": name}
    if percent is not None:
        args |= {"do": "percent", "percent": percent}
    elif wishes:
        args["do"] = "accept" if accept else "roll-back"
    with progress(f"Asking about {name}", as_json) as report:
        answer = ask(data, "brake", args, report, timeout_s=None if roll_back else 60)
    held = [row for row in answer["targets"] if row.get("held")]
    if as_json:
        print_json(answer)
        return int(ExitCode.BEHIND if held else ExitCode.OK)
    if roll_back:
        show(f"The source of {name} is again as in version {answer['version']}.")
        skipped = answer["restored"].get("skipped") or []
        if skipped:
            print_warning(
                f"But for {len(skipped)} paths, {skipped[0]['path']} for one: {skipped[0]['reason']}."
            )
    share = answer["percent"]
    rows = [(row["node"], *_spoken(row)) for row in answer["targets"]]
    show(table(name, ("target", "state", "since", "version before", "why"), rows, "It has no targets."))
    if not share:
        show("The brake is off.")
    elif percent is not None or not (held or wishes):
        show(f"It holds when {share} % of the files change within an hour and that is not usual.")
    for row in answer["targets"]:
        if row.get("error"):
            print_warning(f"{row['node']}: {row['error']}")
    if accept and (before := _before(answer["targets"])) is not None:
        show(f"If that was wrong: crnode restore {name} --in-place --version {before}")
    for row in held:
        if row["held"].get("more"):
            print_warning(f"{row['node']}: since somebody looked last, more came: {row['held']['more']}")
    if held and accept:
        show("What came after what was accepted is more than is usual, too, and is held for itself.")
    elif held and roll_back:
        show("A copy goes on by itself when it has what the source has now.")
    if held:
        show(f"If it is meant: crnode brake {name} --accept. If not: crnode brake {name} --roll-back")
    return int(ExitCode.BEHIND if held else ExitCode.OK)


def _all(data: Any, as_json: bool) -> int:
    """What every brake does."""
    names = [item["name"] for item in ask(data, "set.list")["sets"]]
    with progress("Asking about all sets", as_json) as report:
        answers = [ask(data, "brake", {"set": name}, report, timeout_s=60) for name in names]
    held = [a["set"] for a in answers if any(row.get("held") for row in a["targets"])]
    if as_json:
        print_json({"sets": answers})
    else:
        rows = [(a["set"], row["node"], *_spoken(row)) for a in answers for row in a["targets"]]
        columns = ("set", "target", "state", "since", "version before", "why")
        show(table("Brakes", columns, rows, "There are no sets yet."))
        for name in held:
            show(f"{name}: crnode brake {name} --accept, or --roll-back")
    return int(ExitCode.BEHIND if held else ExitCode.OK)


def _before(rows: list[dict[str, Any]]) -> int | None:
    """The version before what was accepted."""
    return min((int(row["accepted"]["before"]) for row in rows if row.get("accepted")), default=None)


def _spoken(row: dict[str, Any]) -> tuple[object, ...]:
    if row.get("error"):
        return ("unknown", None, None, None)
    if found := row.get("held"):
        return ("held", moment(found["noticed_ns"]), found["before"], found["why"])
    return ("accepted" if row.get("accepted") else "follows", None, None, None)
