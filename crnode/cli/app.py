"""The `crnode` command: gathers the groups, turns every failure into one sentence and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from crnode.cli import (
    brake,
    cluster,
    groups,
    look,
    proof,
    selftest,
    sets,
    setup,
    status,
    takeover,
    upkeep,
    versions,
)
from crnode.cli.common import Data, choose_data, data_dir
from crnode.cli.output import open_streams, print_error, stop_writing
from crnode.errors import CrnodeError, ExitCode

INTERRUPTED, READER_GONE = 130, 141
"""What a shell reports of a program that ended by Ctrl-C, or by a reader of its pipe that went away."""

app = typer.Typer(
    name="crnode",
    help="Continuous replication and versions for a handful of machines.",
    epilog="Example: crnode init --name shop1",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

for _module in (setup, status, versions, look, proof, brake, upkeep, selftest, takeover):
    _module.register(app)
app.add_typer(sets.app, name="set")
app.add_typer(groups.app, name="group")
app.add_typer(takeover.app, name="takeover")
app.add_typer(cluster.app, name="node")


@app.callback(invoke_without_command=True)
def agent(
    context: typer.Context,
    role: Annotated[
        str | None,
        typer.Option(
            "--role",
            metavar="ROLE",
            help="Run the agent, as what this node is: master, repli-master, replica or secondary.",
        ),
    ] = None,
    data: Data = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="Listen there instead of where the node file says."
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> int:
    """Continuous replication and versions for a handful of machines.

    With --role it runs the agent of this node in the foreground: crnode --role master
    """
    choose_data(data)
    if version:
        from crnode import __version__

        print(f"crnode {__version__}")
        raise typer.Exit(0)
    if context.invoked_subcommand is not None:
        if role is not None or listen is not None:
            option = "--role" if role is not None else "--listen"
            raise CrnodeError(
                f"'{option}' is for running the agent and does not go with '{context.invoked_subcommand}'.",
                "",
                "Leave one of them out.",
                ExitCode.USAGE,
            )
        return 0
    if role is None:
        if data is None and listen is None:
            print(context.get_help())
            raise typer.Exit(0)
        from crnode.net.control import role_of

        place = data_dir(data)
        here = role_of(place)
        raise CrnodeError(
            "'--role' is missing: it runs the agent.",
            f"This node is the {here}." if here else "Which role this node has is not to be read here.",
            f"Run: crnode --role {here or 'ROLE'} --data {place}; or name a command, see crnode --help",
            ExitCode.USAGE,
        )
    if role not in ("master", "repli-master", "replica", "secondary"):
        raise CrnodeError(
            f"'{role}' is no role.", "", "Choose master, repli-master, replica or secondary.", ExitCode.USAGE
        )
    from crnode.agent import run

    raise typer.Exit(int(run(data_dir(data), role, listen)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code and never raises."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    open_streams()
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return READER_GONE
    except SystemExit as error:  # rich ends the process when its reader goes away (`crnode --help | head`)
        if isinstance(error.__context__, BrokenPipeError):
            return READER_GONE
        raise
    except OSError:
        return int(ExitCode.FAILED)  # neither the result nor the error can be written
    finally:
        stop_writing()


def _run(words: list[str]) -> int:
    """One command line; what cannot be written is raised, everything else is told."""
    as_json = "--json" in words
    command = typer.main.get_command(app)
    try:
        choose_data(None)
        # Not command.main(): it makes 1 of a broken pipe, and prints on its own.
        with command.make_context("crnode", words) as context:
            code = command.invoke(context)
        sys.stdout.flush()
        return int(code or 0)
    except CrnodeError as error:
        failure = error
    except TyperException as error:
        failure = _usage(error)
    except typer.Exit as ended:
        return int(ended.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        name = f" '{error.filename}'" if error.filename else ""
        failure = CrnodeError(
            "The system refused something that crnode needs.",
            f"It says{name}: {error.strerror or error}.",
            "Check the path, its owner and the free space.",
        )
    except Exception as error:
        if os.environ.get("CRNODE_DEBUG"):
            raise
        failure = CrnodeError(
            "crnode met a defect of its own.",
            f"{type(error).__name__}: {error}.",
            "Run it again with CRNODE_DEBUG=1 and report what it prints.",
        )
    print_error(failure, as_json)
    return int(failure.exit_code)


def _usage(error: TyperException) -> CrnodeError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "crnode"
    code = ExitCode.USAGE if error.exit_code == ExitCode.USAGE else ExitCode.FAILED
    what = error.format_message().replace("\n", " ").strip()
    if not what:  # a group without a command: its help was printed
        what = f"'{path}' needs a command."
    what = what if what.endswith((".", "?", "!")) else f"{what}."
    return CrnodeError(what, "", f"See: {path} --help", code)
