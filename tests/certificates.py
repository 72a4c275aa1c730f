"""Certificates for tests: CAs, what they sign, and the files that a server reads."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Issued:
    """A certificate with its private key."""

    certificate: x509.Certificate
    private: CertificateIssuerPrivateKeyTypes

    @property
    def cert(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key(self) -> bytes:
        return self.key_with()

    def key_with(self, passphrase: bytes = b"") -> bytes:
        encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)

    def issue(
        self,
        *names: str,
        key: CertificateIssuerPrivateKeyTypes | None = None,
        begins: timedelta = -DAY,
        ends: timedelta = DAY,
    ) -> Issued:
        """A certificate for these names: URIs, IP addresses, mail addresses, and else DNS names."""
        return _make(names[0], self, names, key, begins, ends)

    def write(self, folder: Path, name: str = "tls") -> tuple[Path, Path]:
        """As files in ``folder``: certificate and key."""
        cert, private = folder / f"{name}.crt", folder / f"{name}.key"
        cert.write_bytes(self.cert)
        private.write_bytes(self.key)
        return cert, private


def new_ca(name: str = "a test's CA", begins: timedelta = -DAY, ends: timedelta = DAY) -> Issued:
    return _make(name, None, (), None, begins, ends)


def _make(
    common_name: str,
    issuer: Issued | None,
    names: tuple[str, ...],
    key: CertificateIssuerPrivateKeyTypes | None,
    begins: timedelta,
    ends: timedelta,
) -> Issued:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_san(name) for name in names]), critical=False)
    return Issued(builder.sign(issuer.private if issuer else key, SHA256()), key)


def _san(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    if "@" in name:
        return x509.RFC822Name(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
