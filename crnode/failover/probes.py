"""Asking a service whether it serves (level 2): its port, its pages, its database, or a command.

A probe answers '' or why not, within its time: one that hangs has failed. What speaks to a database is the
client of that database, in a process of its own: a keeper stays small, and whatever hangs there is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import ssl
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

from crnode.cluster.document import ProbeSpec

BODY_BYTES = 64 << 10  # of a page, in which a text is looked for
EXPIRY_DAYS = 14  # a certificate that ends sooner is warned of


class Probe:
    """Asks one service. `warning` is what its last answer is to be told about, '' for nothing."""

    def __init__(self, spec: ProbeSpec) -> None:
        self.spec = spec
        self.warning = ""
        self._threads = ThreadPoolExecutor(1, "probe")
        self._busy: asyncio.Future[str] | None = None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def ask(self) -> str:
        """'' when the service serves, else why not. Never raises for what the service does, nor for what
        cannot be asked."""
        try:
            return await self._ask()
        except Exception as error:  # noqa: BLE001 (a mistyped one must not end who asks)
            return f"it cannot be asked by {self.spec.kind}:{self.spec.target}: {error}"

    async def _ask(self) -> str:
        spec = self.spec
        if spec.kind == "command":
            return await self._run(["sh", "-c", spec.target])
        if spec.kind == "sql":
            return await self._run(sql_command(spec.target))
        if self._busy is not None and not self._busy.done():
            return f"it has not answered for longer than {spec.timeout_s:g} s"
        work = partial(self._tcp if spec.kind == "tcp" else self._http)
        self._busy = asyncio.get_running_loop().run_in_executor(self._threads, work)
        done, _ = await asyncio.wait([self._busy], timeout=spec.timeout_s)
        return self._busy.result() if done else f"it did not answer within {spec.timeout_s:g} s"

    def _tcp(self) -> str:
        host, _, port = self.spec.target.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=self.spec.timeout_s):
                return ""
        except (OSError, ValueError) as error:
            return f"{self.spec.target} does not answer: {error}"

    def _http(self) -> str:
        url = urllib.parse.urlsplit(self.spec.target)
        host, path = url.hostname or "", urllib.parse.urlunsplit(("", "", url.path or "/", url.query, ""))
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            # Whose certificate it is, a probe of one's own service does not ask; when it ends, it does.
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(
                host, url.port, timeout=self.spec.timeout_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, url.port, timeout=self.spec.timeout_s)
        try:
            connection.request("GET", path, headers={"User-Agent": "crnode", "Connection": "close"})
            if isinstance(connection.sock, ssl.SSLSocket):
                self.warning = _expiry(connection.sock.getpeercert(binary_form=True))
            answer = connection.getresponse()
            body = answer.read(BODY_BYTES)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return f"{self.spec.target} does not answer: {error}"
        finally:
            connection.close()
        if not 200 <= answer.status < 400:
            return f"{self.spec.target} answers {answer.status}"
        if self.spec.expect and self.spec.expect.encode() not in body:
            return f"{self.spec.target} answers without '{self.spec.expect}'"
        return ""

    async def _run(self, words: list[str]) -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            return f"'{words[0]}' cannot be run: {error.strerror or error}"
        try:
            async with asyncio.timeout(self.spec.timeout_s):
                _, said = await process.communicate()
        except TimeoutError:
            return f"'{words[0]}' did not end within {self.spec.timeout_s:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode:
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            return f"'{words[0]}' ended with {process.returncode}. {''.join(last)[:200]}".strip()
        return ""


def sql_command(url: str) -> list[str]:
    """The client that asks the database at `url` for 1, with its arguments. ValueError for a database that
    is not known."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("postgresql", "postgres"):
        return ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--command", "SELECT 1", url]
    if parts.scheme in ("mysql", "mariadb"):
        words = ["mysql", "--batch", "--skip-column-names", "--execute", "SELECT 1"]
        words += [f"--host={parts.hostname}"] if parts.hostname else []
        words += [f"--port={parts.port}"] if parts.port else []
        words += [f"--user={parts.username}"] if parts.username else []
        words += [f"--password={parts.password}"] if parts.password else []
        return [*words, parts.path.strip("/")] if parts.path.strip("/") else words
    if parts.scheme == "mssql":
        where = f"{parts.hostname},{parts.port}" if parts.port else str(parts.hostname)
        words = ["sqlcmd", "-b", "-S", where, "-Q", "SELECT 1"]
        return [*words, "-U", parts.username or "", "-P", parts.password or ""] if parts.username else words
    raise ValueError(f"'{parts.scheme}' is no database that is known: postgresql, mysql, mariadb, mssql.")


def _expiry(certificate: bytes | None) -> str:
    if not certificate:
        return ""
    from cryptography import x509  # only where there is something to look at

    ends = x509.load_der_x509_certificate(certificate).not_valid_after_utc
    days = (ends - datetime.now(UTC)).days
    return f"its certificate ends on {ends:%Y-%m-%d}" if days < EXPIRY_DAYS else ""


__all__ = ["EXPIRY_DAYS", "Probe", "sql_command"]
