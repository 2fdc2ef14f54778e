"""A plan of a restore to its place, carried out on a model of a tree, gives the version, whatever was
there."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from crnode.versions.in_place import Comparison, Plan, bare
from crproto.entries import DIRECTORY, FILE, SYMLINK, Entry, Extra, link_of
from crproto.paths import split

NAMES = (b"a", b"a-", b"b", b"c")


def entry(path: bytes, kind: int, value: int, inode: int | None) -> Entry:
    link = (inode or 0).to_bytes(10, "big") if inode is not None and kind != DIRECTORY else None
    extra = Extra(b"to %d" % value if kind == SYMLINK else None, link=link).encode()
    content = bytes([value]) * 32 if kind == FILE else None
    return Entry(path, kind, 0o644, "u", 1, "g", 1, value, value if kind == FILE else 0, content, 0, extra)


@st.composite
def trees(draw: st.DrawFn) -> dict[bytes, Entry]:
    """A tree of at most three levels, with groups of hard links."""
    tree = {b"": entry(b"", DIRECTORY, draw(st.integers(0, 1)), None)}
    inodes: dict[int, tuple[int, int]] = {}
    todo = [b""]
    while todo:
        head = todo.pop()
        for name in draw(st.sets(st.sampled_from(NAMES), max_size=3)):
            path = head + b"/" + name if head else name
            kind = draw(st.sampled_from((FILE, FILE, DIRECTORY, SYMLINK)))
            value = draw(st.integers(1, 3))
            inode = draw(st.none() | st.integers(1, 3))
            if kind == DIRECTORY:
                if path.count(b"/") < 2:
                    todo.append(path)
                    tree[path] = entry(path, kind, value, None)
                continue
            if inode is not None:
                kind, value = inodes.setdefault(inode, (kind, value))
            tree[path] = entry(path, kind, value, inode)
    return tree


def groups(tree: dict[bytes, Entry]) -> set[frozenset[bytes]]:
    by: dict[tuple[int, bytes], set[bytes]] = {}
    for path, item in tree.items():
        if (link := link_of(item)) is not None:
            by.setdefault((item.kind, link), set()).add(path)
    return {frozenset(paths) for paths in by.values() if len(paths) > 1}


def carried_out(tree: dict[bytes, Entry], plan: Plan) -> dict[bytes, Entry]:
    """What a disk would do, and refuse: no file below a file, no folder removed with something in it."""
    tree, fresh = dict(tree), 1000

    def remove(path: bytes) -> None:
        assert not any(other.startswith(path + b"/") for other in tree)
        del tree[path]

    for path in plan.in_the_way:
        remove(path)
    for folder in plan.folders:
        assert not folder.path or tree[split(folder.path)[0]].kind == DIRECTORY
        assert tree.get(folder.path, folder).kind == DIRECTORY
        tree[folder.path] = folder
    for item, others in plan.written:
        fresh += 1
        for path in (item.path, *others):
            assert tree[split(path)[0]].kind == DIRECTORY
            assert path not in tree or tree[path].kind != DIRECTORY
            inode = fresh if others else None
            tree[path] = bare(item)._replace(path=path)
            if inode is not None:
                extra = Extra(Extra.decode(item.extra).target, link=fresh.to_bytes(10, "big"))
                tree[path] = tree[path]._replace(extra=extra.encode())
    for path in plan.removed:
        remove(path)
    return tree


def planned(version: dict[bytes, Entry], now: dict[bytes, Entry], page: int) -> Plan:
    comparing = Comparison()
    wanted = list(version.values())
    for at in range(0, len(wanted), page):
        some = wanted[at : at + page]
        comparing.take(some, [now.get(item.path) for item in some])
    return comparing.plan(now)


@settings(max_examples=400, deadline=None)
@given(trees(), trees(), st.integers(1, 5))
def test_a_plan_gives_the_version(version: dict[bytes, Entry], now: dict[bytes, Entry], page: int) -> None:
    plan = planned(version, now, page)
    after = carried_out(now, plan)
    assert {path: bare(item) for path, item in after.items()} == {p: bare(i) for p, i in version.items()}
    assert groups(after) == groups(version)
    assert not planned(version, after, page)  # once is enough
    touched = set(plan.paths())
    for path, item in now.items():
        if path not in touched:
            assert after[path] == item


@settings(max_examples=100, deadline=None)
@given(trees())
def test_what_is_there_needs_no_change(version: dict[bytes, Entry]) -> None:
    assert not planned(version, version, 3)
