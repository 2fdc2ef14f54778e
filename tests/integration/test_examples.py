"""The examples run as they are, without arguments, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(command: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CRNODE_")}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={**environment, "PATH": path, "TMPDIR": str(tmp_path)},
    )


def test_read_the_wire(tmp_path: Path) -> None:
    done = run([sys.executable, str(EXAMPLES / "read_the_wire.py")], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "office -> ImageCommit" in done.stdout
    assert "backup -> Ack" in done.stdout
    assert "equal" in done.stdout
    assert "DIFFERENT" not in done.stdout


def test_three_nodes(tmp_path: Path) -> None:
    done = run([str(EXAMPLES / "three_nodes.sh")], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for sentence in (
        "Both copies are equal to the original.",
        "The deletion reached the mirror; the archive keeps the letter.",
        "The deleted letter was restored from version",
        "Done: the three nodes are stopped and their directory is removed.",
    ):
        assert sentence in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_service_runs_the_agent() -> None:
    lines = (EXAMPLES / "crnode.service").read_text().splitlines()
    assert "ExecStart=/usr/local/bin/crnode --role ${CRNODE_ROLE} --data /var/lib/crnode" in lines
    assert {"[Unit]", "[Service]", "[Install]"} <= set(lines)
