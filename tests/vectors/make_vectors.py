"""Computes the golden bytes beside this file. Running it rewrites them: only ever for a new format level.

A second implementation checks itself against the JSON files; tests/unit/crproto/test_vectors.py checks this
one.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "unit" / "crproto")]

from blake3 import blake3
from crproto_samples import ENTRIES, ID_A, ID_B, INCARNATION, LINKED_SYMLINK, MESSAGES, SET

from crproto import chunking, codec, delta, frames
from crproto.content import RecipeBuilder
from crproto.entries import Extra, LtHash, entry_bytes, entry_digest, image_digest, range_digest
from crproto.ids import HOLE, NO_IMAGE, chunk_id, image_id, recipe_id
from crproto.messages import encode


def noise(seed: int, size: int) -> bytes:
    """MT19937 (init_by_array with the seed), 32 bits at a time, little-endian: what Python's randbytes
    gives."""
    return random.Random(seed).randbytes(size)


def ids() -> list[dict[str, Any]]:
    """Content and image ids."""
    first = image_id(NO_IMAGE, SET, INCARNATION, 1, 1, 1_700_000_000_000_000_000, ID_A)
    return [
        {
            "name": "chunk of nothing",
            "reason": "plain BLAKE3, no context",
            "data": "",
            "hex": chunk_id(b"").hex(),
        },
        {"name": "chunk", "reason": "plain BLAKE3", "data": b"hello".hex(), "hex": chunk_id(b"hello").hex()},
        {
            "name": "recipe",
            "reason": "the same bytes as a recipe have another id: no file can pose as a recipe",
            "data": b"hello".hex(),
            "hex": recipe_id(b"hello").hex(),
        },
        {"name": "first image", "reason": "field order and widths of the image id", "hex": first.hex()},
        {
            "name": "second image",
            "reason": "the parent is chained; a time before 1970 is signed",
            "hex": image_id(first, SET, INCARNATION, 2**64 - 1, 2, -1, ID_B).hex(),
        },
    ]


def recipes() -> list[dict[str, Any]]:
    """Recipe objects of five files: (length, id) in, objects and name out."""
    cases: list[tuple[str, str, list[tuple[int, bytes]]]] = [
        ("one chunk", "named by the chunk itself, no recipe", [(5, ID_A)]),
        ("one hole", "a hole is never a name: a recipe of one item", [(1 << 40, HOLE)]),
        ("holes join", "two neighbouring holes are one item", [(5, ID_A), (7, HOLE), (9, HOLE), (5, ID_B)]),
        (
            "3,000 chunks",
            "borders at ids that end in seven zero bits, from 16 items on, and two levels",
            [(4096 + i, chunk_id(i.to_bytes(4, "big"))) for i in range(3000)],
        ),
        ("1,500 equal chunks", "no border comes: cut at 1,024 items", [(4096, ID_A)] * 1500),
    ]
    out = []
    for name, reason, items in cases:
        builder = RecipeBuilder(1)
        for length, content in items:
            builder.add(length, content)
        content, level = builder.finish()
        objects = builder.take()
        out.append(
            {
                "name": name,
                "reason": reason,
                "cutter": 1,
                "content": content.hex(),
                "level": level,
                "objects": [{"id": key.hex(), "bytes": len(data)} for key, data in objects],
                "last_object_if_small": objects[-1][1].hex() if objects and len(objects[-1][1]) < 500 else "",
            }
        )
    return out


def entries() -> list[dict[str, Any]]:
    """Canonical entries, their digests, and the digest of the image that holds them."""
    names = (
        "root directory",
        "empty file",
        "setuid, unknown owner, non-ASCII group",
        "name that is no UTF-8",
        "symlink",
    )
    out: list[dict[str, Any]] = []
    state = LtHash()
    for name, entry in zip(names, ENTRIES, strict=True):
        data = entry_bytes(entry)
        state.add(data)
        out.append(
            {
                "name": name,
                "reason": "canonical bytes: every digest depends on them",
                "hex": data.hex(),
                "digest": entry_digest(data).hex(),
            }
        )
    full = Extra(
        xattrs=((b"user.b", b"2"), (b"user.a", b"1")),
        acl=((4, 5, "", 0), (1, 7, "", 0)),
        default_acl=((2, 6, "anna", 1000),),
        fuzzy=True,
    )
    out.append(
        {
            "name": "extra",
            "reason": "keys, attributes and access lists are sorted",
            "hex": full.encode().hex(),
        }
    )
    data = entry_bytes(LINKED_SYMLINK)
    out.append(
        {
            "name": "symlink of several names",
            "reason": "a symbolic link may be one of a group of hard links",
            "hex": data.hex(),
            "digest": entry_digest(data).hex(),
        }
    )
    count, digest = range_digest([entry_digest(entry_bytes(entry)) for entry in ENTRIES])
    out.append(
        {
            "name": "range",
            "reason": "what Compared says of these entries",
            "count": count,
            "hex": digest.hex(),
        }
    )
    total = sum(entry.size for entry in ENTRIES)
    out.append(
        {
            "name": "lthash",
            "reason": "BLAKE3 of the 2,048 bytes of state",
            "hex": blake3(state.to_bytes()).hexdigest(),
        }
    )
    out.append(
        {
            "name": "image digest",
            "reason": "count and bytes are part of it",
            "set": SET.hex(),
            "count": len(ENTRIES),
            "bytes": total,
            "hex": image_digest(SET, len(ENTRIES), total, state).hex(),
        }
    )
    return out


def messages() -> list[dict[str, Any]]:
    """One frame of every message."""
    out = []
    for message, payload in MESSAGES:
        data = encode(message, len(payload))
        frame = frames.header(len(data), len(payload)) + data + payload
        out.append(
            {
                "name": type(message).__name__,
                "type": message.TYPE,
                "reason": "the whole frame",
                "hex": frame.hex(),
            }
        )
    return out


def cutters() -> list[dict[str, Any]]:
    """All borders of one 8 MiB buffer, as the BLAKE3 of the chunk lengths (u32, big-endian)."""
    data = memoryview(noise(20260101, 8 << 20))
    out = []
    for number in range(4):
        lengths = chunking.make_cutter(number).cut(data, True)
        packed = b"".join(length.to_bytes(4, "big") for length in lengths)
        out.append(
            {
                "name": f"cutter {number}",
                "reason": "other borders would make every known chunk useless",
                "data": chunk_id(data).hex(),
                "chunks": len(lengths),
                "hex": chunk_id(packed).hex(),
            }
        )
    return out


def patches() -> list[dict[str, Any]]:
    """A patch and what it makes."""
    new = b"0123XX6789tail"
    patch = delta.encode_patch([(4, 2), (10, 4)], new)
    return [
        {
            "name": "patch",
            "reason": "ranges first, then their bytes; the result is longer than the base",
            "base": b"0123456789".hex(),
            "hex": patch.hex(),
            "result": new.hex(),
        }
    ]


def values() -> list[dict[str, Any]]:
    """Canonical msgpack."""
    cases: list[Any] = [
        0,
        127,
        128,
        2**64 - 1,
        -1,
        -33,
        -(2**63),
        b"",
        b"x" * 256,
        "",
        "\u00fc",
        None,
        True,
        (1, (2,)),
    ]
    return [
        {"name": repr(case)[:40], "reason": "shortest form", "hex": codec.pack(case).hex()} for case in cases
    ]


FILES = {
    "ids": ids,
    "recipes": recipes,
    "entries": entries,
    "messages": messages,
    "cutters": cutters,
    "patches": patches,
    "values": values,
}

if __name__ == "__main__":
    for name, make in FILES.items():
        (HERE / f"{name}.json").write_text(
            json.dumps({"about": make.__doc__, "vectors": make()}, indent=1) + "\n"
        )
