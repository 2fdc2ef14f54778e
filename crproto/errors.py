"""Who is to blame when the protocol is broken.

::

    ProtocolError +-- LocalProtocolError we misused this package: a defect in our own code, never the peer's
    doing +-- RemoteProtocolError the peer (or stored data) sent what the protocol forbids: close, never trust
    it

For bad bytes nothing but :class:`RemoteProtocolError` may ever leave this package.
"""

from __future__ import annotations

from collections.abc import Sequence


class ProtocolError(Exception):
    """The base of both kinds; never raised itself."""


class LocalProtocolError(ProtocolError):
    """This side asked for something that the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something that the protocol forbids.

    ``code`` is one of the short words of :data:`crproto.limits.FAILURE_CODES` and goes into the Failure
    message. ``events`` holds what a Connection had understood of the same bytes before the offending frame.
    """

    def __init__(self, message: str, code: str = "protocol") -> None:
        super().__init__(message)
        self.code = code
        self.events: Sequence[object] = ()
