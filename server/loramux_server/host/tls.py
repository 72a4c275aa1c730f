"""Contexts of Python's ``ssl`` for certificates that are followed."""

from __future__ import annotations

import ssl
from contextlib import suppress

from .certificates import Certificate, CertificateFiles


class TlsContext:
    """The context for the certificate that the files hold now. Thread-safe.

    ``ask_clients``: clients must show a certificate where the files name a CA for them.
    """

    def __init__(self, files: CertificateFiles, *, ask_clients: bool = False) -> None:
        self._files, self._ask_clients = files, ask_clients
        self._made: tuple[Certificate, ssl.SSLContext] = self._make(files.current())

    def newest(self) -> ssl.SSLContext:
        """Made anew after a change of the files."""
        certificate = self._files.current()
        if certificate is not self._made[0]:
            with suppress(OSError):  # the files are just changing again; the next connection finds them
                self._made = self._make(certificate)
        return self._made[1]

    def _make(self, certificate: Certificate) -> tuple[Certificate, ssl.SSLContext]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # From the files, because ``ssl`` takes no bytes. Without a password it would ask for one on the terminal.
        context.load_cert_chain(self._files.cert, self._files.key, password="")
        if self._ask_clients and certificate.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=certificate.client_ca.decode())
        return certificate, context


def following(tls: TlsContext) -> ssl.SSLContext:
    """A context for a server that takes only one: each connection gets the newest certificate."""

    def newest(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = tls.newest()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = tls.newest().verify_mode  # OpenSSL takes this one from the first context
    context.sni_callback = newest
    return context
