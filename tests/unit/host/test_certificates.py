"""The files of the server's certificate: what is refused, and how renewals are found."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from loramux_server.core.errors import Code, Error
from loramux_server.host.certificates import CertificateFiles, read_certificate
from tests.certificates import DAY, LOOPBACK, Issued, new_ca

CA = new_ca()
SERVER = CA.issue(*LOOPBACK)
Files = tuple[Path, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return SERVER.write(tmp_path)


def refusal(*files: Path) -> str:
    with pytest.raises(Error) as caught:
        read_certificate(*files)
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "CERTIFICATE_UNUSABLE")
    return caught.value.message


def test_what_is_read(files: Files, tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes(CA.cert)
    found = read_certificate(*files, ca)
    assert (found.chain, found.key, found.client_ca) == (SERVER.cert, SERVER.key, CA.cert)
    assert found.expires == SERVER.certificate.not_valid_after_utc.timestamp()
    assert "PRIVATE" not in repr(found)


def test_a_chain_is_that_of_its_first_certificate(files: Files) -> None:
    files[0].write_bytes(SERVER.cert + CA.issue("other", ends=DAY / 2).cert)
    assert read_certificate(*files).expires == SERVER.certificate.not_valid_after_utc.timestamp()


def empty(cert: Path, key: Path) -> None:
    cert.write_bytes(b"")


def gone(cert: Path, key: Path) -> None:
    key.unlink()


def a_folder(cert: Path, key: Path) -> None:
    cert.unlink()
    cert.mkdir()


def der(cert: Path, key: Path) -> None:
    key.write_bytes(b"\x30\x82\x01\x0a\x00")


def swapped(cert: Path, key: Path) -> None:
    cert.write_bytes(SERVER.key)


def another_key(cert: Path, key: Path) -> None:
    key.write_bytes(CA.issue("x").key)


def encrypted(cert: Path, key: Path) -> None:
    key.write_bytes(SERVER.key_with(b"secret"))


def expired(cert: Path, key: Path) -> None:
    write(CA.issue("x", ends=-DAY / 2), cert, key)


def early(cert: Path, key: Path) -> None:
    write(CA.issue("x", begins=DAY / 2), cert, key)


def write(issued: Issued, cert: Path, key: Path) -> None:
    cert.write_bytes(issued.cert)
    key.write_bytes(issued.key)


@pytest.mark.parametrize(
    ("damage", "flag", "told"),
    [
        (empty, "--tls-cert", "no certificate in PEM"),
        (gone, "--tls-key", "No such file"),
        (a_folder, "--tls-cert", "Is a directory"),
        (der, "--tls-key", "no private key in PEM"),
        (swapped, "--tls-cert", "no certificate in PEM"),
        (another_key, "--tls-key", "not the key of the certificate"),
        (encrypted, "--tls-key", "openssl pkey"),
        (expired, "--tls-cert", "expired on 20"),
        (early, "--tls-cert", "not valid before 20"),
    ],
)
def test_files_that_cannot_be_used(files: Files, damage: Callable[[Path, Path], None], flag: str, told: str) -> None:
    damage(*files)
    message = refusal(*files)
    assert message.startswith(f"{flag}: ")
    assert told in message
    assert str(files[0].parent) in message


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        (ec.generate_private_key(ec.SECP384R1()), True),
        (ec.generate_private_key(ec.SECP521R1()), False),
        (rsa.generate_private_key(65537, 2048), True),
        (rsa.generate_private_key(65537, 1024), False),
        (ed25519.Ed25519PrivateKey.generate(), False),
    ],
)
def test_kinds_of_keys(files: Files, key: ec.EllipticCurvePrivateKey, taken: bool) -> None:
    write(CA.issue("x", key=key), *files)
    if taken:
        read_certificate(*files)
    else:
        assert "P-256 or P-384, or for RSA of 2048 bits" in refusal(*files)


def test_cas_of_clients(files: Files, tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    assert refusal(*files, ca).startswith("--tls-client-ca: cannot read")
    ca.write_text("no certificate")
    assert refusal(*files, ca).startswith("--tls-client-ca: ")
    old = new_ca(ends=-DAY / 2)
    ca.write_bytes(old.cert)
    assert "expired" in refusal(*files, ca)
    ca.write_bytes(old.cert + CA.cert)  # as bundles are, one of them is enough
    read_certificate(*files, ca)


def replace(path: Path, data: bytes) -> None:
    """As a careful program writes a file."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.rename(path)


def watched(files: Files) -> tuple[CertificateFiles, list[str]]:
    found, told = CertificateFiles(*files), []
    found.changed = lambda problem: told.append(problem.message if problem else "ok")
    return found, told


def test_a_renewal_by_rename_is_found(files: Files) -> None:
    found, told = watched(files)
    first = found.current()
    assert found.current() is first
    renewed = CA.issue(*LOOPBACK, key=SERVER.private, ends=3 * DAY)
    replace(files[0], renewed.cert)
    assert found.current().chain == renewed.cert
    assert found.current() is found.current()
    assert told == ["ok"]


def test_a_renewal_by_a_symbolic_link_is_found(tmp_path: Path) -> None:
    """As Kubernetes mounts a secret: ``tls.crt -> ..data/tls.crt``, ``..data -> ..2026_1``, swapped as a whole."""
    renewed = CA.issue(*LOOPBACK)
    for name, issued in (("..2026_1", SERVER), ("..2026_2", renewed)):
        (tmp_path / name).mkdir()
        issued.write(tmp_path / name)
    (tmp_path / "..data").symlink_to("..2026_1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    found, told = watched((tmp_path / "tls.crt", tmp_path / "tls.key"))
    (tmp_path / "..new").symlink_to("..2026_2")
    os.rename(tmp_path / "..new", tmp_path / "..data")
    assert found.current().chain == renewed.cert
    assert told == ["ok"]


def test_a_renewal_that_cannot_be_used_changes_nothing_and_is_told_once(files: Files) -> None:
    found, told = watched(files)
    renewed = CA.issue(*LOOPBACK)
    replace(files[0], renewed.cert)  # its key is not there yet
    assert [found.current().chain for _ in range(3)] == [SERVER.cert] * 3
    assert len(told) == 1
    assert "not the key" in told[0]
    replace(files[1], b"nonsense")
    assert found.current().chain == SERVER.cert
    assert len(told) == 2
    replace(files[1], renewed.key)
    assert found.current().chain == renewed.cert
    assert told[2:] == ["ok"]


def test_files_that_are_gone_for_a_moment_change_nothing(files: Files) -> None:
    found, told = watched(files)
    files[0].rename(files[0].with_suffix(".old"))
    assert found.current().chain == SERVER.cert
    files[0].with_suffix(".old").rename(files[0])
    assert found.current().chain == SERVER.cert
    assert [message.partition(":")[0] for message in told] == ["--tls-cert"]


def test_a_certificate_that_is_not_valid_yet_is_used_once_it_is(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    found, told = watched(files)
    soon = CA.issue(*LOOPBACK, key=SERVER.private, begins=timedelta(hours=1))
    replace(files[0], soon.cert)
    assert found.current().chain == SERVER.cert
    from loramux_server.host import certificates

    class Later(certificates.datetime):
        @classmethod
        def now(cls, tz: object = None) -> Later:
            return super().now(tz) + timedelta(hours=2)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(certificates, "datetime", Later)
    assert found.current().chain == soon.cert
    assert told[1:] == ["ok"]
