"""`crnode demo`: three nodes on this machine, a working day in half a minute, every claim checked.

The nodes are real: three agents in processes of their own that talk TLS over loopback, made and asked with
the same commands that a person types. Whatever is said to be equal was read back and compared by SHA-256,
independently of crnode's own digests. All of it lives in one temporary directory, which goes at the end,
however the demo ends.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crnode.cli.common import interruptible
from crnode.cli.demo_stage import (
    Folder,
    Follower,
    Item,
    JsonShow,
    LiveShow,
    Machine,
    Show,
    crnode,
    difference,
    fingerprint,
    free_ports,
    read_folder,
)
from crnode.cli.output import size
from crnode.errors import CrnodeError, ExitCode

SET = "shop"
BIG = 16 << 20  # bytes of the catalogue, the big file of the story
GROWTH = 64 << 10  # bytes appended to it
WORK_S = 3.0  # how long people work in step 3
QUIET_S = 1.2  # a state that lasts this long is kept as a version
SYNC_S = 30.0
PRICES = "price list.csv"
CATALOGUE = "catalogue.bin"


def run(json: bool, keep: bool) -> int:
    """Play the demo. 0 when every check held, 1 when one did not; CrnodeError when it could not go on."""
    begun = time.monotonic()
    show = JsonShow() if json else LiveShow() if sys.stdout.isatty() else Show()
    ports = free_ports(3)
    top = Path(tempfile.mkdtemp(prefix="crnode-demo-"))
    demo = Demo(show, top, ports)
    ended = "The demo was interrupted."
    ok = False
    try:
        with interruptible(), show:
            demo.play()
        ok = not show.failed
        held = show.checks - len(show.failed)
        ended = (
            f"All {show.checks} checks held."
            if ok
            else f"{held} of {show.checks} checks held, these did not: {' '.join(show.failed)}"
        )
    except CrnodeError as error:
        ended = f"The demo could not go on: {error.what}"
        raise
    finally:
        with _undisturbed():
            demo.end()
            if not keep:
                shutil.rmtree(top, ignore_errors=True)
            fate = _kept(demo) if keep else "The three nodes were stopped and their directory is gone."
            seconds = time.monotonic() - begun
            show.done(ok, f"{ended} {fate} It took {seconds:.0f} s.", seconds)
    return int(ExitCode.OK if ok else ExitCode.FAILED)


def _kept(demo: Demo) -> str:
    starts = ", ".join(f"crnode --role {m.role} --data {m.data}" for m in demo.machines)
    return f"Everything lies in {demo.top}; the nodes were stopped. To start them again: {starts}."


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not interrupt the cleaning up, which takes a few seconds at most."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Demo:
    """The story. `play` tells it, `end` stops what it started."""

    def __init__(self, show: Show, top: Path, ports: list[int]) -> None:
        self.show = show
        self.top = top
        roles = (("shop1", "master"), ("box2", "replica"), ("box3", "replica"))
        self.machines = [
            Machine(name, role, top, port) for (name, role), port in zip(roles, ports, strict=True)
        ]
        self.shop1, self.box2, self.box3 = self.machines
        self.folder = top / "shop1-files"
        self.mirror = top / "box2-mirror"
        self.archive = top / "box3-archive"
        self.follower = Follower(self.shop1, show.status)
        self.gone: dict[str, Item] = {}  # what the archive must still have although the source has not
        self.random = random.Random(7)

    def end(self) -> None:
        """Stop the agents: nothing of the demo runs afterwards."""
        self.follower.stop()
        for machine in reversed(self.machines):
            machine.stop()

    def play(self) -> None:
        """All steps in order."""
        self._cluster()
        self._protect()
        self._work()
        self._rename()
        self._grow()
        self._delete()
        self._power_cut()
        self._bring_back()
        self._compare()

    # -- the steps

    def _cluster(self) -> None:
        self.show.step(
            "Three machines become a cluster",
            "shop1 is the main machine, box2 and box3 keep copies. Here all three run on this computer.",
        )
        where = f"--listen {self.shop1.address} --advertise {self.shop1.address}".split()
        self._run(
            self.shop1, "init", "--name", "shop1", "--cluster", "demo", *where, shown="init --name shop1"
        )
        self.shop1.start()
        self.follower.start()
        for machine in (self.box2, self.box3):
            words = ("invite", machine.name, "--role", machine.role)
            token = str(self._run(self.shop1, *words)["token"])
            where = f"--listen {machine.address} --advertise {machine.address}".split()
            self._run(machine, "join", token, *where, shown=f"join {token[:16]}…")
            machine.start()
        up = self._wait(lambda: all(node["state"] in ("self", "up") for node in self._status()["nodes"]))
        self.show.check("The three machines know each other and are connected, encrypted both ways.", up)

    def _protect(self) -> None:
        self._make_files()
        total = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        self.show.step(
            "The shop's folder is protected",
            f"It holds {len(list(self.folder.rglob('*')))} files and folders, {size(total)}. box2 gets a "
            "mirror: an exact copy. box3 gets an archive: what was there once stays there.",
        )
        self._run(
            self.shop1,
            *("set", "add", SET, "--source", "shop1", "--path", str(self.folder)),
            *("--to", f"box2:{self.mirror}", "--archive-to", f"box3:{self.archive}"),
            shown=f"set add {SET} --source shop1 --path … --to box2:… --archive-to box3:…",
        )
        begun = time.monotonic()
        self._sync()
        self.show.say(f"The first copy took {time.monotonic() - begun:.1f} s.")
        self._check_mirror("Both copies are complete and equal to the original, file by file.")
        self._check_archive("The archive on box3 is complete too.")

    def _work(self) -> None:
        self.show.step(
            "People work, and every change travels at once",
            f"For {WORK_S:.0f} s letters are written and the price list is changed.",
        )
        took: list[float] = []
        end = time.monotonic() + WORK_S
        while time.monotonic() < end:
            name = f"letters/letter {len(took):03}.txt"
            text = f"Dear customer {len(took)},\n" + "your order has left our house today.\n" * 40
            (self.folder / name).write_text(text)
            saved = time.monotonic()
            there = self.mirror / name
            if self._wait(lambda there=there, text=text: _holds(there, text), 10, 0.001):  # type: ignore[misc]
                took.append(time.monotonic() - saved)
            if len(took) % 10 == 0:
                with (self.folder / PRICES).open("a") as prices:
                    prices.write(f"{9000 + len(took)};new part;12.50\n")
            time.sleep(0.05)
        middle = statistics.median(took) if took else 99.0
        self.show.check(
            f"{len(took)} letters were saved; the copy of one was complete on box2 after "
            f"{middle * 1000:.0f} ms (the middle one of them).",
            len(took) > 5 and middle < 5,
        )
        self._sync()
        self._check_mirror("After the work both sides are equal again.")

    def _rename(self) -> None:
        self.show.step(
            "A folder is renamed",
            f"It holds the catalogue of {size(BIG)}. Its content is the same, so it need not be sent again.",
        )
        self._remember("catalogue 2025")
        before = self._sent()
        (self.folder / "catalogue 2025").rename(self.folder / "catalogue 2026")
        self._sync()
        sent = self._sent() - before
        self.show.check(
            f"The rename cost {size(sent)} on the line instead of {size(BIG)}.", sent < BIG // 100
        )
        self._check_mirror("The mirror shows the new name, with the same content.")

    def _grow(self) -> None:
        self.show.step(
            "A big file grows, and a few bytes in its middle change",
            f"{size(GROWTH)} are added to the catalogue of {size(BIG)}, and 100 bytes are changed.",
        )
        before = self._sent()
        with (self.folder / "catalogue 2026" / CATALOGUE).open("r+b") as file:
            file.seek(BIG // 2)
            file.write(self.random.randbytes(100))
            file.seek(0, os.SEEK_END)
            file.write(self.random.randbytes(GROWTH))
        self._sync()
        sent = self._sent() - before
        self.show.check(
            f"{size(sent)} travelled for it, not the whole {size(BIG + GROWTH)}.", GROWTH <= sent < BIG // 20
        )
        self._check_mirror("The file is equal at both ends, byte by byte.")

    def _delete(self) -> None:
        self.show.step(
            "A letter is deleted", "The mirror on box2 follows; the archive on box3 keeps what it received."
        )
        name = "letters/letter 003.txt"
        self._remember(name)
        (self.folder / name).unlink()
        self._sync()
        self.show.check("The letter is gone from the mirror.", not (self.mirror / name).exists())
        self.show.check("The letter is still in the archive.", (self.archive / name).exists())
        self._check_archive(
            "The archive has all that is and all that was: the letter and the old folder's name."
        )

    def _power_cut(self) -> None:
        self.show.step(
            "box2 loses its power while it receives",
            "Its program is killed in the middle of a big new file. Work at the shop goes on meanwhile.",
        )
        (self.folder / "photos.bin").write_bytes(self.random.randbytes(BIG))
        time.sleep(0.06)
        self.box2.kill()
        for number in range(5):
            (self.folder / "letters" / f"while box2 was off {number}.txt").write_text("An order.\n" * 50)
        noticed = self._wait(lambda: self._target("box2")["state"] != "in sync")
        served = self._wait(lambda: (self.archive / "letters" / "while box2 was off 4.txt").exists())
        self.show.check("shop1 notices and says so, and box3 is served all the same.", noticed and served)
        time.sleep(1.0)
        lag = self._target("box2").get("lag_s") or 0.0
        self.show.say(
            f"box2 is {lag:.1f} s behind. This lag is what would be missing if shop1 burned down now."
        )
        self.box2.start()
        begun = time.monotonic()
        self._sync()
        self.show.say(
            f"box2 is back and caught up by itself, {time.monotonic() - begun:.1f} s after it had started."
        )
        self._check_mirror("Nothing was lost and nothing is half there: the mirror equals the original.")

    def _bring_back(self) -> None:
        self.show.step(
            "Somebody spoils the price list; an earlier version brings it back",
            "Versions are kept on the copies, up to 64. Any of them can be taken out.",
        )
        good = (self.folder / PRICES).read_bytes()
        then = read_folder(self.folder)
        number = int(self._sync()["sequence"])
        time.sleep(QUIET_S)
        (self.folder / PRICES).write_text("sorry, I saved over it\n")
        spoiled = int(self._sync()["sequence"])
        found: list[dict[str, Any]] = self._run(self.shop1, "versions", SET, PRICES)["versions"]
        earlier = [int(item["number"]) for item in found if int(item["number"]) < spoiled]
        if not self.show.check(
            f"{len(found)} versions of the price list are listed, earlier ones too.", bool(earlier)
        ):
            return
        chosen = max(earlier)
        out = self.top / "restored"
        words = ("restore", f"{SET}:{PRICES}", "--version", str(chosen), "--to", str(out))
        self._run(self.shop1, *words, shown=f"restore '{SET}:{PRICES}' --version {chosen} --to …")
        back = out / PRICES
        same = back.is_file() and back.read_bytes() == good
        self.show.check(f"Version {chosen} of the price list is the right one, byte by byte.", same)
        whole = self.top / "restored-all"
        words = ("restore", SET, "--version", str(number), "--to", str(whole))
        self._run(self.shop1, *words, shown=f"restore {SET} --version {number} --to …")
        wrong = difference(then, read_folder(whole))
        self.show.check(
            f"The whole folder as it was then comes back as well: {len(then)} files and folders.",
            not wrong,
            wrong,
        )
        if same:
            shutil.copy2(back, self.folder / PRICES)
        self._sync()
        self._check_mirror("The price list was put back in its place, and the mirror has it already.")

    def _compare(self) -> None:
        self.show.step(
            "Everything is compared once more",
            "First by SHA-256 over all files, read from the disk just now; then by crnode's own digests.",
        )
        self._sync()
        self._check_mirror("The mirror on box2 equals the original in every name, content, mode and time.")
        self._check_archive("The archive on box3 equals it too, and has what was deleted besides.")
        item = self._status()["sets"][0]
        digests = {str(item["digest"]), *(str(target["digest"]) for target in item["targets"])}
        self.show.check(
            f"The three nodes name the same image digest: {item['digest'][:16]}…",
            len(digests) == 1,
            str(digests),
        )
        behind = [target["node"] for target in item["targets"] if target["state"] != "in sync"]
        self.show.check("Status says that both copies are in sync.", not behind, str(item["targets"]))
        problems = [problem for target in item["targets"] for problem in target["problems"]] + item[
            "problems"
        ]
        self.show.check("No path is reported as a problem.", not problems, str(problems))

    # -- asking and checking

    def _make_files(self) -> None:
        self.folder.mkdir()
        (self.folder / "letters").mkdir(mode=0o750)
        for number in range(150):
            (self.folder / "letters" / f"order {number:03}.txt").write_text(
                f"Order {number}\n" * (number + 1)
            )
        (self.folder / PRICES).write_text("".join(f"{n};part {n};{n % 90}.50\n" for n in range(8000)))
        (self.folder / PRICES).chmod(0o640)
        (self.folder / "newest order.txt").symlink_to("letters/order 149.txt")
        (self.folder / "Größe & Maß.txt").write_text("Names are kept as they are.\n")
        (self.folder / "catalogue 2025").mkdir()
        (self.folder / "catalogue 2025" / CATALOGUE).write_bytes(self.random.randbytes(BIG))

    def _run(self, machine: Machine, *words: str, shown: str | None = None) -> dict[str, Any]:
        self.show.command(machine.name, shown or " ".join(words))
        return crnode(*words, node=machine.data)

    def _status(self) -> dict[str, Any]:
        return self.shop1.ask("status")

    def _target(self, name: str) -> dict[str, Any]:
        targets: list[dict[str, Any]] = self._status()["sets"][0]["targets"]
        return next(target for target in targets if target["node"] == name)

    def _sent(self) -> int:
        """Bytes that went to box2 so far."""
        return int(self._target("box2")["sent_bytes"] or 0)

    def _sync(self) -> dict[str, Any]:
        return self._run(
            self.shop1, "sync", SET, "--timeout", f"{SYNC_S:.0f}", shown=f"sync {SET}"
        )  # waits until all have acknowledged and show it

    def _wait(self, what: Callable[[], bool], seconds: float = 15.0, step: float = 0.05) -> bool:
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                return False
            time.sleep(step)
        return True

    def _remember(self, name: str) -> None:
        """The archive must go on having `name`, and what is in it, after the source has not."""
        inside = {
            key: item
            for key, item in read_folder(self.folder).items()
            if key == name or key.startswith(f"{name}/")
        }
        self.gone |= inside

    def _check_mirror(self, text: str) -> None:
        here, there = read_folder(self.folder), read_folder(self.mirror)
        wrong = difference(here, there)
        self.show.check(f"{text} ({_amount(here)}, SHA-256 {fingerprint(here)})", not wrong, wrong)

    def _check_archive(self, text: str) -> None:
        expected = {**self.gone, **read_folder(self.folder)}
        wrong = difference(expected, read_folder(self.archive))
        self.show.check(f"{text} ({_amount(expected)})", not wrong, wrong)


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def _amount(folder: Folder) -> str:
    files = sum(1 for item in folder.values() if item.kind == "file")
    return f"{files} files, {len(folder) - files} folders and links"
