"""One valid example of every message, with a payload, for the tests and the golden bytes."""

from __future__ import annotations

from crproto import messages as m
from crproto.content import CHUNK, RECIPE
from crproto.delta import PATCH, RAW
from crproto.entries import DIRECTORY, FILE, SYMLINK, Entry, Extra
from crproto.shapes import Message

SET = bytes(range(16))
INCARNATION = bytes(range(16, 32))
CLUSTER = b"cluster-id-of-16"
ID_A, ID_B, ID_C = b"\xaa" * 32, b"\xbb" * 32, b"\xcc" * 32
WINDOW = 8 << 20

ENTRIES = (
    Entry(b"", DIRECTORY, 0o755, "root", 0, "root", 0, 1_700_000_000_000_000_000, 0, None, 0, b""),
    Entry(b"empty", FILE, 0o644, "www", 33, "www", 33, -1, 0, None, 0, b""),
    Entry(
        b"a/b.txt", FILE, 0o4755, "", 4294967295, "w\u00fcrth", 7, 1_700_000_000_123_456_789, 5, ID_A, 0, b""
    ),
    Entry(
        b"big\xff.img", FILE, 0o600, "db", 5, "db", 5, 0, 1 << 40, ID_B, 3, Extra(link=b"0123456789").encode()
    ),
    Entry(b"l", SYMLINK, 0o777, "u", 1, "g", 1, 9, 0, None, 0, Extra(target=b"../x").encode()),
)
LINKED_SYMLINK = ENTRIES[-1]._replace(path=b"m", extra=Extra(target=b"../x", link=b"0123456789").encode())


def hello(who: str, /, **changes: object) -> m.Hello:
    """A valid hello; ``changes`` replace fields."""
    fields: dict[str, object] = {
        "version_min": 1,
        "version_max": 1,
        "features": ("compare",),
        "cluster": CLUSTER,
        "node": who,
        "incarnation": INCARNATION,
        "format_level": 1,
        "document": (1, 2, 3),
        "time_ns": 1_700_000_000_000_000_000,
        "credit": WINDOW,
    }
    return m.Hello(**{**fields, **changes})  # type: ignore[arg-type]


MESSAGES: tuple[tuple[Message, bytes], ...] = (
    (hello("shop1"), b""),
    (m.Failure("denied", "this node is not a target of web", False), b""),
    (m.Credit(2_097_152), b""),
    (m.Ping(2**64 - 1), b""),
    (m.Pong(2**64 - 1, -1), b""),
    (m.Bye("restart"), b""),
    (m.CaRequest(), b""),
    (m.CaReply(b"DER", "shop"), b""),
    (m.JoinRequest(b"secret", b"CSR", "10.0.0.2:7400", "machine"), b""),
    (m.JoinReply(b"DER", "shop2", b"{}"), b""),
    (m.DocumentRequest(), b""),
    (m.Document(b'{"format":1}'), b""),
    (m.SetOpen(SET, "web", INCARNATION, 1, 2, ID_A), b""),
    (m.SetState(ID_A, 41, ID_B, ID_A, b"", ID_C, b"a/b.txt", ""), b""),
    (
        m.ImageBegin(
            ID_C, ID_A, ID_A, INCARNATION, 1, 42, 1_700_000_000_000_000_001, ID_B, 1, 5, 99, 1, False, False
        ),
        b"",
    ),
    (m.Entries(ENTRIES, (b"old.txt", b"old")), b""),
    (m.Offer(7), ID_A + ID_B),
    (m.Need(7), b"\x02"),
    (m.Objects(((ID_A, CHUNK, RAW, 5, 5, b""), (ID_B, RECIPE, PATCH, 60, 3, ID_C))), b"hello" + b"xyz"),
    (m.ImageCommit(ID_C), b""),
    (m.Missing(ID_C), ID_B),
    (m.Ack(ID_C), b""),
    (m.Applied(ID_C, True, 0), b""),
    (m.Refused(ID_C, "limit", "no room", True), b""),
    (m.Compare(8, ((b"", b"m"), (b"a", b"b"))), b""),
    (m.Compared(8, ((3, ID_A), (0, ID_B), (2, ID_C))), b""),
    (m.List(9, b"", b"", b"a", b"b", False), b""),
    (m.Listed(9, ((b"a/b.txt", ID_A),), True), b""),
    (m.Fetch(10, SET), ID_A),
    (m.FetchDone(10), b""),
    (m.ImagesRequest(11, SET), b""),
    (m.Images(11, ((ID_C, ID_A, 1, 42, 5, ID_B, 5, 99, 0, "release 1.4"),)), b""),
    (m.EntriesRequest(12, SET, ID_C, b"a"), b""),
    (m.EntriesEnd(12, 2), b""),
    (m.Call(13, "status", b"{}"), b""),
    (m.Result(13, True, b"{}"), b""),
)
