"""group add, list, members, conflicts: sets of several sources in one workspace."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from crnode.cli.common import Data, Json, ask
from crnode.cli.output import number, print_json, print_warning, progress, show, table

app = typer.Typer(
    help="Groups: sets of several sources, bundled into one workspace with one time line.",
    epilog="Example: crnode group add project --member anna --member ben --to box2:/srv/project",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command(
    "add", epilog="Example: crnode group add project --member anna --member ben --to box2:/srv/project"
)
def add(
    name: Annotated[str, typer.Argument(help="What the group is called.")],
    member: Annotated[
        list[str], typer.Option(metavar="SET", help="A set that belongs to it; two at least.")
    ],
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE[:DIR]",
            help="Where the workspace is: a node that receives every member; may be repeated.",
        ),
    ] = None,
    archive_to: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE[:DIR]", help="The same, keeping every path that it ever had."),
    ] = None,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt",
            help="A destination may hold files: they are first moved aside, to .crnode-NAME/aside beside it.",
        ),
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="RUNG", help="Which versions stay, as in crnode set keep; repeatable."),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Bundle sets into one workspace. Run it on the master.

    Each target puts the workspace together from what it receives of the members; nothing is sent twice. Of a
    path that several of them have, the one that was changed last is shown; the others stay in their own sets.
    """
    args: dict[str, Any] = {"name": name, "members": member, "to": to or [], "adopt": adopt}
    if archive_to:
        args["archive_to"] = archive_to
    if keep:
        args["keep"] = keep
    with progress(f"Adding {name}", as_json) as report:
        answer = ask(data, "group.add", args, report)
    if as_json:
        print_json(answer)
        return
    places = ", ".join([*(to or []), *(archive_to or [])])
    show(f"The group '{name}' was added: {', '.join(member)} come together at {places}.")
    if problem := answer.get("problem"):
        print_warning(f"It does not run yet: {problem}")


@app.command("list", epilog="Example: crnode group list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List the groups."""
    groups = [item for item in ask(data, "set.list")["sets"] if item.get("members")]
    if as_json:
        print_json({"groups": groups})
        return
    rows = [(item["name"], ", ".join(item["members"]), ", ".join(item["targets"])) for item in groups]
    columns = ("group", "members", "targets")
    show(table("Groups", columns, rows, "There are no groups yet: crnode group add …"))


@app.command("members", epilog="Example: crnode group members project --add carla --drop ben")
def members(
    name: Annotated[str, typer.Argument(metavar="GROUP", help="The group.")],
    add: Annotated[
        list[str] | None, typer.Option(metavar="SET", help="A set that belongs to it from now on.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="SET", help="A set that does not any more.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show the members of a group, or change them at the master.

    The files of a set that is dropped leave the workspace and stay in the group's versions; the set goes on.
    """
    answer = ask(data, "group.members", {"name": name, "add": add or [], "drop": drop or []})
    if as_json:
        print_json(answer)
    else:
        show(table(name, ("member",), [(member,) for member in answer["members"]]))


@app.command("conflicts", epilog="Example: crnode group conflicts project")
def conflicts(
    name: Annotated[str, typer.Argument(metavar="GROUP", help="The group.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Show paths that several members have, what is shown of each, and where the others are.

    Read the others with: crnode cat SET:PATH
    """
    with progress(f"Asking about {name}", as_json) as report:
        answer = ask(data, "group.conflicts", {"name": name}, report)
    if as_json:
        print_json(answer)
        return
    for target in answer["targets"]:
        if target.get("error"):
            print_warning(f"{target['node']}: {target['error']}")
            continue
        rows = [(found["path"], found["reason"]) for found in target["conflicts"]]
        show(table(f"{name} on {target['node']}", ("path", "what is shown"), rows, "Nothing is hidden."))
        if target["count"] > len(rows):
            show(f"And {number(target['count'] - len(rows))} more.")
