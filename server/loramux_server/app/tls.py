"""What the certificate of the server is used for, and what is told when its files change."""

from __future__ import annotations

from ..config import Settings, TlsSettings
from ..core.errors import Error
from ..host.certificates import CertificateFiles
from ..http.metrics import MetricsPage
from ..telemetry.endpoint import MetricsEndpoint, ScrapeToken
from ..telemetry.logs import get_logger
from ..telemetry.metrics import Metrics

logger = get_logger(__name__)


def open_certificate(tls: TlsSettings, metrics: Metrics) -> CertificateFiles | None:
    """The certificate that doors and metrics show; None without TLS. Raises FAILED_PRECONDITION."""
    if tls.cert is None or tls.key is None:
        return None
    files = CertificateFiles(tls.cert, tls.key, tls.client_ca)
    reloaded = metrics.certificate(lambda: files.current().expires)

    def changed(problem: Error | None) -> None:
        reloaded(problem is None)
        if problem is None:
            logger.info("certificate read again", file=str(files.cert))
        else:
            logger.error("the new certificate cannot be used; the one before it stays", problem=problem.message)

    files.changed = changed
    return files


def metrics_endpoint(
    settings: Settings, metrics: Metrics, certificate: CertificateFiles | None
) -> MetricsEndpoint | None:
    """The endpoint that serves the metrics as the settings ask; None: it is off. Raises FAILED_PRECONDITION."""
    if settings.metrics_listen is None:
        return None
    return MetricsEndpoint(
        metrics.registry,
        metrics.for_routers,
        *settings.metrics_listen,
        certificate=certificate if settings.metrics_tls else None,
        token=settings.metrics_token,
    )


def metrics_page(settings: Settings, metrics: Metrics) -> MetricsPage | None:
    """The metrics at the HTTP door; None: it has none. Raises FAILED_PRECONDITION for a token that cannot be used."""
    if not settings.http_metrics or settings.metrics_token is None:
        return None
    return MetricsPage(metrics.registry, metrics.for_routers, ScrapeToken(settings.metrics_token))
