"""A real server on files that were damaged while it was down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import loramux
from loramux import Client
from tests.damage import flip_bit
from tests.e2e.server_process import ServerProcess, server_process
from tests.metrics_page import read, value
from tests.tiny import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

ROWS = [{"prompt": f"where is shop {i}", "completion": f" in street {i}"} for i in range(8)]
SETTINGS: dict[str, Any] = {"rank": 4, "learning_rate": 1e-2, "batch_size": 2, "max_steps": 2, "gate": "none"}
WEIGHTS = "adapter_model.safetensors"


def damaged(server: ServerProcess, kind: str) -> float:
    """How many objects of a kind the server found damaged."""
    return value(read(server.metrics()), "loramux_corrupt_objects_total", kind=kind)


def test_field_02_a_server_answers_nothing_from_damaged_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "tiny", "llama")
    state = tmp_path / "state"
    flags = ("--model", str(model), "--device", "cpu", "--dtype", "float32", "--kv-cache-memory", "16MiB")
    flags = (*flags, "--metrics-listen", "127.0.0.1:0", "--state-dir", str(state))
    good = tmp_path / "good"
    with server_process(tmp_path, *flags) as server:
        server.wait_for("is ready")
        with Client(server.address) as client:
            one = client.train("acme", ROWS, **SETTINGS).wait(timeout=200)
            client.adapters.download("acme@1", good)
            config = json.loads((good / "adapter_config.json").read_text())
            (good / "adapter_config.json").write_text(json.dumps(config, indent=1))  # another version, same effect
            client.adapters.upload("acme", good, set_current=False)
            asked = client.generate("where", adapters=["acme"], max_tokens=4, logprobs=0)
            bare = client.generate("where", max_tokens=4).text
    flip_bit(state / "blobs" / "folders" / one.digest[:2] / one.digest / WEIGHTS)
    base = next((state / "base").glob("*/model.safetensors"))
    flip_bit(base)
    with server_process(tmp_path, *flags) as server:
        server.wait_for("is ready")
        with Client(server.address) as client:
            assert damaged(server, "base") == 1
            assert client.generate("where", max_tokens=4).text == bare
            with pytest.raises(loramux.DataLoss, match="acme@1"):
                client.generate("where", adapters=["acme"], max_tokens=4)
            assert client.adapters.list()[0].current.state == "quarantined"
            assert WEIGHTS in client.adapters.get("acme@1").versions[0].state_reason
            assert damaged(server, "adapter") == 1
            with pytest.raises(loramux.DataLoss, match=r"acme@1.*upload"):
                client.adapters.download("acme@1", tmp_path / "down")
            assert not (tmp_path / "down" / WEIGHTS).exists()
            healthy = client.generate("where", adapters=["acme@2"], max_tokens=4, logprobs=0)
            assert healthy.choices == asked.choices
            client.adapters.set_alias("acme", 2)
            assert client.generate("where", adapters=["acme"], max_tokens=4, logprobs=0).choices == asked.choices
