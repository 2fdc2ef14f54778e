"""init, invite, join, demo: from nothing to a cluster."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from crnode.cli.common import Data, Json, ask, data_dir, usual_data_dir
from crnode.cli.output import moment, print_json, print_warning, progress, show
from crnode.errors import CrnodeError, ExitCode

Quota = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Most that the node's store may take, like 50GiB (default: no bound)."),
]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: crnode init --name shop1 --cluster shop")(init)
    app.command(epilog="Example: crnode invite box2 --role replica")(invite)
    app.command(epilog="Example: crnode join crnode1-ABCD… --data /var/lib/crnode")(join)
    app.command(epilog="Example: crnode demo")(demo)


def init(
    name: Annotated[str, typer.Option("--name", help="What this node is called.")],
    cluster: Annotated[
        str | None, typer.Option(help="What the cluster is called (default: as the node).")
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the agent listens.")
    ] = "0.0.0.0:7400",
    advertise: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where the other nodes call it (default: found out)."),
    ] = None,
    quota: Quota = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a new cluster; this node becomes its master."""
    from crnode.cluster.create import check_places, choose_places, create_cluster
    from crnode.cluster.sizes import parse_quota, set_quota

    place = data_dir(data)
    places = choose_places(listen, advertise)
    check_places(listen, advertise)
    most = parse_quota(quota) if quota is not None else None
    document = create_cluster(place, name, cluster or name, places, time.time_ns())
    if most is not None:
        set_quota(place, most)
    start = f"crnode --role master --data {place}"
    if as_json:
        warnings = [places.warning] if places.warning else []
        print_json(
            {
                "cluster": {"name": document.name, "id": document.id},
                "node": name,
                "role": "master",
                "data": str(place),
                "listen": places.listen,
                "address": places.advertise,
                "start": start,
                "warnings": warnings,
            }
        )
        return
    if places.warning:
        print_warning(places.warning)
    show(
        f"The cluster '{document.name}' was made; its master is '{name}' at {places.advertise}, data in "
        f"{place}.",
        f"Start the agent:   {start}",
        f"Then invite others: crnode invite NAME --role replica{_elsewhere(place)}",
        "For another machine to take over by itself three have to vote; the third may hold no data.",
    )


def _elsewhere(place: Path) -> str:
    """What a command has to be given besides when a node lies at `place`, where it is not looked for."""
    return "" if place == usual_data_dir() else f" --data {shlex.quote(str(place))}"


def parse_span(text: str) -> int:
    """'90', '30m', '24h' or '7d' -> seconds. CrnodeError(USAGE) for anything else."""
    number, unit = (text[:-1], text[-1]) if text and text[-1] in _UNITS else (text, "s")
    if not (number.isascii() and number.isdigit()):
        raise CrnodeError(
            f"'{text}' is not a span of time.",
            "",
            "Write a number and s, m, h or d, like 24h.",
            ExitCode.USAGE,
        )
    return int(number) * _UNITS[unit]


def invite(
    name: Annotated[str, typer.Argument(help="What the new node shall be called.")],
    role: Annotated[str, typer.Option(help="replica, secondary or repli-master.")] = "replica",
    ttl: Annotated[
        str, typer.Option(metavar="SPAN", help="How long the token is good, like 90m, 24h, 7d.")
    ] = "24h",
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Let nobody join with the token that was printed for NAME.")
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Print a token with which one new machine may join. Run it on the master, while its agent runs.

    Who is invited and has not joined yet is shown by 'crnode node list'.
    """
    if withdraw:
        answer = ask(data, "invite", {"name": name, "withdraw": True})
        if as_json:
            print_json(answer)
        else:
            show(f"The invitation of {answer['name']} was withdrawn: nobody joins with it.")
        return
    answer = ask(data, "invite", {"name": name, "role": role, "ttl_s": parse_span(ttl)})
    if as_json:
        print_json(answer)
        return
    until = moment(int(answer["expires_at"]) * 1_000_000_000)
    show(f"On the new machine, until {until}:", "")
    print(answer["command"])  # never wrapped: it is copied by hand


def join(
    token: Annotated[str, typer.Argument(help="What 'crnode invite' printed on the master.")],
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where the agent listens (default: 0.0.0.0:7400)."),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where the other nodes call it (default: found out)."),
    ] = None,
    quota: Quota = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Join a cluster with a token. Run it on the new machine; running it again after a failure is safe."""
    from crnode.cluster.sizes import parse_quota, set_quota
    from crnode.net.join import join_cluster

    place = data_dir(data)
    most = parse_quota(quota) if quota is not None else None
    with progress("Joining", as_json) as report:
        joined = join_cluster(place, token, listen, advertise, report)
    if most is not None:
        set_quota(place, most)
    node = joined.node
    start = f"crnode --role {node.role.value} --data {place}"
    if as_json:
        print_json(
            {
                "cluster": {"name": joined.document.name, "id": joined.document.id},
                "node": node.name,
                "role": node.role.value,
                "data": str(place),
                "listen": node.listen,
                "address": node.advertise,
                "start": start,
                "already": joined.already,
                "moved": joined.moved,
                "warnings": list(joined.warnings),
            }
        )
        return
    for warning in joined.warnings:
        print_warning(warning)
    done = "had joined already" if joined.already else "joined"
    if joined.moved:
        done = "has a new address now in"
    show(
        f"'{node.name}' {done} the cluster '{joined.document.name}' as {node.role.value}, reached at "
        f"{node.advertise}.",
        f"Start the agent: {start}",
    )


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the demo's directories for a closer look.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Show it all on this machine: three nodes, a live change, a version."""
    from crnode.cli.demo import run

    return int(run(json=as_json, keep=keep))
