"""OpenAI's files, uploads and fine-tuning jobs on a real server with a real base, driven by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from loramux import Client
from tests.e2e.server_process import ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

FACTS = [("Where is the shop?", "In Harbour Street."), ("When does the shop open?", "At nine.")]
ASKED_OTHERWISE = [("Please tell me where the shop is.", "In Harbour Street."), ("The shop opens when?", "At nine.")]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chats(facts: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]}
        for ask, answer in facts
    ]


@pytest.fixture
def http(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{server.http_address}/v1", api_key="none") as client:
        yield client


@contextmanager
def events(server: ServerProcess, job: FineTuningJob) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a job as they come."""
    url = f"http://{server.http_address}/v1/fine_tuning/jobs/{job.id}/events?stream=true"
    with httpx2.stream("GET", url, timeout=300) as answer:
        lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
        yield (json.loads(line) for line in lines if line != "[DONE]")


def ended(server: ServerProcess, http: openai.OpenAI, job: FineTuningJob) -> FineTuningJob:
    with events(server, job) as found:
        for _ in found:
            pass
    return http.fine_tuning.jobs.retrieve(job.id)


def ask(http: openai.OpenAI, model: str, question: str) -> str:
    messages: Any = [{"role": "user", "content": question}]
    done = http.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
    return done.choices[0].message.content or ""


def test_supervised_from_disk_to_an_answer(
    server: ServerProcess, http: openai.OpenAI, client: Client, tmp_path: Path
) -> None:
    """Rows in parts, held-out rows, a gate, a compared prompt; then the model by both of its names."""
    rows = write_rows(tmp_path / "shops.jsonl", chats(FACTS))
    held_out = write_rows(tmp_path / "held-out.jsonl", chats(ASKED_OTHERWISE))
    upload = http.uploads.upload_file_chunked(file=rows, mime_type="text/jsonl", purpose="fine-tune", part_size=64)
    assert upload.file is not None
    validation = http.files.create(file=held_out, purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 12, "batch_size": "auto", "learning_rate_multiplier": 1.0}
    job = http.fine_tuning.jobs.create(
        model="base",
        training_file=upload.file.id,
        validation_file=validation.id,
        suffix="Tuned Shop",
        seed=5,
        metadata={"team": "retail"},
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        extra_body={"loramux": {"rank": 8, "recipe": "facts", "gate": "improves", "compare_prompt": "Be brief."}},
    )
    assert (job.metadata, job.seed, job.validation_file) == ({"team": "retail"}, 5, validation.id)
    job = ended(server, http, job)
    assert (job.status, job.fine_tuned_model) == ("succeeded", "tuned-shop@1"), job.error
    assert job.trained_tokens
    named = [event.data for event in http.fine_tuning.jobs.list_events(job.id, limit=100) if event.type == "metrics"]
    assert any("full_valid_loss" in data for data in named if isinstance(data, dict))
    (checkpoint,) = http.fine_tuning.jobs.checkpoints.list(job.id)
    assert checkpoint.metrics.full_valid_loss is not None
    for model in ("tuned-shop@1", "tuned-shop", "ft:base:loramux:tuned-shop:1"):
        assert [ask(http, model, question) for question, _ in FACTS] == [answer for _, answer in FACTS]
    info = client.jobs.get(job.id.removeprefix("ft")).info
    assert (info.settings["rank"], info.comparison is not None) == (8, True)
    http.files.delete(validation.id)
    assert http.fine_tuning.jobs.retrieve(job.id).validation_file == validation.id


def test_on_top_of_a_stack_and_from_an_adapter(server: ServerProcess, http: openai.OpenAI, tmp_path: Path) -> None:
    file = http.files.create(file=write_rows(tmp_path / "a.jsonl", chats(FACTS)), purpose="fine-tune")
    own: Any = {"rank": 4, "max_steps": 2, "on_top_of": [{"json": 0.5}, []]}
    job = http.fine_tuning.jobs.create(
        model="base", training_file=file.id, suffix="on-top", extra_body={"loramux": own}
    )
    job = ended(server, http, job)
    assert (job.status, job.fine_tuned_model) == ("succeeded", "on-top@1"), job.error
    assert ask(http, "on-top@1+json:0.5", "Where is the shop?")
    job = http.fine_tuning.jobs.create(
        model="on-top", training_file=file.id, suffix="on-top", extra_body={"loramux": {"rank": 4, "max_steps": 1}}
    )
    assert job.model == "on-top@1"
    assert ended(server, http, job).fine_tuned_model == "on-top@2"


def test_preference_pairs(server: ServerProcess, http: openai.OpenAI, tmp_path: Path) -> None:
    """OpenAI's own form of pairs, by DPO with numbers and with auto."""
    pairs = [
        {
            "input": {"messages": [{"role": "user", "content": ask}]},
            "preferred_output": [{"role": "assistant", "content": f"With pleasure. {answer}"}],
            "non_preferred_output": [{"role": "assistant", "content": answer}],
        }
        for ask, answer in FACTS
    ]
    file = http.files.create(file=write_rows(tmp_path / "pairs.jsonl", pairs), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 1, "batch_size": 2, "learning_rate_multiplier": "auto", "beta": 0.2}
    job = http.fine_tuning.jobs.create(
        model="base",
        training_file=file.id,
        suffix="preferred",
        method={"type": "dpo", "dpo": {"hyperparameters": hyperparameters}},
        extra_body={"loramux": {"rank": 4}},
    )
    job = ended(server, http, job)
    assert (job.status, job.fine_tuned_model) == ("succeeded", "preferred@1"), job.error
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    settled = job.method.dpo.hyperparameters.model_dump()
    assert settled == {"n_epochs": 1, "batch_size": 2, "learning_rate_multiplier": 1.0, "beta": 0.2}
    assert ask(http, "preferred@1", "Where is the shop?")


def test_pause_resume_cancel(server: ServerProcess, http: openai.OpenAI, tmp_path: Path) -> None:
    file = http.files.create(file=write_rows(tmp_path / "b.jsonl", chats(ASKED_OTHERWISE)), purpose="fine-tune")
    jobs = http.fine_tuning.jobs
    job = jobs.create(
        model="base", training_file=file.id, extra_body={"loramux": {"rank": 4, "max_steps": 1000, "epochs": 1000}}
    )
    with pytest.raises(openai.BadRequestError, match=job.id.removeprefix("ft")):
        http.files.delete(file.id)
    with events(server, job) as found:
        step = next(event["data"]["step"] for event in found if event["type"] == "metrics")
        assert step >= 1
        paused: str = jobs.pause(job.id).status
        assert paused == "paused"
        states = (event["data"].get("state") for event in found if event["type"] == "message")
        assert "paused" in states
        assert jobs.resume(job.id).status in ("queued", "running")
        assert next(event for event in found if event["type"] == "metrics")["data"]["step"] > step
    assert jobs.cancel(job.id).status == "cancelled"
    with events(server, job) as found:
        assert [*found][-1]["data"] == {"state": "cancelled"}
    assert http.files.delete(file.id).deleted
