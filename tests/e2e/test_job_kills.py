"""Jobs on a real server that is killed at named points, or fails them: they come to their end, once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import loramux
from loramux import Client
from tests.e2e.server_process import ServerProcess, server_process
from tests.e2e.test_engine_dies import engine_pid
from tests.tiny import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

ROWS = [{"prompt": f"where is shop {i}", "completion": f" in street {i}"} for i in range(8)]
STEPS = 4
SETTINGS: dict[str, Any] = {"rank": 4, "learning_rate": 1e-2, "batch_size": 2, "max_steps": STEPS}


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    model = write_model(tmp_path_factory.mktemp("model") / "tiny", "llama")
    fixed = ("--model", str(model), "--device", "cpu", "--dtype", "float32", "--kv-cache-memory", "16MiB")
    return (*fixed, "--metrics-listen", "off")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all servers: what they compile is compiled once."""
    return tmp_path_factory.mktemp("home")


def ready(server: ServerProcess) -> Client:
    server.wait_for("is ready")
    return Client(server.address)


@pytest.mark.parametrize("point", ["job.answered", "publish.before_commit"])
def test_a_server_killed_at_work_finishes_the_job(
    point: str, flags: tuple[str, ...], home: Path, tmp_path: Path
) -> None:
    flags = (*flags, "--state-dir", str(tmp_path / "state"))
    with server_process(home, *flags, failpoint=f"{point}:kill") as server, ready(server) as client:
        compared = {"compare_prompt": "Be brief.", "compare_documents": ["where is it\n\nhere"]}
        job = client.train("acme", ROWS, validation=ROWS[:2], **compared, **SETTINGS)
        assert server.finish() == -signal.SIGKILL
    with server_process(home, *flags) as server, ready(server) as client:
        again = client.jobs.get(job.id)
        assert again.wait(timeout=200).ref == "acme@1"
        assert len(client.jobs.list()) == len(client.adapters.get("acme").versions) == 1
        events = list(again.events())
        # The last step's checkpoint was there: no step was done twice.
        assert [e.step for e in events if e.type == "step"] == list(range(1, STEPS + 1))
        assert again.info.comparison is not None
        assert list(again.info.comparison.by_name) == ["base", "prompt", "retrieval", "adapter", "adapter_retrieval"]
        assert client.generate("where", adapters=["acme"], max_tokens=2).text is not None


def test_a_job_that_failed_goes_on_where_it_was(flags: tuple[str, ...], home: Path, tmp_path: Path) -> None:
    """Its checkpoint outlives the server that failed it; no step is done twice, and what it cost is told."""
    flags = (*flags, "--state-dir", str(tmp_path / "state"))
    with server_process(home, *flags, failpoint="job.trained:raise") as server, ready(server) as client:
        job = client.train("acme", ROWS, **SETTINGS)
        with pytest.raises(loramux.JobFailed, match="internal error") as caught:
            job.wait(timeout=200)
        assert caught.value.reason == "INTERNAL"
        assert client.generate("where", max_tokens=2).text is not None
    with server_process(home, *flags) as server, ready(server) as client:
        failed = client.jobs.get(job.id)
        assert failed.info.state == "failed"
        assert failed.resume().state == "queued"
        assert failed.wait(timeout=200).ref == "acme@1"
        events = list(failed.events())
        assert [e.step for e in events if e.type == "step"] == list(range(1, STEPS + 1))
        assert any(f"goes on after step {STEPS}" in e.message for e in events)
        assert [e.state for e in events if e.state in ("failed", "succeeded")] == ["failed", "succeeded"]


@pytest.mark.parametrize("victim", ["server", "engine"])
def test_field_19_each_step_is_told_once_whoever_is_killed(
    victim: str, flags: tuple[str, ...], home: Path, tmp_path: Path
) -> None:
    """The engine of a killed server saves its last step: what it had reported by then may not have been stored."""
    flags = (*flags, "--state-dir", str(tmp_path / "state"), "--training-checkpoint-seconds", "0.2")
    steps, kills = 120, 2
    job_id = ""
    for life in range(kills + 1):
        with server_process(home, *flags) as server, ready(server) as client:
            job = client.jobs.get(job_id) if job_id else client.train("acme", ROWS, **{**SETTINGS, "max_steps": steps})
            job_id = job.id
            if life < kills:
                after = job.info.last_sequence
                for event in job.events(after_sequence=after):
                    if event.type == "step" and event.step >= (life + 1) * 25:
                        break
                if victim == "server":
                    server.process.kill()
                    continue
                os.kill(engine_pid(server), signal.SIGKILL)
            job.wait(timeout=200)
            events = list(job.events())
            assert [e.step for e in events if e.type == "step"] == list(range(1, steps + 1))
            client.adapters.download("acme", tmp_path / "acme")
            curve = (tmp_path / "acme" / "training_curve.csv").read_text().splitlines()
            assert [int(line.split(",")[0]) for line in curve[1:]] == list(range(1, steps + 1))
            return
