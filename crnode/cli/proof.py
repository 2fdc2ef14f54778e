"""verify and drill: is a version good, and what would a restore take."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from crnode.cli.common import Data, Json, ask, interruptible
from crnode.cli.output import duration, ended, moment, number, print_json, progress, show, size
from crnode.cli.setup import parse_span
from crnode.cli.versions import Wanted, chosen_version, counted_files, split_place
from crnode.errors import CrnodeError, ExitCode

Version = Annotated[
    str | None, typer.Option(metavar="VERSION", help="Its number or name (default: the newest).")
]
At = Annotated[
    str | None, typer.Option(metavar="TIME", help="Then: '2026-11-22 10:30', 'yesterday 14:05'.")
]
NOT_FOUND = 127  # a shell's exit code: there is no such command


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: crnode verify web --version 12")(verify)
    app.command(
        epilog="Example: crnode drill web --run './check-site.sh'\n\n"
        "Example: crnode drill web --run './check-site.sh' --every 1d"
    )(drill)


def verify(
    name: Annotated[str, typer.Argument(metavar="SET", help="The set.")],
    version: Version = None,
    at: At = None,
    node: Annotated[str | None, typer.Option(metavar="NODE", help="Which of its holders reads it.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> int:
    """Read a version back from the store of a node that keeps it, and note whether it is good. What is
    damaged is healed from another node. Exit code 6 when it is no good.
    """
    wanted = chosen_version(data, name, version, at, as_json)
    args = {"set": name, "version": wanted.version, "node": node}
    with progress(f"Verifying {name}", as_json) as report:
        answer = ask(data, "verify", {k: v for k, v in args.items() if v is not None}, report, None)
    if as_json:
        print_json(answer | wanted.told)
    else:
        until = f"{wanted.said}," if wanted.said else ""
        show(
            f"Version {answer['version']} of {name}{until} at {answer['node']} is {answer['verdict']}:"
            f" {ended(answer['evidence'])} {size(answer['bytes'])} in {duration(answer['seconds'])}."
        )
        for path in answer["damaged"]:
            show(f"damaged: {path}")
    return int(ExitCode.OK if answer["verdict"] == "good" else ExitCode.DAMAGE)


def drill(
    place: Annotated[str, typer.Argument(metavar="SET[:PATH]", help="The set, and a file or folder in it.")],
    version: Version = None,
    at: At = None,
    run: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="Run this in what was restored; 0: it is good.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="DIR", help="Restore there, and leave it (default: removed again).")
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN",
            help="Not now, but so often, by itself, on this node when it is idle: 90m, 6h, 7d; never; usual"
            " (read back each day).",
        ),
    ] = None,
    planned: Annotated[
        bool, typer.Option("--planned", help="Do now what this node does by itself for the set.")
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> int:
    """Rehearse a restore: bring a version back to a place of its own on this node, check it, measure it, and
    report. Nothing else is touched. Exit code 6 when it is no good.
    """
    name, path = split_place(place)
    if every is not None or planned:
        if any(option is not None for option in (path, version, at, to)) or (planned and (run or every)):
            raise CrnodeError(
                "What a node does by itself concerns the newest version of a whole set.",
                "",
                "Leave the path, --version, --at and --to out; and --run with --planned.",
                ExitCode.USAGE,
            )
        return _now(data, name, as_json) if planned else _plan(data, name, str(every), run, as_json)
    wanted = chosen_version(data, name, version, at, as_json)
    args = {"set": name, "path": path, "version": wanted.version, "to": to, "checked": run}
    with interruptible():  # whatever ends this, what was restored is removed again
        with progress(f"Restoring {place} for a drill", as_json) as report:
            answer = ask(data, "drill", {k: v for k, v in args.items() if v is not None}, report, None)
        ended_with: dict[str, Any] = {}
        try:
            if run is not None:
                answer |= _checked(run, str(answer["to"]))
                if path is None:  # of a part, nothing is said of the version
                    code = answer["command_code"]
                    ended_with = {key: answer[key] for key in ("image", "from")}
                    ended_with |= {"command": run, "code": code}
        finally:
            if to is None:
                ended_with["to"] = answer["to"]
            if ended_with:
                answer |= ask(data, "drill.end", {"set": name, **ended_with})
    if answer.get("command_code") == NOT_FOUND:
        raise CrnodeError(
            f"There is no such command: '{run}'.",
            "The version was restored and read back well; nothing more is said of it.",
            "One of the restored folder begins with './', another one needs its whole path.",
            ExitCode.USAGE,
        )
    good = answer.get("command_code", 0) == 0
    answer |= {"good": good, "kept": to is not None}
    if as_json:
        print_json(answer | wanted.told)
    else:
        _show(place, answer, wanted)
    return int(ExitCode.OK if good else ExitCode.DAMAGE)


def _plan(data: Path | None, name: str, every: str, run: str | None, as_json: bool) -> int:
    args: dict[str, Any] = {"set": name, "usual": True}
    if every != "usual":
        args = {"set": name, "run": run or "", "every_s": 0 if every == "never" else parse_span(every)}
    answer = ask(data, "drill.plan", args)
    if as_json:
        print_json(answer)
    elif not answer["every_s"]:
        show(f"Nothing is proved of {name} on this node by itself.")
    else:
        how = f"restored, and judged by '{answer['run']}'" if answer["run"] else "read back"
        often = duration(answer["every_s"])
        show(f"On this node the newest version of {name} is {how} every {often}, when it is idle.")
    return int(ExitCode.OK)


def _now(data: Path | None, name: str, as_json: bool) -> int:
    with progress(f"Proving {name}", as_json) as report:
        answer = ask(data, "drill.plan", {"set": name, "now": True}, report, None)
    if as_json:
        print_json(answer)
    else:
        evidence = f": {answer['evidence']}" if answer["evidence"] else ""
        show(ended(f"Version {answer['version']} of {name} is {answer['verdict']}{evidence}"))
    return int(ExitCode.OK if answer["verdict"] == "good" else ExitCode.DAMAGE)


def _checked(command: str, folder: str) -> dict[str, Any]:
    """Run a check of the user's own in the restored folder; what it prints goes where ours goes."""
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command, shell=True, cwd=folder, env={**os.environ, "CRNODE_DRILL": folder}, check=False
        )
    except OSError as error:
        raise CrnodeError(
            f"The restored folder {folder} cannot be entered.",
            f"{error.strerror}.",
            "Run the drill as the agent's user or as root, or restore with --to.",
        ) from error
    return {
        "command": command,
        "command_code": done.returncode,
        "command_seconds": time.monotonic() - begun,
    }


def _show(place: str, answer: dict[str, Any], wanted: Wanted) -> None:
    seconds = max(float(answer["seconds"]), 0.001)
    show(
        f"Version {answer['version']} of {place}, of {moment(answer['time_ns'])}{wanted.said}, was restored"
        f" from {answer['from']} in {duration(answer['seconds'])}: {counted_files(answer['files'])},"
        f" {size(answer['bytes'])} ({size(int(answer['bytes'] / seconds))} a second)."
    )
    if answer.get("healed"):
        show(f"{number(answer['healed'])} objects that were damaged here were fetched again first.")
    proven = "; their digest is that of the version" if answer.get("digest_ok") else ""
    show(f"All of them were read back and are as they were captured{proven}.")
    if "command" in answer:
        took, code = duration(answer["command_seconds"]), answer["command_code"]
        found = "good" if answer["good"] else "no good"
        if "verdict" in answer:
            judged = f"the version is {answer['verdict']}"
        else:
            judged = f"what was restored is {found}"
        show(f"'{answer['command']}' ended with {code} after {took}: {judged}.")
        if "verdict" not in answer and ":" not in place:
            show(f"{answer['from']} keeps the version; for a verdict that stays with it, run this there.")
    show(f"It is in {answer['to']}." if answer["kept"] else "What was restored is removed again.")
