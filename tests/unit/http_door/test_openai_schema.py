"""Objects and parameters against OpenAI's published schema, from which the types of its package are generated."""

from __future__ import annotations

import asyncio
import json
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

import httpx2
import pydantic
import pytest
from openai.types import (
    FileDeleted,
    FileObject,
    Upload,
    file_create_params,
    file_list_params,
    upload_complete_params,
    upload_create_params,
)
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.fine_tuning import (
    FineTuningJob,
    FineTuningJobEvent,
    job_create_params,
    job_list_events_params,
    job_list_params,
)
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint, checkpoint_list_params
from openai.types.shared import ErrorObject
from openai.types.uploads import UploadPart

from loramux_server.core.errors import Code, Error
from loramux_server.http.openai.schema import ChatRequest, CompletionRequest
from loramux_server.http.openai.tuning.files import FileForm
from loramux_server.http.openai.tuning.queries import EventsQuery, FilesQuery, ItemsQuery, JobsQuery
from loramux_server.http.openai.tuning.requests import CompleteUpload, CreateJob, CreateUpload

from .conftest import Http
from .test_files import ROWS
from .test_fine_tuning import PAIRS

OWN = {
    "FineTuningJob": {"loramux"},
    "ErrorObject": {"violations"},
}
"""Fields that OpenAI does not have."""
ABSENT = {"ErrorObject": {"misalignment"}}
"""Fields of OpenAI's that an answer may leave out, and that we have nothing for."""
PAGE = {"object", "data", "has_more"}
WITH_IDS = PAGE | {"first_id", "last_id"}
"""Fields of a list, by OpenAI's description of its API; the package's pages leave some out."""


def fits(model: type[pydantic.BaseModel], value: Any) -> Any:
    """``value`` as a model: all of its fields are there, of their own types, and no other, at any depth."""
    found = model.model_validate_json(json.dumps(value), strict=True)
    assert model.model_fields.keys() - value.keys() == ABSENT.get(model.__name__, set())
    assert dict(unknown(found)) == {}
    return found


def unknown(found: Any) -> Iterator[tuple[str, set[str]]]:
    """Fields of a model, or of one in it, that its schema does not have."""
    if isinstance(found, pydantic.BaseModel):
        name = type(found).__name__
        if extra := (found.model_extra or {}).keys() - OWN.get(name, set()):
            yield name, set(extra)
        for value in found.__dict__.values():
            yield from unknown(value)
    elif isinstance(found, list):
        for value in found:
            yield from unknown(value)


@pytest.fixture
def raw(http: Http) -> httpx2.AsyncClient:
    """Gives answers as they are: the package's client would fill in what is missing."""
    return http.raw


async def send(raw: httpx2.AsyncClient, data: bytes) -> dict[str, Any]:
    answer = await raw.post("/v1/files", files={"file": ("a.jsonl", data)}, data={"purpose": "fine-tune"})
    file: dict[str, Any] = answer.json()
    return file


async def create(raw: httpx2.AsyncClient, file: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {"model": "base", "training_file": file["id"], **fields}
    job: dict[str, Any] = (await raw.post("/v1/fine_tuning/jobs", json=body)).json()
    return job


async def job_of(raw: httpx2.AsyncClient, id: str) -> dict[str, Any]:
    job: dict[str, Any] = (await raw.get(f"/v1/fine_tuning/jobs/{id}")).json()
    return job


async def until_its_end(raw: httpx2.AsyncClient, id: str) -> list[dict[str, Any]]:
    """Events of a job, all of them."""
    text = (await raw.get(f"/v1/fine_tuning/jobs/{id}/events?stream=true")).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(line) for line in lines[:-1]]


async def test_files_and_uploads(raw: httpx2.AsyncClient) -> None:
    file = await send(raw, ROWS)
    assert fits(FileObject, file).status == "processed"
    fits(FileObject, (await raw.get(f"/v1/files/{file['id']}")).json())
    page = (await raw.get("/v1/files")).json()
    assert page.keys() == WITH_IDS
    fits(FileObject, page["data"][0])
    fits(FileDeleted, (await raw.delete(f"/v1/files/{file['id']}")).json())
    body = {"bytes": len(ROWS), "filename": "a", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    upload = (await raw.post("/v1/uploads", json=body)).json()
    assert fits(Upload, upload).status == "pending"
    path = f"/v1/uploads/{upload['id']}"
    part = (await raw.post(f"{path}/parts", files={"data": ROWS})).json()
    fits(UploadPart, part)
    done = (await raw.post(f"{path}/complete", json={"part_ids": [part["id"]]})).json()
    assert fits(Upload, done).status == "completed"
    fits(FileObject, done["file"])
    other = (await raw.post("/v1/uploads", json=body)).json()
    assert fits(Upload, (await raw.post(f"/v1/uploads/{other['id']}/cancel")).json()).status == "cancelled"


async def test_a_job_in_every_state(http: Http, raw: httpx2.AsyncClient) -> None:
    """All but ``validating_files``: files are checked before a job is made. OpenAI's schema forgets ``paused``."""
    file, pairs = await send(raw, ROWS), await send(raw, PAIRS)
    held_out = await send(raw, ROWS.replace(b"Where", b"Who"))
    queued = await create(raw, file)
    assert fits(FineTuningJob, queued).status == "queued"
    dpo = await create(raw, pairs, method={"type": "dpo"}, suffix="polite", seed=3, metadata={"a": "b"})
    assert fits(FineTuningJob, dpo).method.type == "dpo"
    for job in (queued, dpo):
        cancelled = (await raw.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")).json()
        assert fits(FineTuningJob, cancelled).status == "cancelled"
    job = await create(raw, file, hyperparameters={"n_epochs": 1.5}, validation_file=held_out["id"])
    assert fits(FineTuningJob, job).hyperparameters.n_epochs == 2
    assert job["loramux"]["epochs"] == 1.5
    http.training.at, http.training.hang = 2, True
    async with http.working():
        await asyncio.wait_for(http.training.waiting.wait(), 10)
        newest = (await raw.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=1")).json()["data"][0]
        assert newest["type"] == "metrics"
        running = await job_of(raw, job["id"])
        assert fits(FineTuningJob, running).status == "running"
        assert running["estimated_finish"] is not None
        paused = (await raw.post(f"/v1/fine_tuning/jobs/{job['id']}/pause")).json()
        assert paused["status"] == "paused"
        fits(FineTuningJob, {**paused, "status": "queued"})
        http.training.hang = False
        fits(FineTuningJob, (await raw.post(f"/v1/fine_tuning/jobs/{job['id']}/resume")).json())
        events = await until_its_end(raw, job["id"])
        succeeded = await job_of(raw, job["id"])
        assert fits(FineTuningJob, succeeded).status == "succeeded"
        http.training.error = Error(Code.FAILED_PRECONDITION, "the loss is not finite", reason="LOSS_NOT_FINITE")
        http.training.runs = 0
        failing = await create(raw, file)
        events += await until_its_end(raw, failing["id"])
        failed = await job_of(raw, failing["id"])
    assert fits(FineTuningJob, failed).status == "failed"
    assert failed["error"].keys() == {"code", "message", "param"}
    assert {fits(FineTuningJobEvent, event).level for event in events} == {"info", "error"}
    assert {event["type"] for event in events} == {"message", "metrics"}
    checkpoints = (await raw.get(f"/v1/fine_tuning/jobs/{job['id']}/checkpoints")).json()
    assert checkpoints.keys() == WITH_IDS
    (checkpoint,) = checkpoints["data"]
    assert fits_metrics(checkpoint) >= {"step", "train_loss", "full_valid_loss"}
    for path in ("/v1/fine_tuning/jobs", f"/v1/fine_tuning/jobs/{job['id']}/events"):
        assert (await raw.get(path)).json().keys() == PAGE


def fits_metrics(checkpoint: dict[str, Any]) -> set[str]:
    """The metrics of a checkpoint, which need not be all of those that OpenAI knows."""
    found = FineTuningJobCheckpoint.model_validate_json(json.dumps(checkpoint), strict=True)
    assert checkpoint.keys() == FineTuningJobCheckpoint.model_fields.keys()
    assert dict(unknown(found)) == {}
    return set(checkpoint["metrics"])


async def test_errors(raw: httpx2.AsyncClient) -> None:
    for answer in (
        await raw.get("/v1/fine_tuning/jobs/ftjob-0"),
        await raw.post("/v1/fine_tuning/jobs", json={"model": "base", "training_file": "x", "rank": 4}),
        await raw.post("/v1/uploads", content=b"{"),
        await raw.get("/v1/files?limit=0"),
        await raw.delete("/v1/files/file-0"),
    ):
        assert 400 <= answer.status_code < 500
        assert answer.json().keys() == {"error"}
        fits(ErrorObject, answer.json()["error"])


REFUSED: dict[str, dict[str, Any]] = {
    "chat": {
        "audio": {"voice": "alloy", "format": "wav"},
        "function_call": "auto",
        "functions": [{"name": "f"}],
        "moderation": {"model": "omni"},
        "web_search_options": {},
    },
    "text": {},
    "job": {},
    "file": {"expires_after": {"anchor": "created_at", "seconds": 3600}},
    "upload": {},
}
"""Documented parameters that are no fields of our requests, each with a value: refused by name."""


@pytest.mark.parametrize(
    ("kind", "documented", "taken"),
    [
        ("chat", chat_params.CompletionCreateParamsStreaming, ChatRequest),
        ("text", text_params.CompletionCreateParamsStreaming, CompletionRequest),
        ("job", job_create_params.JobCreateParams, CreateJob),
        ("file", file_create_params.FileCreateParams, FileForm),
        ("upload", upload_create_params.UploadCreateParams, CreateUpload),
        ("complete", upload_complete_params.UploadCompleteParams, CompleteUpload),
        ("files", file_list_params.FileListParams, FilesQuery),
        ("jobs", job_list_params.JobListParams, JobsQuery),
        ("events", job_list_events_params.JobListEventsParams, EventsQuery),
        ("checkpoints", checkpoint_list_params.CheckpointListParams, ItemsQuery),
    ],
)
def test_every_documented_parameter_is_known(kind: str, documented: type, taken: type[pydantic.BaseModel]) -> None:
    """A parameter that a newer package documents fails here, until it is taken or put among the refused ones."""
    assert get_type_hints(documented).keys() - taken.model_fields.keys() == REFUSED.get(kind, {}).keys()


def test_every_documented_hyperparameter_is_known() -> None:
    """Those of a method too."""
    ours = dict(nested(CreateJob))
    theirs = dict(nested(job_create_params.JobCreateParams))
    for path in ("hyperparameters", "method.supervised.hyperparameters", "method.dpo.hyperparameters"):
        assert theirs[path] == ours[path]
    assert theirs["method"] == ours["method"]


def nested(type: Any, path: str = "") -> Iterator[tuple[str, set[str]]]:
    """The names of fields by the path to them."""
    if get_origin(type) in (Union, types.UnionType):
        for option in get_args(type):
            yield from nested(option, path)
        return
    fields = {name: field.annotation for name, field in getattr(type, "model_fields", {}).items()}
    if not fields and isinstance(type, type_of_typed_dict):
        fields = get_type_hints(type)
    if fields:
        yield path, set(fields)
        for name, inner in fields.items():
            yield from nested(inner, f"{path}.{name}" if path else name)


type_of_typed_dict = type(job_create_params.JobCreateParams)


@pytest.mark.parametrize("kind", ["chat", "text"])
async def test_refused_parameters_are_named(raw: httpx2.AsyncClient, kind: str) -> None:
    path, body = {
        "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        "text": ("/v1/completions", {"prompt": "x"}),
    }[kind]
    refused: Mapping[str, Any] = {**REFUSED[kind], "store": True} if kind == "chat" else {"suffix": "x", "best_of": 2}
    for name, value in refused.items():
        answer = await raw.post(path, json={"model": "base", **body, name: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name), answer.text


async def test_parameters_that_change_nothing_are_taken(http: Http, raw: httpx2.AsyncClient) -> None:
    http.answers("Here.")
    ignored = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "flex",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "prompt_cache_options": {"mode": "implicit"},
        "prediction": {"type": "content", "content": "Here."},
        "reasoning_effort": "low",
        "verbosity": "low",
        "modalities": ["text"],
    }
    body = {"model": "base", "messages": [{"role": "user", "content": "Where?"}]}
    plain = await raw.post("/v1/chat/completions", json=body)
    for name, value in ignored.items():
        answer = await raw.post("/v1/chat/completions", json={**body, name: value})
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"] == plain.json()["choices"], name
