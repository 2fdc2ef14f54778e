"""What users and scripts meet: refusals with reasons, states that mend themselves, restores, drift."""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path

import pytest
from harness import Cluster, crnode, free_port, json, rsync_difference, wait_for

from crnode.cluster.identity import create_key
from crnode.errors import CrnodeError, ExitCode


def pair(cluster: Cluster, tmp_path: Path, mode: str = "mirror", **more: object) -> tuple[Path, Path]:
    """A master and box2 with one set; (source, live tree)."""
    cluster.init()
    cluster.join("box2")
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"first")
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/live"], mode=mode, **more)
    cluster.sync("docs")
    return source, tmp_path / "live"


def state(cluster: Cluster) -> str:
    return str(cluster.master.call("status")["sets"][0]["state"])


def test_a_wrong_role_and_a_second_agent_are_refused(cluster: Cluster) -> None:
    node = cluster.init()
    second = crnode("--role", "master", "--data", str(node.data), check=False)
    assert second.returncode == ExitCode.REFUSED
    assert "in use" in second.stderr
    node.stop()
    wrong = crnode("--role", "replica", "--data", str(node.data), check=False)
    assert wrong.returncode == ExitCode.REFUSED
    assert "crnode --role master" in wrong.stderr
    assert "Traceback" not in wrong.stderr + second.stderr


def test_sets_that_cannot_be_are_refused_with_a_reason(cluster: Cluster, tmp_path: Path) -> None:
    source, live = pair(cluster, tmp_path)

    def refused(source_path: Path, to: str) -> str:
        with pytest.raises(CrnodeError) as caught:
            cluster.add_set("bad", "shop1", source_path, [to])
        assert caught.value.exit_code == ExitCode.REFUSED
        return str(caught.value)

    assert "not a directory" in refused(tmp_path / "nowhere", "box2:/srv/x")
    assert "data directory" in refused(cluster.master.data, "box2:/srv/x")
    assert "data directory" in refused(tmp_path, "box2:/srv/x")
    assert "itself" in refused(source, "shop1:/srv/x")
    # only the target can know these: the set is there, and its status says why it waits
    for name, place, words in (
        ("nested", live / "inside", "overlaps"),
        ("system", Path(f"/etc/crnode-test-{os.getpid()}"), "system's own places"),
        ("data", cluster.nodes["box2"].data / "store", "data directory"),
    ):
        other = tmp_path / name
        other.mkdir()
        if name == "nested":  # by its letters this one is refused at once
            assert "live" in refused(other, f"box2:{place}")
            continue
        cluster.add_set(name, "shop1", other, [f"box2:{place}"])

        def said(words: str = words) -> bool:
            return any(words in w for w in cluster.master.call("status")["warnings"])

        wait_for(said)
        cluster.master.call("set.remove", {"name": name})
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_bytes(b"mine")
    (tmp_path / "other").mkdir()
    cluster.add_set("other", "shop1", tmp_path / "other", [f"box2:{full}"])
    wait_for(lambda: "not empty" in cluster.master.call("status")["sets"][1]["targets"][0]["reason"])
    assert (full / "precious").read_bytes() == b"mine"
    assert not Path(f"/etc/crnode-test-{os.getpid()}").exists()


def test_local_changes_in_a_mirror_are_kept_aside_and_put_right(cluster: Cluster, tmp_path: Path) -> None:
    source, live = pair(cluster, tmp_path)
    (source / "d").mkdir()
    (source / "d" / "b").write_bytes(b"second")
    cluster.sync("docs")
    (live / "a").write_bytes(b"somebody wrote here")
    (live / "d" / "mine").write_bytes(b"and made this")
    (live / "d" / "b").unlink()
    out = cluster.sync("docs")
    assert out["targets"][0]["reason"] == "3 local changes were put right"
    assert (live / "a").read_bytes() == b"first"
    assert (live / "d" / "b").read_bytes() == b"second"
    assert not (live / "d" / "mine").exists()
    kept = {p.name: p.read_bytes() for p in (tmp_path / ".crnode-live" / "aside").rglob("*") if p.is_file()}
    assert kept == {"a": b"somebody wrote here", "mine": b"and made this"}
    assert any("changed locally" in text for text in cluster.nodes["box2"].events())


def waits_at_once(cluster: Cluster, shown: str) -> None:
    """Nothing claims that all is well while the source waits for a person, and `sync` does not wait with
    it."""
    began = time.monotonic()
    done = crnode("sync", "docs", "--data", str(cluster.master.data), check=False)
    assert done.returncode == ExitCode.BEHIND and time.monotonic() - began < 10
    assert shown in done.stderr and "crnode set rebase docs" in done.stderr, done.stderr
    answer = cluster.master.call("status")
    (target,) = answer["sets"][0]["targets"]
    assert (target["state"], target["lag_s"]) == (shown, None) and target["reason"]
    assert any("crnode set rebase docs" in warning for warning in answer["warnings"])
    checks = {c["name"]: c for c in cluster.master.call("doctor")["checks"]}
    assert "crnode set rebase docs" in checks["set docs"]["hint"]
    assert checks["set docs to box2"]["text"].startswith(shown)


def test_a_missing_root_deletes_nothing_and_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    source, live = pair(cluster, tmp_path)
    hidden = tmp_path / "hidden"
    source.rename(hidden)
    wait_for(lambda: state(cluster) == "root missing")
    source.mkdir()  # as an unmounted mount point looks: another, empty directory
    wait_for(lambda: "accept this one" in str(cluster.master.call("status")["sets"][0]["detail"]), 10)
    assert (live / "a").read_bytes() == b"first"
    waits_at_once(cluster, "source missing")
    source.rmdir()
    wait_for(lambda: "No such file" in str(cluster.master.call("status")["sets"][0]["detail"]), 10)
    waits_at_once(cluster, "source missing")
    with pytest.raises(CrnodeError, match="no folder") as caught:  # or it would be for what comes there later
        cluster.master.call("set.rebase", {"name": "docs"})
    assert caught.value.exit_code == ExitCode.REFUSED
    hidden.rename(source)
    (source / "late").write_bytes(b"late")
    wait_for(lambda: state(cluster) == "ok", 20)
    cluster.sync("docs")
    assert (live / "late").read_bytes() == b"late"


def test_an_empty_folder_that_appears_after_the_catalog_was_lost_empties_no_target(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A disk whose mount point is made with it, as in /media."""
    source, live = pair(cluster, tmp_path)
    cluster.master.stop()
    for path in (cluster.master.data / "sets").glob("*.db*"):
        path.unlink()
    source.rename(tmp_path / "disk")
    cluster.master.start()
    wait_for(lambda: state(cluster) == "root missing")
    source.mkdir()
    wait_for(lambda: "is empty" in str(cluster.master.call("status")["sets"][0]["detail"]), 10)
    done = crnode("sync", "docs", "--data", str(cluster.master.data), check=False)
    assert done.returncode == ExitCode.BEHIND and "crnode set rebase docs" in done.stderr
    assert (live / "a").read_bytes() == b"first"
    source.rmdir()
    (tmp_path / "disk").rename(source)
    (source / "late").write_bytes(b"late")
    wait_for(lambda: state(cluster) == "ok", 20)
    cluster.sync("docs")
    assert (live / "late").read_bytes() == b"late"


def test_an_emptied_set_waits_for_a_person(cluster: Cluster, tmp_path: Path) -> None:
    source, live = pair(cluster, tmp_path)
    (source / "a").unlink()
    wait_for(lambda: state(cluster) == "emptied")
    for _ in range(30):  # and it stays so, through polls and scans
        time.sleep(0.1)
        assert state(cluster) == "emptied"
    waits_at_once(cluster, "source emptied")
    assert (live / "a").read_bytes() == b"first"
    cluster.master.call("set.rebase", {"name": "docs"})
    wait_for(lambda: not (live / "a").exists())
    cluster.sync("docs")


def test_special_and_odd_files_are_reported_and_stop_nothing(cluster: Cluster, tmp_path: Path) -> None:
    source, live = pair(cluster, tmp_path)
    os.mkfifo(source / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "sock"))
    (source / ".crnode").mkdir()
    (source / ".crnode" / "x").write_bytes(b"x")
    odd = os.fsdecode(b"not-utf8-\xff\xfe")
    (source / odd).write_bytes(b"odd")
    out = cluster.sync("docs")
    assert out["ok"] and {p["path"] for p in out["left_out_examples"]} == {"pipe", "sock", ".crnode"}
    assert out["left_out"] == 3
    said = crnode("sync", "docs", "--data", str(cluster.master.data)).stdout  # and its exit code is 0
    assert "In sync, except 3 paths that the source could not take: see crnode status." in said
    assert "left out: pipe: " in said
    checks = {c["name"]: c for c in cluster.master.call("doctor")["checks"]}
    assert checks["set docs left out"]["ok"] is None and "3 paths" in checks["set docs left out"]["text"]
    assert (live / odd).read_bytes() == b"odd"
    assert not (live / ".crnode").exists()
    problems = {p["path"]: p["reason"] for p in cluster.master.call("status")["sets"][0]["problems"]}
    assert "named pipe" in problems["pipe"]
    assert "socket" in problems["sock"]
    (source / "pipe").unlink()
    cluster.sync("docs")
    assert "pipe" not in {p["path"] for p in cluster.master.call("status")["sets"][0]["problems"]}


def test_a_time_that_no_copy_can_have_is_named_as_such(cluster: Cluster, tmp_path: Path) -> None:
    source, live = pair(cluster, tmp_path)
    year_2300 = 10_413_792_000  # most file systems can have it, nanoseconds in 64 bits cannot
    (source / "odd").write_bytes(b"x")
    os.utime(source / "odd", (year_2300, year_2300))
    if (source / "odd").stat().st_mtime != year_2300:
        pytest.skip("this file system has no such times")
    cluster.sync("docs")
    (problem,) = cluster.master.call("status")["sets"][0]["problems"]
    assert problem["path"] == "odd" and "its time of last change" in problem["reason"]
    assert "b'" not in problem["reason"] and not (live / "odd").exists()


def test_patterns_have_gitignore_meaning(cluster: Cluster, tmp_path: Path) -> None:
    source, live = pair(cluster, tmp_path, exclude=["*.tmp", "/cache/", "!keep.tmp"])
    for name in ("x.tmp", "keep.tmp", "cache/c", "deep/cache/c", "deep/y.tmp"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"x")
    cluster.sync("docs")
    there = {str(p.relative_to(live)) for p in live.rglob("*") if p.is_file()}
    assert there == {"a", "keep.tmp", "deep/cache/c"}


def test_an_archive_keeps_what_was_deleted(cluster: Cluster, tmp_path: Path) -> None:
    source, live = pair(cluster, tmp_path, mode="archive")
    (source / "d").mkdir()
    (source / "d" / "b").write_bytes(b"second")
    cluster.sync("docs")
    (source / "d" / "b").unlink()
    (source / "d").rmdir()
    (source / "d").write_bytes(b"now a file")
    cluster.sync("docs")
    assert (live / "d").read_bytes() == b"now a file"
    (kept,) = [p for p in live.iterdir() if p.name.startswith("d (deleted ")]
    assert (kept / "b").read_bytes() == b"second"


def test_unknown_sets_and_nodes_are_usage_errors_that_name_the_known_ones(
    cluster: Cluster, tmp_path: Path
) -> None:
    pair(cluster, tmp_path)
    to = ("--to", str(tmp_path / "x"))
    for name, known in (("shop1", "shop1, box2"), ("box2", "shop1, box2")):
        data = ("--data", str(cluster.nodes[name].data))
        words: list[tuple[str, ...]] = [
            *(("set", "show", "ghost"), ("set", "rebase", "ghost"), ("sync", "ghost"), ("versions", "ghost")),
            *(("versions", "ghost", "a"), ("restore", "ghost", *to), ("restore", "ghost:a", *to)),
            *(("restore", "ghost", "--at", "2026-01-01", *to), ("scrub", "ghost")),
        ]
        for line in [*words, ("set", "remove", "ghost")] if name == "shop1" else words:
            done = crnode(*line, *data, check=False)
            assert done.returncode == ExitCode.USAGE, (line, done.stderr)
            assert done.stderr == "crnode: There is no set 'ghost'. Sets: docs. See: crnode set list\n"
        lines: list[tuple[str, ...]] = [("restore", "docs", "--node", "ghost", *to)]
        if name == "shop1":
            add = ("set", "add", "new", "--path", str(tmp_path / "source"))
            lines += [("node", "remove", "ghost"), (*add, "--source", "shop1", "--to", "ghost:/x")]
            lines += [(*add, "--source", "ghost", "--to", "box2")]
        for line in lines:
            done = crnode(*line, *data, check=False)
            assert done.returncode == ExitCode.USAGE, (line, done.stderr)
            assert done.stderr == f"crnode: There is no node 'ghost'. Nodes: {known}. See: crnode node list\n"


def test_versions_of_a_path_that_never_was_are_a_usage_error(cluster: Cluster, tmp_path: Path) -> None:
    source, _ = pair(cluster, tmp_path)
    data = ("--data", str(cluster.master.data))
    time.sleep(1.2)  # quiet after a point is what makes it a version
    (source / "b").write_bytes(b"second")
    (source / "a").unlink()
    cluster.sync("docs")
    for at in (data, ("--data", str(cluster.nodes["box2"].data))):
        never = crnode("versions", "docs", "never/was", *at, check=False)
        assert never.returncode == ExitCode.USAGE and "'never/was'" in never.stderr
        assert "no versions yet" not in never.stdout
        gone = json.loads(crnode("versions", "docs", "a", *at, "--json").stdout)["versions"]
        # It was deleted, and comes back from the version that had it.
        assert [(v["change"], v["size"], v["source"]) for v in gone] == [
            ("added", 5, "shop1"), ("deleted", None, "shop1"),
        ]  # fmt: skip
        crnode("restore", "docs:a", "--version", str(gone[0]["number"]), "--to", f"{at[1]}-back", *at)
        assert len(json.loads(crnode("versions", "docs", "/", *at, "--json").stdout)["versions"]) == 2
    cluster.nodes["box2"].kill()
    silent = crnode("versions", "docs", "never/was", *data, check=False)
    assert silent.returncode == ExitCode.UNREACHABLE and "box2" in silent.stderr
    assert crnode("versions", "docs", *data, check=False).returncode == ExitCode.UNREACHABLE


def test_a_set_with_an_archive_alone(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    cluster.join("box2")
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"first")
    at = ("--data", str(cluster.master.data))
    keep = f"box2:{tmp_path}/keep"
    crnode("set", "add", "docs", "--source", "shop1", "--path", str(source), "--archive-to", keep, *at)
    crnode("sync", "docs", *at)
    (source / "b").write_bytes(b"second")
    (source / "a").unlink()
    crnode("sync", "docs", *at)
    assert (tmp_path / "keep" / "a").read_bytes() == b"first"
    none = crnode("set", "add", "x", "--source", "shop1", "--path", str(source), *at, check=False)
    assert none.returncode == ExitCode.USAGE and "--archive-to" in none.stderr
    assert cluster.master.call("events", {"limit": 0})["events"] == []


def test_restores_of_old_and_new_versions_on_every_node(cluster: Cluster, tmp_path: Path) -> None:
    source, _ = pair(cluster, tmp_path)
    cluster.join("box3")  # has no part in the set
    big = os.urandom(2 << 20)
    (source / "sub").mkdir()
    (source / "sub" / "big").write_bytes(big)
    first = cluster.sync("docs")["sequence"]
    tree = tmp_path / "as-it-was"
    shutil.copytree(source, tree, symlinks=True)
    time.sleep(1.2)  # quiet after a point is what makes it a version
    (source / "a").write_bytes(b"changed")
    (source / "sub" / "big").write_bytes(big[: 1 << 20] + os.urandom(100) + big[1 << 20 :])
    cluster.sync("docs")
    numbers = {v["number"] for v in cluster.master.call("versions", {"set": "docs"})["versions"]}
    assert first in numbers
    for name in ("shop1", "box2", "box3"):
        old, new, part = (tmp_path / f"{kind}-{name}" for kind in ("old", "new", "part"))
        out = cluster.master.call("restore", {"set": "docs", "version": first, "to": str(old), "node": name})
        assert out["digest_ok"]
        cluster.master.call("restore", {"set": "docs", "to": str(new), "node": name})
        cluster.master.call(
            "restore", {"set": "docs", "path": "sub", "version": first, "to": str(part), "node": name}
        )
        assert (old / "a").read_bytes() == b"first"
        assert (old / "sub" / "big").read_bytes() == big
        assert (new / "a").read_bytes() == b"changed"
        assert [p.name for p in part.iterdir()] == ["big"]
        if os.geteuid() == 0:
            assert rsync_difference(source, new) == ""
    for args, code in (
        ({"version": 99999, "to": str(tmp_path / "x")}, ExitCode.USAGE),
        ({"path": "nothing/here", "to": str(tmp_path / "x")}, ExitCode.USAGE),
        ({"path": "../etc", "to": str(tmp_path / "x")}, ExitCode.USAGE),
        ({"path": "n" * 300, "to": str(tmp_path / "x"), "node": "box3"}, ExitCode.USAGE),
        ({"to": str(source)}, ExitCode.REFUSED),
        ({}, ExitCode.USAGE),
    ):
        with pytest.raises(CrnodeError) as caught:
            cluster.master.call("restore", {"set": "docs", **args})
        assert caught.value.exit_code == code


def test_a_first_copy_that_is_cut_goes_on_where_it_was(cluster: Cluster, tmp_path: Path) -> None:
    cluster.init()
    box2 = cluster.join("box2")
    source = tmp_path / "source"
    source.mkdir()
    size = 0
    for number in range(40):
        data = os.urandom(4 << 20)
        (source / f"f{number}").write_bytes(data)
        size += len(data)
    cluster.add_set("docs", "shop1", source, [f"box2:{tmp_path}/live"])

    def sent() -> int:
        return int(cluster.master.call("status")["sets"][0]["targets"][0]["sent_bytes"])

    wait_for(lambda: sent() > size // 4, 30, 0.005)
    box2.kill()
    before = sent()
    assert before < size, "the copy was done before the cut: this test would prove nothing"
    box2.start()
    cluster.sync("docs")
    assert sent() < size * 1.25, f"{sent()} bytes were sent for {size}"
    for number in range(40):
        assert (tmp_path / "live" / f"f{number}").read_bytes() == (source / f"f{number}").read_bytes()


def test_a_rename_costs_no_content(cluster: Cluster, tmp_path: Path) -> None:
    source, live = pair(cluster, tmp_path)
    (source / "folder").mkdir()
    (source / "folder" / "big").write_bytes(os.urandom(8 << 20))
    cluster.sync("docs")

    def sent() -> int:
        return int(cluster.master.call("status")["sets"][0]["targets"][0]["sent_bytes"])

    before = sent()
    (source / "folder").rename(source / "renamed")
    (source / "renamed" / "big").rename(source / "renamed" / "bigger")
    shutil.copy(source / "renamed" / "bigger", source / "copy")
    cluster.sync("docs")
    assert (live / "renamed" / "bigger").read_bytes() == (source / "copy").read_bytes()
    assert sent() - before < 400_000


def test_sync_says_which_target_is_missing_and_why(cluster: Cluster, tmp_path: Path) -> None:
    source, _ = pair(cluster, tmp_path)
    cluster.nodes["box2"].kill()
    (source / "b").write_bytes(b"x")
    done = crnode("sync", "docs", "--timeout", "2", "--data", str(cluster.master.data), check=False)
    assert done.returncode == ExitCode.BEHIND
    assert "box2" in done.stderr
    assert "Traceback" not in done.stderr
    cluster.nodes["box2"].start()
    assert crnode("sync", "docs", "--data", str(cluster.master.data)).returncode == 0


def test_a_removed_node_is_turned_away(cluster: Cluster, tmp_path: Path) -> None:
    pair(cluster, tmp_path)
    with pytest.raises(CrnodeError) as caught:
        cluster.master.call("node.remove", {"name": "box2"})
    assert "--lose" in str(caught.value)
    cluster.master.call("node.remove", {"name": "box2", "lose": True})
    wait_for(lambda: [n["name"] for n in cluster.master.call("node.list")["nodes"]] == ["shop1"])
    wait_for(
        lambda: any("removed" in str(n["problems"]) for n in cluster.nodes["box2"].call("node.list")["nodes"])
    )


def test_an_agent_that_cannot_listen_says_why_and_ends(cluster: Cluster, tmp_path: Path) -> None:
    node = cluster.init()
    node.stop()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for place, code, words in (
            (f"127.0.0.1:{port}", ExitCode.FAILED, "Another program listens there."),
            ("203.0.113.7:7400", ExitCode.FAILED, "This machine does not have that address."),
            ("no-such-machine.invalid:7400", ExitCode.FAILED, "No machine of that name is known here."),
            ("127.0.0.1:99999", ExitCode.USAGE, "no port number of 0 to 65535"),
            ("[::1:7400", ExitCode.USAGE, "[address]:port"),
        ):
            done = crnode("--role", "master", "--listen", place, "--data", str(node.data), check=False)
            assert (done.returncode, done.stdout) == (code, ""), done.stderr
            assert words in done.stderr and done.stderr.count("\n") == 1 and "defect" not in done.stderr
    node.start()  # and nothing of it stays


def test_broken_files_of_a_node_are_named_with_what_to_do(cluster: Cluster) -> None:
    node = cluster.init()
    node.stop()
    document = json.loads((node.data / "cluster.json").read_bytes())
    me = json.loads((node.data / "node.json").read_bytes())
    foreign = (Path(__file__).read_bytes(), b"", None)
    other = create_key()  # a whole key, but not that of the certificate
    broken: list[tuple[str, bytes | None, str]] = [
        *(("cluster.json", body, "cannot be") for body in (None, b"", b"{", b"[1]", b"{}", b"\xff")),
        ("cluster.json", json.dumps({**document, "id": "0" * 32}).encode(), "do not belong together"),
        *(("node.json", body, "node.json") for body in (None, b"", b"{", b"[]", b"{}")),
        ("node.json", json.dumps({**me, "hash_seed": "1"}).encode(), "hash_seed"),
        ("node.json", json.dumps({**me, "listen": "127.0.0.1:99999"}).encode(), "0 to 65535"),
        *(("node.pem", body, "node.pem") for body in foreign),
        *(("node.key", body, "node.key") for body in (*foreign, other)),
        *(("ca/ca.pem", body, "ca.pem") for body in foreign),
        *(("ca/ca.key", body, "ca.key") for body in (foreign[0], b"", other)),
        ("tokens.json", b"{", "tokens.json"),
    ]
    for name, body, words in broken:
        path = node.data / name
        whole = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        if body is not None:
            path.write_bytes(body)
        done = crnode("--role", "master", "--data", str(node.data), check=False, timeout=30)
        assert done.returncode in (ExitCode.FAILED, ExitCode.REFUSED), (name, body, done.stderr)
        assert words in done.stderr and done.stderr.count("\n") == 1, (name, body, done.stderr)
        assert str(node.data) in done.stderr, done.stderr
        for noise in ("Traceback", "defect", "PosixPath", "The system refused"):
            assert noise not in done.stderr, (name, body, done.stderr)
        path.unlink(missing_ok=True)
        if whole is not None:
            path.write_bytes(whole)
    for name in ("cluster.json", "node.pem", "node.key", "ca/ca.key", "tokens.json"):  # a read that fails
        path = node.data / name
        if path.exists():
            path.rename(path.with_name("away"))
        path.mkdir()
        done = crnode("--role", "master", "--data", str(node.data), check=False, timeout=30)
        assert done.returncode == ExitCode.FAILED and f"'{path}'" in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and "The system refused" not in done.stderr
        path.rmdir()
        if path.with_name("away").exists():
            path.with_name("away").rename(path)
    node.start()


def test_an_invitation_is_shown_and_withdrawn(cluster: Cluster, tmp_path: Path) -> None:
    place = ("--data", str(cluster.init().data))
    token = json.loads(crnode("invite", "box9", "--json", *place).stdout)["token"]
    assert "box9 is invited as replica until" in crnode("node", "list", *place).stdout
    assert "withdrawn" in crnode("invite", "box9", "--withdraw", *place).stdout
    assert "box9" not in crnode("node", "list", *place).stdout
    there = ("--listen", f"127.0.0.1:{free_port()}", "--data", str(tmp_path / "box9"))
    done = crnode("join", token, *there, check=False)
    assert done.returncode == ExitCode.REFUSED and "It was withdrawn" in done.stderr
    done = crnode("invite", "box9", "--withdraw", *place, check=False)
    assert done.returncode == ExitCode.USAGE and "no open invitation of 'box9'" in done.stderr
