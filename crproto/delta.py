"""How one object travels or is stored: as it is, zstd, or as a patch of another object.

A patch is ``count u32 | count x (offset u32, length u32) | the bytes of these ranges``, all big-endian. The
result is the base, cut or lengthened to the new length, with the ranges written over it. The sender does not
need the base's bytes to make one. What comes out is believed only after its id was checked, by the caller.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import zstandard

from crproto.errors import LocalProtocolError, RemoteProtocolError
from crproto.ids import Buffer
from crproto.limits import PATCH_PARTS, RAW_OBJECT, ZSTD_WINDOW

RAW = 0
ZSTD = 1
PATCH = 2
CODECS = (RAW, ZSTD, PATCH)

_COUNT = struct.Struct(">I")
_RANGE = struct.Struct(">II")


def patch_size(ranges: Sequence[tuple[int, int]]) -> int:
    """Bytes that :func:`encode_patch` would write."""
    return 4 + 8 * len(ranges) + sum([length for _, length in ranges])


def encode_patch(ranges: Sequence[tuple[int, int]], data: Buffer) -> bytes:
    """A patch that carries the ``ranges`` (offset, length), ascending and apart, of the new object
    ``data``."""
    if len(ranges) > PATCH_PARTS:
        raise LocalProtocolError(f"a patch has at most {PATCH_PARTS} ranges, not {len(ranges)}")
    view = memoryview(data)
    end = 0
    parts: list[Buffer] = [_COUNT.pack(len(ranges))]
    for offset, length in ranges:
        if offset < end or length <= 0 or offset + length > len(view):
            raise LocalProtocolError(
                f"the range ({offset}, {length}) of a patch overlaps or leaves the object"
            )
        end = offset + length
        parts.append(_RANGE.pack(offset, length))
    parts += [view[offset : offset + length] for offset, length in ranges]
    return b"".join(parts)


def apply_patch(base: Buffer, payload: Buffer, raw_length: int) -> bytes:
    """The new object of ``raw_length`` bytes; RemoteProtocolError when the patch does not fit its own bounds.

    The base may be shorter or longer than the result; bytes that neither base nor patch give are refused.
    """
    if not 0 < raw_length <= RAW_OBJECT:
        raise RemoteProtocolError(f"an object of {raw_length} bytes is out of bounds", "limit")
    view = memoryview(payload)
    if len(view) < 4:
        raise RemoteProtocolError("a patch ends in its first four bytes")
    (count,) = _COUNT.unpack_from(view)
    at = 4 + 8 * count
    if count > PATCH_PARTS or at > len(view):
        raise RemoteProtocolError(f"a patch announces {count} ranges")
    old = memoryview(base)[:raw_length]
    known = len(old)
    parts: list[Buffer] = []  # slices of base and patch in turn, joined once
    end = 0
    for offset, length in _RANGE.iter_unpack(view[4:at]):
        if offset < end or length == 0 or offset + length > raw_length or at + length > len(view):
            raise RemoteProtocolError(f"the range ({offset}, {length}) of a patch is out of bounds")
        if offset > max(known, end):
            raise RemoteProtocolError("a patch leaves bytes beyond its base unset")
        parts += (old[end:offset], view[at : at + length])
        end = offset + length
        at += length
    if at != len(view):
        raise RemoteProtocolError(f"{len(view) - at} bytes follow a patch")
    if max(known, end) != raw_length:
        raise RemoteProtocolError("a patch leaves bytes beyond its base unset")
    parts.append(old[end:])
    return b"".join(parts)


def compress(data: Buffer, level: int = 1) -> bytes:
    """One zstd frame with its content size, without checksum or dictionary. Safe to call from any thread."""
    return zstandard.ZstdCompressor(level=level).compress(data)


def decompress(data: Buffer, raw_length: int) -> bytes:
    """The ``raw_length`` bytes in one zstd frame; never allocates more than they need.

    The frame must state exactly this size itself. RemoteProtocolError for anything else.
    """
    if not 0 < raw_length <= RAW_OBJECT:
        raise RemoteProtocolError(f"an object of {raw_length} bytes is out of bounds", "limit")
    try:
        # The decompressor believes the frame's own size before max_output_size: look at it first.
        stated = zstandard.get_frame_parameters(data)
        if stated.content_size != raw_length or stated.dict_id:
            raise RemoteProtocolError(
                f"a zstd frame does not state the {raw_length} bytes that were announced"
            )
        raw = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompress(
            data, max_output_size=raw_length, allow_extra_data=False
        )
    except (zstandard.ZstdError, ValueError) as error:
        raise RemoteProtocolError(f"malformed zstd frame: {error}") from None
    if len(raw) != raw_length:
        raise RemoteProtocolError(f"a zstd frame holds {len(raw)} bytes instead of {raw_length}")
    return raw


def decode_object(
    codec: int, stored: bytes | memoryview, raw_length: int, base: Buffer | None = None
) -> bytes | memoryview:
    """The object's bytes; ``stored`` itself when it travelled raw. RemoteProtocolError when it cannot be.

    ``base`` is needed for PATCH only; asking for a patch without it is our own mistake.
    """
    if codec == RAW:
        if len(stored) != raw_length or not 0 < raw_length <= RAW_OBJECT:
            raise RemoteProtocolError(f"a raw object of {len(stored)} bytes was announced with {raw_length}")
        return stored
    if codec == ZSTD:
        return decompress(stored, raw_length)
    if codec == PATCH:
        if base is None:
            raise LocalProtocolError("a patch cannot be applied without its base")
        return apply_patch(base, stored, raw_length)
    raise RemoteProtocolError(f"codec {codec} is unknown")
