"""The command line as people and scripts meet it: exit codes, JSON, sentences, help, start-up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from crnode.cli.app import app, main
from crnode.cli.output import duration, printable, size
from crnode.cli.setup import parse_span
from crnode.cli.versions import parse_time, split_place, version_at
from crnode.errors import CrnodeError, ExitCode
from crnode.net.control import ControlServer, Handler, Report

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
    ["node"],
    ["node", "list"],
    ["node", "remove"],
    ["status"],
    ["sync"],
    ["versions"],
    ["restore"],
    ["events"],
    ["doctor"],
    ["scrub"],
    ["gc"],
    [],
]

TARGET = {
    "node": "box2",
    "state": "behind",
    "lag_s": 12.0,
    "behind_entries": 3,
    "behind_bytes": 4096,
    "reason": "slow\x1b",
}
ANSWERS: dict[str, dict[str, Any]] = {
    "status": {
        "cluster": {"name": "shop", "id": "ab", "version": [1, 0, 1]},
        "node": "shop1",
        "role": "master",
        "nodes": [
            {"name": "box2", "role": "replica", "address": "box2:7400", "state": "up", "seen_s_ago": 0.5}
        ],
        "sets": [
            {
                "name": "web",
                "source": "shop1",
                "files": 12345,
                "bytes": 2048,
                "quality": "clean",
                "targets": [TARGET],
                "problems": [{"path": "a.sock", "reason": "is a socket"}],
            }
        ],
        "warnings": ["the clock is off"],
    },
    "node.list": {"nodes": [{"name": "shop1", "role": "master", "address": "shop1:7400", "state": "self"}]},
    "set.list": {
        "sets": [{"name": "web", "source": "shop1", "paths": ["/srv"], "targets": {"box2": {"node": "box2"}}}]
    },
    "set.show": {
        "set": {"name": "web", "paths": ["/srv"], "targets": {"box2": {"node": "box2", "mode": "mirror"}}}
    },
    "set.add": {},
    "set.remove": {},
    "set.rebase": {"accepted": "web"},
    "node.remove": {},
    "invite": {"token": "crnode1-ABC", "expires_at": 1_700_000_000, "command": "crnode join crnode1-ABC"},
    "versions": {
        "versions": [
            {
                "number": 3,
                "time_ns": 3_000_000_000,
                "entries": 2,
                "bytes": 9,
                "quality": "clean",
                "verdict": "good",
            },
            {
                "number": 7,
                "time_ns": 7_000_000_000,
                "entries": 2,
                "bytes": 9,
                "quality": "clean",
                "verdict": "bad",
            },
        ]
    },
    "restore": {"files": 2, "bytes": 10, "seconds": 0.1, "digest_ok": True, "to": "/tmp/x"},
    "events": {"events": [{"time_ns": 1, "kind": "join", "text": "box2 joined", "node": "box2"}]},
    "doctor": {"checks": [{"name": "disk", "ok": True, "text": "fine", "hint": ""}]},
    "scrub": {
        "objects": 4, "bytes": 100, "damaged": [], "seconds": 0.1, "looked_up": 7, "lacking": 0,
        "catalogs": [], "files": {"checked": 0, "bytes": 0, "changed": 0, "differing": []},
    },  # fmt: skip
    "gc": {"packs": 1, "removed_bytes": 1, "copied_bytes": 2, "kept_bytes": 3, "seconds": 0.1},
    "sync": {
        "set": "web",
        "targets": [{"node": "box2", "ok": True, "reason": ""}],
        "sequence": 1,
        "seconds": 0.2,
    },
}


class Agent:
    """A real control server with canned answers, in a thread of its own; remembers what it was asked."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = dict(ANSWERS)
        self.forever: set[str] = set()  # calls that report what they have and then never end
        self._loop = asyncio.new_event_loop()
        self._server = ControlServer(data / "control.sock", {name: self._handler(name) for name in ANSWERS})
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(5)

    def _handler(self, name: str) -> Handler:
        async def answer(args: dict[str, Any], report: Report) -> dict[str, Any]:
            self.asked.append((name, args))
            report({"text": "on the way"})
            body = self.answers[name]
            if name in self.forever:
                for event in body["events"]:
                    report({"event": event})
                await asyncio.Event().wait()
            if isinstance(body, Exception):
                raise body
            result: dict[str, Any] = body
            return result

        return answer

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    running = Agent(tmp_path)
    monkeypatch.setenv("CRNODE_DATA", str(tmp_path))
    yield running
    running.stop()


def crnode(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "crnode", *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **more,
    )


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_command_has_help_with_an_example_of_itself(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])
    text = " ".join(result.output.split())
    assert result.exit_code == 0
    assert f"Example: crnode {' '.join(words)}" in text
    if words not in ([], ["set"], ["node"]):
        assert "--json" in text and (words == ["demo"] or "--data" in text)


ASKING: list[tuple[list[str], str, dict[str, Any], str]] = [
    (["status"], "status", {}, "box2"),
    (["node", "list"], "node.list", {}, "shop1:7400"),
    (["node", "remove", "box2", "--lose"], "node.remove", {"name": "box2", "lose": True}, "box2"),
    (["set", "list"], "set.list", {}, "/srv"),
    (["set", "show", "web"], "set.show", {"name": "web"}, "mirror"),
    (
        [
            "set",
            "add",
            "web",
            "--source",
            "shop1",
            "--path",
            "/a",
            "--path",
            "/b",
            "--to",
            "box2:/c",
            "--adopt",
        ],
        "set.add",
        {
            "name": "web",
            "source": "shop1",
            "paths": ["/a", "/b"],
            "to": ["box2:/c"],
            "mode": "mirror",
            "template": "files",
            "include": [],
            "exclude": [],
            "page_files": [],
            "privileged": False,
            "adopt": True,
        },
        "box2:/c",
    ),
    (
        [
            *("set", "add", "db", "--source", "shop1", "--path", "/a", "--to", "box2"),
            *("--archive-to", "box3:/d", "--page-files", "*.db", "--privileged"),
        ],
        "set.add",
        {
            "name": "db",
            "source": "shop1",
            "paths": ["/a"],
            "to": ["box2"],
            "archive_to": ["box3:/d"],
            "mode": "mirror",
            "template": "files",
            "include": [],
            "exclude": [],
            "page_files": ["*.db"],
            "privileged": True,
            "adopt": False,
        },
        "box2, box3:/d",
    ),
    (
        ["set", "add", "old", "--source", "shop1", "--path", "/a", "--archive-to", "box3"],
        "set.add",
        {
            "name": "old",
            "source": "shop1",
            "paths": ["/a"],
            "to": [],
            "archive_to": ["box3"],
            "mode": "mirror",
            "template": "files",
            "include": [],
            "exclude": [],
            "page_files": [],
            "privileged": False,
            "adopt": False,
        },
        "goes to box3",
    ),
    (["set", "rebase", "web"], "set.rebase", {"name": "web"}, "counts as it is now"),
    (["set", "remove", "web"], "set.remove", {"name": "web", "now": False}, "30 days"),
    (
        ["set", "remove", "web", "--now", "--confirm", "web"],
        "set.remove",
        {"name": "web", "now": True},
        "deleted",
    ),
    (
        ["invite", "box3", "--role", "secondary", "--ttl", "2h"],
        "invite",
        {"name": "box3", "role": "secondary", "ttl_s": 7200},
        "crnode join crnode1-ABC",
    ),
    (["sync", "web", "--timeout", "9"], "sync", {"set": "web", "timeout_s": 9.0}, "in sync"),
    (["versions", "web", "a/b"], "versions", {"set": "web", "path": "a/b"}, "good"),
    (
        ["restore", "web:a/b", "--version", "3", "--to", "/tmp/x", "--node", "box2"],
        "restore",
        {"set": "web", "path": "a/b", "version": 3, "to": "/tmp/x", "node": "box2"},
        "2 files",
    ),
    (["events", "--limit", "5"], "events", {"limit": 5, "follow": False}, "box2 joined"),
    (["events", "--follow"], "events", {"limit": 50, "follow": True}, "box2 joined"),
    (["doctor"], "doctor", {}, "fine"),
    (["scrub", "web"], "scrub", {"set": "web"}, "Nothing is damaged"),
    (["gc", "--plan"], "gc", {"plan": True}, "would be"),
]


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
    assert agent.asked[-1] == ("restore", {"set": "web", "version": 3, "to": "/x"})
    assert main(["restore", "web", "--at", "1970-01-01T00:00:01+00:00", "--to", "/x"]) == ExitCode.REFUSED
    assert main(["restore", "web", "--at", "yesterday"]) == ExitCode.USAGE
    assert main(["restore", "web", "--at", "2026-01-01", "--version", "3"]) == ExitCode.USAGE
    capsys.readouterr()


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


def test_no_colours_unless_it_is_a_terminal_that_wants_them(agent: Agent) -> None:
    def colours(*words: str, **environment: str) -> bool:
        master, terminal = pty.openpty()
        env = {**os.environ, "TERM": "xterm-256color", **environment}
        with subprocess.Popen(
            [sys.executable, "-m", "crnode", *words], stdout=terminal, stderr=terminal, env=env
        ) as shown:
            os.close(terminal)
            out = b""
            with contextlib.suppress(OSError):  # the end of a terminal
                while part := os.read(master, 65536):
                    out += part
            os.close(master)
            assert shown.wait(10) in (0, 2)
        assert out
        return re.search(rb"\x1b\[[0-9;]*3[0-7]m", out) is not None  # bold is no colour

    for words in (("status",), ("status", "--wings"), ("set", "--help")):
        assert colours(*words)
        assert not colours(*words, NO_COLOR="1")
        assert not colours(*words, TERM="dumb")
        piped = crnode(*words)
        assert "\x1b" not in piped.stdout + piped.stderr


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


def test_the_system_refusing_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = crnode("init", "--name", "shop1", "--data", str(tmp_path / "file" / "data"))
    assert (
        done.returncode == ExitCode.FAILED and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    )


def test_ctrl_c_is_130_without_a_traceback(agent: Agent) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "crnode", "status", "--watch", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None and watching.stderr is not None
        assert json.loads(watching.stdout.readline()) == ANSWERS["status"]
        assert json.loads(watching.stdout.readline()) == ANSWERS["status"]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
        assert watching.stderr.read() == ""


def test_ctrl_c_on_a_terminal_and_while_following_is_130_too(agent: Agent) -> None:
    agent.forever.add("events")
    for words, seen in ((("status", "--watch"), b"Cluster shop"), (("events", "--follow"), b"box2 joined")):
        for on_terminal in (True, False):
            reading, writing = pty.openpty() if on_terminal else os.pipe()
            with subprocess.Popen(
                [sys.executable, "-m", "crnode", *words], stdout=writing, stderr=subprocess.PIPE
            ) as going:
                os.close(writing)
                try:
                    out = b""
                    while seen not in out and select.select([reading], [], [], 10)[0]:
                        out += os.read(reading, 65536)
                    assert seen in out
                    going.send_signal(signal.SIGINT)
                    assert going.wait(10) == 130
                finally:
                    going.kill()
                assert going.stderr is not None and going.stderr.read() == b""
            os.close(reading)


PRINTING = [
    *(case[0] for case in ASKING),
    *(
        ["--help"],
        ["set", "add", "--help"],
        ["--version"],
        ["status", "--json"],
        ["versions", "web", "--json"],
    ),
    *(["status", "--watch", "--interval", "3600"], ["status", "--watch", "--json"], ["events", "--follow"]),
]


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_a_reader_that_is_gone_is_141_and_no_complaint(agent: Agent, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "crnode", *words],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    "words", ["versions web", "versions web --json", "status --watch --interval 3600", "events --follow"]
)
def test_head_ends_a_pipeline_with_141(agent: Agent, words: str) -> None:
    agent.answers["versions"] = {"versions": [ANSWERS["versions"]["versions"][0]] * 20_000}
    agent.forever.add("events")
    done = subprocess.run(
        [
            *("bash", "-c"),
            f"set -o pipefail; {sys.executable} -m crnode {words} | head -1; echo $? ${{PIPESTATUS[*]}}",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "141 141 0" and done.stderr == ""


def test_no_room_or_no_stream_to_print_to_is_said_or_silent(agent: Agent) -> None:
    def ended(line: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m crnode {line}"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    code, _, said = ended("status > /dev/full")
    assert code == 1 and "No space left" in said and said.count("\n") == 1
    assert ended("status >&-") == (0, "", "")
    assert ended("status --wings 2>&-") == (2, "", "")
    assert ended("status --wings 2> /dev/full")[0] == 1


def test_names_cannot_forge_lines_or_steer_the_terminal(
    agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a\nproblem: web: all is well\x1b]0;x\x07\udcff"
    shown = r"a\nproblem: web: all is well\x1b]0;x\x07\xff"
    item = {**ANSWERS["status"]["sets"][0], "problems": [{"path": name, "reason": name}]}
    agent.answers["status"] = {**ANSWERS["status"], "sets": [item], "warnings": [name]}
    agent.answers["events"] = {"events": [{"time_ns": 1, "kind": "k", "text": name, "set": name}]}
    agent.answers["versions"] = {"versions": [{**ANSWERS["versions"]["versions"][0], "name": name}]}
    agent.answers["restore"] = {**ANSWERS["restore"], "to": f"/{name}"}
    agent.answers["set.add"] = {"problem": name}
    for words in (["status"], ["events"], ["versions", "web"], ["restore", "web", "--to", "/x"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert shown in out and out.replace("\n", "").isprintable()
        assert not any(line.startswith("problem: web: all") for line in out.splitlines())
        assert main([*words, "--json"]) == 0
        assert any(name in text for text in strings(json.loads(capsys.readouterr().out)))
    assert main(["set", "add", "web", "--source", "shop1", "--path", f"/{name}", "--to", "box2"]) == 0
    out, err = capsys.readouterr()
    assert shown in out and out.count("\n") == 1 and shown in err and err.count("\n") == 1
    agent.answers["restore"] = CrnodeError(f"There is nothing at '{name}'.")
    assert main(["restore", "web", "--to", "/x"]) == 1
    assert capsys.readouterr().err == f"crnode: There is nothing at '{shown}'.\n"


def strings(body: Any) -> list[str]:
    """All strings of a JSON document."""
    if isinstance(body, str):
        return [body]
    return [
        text
        for part in (body.values() if isinstance(body, dict) else body if isinstance(body, list) else ())
        for text in strings(part)
    ]


def test_a_closed_pipe_is_no_complaint(agent: Agent) -> None:
    agent.answers["versions"] = {"versions": [ANSWERS["versions"]["versions"][0]] * 20_000}
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m crnode versions web | head -1"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith("VERSION") and done.stderr == ""


def test_a_closed_pipe_while_following_is_not_taken_for_a_silent_agent(agent: Agent) -> None:
    agent.answers["events"] = {"events": ANSWERS["events"]["events"] * 20_000}
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m crnode events --follow --json | head -1"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(done.stdout)["text"] == "box2 joined"
    assert done.stderr == ""


def test_help_starts_without_the_heavy_modules() -> None:
    code = (
        "import sys; from crnode.cli.app import main; code = main(['status', '--help']);"
        "heavy = {'cryptography', 'crnode.cluster', 'uvloop', 'asyncio', 'msgpack', 'blake3'} & "
        "set(sys.modules);"
        "print(heavy or 'none', file=sys.stderr); sys.exit(code)"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stderr.strip() == "none"
    assert time.monotonic() - began < 5


def test_small_words() -> None:
    assert split_place("web:/a/b/") == ("web", "a/b") and split_place("web") == ("web", None)
    assert split_place("web:") == ("web", None) and split_place("web:a:b") == ("web", "a:b")
    assert [parse_span(text) for text in ("90", "2m", "3h", "7d")] == [90, 120, 10800, 604_800]
    assert size(1536) == "1.5 KiB" and size(5) == "5 B" and size(None) == "-"
    assert duration(0.42) == "0.4 s" and duration(7300) == "2 h" and duration(None) == "-"
    assert printable("a\x1b[31mb\u202e") == r"a\x1b[31mb\u202e"
    assert printable("a\n\r\tb\udcff\U000e0001 ä\U0001f600") == "a\\n\\r\\tb\\xff\\U000e0001 ä\U0001f600"
    assert parse_time("1970-01-01T00:00:06+00:00") == 6_999_999_999
    with pytest.raises(CrnodeError, match="no versions yet"):
        version_at([], 5, "web", "then")
