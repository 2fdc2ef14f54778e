"""keeper, takeover set, show and status, switch-to, failback, failover: who is active, and what moves."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from crnode.cli.common import Data, Json, ask, data_dir
from crnode.cli.output import duration, print_json, print_warning, progress, show, table
from crnode.cli.setup import parse_span
from crnode.errors import CrnodeError, ExitCode

MAJORITY_FROM = 3  # voters of whom one may be lost

app = typer.Typer(
    help="Taking over: who votes on who is active, and what moves with it: sets, services, an address.",
    epilog="Example: crnode takeover status",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


def register(top: typer.Typer) -> None:
    """Add this module's commands that stand by themselves."""
    top.command(epilog="Example: crnode keeper")(keeper)
    top.command("switch-to", epilog="Example: crnode switch-to box2")(switch_to)
    top.command(epilog="Example: crnode failback")(failback)
    top.command(epilog="Example: crnode failover --dry-run")(failover)
    top.command(epilog="Example: crnode activate --alone")(activate)
    top.command(epilog="Example: crnode fence")(fence)


@app.command(
    "set",
    epilog="Example: crnode takeover set --voter shop1 --voter box2 --voter box3"
    " --address 192.0.2.10/24 --interface eth0 --service 'web=python3 -m http.server 80'",
)
def set_(
    voter: Annotated[
        list[str],
        typer.Option(metavar="NODE", help="A node that votes; three or five, the master among them. With less"
            " nothing takes over by itself."),
    ],
    candidate: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="A voter that may be active (default: master and secondary;"
        " else all)."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS/PREFIX", help="The address that moves.")
    ] = None,
    interface: Annotated[str, typer.Option(help="... and the interface that it is on.")] = "",
    service: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WHAT",
            help="What runs where the lease is, in their order: a command that stays in the foreground,"
            " unit:UNIT of systemd, start:COMMAND with --stop, or windows:SERVICE.",
        ),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="NAME=COMMAND", help="What stops a service with"
        " start:COMMAND.")
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COMMAND", help="... and what ends with 0 while it serves."),
    ] = None,
    stop_signal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIGNAL",
            help="What a command in the foreground ends by: TERM, INT, QUIT or HUP. PostgreSQL: INT, else it"
            " waits for its clients.",
        ),
    ] = None,
    needs: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=OTHER", help="A service that needs one that is named before it."),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WHAT",
            help="How a service is asked whether it serves: http://…, https://…, tcp:HOST:PORT, postgresql://…,"
            " mysql://…, mssql://…, or sh:COMMAND.",
        ),
    ] = None,
    expect: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TEXT", help="What its page has to contain.")
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two questions of a probe.")] = 1.0,
    within: Annotated[float, typer.Option(min=0.1, help="Seconds that it has to answer.")] = 1.0,
    rise: Annotated[int, typer.Option(min=1, help="Answers in a row after which a service is up.")] = 1,
    fall: Annotated[int, typer.Option(min=1, help="Failures in a row after which it is down.")] = 2,
    restarts: Annotated[
        int, typer.Option(min=0, help="How often a service is started again here before another node serves.")
    ] = 1,
    active_port: Annotated[
        int | None, typer.Option(help="Answer load balancers there: GET /active is 200 on the active node.")
    ] = None,
    moves: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SET", help="A set whose source is where the lease is; each candidate has it."
        ),
    ] = None,
    leave: Annotated[
        list[str] | None,
        typer.Option(metavar="SET", help="A set that has moved, and is to stay at home from now on."),
    ] = None,
    address_hook: Annotated[
        str,
        typer.Option(
            metavar="COMMAND",
            help="Moves the clients where no address can be (a name, a cloud): CRNODE_ACTION is take or drop,"
            " CRNODE_NODE this node.",
        ),
    ] = "",
    fence_hook: Annotated[
        str,
        typer.Option(
            metavar="COMMAND",
            help="Switches CRNODE_NODE off before another node serves; it has to end with 0.",
        ),
    ] = "",
    failback: Annotated[
        str | None,
        typer.Option(
            "--failback",
            metavar="TIME",
            help="Hand back by itself when the node that is home has been able for so long.",
        ),
    ] = None,
    validate: Annotated[
        float,
        typer.Option(help="Seconds that a takeover gives to judging a newest version that nothing has"
        " judged."),
    ] = 30.0,
    watchdog: Annotated[
        str,
        typer.Option(
            metavar="DEVICE", help="Armed while active: it starts a machine again whose services do not end."
        ),
    ] = "",
    veto: Annotated[
        str,
        typer.Option(
            metavar="IP", help="Who does not reach this address does not take over by itself: the gateway."
        ),
    ] = "",
    max_loss: Annotated[
        str,
        typer.Option(metavar="TIME", help="How far back a takeover goes by itself from what is bad or held."),
    ] = "15m",
    wan: Annotated[
        bool, typer.Option("--wan", help="The nodes are far from each other: a lease of 10 s instead of 2.5.")
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Say who votes on who is active, and what moves with it. Run it on the master; then run crnode keeper
    on each.

    With two voters nothing takes over by itself, because one of two is no majority: name a third, which may
    hold no data at all.
    """
    services: list[dict[str, Any]] = []
    for text in service or []:
        name, _, command = text.partition("=")
        services.append({"name": name, **_how(text, command), "restarts": restarts})
    said = (("stop", stop), ("status", status), ("stop_signal", stop_signal), ("needs", needs))
    for what, texts in said:
        for text in texts or []:
            name, _, value = text.partition("=")
            found = next((one for one in services if one["name"] == name), None)
            if found is None or not value:
                hint = f"The services are: {', '.join(one['name'] for one in services) or 'none'}."
                raise CrnodeError(
                    f"'--{what.replace('_', '-')} {text}' names no service.", hint, "Write it as NAME=WHAT.",
                    ExitCode.USAGE
                )
            if what == "needs":
                found.setdefault("needs", []).append(value)
            else:
                found[what] = value
    for text in probe or []:
        name, _, what = text.partition("=")
        found = next((one for one in services if one["name"] == name), None)
        if found is None:
            hint = f"The services are: {', '.join(one['name'] for one in services) or 'none'}."
            raise CrnodeError(f"'{text}' names no service.", hint, "Write it as NAME=WHAT.", ExitCode.USAGE)
        if "probe" in found:
            raise CrnodeError(
                f"'{name}' has two probes.", f"One is {found['probe']['target']}.", "Name one.",
                ExitCode.USAGE
            )
        times = {"interval_s": every, "timeout_s": within, "rise": rise, "fall": fall}
        found["probe"] = {**_probe(what), **times}
    for text in expect or []:
        name, _, what = text.partition("=")
        found = next((one for one in services if one["name"] == name and "probe" in one), None)
        if found is None:
            raise CrnodeError(f"'{text}' names no service with a probe.", "", "Add --probe.", ExitCode.USAGE)
        found["probe"]["expect"] = what
    args: dict[str, Any] = {
        "voters": voter,
        "candidates": candidate or [],
        "address": address,
        "interface": interface,
        "services": services,
        "network": "wan" if wan else "lan",
        "sets": moves or [],
        "leave": leave or [],
        "max_loss_s": parse_span(max_loss),
        "active_port": active_port,
        "address_hook": address_hook,
        "fence_hook": fence_hook,
        "failback_s": parse_span(failback) if failback is not None else None,
        "validate_s": validate,
        "watchdog": watchdog,
        "veto": veto,
    }
    answer = ask(data, "takeover.set", args)
    if as_json:
        print_json(answer)
    else:
        vote = "vote" if len(voter) > 1 else "votes"
        show(f"{', '.join(voter)} {vote} on who is active. Now run on each of them: crnode keeper")
        _show_all(answer["takeover"])
        if len(voter) < MAJORITY_FROM:
            show(
                "Nothing takes over by itself: less than three vote, and of two, one that hears nothing"
                " cannot know who is dead. Name a third, which may hold no data (crnode invite NAME --role"
                " replica), or go on by hand when it matters: crnode failover --force."
            )


@app.command("show", epilog="Example: crnode takeover show")
def show_(data: Data = None, as_json: Json = False) -> None:
    """Show what was said about taking over."""
    answer = ask(data, "takeover.show")
    if as_json:
        print_json(answer)
        return
    _show_all(answer["takeover"])


def _show_all(item: dict[str, Any]) -> None:
    rows = [
        ("voters", ", ".join(item["voters"])),
        ("candidates", ", ".join(item["candidates"])),
        ("network", item["network"]),
        ("sets", ", ".join(item["sets"]) or None),
        ("address", f"{item['address']} on {item['interface']}" if item["address"] else None),
        *((f"service {one['name']}", _shown(one)) for one in item["services"]),
        *((f"probe of {one['name']}", one["probe"]["target"]) for one in item["services"] if one["probe"]),
        ("command that moves the address", item["address_hook"] or None),
        ("command that switches off", item["fence_hook"] or None),
        ("watchdog", item["watchdog"] or None),
        ("/active is answered on port", item["active_port"]),
        ("has to be reached", item["veto"] or None),
        ("goes back by itself at most", duration(item["max_loss_s"])),
        ("hands back by itself", duration(item["failback_s"]) if item["failback_s"] is not None else "no"),
    ]
    show(table("Taking over", ("what", "as it was said"), rows))


@app.command("status", epilog="Example: crnode takeover status")
def status(data: Data = None, as_json: Json = False) -> None:
    """Show what this node's keeper knows: who is active, for how long, and why it is not."""
    answer = _ask_keeper(data, "status", {})
    if as_json:
        print_json(answer)
        return
    show(f"{answer['node']}: {answer['says']}.")
    rows = [
        ("holds the lease", answer["holder"] or "nobody that it knows of"),
        ("epoch", answer["epoch"]),
        ("left of the lease", duration(answer["left_s"]) if answer["left_s"] > 0 else None),
        ("voters", ", ".join(answer["voters"]) or None),
        ("keepers that answer", ", ".join(n for n, there in answer["keepers"].items() if there) or "none"),
        ("address", answer["address"] or _missing(answer)),
        *((f"service {name}", how) for name, how in answer["services"].items()),
    ]
    show(table("Keeper", ("what", "is"), rows))
    if answer["why_not"]:
        show(answer["why_not"])


def _missing(answer: dict[str, Any]) -> str | None:
    wanted = answer["address_wanted"]
    return f"{wanted} is not on" if answer["phase"] == "active" and wanted else None


def keeper(data: Data = None) -> int:
    """Run this node's keeper in the foreground: lease, votes, address and services.

    It goes on when the agent does not, and ends what it runs when it ends.
    """
    import asyncio
    import logging

    from crnode.failover.keeper import Keeper

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    async def run(place: Path) -> None:
        import signal

        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await Keeper(place).run()

    try:
        asyncio.run(run(data_dir(data)))
    except asyncio.CancelledError:
        return 0
    return 0


def switch_to(
    node: Annotated[str, typer.Argument(help="The node that is to be active.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Let another node be active, in good order: services stop, the successor gets all that was written, and
    only then it serves. Nothing is lost. Run it on any node."""
    _switch(node, data, as_json)


def failback(data: Data = None, as_json: Json = False) -> None:
    """Let the node be active again that was so before the takeover: the source that the sets which move were
    added with. As switch-to, without loss."""
    _switch("home", data, as_json)


def _switch(node: str, data: Path | None, as_json: bool) -> None:
    with progress("Switching", as_json) as report:
        answer = ask(data, "takeover.switch", {"to": node}, report, None)
    if as_json:
        print_json(answer)
    elif answer.get("already"):
        show(f"{answer['to']} is active already.")
    else:
        show(f"{answer['from']} has handed over to {answer['to']}.")


def failover(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say whether a takeover would work now, and what it would cost.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Go on alone, though no majority is left: the others are switched off."),
    ] = False,
    off: Annotated[
        list[str] | None,
        typer.Option(
            "--i-switched-off", metavar="NODE", help="A node that you have switched off, or cut off for good."
        ),
    ] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="... even with data older than what was served last.")
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> int:
    """Let this node take over as soon as nobody holds the lease, whatever kept it from that by itself: that
    it took over often within the hour, or that its service failed.

    A node that is active and answers is not pushed aside: ask it with switch-to. With --dry-run nothing
    happens, and exit code 5 says that nothing would take over.

    With --force this node goes on alone, which takes no majority. That at most one node is active rests on
    you then: name each node that does not answer with --i-switched-off, after you have switched it off. It
    comes back only by joining anew: crnode invite NODE, at this node, which becomes the master if that was
    lost.
    """
    if force or off or accept_loss:
        if dry_run:
            raise CrnodeError(
                "Force cannot be tried.",
                "What it would do depends on what you have switched off.",
                "Without force: crnode failover --dry-run",
                ExitCode.USAGE,
            )
        if not (force and off):
            raise CrnodeError(
                "Force takes the names of the nodes that you have switched off.",
                "Only you can know that they do not serve.",
                "Write: crnode failover --force --i-switched-off NODE",
                ExitCode.USAGE,
            )
        answer = ask(data, "takeover.force", {"off": off, "accept_loss": accept_loss})
        if as_json:
            print_json(answer)
        else:
            names = " and ".join(answer["off"])
            show(f"{answer['node']} goes on without {names}. See: crnode takeover status")
        return int(ExitCode.OK)
    found = ask(data, "takeover.would")
    if not dry_run:
        if found["active"] is not None:
            raise CrnodeError(
                f"{found['active']} is active.",
                "It is not pushed aside.",
                "To let another node be active in good order: crnode switch-to NODE",
                ExitCode.REFUSED,
            )
        answer = ask(data, "takeover.campaign")
        if as_json:
            print_json(answer)
        else:
            show("This node takes over as soon as nobody holds the lease. See: crnode takeover status")
        return int(ExitCode.OK)
    if as_json:
        print_json(found)
    else:
        for text in found["says"]:
            show(text)
    return int(ExitCode.OK if found["ok"] else ExitCode.BEHIND)


def activate(
    alone: Annotated[
        bool, typer.Option("--alone", help="No other node was made active by force, as you know.")
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Let this node serve again after a start, though the others do not answer.

    A node that votes alone waits after each start until the others have said that none of them was made
    active by force meanwhile. Where they cannot say it, you can.
    """
    if not alone:
        raise CrnodeError(
            "Say that no other node was made active: --alone",
            "If another one was (crnode failover --force), two nodes would serve.",
            "Look at the other nodes first: crnode takeover status",
            ExitCode.USAGE,
        )
    answer = ask(data, "takeover.alone")
    if as_json:
        print_json(answer)
    else:
        show("This node serves as soon as nobody holds the lease. See: crnode takeover status")


def fence(data: Data = None, as_json: Json = False) -> None:
    """End at once what this node serves by the cluster's word: the address, the units of systemd, and, where
    it has control groups, programs.

    systemd runs it when the keeper has ended (ExecStopPost); it needs neither agent nor keeper. A keeper that
    runs starts them again.
    """
    from crnode.failover.fence_now import fence as end

    place = data_dir(data)
    try:
        done, left = end(place)
    except (OSError, ValueError) as error:
        hint = "Name the data directory of this node: --data"
        raise CrnodeError(f"'{place}' does not say what is to be ended.", f"{error}.", hint) from error
    if as_json:
        print_json({"done": done, "left": left})
        return
    show(*(done or ([] if left else ["Nothing was served here."])))
    for text in left:
        print_warning(text)


def _how(text: str, what: str) -> dict[str, Any]:
    """What a service is, as people write it."""
    for kind in ("unit", "start", "windows"):
        if what.startswith(f"{kind}:"):
            return {kind: what.partition(":")[2]}
    try:
        words = shlex.split(what)
    except ValueError as error:
        raise CrnodeError(
            f"'{what}' cannot be taken apart.", f"{error}.", "Close what was quoted.", ExitCode.USAGE
        ) from error
    if not words:
        hint = "Write it as NAME=COMMAND, as in: web='nginx -g …'"
        raise CrnodeError(f"'{text}' names no command.", "", hint, ExitCode.USAGE)
    return {"command": words}


def _shown(service: dict[str, Any]) -> str:
    kinds = (f"{kind}:{service[kind]}" for kind in ("unit", "start", "windows") if service[kind])
    return next(kinds, shlex.join(service["command"]))


def _probe(text: str) -> dict[str, str]:
    """What to ask, as people write it."""
    kind, _, rest = text.partition(":")
    if kind in ("http", "https"):
        return {"kind": "http", "target": text}
    if kind == "tcp":
        return {"kind": "tcp", "target": rest}
    if kind == "sh":
        return {"kind": "command", "target": rest}
    if "://" in text:
        return {"kind": "sql", "target": text}
    hint = "Write http://…, tcp:HOST:PORT, postgresql://…, or sh:COMMAND."
    raise CrnodeError(f"'{text}' is no probe that is known.", "", hint, ExitCode.USAGE)


def _ask_keeper(data: Path | None, name: str, args: dict[str, Any]) -> dict[str, Any]:
    from crnode.net.control import call

    try:
        return call(data_dir(data) / "keeper.sock", name, args, None, 30.0)
    except CrnodeError as error:
        if error.exit_code is ExitCode.UNREACHABLE:
            raise CrnodeError(
                "No keeper answers here.", error.why, "Start it with: crnode keeper", ExitCode.UNREACHABLE
            ) from error
        raise
