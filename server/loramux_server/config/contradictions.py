"""Settings that are fine alone and not together."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.errors import FieldViolation
from .tree import Settings


def check(settings: Settings) -> list[FieldViolation]:
    """What does not fit together, by the flag that is to be changed."""
    return [FieldViolation(flag, told) for flag, told in _found(settings)]


def _found(settings: Settings) -> Iterator[tuple[str, str]]:
    listen, metrics, tls = settings.listen, settings.metrics_listen, settings.tls
    if metrics and metrics == listen and listen.port:
        yield "--metrics-listen", f"must differ from --listen ({listen})"
    if tls.cert and not tls.key:
        yield "--tls-key", "must be given too: the private key of --tls-cert"
    if tls.key and not tls.cert:
        yield "--tls-cert", "must be given too: the certificate of --tls-key"
    if tls.client_ca and not (tls.cert or tls.key):
        yield "--tls-client-ca", "needs TLS: give --tls-cert and --tls-key too"
    if tls.tenant_from_san and not tls.client_ca:
        yield "--tls-tenant-from-san", "needs certificates of clients: give --tls-client-ca too"
    if settings.oidc.issuer and not settings.oidc.audience:
        yield "--oidc-audience", "must be given too: tokens of --oidc-issuer for others must open nothing here"
    if settings.oidc.audience and not settings.oidc.issuer:
        yield "--oidc-issuer", "must be given too: who makes the tokens for --oidc-audience"
    if settings.http_metrics and settings.metrics_token is None:
        yield "--metrics-token", "must be given too: --http-metrics shows the metrics to nobody else"
    if settings.metrics_tls and not (tls.cert or tls.key):
        yield "--metrics-tls", "needs a certificate: give --tls-cert and --tls-key too"
    if settings.backend == "embedded":
        if settings.replicas > 1:
            yield "--replicas", "must be 1 with --backend embedded, which has one engine; give --backend ray"
        if settings.autoscale:
            yield "--autoscale", "needs --backend ray: --backend embedded has one engine"
        if settings.ray_address:
            yield "--ray-address", "needs --backend ray"
        if settings.replica_dir:
            yield "--replica-dir", "needs --backend ray"
    elif settings.autoscale and settings.replicas > 1:
        yield "--replicas", f"must not be given beside --autoscale {settings.autoscale}"
    if settings.replica_dir and not settings.blobs_url:
        yield "--blobs-url", "must be given too: replicas with --replica-dir get adapters and rows from there"
