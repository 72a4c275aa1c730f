"""Replicas in a Ray cluster that share no folder with the front: what they need crosses by way of the blobs.

The cluster's processes see an empty folder where the front has its state directory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from loramux import Client
from tests.e2e.ray_servers import LONG, PROMPT, ray_cluster, start, until
from tests.e2e.server_process import ServerProcess, kill
from tests.postgres import BIN
from tests.tiny import write_adapter, write_model
from tests.unit.store.test_postgres import postgres, url

__all__ = ["postgres", "url"]

CAN_HIDE = (
    shutil.which("unshare") is not None
    and not subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    ).returncode
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
    pytest.mark.skipif(not CAN_HIDE, reason="needs a mount namespace, and so root"),
    pytest.mark.skipif(BIN is None, reason="no PostgreSQL server is installed (apt install postgresql)"),
]


@pytest.fixture
def blobs(tmp_path: Path) -> tuple[str, dict[str, str]]:
    """A place that is spoken to as an object store, with what the processes that use it need in their environment."""
    (tmp_path / "bucket").mkdir()
    return f"dir::file://{tmp_path}/bucket", {"FSSPEC_FILE_AUTO_MKDIR": "true"}


def test_replicas_that_share_no_folder(
    tmp_path: Path, url: str, blobs: tuple[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from loramux_server.model.base.quantize import prepare_base

    model = write_model(tmp_path / "model", "llama", max_position_embeddings=LONG)
    base = prepare_base(str(model), tmp_path / "nf4")
    for number in range(4):
        write_adapter(tmp_path / f"a{number}", base, seed=number)
    rows = [{"prompt": f"Who has number {n}?", "completion": f" Number {n} is yours."} for n in range(24)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    place, variables = blobs
    home, hosts = tmp_path / "front", tmp_path / "hosts"
    (home / "state").mkdir(parents=True)
    os.environ.update(variables)
    with ray_cluster(tmp_path, 2, home / "state") as cluster:
        flags = ("--backend", "ray", "--replicas", "2", "--ray-address", cluster.address)
        shared = ("--database-url", url, "--blobs-url", place, "--replica-dir", str(hosts))
        server = start(model, home, *flags, *shared, variables={**cluster.variables, **variables})
        try:
            check(server, hosts, tmp_path, data)
        finally:
            kill(server)


def check(server: ServerProcess, hosts: Path, adapters: Path, data: Path) -> None:
    with Client(server.address) as client:
        alone = {}
        for number in range(4):
            client.adapters.upload(f"a{number}", adapters / f"a{number}")
            alone[number] = client.generate(PROMPT, adapters=[f"a{number}"], max_tokens=8, temperature=0.0).text
        assert len(set(alone.values())) > 1
        # Copies are checked, and one that is damaged is brought anew.
        copies = [copy for copy in hosts.glob("*/replica-*/cache/*") if copy.is_dir()]
        assert copies
        for copy in copies:
            (copy / "adapter_model.safetensors").write_bytes(b"damaged")
        for replica in client.replicas():
            assert replica.state == "ready"
        job = client.train("trained", data, epochs=40, batch_size=4, rank=4, validation_split=0)

        def holder() -> str:
            return next((replica.id for replica in client.replicas() if job.id in replica.training_jobs), "")

        until(lambda: holder() and any(event.type == "checkpoint" for event in job.events()))
        (place,) = {folder.parents[1] for folder in hosts.glob("*/replica-*/jobs/*")}
        victim = int((place / "lock").read_text())
        os.kill(victim, signal.SIGKILL)
        job.wait(timeout=300)
        assert job.state == "succeeded"
        steps = [event.step for event in job.events() if event.type == "step"]
        assert steps == list(range(1, job.refresh().total_steps + 1))
        assert client.generate(PROMPT, adapters=["trained"], max_tokens=4, ignore_eos=True).usage.completion_tokens == 4
        until(lambda: [replica.state for replica in client.replicas()] == ["ready", "ready"])
        for number, text in alone.items():
            assert client.generate(PROMPT, adapters=[f"a{number}"], max_tokens=8, temperature=0.0).text == text
