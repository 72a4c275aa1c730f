"""Spans of a real server on the real base: over both doors, the stretches of a request add up to what it took."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Callable

import pytest

from loramux import Client
from tests.collector import Collector, Span, collecting
from tests.e2e.conftest import StateDir
from tests.e2e.server_process import ServerProcess, kill
from tools.measure_adapters import shipped

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TOKENS = 24


@pytest.mark.slow
def test_the_stretches_of_a_request_add_up_to_what_it_took(
    state_with_base: StateDir, start_server: Callable[..., ServerProcess]
) -> None:
    folders = shipped()[:2]
    names = [folder.name for folder in folders]
    with collecting() as collector:
        server = start_server(
            state_with_base("traced"), "--otlp-traces-endpoint", collector.grpc, "--adapter-host-memory", "64MiB"
        )
        try:
            with Client(server.address) as client:
                for folder in folders:
                    client.adapters.upload(folder.name, folder)
                stream = client.stream("The shop opens at", adapters=dict.fromkeys(names, 0.5), max_tokens=TOKENS)
                assert list(stream)
            body = {
                "model": f"{names[0]}+{names[1]}",
                "messages": [{"role": "user", "content": "When?"}],
                "stream": True,
            }
            asked = urllib.request.Request(
                f"http://{server.http_address}/v1/chat/completions",
                json.dumps({**body, "max_tokens": TOKENS}).encode(),
                {"content-type": "application/json", "traceparent": f"00-{TRACE}-{SPAN}-01"},
            )
            with urllib.request.urlopen(asked, timeout=120) as answer:
                assert b"[DONE]" in answer.read()
            server.process.send_signal(signal.SIGTERM)
            assert server.finish() == 0
        finally:
            kill(server)
    check(collector, collector.one("loramux.v1.InferenceService/Generate"))
    call = collector.one("POST /v1/chat/completions")
    assert (call.trace, call.parent) == (TRACE, SPAN)
    check(collector, call)


def check(collector: Collector, call: Span) -> None:
    (request,) = collector.below(call).values()
    assert len(request.attributes["loramux.adapters"]) == 2
    assert 0 < request.attributes["gen_ai.usage.output_tokens"] <= TOKENS
    stretches = sorted(collector.below(request).values(), key=lambda span: span.begin)
    assert [span.name for span in stretches] == ["queue", "prefill", "decode"]
    assert call.begin <= request.begin <= stretches[0].begin
    assert stretches[-1].end <= request.end <= call.end
    # What is left: checks and tokenisation before, the way between the processes, and the last token's to the client.
    first = request.begin / 1e9 + request.attributes["gen_ai.response.time_to_first_chunk"]
    assert stretches[1].end / 1e9 <= first <= stretches[1].end / 1e9 + 0.5
    engine = sum(span.seconds for span in stretches)
    assert request.seconds - 1.0 <= engine <= request.seconds
    assert stretches[-1].seconds > 0.5 * engine or stretches[1].seconds > 0.5 * engine
