"""Who can reach the server: whether an address may be listened on with what protects it."""

from __future__ import annotations

from collections.abc import Mapping

from ...config import Address, Settings
from ...core.errors import Code, Error
from ...host.ports import is_loopback

TLS = "use TLS (--tls-cert, --tls-key)"
IDENTITY = "have callers show who they are (loramux keys create; --oidc-issuer; --tls-tenant-from-san)"
METRICS_TLS = "use TLS (--metrics-tls)"
METRICS_TOKEN = "ask for a token (--metrics-token)"


def check_listen(settings: Settings, *, callers_known: bool) -> None:
    """Raise FAILED_PRECONDITION where other machines could reach a server that does not keep them off.

    ``callers_known``: callers must show a key, a token or a certificate that names their tenant.
    """
    protection = {TLS: bool(settings.tls.cert), IDENTITY: callers_known}
    _check(settings, "--listen", settings.listen, protection)
    if settings.http_listen:
        _check(settings, "--http-listen", settings.http_listen, protection)


def may_be_open(settings: Settings) -> bool:
    """Whether a server without keys may take everybody for the default tenant: only this machine reaches it.

    Or the operator says so. It never is where certificates tell who calls: one that names no tenant must open nothing.
    """
    addresses = [settings.listen, *([settings.http_listen] if settings.http_listen else [])]
    local = all(is_loopback(address.host) for address in addresses)
    return settings.tls.tenant_from_san is None and (settings.insecure or local)


def check_metrics_listen(settings: Settings) -> None:
    """As for calls: the metrics name tenants and adapters, and tell how much each is used."""
    if settings.metrics_listen:
        protection = {METRICS_TLS: settings.metrics_tls, METRICS_TOKEN: bool(settings.metrics_token)}
        _check(settings, "--metrics-listen", settings.metrics_listen, protection)


def _check(settings: Settings, flag: str, address: Address, protection: Mapping[str, bool]) -> None:
    missing = " and ".join(what for what, there in protection.items() if not there)
    if not missing or settings.insecure or is_loopback(address.host):
        return
    raise Error(
        Code.FAILED_PRECONDITION,
        f"{flag} {address} lets other machines in: {missing}; or listen on loopback ({flag} 127.0.0.1:{address.port});"
        " or say --insecure, if whoever reaches it may read and change all",
        reason="LISTENS_OPENLY",
    )
