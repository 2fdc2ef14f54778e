"""Keys, certificates, the node file, and what makes a data directory usable (rules 26 and 90)."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from crnode.cluster.create import choose_places, create_cluster
from crnode.cluster.document import fingerprint, parse_document
from crnode.cluster.identity import (
    CertificateAuthority,
    certificate_name,
    certificate_pem,
    create_csr,
    create_key_and_csr,
    csr_public_key,
    same_key,
    valid_until_ns,
)
from crnode.cluster.node_file import DataLock, check_data_dir, check_fresh, read_node_file
from crnode.errors import CrnodeError, ExitCode

NOW = 1_700_000_000_000_000_000
PLACES = choose_places("127.0.0.1:7400", None)


def test_the_ca_names_the_node_whatever_the_request_says() -> None:
    authority = CertificateAuthority.create("shop", NOW)
    key, csr = create_key_and_csr("i-want-to-be-master")
    der = authority.issue(csr, "box2", NOW)
    assert certificate_name(der) == "box2"
    assert same_key(der, key)
    assert not same_key(der, create_key_and_csr("other")[0])
    assert 700 < (valid_until_ns(der) - NOW) / 86_400e9 < 740
    assert ssl.PEM_cert_to_DER_cert(certificate_pem(der).decode()) == der
    assert len(fingerprint(der)) == 64


def test_the_longest_cluster_name_fits_into_a_certificate(tmp_path: Path) -> None:
    assert create_cluster(tmp_path / "data", "n" * 63, "c" * 63, PLACES, NOW).name == "c" * 63


def test_a_request_must_be_signed_with_its_own_key() -> None:
    _, csr = create_key_and_csr("box2")
    forged = bytearray(csr)
    forged[-5] ^= 1  # inside the signature
    for bad in (bytes(forged), b"", b"nonsense", csr[:-1]):
        with pytest.raises(CrnodeError) as caught:
            csr_public_key(bad)
        assert caught.value.exit_code is ExitCode.REFUSED


def test_only_our_kind_of_key_gets_a_certificate() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    with pytest.raises(CrnodeError, match="P-256"):
        csr_public_key(csr.public_bytes(serialization.Encoding.DER))


def test_the_same_key_makes_requests_for_the_same_key() -> None:
    key, csr = create_key_and_csr("box2")
    assert csr_public_key(csr) == csr_public_key(create_csr(key, "box2"))


def test_a_ca_with_anothers_key_is_not_used() -> None:
    one, other = CertificateAuthority.create("a", NOW), CertificateAuthority.create("b", NOW)
    with pytest.raises(CrnodeError, match="belong together"):
        CertificateAuthority(one.certificate_pem, other.key_pem)


def test_init_makes_a_private_directory_with_a_valid_document(tmp_path: Path) -> None:
    data = tmp_path / "data"
    document = create_cluster(data, "shop1", "shop", PLACES, NOW)
    check_data_dir(data)
    assert parse_document((data / "cluster.json").read_bytes()) == document
    node = read_node_file(data)
    assert (node.name, node.cluster, node.incarnation) == ("shop1", document.id, document.master.incarnation)
    assert node.is_this_machine()
    der = ssl.PEM_cert_to_DER_cert((data / "node.pem").read_text())
    assert fingerprint(der) == document.master.fingerprint
    for name in ("node.key", "ca/ca.key", "node.json"):
        assert (data / name).stat().st_mode & 0o777 == 0o600


def test_init_again_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    create_cluster(data, "shop1", "shop", PLACES, NOW)
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    with pytest.raises(CrnodeError, match="already") as caught:
        create_cluster(data, "shop2", "shop", PLACES, NOW)
    assert caught.value.exit_code is ExitCode.REFUSED
    assert before == {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}


def test_init_after_a_crash_in_the_middle_goes_through(tmp_path: Path) -> None:
    data = tmp_path / "data"
    create_cluster(data, "shop1", "shop", PLACES, NOW)
    (data / "node.json").unlink()  # it is written last: all states of a crash lack it
    with pytest.raises(CrnodeError, match="not the data directory"):
        read_node_file(data)
    document = create_cluster(data, "shop1", "shop", PLACES, NOW)
    assert read_node_file(data).cluster == document.id


def test_a_directory_with_other_things_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    mode = tmp_path.stat().st_mode
    with pytest.raises(CrnodeError, match=r"holiday\.jpg"):
        create_cluster(tmp_path, "shop1", "shop", PLACES, NOW)
    assert tmp_path.stat().st_mode == mode and sorted(os.listdir(tmp_path)) == ["holiday.jpg"]
    check_fresh(tmp_path / "new")


@pytest.mark.parametrize("name", ["Shop 1", "", "-x", "a" * 64])
def test_a_bad_name_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    with pytest.raises(CrnodeError) as caught:
        create_cluster(tmp_path / "data", name, "shop", PLACES, NOW)
    assert caught.value.exit_code is ExitCode.USAGE
    assert not (tmp_path / "data").exists()


def test_a_directory_that_others_can_read_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    create_cluster(data, "shop1", "shop", PLACES, NOW)
    data.chmod(0o750)
    with pytest.raises(CrnodeError, match="0750") as caught:
        check_data_dir(data)
    assert caught.value.hint == f"Run: chmod 700 {data}"
    with pytest.raises(CrnodeError, match="no data directory"):
        check_data_dir(tmp_path / "missing")


def test_a_copied_directory_is_noticed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    create_cluster(data, "shop1", "shop", PLACES, NOW)
    node = read_node_file(data)
    node.model_copy(update={"machine_id": "another machine"}).write(data)
    assert not read_node_file(data).is_this_machine()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    create_cluster(data, "shop1", "shop", PLACES, NOW)
    read_node_file(data).model_copy(update={"format_level": 99}).write(data)
    with pytest.raises(CrnodeError, match="newer"):
        read_node_file(data)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with DataLock(tmp_path):
        code = (
            "import sys, pathlib; from crnode.cluster.node_file import DataLock\n"
            "try: DataLock(pathlib.Path(sys.argv[1]))\n"
            "except Exception as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert f"Process {os.getpid()}" in done.stdout
    DataLock(tmp_path).release()


def test_places() -> None:
    assert choose_places("0.0.0.0:7401", None, "10.0.0.5").advertise == "10.0.0.5:7401"
    assert choose_places("0.0.0.0:7401", "shop.example:80", "10.0.0.5").advertise == "shop.example:80"
    assert choose_places("[::1]:7401", None).warning
    for listen, advertise in (
        ("0.0.0.0:0", None),
        ("x:y", None),
        ("0.0.0.0:7400", "0.0.0.0:7400"),
        ("h:1", "h:0"),
    ):
        with pytest.raises(CrnodeError) as caught:
            choose_places(listen, advertise)
        assert caught.value.exit_code is ExitCode.USAGE
