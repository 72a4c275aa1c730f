"""URLs of other services that this one talks to."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit


def why_not_trusted(url: str) -> str:
    """Why what a URL gives cannot be believed; empty: it can. Plain http is for this machine only."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https") or parts.username is not None or not url.isprintable():
        return "must be a URL such as https://accounts.example.com"
    if parts.scheme == "http" and not is_loopback(host):
        return "must begin with https://; http:// is for loopback addresses only"
    return ""


def why_no_endpoint(url: str) -> str:
    """Why spans cannot be sent to a URL; empty: they can."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("grpc", "grpcs", "http", "https") or not url.isprintable():
        return "must be a URL such as grpc://collector:4317 or http://collector:4318/v1/traces"
    if parts.username is not None:
        return "must not hold a password; give it in OTEL_EXPORTER_OTLP_HEADERS"
    return ""


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine: ``localhost``, or a loopback address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
