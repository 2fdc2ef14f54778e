"""The command line as people and scripts meet it: exit codes, JSON, sentences, help, start-up."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_samples import ANSWERS, ASKING, Agent, crnode
from typer.testing import CliRunner

from crnode.cli.app import app, main
from crnode.cli.output import duration, moment, printable, size
from crnode.cli.setup import parse_span
from crnode.cli.versions import split_place, version_at
from crnode.errors import CrnodeError, ExitCode

COMMANDS = [
    ["init"],
    ["invite"],
    ["join"],
    ["demo"],
    ["set"],
    ["set", "add"],
    ["set", "list"],
    ["set", "show"],
    ["set", "remove"],
    ["set", "rebase"],
    ["set", "keep"],
    ["group"],
    ["group", "add"],
    ["group", "list"],
    ["group", "members"],
    ["group", "conflicts"],
    ["brake"],
    ["rpo"],
    ["node"],
    ["node", "list"],
    ["node", "remove"],
    ["status"],
    ["sync"],
    ["versions"],
    ["restore"],
    ["verify"],
    ["drill"],
    ["events"],
    ["doctor"],
    ["scrub"],
    ["gc"],
    ["selftest"],
    ["keeper"],
    ["switch-to"],
    ["failback"],
    ["failover"],
    ["activate"],
    ["fence"],
    ["takeover"],
    ["takeover", "set"],
    ["takeover", "show"],
    ["takeover", "status"],
    [],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_command_has_help_with_an_example_of_itself(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])
    text = " ".join(result.output.split())
    assert result.exit_code == 0
    assert f"Example: crnode {' '.join(words)}" in text
    if words not in ([], ["set"], ["group"], ["node"], ["takeover"], ["keeper"]):
        assert "--json" in text and (words in (["demo"], ["selftest"]) or "--data" in text)


@pytest.mark.parametrize(
    ("words", "call", "args", "shown"), ASKING, ids=[" ".join(case[0]) for case in ASKING]
)
def test_commands_ask_the_agent_and_show_its_answer(
    agent: Agent,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    call: str,
    args: dict[str, Any],
    shown: str,
) -> None:
    assert main(words) == 0
    assert agent.asked == [(call, args)]
    out, err = capsys.readouterr()
    assert shown in out and err == "" and "\x1b" not in out
    assert main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    if "--follow" in words:
        assert json.loads(out) == ANSWERS["events"]["events"][0]
    else:
        assert json.loads(out) == ANSWERS[call]


def test_status_shows_problems_and_warnings(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "warning: the clock is off" in out and "a.sock: is a socket" in out
    assert "12,345" in out and "3 entries, 4.0 KiB" in out and r"slow\x1b" in out


def test_a_set_that_was_added_but_cannot_run_is_a_warning(
    agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.answers["set.add"] = {"name": "web", "problem": "The folder is not there."}
    assert main(["set", "add", "web", "--source", "shop1", "--path", "/a", "--to", "box2"]) == 0
    out, err = capsys.readouterr()
    assert "was added" in out and err == "warning: It does not run yet: The folder is not there.\n"


def test_restore_at_a_time_takes_the_newest_version_before_it(
    agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["restore", "web", "--at", "1970-01-01T00:00:06+00:00", "--to", "/x"]) == 0
    assert agent.asked[-1] == ("restore", {"set": "web", "version": "3", "to": "/x"})
    assert main(["restore", "web", "--at", "1970-01-01T00:00:01+00:00", "--to", "/x"]) == ExitCode.REFUSED
    assert main(["restore", "web", "--at", "some day"]) == ExitCode.USAGE
    assert main(["restore", "web", "--at", "2026-01-01", "--version", "3"]) == ExitCode.USAGE
    capsys.readouterr()


def test_the_time_that_was_understood_is_told(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    agent.answers["restore"] = {**ANSWERS["restore"], "version": 3, "time_ns": 3_000_000_000}
    when = datetime.datetime.fromtimestamp(6)
    spoken = f"{when:%d.%m.%Y %H:%M:%S}"
    assert main(["restore", "web", "--at", spoken, "--to", "/x"]) == 0
    told = f"Version 3 of {moment(3_000_000_000)}, the last one until {when}: 2 files"
    assert told in capsys.readouterr().out
    assert main(["restore", "web", "--at", spoken, "--to", "/x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**agent.answers["restore"], "at_ns": 6_999_999_999}
    agent.answers["restore"] |= {"written": 0, "removed": 0, "skipped": [], "paths": []}
    for option in ("--plan", "--in-place"):
        assert main(["restore", "web", "--at", spoken, option]) == 0
        assert f"in version 3, the last one until {when}" in capsys.readouterr().out
    early = datetime.datetime.fromtimestamp(1)
    assert main(["restore", "web", "--at", f"{early:%d.%m.%Y %H:%M:%S}", "--to", "/x"]) == ExitCode.REFUSED
    said = f"has no version of '{early:%d.%m.%Y %H:%M:%S}', that is {early}, or before"
    assert said in capsys.readouterr().err
    asked = len(agent.asked)
    assert main(["restore", "web", "--at", "11/05/2026", "--to", "/x"]) == ExitCode.USAGE
    assert "11 May or 5 November" in capsys.readouterr().err and len(agent.asked) == asked


def test_exit_codes_of_findings(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    agent.answers["doctor"] = {"checks": [{"name": "disk", "ok": False, "text": "full", "hint": "buy one"}]}
    assert main(["doctor"]) == ExitCode.FAILED
    agent.answers["doctor"] = {"checks": [{"name": "disk", "ok": None, "text": "?", "hint": ""}]}
    assert main(["doctor"]) == 0
    damaged = {"id": "ab", "pack": "1", "healed_from": None}
    agent.answers["scrub"] = {**ANSWERS["scrub"], "damaged": [damaged]}
    assert main(["scrub"]) == ExitCode.DAMAGE
    agent.answers["scrub"] = {**ANSWERS["scrub"], "damaged": [{**damaged, "healed_from": "box2"}]}
    assert main(["scrub"]) == 0
    agent.answers["restore"] = {**ANSWERS["restore"], "digest_ok": False}
    assert main(["restore", "web"]) == ExitCode.DAMAGE
    agent.answers["sync"] = CrnodeError("Not in sync.", "box2 is off.", "Start it.", ExitCode.BEHIND)
    assert main(["sync", "web"]) == ExitCode.BEHIND
    assert "Not in sync. box2 is off. Start it." in capsys.readouterr().err
    lacking = {"node": "box2", "ok": False, "reason": "", "unapplied": 2}
    agent.answers["sync"] = {**ANSWERS["sync"], "targets": [lacking], "left_out": 3}
    assert main(["sync", "web"]) == main(["sync", "web", "--json"]) == ExitCode.BEHIND
    said = "In sync, except 3 paths that the source could not take and 2 paths that box2 cannot hold:"
    assert said in capsys.readouterr().out
    agent.answers["sync"] = {**ANSWERS["sync"], "targets": [{**lacking, "ok": True}]}  # an archive
    assert main(["sync", "web"]) == 0
    capsys.readouterr()


def test_errors_are_json_with_json_and_a_sentence_without(
    agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.answers["status"] = CrnodeError("No.", "Why.", "Do.", ExitCode.FULL)
    assert main(["status", "--json"]) == ExitCode.FULL
    out, err = capsys.readouterr()
    assert out == "" and json.loads(err) == {
        "error": {"what": "No.", "why": "Why.", "hint": "Do.", "exit_code": 7}
    }
    assert main(["status"]) == ExitCode.FULL
    assert capsys.readouterr().err == "crnode: No. Why. Do.\n"


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["status", "--wings"],
        ["init"],
        ["set", "add", "web"],
        ["--role", "king"],
        ["--role", "master", "status"],
        ["invite", "box2", "--ttl", "soon"],
        ["join", "crnode1-nonsense!"],
        ["init", "--name", "Shop 1"],
        ["init", "--name", "shop1", "--listen", "nowhere:0"],
        ["init", "--name", "shop1", "--listen", "127.0.0.1:99999"],
        ["init", "--name", "shop1", "--advertise", "[::1]:99999"],
        ["init", "--name", "shop1", "--listen", "no-such-machine.invalid"],
        ["init", "--name", "shop1", "--listen", "203.0.113.7:7400"],
        ["init", "--name", "shop1", "--advertise", "no-such-machine.invalid:7400"],
        ["--role", "master", "--listen", "127.0.0.1:99999"],
        ["--role", "master", "--listen", "a..b:7400"],
        ["set", "remove", "web", "--now", "--confirm", "db"],
    ],
    ids=" ".join,
)
def test_wrong_words_are_exit_2_and_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRNODE_DATA", str(tmp_path / "data"))
    assert main(words) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("crnode: ") and err.count("\n") == 1 and "Traceback" not in err
    if words[0] not in ("join",):
        main([*words, "--json"])
        assert json.loads(capsys.readouterr().err)["error"]["exit_code"] == ExitCode.USAGE
    assert not (tmp_path / "data").exists()


def test_a_missing_role_is_named_with_the_one_that_the_node_has(tmp_path: Path) -> None:
    def said(*words: str) -> str:
        done = crnode(*words)
        assert (done.returncode, done.stdout) == (ExitCode.USAGE, "") and done.stderr.count("\n") == 1
        return done.stderr

    data = str(tmp_path / "data")
    assert "--role" in said("--data", data)
    crnode("init", "--name", "shop1", "--listen", "127.0.0.1:7400", "--data", data)
    assert f"crnode --role master --data {data}" in said("--data", data)
    assert "--role" in said("--listen", "127.0.0.1:7400", "--data", data)
    (tmp_path / "data" / "node.json").write_text('{"role": ["king"]}')
    assert f"crnode --role ROLE --data {data}" in said("--data", data)
    assert "--listen" in said("--listen", "127.0.0.1:7400", "status")
    assert "needs a command" in crnode("set").stderr
    assert crnode().returncode == 0


def test_init_then_no_agent_then_init_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    made = crnode(
        "init",
        "--name",
        "shop1",
        "--cluster",
        "shop",
        "--listen",
        "127.0.0.1:7400",
        "--data",
        str(data),
        "--json",
    )
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["start"] == f"crnode --role master --data {data}"
    silent = crnode("status", "--data", str(data))
    assert silent.returncode == ExitCode.UNREACHABLE
    assert silent.stderr.count("\n") == 1 and f"crnode --role master --data {data}" in silent.stderr
    before = crnode("--data", str(data), "status", "--json")
    assert before.returncode == ExitCode.UNREACHABLE and json.loads(before.stderr)["error"]["exit_code"] == 3
    again = crnode("init", "--name", "shop1", "--data", str(data))
    assert again.returncode == ExitCode.REFUSED and "already" in again.stderr


def test_what_init_suggests_finds_the_node_that_it_made(tmp_path: Path) -> None:
    words = ("init", "--name", "shop1", "--listen", "127.0.0.1:7400")
    named = crnode(*words, "--data", str(tmp_path / "my data"))
    assert f"crnode invite NAME --role replica --data '{tmp_path}/my data'" in " ".join(named.stdout.split())
    usual = crnode(*words, env={**os.environ, "CRNODE_DATA": str(tmp_path / "usual")})
    assert usual.returncode == 0 and "crnode invite NAME --role replica\n" in usual.stdout


def test_the_system_refusing_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = crnode("init", "--name", "shop1", "--data", str(tmp_path / "file" / "data"))
    assert (
        done.returncode == ExitCode.FAILED and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    )


def test_help_starts_without_the_heavy_modules() -> None:
    code = (
        "import sys; from crnode.cli.app import main; code = main(['status', '--help']);"
        "heavy = {'cryptography', 'crnode.cluster', 'uvloop', 'asyncio', 'msgpack', 'blake3'} & "
        "set(sys.modules);"
        "print(heavy or 'none', file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stderr.strip() == "none"


def test_small_words() -> None:
    assert split_place("web:/a/b/") == ("web", "a/b") and split_place("web") == ("web", None)
    assert split_place("web:") == ("web", None) and split_place("web:a:b") == ("web", "a:b")
    assert [parse_span(text) for text in ("90", "2m", "3h", "7d")] == [90, 120, 10800, 604_800]
    assert size(1536) == "1.5 KiB" and size(5) == "5 B" and size(None) == "-"
    assert duration(0.42) == "0.4 s" and duration(7300) == "2 h" and duration(None) == "-"
    assert printable("a\x1b[31mb\u202e") == r"a\x1b[31mb\u202e"
    assert printable("a\n\r\tb\udcff\U000e0001 ä\U0001f600") == "a\\n\\r\\tb\\xff\\U000e0001 ä\U0001f600"
    with pytest.raises(CrnodeError, match="no versions yet"):
        version_at([], 5, "web", "then")


def test_ctrl_c_before_anything_began_is_no_traceback() -> None:
    code = (
        "import crnode.__main__ as m, signal, sys; sys.argv[1:] = ['--version']\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL\n"
        "assert m.main() == 0\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
