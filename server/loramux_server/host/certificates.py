"""The certificate of the server: read from files, checked, and read again when the files change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..core.errors import Code, Error

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
    from cryptography.x509 import Certificate as X509

Changed: TypeAlias = Callable[[Error | None], object]
"""Told of new files: None when they are used from now on, else why the certificate before them stays."""

_State: TypeAlias = tuple[tuple[int, int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a TLS server shows and asks for, as its files had it at one moment."""

    chain: bytes
    """PEM: the server's own certificate, then those between it and its CA."""
    key: bytes = field(repr=False)
    """PEM, without a passphrase."""
    client_ca: bytes | None
    """PEM: CAs whose certificates clients must show; None: clients need none."""
    expires: float
    """Seconds since the epoch at which the server's own certificate ends."""


class CertificateFiles:
    """The files of a certificate. May be used from any thread.

    Whoever begins a connection asks for ``current()``, which looks at the files and reads those that changed, by
    rename or by a symbolic link that points elsewhere. New files that cannot be used change nothing.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read the files. Raises ``Error`` FAILED_PRECONDITION, whose sentence names the flag and the file."""
        self.cert, self.key, self.client_ca = cert, key, client_ca
        self.changed: Changed = lambda problem: None
        self._lock = threading.Lock()
        self._used = self._state()
        self._refused: _State | None = None
        self._current = read_certificate(cert, key, client_ca)

    def current(self) -> Certificate:
        """The newest certificate that can be used."""
        with self._lock:
            state = self._state()
            if state != self._used:
                self._take(state)
            return self._current

    def _take(self, state: _State) -> None:
        """Use what the files hold now. A failure is told once for each state of the files, and tried again."""
        try:
            self._current = read_certificate(self.cert, self.key, self.client_ca)
        except Error as error:
            if state != self._refused:
                self._refused = state
                self.changed(error)
            return
        self._used, self._refused = state, None
        self.changed(None)

    def _state(self) -> _State:
        return tuple(_stamp(path) for path in (self.cert, self.key, self.client_ca) if path is not None)


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    """What differs when a file was written, replaced, or reached through another link; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read_certificate(cert: Path, key: Path, client_ca: Path | None = None) -> Certificate:
    """Read and check the files. Raises ``Error`` FAILED_PRECONDITION, whose sentence names the flag and the file."""
    chain, private, cas = _read("--tls-cert", cert), _read("--tls-key", key), None
    own = _certificates("--tls-cert", cert, chain)[0]
    public = _public_key(key, private)
    _check_kind(key, public)
    if own.public_key() != public:
        raise _unusable("--tls-key", f"{key} is not the key of the certificate in {cert}")
    _check_time("--tls-cert", cert, [own])
    if client_ca is not None:
        cas = _read("--tls-client-ca", client_ca)
        _check_time("--tls-client-ca", client_ca, _certificates("--tls-client-ca", client_ca, cas))
    return Certificate(chain, private, cas, own.not_valid_after_utc.timestamp())


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(flag, f"cannot read {path}: {error.strerror}") from None


def _certificates(flag: str, path: Path, pem: bytes) -> list[X509]:
    from cryptography.x509 import load_pem_x509_certificates  # takes as long as gRPC to import: only where TLS is on

    try:
        return load_pem_x509_certificates(pem)
    except ValueError:
        raise _unusable(flag, f"{path} holds no certificate in PEM") from None


def _public_key(path: Path, pem: bytes) -> PublicKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(pem, None).public_key()
    except TypeError:
        told = f"{path} is encrypted; write it without a passphrase: openssl pkey -in {path} -out plain.key"
        raise _unusable("--tls-key", told) from None
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable("--tls-key", f"{path} holds no private key in PEM") from None


def _check_kind(path: Path, key: PublicKeyTypes) -> None:
    """Refuse keys with which gRPC would fail every handshake, and those that are too short to trust."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        return
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return
    raise _unusable("--tls-key", f"{path} must be for ECDSA on P-256 or P-384, or for RSA of 2048 bits or more")


def _check_time(flag: str, path: Path, certificates: list[X509]) -> None:
    """Refuse a file without a certificate that is valid now."""
    now = datetime.now(UTC)
    if all(certificate.not_valid_after_utc <= now for certificate in certificates):
        end = max(certificate.not_valid_after_utc for certificate in certificates)
        raise _unusable(flag, f"the certificate in {path} expired on {end:%Y-%m-%d %H:%M} UTC; renew it")
    if all(certificate.not_valid_before_utc > now for certificate in certificates):
        begin = min(certificate.not_valid_before_utc for certificate in certificates)
        told = f"the certificate in {path} is not valid before {begin:%Y-%m-%d %H:%M} UTC; check this machine's clock"
        raise _unusable(flag, told)


def _unusable(flag: str, told: str) -> Error:
    return Error(Code.FAILED_PRECONDITION, f"{flag}: {told}", reason="CERTIFICATE_UNUSABLE")
