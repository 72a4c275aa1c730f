"""TLS of the gRPC door: what the server shows, and the names in what clients show."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from grpc import aio

from ..host.certificates import Certificate, CertificateFiles

Context: TypeAlias = "aio.ServicerContext[Any, Any]"

_KINDS = {"peer_dns": "DNS", "peer_uri": "URI"}
"""What gRPC calls the names of a certificate that it has verified."""


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files: each handshake is done with what they hold when it begins.

    gRPC takes TLS 1.2 and 1.3 only. Connections that are open stay as they are.
    """
    shown = files.current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """The configuration, if it changed. gRPC calls this from its own threads, before each handshake."""
        nonlocal shown
        newest = files.current()
        if newest is shown:
            return None
        shown = newest
        return _configuration(newest)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(shown),
        fetch,  # type: ignore[arg-type]  # the stubs do not know that None means no change
        require_client_authentication=files.client_ca is not None,
    )


def certificate_names(context: Context) -> tuple[str, ...]:
    """Subject alternative names of the client's certificate, each ``DNS:NAME`` or ``URI:NAME``."""
    found = context.auth_context()
    return tuple(f"{kind}:{_text(name)}" for key, kind in _KINDS.items() for name in found.get(key, ()))


def _text(name: bytes) -> str:
    return name.decode("ascii", errors="replace")


def _configuration(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(certificate.key, certificate.chain)], certificate.client_ca)
