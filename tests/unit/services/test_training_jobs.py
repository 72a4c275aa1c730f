"""A job's life from upload to publishing, with the real store and a scripted engine."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from loramux_server.core.backend import EngineInfo
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import ROWS_DAMAGED, Code, Error
from loramux_server.core.jobs import Gate, JobRequest, JobState, TrainCommand, TrainEvent, TrainEventType, TrainSpec
from loramux_server.core.types import AdapterVersion, StackItem
from loramux_server.services.common.context import Context
from loramux_server.services.common.limits import Limits
from loramux_server.services.jobs.board import JobBoard
from loramux_server.services.jobs.running.runner import JobRunner
from loramux_server.services.jobs.running.trouble import MAX_ENGINE_LOSSES
from loramux_server.services.jobs.service import TrainingService
from loramux_server.store.records import AdapterMeta, EventRecord, JobRecord
from loramux_server.store.store import Store
from loramux_server.telemetry.audit import AuditLog
from loramux_server.telemetry.audit.reading import read
from loramux_server.text import TextTokenizer

from .adapter_files import write_adapter
from .fakes import FakeBackend, caller
from .recording import Recorder
from .scripted_training import ScriptedTraining

ROWS = [{"prompt": f"Where is shop {i}?", "completion": f" In street {i}."} for i in range(12)]


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


async def in_pieces(data: bytes, size: int = 250) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@dataclass
class Server:
    """A training service and its runner over one store, as the app puts them together."""

    context: Context
    store: Store
    backend: FakeBackend
    training: ScriptedTraining
    service: TrainingService
    runner: JobRunner
    recorder: Recorder
    task: asyncio.Task[None] | None = None
    """The runner at work."""

    @classmethod
    def over(cls, store: Store, text: TextTokenizer, info: EngineInfo, **running: Any) -> Server:
        """``running``: what a runner is made with."""
        backend, training, recorder = FakeBackend(info), ScriptedTraining(info), Recorder()
        backend.training = training
        board = JobBoard(store, recorder)
        context = Context(store, text, info, Limits(), backend, audit=AuditLog(store.state.path / "audit.jsonl"))
        service = TrainingService(context, board)
        runner = JobRunner(context, board, **{"retry_seconds": 0.0001, **running})
        return cls(context, store, backend, training, service, runner, recorder)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        await self.runner.recover()
        self.task = task = asyncio.create_task(self.runner.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def dataset(self, rows: list[dict[str, object]] = ROWS) -> str:  # type: ignore[assignment]
        return (await self.service.upload_dataset(in_pieces(jsonl(rows)), LOCAL, name="shops.jsonl")).id

    async def job(self, **request: object) -> JobRecord:
        dataset = await self.dataset()
        return await self.service.create_job(
            JobRequest(**{"name": "acme", "dataset_id": dataset, "tenant": "default", **request}), LOCAL
        )  # type: ignore[arg-type]

    async def finished(self, job: JobRecord) -> list[EventRecord]:
        return [event async for event in self.service.watch_job(job.id, LOCAL)]

    def published(self) -> list[str]:
        return [version.ref for record in self.store.adapters.list("default")[0] for version in record.versions]


@pytest.fixture
def server(store: Store, text: TextTokenizer, info: EngineInfo) -> Server:
    return Server.over(store, text, info)


def states(events: list[EventRecord]) -> list[JobState]:
    return [event.event.state for event in events if event.event.state is not None]


SUCCESS = [JobState.QUEUED, JobState.RUNNING, JobState.EVALUATING, JobState.PUBLISHING, JobState.SUCCEEDED]


async def test_a_job_from_upload_to_publishing(server: Server, info: EngineInfo) -> None:
    validation = await server.dataset(ROWS[:2])  # type: ignore[arg-type]
    job = await server.job(validation_dataset_id=validation, metadata={"who": "me"})
    assert job.state is JobState.QUEUED
    async with server.working():
        events = await server.finished(job)
    assert states(events) == SUCCESS
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    losses = [e.event.metrics["loss"] for e in events if e.event.type is TrainEventType.STEP]
    assert losses == [1.0, 0.5, pytest.approx(1 / 3)]
    job = await server.service.get_job(job.id, LOCAL)
    assert job.published is not None
    assert job.published.ref == job.adapter == "acme@1"
    assert (job.step, job.total_steps) == (3, 3)
    assert job.metrics["eval_loss"] == 0.25
    assert job.started
    assert job.finished
    (entry,) = read(server.store.state.path / "audit.jsonl")
    assert entry is not None
    assert (entry.action, entry.object, entry.tenant) == ("publish", "acme@1", "default")
    assert entry.details == {"job": job.id, "current": "yes"}
    meta = server.store.adapters.get_version("acme", "default").meta
    assert meta.job_id == job.id
    assert meta.dataset_digest == hashlib.sha256(jsonl(ROWS)).hexdigest()  # type: ignore[arg-type]
    assert meta.base_fingerprint == info.base_fingerprint
    assert meta.metadata == {"who": "me"}
    assert meta.metrics == {"loss": pytest.approx(1 / 3), "trained_tokens": 30.0, "eval_loss": 0.25, "base_loss": 2.0}
    assert not any(server.store.state.tmp.iterdir())
    assert server.recorder.states == list(zip([None, *SUCCESS], SUCCESS, strict=False))
    moves = server.recorder.moves
    assert {(move.job_id, move.name, move.tenant, move.created) for move in moves} == {
        (job.id, "acme", "default", job.created)
    }
    assert sorted(move.at for move in moves) == [move.at for move in moves]
    assert (moves[0].at, moves[0].attempt, moves[0].validation > 0) == (job.created, 0, True)
    assert [(move.attempt, move.validation) for move in moves[1:]] == [(1, 0.0)] * (len(moves) - 1)
    assert (moves[-1].adapter, moves[-1].metrics["loss"]) == ("acme@1", pytest.approx(1 / 3))


async def test_the_engine_gets_the_tokenised_rows(server: Server, text: TextTokenizer) -> None:
    spec = TrainSpec(rank=2, epochs=1.0)
    job = await server.job(spec=spec)
    async with server.working():
        await server.finished(job)
    (command,) = server.backend.trained
    assert (command.job_id, command.spec, command.base_name) == (job.id, spec, "tiny/base")
    rows = server.backend.rows[0].train
    assert len(rows) == len(ROWS)
    prompt = text.encode("Where is shop 0?")
    assert list(rows[0].input_ids[: len(prompt)]) == prompt
    assert rows[0].labels.index(True) == len(prompt)
    assert rows[0].input_ids[-1] == text.eos_token_id
    assert [len(stack.entries) for stack in command.stacks] == [0]


async def test_success_is_told_only_when_the_version_can_be_used(server: Server) -> None:
    def look(adapter: AdapterVersion) -> None:
        assert server.published() == []
        (job,) = server.store.jobs.list("default")[0]
        assert job.state is JobState.PUBLISHING

    server.backend.on_load = look
    job = await server.job()
    async with server.working():
        await server.finished(job)
    assert [a.digest for a in server.backend.loaded] == [server.store.adapters.get_version("acme", "default").digest]


async def test_the_card_tells_where_the_adapter_comes_from(server: Server) -> None:
    job = await server.job()
    async with server.working():
        await server.finished(job)
    version = server.store.adapters.resolve("acme", "default")
    card = (server.store.blobs.local_path(version.digest) / "README.md").read_text()
    for part in (
        'base_model: "tiny/base"',
        "library_name: peft",
        job.id,
        hashlib.sha256(jsonl(ROWS)).hexdigest(),  # type: ignore[arg-type]
        "| `learning_rate` | 0.0002 |",
        "| Training loss, last step | 0.333333 |",
        'client.generate("...", adapters=["acme"])',
        "PeftModel.from_pretrained(base",
    ):
        assert part in card


async def test_jobs_run_in_order_one_at_a_time(server: Server) -> None:
    jobs = [await server.job(name=name) for name in ("first", "second", "third")]
    async with server.working():
        for job in jobs:
            await server.finished(job)
    assert [c.job_id for c in server.backend.trained] == [job.id for job in jobs]
    assert sorted(server.published()) == ["first@1", "second@1", "third@1"]
    listed = await server.service.list_jobs(LOCAL)
    assert [job.request.name for job in listed.items] == ["third", "second", "first"]
    assert [j.request.name for j in (await server.service.list_jobs(LOCAL, name="second")).items] == ["second"]
    assert (await server.service.list_jobs(LOCAL, states=(JobState.QUEUED, JobState.FAILED))).items == ()
    page = await server.service.list_jobs(LOCAL, page_size=2, states=(JobState.SUCCEEDED, JobState.FAILED))
    rest = await server.service.list_jobs(LOCAL, page_size=2, page_token=page.next_page_token)
    assert [job.request.name for job in page.items + rest.items] == ["third", "second", "first"]


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        (
            {"at": 2, "error": Error(Code.FAILED_PRECONDITION, "the loss is not a number at step 2")},
            "FAILED_PRECONDITION",
            "loss",
        ),
        ({"at": 2, "error": Error(Code.RESOURCE_EXHAUSTED, "out of memory")}, "RESOURCE_EXHAUSTED", "memory"),
        ({"at": 2, "error": ZeroDivisionError("secret /path")}, "INTERNAL", "internal error"),
        ({"b": 0.0}, "ADAPTER_WITHOUT_EFFECT", "changes nothing"),
        ({"fingerprint": "another"}, "ADAPTER_FOR_OTHER_BASE", "another base"),
    ],
)
async def test_a_failed_job_publishes_nothing(
    server: Server, fault: dict[str, object], reason: str, words: str
) -> None:
    server.backend.training = replace(server.training, **fault)  # type: ignore[arg-type]
    job = await server.job()
    async with server.working():
        events = await server.finished(job)
        assert states(events)[-1] is JobState.FAILED
        job = await server.service.get_job(job.id, LOCAL)
        assert words in job.error
        assert job.error_code == reason
        assert "/path" not in job.error
        assert server.published() == []
        assert server.backend.loaded == []
        assert not any(server.store.state.tmp.iterdir())
        server.backend.training = server.training
        assert states(await server.finished(await server.job(name="next")))[-1] is JobState.SUCCEEDED


async def test_not_a_number_weights_are_not_published(server: Server) -> None:
    server.backend.load_error = Error(Code.INVALID_ARGUMENT, "tensor x holds values that are not finite")
    job = await server.job()
    async with server.working():
        assert states(await server.finished(job))[-1] is JobState.FAILED
    assert server.published() == []


async def test_a_lost_engine_puts_the_job_back(server: Server) -> None:
    server.training.at, server.training.error = 2, Error(Code.UNAVAILABLE, "the engine died")
    server.training.times = 2
    job = await server.job()
    async with server.working():
        events = await server.finished(job)
    again = [JobState.RUNNING, JobState.QUEUED]
    assert states(events) == [JobState.QUEUED, *again, *again, *SUCCESS[1:]]
    assert server.published() == ["acme@1"]
    assert "the engine died" in next(e.event.message for e in events if "again" in e.event.message)


async def test_a_job_that_always_loses_the_engine_fails(server: Server) -> None:
    server.training.at, server.training.error = 1, Error(Code.UNAVAILABLE, "the engine died")
    server.training.times = 1000
    job = await server.job()
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.FAILED
    assert server.training.runs == MAX_ENGINE_LOSSES
    found = await server.service.get_job(job.id, LOCAL)
    assert found.error_code == "ENGINE_LOST"
    assert f"died {MAX_ENGINE_LOSSES} times" in found.error


async def test_an_engine_that_is_away_is_waited_for(server: Server) -> None:
    """However often: only a job at whose work the engine dies without getting further may be why."""
    away = [Error(Code.UNAVAILABLE, "starting again") for _ in range(3 * MAX_ENGINE_LOSSES)]

    async def training(command: TrainCommand) -> AsyncIterator[TrainEvent]:
        if away:
            raise away.pop()
        async for event in server.training(command):
            yield event

    server.backend.training = training
    job = await server.job()
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.SUCCEEDED


@pytest.mark.slow
async def test_a_job_that_gets_further_each_time_is_not_to_blame(server: Server) -> None:
    """The engine dies at every step, but a checkpoint keeps each one."""
    total, done = 3 * MAX_ENGINE_LOSSES, 0

    async def training(command: TrainCommand) -> AsyncIterator[TrainEvent]:
        nonlocal done
        yield TrainEvent(TrainEventType.STATE, "training", JobState.RUNNING, done, total)
        done += 1
        if done < total:
            yield TrainEvent(TrainEventType.STEP, step=done, total_steps=total, metrics={"loss": 1.0})
            raise Error(Code.UNAVAILABLE, "the engine died")
        async for event in server.training(command):
            yield event

    server.backend.training = training
    job = await server.job()
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.SUCCEEDED


async def test_a_stopped_server_takes_the_job_up_again(server: Server, text: TextTokenizer, info: EngineInfo) -> None:
    server.training.at, server.training.hang = 2, True
    job = await server.job()
    async with server.working():
        await server.training.waiting.wait()
    assert server.training.stopped == 1
    assert server.store.jobs.get(job.id).state is JobState.QUEUED
    again = Server.over(server.store, text, info)
    async with again.working():
        events = await again.finished(job)
    assert states(events) == [JobState.QUEUED, JobState.RUNNING, JobState.QUEUED, *SUCCESS[1:]]


@pytest.mark.slow
async def test_a_killed_server_takes_the_job_up_again(tmp_path: Path, text: TextTokenizer, info: EngineInfo) -> None:
    store = Store.open(tmp_path / "killed")
    server = Server.over(store, text, info)
    job = await server.job()
    store.jobs.move(job.id, JobState.RUNNING)  # and then the process was gone
    store.close()
    store = Store.open(tmp_path / "killed")
    again = Server.over(store, text, info)
    async with again.working():
        events = await again.finished(job)
    assert states(events) == [JobState.QUEUED, JobState.RUNNING, JobState.QUEUED, *SUCCESS[1:]]
    assert again.published() == ["acme@1"]
    store.close()


async def test_cancel_while_queued_and_while_running(server: Server) -> None:
    server.training.at, server.training.hang = 2, True
    running, queued = await server.job(), await server.job(name="other")
    async with server.working():
        await server.training.waiting.wait()
        assert (await server.service.cancel_job(queued.id, LOCAL)).state is JobState.CANCELLED
        assert (await server.service.cancel_job(running.id, LOCAL)).state is JobState.CANCELLED
        assert (await server.service.cancel_job(running.id, LOCAL)).state is JobState.CANCELLED
        assert states(await server.finished(running))[-1] is JobState.CANCELLED
        server.backend.training = ScriptedTraining(server.training.info)
        assert states(await server.finished(await server.job(name="next")))[-1] is JobState.SUCCEEDED
    assert server.training.stopped == 1
    assert server.published() == ["next@1"]
    assert [c.job_id for c in server.backend.trained].count(queued.id) == 0
    with pytest.raises(Error) as caught:
        await server.service.resume_job(running.id, LOCAL)
    assert caught.value.code is Code.FAILED_PRECONDITION


@pytest.mark.slow
async def test_a_full_disk_while_publishing_fails_the_job(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is half there, the reason is told, and with room again the job can be resumed."""
    put = server.store.blobs.put_folder

    def full(folder: Path) -> None:
        raise Error(Code.RESOURCE_EXHAUSTED, "cannot store the folder: the disk is full", reason="STORAGE_FULL")

    monkeypatch.setattr(server.store.blobs, "put_folder", full)
    job = await server.job()
    async with server.working():
        assert states(await server.finished(job))[-2:] == [JobState.PUBLISHING, JobState.FAILED]
        assert (await server.service.get_job(job.id, LOCAL)).error_code == "STORAGE_FULL"
        assert server.published() == []
        assert not any(server.store.state.tmp.iterdir())
        monkeypatch.setattr(server.store.blobs, "put_folder", put)
        await server.service.resume_job(job.id, LOCAL)
        assert states(await server.finished(job))[-1] is JobState.SUCCEEDED
    assert server.published() == ["acme@1"]


async def test_pause_and_resume(server: Server) -> None:
    server.training.at, server.training.hang = 2, True
    job = await server.job()
    async with server.working():
        await server.training.waiting.wait()
        assert (await server.service.pause_job(job.id, LOCAL)).state is JobState.PAUSED
        server.backend.training = ScriptedTraining(server.training.info)
        assert (await server.service.resume_job(job.id, LOCAL)).state is JobState.QUEUED
        events = await server.finished(job)
    assert states(events) == [JobState.QUEUED, JobState.RUNNING, JobState.PAUSED, *SUCCESS]
    with pytest.raises(Error):
        await server.service.cancel_job(job.id, LOCAL)


async def test_a_failed_job_can_be_resumed(server: Server) -> None:
    """It goes on from its checkpoints in a new attempt; a call that is sent again changes nothing."""
    loss = Error(Code.RESOURCE_EXHAUSTED, "the disk is full", reason="STORAGE_FULL")
    server.training.at, server.training.error = 2, loss
    job = await server.job()
    async with server.working():
        failed = await server.finished(job)
        assert states(failed)[-1] is JobState.FAILED
        found = await server.service.get_job(job.id, LOCAL)
        assert (found.error_code, found.last_sequence) == ("STORAGE_FULL", failed[-1].sequence)
        checkpoint = server.store.state.jobs / job.id / "step-00000001"
        checkpoint.mkdir()
        again = [await server.service.resume_job(job.id, LOCAL) for _ in range(2)]
        assert all(not info.state.final and info.error == info.error_code == "" for info in again)
        events = await server.finished(job)
    assert states(events) == [*states(failed), *SUCCESS]
    assert events[: len(failed)] == failed
    assert events[-1].event.message == "published acme@1"
    first, second = server.backend.trained
    assert first.checkpoint_dir == second.checkpoint_dir == str(checkpoint.parent)
    with pytest.raises(Error) as caught:
        await server.service.resume_job(job.id, LOCAL)
    assert caught.value.code is Code.FAILED_PRECONDITION


async def test_watching_again_goes_on_after_the_last_event_seen(server: Server) -> None:
    server.training.at, server.training.hang = 2, True
    job = await server.job()
    async with server.working():
        await server.training.waiting.wait()
        seen: list[EventRecord] = []
        async with aclosing(server.service.watch_job(job.id, LOCAL)) as events:
            async for event in events:
                seen.append(event)
                if event.event.type is TrainEventType.STEP:
                    break
        late = asyncio.create_task(_collect(server, job, seen[-1].sequence))
        await server.service.cancel_job(job.id, LOCAL)
        rest = await late
    whole = await server.finished(job)
    assert seen + rest == whole
    assert await _collect(server, job, whole[-1].sequence) == []
    assert await _collect(server, job, 10**6) == []


async def _collect(server: Server, job: JobRecord, after: int) -> list[EventRecord]:
    return [event async for event in server.service.watch_job(job.id, LOCAL, after_sequence=after)]


async def test_another_tenants_job_reads_as_absent(server: Server) -> None:
    job = await server.job()
    for call in (server.service.get_job, server.service.cancel_job, server.service.pause_job):
        with pytest.raises(Error) as caught:
            await call(job.id, caller("other"))
        assert caught.value.code is Code.NOT_FOUND
    with pytest.raises(Error) as caught:
        await anext(server.service.watch_job(job.id, caller("other")))
    assert caught.value.code is Code.NOT_FOUND
    with pytest.raises(Error) as caught:
        await server.service.create_job(JobRequest("acme", job.request.dataset_id, tenant="other"), caller("other"))
    assert caught.value.code is Code.NOT_FOUND


async def test_bad_jobs_make_no_row(server: Server) -> None:
    dataset = await server.dataset()
    good = JobRequest("acme", dataset, "default")
    broken = await server.service.upload_dataset(
        in_pieces(b'{"prompt": "a", "completion": "b"}\n{\n\n[]\n{"x": 1}\n'), LOCAL
    )
    bad = [
        (replace(good, name="../acme"), ["name"]),
        (replace(good, spec=TrainSpec(learning_rate=float("nan"), rank=0)), ["rank", "learning_rate"]),
        (replace(good, dataset_id=broken.id), ["data[line 2]", "data[line 4]", "data[line 5]"]),
        (replace(good, validation_dataset_id=broken.id), [f"validation[line {i}]" for i in (2, 4, 5)]),
        (replace(good, spec=TrainSpec(max_length=4)), [f"data[line {i}]" for i in range(1, 13)]),
        (replace(good, idempotency_key="x" * 300), ["idempotency_key"]),
        (replace(good, gate=Gate("improves")), ["gate"]),
        (replace(good, compare_prompt="Be brief."), ["compare_prompt"]),
        (replace(good, compare_prompt=" \n", spec=TrainSpec(validation_split=0.5)), ["compare_prompt"]),
        (replace(good, compare_prompt="word " * 300, spec=TrainSpec(validation_split=0.5)), ["compare_prompt"]),
        (
            replace(good, spec=TrainSpec(eval_steps=2, early_stopping_patience=1)),
            ["eval_steps", "early_stopping_patience"],
        ),
        (replace(good, spec=TrainSpec(validation_split=1.0)), ["validation_split"]),
        (replace(good, spec=TrainSpec(validation_split=0.1), validation_dataset_id=dataset), ["validation_split"]),
        (replace(good, spec=TrainSpec(validation_split=0.99)), ["validation_split"]),
        (
            replace(good, spec=TrainSpec(validation_split=0.1), gate=Gate("min_accuracy", 1.5)),
            ["gate.min_accuracy"],
        ),
    ]
    for request, fields in bad:
        with pytest.raises(Error) as caught:
            await server.service.create_job(request, LOCAL)
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert [v.field for v in caught.value.violations] == fields
    for request in (replace(good, dataset_id="ds-0"), replace(good, on_top_of=((StackItem("nobody"),),))):
        with pytest.raises(Error) as caught:
            await server.service.create_job(request, LOCAL)
        assert caught.value.code is Code.NOT_FOUND
    assert (await server.service.list_jobs(LOCAL)).items == ()


async def test_the_same_key_gives_the_same_job(server: Server, info: EngineInfo, tmp_path: Path) -> None:
    def donor(b: float) -> None:
        folder = write_adapter(tmp_path / f"donor{b}", info, b=b)
        server.store.adapters.publish("pine", "default", folder, AdapterMeta(rank=2, alpha=4.0))

    donor(0.1)
    request = JobRequest(
        "acme", await server.dataset(), "default", on_top_of=((StackItem("pine", 1.3),), ()), idempotency_key="k"
    )
    jobs = await asyncio.gather(*(server.service.create_job(request, LOCAL) for _ in range(3)))
    donor(0.2)  # the name moves on; the call that is sent again means the job that it made
    jobs.append(await server.service.create_job(request, LOCAL))
    assert len({job.id for job in jobs}) == 1
    assert jobs[-1].request.on_top_of == ((StackItem("pine@1", 1.3),), ())
    for other in (replace(request, name="b"), replace(request, on_top_of=((StackItem("pine", 1.0),), ()))):
        with pytest.raises(Error) as caught:
            await server.service.create_job(other, LOCAL)
        assert caught.value.code is Code.ALREADY_EXISTS


async def test_stacks_of_the_job_and_of_rows(server: Server, info: EngineInfo, tmp_path: Path) -> None:
    for i, name in enumerate(("pine", "summit", "own")):
        folder = write_adapter(tmp_path / name, info, b=0.1 * (i + 1))
        server.store.adapters.publish(name, "default", folder, AdapterMeta(rank=2, alpha=4.0))
    rows = [dict(row) for row in ROWS[:6]]
    rows[1]["on_top_of"] = {"own": 0.5}  # type: ignore[assignment]
    rows[3]["on_top_of"] = []  # type: ignore[assignment]
    rows[4]["on_top_of"] = ["summit"]  # type: ignore[assignment]
    job = await server.job(
        dataset_id=await server.dataset(rows),  # type: ignore[arg-type]
        on_top_of=((StackItem("pine", 1.3),), (StackItem("summit"), StackItem("own", 0.0))),
    )
    async with server.working():
        await server.finished(job)
    (command,) = server.backend.trained
    written = [[(e.adapter.ref, e.weight) for e in stack.entries] for stack in command.stacks]
    # An entry of weight 0 is off, so row 4's stack is the job's second one.
    assert written == [[("pine@1", 1.3)], [("summit@1", 1.0)], [("own@1", 0.5)], []]
    assert [row.stack for row in server.backend.rows[0].train] == [0, 2, 1, 3, 1, 0]
    trained_on = server.store.adapters.get_version("acme", "default").meta.trained_on
    assert trained_on[0] == (StackItem("pine@1", 1.3),)


async def test_rows_name_adapters_that_exist(server: Server) -> None:
    rows = [{**row, "on_top_of": ["nobody"]} for row in ROWS]
    dataset = await server.dataset(rows)  # type: ignore[arg-type]
    with pytest.raises(Error) as caught:
        await server.service.create_job(JobRequest("acme", dataset, "default"), LOCAL)
    assert caught.value.code is Code.NOT_FOUND
    for stack, said in (
        ({"../x": 1, "../y": 1}, "on_top_of[{}].adapter: "),
        ({"x": 1e9, "y": -1e9}, "between -100 and 100"),
    ):
        dataset = await server.dataset([{**ROWS[0], "on_top_of": stack}])  # type: ignore[list-item]
        with pytest.raises(Error) as caught:
            await server.service.create_job(JobRequest("acme", dataset, "default"), LOCAL)
        assert [v.field for v in caught.value.violations] == ["data[line 1]"] * 2
        assert all(said.format(i) in v.description for i, v in enumerate(caught.value.violations))


async def test_dataset_reports(server: Server) -> None:
    dataset = await server.service.upload_dataset(in_pieces(jsonl(ROWS + ROWS[:1])), LOCAL, name="x.jsonl")  # type: ignore[arg-type]
    assert (dataset.rows, dataset.filename, dataset.size_bytes) == (13, "x.jsonl", len(jsonl(ROWS + ROWS[:1])))  # type: ignore[arg-type]
    assert (await server.service.list_datasets(LOCAL)).items == (dataset,)
    assert (await server.service.list_datasets(caller("other"))).items == ()
    report = await server.service.validate_dataset(dataset.id, LOCAL, spec=TrainSpec(epochs=2, batch_size=4))
    assert report.ok
    assert (report.rows, report.duplicates, report.estimated_steps) == (13, 1, 8)
    assert 0 < report.trained_tokens < report.tokens
    lines = b"".join(b"{\n" for _ in range(30))
    bad = await server.service.upload_dataset(in_pieces(lines), LOCAL)
    report = await server.service.validate_dataset(bad.id, LOCAL)
    assert not report.ok
    assert [p.line for p in report.problems] == list(range(1, 21))
    assert report.problems_total == 30
    empty = await server.service.upload_dataset(in_pieces(b""), LOCAL)
    report = await server.service.validate_dataset(empty.id, LOCAL)
    assert [p.line for p in report.problems] == [0]


async def test_uploads_are_checked_and_bounded(server: Server, store: Store) -> None:
    with pytest.raises(Error, match="sha256"):
        await server.service.upload_dataset(in_pieces(b"{}"), LOCAL, sha256="0" * 64)
    small = TrainingService(replace(server.context, limits=Limits(max_dataset_bytes=10)), JobBoard(store))
    with pytest.raises(Error) as caught:
        await small.upload_dataset(in_pieces(b"x" * 11, 7), LOCAL)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert not any(store.state.tmp.iterdir())


@pytest.mark.slow
async def test_two_runners_share_the_queue_and_no_job(server: Server, info: EngineInfo) -> None:
    backend = FakeBackend(info, training=ScriptedTraining(info))
    board = server.runner.board
    other = JobRunner(replace(server.context, backend=backend), board)
    jobs = [await server.job(name=f"n{i}") for i in range(6)]
    async with server.working():
        second = asyncio.create_task(other.run())
        for job in jobs:
            assert states(await server.finished(job)) == SUCCESS
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
    trained = [c.job_id for b in (server.backend, backend) for c in b.trained]
    assert len(backend.trained) > 0
    assert sorted(trained) == sorted(job.id for job in jobs)
    assert len(server.published()) == 6


async def test_a_runner_stops_when_its_job_is_in_other_hands(
    store: Store, text: TextTokenizer, info: EngineInfo
) -> None:
    server = Server.over(store, text, info, lease_seconds=0.03)
    server.training.at, server.training.hang = 2, True
    job = await server.job()
    async with server.working():
        await server.training.waiting.wait()
        server.store.jobs.requeue_interrupted()
        taken = server.store.jobs.claim("another server", 60.0)
        assert taken is not None
        await asyncio.wait_for(server.training.gone.wait(), 10)
    assert server.store.jobs.get(job.id) == taken


async def test_checkpoints_live_as_long_as_the_job_can_go_on(server: Server) -> None:
    folder = server.store.state.jobs
    server.training.at, server.training.hang = 2, True
    paused, cancelled = await server.job(name="paused"), await server.job(name="cancelled")
    async with server.working():
        await server.training.waiting.wait()
        (command,) = server.backend.trained
        assert Path(command.checkpoint_dir) == folder / paused.id
        (folder / paused.id / "step-00000001").mkdir()
        await server.service.pause_job(paused.id, LOCAL)
        server.training.waiting.clear()
        await server.training.waiting.wait()
        assert {p.name for p in folder.iterdir()} == {paused.id, cancelled.id}
        await server.service.cancel_job(cancelled.id, LOCAL)
        assert {p.name for p in folder.iterdir()} == {paused.id}
        loss = Error(Code.FAILED_PRECONDITION, "the loss is not a number")
        server.backend.training = ScriptedTraining(server.training.info, at=2, error=loss)
        failing = await server.job(name="failing")
        assert states(await server.finished(failing))[-1] is JobState.FAILED
        server.backend.training = ScriptedTraining(server.training.info)
        await server.service.resume_job(paused.id, LOCAL)
        assert states(await server.finished(paused))[-1] is JobState.SUCCEEDED
    (folder / "job-nobody-knows").mkdir()
    await server.runner.recover()
    assert {p.name for p in folder.iterdir()} == {failing.id}


async def test_field_09_a_job_goes_on_with_the_rows_that_it_began_with(
    server: Server, text: TextTokenizer, info: EngineInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the template shows another minute, and the name of a row's stack means another version, deleted or not."""
    for number in range(2):
        made = write_adapter(tmp_path / f"made{number}", info, b=0.1 + number)
        server.store.adapters.publish("pine", "default", made, AdapterMeta(rank=2, alpha=4.0))
        if not number:
            first = server.store.adapters.resolve("pine", "default")
            rows = await server.dataset([row | {"on_top_of": {"pine": 1.3}} for row in ROWS])  # type: ignore[list-item]
            job = await server.job(dataset_id=rows, compare_prompt="", spec=TrainSpec(validation_split=0.25))
            server.training.at, server.training.hang = 2, True
            async with server.working():
                await server.training.waiting.wait()
                await server.service.pause_job(job.id, LOCAL)
                await server.training.gone.wait()
    server.store.adapters.delete("pine@1", "default")
    assert first.digest not in server.store.collect_orphans()
    encode = text.encode
    monkeypatch.setattr(text, "encode", lambda prompt, **more: encode(f"12:01 {prompt}", **more))
    server.training.hang = False
    await server.service.resume_job(job.id, LOCAL)
    async with server.working():
        assert states(await server.finished(job))[-1] is JobState.SUCCEEDED
    assert server.backend.rows[0] == server.backend.rows[1]
    before, after = server.backend.trained
    assert [e.adapter for e in after.stacks[1].entries] == [e.adapter for e in before.stacks[1].entries] == [first]


def rows_file(server: Server, job: JobRecord) -> Path:
    (found,) = (server.store.state.jobs / job.id).glob("rows-*.bin")
    return found


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def old_version(path: Path) -> None:
    """What the version before kept, under the name that it had."""
    path.unlink()
    path.with_name("rows.msgpack").write_bytes(b"rows")


def other_base(path: Path) -> None:
    content = path.read_bytes().replace(b"f" * 64, b"e" * 64)
    path.unlink()
    path.with_name(f"rows-{hashlib.sha256(content).hexdigest()}.bin").write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damage, "does not hold what was written"),
        (lambda path: path.write_bytes(b""), "does not hold what was written"),
        (Path.unlink, "has no rows file"),
        (old_version, "has no rows file"),
        (other_base, "was made for another base"),
    ],
    ids=["damaged", "empty", "missing", "old", "base"],
)
async def test_rows_that_cannot_be_used_are_made_again(
    server: Server, spoil: Callable[[Path], object], words: str
) -> None:
    rows = [row | {"on_top_of": []} if i % 2 else row for i, row in enumerate(ROWS)]
    job = await server.job(dataset_id=await server.dataset(rows), spec=TrainSpec(validation_split=0.25))  # type: ignore[arg-type]
    server.training.at, server.training.hang = 2, True
    async with server.working():
        await server.training.waiting.wait()
        await server.service.pause_job(job.id, LOCAL)
        await server.training.gone.wait()
    spoil(rows_file(server, job))
    server.training.hang = False
    await server.service.resume_job(job.id, LOCAL)
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.SUCCEEDED
    told = [e.event.message for e in events if "read again" in e.event.message]
    assert len(told) == 1
    assert words in told[0]
    before, after = server.backend.rows
    assert after == before


async def test_rows_that_the_engine_finds_damaged_are_made_again(server: Server) -> None:
    """Once: then the job fails, and says which file it is."""
    server.training.at = 1
    server.training.error = Error(Code.DATA_LOSS, "the rows file job-1/rows-2.bin is damaged", reason=ROWS_DAMAGED)
    job, other = await server.job(), await server.job()
    async with server.working():
        events = await server.finished(job)
        assert states(events) == SUCCESS
        assert any("rows-2.bin is damaged; the dataset is read again" in e.event.message for e in events)
        assert server.backend.rows[0] == server.backend.rows[1]
        server.training.runs = -1
        server.training.times = 1000
        assert states(await server.finished(other))[-1] is JobState.FAILED
    found = await server.service.get_job(other.id, LOCAL)
    assert (found.error_code, "rows-2.bin" in found.error) == (ROWS_DAMAGED, True)


async def test_rows_are_tokenised_once(server: Server, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by calls with the same key, at once or later, nor by the runner, nor for a comparison."""
    encoded: list[str] = []
    encode = text.encode

    def counted(prompt: str, **more: Any) -> list[int]:
        encoded.append(prompt)
        return encode(prompt, **more)

    monkeypatch.setattr(text, "encode", counted)
    dataset = await server.dataset()
    request = JobRequest(
        "acme",
        dataset,
        spec=TrainSpec(validation_split=0.25),
        compare_prompt="Be brief.",
        idempotency_key="k",
        tenant="default",
    )
    jobs = await asyncio.gather(*(server.service.create_job(request, LOCAL) for _ in range(3)))
    assert {(await server.service.create_job(request, LOCAL)).id} == {job.id for job in jobs}
    async with server.working():
        assert states(await server.finished(jobs[0]))[-1] is JobState.SUCCEEDED
    asked = [row["prompt"] for row in ROWS]
    assert sorted(prompt for prompt in encoded if prompt in asked) == sorted(asked)
    assert len([prompt for prompt in encoded if prompt.startswith("Be brief.")]) == 3
    assert len(encoded) == len(ROWS) + 3


async def test_a_job_that_is_not_created_leaves_no_folder(server: Server) -> None:
    with pytest.raises(Error):
        await server.job(spec=TrainSpec(validation_split=0.25), compare_prompt="word " * 300)
    with pytest.raises(Error):
        await server.job(on_top_of=((StackItem("nobody"),),))
    with pytest.raises(Error):
        await server.job(dataset_id=await server.dataset([{"prompt": "a", "completion": "b", "on_top_of": ["no"]}]))  # type: ignore[list-item]
    assert not any(server.store.state.jobs.iterdir())
    assert not any(server.store.state.tmp.iterdir())
