"""What a group shows at a path that several sets have: decided by the entries alone, the same everywhere."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from crnode.replicate.merge import Side, as_shown, hidden, shown
from crproto.entries import DIRECTORY, FILE, SYMLINK, Entry, Extra

A, B, C = "a" * 32, "b" * 32, "c" * 32


def one(
    member: str,
    uuid: str,
    kind: int = FILE,
    mtime_ns: int = 0,
    content: bytes | None = None,
    extra: bytes = b"",
) -> Side:
    size = len(content) if content else 0
    return Side(member, uuid, Entry(b"p", kind, 0o644, "", 0, "", 0, mtime_ns, size, content, 0, extra))


def test_a_folder_is_shown_before_a_newer_file_and_the_file_is_told_as_hidden() -> None:
    folder, file = one("anna", A, kind=DIRECTORY, mtime_ns=1), one("ben", B, mtime_ns=9, content=b"x" * 32)
    assert shown([file, folder]) is folder and hidden([file, folder], folder) == [file]


def test_of_two_files_the_one_changed_last_is_shown_and_of_one_moment_the_last_name() -> None:
    old, new = one("zoe", A, mtime_ns=1, content=b"1" * 32), one("anna", B, mtime_ns=2, content=b"2" * 32)
    assert shown([old, new]) is new and hidden([old, new], new) == [old]
    same = one("ben", C, mtime_ns=2, content=b"3" * 32)
    assert shown([same, new]) is same and shown([new, same]) is same


def test_the_same_content_twice_and_two_folders_hide_nothing() -> None:
    twice = [one("anna", A, mtime_ns=1, content=b"1" * 32), one("ben", B, mtime_ns=2, content=b"1" * 32)]
    assert hidden(twice, shown(twice)) == []
    folders = [one("anna", A, kind=DIRECTORY), one("ben", B, kind=DIRECTORY, mtime_ns=5)]
    assert hidden(folders, shown(folders)) == []


def test_links_to_two_places_are_a_conflict() -> None:
    links = [
        one("anna", A, kind=SYMLINK, extra=Extra(target=b"here").encode()),
        one("ben", B, kind=SYMLINK, extra=Extra(target=b"there").encode()),
    ]
    assert hidden(links, shown(links)) == [links[0]]


def test_hard_link_groups_of_two_sources_with_one_number_stay_two() -> None:
    extra = Extra(link=b"0123456789", xattrs=((b"user.a", b"b"),)).encode()
    first, again = as_shown(one("anna", A, extra=extra)), as_shown(one("anna", A, extra=extra))
    other = as_shown(one("ben", B, extra=extra))
    assert first == again and first.extra != other.extra
    decoded = Extra.decode(first.extra)
    assert decoded.link not in (None, b"0123456789") and decoded.xattrs == ((b"user.a", b"b"),)
    plain = one("anna", A, extra=Extra(xattrs=((b"user.a", b"b"),)).encode())
    assert as_shown(plain) == plain.entry


drawn_sides = st.lists(
    st.tuples(
        st.sampled_from([FILE, DIRECTORY, SYMLINK]),
        st.integers(0, 3),
        st.sampled_from([b"1" * 32, b"2" * 32]),
    ),
    min_size=1,
    max_size=4,
)


@given(drawn_sides)
def test_the_order_in_which_members_are_looked_at_decides_nothing(
    drawn: list[tuple[int, int, bytes]],
) -> None:
    found = []
    for number, (kind, mtime_ns, content) in enumerate(drawn):
        extra = Extra(target=b"x").encode() if kind == SYMLINK else b""
        held = content if kind == FILE else None
        found.append(one(f"set{number}", A, kind=kind, mtime_ns=mtime_ns, content=held, extra=extra))
    answers = {shown(list(order)) for order in itertools.permutations(found)}
    assert len(answers) == 1
    winner = answers.pop()
    told = hidden(found, winner)
    for side in found:
        alike = (side.entry.kind, side.entry.content) == (winner.entry.kind, winner.entry.content)
        assert (side in told) == (not alike)
