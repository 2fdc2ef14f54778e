"""Coverage-guided fuzzing of everything that reads bytes of a peer.

Invariant: every input is understood or refused with RemoteProtocolError; nothing else, no hang, no large
allocation. Run: ``python tests/fuzz/fuzz_connection.py -max_total_time=60 [corpus directory]`` (options of
libFuzzer). The first byte of an input chooses the target and the side; the golden frames of every message are
fed in as seeds.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped, unused-ignore]

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["crproto"]):
    from crproto import codec, delta
    from crproto import messages as m
    from crproto.connection import CLIENT, SERVER, Connection
    from crproto.content import parse_recipe, walk
    from crproto.entries import Extra, entry_bytes, entry_from_wire
    from crproto.errors import RemoteProtocolError
    from crproto.frames import header
    from crproto.shapes import Message

CLUSTER = b"cluster-id-of-16"


def hello(*, authenticated: bool) -> m.Hello:
    """Ours and, for inputs that begin after the handshake, the peer's."""
    who = (CLUSTER, "n", b"i" * 16) if authenticated else (b"", "", b"")
    return m.Hello(1, 1, ("compare",), *who, 1, (0, 0, 0), 0, 8 << 20)


def frame(message: Message, payload: bytes = b"") -> bytes:
    """One frame."""
    data = m.encode(message, len(payload))
    return header(len(data), len(payload)) + data + payload


OPENED = frame(m.SetOpen(bytes(16), "web", bytes(16), 1, 1, b""))


def connection(flags: int, data: bytes) -> None:
    """Bit 0: client; 1: authenticated; 2: handshake done; 3: the peer opened a set session; 4: byte by
    byte."""
    authenticated = bool(flags & 2)
    side = Connection(
        CLIENT if flags & 1 else SERVER, hello(authenticated=authenticated), authenticated=authenticated
    )
    side.start()
    if flags & 4:
        side.receive_data(frame(hello(authenticated=authenticated)))
        if flags & 8 and authenticated:
            side.receive_data(OPENED)
            side.send(m.SetState(b"", 0, b"", b"", b"", b"", b"", ""))
    step = 1 if flags & 16 else max(1, len(data))
    for at in range(0, len(data), step):
        for event in side.receive_data(data[at : at + step]):
            cost = getattr(event, "cost", 0)
            if cost:
                side.consumed(cost)


def entry(_: int, data: bytes) -> None:
    """An entry that is accepted has one canonical form, which is accepted again."""
    value = codec.unpack(data)
    if type(value) is tuple:
        found = entry_from_wire(value)
        if entry_from_wire(codec.unpack(entry_bytes(found))) != found:
            raise AssertionError("an entry changes when it is written and read")


def extra(_: int, data: bytes) -> None:
    """Only canonical bytes are accepted."""
    if Extra.decode(data).encode() != data:
        raise AssertionError("an extra part is not canonical")


def recipe(_: int, data: bytes) -> None:
    """The same bytes for every child: levels fall, so the walk ends."""
    parse_recipe(data)
    for count, _found in enumerate(walk(bytes(32), 3, lambda name: data)):
        if count > 1000:
            break


def patch(flags: int, data: bytes) -> None:
    """The result has the announced length."""
    length = int.from_bytes(data[:2], "big") + 1
    if len(delta.decode_object(flags % 3, data[2:], length, b"base" * (flags & 63))) != length:
        raise AssertionError("an object has another length than announced")


TARGETS = (connection, connection, connection, entry, extra, recipe, patch, connection)


def test_one_input(data: bytes) -> None:
    """One input of the fuzzer."""
    if not data:
        return
    try:
        TARGETS[data[0] >> 5](data[0] & 31, data[1:])
    except RemoteProtocolError:
        pass


def seeds(folder: Path) -> None:
    """Golden bytes as inputs, for each side."""
    for vector in json.loads((ROOT / "tests/vectors/messages.json").read_text())["vectors"]:
        for flags in (2 | 4 | 8, 1 | 2 | 4, 4, 5, 2):
            (folder / f"{vector['name']}-{flags}").write_bytes(bytes([flags]) + bytes.fromhex(vector["hex"]))
    for name, target in (("entries", 3), ("recipes", 5), ("patches", 6)):
        for i, vector in enumerate(json.loads((ROOT / f"tests/vectors/{name}.json").read_text())["vectors"]):
            data = bytes.fromhex(vector.get("hex") or vector["last_object_if_small"])
            (folder / f"{name}-{i}").write_bytes(bytes([target << 5 | 2]) + data)


def main() -> None:
    """Fuzz with the seeds in a temporary folder, after whatever corpus the arguments name."""
    with tempfile.TemporaryDirectory(prefix="crproto-fuzz-") as folder:
        seeds(Path(folder))
        atheris.Setup([*sys.argv, folder], test_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
