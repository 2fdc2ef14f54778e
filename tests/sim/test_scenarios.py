"""The stories of takeover: each script comes to the transcript beside it. ``CRNODE_REWRITE=1`` writes the
transcripts anew; then read what changed, and why it has to be so."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crnode.cli.app import app, main
from crnode.errors import ExitCode
from crnode.failover.lease import Lease
from crnode.sim import scenario
from crnode.sim.broken import RULES
from crnode.sim.scenario import FORMS, BadLine, tell

PLACE = Path(__file__).parent.parent / "scenarios"
STORIES = sorted(path.stem for path in PLACE.glob("*.txt"))
THREE = "nodes a b c\ncandidates a b\nstart a b c\n"


def script(name: str) -> str:
    return (PLACE / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", STORIES)
def test_a_story_comes_to_what_is_expected(name: str) -> None:
    told = tell(script(name))
    found, beside = [*told.lines, ""], PLACE / f"{name}.expected"
    if os.environ.get("CRNODE_REWRITE") == "1":
        beside.write_text("\n".join(found))
    wanted = beside.read_text().split("\n") if beside.exists() else []
    names = (f"{name}.expected", f"{name}.txt, told now")
    different = difflib.unified_diff(wanted, found, *names, lineterm="", n=6)
    if text := "\n".join(different):
        pytest.fail(f"{name} went another way.\n{text}", pytrace=False)
    assert told.broken == ""


def test_no_transcript_is_left_of_a_story_that_is_gone() -> None:
    assert [path.stem for path in sorted(PLACE.glob("*.expected"))] == STORIES


@pytest.mark.parametrize("name", STORIES)
def test_a_story_says_why(name: str) -> None:
    head = script(name).split("\n\n")[0].splitlines()
    assert len(head) > 3 and all(line.startswith("#") and len(line) <= 110 for line in head)


@pytest.mark.parametrize(
    ("name", "rule", "what"),
    [
        ("02-cable-cut", "no-promise", "a and b both hold a lease."),
        ("05-stale-data", "no-mark", "c opens epoch 3.3 with data of 1.1, and 2.2 was opened before."),
        ("06-planned-switch", "release-before-stop", "a releases its lease while its services run."),
        ("07-voter-restarts", "no-restart-wait", "a and c both hold a lease."),
        ("14-wrong-clocks", "no-margin", "a and b both hold a lease."),
        ("15-slow-answers", "validity-from-receipt", "a and b both hold a lease."),
    ],
)
def test_a_rule_that_is_taken_away_breaks_its_story(name: str, rule: str, what: str) -> None:
    told = tell(script(name), RULES[rule][0])
    assert told.broken.startswith("Line ") and told.broken.endswith(what)
    assert told.lines[-1].endswith(f"BROKEN: {told.broken}")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("cutt a b", "There is no command 'cutt'. There are: nodes, voters,"),
        ("cut a z", "There is no node 'z'."),
        ("cut a <- b", "It is said like this: cut NODE, or cut NODE NODE, or cut NODE -> NODE."),
        ("start", "It is said like this: start NODE..."),
        ("start a", "a is up."),
        ("run 2 s", "It is said like this: run TIME."),
        ("run 2h", "'2h' is not like 2.5s or 300ms."),
        ("clock a 1", "'1' is not like +1% or -0.5%."),
        ("data a 3", "'3' is not like 3.1."),
        ("chance a 1", "'1' is not like 0.25."),
        ("assert serves a maybe", "'maybe' is not like yes or no."),
        ("drop next Hello a b", "There is no message 'Hello'."),
        ("kill a b a", "One is named twice."),
        ("nodes d", "The nodes are named already."),
        ("voters a", "It has to stand before the first start."),
        ("lease lan", "It has to stand before the first start."),
        ("forget a", "a is not down."),
        ("add voter c", "Nobody is active."),
    ],
)
def test_a_bad_line_is_refused_by_its_number(line: str, why: str) -> None:
    with pytest.raises(BadLine) as refused:
        tell(f"# A story.\n\n{THREE}  {line}  # whatever\nrun 1s\n")
    assert str(refused.value).startswith(f"Line 6, '{line}': {why}")


def test_a_node_that_is_down_or_stands_still_decides_nothing() -> None:
    for line, why in (("kill a", "a is down."), ("freeze a 1s", "a stands still.")):
        with pytest.raises(BadLine, match=why):
            tell(f"{THREE}{line}\ncampaign a\n")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("assert active b", "b is not active, a is."),
        ("assert nobody active", "a is active."),
        ("assert serves a no", "a serves."),
        ("assert holds b yes", "b holds no lease."),
        ("assert mark b 2.1", "b has the mark 1.1."),
        ("assert data c 2.1", "c has data of 1.1."),
    ],
)
def test_what_has_to_be_so_and_is_not_ends_the_story(line: str, why: str) -> None:
    told = tell(f"{THREE}campaign a\nrun 1s\n{line}\nrun 1s\n")
    assert told.broken == f"Line 6, '{line}': {why}" and "> run 1s" not in told.lines[-1]


def test_renewals_are_told_when_they_are_asked_for() -> None:
    quiet = tell(f"{THREE}campaign a\nrun 2s\n").lines
    loud = tell(f"{THREE}trace renewals\ncampaign a\nrun 2s\n").lines
    assert not any("Renew" in line for line in quiet)
    assert sum("a -> b  Renew 1.1" in line for line in loud) == 4  # the first one brings the configuration
    assert [line for line in loud if line in quiet] == quiet


def test_who_took_over_twice_within_the_hour_waits_for_a_person() -> None:
    told = tell(
        f"{THREE}auto a\nrun 1s\ncut a\nrun 3s\nheal\nrun 8s\nassert active a\ncut a\nrun 3s\nheal\nrun 8s\n"
        "assert nobody active\nask a\nrun 1s\nassert active a\n"
    )
    assert told.broken == "" and any("taken over 2 times within the hour" in line for line in told.lines)


def test_an_owner_that_is_not_able_is_not_waited_for() -> None:
    told = tell(
        f"{THREE}campaign a\nrun 1s\nkill a b c\nstart a b c\nunable a\nauto b\nrun 4s\nassert active b\n"
    )
    assert told.broken == ""


def test_an_epoch_that_is_not_open_is_left_to_another_one() -> None:
    told = tell(f"{THREE}campaign a\nrun 50ms\ngive way a b\nauto b\nrun 1s\nassert active b\n")
    assert told.broken == ""
    told = tell(f"{THREE}campaign a\nrun 50ms\nabandon a\nauto b\nrun 1s\nassert nobody active\nrun 3s\n")
    assert told.broken == "" and any("it cannot serve" in line for line in told.lines)


def test_the_language_is_told_whole() -> None:
    assert scenario.__doc__ is not None
    assert [form for form in FORMS if f"``{form}``" not in scenario.__doc__] == []


def test_the_command_tells_a_story(tmp_path: Path) -> None:
    path = PLACE / "01-server-dies.txt"
    done = CliRunner().invoke(app, ["selftest", "--story", str(path)])
    assert done.exit_code == 0 and done.stdout == (PLACE / "01-server-dies.expected").read_text()
    done = CliRunner().invoke(app, ["selftest", str(path), "--json"])
    told = json.loads(done.stdout)
    assert told["story"] == tell(path.read_text()).lines and told["broken"] == ""


def test_the_command_fails_with_a_story_that_breaks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cable = str(PLACE / "02-cable-cut.txt")
    assert main(["selftest", "--story", cable, "--break", "no-promise"]) == ExitCode.FAILED
    assert "BROKEN: Line 20, 'run 1.9s': a and b both hold a lease." in capsys.readouterr().out
    bad = tmp_path / "bad.txt"
    bad.write_text("nodes a\nstart b\n")
    assert main(["selftest", "--story", str(bad)]) == ExitCode.USAGE
    assert "Line 2, 'start b': There is no node 'b'." in capsys.readouterr().err
    assert main(["selftest", "--story", str(tmp_path / "none.txt")]) == ExitCode.USAGE
    assert "none.txt cannot be read." in capsys.readouterr().err
    bad.write_bytes(b"\xff\xfe")
    assert main(["selftest", "--story", str(bad)]) == ExitCode.USAGE


def test_a_story_is_the_same_each_time() -> None:
    text = script("13-two-of-five")
    assert tell(text) == tell(text, Lease)
