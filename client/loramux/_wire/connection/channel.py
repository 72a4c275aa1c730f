"""How a client reaches a server: address, key, retries. Shared by the sync and the async client."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from os import PathLike
from urllib.parse import urlsplit

import grpc

from ...errors import invalid
from .proxy import is_local
from .tls import File, Trust
from .tracing import trace_headers

DEFAULT_ADDRESS = "localhost:50051"
DEFAULT_PORT = 50051
MAX_MESSAGE = 64 << 20
_PLAIN, _SECURE = ("http", "grpc"), ("https", "grpcs")
"""Schemes of an address."""

# Calls that may be made twice without harm. CreateJob is one because it carries an idempotency key.
_REPEATABLE = {
    "InferenceService": ("GenerateOnce", "Score", "Tokenize"),
    "AdapterService": ("ListAdapters", "GetAdapter", "SetAlias", "PinAdapter", "UnpinAdapter", "ShareAdapter"),
    "TrainingService": ("ListDatasets", "ValidateDataset", "CreateJob", "GetJob", "ListJobs", "CancelJob"),
    "ServerService": ("GetServerInfo",),
}

SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": f"loramux.v1.{service}", "method": method}
                    for service, methods in _REPEATABLE.items()
                    for method in methods
                ],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)

OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # A server that restarts is found again within seconds, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3000),
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect to and how. ``authorization`` goes with every call."""

    address: str
    authorization: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    credentials: grpc.ChannelCredentials | None = None
    """None: plain text."""
    server_name: str | None = None
    """Name that the server's certificate must have; None: the host of the address."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with a call that is made now: who calls, and under which span of the application."""
        return (*self.authorization, *trace_headers())

    @property
    def url(self) -> str:
        """The address as errors name it: with ``https://`` where TLS is spoken."""
        return self.address if self.credentials is None else f"https://{self.address}"

    @property
    def options(self) -> tuple[tuple[str, str | int], ...]:
        """Options of the channel. A proxy of the environment is for other machines, never for this one."""
        options = (*OPTIONS, ("grpc.enable_http_proxy", 0)) if is_local(self.address) else OPTIONS
        return (*options, ("grpc.ssl_target_name_override", self.server_name)) if self.server_name else options


def target(
    address: str | None,
    api_key: str | None,
    tls: bool | None = None,
    root_certificates: bytes | None = None,
    *,
    ca_file: File = None,
    cert_file: File = None,
    key_file: File = None,
    server_name: str | None = None,
) -> Target:
    """Where to connect to: what is given, else LORAMUX_ADDRESS, LORAMUX_API_KEY and so on, else ``localhost:50051``.

    ``https://`` in front of the address means TLS, ``http://`` none; without either, a file or name that is for TLS
    means it. A missing port is 50051. Raises InvalidArgument for what is wrong or contradicts itself, and for a key
    that would cross a network in plain text unless ``http://`` or ``tls=False`` says that it may.
    """
    given = {"ca_file": ca_file, "cert_file": cert_file, "key_file": key_file, "server_name": server_name}
    for name, value, kind, wanted in (
        ("address", address, str, "text such as localhost:50051"),
        ("api_key", api_key, str, "text"),
        ("root_certificates", root_certificates, bytes, "the bytes of certificates in PEM"),
        ("server_name", server_name, str, "text"),
        *((name, given[name], (str, PathLike), "a path") for name in ("ca_file", "cert_file", "key_file")),
    ):
        if value is not None and not isinstance(value, kind):  # type: ignore[arg-type]
            raise invalid(name, f"must be {wanted}, not {type(value).__name__}")
    scheme, host = _parts(address or os.environ.get("LORAMUX_ADDRESS") or DEFAULT_ADDRESS)
    plain = tls is False or (tls is None and scheme in _PLAIN)
    for name, value in {**given, "root_certificates": root_certificates}.items():
        if plain and value is not None:
            raise invalid(name, f"is for TLS, and {'tls=False' if tls is False else scheme + '://'} means plain text")
    trust = Trust.given(**given, root_certificates=root_certificates)
    secure = not plain and (tls is True or scheme in _SECURE or trust.wanted)
    key = api_key if api_key is not None else os.environ.get("LORAMUX_API_KEY")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise invalid("api_key", "has characters that no key has")
    if key and not (secure or plain or is_local(host)):
        raise invalid(
            "api_key",
            f"would cross the network to {host} in plain text; write https:// in front of the address (or tls=True) for"
            " TLS, or http:// (or tls=False) if all who can listen there may have it",
        )
    authorization = (("authorization", f"Bearer {key}"),) if key else ()
    if not secure:
        return Target(host, authorization)
    return Target(host, authorization, trust.credentials(), trust.server_name)


def _parts(text: str) -> tuple[str, str]:
    """The scheme of an address, empty where it has none, and the target for gRPC."""
    if text.startswith(("unix:", "dns:", "ipv4:", "ipv6:")):
        return "", text
    scheme, separator, rest = text.partition("://")
    if not separator:
        return "", _host_port(text)
    if scheme not in _PLAIN + _SECURE:
        raise invalid("address", f"{text!r} has an unknown scheme; write host:port or https://host:port")
    return scheme, _host_port(rest)


def _host_port(text: str) -> str:
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port or DEFAULT_PORT
    except ValueError:
        raise invalid("address", f"{text!r} is no address; write host:port") from None
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
        raise invalid("address", f"{text!r} is no address; write host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}"
