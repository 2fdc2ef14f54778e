"""An agent with canned answers, and what each command asks it: for the tests of the command line."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from crnode.net.control import ControlServer, Handler, Report

TARGET = {
    "node": "box2",
    "state": "behind",
    "lag_s": 12.0,
    "behind_entries": 3,
    "behind_bytes": 4096,
    "reason": "slow\x1b",
}
PAST = {  # what is said of a path in a version besides
    "change": "changed", "what": ["content"], "kind": "file", "size": 4, "mtime_ns": 5, "source": "box2",
    "member": None, "last": 7, "node": "box2",
}  # fmt: skip
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
    "group.add": {},
    "group.members": {"group": "team", "members": ["web", "docs"]},
    "group.conflicts": {
        "group": "team",
        "targets": [{"node": "box2", "conflicts": [{"path": "a", "reason": "that of web"}], "count": 1}],
    },
    "brake": {"set": "web", "percent": 50, "targets": [{"node": "box2", "held": None}]},
    "set.keep": {"set": "web", "keep": {"box2": ["newest:2", "daily:3"]}, "goes": {"box2": 1234}, "own": []},
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
                **PAST,
            },
            {
                "number": 7,
                "time_ns": 7_000_000_000,
                "entries": 2,
                "bytes": 9,
                "quality": "clean",
                "verdict": "bad",
                **PAST,
            },
        ]
    },
    "restore": {"files": 2, "bytes": 10, "seconds": 0.1, "digest_ok": True, "to": "/tmp/x"},
    "events": {"events": [{"time_ns": 1, "kind": "join", "text": "box2 joined", "node": "box2"}]},
    "doctor": {"checks": [{"name": "disk", "ok": True, "text": "fine", "hint": ""}]},
    "scrub": {
        "objects": 4, "bytes": 100, "damaged": [], "seconds": 0.1, "looked_up": 7, "lacking": 0,
        "catalogs": [], "files": {"checked": 0, "bytes": 0, "changed": 0, "differing": []},
        "live": {
            "checked": 0, "bytes": 0, "mended": [], "changed": 0, "put_right": 0, "changed_files": [],
            "failed": [],
        },
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
                for event in body.get("events", ()):
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


def crnode(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "crnode", *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **more,
    )


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
    (
        ["set", "keep", "web", "newest:2", "daily:3", "--target", "box2"],
        "set.keep",
        {"name": "web", "keep": ["newest:2", "daily:3"], "node": "box2"},
        "1,234",
    ),
    (
        [
            *("group", "add", "team", "--member", "web", "--member", "docs", "--to", "box2:/srv/team"),
            *("--archive-to", "box3", "--keep", "daily:3"),
        ],
        "group.add",
        {
            "name": "team",
            "members": ["web", "docs"],
            "to": ["box2:/srv/team"],
            "archive_to": ["box3"],
            "adopt": False,
            "keep": ["daily:3"],
        },
        "web, docs come together at box2:/srv/team, box3",
    ),
    (
        ["group", "members", "team", "--add", "docs"],
        "group.members",
        {"name": "team", "add": ["docs"], "drop": []},
        "docs",
    ),
    (["group", "conflicts", "team"], "group.conflicts", {"name": "team"}, "that of web"),
    (["brake", "web"], "brake", {"set": "web"}, "follows"),
    (["brake", "web", "--percent", "0"], "brake", {"set": "web", "do": "percent", "percent": 0}, "follows"),
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
    (["versions", "web", "a/b"], "versions", {"set": "web", "path": "a/b"}, "changed: content"),
    (
        ["restore", "web:a/b", "--version", "3", "--to", "/tmp/x", "--node", "box2"],
        "restore",
        {"set": "web", "path": "a/b", "version": "3", "to": "/tmp/x", "node": "box2"},
        "2 files",
    ),
    (["events", "--limit", "5"], "events", {"limit": 5, "follow": False}, "box2 joined"),
    (["events", "--follow"], "events", {"limit": 50, "follow": True}, "box2 joined"),
    (["doctor"], "doctor", {}, "fine"),
    (["scrub", "web"], "scrub", {"set": "web"}, "Nothing is damaged"),
    (["gc", "--plan"], "gc", {"plan": True}, "would be"),
]
