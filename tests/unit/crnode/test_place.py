"""Destinations: made once, known again, never mistaken for one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from crnode.errors import CrnodeError, ExitCode
from crnode.replicate.place import Prepared, locate, prepare, release

SET, OTHER = bytes(range(16)), bytes(range(100, 116))


def remembered(place: Path) -> Prepared:
    return locate(place, SET).prepared()


def refused(destination: Path, before: Prepared | None = None, uuid: bytes = SET) -> str:
    with pytest.raises(CrnodeError) as caught:
        prepare(destination, uuid, before)
    assert caught.value.exit_code == ExitCode.REFUSED
    return str(caught.value)


def test_a_destination_is_made_marked_and_known_again(tmp_path: Path) -> None:
    here = tmp_path / "a" / "live"
    place, as_left = prepare(here, SET)
    assert not as_left and here.is_dir()
    (here / "file").write_bytes(b"x")
    (place.temporary / "left over").write_bytes(b"x")
    again, as_left = prepare(here, SET, remembered(here))
    assert as_left and again == place
    assert list(place.temporary.iterdir()) == []
    again.check()
    assert "not empty" in refused(here, uuid=OTHER)


def test_a_removed_destination_is_made_again_where_its_mark_still_is(tmp_path: Path) -> None:
    here = tmp_path / "live"
    place, _ = prepare(here, SET)
    before = remembered(here)
    here.rmdir()
    with pytest.raises(CrnodeError, match="removed or replaced"):
        place.check()
    place, as_left = prepare(here, SET, before)
    assert not as_left
    place.check()


def test_a_directory_that_got_the_number_of_a_removed_one_is_not_taken_for_it(tmp_path: Path) -> None:
    here = tmp_path / "live"
    for _ in range(20):  # a file system hands numbers out again: often the very one that was given back
        place, _ = prepare(here, SET)
        before = remembered(here)
        here.rmdir()
        here.mkdir()
        with pytest.raises(CrnodeError, match="removed or replaced"):
            place.check()
        _, as_left = prepare(here, SET, before)
        assert not as_left


def test_a_mark_that_the_catalog_does_not_know_is_not_believed(tmp_path: Path) -> None:
    here = tmp_path / "live"
    prepare(here, SET)
    before = remembered(here)
    here.rmdir()
    prepare(here, SET, before)  # and killed before the catalog noted it
    _, as_left = prepare(here, SET, before)
    assert not as_left


def test_everything_removed_by_hand_on_the_same_file_system_is_made_again(tmp_path: Path) -> None:
    here = tmp_path / "parent" / "live"
    prepare(here, SET)
    before = remembered(here)
    (here.parent / ".crnode-live" / "set").unlink()
    here.rmdir()
    _, as_left = prepare(here, SET, before)
    assert not as_left


def test_a_bare_mount_point_is_not_taken_for_the_destination(tmp_path: Path) -> None:
    here = tmp_path / "mnt" / "copy"
    here.parent.mkdir()
    before = Prepared(str(here), "0123456789abcdef")  # as it was when the disk was mounted at mnt
    assert "not mounted" in refused(here, before)
    assert list(here.parent.iterdir()) == [], "something was made on the bare mount point"
    _, as_left = prepare(here, SET, before, adopt=True)  # a person says that the disk was replaced
    assert not as_left


def test_another_destination_of_the_same_set_is_a_new_one(tmp_path: Path) -> None:
    before = Prepared(str(tmp_path / "old"), "0123456789abcdef")
    _, as_left = prepare(tmp_path / "new", SET, before)
    assert not as_left


def test_a_replaced_directory_with_files_is_refused_until_adopted_and_nothing_of_it_is_lost(
    tmp_path: Path,
) -> None:
    here = tmp_path / "live"
    prepare(here, SET)
    before = remembered(here)
    here.rename(tmp_path / "moved away")
    here.mkdir()
    (here / "mine").write_bytes(b"mine")
    assert "replaced" in refused(here, before)
    place, as_left = prepare(here, SET, before, adopt=True)
    assert not as_left
    assert list(here.iterdir()) == []
    assert (place.aside / "before first copy" / "mine").read_bytes() == b"mine"
    (here / "mine").write_bytes(b"again")
    here.rename(tmp_path / "moved again")
    here.mkdir()
    (here / "mine").write_bytes(b"and again")
    place, _ = prepare(here, SET, before, adopt=True)
    assert (place.aside / "before first copy 2" / "mine").read_bytes() == b"and again"


def test_links_files_and_unwritable_parents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert "symbolic link" in refused(tmp_path / "link")
    (tmp_path / "file").write_bytes(b"x")
    assert "cannot be made" in refused(tmp_path / "file" / "below")
    assert "cannot be made" in refused(tmp_path / "file")


def test_release_leaves_the_files_and_what_was_set_aside(tmp_path: Path) -> None:
    here = tmp_path / "live"
    here.mkdir()
    (here / "mine").write_bytes(b"mine")
    place, _ = prepare(here, SET, adopt=True)
    (here / "theirs").write_bytes(b"x")
    release(place)
    assert (here / "theirs").exists()
    assert (place.aside / "before first copy" / "mine").exists()
    assert place.mark() is None
