"""set add, list, show, remove, rebase: what is protected."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from crnode.cli.common import Data, Json, ask
from crnode.cli.output import number, print_json, print_warning, progress, show, table
from crnode.errors import CrnodeError, ExitCode

app = typer.Typer(
    help="Replication sets: what is protected, and where it goes.",
    epilog="Example: crnode set add web --source shop1 --path /srv/www --to box2",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command("add", epilog="Example: crnode set add web --source shop1 --path /srv/www --to box2:/srv/www")
def add(
    name: Annotated[str, typer.Argument(help="What the set is called.")],
    source: Annotated[str, typer.Option(help="The node that has the files.")],
    path: Annotated[
        list[str],
        typer.Option(metavar="DIR", help="A folder to protect, with everything in it; may be repeated."),
    ],
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE[:DIR]",
            help="A node to copy to; may be repeated. DIR: new or empty (see --adopt); without it the copy "
            "lies in the data directory there.",
        ),
    ] = None,
    archive_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE[:DIR]",
            help="A node to copy to that keeps every path it ever received, whatever --mode says; may be "
            "repeated.",
        ),
    ] = None,
    template: Annotated[
        str, typer.Option(help="How the application is treated; only 'files' exists so far.")
    ] = "files",
    mode: Annotated[
        str,
        typer.Option(help="For --to: mirror (deletions follow) or archive (keeps every path)."),
    ] = "mirror",
    include: Annotated[
        list[str] | None, typer.Option(help="Only files that match; like .gitignore; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Not what matches; like .gitignore; repeatable.")
    ] = None,
    page_files: Annotated[
        list[str] | None,
        typer.Option(help="Files of fixed pages (databases, disk images); like .gitignore; repeatable."),
    ] = None,
    privileged: Annotated[
        bool,
        typer.Option(
            "--privileged",
            help="Let set-id bits, security attributes and owners that are root through to the targets.",
        ),
    ] = False,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt",
            help="A destination may hold files: they are first moved aside, to .crnode-NAME/aside beside it.",
        ),
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUNG",
            help="Which versions stay, as in crnode set keep: newest:16, 15m:40, daily:14:30d; repeatable.",
        ),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Protect folders: copy them to other nodes, and every change from then on. Run it on the master."""
    args: dict[str, Any] = {
        "name": name,
        "source": source,
        "paths": path,
        "to": to or [],
        "mode": mode,
        "template": template,
        "include": include or [],
        "exclude": exclude or [],
        "page_files": page_files or [],
        "privileged": privileged,
        "adopt": adopt,
    }
    if keep:
        args["keep"] = keep
    if archive_to:
        args["archive_to"] = archive_to
    with progress(f"Adding {name}", as_json) as report:
        answer = ask(data, "set.add", args, report)
    if as_json:
        print_json(answer)
    else:
        places = ", ".join([*(to or []), *(archive_to or [])])
        show(f"The set '{name}' was added: {', '.join(path)} of '{source}' goes to {places}.")
        if problem := answer.get("problem"):
            print_warning(f"It does not run yet: {problem}")


@app.command("list", epilog="Example: crnode set list --json")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List the sets."""
    answer = ask(data, "set.list")
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            item["name"],
            item["source"],
            ", ".join(item["paths"]) or f"group of {', '.join(item.get('members', []))}",
            ", ".join(_targets(item)),
            item.get("template"),
        )
        for item in answer["sets"]
    ]
    show(table("Sets", ("set", "source", "paths", "targets", "template"), rows, "There are no sets yet."))


@app.command("show", epilog="Example: crnode set show web")
def show_(
    name: Annotated[str, typer.Argument(help="The set.")], data: Data = None, as_json: Json = False
) -> None:
    """Show everything about one set."""
    answer = ask(data, "set.show", {"name": name})
    if as_json:
        print_json(answer)
        return
    item: dict[str, Any] = answer.get("set", answer)
    rows = [(key, _spoken(value)) for key, value in item.items() if key != "targets"]
    show(table(name, ("field", "value"), rows))
    targets = item.get("targets", [])
    each = list(targets.values()) if isinstance(targets, dict) else list(targets)
    columns = ("node", "destination", "mode", "paused", "keep")
    targets_rows = [tuple(_spoken(target.get(key)) for key in columns) for target in each]
    show(table("Targets", columns, targets_rows, "No targets."))


@app.command("remove", epilog="Example: crnode set remove web")
def remove(
    name: Annotated[str, typer.Argument(help="The set.")],
    now: Annotated[
        bool, typer.Option("--now", help="Delete its versions at once instead of after 30 days.")
    ] = False,
    confirm: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --now in a script: the set's name once more.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Stop replicating a set. Run it on the master.

    Files stay at the source and at the targets; the versions stay for 30 days.
    """
    if now:
        _confirm(name, confirm)
    with progress(f"Removing {name}", as_json) as report:
        answer = ask(data, "set.remove", {"name": name, "now": now}, report)
    if as_json:
        print_json(answer)
    else:
        fate = "its versions are being deleted" if now else "its versions stay for 30 days"
        show(f"The set '{name}' was removed; {fate}.")


@app.command("keep", epilog="Example: crnode set keep web newest:16 15m:24 daily:14 weekly:10")
def keep_(
    name: Annotated[str, typer.Argument(help="The set.")],
    rung: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUNG...",
            help="PERIOD:COUNT or PERIOD:COUNT:AGE: newest:16, hourly:24, 15m:40, daily:14:30d; 64 in all.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="NODE", help="Only at that target (default: all that have none of their own)."),
    ] = None,
    usual: Annotated[
        bool,
        typer.Option(
            "--usual",
            help="The usual rungs: newest:16 hourly:24 daily:14 weekly:10; with --target: the set's.",
        ),
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Say which versions of a set stay. Run it on the master; crnode versions SET --plan shows what would go.

    A rung keeps the last version of each period (an hour, 15m, a day), as many as COUNT, none older than AGE.
    Named and pinned versions, the newest, and the newest that was proved good always stay.
    """
    if bool(rung) == usual:
        raise CrnodeError(
            f"What is kept of '{name}' was not changed.",
            "No rungs were given." if not rung else "--usual takes no rungs.",
            "Give rungs, like: newest:16 15m:24 daily:14, or --usual.",
            ExitCode.USAGE,
        )
    answer = ask(data, "set.keep", {"name": name, "keep": rung or [], "node": target})
    if as_json:
        print_json(answer)
        return
    goes = answer.get("goes", {})
    rows = [
        (node, " ".join(rungs), "not known" if goes.get(node, 0) is None else number(goes.get(node, 0)))
        for node, rungs in answer["keep"].items()
    ]
    show(table(f"Kept of {name}", ("target", "rungs", "versions that go now"), rows, "It has no targets."))
    for node in answer.get("own", []):
        show(f"{node} has rungs of its own. To drop them: crnode set keep {name} --target {node} --usual")


@app.command("rebase", epilog="Example: crnode set rebase web")
def rebase(
    name: Annotated[str, typer.Argument(help="The set.")],
    node: Annotated[
        str | None, typer.Option(help="A target whose destination is right as it is (default: the source).")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Say that the source, or a target's destination, is right as it is now. Run it there or on the master.

    Needed when a folder was replaced, or everything in the source is gone: crnode waits then, because a
    missing disk looks the same. At a destination, files that are found there are kept aside.
    """
    with progress(f"Asking {node or 'the source of ' + name}", as_json) as report:
        answer = ask(data, "set.rebase", {"name": name, "node": node} if node else {"name": name}, report)
    if as_json:
        print_json(answer)
    elif node and (text := answer.get("text")):
        show(f"The destination of '{name}' on {node} is taken as it is now. {text}")
    else:
        whose = f"'{name}' on {node}" if node else f"'{name}'"
        show(f"The source of {whose} counts as it is now; its changes go to the targets.")


def _confirm(name: str, confirmed: str | None) -> None:
    """Rule 47: deleting all versions at once needs the name a second time, typed or given."""
    if confirmed is None and sys.stdin.isatty():
        confirmed = typer.prompt(
            f"All versions of '{name}' will be deleted. Type its name to go on", err=True
        )
    if confirmed != name:
        raise CrnodeError(
            f"The set '{name}' was not removed.",
            "With --now all of its versions are deleted, so its name is needed a second time.",
            f"Repeat with: --now --confirm {name}",
            ExitCode.USAGE,
        )


def _targets(item: dict[str, Any]) -> list[str]:
    targets = item.get("targets", [])
    return [target["node"] for target in (targets.values() if isinstance(targets, dict) else targets)]


def _spoken(value: object) -> object:
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value) or "-"
    return value
