"""TLS 1.3 between nodes, and which certificate opens the door.

Two locks, one after the other. The handshake demands a certificate of the cluster's CA (a machine that wants
to join may come without any and can then do nothing but join). Then :func:`peer_name` looks the certificate's
fingerprint up in the committed cluster document, which is the revocation: a removed node's certificate still
chains to the CA.

Dates in certificates are not checked (X509_V_FLAG_NO_CHECK_TIME): a machine that boots in 1970, or a CA that
ends on one day, would otherwise stop a whole cluster at once (rule 26). They only make warnings. Host names
are not checked either: a node is its fingerprint, wherever it is reached.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from crnode.cluster.document import ClusterDocument, fingerprint
from crnode.cluster.node_file import CA_CERTIFICATE_FILE, CERTIFICATE_FILE, KEY_FILE
from crnode.errors import CrnodeError, ExitCode

ALPN = "crnode/1"
_NO_CHECK_TIME = (
    0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h; the ssl module has no name for it
)


class PeerRefused(CrnodeError):
    """A certificate that does not open the door; `code` is the reason for programs, sent in Failure."""

    def __init__(self, code: str, what: str, why: str, hint: str) -> None:
        super().__init__(what, why, hint, ExitCode.REFUSED)
        self.code = code


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.set_alpn_protocols([ALPN])
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    return context


def _identify(context: ssl.SSLContext, data: Path) -> None:
    authority, certificate, key = (data / name for name in (CA_CERTIFICATE_FILE, CERTIFICATE_FILE, KEY_FILE))
    hint = "Restore it from a backup, or remove this node and join anew."
    for path in (authority, certificate, key):  # OpenSSL does not say which file it did not like
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise CrnodeError(
                f"'{path}' cannot be read.", f"The system says: {error.strerror or error}.", hint
            ) from error
    try:
        context.load_verify_locations(cafile=authority)
    except ssl.SSLError as error:
        raise CrnodeError(f"'{authority}' cannot be used.", "It is not a PEM certificate.", hint) from error
    try:
        context.load_cert_chain(certificate, key, password="")  # a key with one is none of ours: never ask
    except ssl.SSLError as error:
        raise CrnodeError(
            f"'{certificate}' and '{key}' cannot be used.",
            "One of them is not PEM, or they do not belong together.",
            "Restore both from one backup, or remove this node and join anew.",
        ) from error


def server_context(data: Path) -> ssl.SSLContext:
    """For the listening socket: our certificate; the other side may show one of our CA, or none at all (a
    joiner).
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _identify(context, data)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0  # no resumption: every connection shows its certificate anew
    return context


def client_context(data: Path) -> ssl.SSLContext:
    """For calling other nodes: our certificate, and theirs must be of our CA."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    _identify(context, data)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def joining_context(ca_pem: bytes | None) -> ssl.SSLContext:
    """For a machine without a certificate. Without `ca_pem` nobody is verified: only the CA may be asked for
    then.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if ca_pem is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=ca_pem.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def peer_name(document: ClusterDocument, der: bytes) -> str:
    """The node whose certificate (DER, already verified against our CA) this is. PeerRefused when it is none
    now.
    """
    mark = fingerprint(der)
    node = document.node_by_fingerprint(mark)
    if node is not None:
        return node.name
    for stone in document.tombstones:
        if stone.fingerprint == mark:
            raise PeerRefused(
                "denied",
                f"The node '{stone.name}' was turned away.",
                f"It was removed from the cluster '{document.name}'.",
                f"To bring it back, invite it again (crnode invite {stone.name} --role ROLE) and join with an"
                " empty data directory.",
            )
    raise PeerRefused(
        "unknown",
        "A node was turned away.",
        f"Its certificate ({mark[:16]}…) is not in the cluster document of '{document.name}'.",
        "If it joined a moment ago this passes by itself; else invite it again on the master.",
    )
