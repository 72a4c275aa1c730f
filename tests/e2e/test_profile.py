"""``loramux profile`` of a server that generates and trains."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path

import pytest

import loramux
from loramux import Client
from loramux.cli import main
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.e2e

ASK = {"max_tokens": 24, "ignore_eos": True}


def test_a_profile_while_requests_and_a_job_go_on(
    server: ServerProcess, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = client.generate("The mill", **ASK).text  # type: ignore[arg-type]
    rows = [{"prompt": f"What is {i}?", "completion": f" It is {i}."} for i in range(8)]
    job = client.train("profiled", rows, rank=2, max_steps=500, batch_size=2, layers="28-29")
    next(event for event in job.events() if event.type == "step")
    said: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            said.append(client.generate("The mill", **ASK).text)  # type: ignore[arg-type]

    asking = threading.Thread(target=ask)
    asking.start()
    place = tmp_path / "out"
    place.mkdir()
    file = place / "p.json.gz"
    command = ["profile", "--seconds", "2", "--output", str(file), "--address", server.address]
    try:
        assert main(command) == 0
    finally:
        stop.set()
        asking.join()
    assert "open it at https://ui.perfetto.dev" in capsys.readouterr().out
    assert len(said) >= 1
    assert set(said) == {expected}
    assert [path.name for path in place.iterdir()] == ["p.json.gz"]
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    names = {event["name"] for event in events}
    assert {"decode", "forward", "train", "micro-batch", "send outputs"} <= names
    assert any(name.startswith("aten::") for name in names)
    assert any(job.id in event.get("args", {}).get("jobs", ()) for event in events)
    job.cancel()

    refusals: list[loramux.ResourceExhausted] = []

    def take() -> None:
        """Of two that come at once either may be the one that is refused."""
        while True:
            try:
                client.profile(tmp_path / "other.json.gz", 2, kernels=False)
            except loramux.ResourceExhausted as error:
                refusals.append(error)
            else:
                return

    taking = threading.Thread(target=take)
    taking.start()
    while taking.is_alive() and not refusals:
        try:
            client.profile(place / "second.json.gz", 0.01, kernels=False)
        except loramux.ResourceExhausted as error:
            refusals.append(error)
    taking.join()
    assert {error.reason for error in refusals} == {"PROFILE_RUNNING"}
    assert refusals[0].retry_after
    assert not [path.name for path in place.iterdir() if path.name.startswith(".")]
    assert not [line for line in server.lines if "USDT" in line or "STAGE" in line]
