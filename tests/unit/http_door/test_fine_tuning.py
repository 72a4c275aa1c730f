"""Fine-tuning jobs as OpenAI's own client asks for them; answers are checked against its types, strictly."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from loramux._wire.messages.train_requests import TrainOptions
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import Gate, JobRequest, JobState, TrainSpec
from loramux_server.core.types import StackItem
from loramux_server.http.openai.tuning.requests import Loramux
from loramux_server.services.jobs.checking.recipes import chosen_rate

from .conftest import Http
from .test_files import ROWS, Tenants, upload

PAIRS = b"".join(b'{"prompt": "Shop %d?", "chosen": " Here.", "rejected": " No %d."}\n' % (i, i) for i in range(9))


@pytest.fixture
async def file(http: Http) -> str:
    return (await upload(http)).id


async def create(http: Http, file: str, **fields: Any) -> FineTuningJob:
    return await http.openai.fine_tuning.jobs.create(**{"model": "base", "training_file": file, **fields})


async def ended(http: Http, job: str) -> FineTuningJob:
    """The job at its end, which the stream of its events is waited for."""
    answer = await http.raw.get(f"/v1/fine_tuning/jobs/{job}/events?stream=true")
    assert answer.text.endswith("data: [DONE]\n\n")
    return await http.openai.fine_tuning.jobs.retrieve(job)


def stored(http: Http, job: FineTuningJob) -> JobRequest:
    return http.context.store.jobs.get(job.id.removeprefix("ft")).request


async def test_a_job_from_file_to_chat(http: Http, file: str) -> None:
    validation = (await upload(http, ROWS + b'{"prompt": "Who?", "completion": " Me."}\n')).id
    job = await create(http, file, validation_file=validation, suffix="Shop Streets!", seed=7, metadata={"who": "me"})
    FineTuningJob.model_validate(job.model_dump(), strict=True)
    assert (job.status, job.model, job.fine_tuned_model, job.trained_tokens) == ("queued", "base", None, None)
    assert (job.training_file, job.validation_file, job.seed) == (file, validation, 7)
    assert (job.metadata, job.organization_id, job.result_files) == ({"who": "me"}, "default", [])
    async with http.working():
        job = await ended(http, job.id)
    FineTuningJob.model_validate(job.model_dump(), strict=True)
    assert (job.status, job.fine_tuned_model, job.trained_tokens) == ("succeeded", "shop-streets@1", 30)
    assert job.finished_at is not None
    assert job.hyperparameters.model_dump(exclude_none=True) == {
        "n_epochs": 3,
        "batch_size": 8,
        "learning_rate_multiplier": 1.0,
    }
    http.answers("In street 3.")
    for model in ("shop-streets@1", "shop-streets", "ft:base:loramux:shop-streets:1", "ft:base:loramux:shop-streets"):
        done = await http.openai.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
        assert done.model == "shop-streets@1"
        assert (await http.openai.models.retrieve(model)).id


async def test_events_and_checkpoints(http: Http, file: str) -> None:
    validation = (await upload(http, PAIRS.replace(b"chosen", b"completion").replace(b"rejected", b"id"))).id
    job = await create(http, file, validation_file=validation)
    assert (await http.openai.fine_tuning.jobs.checkpoints.list(job.id)).data == []
    async with http.working():
        await ended(http, job.id)
    events = [event async for event in http.openai.fine_tuning.jobs.list_events(job.id)]
    for event in events:
        FineTuningJobEvent.model_validate(event.model_dump(), strict=True)
    assert [e.id for e in events] == [f"ftevent-{job.id[6:]}-{i}" for i in range(len(events), 0, -1)]
    steps: list[Any] = [e.data for e in reversed(events) if e.type == "metrics"]
    assert [(s["step"], s["total_steps"]) for s in steps] == [(1, 3), (2, 3), (3, 3), (3, 3)]
    assert [s.get("train_loss") for s in steps][:3] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert steps[3]["full_valid_loss"] == 0.25
    assert [m.message for m in events if m.type == "metrics"][-1] == "Step 1/3: training loss=1"
    page = await http.openai.fine_tuning.jobs.list_events(job.id, limit=2)
    assert ([e.id for e in page.data], page.has_more) == ([e.id for e in events[:2]], True)
    assert [e.id async for e in http.openai.fine_tuning.jobs.list_events(job.id, limit=2)] == [e.id for e in events]
    page = await http.openai.fine_tuning.jobs.list_events(job.id, after=events[-2].id)
    assert ([e.id for e in page.data], page.has_more) == ([events[-1].id], False)
    answer = await http.raw.get(f"/v1/fine_tuning/jobs/{job.id}/events?stream=true&after={events[2].id}")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert [json.loads(line)["id"] for line in lines[:-1]] == [events[1].id, events[0].id]
    (checkpoint,) = (await http.openai.fine_tuning.jobs.checkpoints.list(job.id)).data
    FineTuningJobCheckpoint.model_validate(checkpoint.model_dump(), strict=True)
    assert (checkpoint.fine_tuned_model_checkpoint, checkpoint.step_number) == (f"{stored(http, job).name}@1", 3)
    assert checkpoint.metrics.full_valid_loss == 0.25
    for query in ("after=ftevent-0-1", "after=x", "after=ftevent-" + job.id[6:] + "-0"):
        assert (await http.raw.get(f"/v1/fine_tuning/jobs/{job.id}/events?{query}")).status_code == 404
    for query in ("limit=0", "limit=1001", "stream=maybe", "what=1"):
        answer = await http.raw.get(f"/v1/fine_tuning/jobs/{job.id}/events?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0])


async def test_pause_resume_cancel(http: Http, file: str) -> None:
    http.training.at, http.training.hang = 2, True
    jobs = http.openai.fine_tuning.jobs
    async with http.working():
        job = await create(http, file)
        await asyncio.wait_for(http.training.waiting.wait(), 10)
        assert (await jobs.list_events(job.id)).data[0].type == "metrics"
        running = await jobs.retrieve(job.id)
        assert running.status == "running"
        assert running.estimated_finish is not None
        assert (await jobs.pause(job.id)).status == "paused"  # type: ignore[comparison-overlap]
        http.training.hang = False
        assert (await jobs.resume(job.id)).status in ("queued", "running")
        assert (await ended(http, job.id)).status == "succeeded"
        with pytest.raises(openai.BadRequestError, match="succeeded"):
            await jobs.cancel(job.id)
        with pytest.raises(openai.BadRequestError, match="succeeded"):
            await jobs.resume(job.id)
    job = await create(http, file)
    assert (await jobs.cancel(job.id)).status == "cancelled"
    assert (await jobs.cancel(job.id)).finished_at is not None


async def test_a_job_that_fails_says_why(http: Http, file: str) -> None:
    http.training.at = 2
    http.training.error = Error(Code.FAILED_PRECONDITION, "the loss is not finite", reason="LOSS_NOT_FINITE")
    job = await create(http, file)
    async with http.working():
        job = await ended(http, job.id)
    FineTuningJob.model_validate(job.model_dump(), strict=True)
    assert (job.status, job.fine_tuned_model) == ("failed", None)
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("loss_not_finite", "the loss is not finite")
    newest = (await http.openai.fine_tuning.jobs.list_events(job.id, limit=1)).data[0]
    assert newest.level == "error"


async def test_what_hyperparameters_become(http: Http, file: str) -> None:
    info = http.context.info
    numbers: Any = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": numbers}}
    for fields in ({"method": method}, {"hyperparameters": numbers}):
        job = await create(http, file, **fields)
        spec = stored(http, job).spec
        assert (spec.method, spec.epochs, spec.batch_size) == ("sft", 2.0, 4)
        assert spec.learning_rate == pytest.approx(chosen_rate("sft", "", info) / 2)
        assert job.hyperparameters.model_dump(exclude_none=True) == numbers
        assert job.method is not None
        assert job.method.type == "supervised"
    pairs = (await upload(http, PAIRS)).id
    method = {"type": "dpo", "dpo": {"hyperparameters": {**numbers, "beta": 0.3}}}
    job = await create(http, pairs, method=method)
    FineTuningJob.model_validate(job.model_dump(), strict=True)
    spec = stored(http, job).spec
    assert (spec.method, spec.beta) == ("dpo", 0.3)
    assert spec.learning_rate == pytest.approx(chosen_rate("dpo", "", info) / 2)
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.model_dump() == {**numbers, "beta": 0.3}
    auto = dict.fromkeys(numbers, "auto")
    job = await create(http, file, method={"type": "supervised", "supervised": {"hyperparameters": auto}})
    assert stored(http, job).spec.learning_rate == pytest.approx(chosen_rate("sft", "", info))
    assert (await create(http, pairs)).method.type == "dpo"  # type: ignore[union-attr]


async def test_own_settings(http: Http, file: str) -> None:
    """Those of ``client.train``, by the same names."""
    base = await create(http, file, suffix="pine")
    async with http.working():
        await ended(http, base.id)
    own = {
        "name": "acme",
        "rank": 4,
        "alpha": 8,
        "target_modules": "q_proj",
        "layers": [1, 2],
        "learning_rate": 1e-3,
        "max_steps": 9,
        "validation_split": 0.25,
        "gate": {"min_accuracy": 0.5, "match": "exact"},
        "compare_prompt": "Be brief.",
        "on_top_of": [{"pine": 1.3}, ["pine@1"], []],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    documents = (await upload(http, b'{"text": "Shop 1 is in street 1."}\n', "streets.jsonl")).id
    own |= {"compare_documents": documents, "compare_top_k": 2}
    request = stored(http, await create(http, file, extra_body={"loramux": own}))
    assert (f"file-{request.compare_documents}", request.compare_top_k) == (documents, 2)
    spec = request.spec
    assert (request.name, spec.rank, spec.alpha, spec.target_modules, spec.layers) == (
        "acme",
        4,
        8,
        ("q_proj",),
        (1, 2),
    )
    assert (spec.learning_rate, spec.max_steps, spec.validation_split) == (1e-3, 9, 0.25)
    assert request.gate == Gate("min_accuracy", 0.5, "exact")
    assert request.on_top_of == ((StackItem("pine@1", 1.3),), (StackItem("pine@1"),), ())
    assert json.loads(spec.chat_template_kwargs) == {"enable_thinking": False}
    request = stored(http, await create(http, file, extra_body={"loramux": {"recipe": "facts", "replay_rows": 0}}))
    assert (request.spec.epochs, request.spec.learning_rate) == (4.0, chosen_rate("sft", "facts", http.context.info))
    for model in ("pine", "pine@1", "ft:base:loramux:pine:1"):
        job = await create(http, file, model=model)
        assert (stored(http, job).init_from, job.model) == ("pine@1", "pine@1")
    for stack in (["pine"], {"pine": 1}, "pine"):
        request = stored(http, await create(http, file, extra_body={"loramux": {"on_top_of": stack}}))
        assert request.on_top_of == ((StackItem("pine@1"),),)


def test_own_settings_are_those_of_the_client() -> None:
    of_the_job = {"name", "init_from", "on_top_of", "gate", "compare_prompt", "recipe"}
    mine = Loramux.model_fields.keys() - of_the_job - {"compare_documents", "compare_top_k"}
    assert mine == {field.name for field in dataclasses.fields(TrainSpec)}
    assert mine - {"replay"} == TrainOptions.__annotations__.keys()


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": "a+b"}, "model"),
        ({"model": "a:0.5"}, "model"),
        ({"model": "Not A Name"}, "model"),
        ({"model": "ft:gpt-4o:acme:x:y"}, "model"),
        ({"model": None}, "model"),
        ({"training_file": ""}, "training_file"),
        ({"training_file": 3}, "training_file"),
        ({"suffix": ""}, "suffix"),
        ({"suffix": "!!"}, "suffix"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"suffix": "base"}, "suffix"),
        ({"suffix": "a", "loramux": {"name": "b"}}, "loramux.name"),
        ({"loramux": {"name": "A B"}}, "loramux.name"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"seed": 1, "loramux": {"seed": 1}}, "seed"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a": "x" * 5000}}, "metadata['a']"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, "method.type"),
        ({"method": {"type": "other"}}, "method.type"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"method": {"type": "supervised"}, "hyperparameters": {}}, "hyperparameters"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": 1.5}}, "hyperparameters.batch_size"),
        ({"hyperparameters": {"batch_size": 10**9}}, "hyperparameters.batch_size"),
        ({"hyperparameters": {"learning_rate_multiplier": -1}}, "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"learning_rate_multiplier": 1e300}}, "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": -1}}}},
            "method.supervised.hyperparameters.n_epochs",
        ),
        ({"hyperparameters": {"n_epochs": 1}, "loramux": {"epochs": 1}}, "hyperparameters.n_epochs"),
        ({"loramux": {"rank": 0}}, "loramux.rank"),
        ({"loramux": {"rank": True}}, "loramux.rank"),
        ({"loramux": {"rnak": 4}}, "loramux.rnak"),
        ({"loramux": {"target_modules": ["q_porj"]}}, "loramux.target_modules[0]"),
        ({"loramux": {"gate": "improves"}}, "loramux.gate"),
        ({"loramux": {"gate": {"min_accuracy": 2}, "validation_split": 0.5}}, "loramux.gate.min_accuracy"),
        ({"loramux": {"on_top_of": [["a"], "b"]}}, "loramux.on_top_of[0]"),
        ({"loramux": {"on_top_of": {"a": "x"}}}, "loramux.on_top_of[0]"),
        ({"loramux": {"on_top_of": {"a": 1e300}}}, "loramux.on_top_of[0][0].weight"),
        ({"loramux": {"on_top_of": 3}}, "loramux.on_top_of[0]"),
        ({"loramux": {"recipe": "magic"}}, "loramux.recipe"),
        ({"model": "a", "loramux": {"init_from": "b"}}, "loramux.init_from"),
        ({"unknown": 1}, "unknown"),
    ],
)
async def test_bad_fields_are_named(http: Http, file: str, changes: dict[str, Any], param: str) -> None:
    body = json.dumps({"model": "base", "training_file": file, **changes})
    answer = await http.raw.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error
    assert param in error["message"]
    assert http.context.store.jobs.list() == ((), "")


async def test_bad_rows_are_named_by_file_and_line(http: Http, file: str) -> None:
    bad = (await upload(http, ROWS + b'{"prompt": 3}\nnothing\n')).id
    for fields, which in (({"training_file": bad}, "training_file"), ({"validation_file": bad}, "validation_file")):
        with pytest.raises(openai.BadRequestError, match="line 13") as caught:
            await create(http, file, **fields)
        assert (caught.value.param or "").startswith(f"{which}[line 13]")
        body: Any = caught.value.body
        assert len(body["violations"]) == 2


async def test_text_that_is_no_unicode_is_refused(http: Http, file: str) -> None:
    for fields in ({"training_file": "\ud800"}, {"suffix": "a\udfff"}, {"loramux": {"recipe": "\ud800"}}):
        body = json.dumps({"model": "base", "training_file": file, **fields})
        answer = await http.raw.post("/v1/fine_tuning/jobs", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed")
    assert (await create(http, file, metadata={"who": "\U0001f642"})).metadata == {"who": "\U0001f642"}


async def test_models_and_files_that_are_absent(http: Http, file: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await create(http, file, model="nobody")
    assert caught.value.code == "model_not_found"
    for id in ("file-ds-0123456789abcdef", "x", "\x00", "file-" * 9):
        with pytest.raises(openai.NotFoundError) as caught:
            await create(http, id)
        assert caught.value.code == "dataset_not_found"
    with pytest.raises(openai.NotFoundError):
        await create(http, file, validation_file="file-ds-0123456789abcdef")


async def test_lists_of_jobs(http: Http, file: str) -> None:
    jobs = http.openai.fine_tuning.jobs
    meta = [{"team": "a"}, {"team": "b"}, None, {"team": "a", "x": ""}, {"team": "a"}]
    ids = [(await create(http, file, metadata=m, seed=i)).id for i, m in enumerate(meta)]
    assert [job.id async for job in jobs.list()] == ids[::-1]
    page = await jobs.list(limit=2)
    assert ([job.id for job in page.data], page.has_more) == ([ids[4], ids[3]], True)
    page = await jobs.list(limit=2, after=ids[2])
    assert ([job.id for job in page.data], page.has_more) == ([ids[1], ids[0]], False)
    assert [job.id async for job in jobs.list(limit=2)] == ids[::-1]
    assert [job.id async for job in jobs.list(limit=1, metadata={"team": "a"})] == [ids[4], ids[3], ids[0]]
    assert [job.id async for job in jobs.list(metadata={"team": "a", "x": ""})] == [ids[3]]
    assert [job["id"] for job in (await http.raw.get("/v1/fine_tuning/jobs?metadata=null")).json()["data"]] == [ids[2]]
    for query, param in (
        ("metadata=1", "metadata"),
        ("metadata=null&metadata[a]=b", "metadata"),
        ("order=asc", "order"),
    ):
        answer = await http.raw.get(f"/v1/fine_tuning/jobs?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await http.raw.get("/v1/fine_tuning/jobs?after=ftjob-0")).status_code == 404


async def test_the_same_idempotency_key_gives_the_same_job(http: Http, file: str) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await create(http, file, extra_headers=headers)
    assert (await create(http, file, extra_headers=headers)).id == first.id
    assert (await create(http, file)).id != first.id
    with pytest.raises(openai.ConflictError, match="other settings") as caught:
        await create(http, file, seed=9, extra_headers=headers)
    assert caught.value.code == "idempotency_key_reused"
    with pytest.raises(openai.BadRequestError, match="idempotency-key"):
        await create(http, file, extra_headers={"Idempotency-Key": "k" * 300})


async def test_jobs_of_others_are_absent(http: Http) -> None:
    http.access.authenticator = Tenants()
    mine, theirs = http.openai.with_options(api_key="a"), http.openai.with_options(api_key="b")
    file = (await mine.files.create(file=("x.jsonl", ROWS), purpose="fine-tune")).id
    with pytest.raises(openai.NotFoundError):
        await theirs.fine_tuning.jobs.create(model="base", training_file=file)
    job = await mine.fine_tuning.jobs.create(model="base", training_file=file)
    absent = "ftjob-" + "0" * 20
    told = []
    for client, id in ((theirs, job.id), (mine, absent)):
        jobs = client.fine_tuning.jobs
        assert [job.id async for job in jobs.list()] == ([] if client is theirs else [job.id])
        for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
            with pytest.raises(openai.NotFoundError) as caught:
                await call(id)
            told.append(str(caught.value).replace(id.removeprefix("ft"), "ID"))
        with pytest.raises(openai.NotFoundError):
            await jobs.list(after=id)
        key = {"authorization": f"Bearer {client.api_key}"}
        answer = await http.raw.get(f"/v1/fine_tuning/jobs/{id}/events?stream=true", headers=key)
        assert answer.status_code == 404
    assert told[:6] == told[6:]
    assert http.context.store.jobs.get(job.id.removeprefix("ft")).state is JobState.QUEUED


async def test_a_stop_of_the_server_ends_streams_of_events(http: Http, file: str) -> None:
    job = await create(http, file)
    async with http.raw.stream("GET", f"/v1/fine_tuning/jobs/{job.id}/events?stream=true") as answer:
        lines = answer.aiter_lines()
        assert "queued" in await anext(lines)
        assert await asyncio.wait_for(http.server.drain(60), 10) == 0
        rest = [line async for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
