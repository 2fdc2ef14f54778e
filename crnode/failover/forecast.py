"""Whether a takeover would work now, and what it would cost, in sentences. Pure.

Each node says what it has and what its keeper knows; this puts it together for people, who want to know it
before they need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crnode.cluster.document import Takeover

Row = dict[str, Any]
LEASE_S = {"lan": 2.5, "wan": 10.0}
CHANGING = ("confirming", "gathering", "committing", "opening", "handing")
"""Phases in which a node holds the lease and is on its way to serving, or handing over."""
START_S = 1.0  # gathering, opening and starting services take about that


def forecast(takeover: Takeover, rows: Sequence[Row]) -> Row:
    """{"active", "changing", "ok", "says", "nodes"} from the answers of the voters: each has "node" and
    either "error" or what the node's agent and its keeper say."""
    says: list[str] = []
    there = [row for row in rows if "error" not in row]
    active = next((row["node"] for row in there if row["keeper"]["phase"] in ("active", "handing")), None)
    if active is None:  # its agent may not answer, and its keeper be heard
        answering = {row["node"] for row in there}
        holders = (str(row["keeper"]["holder"]) for row in there)
        active = next((name for name in holders if name and name not in answering), None)
    voters = _voters(takeover, there)
    majority = len(voters) // 2 + 1
    if active is None:
        says.append("No node is active.")
    elif any(row["node"] == active for row in there):
        says.append(f"{active} is active in epoch {_of(there, active)['keeper']['epoch']}.")
    else:
        says.append(f"{active} holds the lease, as another keeper hears; its agent does not answer.")
    for row in rows:
        if "error" in row:
            says.append(f"{row['node']} does not answer: {row['error']}")
    if len(voters) < 3:
        alone = f"Only {' and '.join(voters)} vote{'s' if len(voters) == 1 else ''}"
        says.append(
            f"{alone}: when one of two is gone, the other is no majority, and nothing takes over by itself."
            " Add a third node as a witness, which may hold no data: crnode invite NAME --role replica, then"
            " name it with --voter."
        )
    nodes = [_candidate(takeover, row, there, active) for row in rows if row["node"] in takeover.candidates]
    able = [one["node"] for one in nodes if one["able"] and one["node"] != active]
    left = [name for name in voters if name != active and any(row["node"] == name for row in there)]
    ok = bool(able) and len(left) >= majority
    if not there:
        says.append("No keeper of those who vote answers. Start one on each of them: crnode keeper")
    elif active is None and len(left) < majority:
        gone = [name for name in voters if name not in left]
        several = ("vote", "do") if len(gone) > 1 else ("votes", "does")
        says.append(
            f"{' and '.join(gone)} {several[0]}, and {several[1]} not answer: nothing takes over. Where they"
            " are switched off for good: crnode failover --force"
            f" --i-switched-off {' --i-switched-off '.join(gone)}"
        )
    elif active is not None and len(left) < majority:
        says.append(
            f"Without {active} {len(left)} of {len(voters)} voters are left, and {majority} are needed:"
            " nothing would take over."
        )
    for one in nodes:
        if one["node"] != active:
            says.append(one["says"])
    if ok:
        seconds = LEASE_S[takeover.network] + START_S
        when = f"If {active} fails, " if active is not None else ""
        says.append(f"{when}{' or '.join(able)} serves after about {seconds:.0f} s.")
    changing = next((row["node"] for row in there if row["keeper"]["phase"] in CHANGING), None)
    return {"active": active, "changing": changing, "ok": ok, "says": says, "nodes": nodes}


def _candidate(takeover: Takeover, row: Row, there: Sequence[Row], active: str | None) -> Row:
    name = row["node"]
    if "error" in row:
        return {"node": name, "able": False, "says": f"{name} cannot take over: it does not answer."}
    keeper = row["keeper"]
    at = next((one for one in there if one["node"] == active), None)
    why = str(row["why_not"] or keeper["why_unable"] or (keeper["hindered"] if name != active else ""))
    if not why and at is not None and name in at["keeper"]["voters"]:
        # Until it promised that epoch it judges by an earlier one, and then leaves it to who had the new one.
        opened = str(at["keeper"]["epoch"])
        if _counter(keeper["epoch"]) < _counter(opened):
            why = f"Its keeper has not promised epoch {opened} yet; after its start that takes some seconds."
    if why:
        return {"node": name, "able": False, "says": f"{name} cannot take over: {why}"}
    shown = []
    newest = {item["name"]: item for item in at["sets"]} if at is not None else {}
    for item in row["sets"]:
        text = f"version {item['version']} of {item['name']}"
        other = newest.get(item["name"])
        if other is not None and other["version"] is not None and item["version"] is not None:
            behind = (other["time_ns"] - item["time_ns"]) / 1e9
            same = other["version"] == item["version"]
            older = f", {behind:.1f} s older" if behind >= 0 else ", of another line"
            text += ", the newest" if same else older
        shown.append(text)
    what = f" with {'; '.join(shown)}" if shown else ""
    return {"node": name, "able": True, "says": f"{name} could take over{what}."}


def _voters(takeover: Takeover, there: Sequence[Row]) -> list[str]:
    """Who votes, by the newest configuration that anybody who answers knows."""
    known = [row["keeper"] for row in there if row["keeper"]["voters"]]
    newest = max(known, key=lambda keeper: (keeper["generation"], keeper["config"]), default=None)
    return list(newest["voters"]) if newest is not None else list(takeover.voters)


def _counter(epoch: str) -> tuple[int, ...]:
    return tuple(map(int, epoch.split(".")))


def _of(rows: Sequence[Row], name: str | None) -> Row:
    return next(row for row in rows if row["node"] == name)


__all__ = ["forecast"]
