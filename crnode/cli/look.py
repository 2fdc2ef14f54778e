"""ls, cat, diff, search, pin: looking at versions without bringing them back."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from crnode.cli.common import Data, Json, ask
from crnode.cli.output import moment, number, print_json, print_warning, progress, show, size, table
from crnode.cli.versions import chosen_version, split_place
from crnode.errors import CrnodeError, ExitCode

Place = Annotated[str, typer.Argument(metavar="SET[:PATH]", help="The set, and a file or folder in it.")]
Version = Annotated[
    str | None, typer.Option(metavar="VERSION", help="Its number or name (default: the newest).")
]
At = Annotated[
    str | None, typer.Option(metavar="TIME", help="Then: '2026-11-22 10:30', 'yesterday 14:05'.")
]
_SIGNS = {"added": "+", "deleted": "-", "changed": "~", "attributes": ".", "renamed": ">"}
_PIECE = 1 << 20


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: crnode ls web:images --version 12")(ls)
    app.command(epilog="Example: crnode cat web:index.html --at '2026-11-22 10:30' > index.html")(cat)
    app.command(epilog="Example: crnode diff web 12 15   or: crnode diff web --at 'yesterday 14:05'")(diff)
    app.command(epilog="Example: crnode search web invoice")(search)
    app.command(epilog="Example: crnode pin web 12 --name 'release 1.4'")(pin)


def ls(
    place: Place,
    version: Version = None,
    at: At = None,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="What was deleted instead, since when, and who has it last.")
    ] = False,
    node: Annotated[
        str | None,
        typer.Option(metavar="NODE", help="With --deleted: which target is asked (default: an archive)."),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List what a folder of a version holds."""
    name, path = split_place(place)
    if (deleted and (version or at)) or (node and not deleted):
        raise CrnodeError(
            "--deleted says what the newest version has no more, at one node.",
            "",
            "Leave --version and --at out." if deleted else "--node goes with --deleted.",
            ExitCode.USAGE,
        )
    if deleted:
        _list_deleted(data, name, path, node, as_json)
        return
    wanted = chosen_version(data, name, version, at, as_json)
    with progress(f"Listing {place}", as_json):
        answer = _listing(data, name, path, wanted.version)
    if as_json:
        print_json(answer | wanted.told)
        return
    rows = [
        (
            item["kind"],
            item["mode"],
            item["owner"],
            item["group"],
            size(item["size"]) if item["kind"] == "file" else None,
            moment(item["time_ns"]),
            item["name"] + (f" -> {item['target']}" if item.get("target") is not None else ""),
        )
        for item in answer["entries"]
    ]
    columns = ("kind", "mode", "owner", "group", "size", "changed", "name")
    show(table(f"{place} in version {answer['version']}{wanted.said}", columns, rows, "The folder is empty."))


def _list_deleted(data: Path | None, name: str, path: str | None, node: str | None, as_json: bool) -> None:
    args = {"set": name, "path": path or "", "node": node}
    with progress(f"Looking through {name}", as_json) as report:
        answer = ask(data, "deleted", {k: v for k, v in args.items() if v is not None}, report, 120.0)
    if as_json:
        print_json(answer)
        return
    archive = answer["mode"] == "archive"
    rows = [
        (
            moment(item["gone_ns"]),
            size(item["size"]) if item["kind"] == "file" else None,
            item["version"] if item["version"] is not None else "in the archive" if archive else "none",
            item["path"],
        )
        for item in answer["entries"]
    ]
    columns = ("gone since", "size", "last version", "path")
    show(table(f"Deleted from {name}", columns, rows, "Nothing that is kept was deleted."))
    if rows:
        kept = "all of it is kept in its live tree" if archive else "it is kept as long as a version has it"
        show(f"{number(answer['count'])} paths, {size(answer['bytes'])}; at {answer['node']} {kept}.")
    if answer["count"] > len(rows):
        show(f"{number(answer['count'] - len(rows))} more are not named: name a folder with SET:PATH.")


def _listing(data: Path | None, name: str, path: str | None, version: str | None) -> dict[str, Any]:
    """All pages of a folder."""
    args: dict[str, Any] = {"set": name, "path": path or ""}
    if version is not None:
        args["version"] = version
    answer = ask(data, "ls", args)
    page = answer
    while page["more"]:
        further = {"version": answer["id"], "node": answer["node"], "after": answer["entries"][-1]["name"]}
        page = ask(data, "ls", {**args, **further})
        answer["entries"] += page["entries"]
    answer["more"] = False
    return answer


def cat(place: Place, version: Version = None, at: At = None, data: Data = None) -> None:
    """Print a file of a version. It is restored and verified first, and printed when it is whole."""
    name, path = split_place(place)
    if path is None:
        raise CrnodeError("Which file?", "", f"Name it: crnode cat {name}:PATH", ExitCode.USAGE)
    wanted = chosen_version(data, name, version, at, False)
    found = _listing(data, name, path, wanted.version)
    if (
        len(found["entries"]) != 1
        or found["entries"][0]["path"] != path
        or found["entries"][0]["kind"] != "file"
    ):
        raise CrnodeError(
            f"'{path}' is no file in version {found['version']} of {name}{wanted.said}.",
            "",
            f"See what is there: crnode ls {place} --version {found['version']}",
            ExitCode.USAGE,
        )
    scratch = Path(tempfile.mkdtemp(prefix="crnode-cat-"))
    try:
        to = scratch / "file"
        args = {"set": name, "path": path, "version": found["id"], "to": str(to), "look": True}
        with progress(f"Fetching {place}", sys.stdout.isatty()) as report:
            ask(data, "restore", args, report, None)
        with open(to / Path(path).name, "rb") as file:
            while piece := file.read(_PIECE):
                sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def diff(
    place: Place,
    first: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="The older one: its number or name.")
    ] = None,
    second: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="The newer one (default: the newest).")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="The older one: what there was then.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="The newer one: what there was then.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, max=20_000, metavar="N", help="How many paths to name.")
    ] = 1000,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show what differs between two versions: + added, - deleted, ~ changed, > renamed, . only attributes."""
    name, path = split_place(place)
    if first is None and at is None:
        raise CrnodeError(
            "Which versions?",
            "",
            f"Name the older one, or when it was: crnode diff {name} --at TIME",
            ExitCode.USAGE,
        )
    if at is not None and second is None:
        first, second = None, first  # one that is named beside a time is the newer one
    for named, then, option in ((first, at, "--at"), (second, until, "--until")):
        if named is not None and then is not None:
            raise CrnodeError(
                f"Version {named} and {option} say the same thing twice.",
                "",
                "Leave one of them out.",
                ExitCode.USAGE,
            )
    older = chosen_version(data, name, first, at, as_json)
    newer = chosen_version(data, name, second, until, as_json)
    if older.at_ns is not None and newer.at_ns is not None and older.at_ns > newer.at_ns:
        raise CrnodeError(
            f"--at {moment(older.at_ns)} is later than --until {moment(newer.at_ns)}.",
            "",
            "Name the earlier time with --at.",
            ExitCode.USAGE,
        )
    args: dict[str, Any] = {"set": name, "first": older.version, "limit": limit}
    if path is not None:
        args["path"] = path
    if newer.version is not None:
        args["second"] = newer.version
    with progress(f"Comparing versions of {place}", as_json) as report:
        answer = ask(data, "diff", args, report, 120.0)
    if as_json:
        until_told = {"until_ns": newer.at_ns} if newer.at_ns is not None else {}
        print_json(answer | older.told | until_told)
        return
    rows = [
        (
            _SIGNS[item["what"]],
            item["what"],
            _sizes(item),
            f"{item['before']} -> {item['path']}" if item["before"] is not None else item["path"],
        )
        for item in answer["rows"]
    ]
    title = f"{place} from version {answer['first']}{older.said} to {answer['second']}{newer.said}"
    show(table(title, ("", "what", "size", "path"), rows, "Nothing differs."))
    if answer["counts"]:
        said = [
            f"{number(paths)} {what} ({size(total)})"
            for what in _SIGNS
            if (paths := answer["counts"].get(what, (0, 0))[0]) or 0
            for total in (answer["counts"][what][1],)
        ]
        show(f"{', '.join(said)}.")
    if older.at_ns is not None or newer.at_ns is not None:
        show(f"{title}.")  # what was understood
    if answer["more"]:
        way = "name a folder with SET:PATH" if len(answer["rows"]) < limit else "see --limit"
        show(f"{number(answer['more'])} more are not named: {way}.")


def _sizes(item: dict[str, Any]) -> str | None:
    if item["what"] == "changed" and item["old_size"] != item["size"]:
        return f"{size(item['old_size'])} -> {size(item['size'])}"
    return size(item["size"] if item["size"] is not None else item["old_size"])


def search(
    name: Annotated[str, typer.Argument(metavar="SET", help="The set.")],
    text: Annotated[
        str,
        typer.Argument(help="Part of a name, or a pattern like '*.pdf'; with a slash the whole path counts."),
    ],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Look for a name in all versions, deleted files included."""
    with progress(f"Looking for {text}", as_json) as report:
        answer = ask(data, "search", {"set": name, "text": text}, report, 120.0)
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            item["path"],
            item["kind"],
            size(item["size"]) if item["kind"] == "file" else None,
            f"{item['first']} ({moment(item['first_ns'])})",
            "now" if item["now"] else f"{item['last']} ({moment(item['last_ns'])})",
        )
        for item in answer["found"]
    ]
    columns = ("path", "kind", "size", "since version", "until")
    show(table(f"'{text}' in {name}", columns, rows, "No version that is kept has it."))
    if answer["more"]:
        show("There are more: name more of it.")
    for node, why in answer["silent"].items():
        print_warning(f"{node} could not be asked: {why}")


def pin(
    name: Annotated[str, typer.Argument(metavar="SET", help="The set.")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Its number or name.")],
    called: Annotated[
        str | None, typer.Option("--name", metavar="TEXT", help="What to call it, like 'release 1.4'.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Let retention decide about it again.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Keep a version whatever retention says, under a name. Run it at the master."""
    if remove == (called is not None):
        raise CrnodeError(
            "A version is either named or unpinned.", "", "Give --name TEXT, or --remove.", ExitCode.USAGE
        )
    args = (
        {"set": name, "version": version, "remove": True}
        if remove
        else {"set": name, "version": version, "name": called}
    )
    with progress(f"Telling the nodes of {name}", as_json) as report:
        answer = ask(data, "pin", args, report, 120.0)
    if as_json:
        print_json(answer)
        return
    unpinned = "is no longer pinned" if answer.get("was") else "has no name"
    did = unpinned if remove else f"is kept as '{answer['name']}'"
    if not remove and answer.get("was") not in (None, answer["name"]):
        did += f", no more as '{answer['was']}',"
    show(f"Version {answer['version']} of {name} {did} at {', '.join(answer['nodes'])}.")
    for node in answer["without"]:
        print_warning(f"{node} does not keep that version.")
    for node, why in answer["silent"].items():
        print_warning(f"{node} could not be told: {why} Repeat the command when it is back.")
