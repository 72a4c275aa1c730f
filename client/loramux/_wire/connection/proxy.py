"""The HTTP proxy that gRPC reads from the environment: never used for this machine, named where it may be at fault."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""In the order in which gRPC looks; the first one that is set counts."""
_EXCEPT = ("no_grpc_proxy", "no_proxy")


def is_local(address: str) -> bool:
    """Whether a gRPC target names this machine: a loopback or unspecified address, ``localhost``, a Unix socket."""
    scheme, _, rest = address.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    host = _host(rest if scheme in ("dns", "ipv4", "ipv6") else address)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_loopback or ip.is_unspecified


def proxy_of(address: str) -> str:
    """``VARIABLE=URL`` of the proxy through which gRPC reaches a target, without credentials; empty: none."""
    if not address or is_local(address):
        return ""
    for name in VARIABLES:
        if value := os.environ.get(name):
            return "" if _excepted(_host(address)) else f"{name}={_without_credentials(value)}"
    return ""


def _excepted(host: str) -> bool:
    for name in _EXCEPT:
        if value := os.environ.get(name):
            return any(host.endswith(entry.strip()) for entry in value.split(",") if entry.strip())
    return False


def _host(target: str) -> str:
    target = target.rpartition("/")[2]  # dns://authority/host:port
    if target.startswith("["):
        return target[1:].partition("]")[0]
    return target if target.count(":") > 1 else target.partition(":")[0].lower()


def _without_credentials(url: str) -> str:
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(unreadable)"
    return f"{parts.scheme}://{host}" if parts.scheme else host
