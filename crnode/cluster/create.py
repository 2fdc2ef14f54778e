"""`crnode init`: the first node of a new cluster, its master, made in an empty data directory."""

from __future__ import annotations

import errno
import secrets
import socket
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from crnode.cluster.document import (
    DEFAULT_PORT,
    ClusterDocument,
    DocumentId,
    Node,
    Role,
    fingerprint,
    join_address,
    sentence,
    split_address,
    valid_name,
)
from crnode.cluster.identity import CertificateAuthority, certificate_pem, create_key_and_csr
from crnode.cluster.node_file import (
    CA_CERTIFICATE_FILE,
    CA_KEY_FILE,
    CERTIFICATE_FILE,
    DOCUMENT_FILE,
    KEY_FILE,
    DataLock,
    NodeFile,
    check_fresh,
)
from crnode.errors import CrnodeError, ExitCode
from crnode.platform.files import atomic_write, machine_id, make_private_dir

DEFAULT_LISTEN = f"0.0.0.0:{DEFAULT_PORT}"
_EVERYWHERE = ("0.0.0.0", "::", "0", "*")


class Places(NamedTuple):
    """Where a node listens, where the others call it, and what a person should know about that ('' if
    nothing).
    """

    listen: str
    advertise: str
    warning: str


def choose_places(listen: str, advertise: str | None, local_ip: str | None = None) -> Places:
    """Check both addresses and fill in the second one. CrnodeError(USAGE) when one cannot be used.

    `local_ip` is the address of ours that another node was reached from, the best guess there is.
    """
    try:
        host, port = split_address(listen)
        if port == 0:
            raise ValueError(
                f"The address '{listen}' has port 0, so the others could not know where to call; give a port."
            )
        if advertise is not None:
            called, called_port = split_address(advertise)
            if called in _EVERYWHERE or called_port == 0:
                raise ValueError(
                    f"'{advertise}' is not an address that others can call; give this machine's own address."
                )
            return Places(join_address(host, port), join_address(called, called_port), "")
    except ValueError as error:
        raise bad_address(error) from error
    called = (local_ip or own_address()) if host in _EVERYWHERE else host
    warning = ""
    if called.startswith("127.") or called in ("::1", "localhost"):
        warning = (
            f"The other nodes are told to call {called}, which only this machine can reach; see --advertise."
        )
    return Places(join_address(host, port), join_address(called, port), warning)


def check_places(listen: str, advertise: str | None) -> None:
    """Look both addresses up on this machine; they must have the right form (:func:`choose_places`).
    CrnodeError(USAGE) when nothing could ever listen or call there: said before a cluster or a token is used
    for it.
    """
    host, _ = split_address(listen)
    if host not in _EVERYWHERE and not any(_ours(place) for place in _lookup(host, f"--listen {listen}")):
        raise CrnodeError(
            f"crnode could not listen at {listen}.",
            "This machine does not have that address.",
            "Give --listen an address of this machine (ip address shows them), or leave it out to listen on"
            " all of them; how others call it, through a router for one, is for --advertise.",
            ExitCode.USAGE,
        )
    if advertise is not None:
        _lookup(split_address(advertise)[0], f"--advertise {advertise}")


def _lookup(host: str, option: str) -> list[tuple[socket.AddressFamily, Any]]:
    """The addresses of `host` as sockets take them. CrnodeError(USAGE) when the name has none."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        said = error.strerror if isinstance(error, socket.gaierror) else str(error)
        raise CrnodeError(
            f"The address of '{option}' cannot be used.",
            f"No machine called '{host}' is known here: {said}.",
            "Give an IP address and a port, like 192.168.1.10:7400, or a name that resolves.",
            ExitCode.USAGE,
        ) from error
    return [(family, place) for family, _, _, _, place in found]


def _ours(found: tuple[socket.AddressFamily, Any]) -> bool:
    """Whether this machine has the address: asked by binding to a free port of it, so that nobody is
    disturbed."""
    family, place = found
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(place)
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL)
    return True


def bad_address(error: ValueError) -> CrnodeError:
    """The sentence for a --listen or --advertise that :func:`split_address` does not take."""
    return CrnodeError(
        "The address cannot be used.",
        str(error),
        "An address is HOST:PORT, an IPv6 one [ADDRESS]:PORT.",
        ExitCode.USAGE,
    )


def own_address() -> str:
    """The address that this machine uses towards the outside; 127.0.0.1 when it has no network. Sends
    nothing.
    """
    for family, outside in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((outside, 9))
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"


def create_cluster(data: Path, name: str, cluster: str, places: Places, now: int) -> ClusterDocument:
    """Make the master `name` of a new cluster called `cluster` in `data`; `now` in wall clock nanoseconds.

    node.json is written last: an attempt that was interrupted before is simply made again. Raises
    CrnodeError.
    """
    check_fresh(data)
    try:
        valid_name(name)
        valid_name(cluster)
    except ValueError as error:
        raise CrnodeError("The cluster was not made.", str(error), "", ExitCode.USAGE) from error
    cluster_id, incarnation = secrets.token_hex(16), secrets.token_hex(16)
    authority = CertificateAuthority.create(cluster, now)
    try:
        key, csr = create_key_and_csr(name)
        certificate = authority.issue(csr, name, now)
        node = Node(
            name=name,
            role=Role.MASTER,
            address=places.advertise,
            fingerprint=fingerprint(certificate),
            incarnation=incarnation,
            added_at_ns=now,
            machine=machine_id(),
        )
        document = ClusterDocument(
            id=cluster_id, name=cluster, version=DocumentId(1, 0, 1), epoch=0, nodes=(node,)
        )
        me = NodeFile(
            name=name,
            role=Role.MASTER,
            cluster=cluster_id,
            incarnation=incarnation,
            machine_id=machine_id(),
            listen=places.listen,
            advertise=places.advertise,
            hash_seed=secrets.randbits(64),
        )
    except ValidationError as error:
        raise CrnodeError("The cluster was not made.", sentence(error), "", ExitCode.USAGE) from error
    try:
        make_private_dir(data)
        with DataLock(data):
            make_private_dir(data / "ca")
            atomic_write(data / CA_CERTIFICATE_FILE, authority.certificate_pem)
            atomic_write(data / CA_KEY_FILE, authority.key_pem)
            atomic_write(data / KEY_FILE, key)
            atomic_write(data / CERTIFICATE_FILE, certificate_pem(certificate))
            atomic_write(data / DOCUMENT_FILE, document.to_bytes())
            me.write(data)
    except OSError as error:
        raise cannot_write(data, error) from error
    return document


def cannot_write(data: Path, error: OSError) -> CrnodeError:
    """The sentence for a data directory that the system does not let us write."""
    return CrnodeError(
        f"The data directory '{data}' cannot be written.",
        f"The system says: {error.strerror or error}.",
        "Give another one with --data, or run this as a user who may write there.",
    )
