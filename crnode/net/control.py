"""The control socket: how the command line talks to the agent of the same machine.

One JSON object a line. Request: {"call": name, "args": {...}}. Answer: any number of {"progress": {...}},
then one {"result": {...}} or {"error": {"what", "why", "hint", "exit_code"}}. One call per connection; a
client that hangs up cancels its call. Who may call: the owner of the data directory, by directory mode 0700,
socket mode 0600 and the kernel's word for the caller's user id.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crnode.errors import CrnodeError, ExitCode

Report = Callable[[dict[str, Any]], None]
Handler = Callable[[dict[str, Any], Report], Awaitable[dict[str, Any]]]

MAX_REQUEST = 1 << 20
"""Bytes of a request line: the longest is a set with a thousand patterns."""
MAX_ANSWER = 256 << 20
"""Bytes of an answer line: a version list or a tree of a large set."""
MAX_UNREAD = 8 << 20
"""Bytes of progress that a client may leave unread before it is hung up on."""
_REQUEST_TIMEOUT_S = 10.0
_SUN_PATH = 107  # bytes of a path in sockaddr_un, less its end mark

log = logging.getLogger(__name__)


class _HungUp(Exception):
    """The client of a call closed its end before the result."""


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of at most 107 bytes for the socket `path`: a longer one goes by way of its open directory."""
    if len(os.fsencode(path)) <= _SUN_PATH:
        yield str(path)
        return
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def _of_the_system(error: Exception) -> CrnodeError | None:
    """A disk that is full, or cannot be written, is no defect of the agent."""
    if not isinstance(error, OSError) or error.errno is None or isinstance(error, ConnectionError):
        return None
    about = f" about '{error.filename}'" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return CrnodeError(
        "It could not be done here.",
        f"The system says{about}: {error.strerror or error}.",
        "Make room, and repeat it." if full else "Mend that, and repeat it.",
        ExitCode.FULL if full else ExitCode.FAILED,
    )


class ControlServer:
    """Answers calls with `handlers`. A handler gets the arguments and a function to report progress with."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bind the socket, replacing one that a dead agent left. The caller holds the data lock."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISSOCK(self._path.lstat().st_mode):
                    raise CrnodeError(
                        f"The control socket '{self._path}' cannot be made.",
                        "Something else has that name.",
                        "Move it away.",
                    )
                self._path.unlink()
            with _short(self._path) as name:
                listening.bind(name)
            self._path.chmod(0o600)
            listening.listen(64)
            listening.setblocking(False)
            self._inode = self._path.lstat().st_ino
            self._server = await asyncio.start_unix_server(self._connected, sock=listening, limit=MAX_REQUEST)
        except OSError as error:
            listening.close()
            raise CrnodeError(
                f"The control socket '{self._path}' cannot be made.",
                f"The system says: {error.strerror or error}.",
                "Use a data directory on a local file system.",
            ) from error
        except BaseException:
            listening.close()
            raise

    async def close(self) -> None:
        """Stop listening, cancel the calls under way and remove the socket (unless another one took its
        place).
        """
        if self._server is None:
            return
        self._server.close()
        for call_ in tuple(self._calls):
            call_.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        self._server = None
        with contextlib.suppress(FileNotFoundError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client hung up, or the agent ends: there is nobody to tell
        finally:
            self._calls.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if (user := _caller(writer)) not in (0, os.geteuid()):
                raise CrnodeError(
                    "The call was refused.",
                    f"It came from user number {user}.",
                    "Run it as the owner of the data directory.",
                    ExitCode.REFUSED,
                )
            try:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    line = await reader.readline()
            except (ValueError, TimeoutError):  # the stream says ValueError for a line beyond its limit
                raise _not_understood("It is too long, or did not arrive in time.") from None
            if not line:
                return
            name, args = _read_request(line)
            answer = {"result": await self._run(name, args, reader, writer)}
        except CrnodeError as error:
            answer = {"error": dict(error.as_dict())}
        except _HungUp:
            return
        except Exception as error:
            log.exception("a control call failed")
            failure = _of_the_system(error) or CrnodeError(
                "The agent met a defect of its own.",
                f"{type(error).__name__}: {error}",
                "Its log has the details.",
            )
            answer = {"error": dict(failure.as_dict())}
        writer.write(_line(answer))
        await writer.drain()

    async def _run(
        self, name: str, args: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> dict[str, Any]:
        handler = self._handlers.get(name)
        if handler is None:
            raise CrnodeError(
                f"The agent does not know the call '{name}'.",
                "It is of another version than this command.",
                "Restart the agent.",
                ExitCode.USAGE,
            )

        def report(progress: dict[str, Any]) -> None:
            if writer.transport.get_write_buffer_size() > MAX_UNREAD:
                writer.transport.abort()  # seen below as a client that hung up
            elif not writer.is_closing():
                writer.write(_line({"progress": progress}))

        async def work() -> dict[str, Any]:
            return await handler(args, report)

        running = asyncio.create_task(work())
        hung_up = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait((running, hung_up), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            raise _HungUp
        finally:
            for task in (running, hung_up):
                task.cancel()
            await asyncio.gather(running, hung_up, return_exceptions=True)


def _caller(writer: asyncio.StreamWriter) -> int:
    """The user id of the process at the other end, from the kernel (SO_PEERCRED of unix(7))."""
    sock = writer.get_extra_info("socket")
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    user: int = struct.unpack("3i", packed)[1]
    return user


def _not_understood(why: str) -> CrnodeError:
    return CrnodeError("The call was not understood.", why, "", ExitCode.USAGE)


def _read_request(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise _not_understood("It is not one JSON object on one line.") from None
    if not isinstance(request, dict) or not isinstance(request.get("call"), str):
        raise _not_understood('It has no "call".')
    args = request.get("args", {})
    if not isinstance(args, dict):
        raise _not_understood('Its "args" are not an object.')
    return request["call"], args


def _line(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def call(
    path: Path,
    name: str,
    args: Mapping[str, Any] | None = None,
    on_progress: Report | None = None,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Call the agent that listens at `path` and wait for the result, without an event loop.

    `timeout_s` bounds the silence between two lines; None waits as long as the agent lives. Raises
    CrnodeError: what the agent raised, or UNREACHABLE when none answers.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(timeout_s)
        with _explained(path, timeout_s):
            with _short(path) as short:
                sock.connect(short)
            sock.sendall(_line({"call": name, "args": dict(args or {})}))
        return _read_answer(sock, path, on_progress, timeout_s)


@contextlib.contextmanager
def _explained(path: Path, timeout_s: float | None) -> Iterator[None]:
    """Turns what goes wrong on the way to the agent into a sentence."""
    try:
        yield
    except TimeoutError:
        raise CrnodeError(
            "The agent does not answer.",
            f"It said nothing for {timeout_s:.0f} s.",
            "Look at its log, or restart it.",
            ExitCode.UNREACHABLE,
        ) from None
    except PermissionError:
        raise CrnodeError(
            f"The agent of '{path.parent}' may not be called.",
            "The data directory belongs to another user.",
            "Run the command as that user (often: sudo crnode …).",
            ExitCode.REFUSED,
        ) from None
    except OSError as error:
        raise _no_agent(path, error) from error


def _read_answer(
    sock: socket.socket, path: Path, on_progress: Report | None, timeout_s: float | None
) -> dict[str, Any]:
    with sock.makefile("rb") as stream:
        while True:
            with _explained(path, timeout_s):
                line = stream.readline(MAX_ANSWER)
            if not line:
                break
            try:
                answer = json.loads(line)
            except ValueError:
                break  # cut off in the middle: the agent died
            if "progress" in answer:
                if on_progress is not None:
                    on_progress(answer["progress"])  # what goes wrong in there is not the agent's fault
            elif "error" in answer:
                raise CrnodeError.from_dict(answer["error"])
            else:
                result: dict[str, Any] = answer["result"]
                return result
    raise CrnodeError(
        "The agent ended before it answered.", "", "Start it again and look at its log.", ExitCode.UNREACHABLE
    )


def role_of(data: Path) -> str | None:
    """The role that node.json gives the node of this data directory; None when it cannot be read."""
    try:
        role = json.loads((data / "node.json").read_bytes())["role"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return role if role in ("master", "repli-master", "replica", "secondary") else None


def _no_agent(path: Path, error: OSError) -> CrnodeError:
    data = path.parent
    if not os.path.lexists(data / "node.json"):
        return CrnodeError(
            f"There is no node in '{data}'.",
            "It has no node.json.",
            "Give its data directory with --data, or make a node with 'crnode init' or 'crnode join TOKEN'.",
            ExitCode.UNREACHABLE,
        )
    return CrnodeError(
        "The agent of this node does not run.",
        f"Nobody answers at '{path}' ({error.strerror or error}).",
        f"Start it: crnode --role {role_of(data) or 'ROLE'} --data {data}",
        ExitCode.UNREACHABLE,
    )
