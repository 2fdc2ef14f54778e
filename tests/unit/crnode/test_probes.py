"""What a probe says of a service, what its answers mean, and what a load balancer is told."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from crnode.cluster.document import ProbeSpec
from crnode.failover.active import answer
from crnode.failover.health import UNSETTLED, Health, Judge
from crnode.failover.probes import Probe, sql_command


def told(judge: Judge, answers: str) -> list[str]:
    """What the judge says after each answer: + is a success."""
    return [judge.note(one == "+").value for one in answers]


def test_failures_in_a_row_and_successes_in_a_row() -> None:
    judge = Judge(rise=2, fall=3)
    assert told(judge, "+") == ["starting"]
    assert told(judge, "+--") == ["up", "up", "up"]
    assert told(judge, "+---") == ["up", "up", "up", "down"]
    assert told(judge, "-+-+-") == ["down"] * 5
    assert told(judge, "++") == ["down", "up"]
    judge.restart()
    assert judge.health is Health.STARTING


def test_one_that_never_settles_is_unsure_and_never_down() -> None:
    judge = Judge(rise=3, fall=3)
    told(judge, "+++")
    said = told(judge, "-+" * UNSETTLED)
    assert said[-1] == "unsure" and "down" not in said
    assert told(judge, "-" * 3)[-1] == "down"  # but when it is, it is
    assert told(judge, "+" * 3)[-1] == "up"


def test_a_start_takes_its_time() -> None:
    judge = Judge(rise=1, fall=1, grace=2)
    assert told(judge, "--") == ["starting"] * 2
    assert told(judge, "-") == ["down"]


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = int(self.path.rpartition("/")[2] or 200)
        if status == 999:
            time.sleep(8)
        self.send_response(min(status, 599))
        self.end_headers()
        self.wfile.write(b"the shop is open")

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(context: ssl.SSLContext | None = None) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def ask(kind: str, target: str, **more: Any) -> tuple[str, str]:
    probe = Probe(ProbeSpec.model_validate({"kind": kind, "target": target, "timeout_s": 5, **more}))
    try:
        return asyncio.run(probe.ask()), probe.warning
    finally:
        probe.close()


def test_pages_and_ports() -> None:
    with served() as port:
        url = f"http://127.0.0.1:{port}"
        assert ask("http", f"{url}/")[0] == ""
        assert ask("http", f"{url}/", expect="shop is open")[0] == ""
        assert "without 'closed'" in ask("http", f"{url}/", expect="closed")[0]
        assert "answers 503" in ask("http", f"{url}/503")[0]
        begun = time.monotonic()
        why = ask("http", f"{url}/999", timeout_s=0.5)[0]  # whichever of the two clocks is first
        assert "did not answer within 0.5 s" in why or "timed out" in why
        assert time.monotonic() - begun < 7
        assert ask("tcp", f"127.0.0.1:{port}")[0] == ""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert "does not answer" in ask("tcp", f"127.0.0.1:{free.getsockname()[1]}")[0]
        assert "does not answer" in ask("http", f"http://127.0.0.1:{free.getsockname()[1]}/")[0]


def _certificate(place: Path, days: int) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shop")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days)).sign(key, hashes.SHA256())
    )  # fmt: skip
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    (place / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    (place / "crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "crt", place / "key")
    return context


@pytest.mark.parametrize(("days", "warned"), [(5, True), (300, False)])
def test_a_certificate_that_ends_soon_is_warned_of(tmp_path: Path, days: int, warned: bool) -> None:
    with served(_certificate(tmp_path, days)) as port:
        why, warning = ask("http", f"https://127.0.0.1:{port}/", timeout_s=5)
    assert why == "" and ("its certificate ends" in warning) == warned


def test_commands() -> None:
    assert ask("command", "true")[0] == ""
    assert ask("command", "echo no room >&2; exit 3")[0] == "'sh' ended with 3. no room"
    begun = time.monotonic()
    assert "did not end within" in ask("command", "sleep 30", timeout_s=0.5)[0]
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(("kind", "target"), [("sql", "mysql://db:33o6/"), ("http", "http://my host/")])
def test_one_that_cannot_be_asked_is_answered(kind: str, target: str) -> None:
    """Whatever a document let through: it ended the keeper of each node that became active."""
    spec = ProbeSpec(kind="tcp", target="x:1").model_copy(update={"kind": kind, "target": target})
    probe = Probe(spec)
    assert "it cannot be asked by" in asyncio.run(probe.ask())
    probe.close()


def test_databases_are_asked_by_their_own_clients() -> None:
    assert sql_command("postgresql://shop@db/orders")[0] == "psql"
    words = sql_command("mysql://root:pw@127.0.0.1:3306/shop")
    assert words[0] == "mysql" and words[-1] == "shop" and "--port=3306" in words
    assert sql_command("mssql://sa:pw@box:1433")[:4] == ["sqlcmd", "-b", "-S", "box,1433"]
    with pytest.raises(ValueError, match="no database that is known"):
        sql_command("oracle://x")


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("tcp", "nowhere"), ("http", "ftp://x"), ("sql", "oracle://x"), ("smell", "x"),
        ("sql", "mysql://db:33o6/"), ("http", "http://my host/"), ("http", "http://x:8o/"),
        ("command", "true\0"),
    ],
)
def test_probes_that_make_no_sense_are_refused(kind: str, target: str) -> None:
    with pytest.raises(ValidationError):
        ProbeSpec.model_validate({"kind": kind, "target": target})


@pytest.mark.parametrize(
    ("request_", "left", "status"),
    [
        ("GET /active HTTP/1.1", 1.5, 200),
        ("GET /active HTTP/1.1", 0.9, 503),
        ("GET /active?interval=2 HTTP/1.1", 1.5, 503),
        ("GET /active?interval=0.5 HTTP/1.1", 0.9, 200),
        ("GET /active?interval=-1 HTTP/1.1", 0.0, 503),
        ("GET /active?interval=nan HTTP/1.1", 9.0, 503),
        ("GET /active?interval=x HTTP/1.1", 9.0, 400),
        ("HEAD /active HTTP/1.1", 9.0, 200),
        ("POST /active HTTP/1.1", 9.0, 405),
        ("GET /other HTTP/1.1", 9.0, 404),
    ],
)
def test_what_a_load_balancer_is_told(request_: str, left: float, status: int) -> None:
    said = answer(f"{request_}\r\nHost: x\r\n\r\n".encode(), left)
    assert said.split(b" ")[1] == b"%d" % status
    assert b"Cache-Control: no-store" in said
    head, _, body = said.partition(b"\r\n\r\n")
    assert (body == b"") == request_.startswith(("HEAD", "POST", "GET /other"))
