"""URLs of other services that this one believes."""

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


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine: ``localhost``, or a loopback address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
