"""OpenTelemetry's variables that are looked at before its packages are imported."""

from __future__ import annotations

import os

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def disabled() -> bool:
    """Whether nothing of OpenTelemetry may run."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def named_endpoint() -> str:
    """The collector that spans are to be sent to; empty: none."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower()
    return next((value for name in ENDPOINTS if (value := os.environ.get(name))), "") if exporter == "otlp" else ""
