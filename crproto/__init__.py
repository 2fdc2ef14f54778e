"""The wire of crnode, without input or output: bytes in, events out; messages in, bytes out.

PROTOCOL.md beside this file specifies it for a second implementation. Nothing in this package opens a file or
a socket, reads a clock or starts a thread.
"""

from __future__ import annotations
