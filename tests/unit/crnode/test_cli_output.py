"""What the command line writes, and to whom: terminals, pipes, readers that go away, names from elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from typing import Any

import pytest
from cli_samples import ANSWERS, ASKING, Agent, crnode

from crnode.cli.app import main
from crnode.errors import CrnodeError


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


def test_progress_is_for_terminals_and_for_what_takes_long(agent: Agent) -> None:
    def shown(*words: str, until: bytes = b"") -> bytes:
        master, terminal = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "crnode", *words], stdout=subprocess.DEVNULL, stderr=terminal
        ) as asking:
            os.close(terminal)
            out = b""
            try:
                with contextlib.suppress(OSError):  # the end of a terminal
                    while (not until or until not in out) and select.select([master], [], [], 10)[0]:
                        out += os.read(master, 65536)
                if until:
                    asking.send_signal(signal.SIGINT)
                assert asking.wait(10) == (130 if until else 0)
            finally:
                asking.kill()
                os.close(master)
        return out

    assert shown("doctor") == b""
    agent.forever.add("doctor")
    assert b"Checking" in shown("doctor", until=b"Checking")
    agent.forever.add("versions")
    assert b"Asking the nodes" in shown("versions", "web", until=b"Asking the nodes")


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
