"""What a client shows and trusts on a TLS connection."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

from ...errors import invalid

File: TypeAlias = str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class Trust:
    """How a server is recognised, and the certificate that is shown to it."""

    ca_file: File = None
    """CAs of the server in PEM; None: those that gRPC brings."""
    cert_file: File = None
    key_file: File = None
    server_name: str | None = None
    """Name that the server's certificate must have; None: the host of the address."""
    root_certificates: bytes | None = None
    """The content of a ``ca_file``, in its place."""

    @classmethod
    def given(cls, **values: File | bytes) -> Trust:
        """What is given; the rest comes from LORAMUX_CA_FILE and so on."""
        if values.get("root_certificates") is None:
            values["ca_file"] = _or_variable(values.get("ca_file"), "LORAMUX_CA_FILE")
        elif values.get("ca_file") is not None:
            raise invalid("ca_file", "cannot be given beside root_certificates, which are such a file's content")
        for name in ("cert_file", "key_file", "server_name"):
            values[name] = _or_variable(values.get(name), f"LORAMUX_{name.upper()}")
        return cls(**values)  # type: ignore[arg-type]

    @property
    def wanted(self) -> bool:
        """Whether any of it was given: then the connection is meant to be TLS."""
        return any((self.ca_file, self.cert_file, self.key_file, self.server_name, self.root_certificates is not None))

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel. Raises InvalidArgument naming what cannot be used."""
        if bool(self.cert_file) != bool(self.key_file):
            missing, there = ("key_file", "cert_file") if self.cert_file else ("cert_file", "key_file")
            raise invalid(missing, f"must be given beside {there}")
        roots = self.root_certificates
        if self.ca_file:
            roots = _read("ca_file", self.ca_file, b"CERTIFICATE")
        if not self.cert_file or not self.key_file:
            return grpc.ssl_channel_credentials(roots)
        key = _read("key_file", self.key_file, b"PRIVATE KEY")
        return grpc.ssl_channel_credentials(roots, key, _read("cert_file", self.cert_file, b"CERTIFICATE"))


def _or_variable(value: File | bytes, variable: str) -> File | bytes:
    return value if value is not None else os.environ.get(variable) or None


def _read(field: str, file: str | os.PathLike[str], what: bytes) -> bytes:
    try:
        data = Path(file).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        raise invalid(field, f"cannot read {os.fspath(file)!r}: {getattr(error, 'strerror', None) or error}") from None
    if what + b"-----" not in data or b"ENCRYPTED" in data:
        plain = " without a passphrase" if field == "key_file" else ""
        raise invalid(field, f"{os.fspath(file)!r} holds no {what.decode().lower()} in PEM{plain}")
    return data
