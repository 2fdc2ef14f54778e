"""Frames: ``length u32 | message length u32 | message | payload``, big-endian; length counts all that follows
it.

The parser owns its buffers, so that a transport reads straight into them and payloads are handed on as views.
A buffer from which a payload was handed out is not written again while anybody holds a view of it. A large
frame gets a buffer of its own size, but never more than a few times what has really arrived.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from crproto.errors import LocalProtocolError, RemoteProtocolError
from crproto.ids import Buffer
from crproto.limits import BUFFER_GROWTH, FRAME, MESSAGE, RETIRED, STAGING_LARGE, STAGING_SMALL

HEADER = struct.Struct(">II")
_ROOM = 4096  # bytes a read should at least find room for when nothing is known of the next frame


class Frame(NamedTuple):
    """One whole frame. ``message`` is valid until the parser is fed again, ``payload`` while it is
    referenced."""

    message: memoryview
    payload: memoryview


def header(message_length: int, payload_length: int) -> bytes:
    """The eight bytes before a message."""
    return HEADER.pack(4 + message_length + payload_length, message_length)


class FrameParser:
    """Bytes in, frames out. The two limits (bytes) may be changed between frames."""

    def __init__(self, frame_limit: int = FRAME, message_limit: int = MESSAGE) -> None:
        self.frame_limit = frame_limit
        self.message_limit = message_limit
        self._buffer = bytearray(0)
        self._view = memoryview(self._buffer)  # writable, for the transport
        self._out = self._view.toreadonly()  # what is handed out
        self._start = 0  # of the first frame that is not complete
        self._end = 0  # of what was received
        self._total = 0  # bytes of that frame with its length word, 0 while its header is not complete
        self._pinned = False  # a payload view of this buffer was handed out
        self._retired: list[bytearray] = []  # used buffers that may serve again
        self._large = False  # the last frame would not have fitted a small buffer

    def get_buffer(self, hint: int = -1) -> memoryview:
        """Room for at least one byte. ``hint`` is a wish in bytes; buffers are sized by what frames need."""
        pending = self._end - self._start
        if not pending and not self._pinned and len(self._buffer) >= _ROOM:
            self._start = self._end = 0
        room = len(self._buffer) - self._end
        if self._total:
            # A frame that cannot end in this buffer moves at once; one that has the buffer to itself fills it
            # first.
            if room < self._total - pending and (self._start or not room):
                self._renew(pending)
        elif room < _ROOM:
            self._renew(pending)
        return self._view[self._end :]

    def _renew(self, pending: int) -> None:
        """A fresh buffer that starts with the incomplete frame."""
        size = STAGING_LARGE if self._large else STAGING_SMALL
        if self._total:
            size = max(size, min(self._total, max(STAGING_LARGE, pending * BUFFER_GROWTH)))
        fresh = self._take(size)
        view = memoryview(fresh)  # assigning to the bytearray itself would make a copy in between
        view[:pending] = self._view[self._start : self._end]
        if self._large and sum(map(len, self._retired)) + len(self._buffer) <= RETIRED:
            self._retired.append(self._buffer)
        elif not self._large:
            self._retired.clear()
        self._buffer = fresh
        self._view = view
        self._out = self._view.toreadonly()
        self._start, self._end = 0, pending
        self._pinned = False

    def _take(self, size: int) -> bytearray:
        """A retired buffer that nobody looks at any more, or a new one.

        Asking the system for fresh memory for each megabyte can cost ten times as much as filling it.
        """
        for index, buffer in enumerate(self._retired):
            if size <= len(buffer) <= 4 * size:
                try:
                    buffer.append(0)  # a bytearray refuses to change its size while a view of it lives
                except BufferError:
                    continue
                buffer.pop()
                del self._retired[index]
                return buffer
        return bytearray(-(-size // STAGING_SMALL) * STAGING_SMALL)

    def filled(self, count: int) -> None:
        """The transport wrote ``count`` bytes to the start of what get_buffer returned; then call
        next_frame."""
        if not 0 <= count <= len(self._buffer) - self._end:
            raise LocalProtocolError(
                f"{count} bytes were written to a buffer of {len(self._buffer) - self._end}"
            )
        self._end += count

    def next_frame(self) -> Frame | None:
        """The next complete frame; None until more bytes come. RemoteProtocolError when a length is out of
        bounds."""
        available = self._end - self._start
        if available < 8:
            self._total = 0
            return None
        length, message_length = HEADER.unpack_from(self._buffer, self._start)
        if length > self.frame_limit:
            raise RemoteProtocolError(
                f"a frame of {length} bytes where {self.frame_limit} are allowed", "limit"
            )
        if not 0 < message_length <= length - 4:
            raise RemoteProtocolError(f"a frame of {length} bytes announces a message of {message_length}")
        if message_length > self.message_limit:
            raise RemoteProtocolError(
                f"a message of {message_length} bytes where {self.message_limit} are allowed", "limit"
            )
        total = length + 4
        if available < total:
            self._total = total
            self._large = total > STAGING_SMALL
            return None
        message = self._start + 8
        payload = message + message_length
        self._start += total
        self._total = 0
        if self._start > payload:
            self._pinned = True
        return Frame(self._out[message:payload], self._out[payload : self._start])

    def buffer_updated(self, count: int) -> list[Frame]:
        """:meth:`filled`, then every frame that is complete."""
        self.filled(count)
        frames = []
        while (frame := self.next_frame()) is not None:
            frames.append(frame)
        return frames

    def receive(self, data: Buffer) -> list[Frame]:
        """The frames that ``data`` completes, for those who already have bytes of their own."""
        frames: list[Frame] = []
        view = memoryview(data)
        while view:
            room = self.get_buffer(len(view))
            count = min(len(room), len(view))
            room[:count] = view[:count]
            # A message view is valid until the next feeding, which may be the next turn of this loop: copy
            # it.
            frames += [Frame(memoryview(bytes(f.message)), f.payload) for f in self.buffer_updated(count)]
            view = view[count:]
        return frames

    @property
    def idle(self) -> bool:
        """Whether no frame has begun: the connection may end here without loss."""
        return self._end == self._start
