"""sync, versions, restore: earlier states, and getting them back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from crnode.cli.common import Data, Json, ask
from crnode.cli.output import duration, moment, number, print_json, progress, show, size, table
from crnode.cli.times import parse_time
from crnode.errors import CrnodeError, ExitCode


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: crnode sync web --timeout 60")(sync)
    app.command(epilog="Example: crnode versions web index.html")(versions)
    app.command(
        epilog="Example: crnode restore web:index.html --version 12 --to /tmp/back\n\n"
        "Example: crnode restore web --at '2026-11-22 10:30' --in-place"
    )(restore)


def sync(
    name: Annotated[str, typer.Argument(metavar="SET", help="The set.")],
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How long to wait.")] = 60.0,
    data: Data = None,
    as_json: Json = False,
) -> int:
    """Wait until every target has what the set holds now. Exit code 5 when one has not, or when a mirror
    cannot hold some of it."""
    with progress(f"Synchronising {name}", as_json) as report:
        # The agent keeps the time; the silence allowed here only notices an agent that hangs.
        answer = ask(data, "sync", {"set": name, "timeout_s": timeout}, report, timeout_s=timeout + 30)
    code = int(ExitCode.OK if all(target["ok"] for target in answer["targets"]) else ExitCode.BEHIND)
    if as_json:
        print_json(answer)
        return code
    rows = [
        (target["node"], "in sync" if target["ok"] else "incomplete", target.get("reason"))
        for target in answer["targets"]
    ]
    show(
        table(
            f"{name} in {duration(answer.get('seconds'))}",
            ("target", "state", "reason"),
            rows,
            "It has no targets.",
        )
    )
    if lacking := _lacking(answer):
        show(lacking)
        for whose, item in _examples(answer):
            show(f"{whose}: {item.get('path')}: {item.get('reason')}")
    return code


def _lacking(answer: dict[str, Any]) -> str:
    """What the copies do not show though all is in sync, as a sentence; '' when that is nothing."""
    said = []
    if left_out := int(answer.get("left_out") or 0):
        said.append(f"{_paths(left_out)} that the source could not take")
    for target in answer["targets"]:
        if unapplied := int(target.get("unapplied") or 0):
            said.append(f"{_paths(unapplied)} that {target['node']} cannot hold")
    return f"In sync, except {' and '.join(said)}: see crnode status." if said else ""


def _examples(answer: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The first few of them, each with who it is that lacks it."""
    return [
        *(("left out", item) for item in answer.get("left_out_examples", [])[:3]),
        *(
            (target["node"], item)
            for target in answer["targets"]
            for item in target.get("unapplied_examples", [])[:3]
        ),
    ]


def counted_files(count: int) -> str:
    """'1 file', '2 files'."""
    return f"{number(count)} file{'' if count == 1 else 's'}"


def _paths(count: int) -> str:
    return f"{count} path{'' if count == 1 else 's'}"


def split_place(text: str) -> tuple[str, str | None]:
    """'SET' or 'SET:PATH' -> (set, path or None); a leading '/' of the path is not meant."""
    name, colon, path = text.partition(":")
    path = path.strip("/")
    return name, path if colon and path else None


def versions(
    name: Annotated[str, typer.Argument(metavar="SET", help="The set.")],
    path: Annotated[
        str | None,
        typer.Argument(
            help="What became of this path, and by which source: a file, or a folder itself (not what lies"
            " below)."
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say which of them the next thinning keeps or drops, and why.")
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUNG", help="With --plan: as if these were in force (see crnode set keep); repeatable."
        ),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List the versions of a set, or of one file in it."""
    if (path is not None and plan) or (keep and not plan):
        raise CrnodeError(
            "A plan is one of whole versions." if plan else "--keep only says what a plan is made of.",
            "",
            "Leave PATH out." if plan else "Add --plan; to put it in force: crnode set keep",
            ExitCode.USAGE,
        )
    answer = _versions(data, name, path, as_json, {"plan": True, "keep": keep or []} if plan else {})
    if as_json:
        print_json(answer)
        return
    if plan:
        _show_plan_of_versions(name, answer["versions"])
        return
    if path is not None:
        _show_past(path, answer["versions"])
        return
    grouped = any("members" in item for item in answer["versions"])
    rows = [
        (
            item["number"],
            moment(item.get("time_ns")),
            number(item.get("entries")),
            size(item.get("bytes")),
            item.get("quality"),
            item.get("verdict"),
            item.get("name") or None,
            item.get("why"),
            item.get("node"),
            *([_made_of(item["members"])] if grouped else []),
        )
        for item in answer["versions"]
    ]
    empty = "There are no versions yet."
    columns: tuple[str, ...] = ("version", "time", "entries", "size", "quality", "verdict")
    columns += ("name", "kept because", "node", *(["made of"] if grouped else []))
    show(table(f"Versions of {name}", columns, rows, empty))


def _show_past(path: str, rows: list[dict[str, Any]]) -> None:
    """What became of a path, from version to version."""
    grouped = any(item.get("member") for item in rows)
    shown = [
        (
            item["number"],
            moment(item.get("time_ns")),
            item["change"] + (f": {', '.join(item['what'])}" if item["what"] else ""),
            size(item["size"]) if item["kind"] == "file" else item["kind"],
            moment(item["mtime_ns"]),
            item["source"],
            *([item["member"]] if grouped else []),
            item["last"],
            item.get("node"),
        )
        for item in rows
    ]
    columns: tuple[str, ...] = ("version", "time", "change", "size", "modified", "by")
    columns += (*(["set"] if grouped else []), "up to version", "kept at")
    show(table(f"What became of {path}", columns, shown, "No version that is kept has it."))


def _made_of(members: dict[str, list[int]]) -> str | None:
    """Of a group: the version of each member, and how far apart these were taken."""
    if not members:
        return None
    times = [at_ns for _, at_ns in members.values()]
    spread = f" ({duration((max(times) - min(times)) / 1e9)} apart)" if len(times) > 1 else ""
    return ", ".join(f"{name} {number}" for name, (number, _) in members.items()) + spread


def _show_plan_of_versions(name: str, versions: list[dict[str, Any]]) -> None:
    rows = [
        (
            item["number"],
            moment(item.get("time_ns")),
            "stays" if item["keep"] else "goes",
            item.get("why"),
            item.get("node"),
        )
        for item in versions
    ]
    columns = ("version", "time", "", "because", "node")
    title = f"What thinning does with the versions of {name}"
    show(table(title, columns, rows, "There are no versions yet."))
    going = sum(not item["keep"] for item in versions)
    show(f"{len(versions) - going} stay, {going} go.")


def _versions(
    data: Any, name: str, path: str | None, as_json: bool, more: dict[str, Any] | None = None
) -> dict[str, Any]:
    args: dict[str, Any] = {"set": name, **(more or {})}
    if path is not None:
        args["path"] = path
    with progress("Asking the nodes", as_json) as report:
        return ask(data, "versions", args, report)


def version_at(known: list[dict[str, Any]], time_ns: int, name: str, spoken: str) -> str:
    """What the newest version is called that is not later than `time_ns`: its number, its id where others
    have that number, too."""
    before = [item for item in known if int(item["time_ns"]) <= time_ns]
    if not before:
        first = min((item["time_ns"] for item in known), default=None)
        raise CrnodeError(
            f"'{name}' has no version of '{spoken}', that is {moment(time_ns)}, or before.",
            f"Its oldest one is of {moment(first)}." if known else "It has no versions yet.",
            f"See: crnode versions {name}",
            ExitCode.REFUSED,
        )
    newest = max(before, key=lambda item: (int(item["time_ns"]), int(item["number"])))
    same = {item.get("id") for item in known if item["number"] == newest["number"]}
    return str(newest["number"] if len(same) == 1 else newest["id"])


class Wanted(NamedTuple):
    """What --version and --at ask for. `version` is a number, an id or a name, None for the newest; `at_ns`
    the time that was understood, where one was named."""

    version: str | None
    at_ns: int | None = None

    @property
    def said(self) -> str:
        """The time, to go after the name of the version: ', the last one until TIME'; '' without one."""
        return f", the last one until {moment(self.at_ns)}" if self.at_ns is not None else ""

    @property
    def told(self) -> dict[str, int]:
        """The time for --json: {"at_ns"}, or nothing."""
        return {"at_ns": self.at_ns} if self.at_ns is not None else {}


def chosen_version(
    data: Path | None, name: str, version: str | None, at: str | None, as_json: bool
) -> Wanted:
    """The version that --version or --at ask for. Raises CrnodeError."""
    if version is not None and at is not None:
        raise CrnodeError(
            "--version and --at say the same thing twice.", "", "Leave one of them out.", ExitCode.USAGE
        )
    if at is None:
        return Wanted(version)
    at_ns = parse_time(at)
    known = _versions(data, name, None, as_json)["versions"]
    return Wanted(version_at(known, at_ns, name, at), at_ns)


def restore(
    place: Annotated[str, typer.Argument(metavar="SET[:PATH]", help="The set, and a file or folder in it.")],
    version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Its number or name (default: the newest).")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Then: '2026-11-22 10:30', 'yesterday 14:05'.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Write it there: a folder that is new or empty."),
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="Bring the set itself back, at its source; what it has now is kept as a version first.",
        ),
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what --in-place would change.")
    ] = False,
    node: Annotated[
        str | None,
        typer.Option(
            metavar="NODE",
            help="Write it on that node, where --to is then a folder (default: here); at the master.",
        ),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> int:
    """Bring a file, a folder or a whole set back from a version, to a new place or to its own.

    It is taken from whatever node keeps that version; with --in-place only what differs is.
    """
    name, path = split_place(place)
    if (in_place or plan) and (to is not None or node is not None):
        raise CrnodeError(
            "--in-place writes where the set is, at its source.",
            "",
            "Leave --to and --node out, or --in-place.",
            ExitCode.USAGE,
        )
    wanted = chosen_version(data, name, version, at, as_json)
    args: dict[str, Any] = {"set": name, "path": path, "version": wanted.version, "to": to, "node": node}
    if in_place or plan:
        args |= {"in_place": True, "plan": plan}
    with progress(f"Restoring {place}", as_json) as report:
        answer = ask(
            data, "restore", {key: value for key, value in args.items() if value is not None}, report, None
        )
    if answer.get("digest_ok") is False:
        raise CrnodeError(
            f"'{place}' was written to {answer.get('to')}, but it is not what the version says.",
            "The digest of what was written differs.",
            "Run 'crnode scrub', then restore again, or restore another version.",
            ExitCode.DAMAGE,
        )
    if as_json:
        print_json(answer | wanted.told)
    elif plan:
        _show_plan(place, answer, wanted)
    elif in_place:
        _show_in_place(place, answer, wanted)
    else:
        took = duration(answer.get("seconds"))
        of = moment(answer.get("time_ns"))
        version = f"Version {answer['version']} of {of}{wanted.said}: " if "version" in answer else ""
        what = f"{counted_files(answer['files'])}, {size(answer['bytes'])}"
        show(f"{version}{what}, written to {answer['to']} in {took}.")
    return int(ExitCode.BEHIND if answer.get("skipped") else ExitCode.OK)


def _show_plan(place: str, answer: dict[str, Any], wanted: Wanted) -> None:
    said = f"To be as in version {answer['version']}{wanted.said}, {place} needs"
    if not answer["written"] and not answer["removed"] and not answer["skipped"]:
        show(f"{said} no change.")
        return
    rows = [(item["change"], item["path"]) for item in answer["paths"]]
    written = f"{_paths(answer['written'])} written ({size(answer['bytes'])})"
    title = f"{said} {written}, {answer['removed']} removed"
    show(table(title, ("change", "path"), rows, ""))
    if len(rows) < answer["written"] + answer["removed"]:
        show(f"The first {len(rows)} are shown.")
    _show_skipped("Would be left as they are", answer)


def _show_in_place(place: str, answer: dict[str, Any], wanted: Wanted) -> None:
    version = answer["version"]
    if not answer["written"] and not answer["removed"] and not answer["skipped"]:
        show(f"{place} is as in version {version}{wanted.said}: there was nothing to change.")
        return
    show(
        f"{place} is back at version {version} of {moment(answer.get('time_ns'))}{wanted.said}:"
        f" {_paths(answer['written'])} written ({size(answer['bytes'])}), {answer['removed']} removed,"
        f" {size(answer['fetched'])} fetched, in {duration(answer.get('seconds'))}."
    )
    if kept := answer.get("kept"):
        show(f"What was there is version {kept['version']}, kept as '{kept['name']}'.")
    _show_skipped("Left as they are", answer)


def _show_skipped(title: str, answer: dict[str, Any]) -> None:
    if answer["skipped"]:
        rows = [(item["path"], item["reason"]) for item in answer["skipped"]]
        show(table(title, ("path", "reason"), rows, ""))
