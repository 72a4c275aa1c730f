"""Spans of calls, requests and jobs for an OpenTelemetry collector. All but ``variables`` needs the extra ``otel``."""
