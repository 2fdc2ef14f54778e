"""The cluster's own certificate authority and the nodes' certificates (EC P-256, X.509).

The CA says "this was once made a node of our cluster"; whether it still is one is said by the fingerprint in
the cluster document. That is why the dates in a node's certificate never close a door (rule 26): they only
warn.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from crnode.cluster.document import fingerprint
from crnode.errors import CrnodeError, ExitCode

CA_DAYS = 3650
"""The CA outlives the hardware it was made on."""
NODE_DAYS = 730
"""A node's certificate; renewed at two thirds of that."""
_BACKDATE = datetime.timedelta(days=1)
_NS = 1_000_000_000

__all__ = [
    "CertificateAuthority",
    "certificate_name",
    "certificate_pem",
    "create_csr",
    "create_key",
    "create_key_and_csr",
    "csr_public_key",
    "fingerprint",
    "load_certificate",
    "same_key",
    "valid_until_ns",
]


def _time(now: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(now // _NS, datetime.UTC)


def _called(name: str, organization: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if organization:  # a CA may be called like one of its nodes; issuer and subject must still differ
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CrnodeError(
            f"{what} cannot be read.", "It is not a PEM private key.", "Restore it from a backup."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CrnodeError(
            f"{what} cannot be used.", "It is not an elliptic-curve key.", "Restore it from a backup."
        )
    return key


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def create_key() -> bytes:
    """A new private key, PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def create_csr(key_pem: bytes, name: str) -> bytes:
    """A signing request (DER) by the owner of the key, for a node called `name`."""
    key = _load_key(key_pem, "The node's private key")
    request = x509.CertificateSigningRequestBuilder().subject_name(_called(name)).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def create_key_and_csr(name: str) -> tuple[bytes, bytes]:
    """(new private key PEM, signing request DER)."""
    key = create_key()
    return key, create_csr(key, name)


def _read_csr(csr: bytes) -> tuple[x509.CertificateSigningRequest, ec.EllipticCurvePublicKey]:
    what = "The signing request was refused."
    try:
        request = x509.load_der_x509_csr(csr)
        signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise CrnodeError(what, "It is not a certificate signing request.", "", ExitCode.REFUSED) from error
    if not signed:
        raise CrnodeError(what, "It is not signed with the key that it names.", "", ExitCode.REFUSED)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CrnodeError(what, "Its key is not of the kind EC P-256.", "", ExitCode.REFUSED)
    return request, key


def csr_public_key(csr: bytes) -> bytes:
    """The public key of a signing request (both DER) whose signature holds. CrnodeError(REFUSED) else."""
    return _spki(_read_csr(csr)[1])


class CertificateAuthority:
    """Signs certificates. Its private key exists on the master alone."""

    def __init__(self, certificate_pem: bytes, key_pem: bytes) -> None:
        """Both as PEM. CrnodeError when they cannot be read or do not belong together."""
        self._key = _load_key(key_pem, "The private key of the cluster's CA")
        self._certificate = _load_pem(certificate_pem)
        if _certificate_spki(self._certificate) != _spki(self._key.public_key()):
            raise CrnodeError(
                "The cluster's CA cannot be used.",
                "Its certificate and its private key do not belong together.",
                "Restore ca/ca.pem and ca/ca.key from one backup.",
            )

    @classmethod
    def create(cls, cluster_name: str, now: int) -> CertificateAuthority:
        """A new CA for a new cluster; `now` is wall clock time in nanoseconds."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _called(cluster_name, "crnode cluster")
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(now) - _BACKDATE)
            .not_valid_after(_time(now) + datetime.timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        certificate = builder.sign(key, hashes.SHA256())
        return cls(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))

    @classmethod
    def load(cls, certificate: Path, key: Path) -> CertificateAuthority:
        """From two PEM files. CrnodeError when a file is missing or not what it should be."""
        try:
            pems = certificate.read_bytes(), key.read_bytes()
        except OSError as error:
            raise CrnodeError(
                "The cluster's CA cannot be opened.",
                f"The system says of '{error.filename}': {error.strerror}.",
                "Only the master has it; restore it there from a backup, and run crnode as its owner.",
            ) from error
        try:
            return cls(*pems)
        except CrnodeError as error:
            raise CrnodeError(
                error.what, f"{error.why} Its files are '{certificate}' and '{key}'.", error.hint
            ) from error

    @property
    def certificate_pem(self) -> bytes:
        """The CA's certificate, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        """The CA's certificate, DER; its :func:`fingerprint` is what a join token pins."""
        return self._certificate.public_bytes(serialization.Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        """The CA's private key, PEM: for ca/ca.key and nothing else."""
        return _key_pem(self._key)

    def issue(self, csr: bytes, name: str, now: int, days: int = NODE_DAYS) -> bytes:
        """A certificate (DER) for the key in `csr` (DER), naming `name` whatever the request asks for."""
        _, key = _read_csr(csr)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_called(name))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(now) - _BACKDATE)
            .not_valid_after(_time(now) + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.DER)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load_pem(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise CrnodeError(
            "A certificate cannot be read.", "It is not PEM.", "Restore it from a backup."
        ) from error


def load_certificate(der: bytes) -> x509.Certificate:
    """DER -> certificate. CrnodeError(REFUSED) when it is none."""
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise CrnodeError(
            "A certificate was refused.", "It cannot be read as X.509.", "", ExitCode.REFUSED
        ) from error


def certificate_pem(der: bytes) -> bytes:
    """DER -> PEM."""
    return load_certificate(der).public_bytes(serialization.Encoding.PEM)


def certificate_name(der: bytes) -> str:
    """The node name that the CA wrote into a certificate; '' when there is none."""
    names = load_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def valid_until_ns(der: bytes) -> int:
    """The end of a certificate's validity, wall clock nanoseconds: something to warn of, never a reason to
    refuse.
    """
    return int(load_certificate(der).not_valid_after_utc.timestamp()) * _NS


def _certificate_spki(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def same_key(der: bytes, key_pem: bytes) -> bool:
    """Whether a certificate (DER) was issued for the private key (PEM)."""
    key = _load_key(key_pem, "The node's private key")
    return _certificate_spki(load_certificate(der)) == _spki(key.public_key())
