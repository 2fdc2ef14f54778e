"""Frames that say who has an address, byte by byte."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from crnode.failover.frames import (
    arp_announcement,
    arp_holder,
    arp_probe,
    neighbour_advertisement,
    neighbour_holder,
    neighbour_probe,
)
from crnode.failover.veto import answers, echo, is_reply

MAC = bytes.fromhex("020000000001")
OTHER = bytes.fromhex("0200000000ff")
V4 = bytes([192, 0, 2, 10])
V6 = ipaddress.ip_address("2001:db8::10").packed


def test_an_arp_probe_asks_for_an_address_and_names_nobody() -> None:
    # RFC 5227, 2.1.1: sender address zero, target hardware address zero.
    head = "ffffffffffff 020000000001 0806"
    body = "0001 0800 06 04 0001 020000000001 00000000 000000000000 c000020a"
    assert arp_probe(MAC, V4).hex() == (head + body).replace(" ", "")


def test_who_has_an_address_is_who_says_so_of_itself() -> None:
    answer = MAC + OTHER + struct.pack(">HHHBBH6s4s6s4s", 0x0806, 1, 0x0800, 6, 4, 2, OTHER, V4, MAC,
    bytes(4))
    assert arp_holder(answer, V4) == OTHER
    assert arp_holder(answer, bytes([192, 0, 2, 11])) == b""
    assert arp_holder(arp_probe(OTHER, V4), V4) == b""  # another one asks
    assert arp_holder(arp_announcement(OTHER, V4), V4) == OTHER
    assert arp_holder(answer[:30], V4) == arp_holder(b"", V4) == b""


def checksum(frame: bytes) -> int:
    """Of an ICMPv6 message with its pseudo header (RFC 8200, 8.1): zero when it is right."""
    body, sender, to = frame[54:], frame[22:38], frame[38:54]
    whole = sender + to + struct.pack(">II", len(body), 58) + body
    summed = sum(struct.unpack(f">{len(whole) // 2}H", whole))
    while summed >> 16:
        summed = (summed & 0xFFFF) + (summed >> 16)
    return ~summed & 0xFFFF


def test_an_unsolicited_neighbour_advertisement_overrides_what_was_known() -> None:
    frame = neighbour_advertisement(MAC, V6)
    assert frame[:14].hex() == "333300000001" + MAC.hex() + "86dd"
    assert frame[14:22].hex() == "60000000" + "0020" + "3a" + "ff"  # hop limit 255, else it is dropped
    assert frame[22:38] == V6 and frame[38:54] == ipaddress.ip_address("ff02::1").packed
    body = frame[54:]
    assert (body[0], body[1], body[4:8].hex()) == (136, 0, "20000000")
    assert body[8:24] == V6 and body[24:].hex() == "0201" + MAC.hex()
    assert checksum(frame) == 0
    assert neighbour_holder(frame, V6) == MAC
    assert neighbour_holder(frame, ipaddress.ip_address("2001:db8::11").packed) == b""


def test_a_neighbour_is_asked_by_nobody_at_the_solicited_node_address() -> None:
    frame = neighbour_probe(MAC, V6)
    assert frame[:6].hex() == "3333ff000010"
    assert frame[22:38] == bytes(16) and frame[38:54] == ipaddress.ip_address("ff02::1:ff00:10").packed
    assert (frame[54], frame[62:78]) == (135, V6) and len(frame) == 78  # no option (RFC 4861, 4.3)
    assert checksum(frame) == 0 and neighbour_holder(frame, V6) == b""


def test_an_echo_is_answered_by_its_own_reply() -> None:
    request = echo(8, 0x1234, 7)
    assert request.hex() == "0800" + "8250" + "1234" + "0007" + b"crnode--".hex()
    header = bytes([0x45]) + bytes(19)
    reply = header + struct.pack(">BBHHH", 0, 0, 0, 0x1234, 7)
    assert is_reply(reply, 4, 0x1234, 7) and not is_reply(reply, 4, 0x1234, 8)
    assert not is_reply(header + request, 4, 0x1234, 7) and not is_reply(b"", 4, 0x1234, 7)
    assert is_reply(struct.pack(">BBHHH", 129, 0, 0, 0x1234, 7), 6, 0x1234, 7)


def test_an_address_answers_however_it_is_written() -> None:
    """The kernel says ::1, whatever the owner wrote: who took it for another one never took over."""
    try:
        assert answers("::1", 3) and answers("0:0:0:0:0:0:0:0001", 4)
    except OSError as error:
        pytest.skip(f"no echo may be sent here: {error}")
