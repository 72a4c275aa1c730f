"""A server whose base comes from a hub: pinned, told by ``loramux info``, the same later without the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from loramux import Client
from tests.e2e.server_process import server_process
from tests.hub import Hub, files_of, serving
from tests.tiny import write_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.slow
def test_the_commit_of_the_base_is_told_and_kept(tmp_path: Path) -> None:
    files = files_of(write_model(tmp_path / "tiny", "llama"))
    flags = ("--state-dir", str(tmp_path / "state"), "--metrics-listen", "off", "--device", "cpu")
    variables = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    with serving(Hub({COMMIT: files}, {"main": COMMIT})) as hub:
        given = {**variables, "HF_ENDPOINT": hub.endpoint}
        with server_process(tmp_path, "--model", "org/tiny", *flags, variables=given) as server:
            server.wait_for("is ready")
            with Client(server.address) as client:
                assert client.info().base_revision == COMMIT
    with server_process(tmp_path, "--model", f"org/tiny@{COMMIT}", *flags, variables=variables) as server:
        server.wait_for("is ready")
        with Client(server.address) as client:
            assert client.info().base_revision == COMMIT
            assert client.generate("hello", max_tokens=2).usage.completion_tokens > 0
