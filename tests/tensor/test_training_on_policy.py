"""On-policy distillation: answers are the student's own, sampled anew, and the loss is that of a plain loop on them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux_server.core.jobs import TrainCommand, TrainRow, TrainSpec
from loramux_server.data.rows_file import assign_stacks
from loramux_server.training import student, trainer
from loramux_server.training.schedule import Schedule
from loramux_server.training.student import prompt_of
from tests.engine import Engine, stack_of, version_of
from tests.peft_loop import PeftLoop, initial_adapter
from tests.peft_read import read_folder
from tests.rows import train_command

from .test_training_distill import losses, taught

SPEC = TrainSpec(
    rank=4, alpha=8, method="distill", on_policy=True, learning_rate=3e-3, max_steps=5, epochs=99, batch_size=3, seed=3
)
END_IDS = tuple(range(12))
"""Of a vocabulary of 128: some answers end by themselves and others are cut."""
Sampled = list[dict[int, TrainRow]]


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
    made = Engine(tiny_base("llama"), tmp_path_factory.mktemp("on-policy"))
    yield made
    made.close()


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Sampled:
    """The answered rows of each step, in the order in which they were sampled."""
    found: Sampled = []
    answer_rows = student.answer_rows

    def watched(*args: Any) -> Any:
        rows = yield from answer_rows(*args)
        found.append(rows)
        return rows

    monkeypatch.setattr(trainer, "answer_rows", watched)
    monkeypatch.setattr(student, "MAX_ANSWER", 9)
    monkeypatch.setattr(student, "PREFILL_TOKENS", 7)  # some prompts are computed in pieces
    return found


def on_policy(job: str, data: tuple[TrainRow, ...], *held_out: TrainRow, output: Path, **more: Any) -> TrainCommand:
    return train_command(job, SPEC, data, held_out, output=str(output), end_ids=END_IDS, **more)


def answer_of(row: TrainRow) -> tuple[int, ...]:
    return row.input_ids[len(prompt_of(row)) :]


def test_answers_are_the_students_and_the_loss_is_that_of_two_models_on_them(  # type: ignore[no-untyped-def]
    engine: Engine, tiny_base, make_adapter, tmp_path: Path, sampled: Sampled
) -> None:
    """Each token is what a plain model, at that step, draws with the same random number; stacks are underneath."""
    base = tiny_base("llama")
    folder = make_adapter(tmp_path / "under", base, rank=3, seed=1, scale=0.2)
    stacks = stack_of((version_of(folder, 3), 1.3)), stack_of()
    alone = tuple(replace(row, input_ids=prompt_of(row), labels=(False,) * len(prompt_of(row))) for row in taught(2, 5))
    alone = tuple(
        replace(row, teacher=replace(read, input_ids=prompt_of(read), labels=(False,) * len(prompt_of(read))))
        for row in alone
        if (read := row.teacher) is not None
    )
    data, held_out = taught(5) + alone, taught(3, seed=1)
    events = engine.train(on_policy("equal", data, *held_out, output=tmp_path / "out", stacks=stacks))

    loop = PeftLoop(base, SPEC, initial_adapter(engine.base, SPEC), [[(folder, 1.3)], []])
    turns, ends = assign_stacks([row.stack for row in data], 2), set()

    def rows_of(step: int) -> dict[int, TrainRow]:
        for i, row in sampled[step].items():
            draws, answer = random.Random(f"{SPEC.seed}/{step}/{i}/answer"), answer_of(row)
            with torch.no_grad():
                mass = loop.logits(row, turns[i]).double().softmax(-1).cumsum(-1)
            drawn = [int(torch.searchsorted(m, draws.random() * m[-1], right=True)) for m in mass]
            assert tuple(drawn) == answer
            assert row.teacher is not None
            assert answer_of(row.teacher) == answer
            assert (prompt_of(row), prompt_of(row.teacher)) == (prompt_of(data[i]), prompt_of(data[i].teacher))  # type: ignore[arg-type]
            assert not set(answer[:-1]) & set(END_IDS)
            assert answer[-1] in END_IDS or len(answer) == student.MAX_ANSWER
            ends.add(answer[-1] in END_IDS)
        return sampled[step]

    expected = loop.run(data, turns, rows_of)
    assert losses(events) == pytest.approx(expected, abs=1e-4)
    assert ends == {True, False}
    again = [[answer_of(rows[i]) for rows in sampled if i in rows] for i in range(len(data))]
    assert any(len(set(answers)) > 1 for answers in again)  # sampled anew

    # Held-out rows keep their answers, so that the loss of one evaluation can be compared with that of another.
    with torch.no_grad():
        total = sum(
            float(loop.divergence(row, turn))
            for row, turn in zip(held_out, assign_stacks([None] * len(held_out), 2), strict=True)
        )
    tokens = sum(sum(row.labels[1:]) for row in held_out)
    assert events[-1].metrics["eval_loss"] == pytest.approx(total / tokens, abs=1e-4)


def test_a_resumed_job_samples_the_same_answers_and_has_the_same_bytes(
    engine: Engine, tmp_path: Path, sampled: Sampled
) -> None:
    data = taught(5)
    whole = on_policy("whole", data, output=tmp_path / "whole")
    engine.train(whole)
    uninterrupted = sampled[:]
    sampled.clear()
    (tmp_path / "checkpoints").mkdir()
    broken = replace(
        whole, job_id="broken", output=str(tmp_path / "broken"), checkpoint_dir=str(tmp_path / "checkpoints")
    )
    engine.submit(broken)
    while len(sampled) < 3:  # in the middle of a step whose answers are there
        engine.loop.turn()
    engine.jobs.remove("broken")
    engine.run(broken)
    assert sampled == uninterrupted[:3] + uninterrupted[2:]
    first, second = (
        read_folder(tmp_path / name, engine.base.modules, engine.base.fingerprint)[1] for name in ("whole", "broken")
    )
    for name, pair in first.items():
        assert torch.equal(pair.a, second[name].a)
        assert torch.equal(pair.b, second[name].b)


def test_memory_for_some_of_the_answers_at_a_time_suffices(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: Sampled
) -> None:
    """The pages of all answers do not fit: they are sampled in halves, and the answers are the same."""
    data = taught(5)
    engine.train(on_policy("enough", data, output=tmp_path / "enough"))
    together = sampled[:]
    sampled.clear()
    make = student.KVPool

    def short(shape: Any, pages: int, *rest: Any) -> Any:
        if pages > 2:  # those of one answer
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(shape, pages, *rest)

    monkeypatch.setattr(student, "KVPool", short)
    events = engine.train(on_policy("short", data, output=tmp_path / "short"))
    assert sampled == together
    assert len(losses(events)) == SPEC.max_steps


@pytest.mark.parametrize(
    ("labels", "prompt"),
    [("000", 3), ("0011", 2), ("00110", 2), ("01100111", 5), ("11", 1)],
)
def test_a_prompt_ends_where_the_last_answer_begins(labels: str, prompt: int) -> None:
    row = TrainRow(tuple(range(len(labels))), tuple(mark == "1" for mark in labels))
    assert prompt_of(row) == row.input_ids[:prompt]


def test_random_numbers_of_answers_are_of_the_step_and_the_row() -> None:
    schedule = Schedule(SPEC, 4)
    numbers = {(step, row): schedule.answer_draws(step, row).random() for step in range(3) for row in range(3)}
    assert len(set(numbers.values())) == 9
    assert schedule.answer_draws(1, 2).random() == numbers[1, 2]
