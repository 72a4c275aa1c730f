"""Whether a server could listen somewhere."""

from __future__ import annotations

import ipaddress
import socket

from ..core.errors import Code, Error


def why_not(host: str, port: int) -> str:
    """Why nobody can listen there now; empty: one can. Port 0 is any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            # Two sockets may be bound with that option as long as none listens.
            probe.listen()
        except OSError as error:
            return error.strerror or str(error)
    return ""


def is_loopback(host: str) -> bool:
    """Whether what listens there is reached from this machine only: every address of the host is a loopback one."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    addresses = [ipaddress.ip_address(str(address[0])) for *_, address in found]
    return bool(addresses) and all((getattr(ip, "ipv4_mapped", None) or ip).is_loopback for ip in addresses)


def cannot_listen(host: str, port: int, why: str, flag: str = "--listen") -> Error:
    """The error of a door's port that cannot be had; ``flag`` sets it."""
    return Error(
        Code.FAILED_PRECONDITION,
        f"cannot listen on {_shown(host, port)}: {why} (choose another with {flag})",
        reason="PORT_UNAVAILABLE",
    )


def cannot_serve_metrics(host: str, port: int, why: str) -> Error:
    """The error of a metrics port that cannot be had."""
    return Error(
        Code.FAILED_PRECONDITION,
        f"cannot serve metrics on {_shown(host, port)}: {why}"
        " (choose another with --metrics-listen, or --metrics-listen off)",
        reason="METRICS_PORT_UNAVAILABLE",
    )


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
