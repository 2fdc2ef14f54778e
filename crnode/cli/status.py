"""status and events: what is going on."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from crnode.cli.common import Data, Json, ask
from crnode.cli.output import (
    duration,
    end_with_reader,
    moment,
    number,
    print_json,
    print_json_line,
    printable,
    progress,
    show,
    size,
    table,
)
from crnode.errors import CrnodeError, ExitCode


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: crnode status --watch")(status)
    app.command(epilog="Example: crnode rpo --warn 5 --error 60")(rpo)
    app.command(epilog="Example: crnode events --follow")(events)


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.2, metavar="SECONDS", help="With --watch: how often.")
    ] = 1.0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show nodes, sets and how far each target is."""
    if not watch:
        with progress("Asking the nodes", as_json) as report:
            answer = ask(data, "status", on_progress=report)
        if as_json:
            print_json(answer)
        else:
            show(*_parts(answer))
        return
    end_with_reader()
    if as_json or not sys.stdout.isatty():
        while True:
            answer = ask(data, "status")
            if as_json:
                print_json_line(answer)
            else:
                show(*_parts(answer), "")
                sys.stdout.flush()
            time.sleep(interval)
    _live(data, interval)


def _live(data: Any, interval: float) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(refresh_per_second=4, screen=False) as live:
        while True:
            try:
                parts = _parts(ask(data, "status"))
                # As Text: a name like '[red]' is a name, not a colour.
                live.update(
                    Group(*(Text(printable(part)) if isinstance(part, str) else part for part in parts))
                )
            except CrnodeError as error:
                if error.exit_code is not ExitCode.UNREACHABLE:
                    raise
                live.update(Text(str(error), style="bold red"))  # an agent that restarts comes back by itself
            time.sleep(interval)


def rpo(
    name: Annotated[str | None, typer.Argument(metavar="SET", help="Only this set.")] = None,
    warn: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="SECONDS", help="So much is a warning from now on; at the master."),
    ] = None,
    error: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="SECONDS", help="So much is an error from now on; at the master."),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> int:
    """Show what would be lost now: how old the oldest change is that a target has not acknowledged.

    Beside it the same over the last day. Exit code 5 when a target is an error, or nobody knows.
    """
    if warn is not None or error is not None:
        ask(data, "thresholds", {"warn": warn, "error": error})
    with progress("Asking the nodes", as_json) as report:
        answer = ask(data, "status", on_progress=report)
    rows = [
        {
            "set": item["name"],
            "node": target.get("node"),
            "state": target.get("state"),
            "lag_s": target.get("lag_s"),
            **(target.get("rpo") or {"p50_s": None, "p95_s": None, "max_s": None, "over_s": None}),
            "level": target.get("level") if target.get("lag_s") is not None else "unknown",
        }
        for item in answer.get("sets", [])
        for target in item.get("targets", [])
        if name in (None, item["name"]) and not item.get("members")  # a group is as far as its members
    ]
    if name is not None and not any(item["name"] == name for item in answer.get("sets", [])):
        raise CrnodeError(f"There is no set '{name}'.", "", "See: crnode set list", ExitCode.USAGE)
    code = ExitCode.BEHIND if any(row["level"] in ("error", "unknown") for row in rows) else ExitCode.OK
    if as_json:
        print_json({"thresholds": answer.get("thresholds"), "targets": rows})
        return int(code)
    seconds = ("lag_s", "p50_s", "p95_s", "max_s")
    shown = [
        (row["set"], row["node"], *(duration(row[key]) for key in seconds), row["level"], row["state"])
        for row in rows
    ]
    columns = ("set", "target", "now", "half of the day", "95 %", "worst", "level", "state")
    show(table("What would be lost", columns, shown, "There are no sets yet: crnode set add …"))
    limits = answer.get("thresholds") or {}
    if limits:
        show(f"A warning from {limits['warn_s']:g} s on, an error from {limits['error_s']:g} s on.")
    return int(code)


def _parts(answer: dict[str, Any]) -> list[Any]:
    """The answer of the control call `status` as texts and tables."""
    cluster = answer.get("cluster", {})
    parts: list[Any] = [
        f"Cluster {cluster.get('name', '-')}, seen from {answer.get('node', '-')} ({answer.get('role', '-')})"
    ]
    nodes = [
        (
            node["name"],
            node["role"],
            node["address"],
            node.get("state"),
            _seen(node),
            "; ".join(node.get("problems", [])) or None,
        )
        for node in answer.get("nodes", [])
    ]
    parts.append(table("Nodes", ("node", "role", "address", "state", "seen", "problems"), nodes, "No nodes."))
    rows: list[tuple[object, ...]] = []
    for item in answer.get("sets", []):
        targets = item.get("targets", [])
        head = (
            item["name"],
            item["source"] or f"group of {', '.join(item.get('members', []))}",
            number(item.get("files")),
            size(item.get("bytes")),
            item.get("quality"),
        )
        for place, target in enumerate(targets or [{}]):
            first = head if place == 0 else ("",) * len(head)
            rows.append(
                (
                    *first,
                    target.get("node"),
                    target.get("state"),
                    duration(target.get("lag_s")),
                    duration((target.get("rpo") or {}).get("max_s")),
                    _behind(target),
                    target.get("reason") or None,
                )
            )
    columns = (
        *("set", "source", "files", "size", "quality"),
        *("target", "state", "lag", "worst", "behind", "reason"),
    )
    parts.append(table("Sets", columns, rows, "There are no sets yet: crnode set add …"))
    if (takeover := answer.get("takeover")) is not None:
        parts.append(" ".join(takeover["says"]))
    for item in answer.get("sets", []):
        parts.extend(
            f"problem: {item['name']}: {problem.get('path')}: {problem.get('reason')}"
            for problem in item.get("problems", [])[:10]
        )
    parts.extend(f"warning: {warning}" for warning in answer.get("warnings", []))
    return parts


def _seen(node: dict[str, Any]) -> str | None:
    ago = node.get("seen_s_ago")
    return None if ago is None else f"{duration(ago)} ago"


def _behind(target: dict[str, Any]) -> str | None:
    entries = target.get("behind_entries")
    if not entries:
        return None
    return f"{number(entries)} entries, {size(target.get('behind_bytes'))}"


def events(
    limit: Annotated[int, typer.Option(min=0, help="How many past events, at most the last 1000.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until Ctrl-C.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show what happened, as sentences."""

    def one(event: dict[str, Any]) -> None:
        if as_json:
            print_json_line(event)
        else:
            place = "/".join(str(event[key]) for key in ("node", "set") if event.get(key))
            text = (
                f"{moment(event.get('time_ns'))}  {place:<16}  {event.get('kind', '')}: "
                f"{event.get('text', '')}"
            )
            print(printable(text), flush=True)

    if follow:
        end_with_reader()
        # Past events may come as progress too, or in the result once the agent ends the stream.
        answer = ask(
            data,
            "events",
            {"limit": limit, "follow": True},
            lambda body: one(body["event"]) if "event" in body else None,
            timeout_s=None,
        )
        for event in answer.get("events", []):
            one(event)
        return
    answer = ask(data, "events", {"limit": limit, "follow": False})
    if as_json:
        print_json(answer)
        return
    for event in answer["events"]:
        one(event)
    if not answer["events"] and limit:
        show("Nothing has happened yet.")
