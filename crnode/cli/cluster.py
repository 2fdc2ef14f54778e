"""node list, remove: who belongs to the cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from crnode.cli.common import Data, Json, ask
from crnode.cli.output import moment, print_json, progress, show, table

app = typer.Typer(
    help="The nodes of the cluster.",
    epilog="Example: crnode node list",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command("list", epilog="Example: crnode node list --json")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List the nodes."""
    answer = ask(data, "node.list")
    if as_json:
        print_json(answer)
        return
    rows = [(node["name"], node["role"], node["address"], node.get("state")) for node in answer["nodes"]]
    show(table("Nodes", ("node", "role", "address", "state"), rows, "There are no nodes."))
    for one in answer.get("invited", ()):
        until = moment(one["expires_at"] * 1_000_000_000)
        show(f"{one['name']} is invited as {one['role']} until {until}, and has not joined yet.")


@app.command("remove", epilog="Example: crnode node remove box2")
def remove(
    name: Annotated[str, typer.Argument(help="The node.")],
    lose: Annotated[
        bool,
        typer.Option("--lose", help="Also when it alone holds something, which is then given up."),
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Put a node out of the cluster: nobody talks to it from then on. Its disk is not touched. Run it on the
    master.
    """
    with progress(f"Removing {name}", as_json) as report:
        answer = ask(data, "node.remove", {"name": name, "lose": lose}, report)
    if as_json:
        print_json(answer)
    else:
        show(f"The node '{name}' was removed; its certificate is no longer accepted.")
