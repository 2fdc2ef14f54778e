"""The frame parser: however bytes arrive, and what it does with memory."""

from __future__ import annotations

import pytest

from crproto.errors import LocalProtocolError, RemoteProtocolError
from crproto.frames import FrameParser, header
from crproto.limits import STAGING_LARGE, STAGING_SMALL


def frame(message: bytes, payload: bytes = b"") -> bytes:
    return header(len(message), len(payload)) + message + payload


FRAMES = [(b"a", b""), (b"bc", b"payload"), (b"d" * 1000, bytes(300_000)), (b"e", b"x"), (b"f" * 70_000, b"")]
WIRE = b"".join(frame(*item) for item in FRAMES)


def fed(parser: FrameParser, data: bytes, size: int) -> list[tuple[bytes, memoryview]]:
    found = []
    for at in range(0, len(data), size):
        found += [(bytes(item.message), item.payload) for item in parser.receive(data[at : at + size])]
    return found


@pytest.mark.parametrize("size", [1, 2, 13, 4097, 65_536, 10**7])
def test_slices_do_not_matter_and_payloads_stay(size: int) -> None:
    parser = FrameParser()
    data = WIRE if size > 1 else WIRE[:20_000] + WIRE[-70_050:]
    if size == 1:
        data = b"".join(frame(*item) for item in FRAMES if len(item[1]) < 10)
    found = fed(parser, data + b"\0\0", size)
    # Payload views are looked at only now, after everything else was received.
    assert [(message, bytes(payload)) for message, payload in found] == [
        item for item in FRAMES if size > 1 or len(item[1]) < 10
    ]
    assert not parser.idle
    assert [bytes(item.message) for item in parser.receive(b"\0\5\0\0\0\1a")] == [b"a"]
    assert parser.idle


def test_retired_buffers_serve_again_only_when_nobody_looks() -> None:
    parser = FrameParser()
    payloads = [bytes([i]) * 500_000 for i in range(12)]
    kept = []
    for i, payload in enumerate(payloads):
        ((_, view),) = fed(parser, frame(b"m", payload), 100_000)
        if i % 3 == 0:
            kept.append((payload, view))
    assert all(view == payload for payload, view in kept)


def test_a_liar_costs_little_memory() -> None:
    parser = FrameParser()
    parser.receive(header(5, 4_000_000))
    assert len(parser.get_buffer()) <= STAGING_LARGE
    parser.receive(bytes(100_000))
    assert len(parser.get_buffer()) <= 4 * 100_008


def test_an_idle_parser_keeps_one_small_buffer() -> None:
    parser = FrameParser()
    first = parser.get_buffer()
    for _ in range(100):
        parser.receive(frame(b"m"))
    assert len(first) == STAGING_SMALL
    assert parser.get_buffer().obj is first.obj


def test_limits() -> None:
    parser = FrameParser(frame_limit=100, message_limit=10)
    parser.receive(frame(b"1234567890", bytes(86)))
    with pytest.raises(RemoteProtocolError, match="101 bytes") as caught:
        FrameParser(100, 10).receive(header(10, 87))
    assert caught.value.code == "limit"
    with pytest.raises(RemoteProtocolError, match="message of 11"):
        parser.receive(header(11, 0))
    with pytest.raises(LocalProtocolError):
        FrameParser().filled(1)
