"""An image whose transfer breaks off is gone on with from where it was; what cannot be gone on with begins
anew."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from store_samples import SET, commit, directory, file, small_store

from crnode.replicate.commit import Refusal, TargetCommit
from crnode.replicate.difference import from_catalog
from crnode.store.catalog import Catalog
from crnode.store.reader import Image
from crproto.limits import DIGEST_SCHEME
from crproto.messages import ImageBegin


class Line:
    """A source's catalog and a target, and a line between them that breaks."""

    def __init__(self, tmp_path: Path) -> None:
        self.source = Catalog(tmp_path / "source.db", SET)
        self.target = Catalog(tmp_path / "target.db", SET)
        self.store = small_store(tmp_path / "store")

    def commit(self) -> TargetCommit:
        """What takes images there, after a restart."""
        return TargetCommit(self.target, self.store, archive=False, now_ns=time.time_ns, retain_roots=set)

    def send(self, image: Image, base: Image | None, parts: int | None = None) -> int | None:
        """Send as a push does, from where the target is; None when the line broke after `parts` of it, else
        how many objects are lacking. Raises Refusal."""
        staging = self.target.staging()
        is_staged = staging is not None and staging.id == image.id
        resume = (self.target.meta("resume") or None) if is_staged else None
        assert image.id is not None
        base_id = base.id if base is not None and base.id is not None else b""
        header = ImageBegin(
            image.id, image.parent, base_id, image.incarnation, image.epoch, image.sequence, image.at_ns,
            image.digest, image.flags, image.entries, image.bytes, DIGEST_SCHEME, resume is not None,
            bool(base_id) and image.parent != base_id,
        )  # fmt: skip
        target = self.commit()
        incoming = target.begin(header)
        with self.source.reader() as reader:
            start = base.ordinal if base is not None else 0
            for number, part in enumerate(from_catalog(reader, dict, start, image.ordinal, resume)):
                if number == parts:
                    return None
                target.add(incoming, part.entries, part.removed)
        return len(target.commit(incoming))


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def test_where_another_image_was_says_nothing_of_this_one(line: Line) -> None:
    """One breaks off behind a path; the next, of which only removals came, was resumed behind that path: what
    lies before never came, and its digest was refused for ever."""
    old = [file(b"old%04d" % number, None, 0) for number in range(1000)]
    first = commit(line.source, [directory(b""), *old])
    assert line.send(first, None) == 0
    more = commit(line.source, [file(b"new%04d" % number, None, 0) for number in range(2000)])
    assert line.send(more, first, 3) is None and line.target.meta("resume")
    less = commit(line.source, [], [b"old%04d" % number for number in range(700)])
    assert line.send(less, first, 1) is None
    staging = line.target.staging()
    assert staging is not None and staging.id == less.id and not line.target.meta("resume")
    assert line.send(less, first) == 0
    newest = line.target.newest()
    assert newest is not None and newest.digest == less.digest


def test_a_transfer_that_breaks_off_goes_on(line: Line) -> None:
    first = commit(line.source, [directory(b""), *(file(b"%04d" % n, None, 0) for n in range(3000))])
    for parts in (2, 1):
        assert line.send(first, None, parts) is None
    assert line.target.meta("resume")
    assert line.send(first, None) == 0 and line.target.staging() is None


def test_what_does_not_add_up_is_dropped_and_sent_again(line: Line) -> None:
    first = commit(line.source, [directory(b""), *(file(b"%04d" % n, None, 0) for n in range(3000))])
    assert line.send(first, None, 3) is None
    with line.target.transaction():
        line.target.set_meta("resume", b"2500")  # as if what lies before had come
    with pytest.raises(Refusal) as refused:
        line.send(first, None)
    assert refused.value.code == "digest"
    line.commit().drop_staged()
    assert line.target.staging() is None and not line.target.meta("resume")
    assert line.send(first, None) == 0
