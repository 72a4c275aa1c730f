"""Where spans are sent and how: settings first, then OpenTelemetry's variables; and what cannot be, with what to do."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

from loramux_server.app.tracing import open_tracing
from loramux_server.config import Settings, load
from loramux_server.core.errors import Error
from loramux_server.core.observing.observer import CallFinished
from loramux_server.core.observing.tracing import Arrival
from loramux_server.telemetry.tracing.exporting import open_exporter
from loramux_server.telemetry.tracing.provider import Tracing
from tests.collector import Collector, collecting

ENDED = CallFinished("grpc", "GetServerInfo", "r1", None, "", "OK", "", 0.1)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "PROTOCOL", "INSECURE"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_TRACES_{name}", raising=False)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.mark.parametrize(
    ("endpoint", "protocol", "variables", "kind", "target", "insecure"),
    [
        ("grpc://c:4317", "auto", {}, GrpcExporter, "c:4317", True),
        ("http://c:4317", "auto", {}, GrpcExporter, "c:4317", True),
        ("grpcs://c:4317", "auto", {}, GrpcExporter, "c:4317", False),
        ("https://c:4317", "auto", {}, GrpcExporter, "c:4317", False),
        ("grpc://c:4317", "auto", {"OTEL_EXPORTER_OTLP_TRACES_INSECURE": "false"}, GrpcExporter, "c:4317", False),
        ("http://c:4318", "auto", {}, HttpExporter, "http://c:4318/v1/traces", None),
        ("https://c:4318/", "auto", {}, HttpExporter, "https://c:4318/v1/traces", None),
        ("http://c/otel/v1/traces", "auto", {}, HttpExporter, "http://c/otel/v1/traces", None),
        ("http://c:80/take", "http/protobuf", {}, HttpExporter, "http://c:80/take", None),
        (
            "http://c:1",
            "auto",
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            HttpExporter,
            "http://c:1/v1/traces",
            None,
        ),
        ("http://c:4318", "auto", {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, GrpcExporter, "c:4318", True),
        (None, "auto", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, HttpExporter, "http://c:4318/v1/traces", None),
        (None, "auto", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, GrpcExporter, "c:4317", True),
    ],
)
def test_the_way_to_the_collector(
    endpoint: str | None,
    protocol: str,
    variables: dict[str, str],
    kind: type,
    target: str,
    insecure: bool | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    exporter = open_exporter(endpoint, protocol)._exporter
    assert isinstance(exporter, kind)
    assert exporter._endpoint == target  # type: ignore[attr-defined]
    if insecure is not None:
        assert exporter._insecure is insecure  # type: ignore[attr-defined]
    exporter.shutdown()


def test_what_contradicts_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Error, match="otlp-traces-protocol: is http/protobuf, and the endpoint begins with grpc://"):
        open_exporter("grpc://c:4317", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(Error, match="OTEL_EXPORTER_OTLP_PROTOCOL: is 'http/json'; use grpc or http/protobuf"):
        open_exporter("http://c:4317", "auto")


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://me:secret@c:4318", "must not hold a password"),
        ("http://c:99999", "must be a URL such as"),
        ("grpc://[", "must be a URL such as"),
    ],
)
def test_variables_that_cannot_be(url: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password would be in the log as soon as the collector is away."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    with pytest.raises(Error) as refused:
        open_exporter(None, "auto")
    (violation,) = refused.value.violations
    assert violation.field == "OTEL_EXPORTER_OTLP_ENDPOINT"
    assert what in violation.description
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"otlp_traces_endpoint": "collector:4317"}, "must be a URL such as grpc://collector:4317"),
        ({"otlp_traces_endpoint": "ftp://collector"}, "must be a URL such as"),
        ({"otlp_traces_endpoint": "http://c:99999"}, "must be a URL such as"),
        ({"otlp_traces_endpoint": "http://me:secret@c:4318"}, "must not hold a password"),
        ({"otlp_traces_protocol": "http/json"}, "'auto', 'grpc' or 'http/protobuf'"),
        ({"trace_sample_ratio": "1.5"}, "must be at most 1"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, str], what: str) -> None:
    with pytest.raises(Error) as refused:
        load(given)
    (violation,) = refused.value.violations
    assert what in violation.description


async def test_the_variables_alone_turn_tracing_on_and_name_the_service(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(state_dir=tmp_path)
    assert open_tracing(settings) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.http)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    tracing = open_tracing(settings)
    assert tracing is not None
    tracing.calls.begin(Arrival("call"), None).end(ENDED, {})
    await tracing.close()
    await tracing.close()
    sent = collector.one("call")
    assert sent.resource["service.name"] == "mine"
    assert sent.resource["deployment.environment.name"] == "test"
    for name, value in (("OTEL_TRACES_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "true")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert open_tracing(settings) is None


async def test_the_sampler_of_the_variables_counts_where_no_ratio_is_given(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    for ratio, least, most in ((None, 60, 140), (0.05, 0, 40), (1.0, 200, 200)):
        tracing = Tracing(collector.grpc, "auto", ratio, "1")
        spans = [tracing.calls.begin(Arrival("x"), None) for _ in range(200)]
        assert least <= sum(span.context.sampled for span in spans) <= most
        await tracing.close()


def test_without_the_extra_the_flag_is_refused_and_a_variable_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith("loramux_server.telemetry.tracing.pro")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("opentelemetry")] or ["opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        Error, match=r"--otlp-traces-endpoint: needs .* \(the extra otel\).* pip install opentelemetry-exporter-otlp"
    ):
        open_tracing(Settings(state_dir=tmp_path, otlp_traces_endpoint="grpc://c:4317"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")
    with structlog.testing.capture_logs() as lines:
        assert open_tracing(Settings(state_dir=tmp_path)) is None
    (line,) = lines
    assert "pip install opentelemetry-exporter-otlp" in line["event"]


async def test_a_stop_does_not_wait_longer_for_the_collector_than_is_promised(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loramux_server.telemetry.tracing.provider.CLOSE_SECONDS", 0.1)
    collector.hold.clear()
    tracing = Tracing(collector.grpc, "auto", 1.0, "1")
    tracing.calls.begin(Arrival("x"), None).end(ENDED, {})
    async with asyncio.timeout(5):
        await tracing.close()
