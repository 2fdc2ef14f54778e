"""Every message: one frozen class each, its number, its fields, and what makes it valid.

On the wire a message is a msgpack array ``[TYPE, field, ...]`` in the order of the class. Sequences are
tuples here. Validation happens on arrival, field by field and then field against field and payload, before
anybody uses a message; the same checks run on what we send ourselves, except for the bulk of Entries and
Objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from crproto import codec
from crproto.entries import Entry, entry_from_wire
from crproto.errors import RemoteProtocolError
from crproto.ids import Buffer
from crproto.limits import (
    ADDRESS,
    BODY,
    CERTIFICATE,
    CREDIT,
    ENTRIES_PER_FRAME,
    FEATURE,
    FEATURES,
    I64_MAX,
    I64_MIN,
    IDS_PER_FRAME,
    IMAGES,
    LISTED,
    MESSAGE,
    NAME,
    RANGES,
    TEXT,
    U32,
)
from crproto.shapes import (
    Check,
    Message,
    WithIds,
    boolean,
    id32,
    id_or_none,
    integer,
    name,
    name_or_empty,
    object_records,
    path,
    record,
    several,
    text,
    uint,
    up_to,
    uuid,
    uuid_or_none,
)

time_ns = integer(I64_MIN, I64_MAX)
sentence = text(TEXT)
body = up_to(BODY)

# --- the connection itself ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """The first message of both sides. A node without a certificate yet has no cluster, node or
    incarnation."""

    TYPE: ClassVar[int] = 1
    LOOSE: ClassVar[bool] = True
    SHAPE: ClassVar[tuple[Check, ...]] = (
        integer(1, U32),
        integer(1, U32),
        several(text(FEATURE), FEATURES),
        uuid_or_none,
        name_or_empty,
        uuid_or_none,
        integer(0, U32),
        record(uint, uint, uint),
        time_ns,
        integer(0, CREDIT),
    )
    version_min: int
    version_max: int
    features: tuple[str, ...]
    cluster: bytes  # 16 bytes, b'' while joining
    node: str
    incarnation: bytes
    format_level: int
    document: tuple[int, int, int]  # (generation, epoch, version) of the cluster document it has
    time_ns: int  # its wall clock
    credit: int  # bytes of bulk frames the peer may send before the first Credit

    def check(self, payload_length: int) -> None:
        super(Hello, self).check(payload_length)
        if self.version_min > self.version_max:
            raise RemoteProtocolError("Hello: the lowest version is above the highest", "version")
        if not bool(self.cluster) == bool(self.node) == bool(self.incarnation):
            raise RemoteProtocolError("Hello: cluster, node and incarnation are there together or not at all")


@dataclass(frozen=True, slots=True)
class Failure(Message):
    """The sender gives up on this connection, and why; nothing of it follows. ``retry``: dialling again may
    help."""

    TYPE: ClassVar[int] = 2
    SHAPE: ClassVar[tuple[Check, ...]] = (text(32), sentence, boolean)
    code: str  # one of limits.FAILURE_CODES; unknown words are to be read as "internal"
    text: str
    retry: bool


@dataclass(frozen=True, slots=True)
class Credit(Message):
    """The receiver has processed so many bytes of bulk frames: as many more may come."""

    TYPE: ClassVar[int] = 3
    SHAPE: ClassVar[tuple[Check, ...]] = (integer(1, CREDIT),)
    amount: int


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Are you there? To be answered at once."""

    TYPE: ClassVar[int] = 4
    SHAPE: ClassVar[tuple[Check, ...]] = (uint,)
    nonce: int


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """The answer, with the same nonce and the answerer's wall clock."""

    TYPE: ClassVar[int] = 5
    SHAPE: ClassVar[tuple[Check, ...]] = (uint, time_ns)
    nonce: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class Bye(Message):
    """The sender closes in good order; nothing of it follows."""

    TYPE: ClassVar[int] = 6
    SHAPE: ClassVar[tuple[Check, ...]] = (sentence,)
    text: str


# --- joining (the only messages of a peer without a certificate) ----------------------------------


@dataclass(frozen=True, slots=True)
class CaRequest(Message):
    """Which certificate authority is this? Asked before anything is trusted."""

    TYPE: ClassVar[int] = 10
    SHAPE: ClassVar[tuple[Check, ...]] = ()


@dataclass(frozen=True, slots=True)
class CaReply(Message):
    """The authority's certificate, to be compared with the fingerprint in the join token."""

    TYPE: ClassVar[int] = 11
    SHAPE: ClassVar[tuple[Check, ...]] = (up_to(CERTIFICATE), name)
    ca: bytes  # DER
    cluster_name: str


@dataclass(frozen=True, slots=True)
class JoinRequest(Message):
    """A new node shows the token's secret and asks for a certificate."""

    TYPE: ClassVar[int] = 12
    SHAPE: ClassVar[tuple[Check, ...]] = (up_to(64), up_to(CERTIFICATE), text(ADDRESS), text(ADDRESS))
    secret: bytes
    csr: bytes
    address: str  # host:port at which others reach it
    machine: str  # its machine id


@dataclass(frozen=True, slots=True)
class JoinReply(Message):
    """Its certificate, its name, and the cluster document."""

    TYPE: ClassVar[int] = 13
    SHAPE: ClassVar[tuple[Check, ...]] = (up_to(CERTIFICATE), name, body)
    certificate: bytes
    node: str
    document: bytes  # JSON


# --- the cluster document -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DocumentRequest(Message):
    """Send me your cluster document."""

    TYPE: ClassVar[int] = 20
    SHAPE: ClassVar[tuple[Check, ...]] = ()


@dataclass(frozen=True, slots=True)
class Document(Message):
    """A cluster document, asked for or because it changed."""

    TYPE: ClassVar[int] = 21
    SHAPE: ClassVar[tuple[Check, ...]] = (body,)
    body: bytes  # JSON


# --- the session of one set -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetOpen(Message):
    """The sender is this set's source and wants to push. One a connection."""

    TYPE: ClassVar[int] = 30
    SHAPE: ClassVar[tuple[Check, ...]] = (uuid, name, uuid, uint, uint, id_or_none)
    set: bytes
    name: str
    incarnation: bytes
    epoch: int
    term: int
    newest: bytes  # image id, b'' before the first image


@dataclass(frozen=True, slots=True)
class SetState(Message):
    """Where the target stands: the answer to SetOpen, and whenever it changed other than by this session."""

    TYPE: ClassVar[int] = 31
    SHAPE: ClassVar[tuple[Check, ...]] = (
        id_or_none,
        uint,
        id_or_none,
        id_or_none,
        id_or_none,
        id_or_none,
        path,
        sentence,
    )
    newest: bytes  # newest committed image, b'' = none
    sequence: int
    digest: bytes  # of that image
    applied: bytes  # image that the live tree shows
    synced: bytes  # image that the live tree shows even after a power cut
    staging: bytes  # image that is staged in part, b'' = none
    resume: bytes  # path of its last staged entry
    problem: str  # why nothing can be received now, '' = nothing stands in the way


@dataclass(frozen=True, slots=True)
class ImageBegin(Message):
    """The header of an image whose difference to ``base`` follows. Replaces an image begun and not
    committed."""

    TYPE: ClassVar[int] = 32
    SHAPE: ClassVar[tuple[Check, ...]] = (
        id32,
        id32,
        id_or_none,
        uuid,
        uint,
        uint,
        time_ns,
        id32,
        integer(0, U32),
        uint,
        uint,
        integer(1, U32),
        boolean,
        boolean,
    )
    id: bytes
    parent: bytes
    base: bytes  # the image the difference is against, b'' = everything follows
    incarnation: bytes
    epoch: int
    sequence: int
    at_ns: int
    digest: bytes
    flags: int
    entries: int  # of the whole image, not of the difference
    total_bytes: int
    digest_scheme: int
    resumed: bool  # goes on where the target's staging ended
    skips: bool  # base is an ancestor further back than parent: images in between are left out


@dataclass(frozen=True, slots=True)
class Entries(Message):
    """A part of the difference: entries that are new or changed, and paths that are gone."""

    TYPE: ClassVar[int] = 33
    BULK: ClassVar[bool] = True
    SHAPE: ClassVar[tuple[Check, ...]] = (
        several(entry_from_wire, ENTRIES_PER_FRAME),
        several(path, ENTRIES_PER_FRAME),
    )
    changed: tuple[Entry, ...]
    removed: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Offer(WithIds):
    """Which of these objects (payload: ids) do you lack?"""

    TYPE: ClassVar[int] = 34
    BULK: ClassVar[bool] = True
    SHAPE: ClassVar[tuple[Check, ...]] = (uint,)
    number: int


@dataclass(frozen=True, slots=True)
class Need(Message):
    """The answer: bit i of the payload (lowest bit of each byte first) is set for each id that is to be
    sent."""

    TYPE: ClassVar[int] = 35
    SHAPE: ClassVar[tuple[Check, ...]] = (uint,)
    number: int

    def check(self, payload_length: int) -> None:
        if payload_length > IDS_PER_FRAME // 8:
            raise RemoteProtocolError(f"Need has a bitmap of {payload_length} bytes", "limit")


@dataclass(frozen=True, slots=True)
class Objects(Message):
    """Chunks and recipes; their stored bytes are the payload, in the order of the records."""

    TYPE: ClassVar[int] = 36
    BULK: ClassVar[bool] = True
    SHAPE: ClassVar[tuple[Check, ...]] = (object_records,)
    records: tuple[
        tuple[bytes, int, int, int, int, bytes], ...
    ]  # (id, kind, codec, raw length, stored length, base)

    def check(self, payload_length: int) -> None:
        if sum([item[4] for item in self.records]) != payload_length:
            raise RemoteProtocolError("the stored lengths of Objects do not add up to its payload")


@dataclass(frozen=True, slots=True)
class ImageCommit(Message):
    """Everything of the image was sent; it is the target's turn to verify and commit."""

    TYPE: ClassVar[int] = 37
    SHAPE: ClassVar[tuple[Check, ...]] = (id32,)
    id: bytes


@dataclass(frozen=True, slots=True)
class Missing(WithIds):
    """The image names objects (payload: ids) that the target lacks: send them, then ImageCommit again."""

    TYPE: ClassVar[int] = 38
    SHAPE: ClassVar[tuple[Check, ...]] = (id32,)
    id: bytes


@dataclass(frozen=True, slots=True)
class Ack(Message):
    """The image is durable at the target."""

    TYPE: ClassVar[int] = 39
    SHAPE: ClassVar[tuple[Check, ...]] = (id32,)
    id: bytes


@dataclass(frozen=True, slots=True)
class Applied(Message):
    """The live tree shows the image; ``synced`` even after a power cut; ``unapplied`` paths could not be
    written."""

    TYPE: ClassVar[int] = 40
    SHAPE: ClassVar[tuple[Check, ...]] = (id32, boolean, uint)
    id: bytes
    synced: bool
    unapplied: int


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """The target does not take this image. The session goes on."""

    TYPE: ClassVar[int] = 41
    SHAPE: ClassVar[tuple[Check, ...]] = (id32, text(32), sentence, boolean)
    id: bytes
    code: str
    text: str
    retry: bool


@dataclass(frozen=True, slots=True)
class Compare(Message):
    """What have you between these borders? n borders, in order, make n + 1 ranges."""

    TYPE: ClassVar[int] = 42
    SHAPE: ClassVar[tuple[Check, ...]] = (uint, several(record(path, path), RANGES))
    number: int
    borders: tuple[tuple[bytes, bytes], ...]  # (directory, name): the first entry of the next range

    def check(self, payload_length: int) -> None:
        super(Compare, self).check(payload_length)
        if any(low >= high for low, high in zip(self.borders, self.borders[1:], strict=False)):
            raise RemoteProtocolError("Compare: the borders do not ascend")


@dataclass(frozen=True, slots=True)
class Compared(Message):
    """(number of entries, digest) of each range, as entries.range_digest makes them."""

    TYPE: ClassVar[int] = 43
    SHAPE: ClassVar[tuple[Check, ...]] = (uint, several(record(uint, id32), RANGES + 1))
    number: int
    ranges: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class List(Message):
    """List what you have from ``lo`` (included) to ``hi`` (excluded; to the end with ``open_end``)."""

    TYPE: ClassVar[int] = 44
    SHAPE: ClassVar[tuple[Check, ...]] = (uint, path, path, path, path, boolean)
    number: int
    lo_dir: bytes
    lo_name: bytes
    hi_dir: bytes
    hi_name: bytes
    open_end: bool


@dataclass(frozen=True, slots=True)
class Listed(Message):
    """A part of the answer: (path, entry digest) in order."""

    TYPE: ClassVar[int] = 45
    SHAPE: ClassVar[tuple[Check, ...]] = (uint, several(record(path, id32), LISTED), boolean)
    number: int
    items: tuple[tuple[bytes, bytes], ...]
    last: bool


# --- questions outside a session ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch(WithIds):
    """Send me these objects (payload: ids) of this set; they come in Objects, then FetchDone."""

    TYPE: ClassVar[int] = 50
    SHAPE: ClassVar[tuple[Check, ...]] = (uint, uuid)
    number: int
    set: bytes


@dataclass(frozen=True, slots=True)
class FetchDone(WithIds):
    """All that could be sent was sent; the payload names what could not."""

    TYPE: ClassVar[int] = 51
    SHAPE: ClassVar[tuple[Check, ...]] = (uint,)
    number: int


@dataclass(frozen=True, slots=True)
class ImagesRequest(Message):
    """Which images of this set do you keep?"""

    TYPE: ClassVar[int] = 52
    SHAPE: ClassVar[tuple[Check, ...]] = (uint, uuid)
    number: int
    set: bytes


@dataclass(frozen=True, slots=True)
class Images(Message):
    """(id, parent, epoch, sequence, time, digest, entries, bytes, flags, name) of each."""

    TYPE: ClassVar[int] = 53
    SHAPE: ClassVar[tuple[Check, ...]] = (
        uint,
        several(
            record(id32, id32, uint, uint, time_ns, id32, uint, uint, integer(0, U32), text(ADDRESS)), IMAGES
        ),
    )
    number: int
    images: tuple[tuple[bytes, bytes, int, int, int, bytes, int, int, int, str], ...]


@dataclass(frozen=True, slots=True)
class EntriesRequest(Message):
    """Send the entries of this image at and below ``path``; they come in Entries, then EntriesEnd."""

    TYPE: ClassVar[int] = 54
    SHAPE: ClassVar[tuple[Check, ...]] = (uint, uuid, id32, path)
    number: int
    set: bytes
    image: bytes
    path: bytes


@dataclass(frozen=True, slots=True)
class EntriesEnd(Message):
    """So many entries were sent."""

    TYPE: ClassVar[int] = 55
    SHAPE: ClassVar[tuple[Check, ...]] = (uint, uint)
    number: int
    count: int


@dataclass(frozen=True, slots=True)
class Call(Message):
    """A question that is no part of this specification, in JSON."""

    TYPE: ClassVar[int] = 60
    SHAPE: ClassVar[tuple[Check, ...]] = (uint, text(NAME), body)
    number: int
    method: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Result(Message):
    """Its answer; with ``ok`` false the body says why not."""

    TYPE: ClassVar[int] = 61
    SHAPE: ClassVar[tuple[Check, ...]] = (uint, boolean, body)
    number: int
    ok: bool
    body: bytes


# fmt: off
MESSAGES: dict[int, type[Message]] = {
    kind.TYPE: kind
    for kind in (
        Hello, Failure, Credit, Ping, Pong, Bye,
        CaRequest, CaReply, JoinRequest, JoinReply, DocumentRequest, Document,
        SetOpen, SetState, ImageBegin, Entries, Offer, Need, Objects, ImageCommit, Missing, Ack, Applied,
        Refused, Compare, Compared, List, Listed,
        Fetch, FetchDone, ImagesRequest, Images, EntriesRequest, EntriesEnd, Call, Result,
    )
}
# fmt: on


def decode(message: Buffer, payload_length: int, *, max_len: int = MESSAGE) -> Message:
    """The message of one frame; RemoteProtocolError unless it is one of the above and valid."""
    values = codec.unpack(message, max_len=max_len)
    if type(values) is not tuple or not values or type(values[0]) is not int:
        raise RemoteProtocolError("a message is an array that begins with its type")
    kind = MESSAGES.get(values[0])
    if kind is None:
        raise RemoteProtocolError(f"message type {values[0]} is unknown")
    return kind.from_wire(values, payload_length)


def encode(message: Message, payload_length: int) -> bytes:
    """The msgpack bytes of a message of ours, checked as the peer will; RemoteProtocolError names what it
    would."""
    if isinstance(message, Entries | Objects):  # by far the most bytes, and made by code that is tested
        message.check(payload_length)
    else:
        type(message).from_wire(message.to_wire(), payload_length)
    return codec.pack(message.to_wire())
