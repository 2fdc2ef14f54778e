"""doctor, scrub, gc: is it healthy, is it whole, is there room."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from crnode.cli.common import Data, Json, ask
from crnode.cli.output import duration, number, print_json, print_warning, progress, show, size, table
from crnode.errors import ExitCode


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: crnode doctor")(doctor)
    app.command(epilog="Example: crnode scrub")(scrub)
    app.command(epilog="Example: crnode gc --plan")(gc)


def doctor(data: Data = None, as_json: Json = False) -> int:
    """Check this node and its surroundings, and say what to do. Exit code 1 when something is wrong."""
    with progress("Checking", as_json) as report:
        answer = ask(data, "doctor", {}, report, timeout_s=120)
    checks: list[dict[str, Any]] = answer["checks"]
    if as_json:
        print_json(answer)
    else:
        words = {True: "ok", False: "failed", None: "unsure"}
        rows = [
            (words[check["ok"]], check["name"], check["text"], check.get("hint") or None) for check in checks
        ]
        show(
            table("Checks", ("result", "check", "what was found", "what to do"), rows, "Nothing was checked.")
        )
    return int(ExitCode.FAILED if any(check["ok"] is False for check in checks) else ExitCode.OK)


def scrub(
    name: Annotated[
        str | None,
        typer.Argument(metavar="SET", help="Report only damage that this set needs (default: all)."),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> int:
    """Read everything that is stored, verify it, and heal what is damaged. Exit code 6 when something stays
    damaged.
    """
    with progress("Scrubbing", as_json) as report:
        answer = ask(data, "scrub", {"set": name} if name else {}, report, timeout_s=None)
    damaged: list[dict[str, Any]] = answer["damaged"]
    files: dict[str, Any] = answer["files"]
    live: dict[str, Any] = answer["live"]
    if as_json:
        print_json(answer)
    else:
        rows = [(item["id"][:16], item["healed_from"] or "nowhere", _where(item)) for item in damaged]
        took = duration(answer.get("seconds"))
        show(f"{number(answer['objects'])} objects, {size(answer['bytes'])}, were read in {took}.")
        show(f"{number(answer['looked_up'])} objects that versions need were looked up.")
        show(table("Damaged or lacking", ("object", "healed from", "where"), rows, "Nothing is damaged."))
        if files["checked"] or files["differing"]:
            read = files["checked"]
            what, verb = ("file of sources", "was") if read == 1 else ("files of sources", "were")
            show(f"{number(read)} {what}, {size(files['bytes'])}, {verb} compared.")
            rows = [(item["set"], item["path"], item["bytes"]) for item in files["differing"]]
            show(table("Files that differ", ("set", "path", "bytes"), rows, "All are what was captured."))
        _show_live(live)
        if answer["catalogs"]:
            texts = [(text,) for text in answer["catalogs"]]
            show(table("Versions that are not whole", ("what is wrong",), texts, ""))
    lost = answer["lacking"] or any(not item["healed_from"] for item in damaged)
    torn = live["failed"] or live["put_right"] < live["changed"]
    torn = torn or any(not item["whole"] for item in live["mended"])
    found = lost or torn or files["differing"] or answer["catalogs"]
    return int(ExitCode.DAMAGE if found else ExitCode.OK)


def _show_live(live: dict[str, Any]) -> None:
    changed = live["changed"]
    for one in live["failed"]:
        print_warning(f"The live tree of {one['set']} was not looked through: {one['why']}")
    if live["checked"] or live["mended"] or changed:
        files = "file of live trees" if live["checked"] == 1 else "files of live trees"
        verb = "was" if live["checked"] == 1 else "were"
        show(f"{number(live['checked'])} {files}, {size(live['bytes'])}, {verb} compared.")
    if live["mended"] or (live["checked"] and not changed):
        mended = [(i["set"], i["path"], i["bytes"], _written(i)) for i in live["mended"]]
        columns = ("set", "path", "bytes", "what was done")
        show(table("Files of live trees that differ", columns, mended, "All are what was written."))
    if changed:
        verb = "files of live trees were" if changed != 1 else "file of live trees was"
        show(f"{number(changed)} {verb} changed by somebody here, not by crnode.")
        rows = [(i["set"], i["path"], _written(i)) for i in live["changed_files"]]
        show(table("Files that somebody changed", ("set", "path", "what was done"), rows))
        if changed > len(rows):
            show(f"... and {number(changed - len(rows))} more.")


def _written(item: dict[str, Any]) -> str:
    return "written anew, the other set aside" if item["whole"] else "not written yet, see crnode status"


def _where(item: dict[str, Any]) -> str | None:
    """What needs an object that nobody could give."""
    if item.get("set") is None:
        return None
    when = "the newest version" if item["newest"] else "older versions"
    return f"{item['set']}: {item['path'] or 'a manifest'}, {when}"


def gc(
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Give the room back that no version needs any more."""
    with progress("Collecting", as_json) as report:
        answer = ask(data, "gc", {"plan": plan}, report, timeout_s=None)
    if as_json:
        print_json(answer)
        return
    verb = "would be" if plan else "were"
    show(
        f"{size(answer['removed_bytes'])} {verb} given back, {size(answer['copied_bytes'])} {verb} moved, "
        f"{size(answer['kept_bytes'])} stay, in {number(answer['packs'])} packs; "
        f"{duration(answer.get('seconds'))}."
    )
