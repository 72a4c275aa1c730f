"""A process that dies at a named point of a job: the next finishes the job, and nothing is half there or doubled."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loramux.comparison import read_comparison
from loramux_server.core.backend import EngineInfo
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.jobs import Gate, JobState, TrainSpec
from loramux_server.host.failpoints import VARIABLE
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer
from tests.examples import few

from .fakes import engine_info
from .test_training_jobs import SUCCESS, Server, states
from .tiny_tokenizer import write_tokenizer

ROOT = Path(__file__).parents[3]
JOB: dict[str, Any] = {
    "spec": TrainSpec(validation_split=0.25),
    "gate": Gate("improves"),
    "compare_prompt": "All shops are in the street with their number.",
    "idempotency_key": "once",
}
"""A job that goes through everything: held-out rows, a comparison, a gate."""
DOCUMENTS: list[dict[str, object]] = [{"text": "Shop 3 is in street 3.\n\nShop 4 is in street 4."}]


async def run_until_killed(state: Path, tokenizer: Path) -> None:
    """What the subprocess does: take a job in and run it, with a failpoint in the environment."""
    text = TextTokenizer.load(tokenizer)
    server = Server.over(Store.open(state), text, engine_info(text.vocab_size))
    job = await server.job(**JOB, compare_documents=await server.dataset(DOCUMENTS))
    print(job.id, flush=True)
    async with server.working():
        await server.finished(job)


POINTS = [
    *("job.before_publish", "publish.committed"),
    *("job.trained", "job.answered", "job.evaluated", "blob.renamed", "publish.before_commit"),
]


@pytest.mark.parametrize("point", few(POINTS))
async def test_a_job_survives_kill(point: str, tmp_path: Path, text: TextTokenizer, info: EngineInfo) -> None:
    state, tokenizer = tmp_path / "state", write_tokenizer(tmp_path / "tokenizer")
    code = (
        "import asyncio, sys; from pathlib import Path; "
        "from tests.unit.services.test_crash import run_until_killed as run; "
        "asyncio.run(run(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, str(state), str(tokenizer)],
        env={**os.environ, VARIABLE: f"{point}:kill", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    store = Store.open(state)
    server = Server.over(store, text, info)
    acknowledged = killed.stdout.split()
    before = server.published()
    assert before == (["acme@1"] if point == "publish.committed" else [])
    job = await server.job(
        **JOB, compare_documents=await server.dataset(DOCUMENTS)
    )  # the client sends again what it had no answer to
    assert acknowledged in ([], [job.id])
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.SUCCEEDED
    assert server.published() == ["acme@1"]
    assert len((await server.service.list_jobs(LOCAL)).items) == 1
    found = read_comparison((await server.service.get_job(job.id, LOCAL)).metrics)
    assert found is not None
    assert found.retrieval is not None
    if point == "publish.committed":
        assert states(events) == SUCCESS
    store.adapters.resolve("acme", "default")
    store.collect_orphans()
    assert set(store.blobs.digests()) == store.adapters.referenced_digests() | store.datasets.referenced_digests()
    store.close()
