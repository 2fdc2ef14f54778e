"""What is said on the wire about who has an address: frames of ARP and of neighbour discovery. Pure.

IPv4: RFC 5227 (address conflict detection). IPv6: RFC 4861 (neighbour discovery), RFC 4862 (5.4, duplicate
address detection). A probe asks whether somebody has an address, and says nothing of the sender's own; an
announcement says that the sender has it now.
"""

from __future__ import annotations

import struct

ETH_ARP = 0x0806
ETH_IPV6 = 0x86DD
SOLICITATION, ADVERTISEMENT = 135, 136
BROADCAST = b"\xff" * 6
ALL_NODES = bytes.fromhex("ff02" + "00" * 13 + "01")
NOBODY = bytes(16)
_ICMPV6 = 58


def arp_announcement(mac: bytes, address: bytes) -> bytes:
    """The Ethernet frame of an ARP announcement (RFC 5227, 3): a request for one's own address."""
    return _arp(mac, address, address)


def arp_probe(mac: bytes, address: bytes) -> bytes:
    """... of an ARP probe (RFC 5227, 2.1.1): a request for `address` by nobody."""
    return _arp(mac, bytes(4), address)


def _arp(mac: bytes, sender: bytes, target: bytes) -> bytes:
    head = struct.pack(">6s6sH", BROADCAST, mac, ETH_ARP)
    return head + struct.pack(">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, sender, bytes(6), target)


def arp_holder(frame: bytes, address: bytes) -> bytes:
    """The MAC that an ARP frame says to have `address`; b'' when it says no such thing."""
    if len(frame) < 42 or frame[12:14] != ETH_ARP.to_bytes(2, "big"):
        return b""
    kind, protocol, _, _, _, mac, sender, _, _ = struct.unpack(">HHBBH6s4s6s4s", frame[14:42])
    return mac if (kind, protocol, sender) == (1, 0x0800, address) else b""


def neighbour_advertisement(mac: bytes, address: bytes) -> bytes:
    """The Ethernet frame of an unsolicited neighbour advertisement to all nodes, with the override flag (RFC
    4861, 4.4 and 7.2.6)."""
    body = struct.pack(">BBHI16sBB6s", ADVERTISEMENT, 0, 0, 0x20000000, address, 2, 1, mac)
    return _icmpv6(mac, bytes.fromhex("333300000001"), address, ALL_NODES, body)


def neighbour_probe(mac: bytes, address: bytes) -> bytes:
    """... of a neighbour solicitation by nobody, to those who may have `address` (RFC 4862, 5.4.2)."""
    body = struct.pack(">BBHI16s", SOLICITATION, 0, 0, 0, address)
    to = bytes.fromhex("ff02" + "00" * 9 + "01ff") + address[13:]
    return _icmpv6(mac, b"\x33\x33\xff" + address[13:], NOBODY, to, body)


def neighbour_holder(frame: bytes, address: bytes) -> bytes:
    """The MAC that a frame says to have `address`, in a neighbour advertisement; b'' when it is none."""
    at = 14 + 40
    if len(frame) < at + 24 or frame[12:14] != ETH_IPV6.to_bytes(2, "big") or frame[20] != _ICMPV6:
        return b""
    if frame[at] != ADVERTISEMENT or frame[at + 8 : at + 24] != address:
        return b""
    option = frame[at + 24 : at + 32]
    return option[2:8] if option[:2] == b"\x02\x01" else frame[6:12]


def _icmpv6(mac: bytes, to_mac: bytes, sender: bytes, to: bytes, body: bytes) -> bytes:
    pseudo = sender + to + struct.pack(">II", len(body), _ICMPV6) + body
    summed = sum(struct.unpack(f">{len(pseudo) // 2}H", pseudo))
    while summed >> 16:
        summed = (summed & 0xFFFF) + (summed >> 16)
    body = body[:2] + (~summed & 0xFFFF).to_bytes(2, "big") + body[4:]
    head = struct.pack(">6s6sH", to_mac, mac, ETH_IPV6)
    return head + struct.pack(">IHBB16s16s", 6 << 28, len(body), _ICMPV6, 255, sender, to) + body


__all__ = [
    "ETH_ARP",
    "ETH_IPV6",
    "arp_announcement",
    "arp_holder",
    "arp_probe",
    "neighbour_advertisement",
    "neighbour_holder",
    "neighbour_probe",
]
