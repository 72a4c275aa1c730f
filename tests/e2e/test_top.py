"""``loramux top`` beside the metrics of the same server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux import Client
from loramux.cli import main
from tests.e2e.server_process import ServerProcess
from tests.metrics_page import read, total

pytestmark = pytest.mark.e2e

TOKENS = 12
WINDOW = 60


def metric(server: ServerProcess, name: str, **labels: str) -> float:
    """The sum of the series of a metric that have these labels."""
    return total(read(server.metrics()), name, **labels)


def test_what_top_tells_agrees_with_the_metrics(
    server: ServerProcess,
    client: Client,
    default_base: Path,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client.adapters.upload("watched", make_adapter(tmp_path / "a", default_base, rank=4, alpha=8, seed=5, scale=0.05))
    client.adapters.pin("watched")

    def top(*more: str) -> str:
        capsys.readouterr()
        assert main(["top", "--once", "--window", str(WINDOW), "--address", server.address, *more]) == 0
        return capsys.readouterr().out

    def told() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(top("--json"))
        (found["watched"],) = (each for each in found["adapters"] if each["adapter"] == "watched@1")
        return found

    rows = [{"prompt": f"What is {i}?", "completion": f" It is {i}."} for i in range(8)]
    job = client.train("watched-next", rows, rank=2, max_steps=200, batch_size=2, layers="28-29")
    with client.stream("The mill", adapters=["watched"], max_tokens=64, ignore_eos=True) as stream:
        next(iter(stream))
        now = told()
        assert now["watched"]["requests_running"] == 1
        assert now["total"]["requests_running"] >= 1
        assert (now["watched"]["tier"], now["watched"]["pinned"], now["watched"]["rank"]) == ("device", True, 4)
        kinds = now["memory_bytes"]
        assert metric(server, "loramux_vram_bytes", kind="base") == kinds["base"] > 0
        assert metric(server, "loramux_adapters_resident") == sum(now["adapters_resident"].values())
        assert [*stream][-1].finish_reason == "length"
    for _ in range(3):
        client.generate("The mill", adapters=["watched"], max_tokens=TOKENS, ignore_eos=True)

    counted = metric(server, "loramux_generated_tokens_total", adapter="watched")
    assert counted == 64 + 3 * TOKENS
    # Seconds count once they are over.
    deadline = time.monotonic() + 30
    while round((rates := told()["watched"])["generated_tokens_per_second"] * WINDOW) != counted:
        assert time.monotonic() < deadline, rates
    prompts = metric(server, "loramux_prompt_tokens_total", adapter="watched")
    assert rates["prompt_tokens_per_second"] * WINDOW == pytest.approx(prompts)
    assert rates["requests_per_second"] * WINDOW == pytest.approx(4)

    event = next(event for event in job.events() if event.type == "step" and event.step >= 2)
    (shown,) = (each for each in told()["jobs"] if each["job_id"] == job.id)
    assert (shown["name"], shown["state"], shown["total_steps"]) == ("watched-next", "running", 200)
    assert shown["step"] >= event.step
    assert len(shown["losses"]) >= 2
    frame = top()
    assert re.search(r"^watched@1 .* pinned", frame, re.MULTILINE)
    assert re.search(r"^watched-next .* running .*/200 ", frame, re.MULTILINE)
    job.cancel()
    assert not [each for each in told()["jobs"] if each["job_id"] == job.id]
    client.adapters.delete("watched")
