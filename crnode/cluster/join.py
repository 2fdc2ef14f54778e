"""A machine joins the cluster: the master's desk, and what the joiner does with the answers. No sockets here.

The joiner writes its private key before it asks, and node.json after everything else. A crash in between
leaves a directory that is no node; the same token with the same key then goes through again, on both sides:
the desk remembers key, certificate and incarnation before it changes the document, and answers the same
again.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from crnode.cluster.create import Places, cannot_write
from crnode.cluster.document import ClusterDocument, Node, Role, fingerprint, parse_document, sentence
from crnode.cluster.identity import (
    CertificateAuthority,
    certificate_pem,
    create_csr,
    create_key,
    csr_public_key,
    load_certificate,
    same_key,
)
from crnode.cluster.membership import Change, add_node, move_node
from crnode.cluster.node_file import (
    CA_CERTIFICATE_FILE,
    CA_KEY_FILE,
    CERTIFICATE_FILE,
    DOCUMENT_FILE,
    KEY_FILE,
    NODE_FILE,
    TOKENS_FILE,
    DataLock,
    NodeFile,
    check_data_dir,
    check_fresh,
    read_document,
    read_node_file,
)
from crnode.cluster.tokens import (
    DEFAULT_TTL_S,
    Invitation,
    Token,
    TokenBook,
    TokenError,
    format_token,
    parse_token,
)
from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import atomic_write, machine_id, make_private_dir
from crproto.messages import CaReply, CaRequest, JoinReply, JoinRequest

CLOCK_TOLERANCE_NS = 2_000_000_000
"""Clocks that differ more than this make versions appear at odd times: the joiner is warned."""
_NS = 1_000_000_000


def _told(invitation: Invitation) -> dict[str, Any]:
    return {"name": invitation.name, "role": invitation.role.value, "expires_at": invitation.expires_s}


class JoinDesk:
    """The master's side: makes invitations and answers joiners, one after the other."""

    def __init__(
        self,
        data: Path,
        current: Callable[[], ClusterDocument],
        change: Callable[[Change], Awaitable[ClusterDocument]],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`current` gives the document in force; `change` makes a new one durable and known, or raises."""
        self._authority = CertificateAuthority.load(data / CA_CERTIFICATE_FILE, data / CA_KEY_FILE)
        self._book = TokenBook(data / TOKENS_FILE)
        self._current = current
        self._change = change
        self._now_ns = now_ns
        self._turn = asyncio.Lock()

    def invite(self, name: str, role: str, ttl_s: int = DEFAULT_TTL_S) -> dict[str, Any]:
        """The control call `invite`: {"token", "expires_at" (s since 1970), "command"}. CrnodeError if it may
        not join.
        """
        document, now = self._current(), self._now_ns()
        what = f"'{name}' was not invited."
        try:
            chosen = Role(role)
        except ValueError:
            roles = "replica, secondary or repli-master"
            raise CrnodeError(what, f"'{role}' is no role.", f"Choose {roles}.", ExitCode.USAGE) from None
        if chosen is Role.MASTER:
            raise CrnodeError(
                what,
                "A cluster has one master, and it has it already.",
                "Invite it as repli-master.",
                ExitCode.REFUSED,
            )
        # Said now, to the person who can change it, rather than at the other machine when the token is used.
        trial = _node(
            name, chosen, "invited.invalid:1", secrets.token_hex(32), secrets.token_hex(16), now, "", what
        )
        add_node(document, trial, now)
        secret, expires_s = self._book.create(name, chosen, now // _NS, ttl_s)
        token = format_token(
            Token(
                cluster=bytes.fromhex(document.id),
                ca=bytes.fromhex(fingerprint(self._authority.certificate_der)),
                secret=secret,
                expires_s=expires_s,
                name=name,
                role=chosen.value,
                master=document.master.name,
                addresses=(document.master.address,),
            )
        )
        return {"token": token, "expires_at": expires_s, "command": f"crnode join {token}"}

    def withdraw(self, name: str) -> dict[str, Any]:
        """The same with `withdraw`: nobody joins as `name` with what was printed. CrnodeError when nobody
        could."""
        return _told(self._book.withdraw(name, self._now_ns() // _NS))

    def invited(self) -> list[dict[str, Any]]:
        """Who may join still: "name", "role", "expires_at" (s since 1970)."""
        return [_told(item) for item in self._book.open(self._now_ns() // _NS)]

    async def answer(self, message: CaRequest | JoinRequest) -> CaReply | JoinReply:
        """The reply to a joiner. CrnodeError (a TokenError has a `code`) when it is turned away."""
        if isinstance(message, CaRequest):
            return CaReply(ca=self._authority.certificate_der, cluster_name=self._current().name)
        async with self._turn:  # a token is used once
            return await self._admit(message)

    async def _admit(self, request: JoinRequest) -> JoinReply:
        now = self._now_ns()
        public_key = csr_public_key(request.csr)
        invitation = self._book.redeem(request.secret, public_key, now // _NS)
        if invitation.certificate:
            certificate = base64.b64decode(invitation.certificate)
        else:
            certificate = self._authority.issue(request.csr, invitation.name, now)
            invitation = self._book.keep_certificate(invitation, certificate)
        mark = fingerprint(certificate)

        def make(document: ClusterDocument) -> ClusterDocument:
            here = document.node(invitation.name)
            if here is not None and here.fingerprint == mark:
                return move_node(document, invitation.name, request.address)
            if any(stone.fingerprint == mark for stone in document.tombstones):
                why = f"'{invitation.name}' was removed since then."
                raise TokenError("token-used", "The join token was refused.", why)
            node = _node(
                invitation.name,
                invitation.role,
                request.address,
                mark,
                invitation.incarnation,
                now,
                request.machine,
                f"'{invitation.name}' was not admitted.",
            )
            return add_node(document, node, now)

        changed = await self._change(make)
        return JoinReply(certificate=certificate, node=invitation.name, document=changed.to_bytes())


def _node(
    name: str, role: Role, address: str, mark: str, incarnation: str, now: int, machine: str, what: str
) -> Node:
    try:
        return Node(
            name=name,
            role=role,
            address=address,
            fingerprint=mark,
            incarnation=incarnation,
            added_at_ns=now,
            machine=machine,
        )
    except ValidationError as error:
        raise CrnodeError(what, sentence(error), "Nothing was changed.", ExitCode.USAGE) from error


class Joined(NamedTuple):
    """How a join ended. `already` when this very node had joined before, `moved` when it has another address
    now; `warnings` are sentences.
    """

    document: ClusterDocument
    node: NodeFile
    already: bool
    warnings: tuple[str, ...]
    moved: bool = False


class Joiner:
    """The new machine's side, step by step; the network between the steps is the caller's."""

    def __init__(self, data: Path, text: str) -> None:
        """Read the token (TokenError) and look at the data directory (CrnodeError); writes nothing yet."""
        self.token = parse_token(text)
        self.data = data
        self._key = b""

    def already(self) -> Joined | None:
        """The finished result of an earlier `crnode join` with this token here, or None when there is work to
        do.

        CrnodeError(REFUSED) when the directory belongs to another node or holds something else.
        """
        if (self.data / NODE_FILE).exists():
            node = read_node_file(self.data)
            if node.cluster == self.token.cluster.hex() and node.name == self.token.name:
                check_data_dir(self.data)
                return Joined(read_document(self.data), node, True, ())
        check_fresh(self.data)
        return None

    def prepare(self) -> DataLock:
        """Make the directory and the private key, or take up those of an interrupted attempt. Returns the
        held lock.
        """
        try:
            make_private_dir(self.data)
            lock = DataLock(self.data)
            try:
                path = self.data / KEY_FILE
                if path.exists():
                    self._key = path.read_bytes()
                else:
                    self._key = create_key()
                    atomic_write(path, self._key)
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise cannot_write(self.data, error) from error
        return lock

    def check_ca(self, reply: CaReply) -> bytes:
        """The CA of the master that answered (PEM), if it is the one that the token pins. CrnodeError
        otherwise.
        """
        if fingerprint(reply.ca) != self.token.ca.hex():
            raise TokenError(
                "token-other-cluster",
                "The node that answered does not belong to the cluster of this token.",
                f"It shows the certificate authority of a cluster called '{reply.cluster_name[:63]}', "
                "which is another one, or somebody stands in between.",
                "Check the master's address, and that the token was made by this master.",
            )
        return certificate_pem(reply.ca)

    def request(self, address: str) -> JoinRequest:
        """What to send over the verified connection; `address` is where the others shall call this node."""
        csr = create_csr(self._key, self.token.name)
        return JoinRequest(secret=self.token.secret, csr=csr, address=address, machine=machine_id())

    def finish(
        self, ca_pem: bytes, reply: JoinReply, places: Places, master_clock_ns: int, own_clock_ns: int
    ) -> Joined:
        """Check the master's answer and write the node, node.json last. CrnodeError when the answer does not
        fit.
        """
        document = parse_document(reply.document, "The cluster document that the master sent")
        node = document.node(reply.node)
        mark = fingerprint(reply.certificate)
        load_certificate(reply.certificate)
        if (
            document.id != self.token.cluster.hex()
            or reply.node != self.token.name
            or node is None
            or node.fingerprint != mark
            or not same_key(reply.certificate, self._key)
        ):
            raise CrnodeError(
                "The master's answer was refused.",
                "Its document, its certificate and the token do not belong together.",
                "Make a new token on the master and try again.",
                ExitCode.REFUSED,
            )
        before = read_node_file(self.data) if (self.data / NODE_FILE).exists() else None
        if before is None:
            me = NodeFile(
                name=node.name,
                role=node.role,
                cluster=document.id,
                incarnation=node.incarnation,
                machine_id=machine_id(),
                listen=places.listen,
                advertise=places.advertise,
                hash_seed=secrets.randbits(64),
            )
        else:  # only its address is new: what it has stored goes with the rest of its node file
            me = before.model_copy(update={"listen": places.listen, "advertise": places.advertise})
        try:
            make_private_dir(self.data / "ca")
            atomic_write(self.data / CA_CERTIFICATE_FILE, ca_pem)
            atomic_write(self.data / CERTIFICATE_FILE, certificate_pem(reply.certificate))
            atomic_write(self.data / DOCUMENT_FILE, document.to_bytes())
            me.write(self.data)
        except OSError as error:
            raise cannot_write(self.data, error) from error
        warnings = [places.warning, clock_warning(master_clock_ns, own_clock_ns)]
        again = before is not None
        return Joined(document, me, again, tuple(text for text in warnings if text), again)


def clock_warning(theirs_ns: int, ours_ns: int) -> str:
    """A sentence when two clocks differ by more than 2 s, else ''."""
    apart = ours_ns - theirs_ns
    if abs(apart) <= CLOCK_TOLERANCE_NS:
        return ""
    direction = "ahead of" if apart > 0 else "behind"
    return (
        f"The clock of this machine is {abs(apart) / _NS:.0f} s {direction} the master's; switch on time "
        f"synchronisation (timedatectl set-ntp true), or versions will seem to be of another time."
    )
