"""Join tokens: what a person carries from the master to a new machine, and the master's book of them.

A token is text that survives copying by hand: base32 in groups, upper or lower case, blanks and line breaks
ignored, the letters O, I and B accepted for the digits 0, 1 and 8 that base32 does not have. A length and a
checksum tell a slip of the hand from a forgery: the first is said before any connection, the second by the
master alone.

The token pins the cluster's CA, so a joiner sends the secret to the real master and to nobody else. It works
once, and until it expires once more for the same key: a joiner that crashed simply tries again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crnode.cluster.document import Hex16, Hex32, Name, Role, sentence, split_address
from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import atomic_write

PREFIX = "crnode1-"
DEFAULT_TTL_S = 24 * 3600
"""A day: long enough to walk to the other machine, short enough to be forgotten on a desk."""
MAX_TTL_S = 30 * 24 * 3600
MAX_OPEN = 64
"""Invitations at one time; a cluster has 8 nodes."""
REMEMBER_S = 90 * 24 * 3600
"""For how long a dead token is told 'used' or 'expired' instead of 'unknown'."""
_SECRET = 16
_CHECK = 5
_MAX_TEXT = 2048
_DIGITS = str.maketrans({"0": "O", "1": "I", "8": "B"})
_HINT = "On the master, make a new one: crnode invite NAME --role ROLE"


class TokenError(CrnodeError):
    """A token that does not open the door; `code` is the reason for programs, also in the Failure on the
    wire.
    """

    def __init__(self, code: str, what: str, why: str, hint: str = _HINT) -> None:
        super().__init__(what, why, hint, ExitCode.USAGE if code == "token-malformed" else ExitCode.REFUSED)
        self.code = code


class Token(NamedTuple):
    """What a token says. `expires_s` is wall clock seconds; `master` is the node that must answer."""

    cluster: bytes
    ca: bytes
    secret: bytes
    expires_s: int
    name: str
    role: str
    master: str
    addresses: tuple[str, ...]


def format_token(token: Token) -> str:
    """The text for a person to copy. ValueError when a field has no place in it."""
    parts = [token.name, token.role, token.master, *token.addresses]
    texts = [part.encode() for part in parts]
    if len(token.cluster) != 16 or len(token.ca) != 32 or len(token.secret) != _SECRET:
        raise ValueError("a token has a cluster of 16, a CA fingerprint of 32 and a secret of 16 bytes")
    if any(len(text) > 255 for text in texts) or not 4 <= len(parts) <= 11:
        raise ValueError("a token has 1 to 8 addresses, and no text in it is longer than 255 bytes")
    body = token.cluster + token.ca + token.secret + token.expires_s.to_bytes(8, "big")
    body += b"".join(bytes((len(text),)) + text for text in texts)
    framed = len(body).to_bytes(2, "big") + body
    return PREFIX + base64.b32encode(framed + _check(framed)).decode().rstrip("=")


def parse_token(text: str) -> Token:
    """The reverse, forgiving what happens in copying. TokenError('token-malformed') says what is wrong with
    it.
    """
    squeezed = re.sub(r"\s+", "", text)
    if not squeezed.lower().startswith(PREFIX):
        raise _malformed(
            f"A token begins with '{PREFIX}', this begins with '{squeezed[:12]}'."
            if squeezed
            else "There is nothing in it."
        )
    letters = squeezed[len(PREFIX) :].replace("-", "").upper().translate(_DIGITS)
    if len(letters) > _MAX_TEXT:
        raise _malformed("It is far too long.")
    if strange := re.search(r"[^A-Z2-7]", letters):
        raise _malformed(f"It has the character '{strange[0]}', which no token has.")
    raw = _decode32(letters)
    expected = 2 + int.from_bytes(raw[:2], "big") + _CHECK if len(raw) >= 2 else 2
    wanted = -(-expected * 8 // 5)
    if len(letters) < wanted and expected < _MAX_TEXT:
        raise _malformed(
            f"It is not whole: {wanted - len(letters)} of its {wanted} characters are missing at the end."
        )
    if len(letters) > wanted and raw[expected - _CHECK : expected] == _check(raw[: expected - _CHECK]):
        raise _malformed(f"{len(letters) - wanted} characters follow its end; it has {wanted}.")
    if len(raw) != expected or raw[-_CHECK:] != _check(raw[:-_CHECK]):
        raise _malformed("One or more of its characters were changed in copying (its checksum does not fit).")
    try:
        return _decode(raw[2:-_CHECK])
    except (ValueError, IndexError) as error:
        raise _malformed("Its inside does not have the form of a token.") from error


def _decode(body: bytes) -> Token:
    head = 16 + 32 + _SECRET + 8
    texts: list[str] = []
    place = head
    while place < len(body):
        end = place + 1 + body[place]
        if end > len(body):
            raise ValueError("text beyond the end")
        texts.append(body[place + 1 : end].decode())
        place = end
    if len(texts) < 4 or len(texts) > 11 or texts[1] not in tuple(Role):
        raise ValueError("fields")
    for address in texts[3:]:
        split_address(address)
    return Token(
        cluster=body[:16],
        ca=body[16:48],
        secret=body[48:64],
        expires_s=int.from_bytes(body[64:head], "big"),
        name=texts[0],
        role=texts[1],
        master=texts[2],
        addresses=tuple(texts[3:]),
    )


def _decode32(letters: str) -> bytes:
    # A copy that was cut anywhere still tells its length: what is short of a base32 quantum is dropped here.
    usable = letters[: len(letters) - {1: 1, 3: 1, 6: 1}.get(len(letters) % 8, 0)]
    try:
        return base64.b32decode(usable + "=" * (-len(usable) % 8))
    except binascii.Error as error:  # pragma: no cover - the alphabet and the length were checked
        raise _malformed("It is not written in base32.") from error


def _check(data: bytes) -> bytes:
    return hashlib.sha256(b"crnode token v1" + data).digest()[:_CHECK]


def _malformed(why: str) -> TokenError:
    return TokenError(
        "token-malformed",
        "This is not a whole join token.",
        why,
        "Copy it again from where 'crnode invite' showed it.",
    )


class Invitation(BaseModel):
    """One line of the master's book. The secret itself is not in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    secret_hash: Hex32
    name: Name
    role: Role
    created_s: int
    expires_s: int
    withdrawn: bool = False  # by a person, or by a later invitation of the same name
    used_by: Hex32 | Literal[""] = ""  # hash of the public key that redeemed it
    used_s: int = 0
    incarnation: Hex16 | Literal[""] = ""
    certificate: str = ""  # base64 DER, once issued: the same key gets the same certificate again


class _Pages(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1] = 1
    invitations: Annotated[list[Invitation], Field(max_length=4096)] = []


class TokenBook:
    """The master's invitations, kept in tokens.json; every change is durable before it counts."""

    def __init__(self, path: Path) -> None:
        """Open the book at `path`; a missing file is an empty book. CrnodeError when it cannot be read."""
        self._path = path
        try:
            self._pages = _Pages.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            self._pages = _Pages()
        except OSError as error:
            raise CrnodeError(
                f"'{path}' cannot be read.",
                f"The system says: {error.strerror or error}.",
                "Run crnode as the owner of it.",
            ) from error
        except ValidationError as error:
            raise CrnodeError(
                f"'{path}' cannot be used.", sentence(error), "Delete it and invite the new machines again."
            ) from error

    @property
    def invitations(self) -> tuple[Invitation, ...]:
        """All that are remembered, oldest first."""
        return tuple(self._pages.invitations)

    def open(self, now_s: int) -> tuple[Invitation, ...]:
        """Those that a machine may still join with, oldest first."""
        return tuple(item for item in self._pages.invitations if _is_open(item, now_s))

    def withdraw(self, name: str, now_s: int) -> Invitation:
        """Let nobody join with the open invitation of `name`. CrnodeError when there is none."""
        found = next((item for item in self.open(now_s) if item.name == name), None)
        if found is None:
            raise CrnodeError(
                f"There is no open invitation of '{name}'.",
                "It was used, has expired, or was never made.",
                "See: crnode node list. A node that has joined is put out with: crnode node remove NAME",
                ExitCode.USAGE,
            )
        gone = found.model_copy(update={"withdrawn": True})
        self._replace(gone)
        return gone

    def create(self, name: str, role: Role, now_s: int, ttl_s: int = DEFAULT_TTL_S) -> tuple[bytes, int]:
        """A new invitation: (secret, expiry in seconds since 1970). An unused older one of that name is
        withdrawn.
        """
        what = f"'{name}' was not invited."
        if not 60 <= ttl_s <= MAX_TTL_S:
            raise CrnodeError(
                what,
                f"A token is good for 60 to {MAX_TTL_S} seconds, not {ttl_s}.",
                "Choose another --ttl.",
                ExitCode.USAGE,
            )
        kept = [
            item.model_copy(update={"withdrawn": True}) if item.name == name and not item.used_by else item
            for item in self._pages.invitations
            if item.expires_s + REMEMBER_S > now_s
        ]
        if sum(_is_open(item, now_s) for item in kept) >= MAX_OPEN:
            raise CrnodeError(
                what,
                f"{MAX_OPEN} invitations are open already.",
                "Withdraw some: crnode invite NAME --withdraw",
                ExitCode.REFUSED,
            )
        secret = secrets.token_bytes(_SECRET)
        try:
            invitation = Invitation(
                secret_hash=_hash(secret), name=name, role=role, created_s=now_s, expires_s=now_s + ttl_s
            )
        except ValidationError as error:
            raise CrnodeError(what, sentence(error), "", ExitCode.USAGE) from error
        self._store([*kept, invitation][-4096:])
        return secret, invitation.expires_s

    def redeem(self, secret: bytes, public_key: bytes, now_s: int) -> Invitation:
        """Spend the token for the owner of `public_key` (DER). TokenError: unknown, expired, used, withdrawn.

        The same key may redeem it again until it expires, and gets the same invitation (and certificate)
        back.
        """
        what = "The join token was refused."
        mark = _hash(secret)
        found = next((item for item in self._pages.invitations if item.secret_hash == mark), None)
        if found is None:
            raise TokenError("token-unknown", what, "This master never made it, or made it very long ago.")
        if found.withdrawn:
            why = f"It was withdrawn, or a newer one of '{found.name}' replaced it."
            raise TokenError("token-withdrawn", what, why)
        key = _hash(public_key)
        if found.used_by and found.used_by != key:
            raise TokenError(
                "token-used",
                what,
                f"It was used already: '{found.name}' joined with it, and a token works once.",
                "If that was not your machine, remove it on the master: crnode node remove "
                f"{found.name}. {_HINT}",
            )
        if now_s >= found.expires_s:
            raise TokenError("token-expired", what, f"It expired {_ago(now_s - found.expires_s)} ago.")
        if not found.used_by:
            found = found.model_copy(
                update={"used_by": key, "used_s": now_s, "incarnation": secrets.token_hex(16)}
            )
            self._replace(found)
        return found

    def keep_certificate(self, invitation: Invitation, certificate: bytes) -> Invitation:
        """Remember what was issued (DER) for a redeemed invitation, before anybody hears of it."""
        kept = invitation.model_copy(update={"certificate": base64.b64encode(certificate).decode()})
        self._replace(kept)
        return kept

    def _replace(self, changed: Invitation) -> None:
        self._store(
            [changed if item.secret_hash == changed.secret_hash else item for item in self._pages.invitations]
        )

    def _store(self, invitations: list[Invitation]) -> None:
        pages = _Pages(invitations=invitations)
        atomic_write(self._path, pages.model_dump_json(indent=1).encode())
        self._pages = pages


def _is_open(item: Invitation, now_s: int) -> bool:
    return not item.withdrawn and not item.used_by and item.expires_s > now_s


def _hash(data: bytes) -> str:
    return blake3(data, derive_key_context="crnode join token v1").hexdigest()


def _ago(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} seconds"
    if seconds < 7200:
        return f"{seconds // 60} minutes"
    return f"{seconds // 3600} hours" if seconds < 172_800 else f"{seconds // 86_400} days"
