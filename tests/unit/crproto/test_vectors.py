"""The golden bytes in tests/vectors: what is written here today is read by every node of tomorrow."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import crproto_samples as samples
import pytest

from crproto import delta, entries
from crproto.codec import unpack
from crproto.connection import CLIENT, Connection
from crproto.entries import Extra
from crproto.frames import FrameParser
from crproto.messages import MESSAGES, decode

VECTORS = Path(__file__).parents[2] / "vectors"


def make_vectors() -> Any:
    spec = importlib.util.spec_from_file_location("make_vectors", VECTORS / "make_vectors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored(name: str) -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text())["vectors"]
    return vectors


@pytest.mark.parametrize("name", ["ids", "recipes", "entries", "messages", "cutters", "patches", "values"])
def test_the_bytes_are_what_they_always_were(name: str) -> None:
    found = make_vectors().FILES[name]()
    assert found == stored(name)
    assert all(vector["reason"] for vector in found)


def test_every_message_has_a_vector_and_is_read_back() -> None:
    found = {}
    for vector in stored("messages"):
        (frame,) = FrameParser().receive(bytes.fromhex(vector["hex"]))
        found[vector["type"]] = (decode(frame.message, len(frame.payload)), bytes(frame.payload))
    assert {kind: value[0] for kind, value in found.items()} == {
        item.TYPE: item for item, _ in samples.MESSAGES
    }
    assert {kind: value[1] for kind, value in found.items()} == {
        item.TYPE: data for item, data in samples.MESSAGES
    }
    assert found.keys() == MESSAGES.keys()


def test_entries_are_read_back() -> None:
    vectors = stored("entries")
    for entry, vector in zip(samples.ENTRIES, vectors, strict=False):
        assert entries.entry_from_wire(unpack(bytes.fromhex(vector["hex"]))) == entry
    linked = next(vector for vector in vectors if vector["name"] == "symlink of several names")
    assert entries.entry_from_wire(unpack(bytes.fromhex(linked["hex"]))) == samples.LINKED_SYMLINK
    extra = next(vector for vector in vectors if vector["name"] == "extra")
    assert Extra.decode(bytes.fromhex(extra["hex"])).xattrs == ((b"user.a", b"1"), (b"user.b", b"2"))


def test_the_patch_makes_its_result() -> None:
    (vector,) = stored("patches")
    base, patch, result = (bytes.fromhex(vector[key]) for key in ("base", "hex", "result"))
    assert delta.apply_patch(base, patch, len(result)) == result


def test_a_connection_starts_with_the_golden_hello() -> None:
    hello = next(vector for vector in stored("messages") if vector["name"] == "Hello")
    connection = Connection(CLIENT, samples.hello("shop1"), authenticated=True)
    assert b"".join(connection.start()).hex() == hello["hex"]
