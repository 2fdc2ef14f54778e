"""Theory of operation: which message may come when.

One Conversation follows everything that both sides say on one connection, so that the same tables judge what
we send (our mistake) and what the peer sends (its mistake). Both sides keep one, and each sees its own
messages when it sends them and the peer's when they arrive. The tables therefore only forbid what is wrong in
*every* order in which messages can cross on the way.

Three machines run side by side:

* The **stage** of the connection. Both sides say Hello first. Then a peer without a certificate may only
  join, and all others may do everything else::

      HELLO --both hellos--> JOINING | READY --Bye, Failure or an error--> CLOSED

* The **set session**, at most one a connection: whoever sends SetOpen is the source, the other the target::

      NONE --SetOpen--> OPENING --SetState--> OPEN --ImageBegin--> IMAGE --ImageCommit--> OPEN

  The source begins nothing before it knows where the target stands. Objects may be sent ahead of any image.
  Entries belong to an image. ImageBegin inside an image gives that one up and begins another.

* **Questions**: each side may have up to 64 unanswered, told apart by their kind and a number that the asker
  chooses and may use again once the answer is complete. An answer without its question is wrong.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TypeAlias

from crproto import messages as m
from crproto.limits import QUESTIONS
from crproto.shapes import Message

Kind: TypeAlias = type[Message]


class Stage(Enum):
    """How far the connection itself is."""

    HELLO = auto()
    JOINING = auto()
    READY = auto()
    CLOSED = auto()


class Session(Enum):
    """How far the session of the one set is."""

    NONE = auto()
    OPENING = auto()
    OPEN = auto()
    IMAGE = auto()


ALWAYS: frozenset[Kind] = frozenset((m.Failure, m.Bye))

# What a side may send while joining: a client has no certificate, the server answers strangers nothing else.
CLIENT_JOINS: frozenset[Kind] = frozenset((m.CaRequest, m.JoinRequest))
SERVER_JOINS: frozenset[Kind] = frozenset((m.CaReply, m.JoinReply))

# What needs no session and no question.
FREE: frozenset[Kind] = frozenset((m.Credit, m.Ping, m.Pong, m.DocumentRequest, m.Document))

# What the source of the session may send, and where the session is afterwards.
_AHEAD: dict[Kind, Session] = {m.Offer: Session.OPEN, m.Objects: Session.OPEN, m.ImageBegin: Session.IMAGE}
SOURCE: dict[Session, dict[Kind, Session]] = {
    Session.NONE: {m.SetOpen: Session.OPENING},
    Session.OPENING: {},
    Session.OPEN: {**_AHEAD, m.ImageCommit: Session.OPEN},  # once more, after Missing was answered
    Session.IMAGE: {
        m.Offer: Session.IMAGE,
        m.Objects: Session.IMAGE,
        m.Entries: Session.IMAGE,
        m.ImageBegin: Session.IMAGE,
        m.ImageCommit: Session.OPEN,
    },
}

# What the target may send. OPEN and IMAGE are alike: it may not yet know which of the two it is.
_TARGET: frozenset[Kind] = frozenset((m.SetState, m.Missing, m.Ack, m.Applied, m.Refused))
TARGET: dict[Session, frozenset[Kind]] = {
    Session.NONE: frozenset(),
    Session.OPENING: frozenset((m.SetState,)),
    Session.OPEN: _TARGET,
    Session.IMAGE: _TARGET,
}

# Question -> messages that answer it. Parts carry no number or may come again, the last one closes the
# question.
QUESTION: dict[Kind, tuple[Kind | None, Kind]] = {
    m.Offer: (None, m.Need),
    m.Compare: (None, m.Compared),
    m.List: (None, m.Listed),
    m.Fetch: (m.Objects, m.FetchDone),
    m.ImagesRequest: (None, m.Images),
    m.EntriesRequest: (m.Entries, m.EntriesEnd),
    m.Call: (None, m.Result),
}
CLOSES: dict[Kind, Kind] = {last: question for question, (_, last) in QUESTION.items()}
PART_OF: dict[Kind, Kind] = {part: question for question, (part, _) in QUESTION.items() if part is not None}
NEEDS_SESSION: frozenset[Kind] = frozenset((m.Compare, m.List))  # questions that only a set session may ask


class Conversation:
    """What was said so far. ``client`` is who dialled; sides are told apart by it alone."""

    def __init__(self, *, authenticated: bool, questions: int = QUESTIONS) -> None:
        self.stage = Stage.HELLO
        self.session = Session.NONE
        self.source: bool | None = None  # whether the client is the source
        self._authenticated = authenticated
        self._questions = questions
        self._hello = {True: False, False: False}
        self._asked: dict[bool, dict[tuple[Kind, int], None]] = {True: {}, False: {}}
        self._open_parts: dict[tuple[bool, Kind], int] = {}  # unanswered questions of a side, by kind

    def say(self, client: bool, message: Message) -> str:
        """Take in one message of a side. '' when it was in order, else why it was not (and nothing has
        changed)."""
        kind = type(message)
        if self.stage is Stage.READY:
            return self._ready(client, message, kind)
        if self.stage is Stage.CLOSED:
            return "the connection is closed"
        if kind in ALWAYS:
            self.stage = Stage.CLOSED
            return ""
        if self.stage is Stage.HELLO:
            if kind is not m.Hello or self._hello[client]:
                return "each side says Hello first, once"
            self._hello[client] = True
            if self._hello[not client]:
                self.stage = Stage.READY if self._authenticated else Stage.JOINING
            return ""
        if kind not in (CLIENT_JOINS if client else SERVER_JOINS):
            return "without a certificate a node can only join"
        return ""

    def _ready(self, client: bool, message: Message, kind: Kind) -> str:
        if kind in FREE:
            return ""
        if kind in ALWAYS:
            self.stage = Stage.CLOSED
            return ""
        question = CLOSES.get(kind)
        if question is not None:
            return self._answer(client, message, question)
        after = None
        if self.source is client or (self.source is None and kind is m.SetOpen):
            after = SOURCE[self.session].get(kind)
        if after is None and not self._may(client, kind):
            return f"no {kind.__name__} here while the set session is {self.session.name}"
        if kind in QUESTION:
            refusal = self._ask(client, message, kind)
            if refusal:
                return refusal
        if after is not None:
            self.session = after
            self.source = client
        elif kind is m.SetState and self.session is Session.OPENING:
            self.session = Session.OPEN
        return ""

    def _may(self, client: bool, kind: Kind) -> bool:
        """Whether a message that moves no source's session is allowed."""
        if self.source is not None and self.source is not client and kind in TARGET[self.session]:
            return True
        part_of = PART_OF.get(kind)
        if part_of is not None:
            return bool(self._open_parts.get((not client, part_of)))
        if kind in NEEDS_SESSION:
            return self.session in (Session.OPEN, Session.IMAGE)
        return kind in QUESTION and kind is not m.Offer

    def _ask(self, client: bool, message: Message, kind: Kind) -> str:
        asked = self._asked[client]
        key = (kind, getattr(message, "number", 0))
        if key in asked:
            return f"{kind.__name__} {key[1]} is still unanswered"
        if len(asked) >= self._questions:
            return f"more than {self._questions} questions are unanswered"
        asked[key] = None
        self._open_parts[client, kind] = self._open_parts.get((client, kind), 0) + 1
        return ""

    def _answer(self, client: bool, message: Message, question: Kind) -> str:
        asked = self._asked[not client]
        key = (question, getattr(message, "number", 0))
        if key not in asked:
            return f"{type(message).__name__} {key[1]} answers no question"
        if not (isinstance(message, m.Listed) and not message.last):
            del asked[key]
            self._open_parts[not client, question] -= 1
        return ""
