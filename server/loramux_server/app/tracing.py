"""Tracing as the settings have it. Where it is off, nothing of OpenTelemetry is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loramux import __version__

from ..config import Settings
from ..core.errors import invalid_field
from ..telemetry.logs import get_logger
from ..telemetry.tracing.variables import disabled, named_endpoint

if TYPE_CHECKING:
    from ..telemetry.tracing.provider import Tracing

logger = get_logger(__name__)

NEEDED = "needs OpenTelemetry (the extra otel); install it with: pip install opentelemetry-exporter-otlp"


def open_tracing(settings: Settings) -> Tracing | None:
    """What makes spans; None: nobody wants any. Raises INVALID_ARGUMENT where it is wanted and cannot be."""
    endpoint = settings.otlp_traces_endpoint
    if disabled() or not (endpoint or named_endpoint()):
        return None
    try:
        from ..telemetry.tracing.provider import Tracing
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        if endpoint is not None:
            raise invalid_field("--otlp-traces-endpoint", NEEDED) from None
        # The variables may be meant for other programs too: no reason not to serve.
        logger.warning("no traces are sent: a variable names a collector, which " + NEEDED)
        return None
    return Tracing(endpoint, settings.otlp_traces_protocol, settings.trace_sample_ratio, __version__)
