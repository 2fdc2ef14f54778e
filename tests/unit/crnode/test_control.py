"""The control socket: calls, progress, errors, hang-ups, long paths, strangers' bytes."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crnode.errors import CrnodeError, ExitCode
from crnode.net.control import MAX_REQUEST, ControlServer, Handler, Report, call

Client = Callable[[Path], Any]


async def echo(args: dict[str, Any], report: Report) -> dict[str, Any]:
    return {"args": args}


async def counting(args: dict[str, Any], report: Report) -> dict[str, Any]:
    for number in range(args["to"]):
        report({"number": number})
    return {"done": True}


async def refusing(args: dict[str, Any], report: Report) -> dict[str, Any]:
    raise CrnodeError("It was refused.", "A rule says so.", "Do otherwise.", ExitCode.REFUSED)


async def broken(args: dict[str, Any], report: Report) -> dict[str, Any]:
    kinds: dict[str, Exception] = {
        "KeyError": KeyError("a defect"),
        "ValueError": ValueError("a defect"),
        "ConnectionResetError": ConnectionResetError("of a peer, not of the caller"),
    }
    raise kinds[args["kind"]]


HANDLERS: dict[str, Handler] = {"echo": echo, "count": counting, "refuse": refusing, "break": broken}


def serve(path: Path, client: Client, handlers: dict[str, Handler] | None = None) -> Any:
    """Run `client` in a thread against a server at `path`."""

    async def main() -> Any:
        server = ControlServer(path, handlers or HANDLERS)
        await server.start()
        try:
            return await asyncio.to_thread(client, path)
        finally:
            await server.close()

    return asyncio.run(main())


def test_a_call_and_its_result(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    assert serve(path, lambda at: call(at, "echo", {"a": [1, "ü"]})) == {"args": {"a": [1, "ü"]}}
    assert not path.exists()


def test_progress_comes_in_order_before_the_result(tmp_path: Path) -> None:
    seen: list[int] = []
    result = serve(
        tmp_path / "c", lambda at: call(at, "count", {"to": 1000}, lambda body: seen.append(body["number"]))
    )
    assert result == {"done": True} and seen == list(range(1000))


def test_an_error_arrives_whole(tmp_path: Path) -> None:
    with pytest.raises(CrnodeError) as caught:
        serve(tmp_path / "c", lambda at: call(at, "refuse"))
    error = caught.value
    assert (error.what, error.why, error.hint) == ("It was refused.", "A rule says so.", "Do otherwise.")
    assert error.exit_code is ExitCode.REFUSED


@pytest.mark.parametrize("kind", ["KeyError", "ValueError", "ConnectionResetError"])
def test_a_defect_of_the_agent_is_one_sentence_and_it_lives_on(tmp_path: Path, kind: str) -> None:
    def client(path: Path) -> Any:
        with pytest.raises(CrnodeError, match=kind) as caught:
            call(path, "break", {"kind": kind})
        assert caught.value.exit_code is ExitCode.FAILED
        return call(path, "echo")

    assert serve(tmp_path / "c", client) == {"args": {}}


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, ExitCode.FULL), (errno.EROFS, ExitCode.FAILED)]
)
def test_what_the_system_refuses_is_no_defect(tmp_path: Path, number: int, code: ExitCode) -> None:
    async def failing(args: dict[str, Any], report: Report) -> dict[str, Any]:
        raise OSError(number, os.strerror(number), "/srv/cluster.json")

    with pytest.raises(CrnodeError, match=r"The system says about '/srv/cluster\.json'") as caught:
        serve(tmp_path / "c", lambda at: call(at, "fail"), {"fail": failing})
    assert caught.value.exit_code is code and "defect" not in str(caught.value)


def test_an_unknown_call(tmp_path: Path) -> None:
    with pytest.raises(CrnodeError, match="does not know the call 'fly'"):
        serve(tmp_path / "c", lambda at: call(at, "fly"))


def raw(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server may have hung up on us before it read everything
        answer = b""
        try:
            while part := sock.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
        return answer


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"nonsense\n",
        b"[]\n",
        b'{"call": 5}\n',
        b'{"call": "echo", "args": []}\n',
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        b"x" * (MAX_REQUEST + 10) + b"\n",
    ],
)
def test_other_bytes_are_answered_with_an_error(tmp_path: Path, data: bytes) -> None:
    def client(path: Path) -> bytes:
        answer = raw(path, data)
        assert call(path, "echo") == {"args": {}}
        return answer

    answer = serve(tmp_path / "c", client)
    if answer:  # a line beyond the bound may also end in a reset
        assert json.loads(answer)["error"]["exit_code"] == ExitCode.USAGE
    else:
        assert len(data) > MAX_REQUEST


def test_who_hangs_up_cancels_the_call(tmp_path: Path) -> None:
    ended: list[str] = []
    started = asyncio.Event()

    async def waiting(args: dict[str, Any], report: Report) -> dict[str, Any]:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")
        return {}

    async def main() -> None:
        server = ControlServer(tmp_path / "c", {"wait": waiting})
        await server.start()
        _, writer = await asyncio.open_unix_connection(tmp_path / "c")
        writer.write(b'{"call": "wait"}\n')
        await asyncio.wait_for(started.wait(), 5)
        writer.close()
        async with asyncio.timeout(5):
            while not ended:
                await asyncio.sleep(0.01)
        await server.close()

    asyncio.run(main())
    assert ended == ["cancelled"]


def test_only_the_owner_may_open_the_socket(tmp_path: Path) -> None:
    assert serve(tmp_path / "c", lambda path: stat.S_IMODE(path.stat().st_mode)) == 0o600


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    path = deep / "control.sock"
    assert len(os.fsencode(path)) > 200
    assert serve(path, lambda at: call(at, "echo")) == {"args": {}}
    assert not path.exists()


def test_a_socket_left_by_a_dead_agent_is_replaced_but_no_file(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(CrnodeError) as caught:
        call(path, "echo")
    assert caught.value.exit_code is ExitCode.UNREACHABLE
    assert serve(path, lambda at: call(at, "echo")) == {"args": {}}
    path.write_text("precious")
    with pytest.raises(CrnodeError, match="Something else"):
        serve(path, lambda at: call(at, "echo"))
    assert path.read_text() == "precious"


def test_no_agent_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(CrnodeError) as caught:
        call(tmp_path / "control.sock", "status")
    assert "crnode init" in caught.value.hint and caught.value.exit_code is ExitCode.UNREACHABLE
    (tmp_path / "node.json").write_text('{"role": "replica"}')
    with pytest.raises(CrnodeError) as caught:
        call(tmp_path / "control.sock", "status")
    assert caught.value.hint == f"Start it: crnode --role replica --data {tmp_path}"


def test_an_agent_that_dies_or_hangs_is_said(tmp_path: Path) -> None:
    path = tmp_path / "c"

    def against(answer: bytes | None) -> CrnodeError:
        async def strange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            if answer is None:
                await reader.read()  # until the client gives up
            else:
                writer.write(answer)
            writer.close()

        async def main() -> CrnodeError:
            async with await asyncio.start_unix_server(strange, path):
                with pytest.raises(CrnodeError) as caught:
                    await asyncio.to_thread(call, path, "echo", None, None, 0.3)
                await asyncio.sleep(0.05)  # for the other side to close as well
                return caught.value

        return asyncio.run(main())

    for answer in (b"", b'{"result": {"a"'):
        error = against(answer)
        assert "ended before it answered" in error.what and error.exit_code is ExitCode.UNREACHABLE
    error = against(None)
    assert "does not answer" in error.what and error.exit_code is ExitCode.UNREACHABLE
