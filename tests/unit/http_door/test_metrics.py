"""The metrics at the HTTP door: for who shows their token, and nobody else."""

from __future__ import annotations

from pathlib import Path

import httpx2
from prometheus_client import CollectorRegistry, Counter

from loramux_server.config import Address
from loramux_server.http.metrics import MetricsPage
from loramux_server.http.server import HttpServer
from loramux_server.telemetry.endpoint import ScrapeToken

from .conftest import Http
from .test_door import Keys

TOKEN = "a-token-of-the-metrics"


async def test_the_token_opens_the_metrics_and_no_key_does(http: Http, tmp_path: Path) -> None:
    http.access.authenticator = Keys()
    registry = CollectorRegistry()
    Counter("answers", "Answers.", registry=registry).inc(3)
    (file := tmp_path / "token").write_text(TOKEN)
    Counter("routed", "What routers read.", registry=(for_routers := CollectorRegistry()))
    page = MetricsPage(registry, for_routers, ScrapeToken(file))
    server = HttpServer(http.availability, http.server.calls, Address("127.0.0.1", 0), metrics=page)
    await server.start()
    try:
        async with httpx2.AsyncClient(base_url=f"http://{server.address}", timeout=20) as client:
            for shown in ({}, {"authorization": "Bearer owner"}, {"authorization": TOKEN}, {"x-api-key": TOKEN}):
                answer = await client.get("/metrics", headers=shown)
                assert answer.status_code == 401
                assert "answers" not in answer.text
                answer = await client.get("/metrics/vllm", headers=shown)
                assert (answer.status_code, "routed" in answer.text) == (401, False)
            right = {"authorization": f"Bearer {TOKEN}"}
            answer = await client.get("/metrics", headers=right)
            assert (answer.status_code, "answers_total 3.0" in answer.text) == (200, True)
            assert answer.headers["content-type"].startswith("text/plain")
            answer = await client.get("/metrics/vllm", headers=right)
            assert (answer.status_code, "routed_total" in answer.text) == (200, True)
            assert "answers" not in answer.text
            answer = await client.get("/metrics", headers={**right, "accept": "application/openmetrics-text"})
            assert answer.headers["content-type"].startswith("application/openmetrics-text")
            file.write_text("another-token-since-then")
            assert (await client.get("/metrics", headers=right)).status_code == 401
    finally:
        await server.stop()


async def test_the_metrics_are_off_by_default(http: Http) -> None:
    for path in ("/metrics", "/metrics/vllm"):
        assert (await http.raw.get(path)).status_code == 404
