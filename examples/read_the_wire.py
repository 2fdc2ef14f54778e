"""Reading the wire: a small image travels from one Connection to another, in memory, frame by frame.

Uses crproto alone: no socket, no file, no agent. It prints what each side sends, how long the frames are, and
what the target makes of them. Run it without arguments; see crproto/PROTOCOL.md for the meaning of each
message.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from crproto import chunking, delta, messages
from crproto.connection import CLIENT, SERVER, Connected, Connection, CreditGranted, Event, Received
from crproto.content import RECIPE, RecipeBuilder, walk
from crproto.delta import RAW, ZSTD
from crproto.entries import DIRECTORY, FILE, Entry, LtHash, entry_bytes, image_digest
from crproto.ids import NO_IMAGE, chunk_id, image_id, recipe_id
from crproto.limits import DIGEST_SCHEME
from crproto.shapes import Message

SET = bytes.fromhex("00112233445566778899aabbccddeeff")
INCARNATION = bytes.fromhex("0f0e0d0c0b0a09080706050403020100")
AT = 1_767_225_600_000_000_000  # 2026-01-01 00:00:00 UTC, nanoseconds


def hello(node: str) -> messages.Hello:
    """What a node says of itself."""
    return messages.Hello(1, 1, (), b"cluster-id-of-16", node, INCARNATION, 1, (1, 1, 1), AT, 8 << 20)


def show(sender: str, frame: bytes, message: Message) -> None:
    """One line for a frame: who, what, how long, and its first bytes."""
    name = type(message).__name__
    more = " ..." if len(frame) > 20 else ""
    print(f"{sender:>6} -> {name:<12} {len(frame):>6} bytes   {frame[:20].hex(' ', 4)}{more}")


class Wire:
    """Two connections back to back."""

    def __init__(self) -> None:
        self.source = Connection(CLIENT, hello("office"), authenticated=True)
        self.target = Connection(SERVER, hello("backup"), authenticated=True)
        for name, sender, receiver in (
            ("office", self.source, self.target),
            ("backup", self.target, self.source),
        ):
            frame = b"".join(sender.start())
            show(name, frame, sender.hello)
            for event in receiver.receive_data(frame):
                if isinstance(event, Connected):
                    print(f"{'':>10}connected to {event.hello.node}, version {event.version}")

    def say(self, sender: Connection, message: Message, *payload: bytes | memoryview) -> list[Received]:
        """Send one message; what the other side received."""
        receiver = self.target if sender is self.source else self.source
        frame = b"".join(bytes(part) for part in sender.send(message, payload))
        show(sender.hello.node, frame, message)
        events: list[Event] = receiver.receive_data(frame)
        for event in events:
            if isinstance(event, Received) and event.cost:
                for part in receiver.consumed(event.cost):
                    for granted in sender.receive_data(part):
                        if isinstance(granted, CreditGranted):
                            print(f"{'':>10}{granted.total} bytes of credit")
        return [event for event in events if isinstance(event, Received)]


def main() -> None:
    """Push two files, and put them together on the other side."""
    files = {
        b"docs/letter.txt": b"Dear customer,\nyour order has left our house.\n",
        b"docs/prices.csv": b"".join(
            b"%05d;part %d;%d.%02d EUR\n" % (i, i, i * 7 % 900, i * 13 % 100) for i in range(6000)
        ),
    }
    objects: dict[bytes, tuple[int, bytes]] = {}  # id -> (kind, bytes)
    entries = [Entry(b"docs", DIRECTORY, 0o755, "anna", 1000, "office", 100, AT, 0, None, 0, b"")]
    for path, data in files.items():
        number = chunking.choose_cutter(len(data), pages=False, previous=None)
        builder = RecipeBuilder(number)
        at = 0
        for length in chunking.make_cutter(number).cut(memoryview(data), True):
            chunk = data[at : at + length]
            objects[chunk_id(chunk)] = (0, chunk)
            builder.add(length, chunk_id(chunk))
            at += length
        content, level = builder.finish()
        objects.update({name: (RECIPE, made) for name, made in builder.take()})
        entries.append(
            Entry(path, FILE, 0o644, "anna", 1000, "office", 100, AT, len(data), content, level, b"")
        )
        print(f"{path.decode()}: {len(data)} bytes, level {level}, content {content.hex()[:16]}...")

    state = LtHash()
    state.update(entry_bytes(entry) for entry in entries)
    total = sum(entry.size for entry in entries)
    digest = image_digest(SET, len(entries), total, state)
    image = image_id(NO_IMAGE, SET, INCARNATION, 1, 1, AT, digest)
    print(
        f"image {image.hex()[:16]}...: {len(entries)} entries, {total} bytes, digest {digest.hex()[:16]}...\n"
    )

    wire = Wire()
    wire.say(wire.source, messages.SetOpen(SET, "docs", INCARNATION, 1, 1, image))
    wire.say(wire.target, messages.SetState(b"", 0, b"", b"", b"", b"", b"", ""))
    wire.say(
        wire.source,
        messages.ImageBegin(
            image,
            NO_IMAGE,
            b"",
            INCARNATION,
            1,
            1,
            AT,
            digest,
            0,
            len(entries),
            total,
            DIGEST_SCHEME,
            False,
            False,
        ),
    )
    (got,) = wire.say(wire.source, messages.Entries(tuple(entries), ()))

    records, parts = [], []
    for name, (kind, data) in objects.items():
        packed = delta.compress(data)
        smaller = len(packed) < len(data)
        parts.append(packed if smaller else data)
        records.append((name, kind, ZSTD if smaller else RAW, len(data), len(parts[-1]), b""))
    (bulk,) = wire.say(wire.source, messages.Objects(tuple(records)), *parts)
    wire.say(wire.source, messages.ImageCommit(image))

    # The target believes nothing: each object is checked against its id, the entries against the image's
    # digest.
    assert isinstance(got.message, messages.Entries)
    assert isinstance(bulk.message, messages.Objects)
    store: dict[bytes, bytes] = {}
    at = 0
    for name, kind, codec, raw_length, stored_length, _ in bulk.message.records:
        made = bytes(delta.decode_object(codec, bulk.payload[at : at + stored_length], raw_length))
        at += stored_length
        if (recipe_id(made) if kind == RECIPE else chunk_id(made)) != name:
            raise SystemExit("an object is not what its id says")
        store[name] = made
    received = LtHash()
    received.update(entry_bytes(entry) for entry in got.message.changed)
    if (
        image_digest(SET, len(got.message.changed), sum(e.size for e in got.message.changed), received)
        != digest
    ):
        raise SystemExit("the entries are not those of the image")
    wire.say(wire.target, messages.Ack(image))
    wire.say(wire.target, messages.Applied(image, True, 0))
    wire.say(wire.source, messages.Bye("done"))

    print()
    for entry in got.message.changed:
        if entry.content is not None:
            chunks = list(walk(entry.content, entry.level, store.__getitem__, size=entry.size))
            data = b"".join(store[name] for _, _, name in chunks)
            same = "equal" if data == files[entry.path] else "DIFFERENT"
            print(f"{entry.path.decode()}: {len(chunks)} chunks, {len(data)} bytes, {same}")
    print(f"{sum(len(part) for part in parts)} bytes of objects carried {total} bytes of files")


if __name__ == "__main__":
    main()
