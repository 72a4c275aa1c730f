"""Whether a server could listen somewhere."""

from __future__ import annotations

import ipaddress
import socket

from ..core.errors import Code, Error


def why_not(host: str, port: int) -> str:
    """Why nobody can listen there now; empty: one can. Port 0 is any free one."""
    try:
        with bound_socket(host, port) as probe:
            # Two sockets may be bound with SO_REUSEADDR as long as none listens.
            probe.listen()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def bound_socket(host: str, port: int) -> socket.socket:
    """A TCP socket that is bound and does not listen yet. Raises OSError where that cannot be.

    ``::`` is every address of the host, of IPv4 too, and IPv4 alone where the host has no IPv6: as gRPC takes it.
    """
    if host == "::" and not _has_ipv6():
        host = "0.0.0.0"
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((host, port))
    except BaseException:
        made.close()
        raise
    return made


def _has_ipv6() -> bool:
    """Whether this host knows IPv6 at all. A kernel may be without, as with ``ipv6.disable=1``."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


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
