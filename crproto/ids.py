"""Names of things: content ids, image ids, node and set names.

Ids are separated by kind. A chunk is named by BLAKE3 of its bytes, a recipe by BLAKE3 in key derivation mode
with a context of its own, so that a small file whose bytes happen to be a recipe can never be taken for one.
"""

from __future__ import annotations

import re
import struct
from typing import TypeAlias

from blake3 import blake3

from crproto.errors import LocalProtocolError
from crproto.limits import I64_MAX, I64_MIN, ID, NAME, U64

ContentId: TypeAlias = bytes  # 32 bytes
ImageId: TypeAlias = bytes  # 32 bytes
Buffer: TypeAlias = "bytes | bytearray | memoryview"

HOLE: ContentId = bytes(ID)  # stands in a recipe for a stretch without data
NO_IMAGE: ImageId = bytes(ID)  # the parent of a set's first image

RECIPE_CONTEXT = "crnode recipe v1"
IMAGE_CONTEXT = "crnode image id v1"

_NAME = re.compile(rf"[a-z0-9][a-z0-9-]{{0,{NAME - 1}}}")
_IMAGE = struct.Struct(">32s16s16sQQq32s")
_recipe_hasher = blake3(derive_key_context=RECIPE_CONTEXT)  # copied for each use: the context is hashed once
_image_hasher = blake3(derive_key_context=IMAGE_CONTEXT)


def chunk_id(data: Buffer) -> ContentId:
    """BLAKE3-256 of a chunk's bytes."""
    return blake3(data).digest()


def recipe_id(data: Buffer) -> ContentId:
    """The id of a recipe object's bytes (content.py)."""
    return _recipe_hasher.copy().update(data).digest()


def image_id(
    parent: ImageId, set_uuid: bytes, incarnation: bytes, epoch: int, sequence: int, at_ns: int, digest: bytes
) -> ImageId:
    """The id of an image: it chains the parent's, so that lineage compares ids and nothing else.

    ``parent`` is :data:`NO_IMAGE` for the first; ``at_ns`` is nanoseconds since 1970, signed.
    Raises LocalProtocolError for a value that does not fit.
    """
    if len(parent) != ID or len(set_uuid) != 16 or len(incarnation) != 16 or len(digest) != ID:
        raise LocalProtocolError(
            "an image id needs a 32-byte parent and digest and 16-byte set and incarnation"
        )
    if not (0 <= epoch <= U64 and 0 <= sequence <= U64 and I64_MIN <= at_ns <= I64_MAX):
        raise LocalProtocolError("epoch, sequence or time of an image does not fit 64 bits")
    packed = _IMAGE.pack(parent, set_uuid, incarnation, epoch, sequence, at_ns, digest)
    return _image_hasher.copy().update(packed).digest()


def is_name(name: str) -> bool:
    """Whether this may name a node or a set: lower-case letters, digits and hyphens, 1 to 63, no hyphen
    first."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """``name`` itself, or ValueError with what is allowed."""
    if not is_name(name):
        raise ValueError(
            f"{name!r} cannot be a name: use 1 to {NAME} of a-z, 0-9 and '-', starting with a letter or digit"
        )
    return name
