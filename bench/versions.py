"""`python -m bench.versions`: looking at and thinning out many versions of many files, on a target's catalog.

A catalog is filled as a target fills it: an image of all files, then versions, each with so many of the files
rewritten, deleted or added. Then everything that a person or the agent does with it is timed: a folder of an
old version, the history of a file, the differences of two versions, and the turns of the writer thread in
which versions are pruned, because in each of them every set waits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.run import percentile
from crnode.store.catalog import Catalog
from crnode.store.reader import CLEAN, NO_IMAGE, STAGING, Image, Totals
from crnode.versions.look import Looker
from crproto.entries import DIRECTORY, FILE, Entry
from crproto.ids import image_id

UUID = bytes(range(16))
PART = 5000  # entries given to the catalog at a time
TURN = 500  # rows that the agent prunes in one turn
TIMES = 200  # of each look
MOST_SECONDS = {"a folder of a version": 0.05, "the history of a file": 0.05, "a turn of pruning": 0.1}
DIFFERENCE_SECONDS = 2.0


class Model:
    """The files that the newest version has, by number, so that memory stays small."""

    def __init__(self, files: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.there = list(range(files))
        self.first = self.next = files

    def entry(self, number: int) -> Entry:
        content = self.chance.randbytes(32)
        mtime = 1_700_000_000 * 10**9 + number
        size = 1000 + number % 999
        return Entry(self.path(number), FILE, 0o644, "", 0, "", 0, mtime, size, content, 0, b"")

    @staticmethod
    def path(number: int) -> bytes:
        return b"%s/%s" % (Model.folder(number), b"file %07d" % number)

    @staticmethod
    def folder(number: int) -> bytes:
        return b"%03d/%02d" % (number // 10_000, number // 100 % 100)

    def folders(self, numbers: list[int]) -> list[Entry]:
        names = {self.folder(number) for number in numbers}
        names |= {name[:3] for name in names} | {b""}
        return [Entry(name, DIRECTORY, 0o755, "", 0, "", 0, 0, 0, None, 0, b"") for name in sorted(names)]

    def change(self, count: int) -> tuple[list[Entry], list[bytes]]:
        """Eight of ten are rewritten, one is deleted, one is added."""
        changed, removed = [], []
        for at in self.chance.sample(range(len(self.there)), count * 9 // 10):
            changed.append(self.entry(self.there[at]))
        for _ in range(count // 10):
            at = self.chance.randrange(len(self.there))
            removed.append(self.path(self.there[at]))
            self.there[at] = self.next
            self.next += 1
            changed += [*self.folders([self.there[at]]), self.entry(self.there[at])]
        gone = set(removed)
        return [entry for entry in changed if entry.path not in gone], removed


def commit(catalog: Catalog, changed: Iterator[Entry], removed: list[bytes]) -> Image:
    """One image, in one transaction."""
    newest = catalog.newest()
    with catalog.transaction():
        ordinal, totals = catalog.next_ordinal(), catalog.totals()
        totals = catalog.change(ordinal, totals, (), removed)
        part: list[Entry] = []
        for entry in changed:
            part.append(entry)
            if len(part) == PART:
                totals, part = catalog.change(ordinal, totals, part), []
        totals = catalog.change(ordinal, totals, part)
        image = _image(catalog, ordinal, newest, totals)
        catalog.complete(image, totals)
    catalog.checkpoint()
    return image


def _image(catalog: Catalog, ordinal: int, newest: Image | None, totals: Totals) -> Image:
    parent = newest.id if newest is not None and newest.id is not None else NO_IMAGE
    at_ns = (1_700_000_000 + 3600 * ordinal) * 10**9
    digest = catalog.digest(totals)
    name = image_id(parent, UUID, UUID, 0, ordinal, at_ns, digest)
    head = (ordinal, name, parent, UUID, 0, ordinal, at_ns, at_ns, digest, totals.entries, totals.bytes)
    return Image(*head, CLEAN, STAGING, 0, None, None, 0, None, None)


class Times:
    """What was timed, by name."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def of(self, name: str, work: Callable[[], object]) -> object:
        begun = time.perf_counter()
        answer = work()
        self.found.setdefault(name, []).append(time.perf_counter() - begun)
        return answer


def look(catalog: Catalog, model: Model, images: list[Image], times: Times) -> None:
    """What people ask for. Each question opens the catalog, as in the agent."""
    chance = random.Random(1)
    # Folders that came later are not in each version.
    since_first = [number for number in model.there if number < model.first]
    for _ in range(TIMES):
        ordinal, number = chance.choice(images).ordinal, chance.choice(since_first)

        def folder(ordinal: int = ordinal, number: int = number) -> object:
            with Looker(catalog.path) as looker:
                return looker.folder(model.folder(number), ordinal, b"", 1000)

        def history(number: int = number) -> object:
            with Looker(catalog.path) as looker:
                return looker.history(model.path(number))

        if times.of("a folder of a version", folder) is None:
            raise SystemExit("bench: a folder is not in the version that it was put in")
        if not times.of("the history of a file", history):
            raise SystemExit("bench: a file has no history")

    def differences(low: Image, high: Image) -> object:
        with Looker(catalog.path) as looker:
            return looker.differences(low.ordinal, high.ordinal, b"", 1000)

    for pair in itertools.pairwise(images):
        times.of("the differences of neighbours", partial(differences, *pair))
    middle = images[len(images) // 2]
    for _ in range(3):
        times.of("the differences of first and last", lambda: differences(images[0], images[-1]))
        times.of("the differences of middle and last", lambda: differences(middle, images[-1]))


def thin(catalog: Catalog, images: list[Image], times: Times) -> int:
    """Prune the oldest, one in the middle and the one before the newest, turn by turn; returns the rows."""
    rows = 0
    staying = {image.ordinal for image in images}
    for victim in (images[0], images[len(images) // 2], images[-2]):
        staying.discard(victim.ordinal)
        while True:

            def turn() -> int:
                with catalog.transaction():
                    return catalog.prune(staying, TURN)

            went = times.of("a turn of pruning", turn)
            assert isinstance(went, int)
            rows += went
            if not went:
                break
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.versions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--versions", type=int, default=64)
    parser.add_argument("--churn", type=float, default=0.01, help="share of the files changed a version")
    parser.add_argument("--place", type=Path, help="folder on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="where the JSON line goes")
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="crnode-bench-", dir=args.place))
    times = Times()
    try:
        catalog = Catalog(place / "sets" / "one.db", UUID)
        model = Model(args.files, 1)
        begun = time.perf_counter()
        first = iter([*model.folders(model.there)])
        images = [commit(catalog, _chain(first, (model.entry(n) for n in range(args.files))), [])]
        print(f"{args.files:,} files were put in within {time.perf_counter() - begun:.0f} s", flush=True)
        for _ in range(args.versions - 1):
            changed, removed = model.change(int(args.files * args.churn))
            images.append(commit(catalog, iter(changed), removed))
        size = sum(path.stat().st_size for path in catalog.path.parent.iterdir())
        took = time.perf_counter() - begun
        print(f"{args.versions} versions, {size / 2**20:.0f} MiB, {took:.0f} s", flush=True)
        look(catalog, model, images, times)
        rows = thin(catalog, images, times)
        catalog.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    said = {"files": args.files, "versions": args.versions, "churn": args.churn, "catalog_bytes": size}
    said |= {"pruned_rows": rows, "seconds": times.found}
    (args.out / "versions.jsonl").write_text(json.dumps(said) + "\n")
    part = f"{100 * args.churn:g} % changed from one to the next"
    out = Table(title=f"{args.files:,} files, {args.versions} versions, {part}")
    for column in ("what", "times", "median ms", "p99 ms", "most ms", "at most"):
        out.add_column(column, justify="left" if column == "what" else "right")
    slow = 0
    for name, values in times.found.items():
        limit = MOST_SECONDS.get(name, DIFFERENCE_SECONDS)
        slow += max(values) > limit
        shares = (percentile(values, 0.5), percentile(values, 0.99), max(values))
        out.add_row(name, str(len(values)), *(f"{1e3 * value:.1f}" for value in shares), f"{1e3 * limit:g}")
    Console(width=130).print(out)
    if slow:
        print(f"bench: {slow} of them took longer than they are to take.", file=sys.stderr)
    return 0


def _chain(*parts: Iterator[Entry]) -> Iterator[Entry]:
    for part in parts:
        yield from part


if __name__ == "__main__":
    sys.exit(main())
