"""Distillation jobs: how they are made, who answers prompts alone, and what survives."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from loramux_server.core.backend import EngineInfo, GenerateCommand
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Code, Error
from loramux_server.core.jobs import JobState, TrainRow, TrainSpec
from loramux_server.core.types import FinishReason, StackItem
from loramux_server.store.records import AdapterMeta, EventRecord
from loramux_server.store.store import Store
from loramux_server.text import TextTokenizer
from tests.adapter_files import folder_of

from .adapter_files import write_adapter
from .fakes import Script
from .test_training_jobs import ROWS, Server, states

CONTEXT = "The shops: street number equals shop number."
PROMPTS = [{"prompt": f"Where is shop {i}?"} for i in range(6)]
DISTILL = TrainSpec(method="distill", context=CONTEXT, validation_split=0.25)


@pytest.fixture
def server(store: Store, text: TextTokenizer, info: EngineInfo) -> Server:
    return Server.over(store, text, info)


def answering(text: TextTokenizer) -> Script:
    eos = text.eos_token_id
    assert eos is not None
    return Script((*text.encode(" In its street."), eos), finish=FinishReason.STOP)


def messages(events: list[EventRecord]) -> str:
    return "\n".join(event.event.message for event in events)


def answer_of(row: TrainRow) -> tuple[int, ...]:
    return tuple(id for id, label in zip(row.input_ids, row.labels, strict=True) if label)


async def test_the_teacher_answers_prompts_alone(
    server: Server, text: TextTokenizer, info: EngineInfo, tmp_path: Path
) -> None:
    """With the context, over the frozen stacks and no adapter; a row with an answer keeps it, and the rest follows."""
    donor = write_adapter(tmp_path / "donor", info, b=0.1)
    server.store.adapters.publish("pine", "default", donor, AdapterMeta(rank=2, alpha=4.0))
    script = answering(text)
    server.backend.script = lambda _: script
    dataset = await server.dataset([*PROMPTS, {"prompt": "Where is shop 9?", "completion": " In street 9."}])
    job = await server.job(dataset_id=dataset, spec=DISTILL, on_top_of=((StackItem("pine", 1.3),), ()))
    assert "UNANSWERED_ROWS" in [note.code for note in job.notes]
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.SUCCEEDED

    assert "the teacher answers 6 rows that have no answer" in messages(events)
    asked = server.backend.commands
    assert sorted(text.decode(command.prompt_ids) for command in asked) == sorted(
        f"{CONTEXT}\n\n{row['prompt']}" for row in PROMPTS
    )
    assert {tuple(e.adapter.name for e in command.stack.entries) for command in asked} == {("pine",), ()}
    (rows,) = server.backend.rows
    every = rows.train + rows.held_out
    assert rows.held_out
    given = [row for row in every if text.decode(answer_of(row)).strip() == "In street 9."]
    assert len(given) == 1
    for row in every:
        assert row.teacher is not None
        assert answer_of(row) == answer_of(row.teacher)
        assert row in given or answer_of(row) == script.token_ids
        assert text.decode(row.teacher.input_ids).startswith(CONTEXT)
        assert CONTEXT not in text.decode(row.input_ids)

    version = server.store.adapters.get_version("acme", "default")
    card = (folder_of(server.store, "acme") / "README.md").read_text()
    assert "Teacher: the base with a context of SHA-256 `" in card
    assert f"> {CONTEXT}" in card
    assert version.meta.metrics["eval_loss"] < version.meta.metrics["base_loss"]


async def test_on_policy_the_teacher_answers_held_out_rows_alone(
    server: Server, text: TextTokenizer, info: EngineInfo
) -> None:
    """Training rows stay prompts: their answers are the student's own, which the engine ends by the base's tokens."""
    server.backend.script = lambda _: answering(text)
    spec = TrainSpec(on_policy=True, context=CONTEXT, validation_split=0.25)
    given = frozenset({"context", "on_policy", "validation_split"})
    job = await server.job(dataset_id=await server.dataset(PROMPTS), spec=spec, given=given)
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.SUCCEEDED
    (rows,) = server.backend.rows
    assert [answer_of(row) for row in rows.train] == [()] * len(rows.train)
    assert rows.held_out
    assert all(answer_of(row) for row in rows.held_out)
    assert len(server.backend.commands) == len(rows.held_out)
    (command,) = server.backend.trained
    assert (command.spec.method, command.end_ids) == ("distill", info.eos_token_ids)
    card = (folder_of(server.store, "acme") / "README.md").read_text()
    assert "the adapter's own, sampled in each step (on-policy)" in card
    assert job.request.spec.on_policy


async def test_rows_with_answers_ask_nobody(server: Server) -> None:
    job = await server.job(spec=replace(DISTILL, validation_split=0.0))
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.SUCCEEDED
    assert not server.backend.commands
    assert all(row.teacher is not None for row in server.backend.rows[0].train)


async def test_answers_stay_for_the_next_attempt(server: Server, text: TextTokenizer) -> None:
    """The engine dies in training: the next attempt has the same rows and asks nobody again."""
    said = iter(range(100))

    def other_each_time(_: GenerateCommand) -> Script:
        return Script(tuple(text.encode(f" {next(said)}")), finish=FinishReason.STOP)

    server.backend.script = other_each_time
    server.training.at, server.training.error = 2, Error(Code.UNAVAILABLE, "the engine died")
    job = await server.job(dataset_id=await server.dataset(PROMPTS), spec=DISTILL)
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.SUCCEEDED
    first, second = server.backend.rows
    assert first == second
    assert len(server.backend.commands) == len(PROMPTS)


async def test_an_engine_that_dies_while_it_answers_is_asked_again(server: Server, text: TextTokenizer) -> None:
    tries = iter([Script(raises=Error(Code.UNAVAILABLE, "the engine died"))])
    server.backend.script = lambda _: next(tries, None) or answering(text)
    job = await server.job(dataset_id=await server.dataset(PROMPTS), spec=DISTILL)
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.SUCCEEDED
    assert JobState.QUEUED in states(events)
    assert all(answer_of(row) for row in server.backend.rows[-1].train)


async def test_a_job_is_cancelled_while_the_teacher_answers(server: Server) -> None:
    asked = asyncio.Event()

    def silent(_: GenerateCommand) -> Script:
        asked.set()
        return Script(hang=True)

    server.backend.script = silent
    job = await server.job(dataset_id=await server.dataset(PROMPTS), spec=DISTILL)
    async with server.working():
        await asked.wait()
        await server.service.cancel_job(job.id, LOCAL)
        events = await server.finished(job)
    assert states(events)[-1] is JobState.CANCELLED
    assert server.backend.open == 0  # none of the questions goes on
    assert not server.backend.trained


async def test_an_answer_has_room_in_the_model(server: Server, text: TextTokenizer) -> None:
    """A long context leaves little: with its answer a row is no longer than it may be."""
    server.backend.script = lambda command: Script(tuple(text.encode(" a" * 400))[: command.sampling.max_tokens])
    longest = len(text.encode(f"{CONTEXT}\n\nWhere is shop 0?")) + 5
    spec = replace(DISTILL, max_length=longest)
    job = await server.job(dataset_id=await server.dataset(PROMPTS), spec=spec)
    async with server.working():
        events = await server.finished(job)
    assert states(events)[-1] is JobState.SUCCEEDED
    assert max(len(row.teacher.input_ids) for row in server.backend.rows[0].train if row.teacher) == longest


async def test_a_context_chooses_the_method(server: Server) -> None:
    context = TrainSpec(context=CONTEXT)
    job = await server.job(spec=context, given=frozenset({"context"}))
    assert job.request.spec.method == "distill"
    report = await server.service.validate_dataset(
        await server.dataset(PROMPTS), LOCAL, spec=context, given=frozenset({"context"})
    )
    assert report.ok
    assert (await server.service.validate_dataset(await server.dataset(PROMPTS), LOCAL)).ok is False


@pytest.mark.parametrize(
    ("spec", "rows", "field", "words"),
    [
        (TrainSpec(method="sft", context="c"), ROWS, "context", "method is sft; give method distill"),
        (TrainSpec(method="sft", on_policy=True), ROWS, "on_policy", "method is sft; give method distill"),
        (TrainSpec(method="distill"), ROWS, "data[line 1]", "the job has none"),
        (TrainSpec(method="distill", context="  "), ROWS, "context", "is empty"),
        (TrainSpec(method="distill", context="\ud800"), ROWS, "context", "valid"),
        (TrainSpec(method="distill", context="c" * (1 << 21)), ROWS, "context", "at most"),
        (TrainSpec(method="distill", context="word " * 2000), ROWS, "data[line 1]", "with the context before it"),
        (
            TrainSpec(method="distill", context="c"),
            [{"prompt": "q", "chosen": " a", "rejected": " b"}],
            "method",
            "is distill, but the data are preference pairs",
        ),
    ],
)
async def test_what_no_teacher_can_teach_is_refused(
    server: Server, spec: TrainSpec, rows: list[dict[str, object]], field: str, words: str
) -> None:
    with pytest.raises(Error) as caught:
        await server.job(dataset_id=await server.dataset(rows), spec=spec)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert any(v.field == field and words in v.description for v in caught.value.violations), caught.value.violations


async def test_a_quote_counts_the_teacher(server: Server) -> None:
    """The teacher's forward over the contexts takes time, and its states and logits take memory."""
    dataset = await server.dataset()
    plain = await server.service.validate_dataset(dataset, LOCAL, spec=TrainSpec())
    spec = replace(DISTILL, validation_split=0.0)
    given = frozenset({"method", "context"})
    taught = await server.service.validate_dataset(dataset, LOCAL, spec=spec, given=given)
    assert taught.estimated_seconds is not None
    assert plain.estimated_seconds is not None
    assert taught.estimated_seconds > plain.estimated_seconds
    assert (taught.estimated_memory_bytes or 0) > (plain.estimated_memory_bytes or 0)
    own = await server.service.validate_dataset(
        dataset, LOCAL, spec=replace(spec, on_policy=True), given=frozenset({"on_policy", "context"})
    )
    assert own.estimated_seconds is not None
    assert own.estimated_seconds > taught.estimated_seconds
