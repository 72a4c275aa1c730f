"""Distillation: the loss and the weights of a plain loop over two models, one of them with the context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loramux_server.core.jobs import TrainEvent, TrainRow, TrainSpec
from loramux_server.data.rows_file import assign_stacks
from loramux_server.services.evaluation.gate import Gate, failed_because
from loramux_server.training import evaluation, job_scheduler, setup
from loramux_server.training.backprop import micro_batch
from loramux_server.training.objectives import teacher
from tests.engine import Engine, prompts, stack_of, version_of
from tests.peft_loop import PeftLoop, initial_adapter
from tests.peft_read import read_folder
from tests.rows import rows_file, train_command

SPEC = TrainSpec(rank=4, alpha=8, method="distill", learning_rate=3e-3, max_steps=12, epochs=99, batch_size=3, seed=3)


def taught(count: int, seed: int = 0) -> tuple[TrainRow, ...]:
    """Rows of a prompt and an answer, of which the teacher reads a context before."""
    texts = prompts(3 * count, lengths=(4, 16), seed=seed)
    made = []
    for context, prompt, answer in zip(texts[::3], texts[1::3], texts[2::3], strict=True):
        row, read = (
            TrainRow(tuple(before + answer), (False,) * len(before) + (True,) * len(answer))
            for before in (prompt, context + prompt)
        )
        made.append(replace(row, teacher=read))
    return tuple(made)


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
    made = Engine(tiny_base("llama"), tmp_path_factory.mktemp("distill"))
    yield made
    made.close()


def losses(events: list[TrainEvent]) -> list[float]:
    return [e.metrics["loss"] for e in events if e.type == "step"]


def test_loss_weights_and_held_out_loss_equal_two_models(  # type: ignore[no-untyped-def]
    engine: Engine, tiny_base, make_adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over frozen stacks and the bare base, in chunks smaller than an answer, and on rows held out."""
    monkeypatch.setattr(micro_batch, "chunk_rows", lambda *_: 5)
    base = tiny_base("llama")
    folders = [make_adapter(tmp_path / f"under{i}", base, rank=3, seed=i, scale=0.2) for i in range(2)]
    under = [[(folders[0], 1.3)], [(folders[1], 0.5)], []]
    stacks = tuple(stack_of(*((version_of(f, 3), w) for f, w in stack)) for stack in under)
    data, held_out = taught(7), taught(4, seed=1)
    output = tmp_path / "out"
    events = engine.train(train_command("equal", SPEC, data, held_out, stacks=stacks, output=str(output)))

    loop = PeftLoop(base, SPEC, initial_adapter(engine.base, SPEC), under)
    expected = loop.run(data, assign_stacks([row.stack for row in data], 3))
    assert losses(events) == pytest.approx(expected, abs=1e-4)
    assert expected[-1] < 0.8 * expected[0]  # it learned something
    written = read_folder(output, engine.base.modules, engine.base.fingerprint)[1]
    assert written.keys() == loop.modules.keys()
    for name, pair in written.items():
        for got, wanted in zip((pair.a, pair.b), loop.modules[name], strict=True):
            assert torch.allclose(got, wanted, atol=1e-4), (name, (got - wanted).abs().max())

    measured = events[-1].metrics
    tokens = sum(sum(row.labels[1:]) for row in held_out)
    turns = assign_stacks([row.stack for row in held_out], 3)
    with torch.no_grad():
        for name, with_adapter in (("eval", True), ("base", False)):
            total = sum(
                float(loop.divergence(row, turn, trained=with_adapter))
                for row, turn in zip(held_out, turns, strict=True)
            )
            assert measured[f"{name}_loss"] == pytest.approx(total / tokens, abs=1e-4)
    assert 0 <= measured["eval_teacher_agreement"] <= 1
    assert "eval_token_accuracy" not in measured


def test_a_student_with_the_context_is_the_teacher(engine: Engine, tmp_path: Path) -> None:
    """Where both read the same the divergence is 0 at the start, and there is nothing to improve."""
    same = tuple(replace(row, teacher=replace(row, teacher=None)) for row in taught(4))
    still = replace(SPEC, max_steps=1, learning_rate=1e-30)
    events = engine.train(train_command("same", still, same, same, output=str(tmp_path / "same")))
    assert losses(events) == pytest.approx([0.0], abs=1e-5)
    measured = events[-1].metrics
    assert measured["eval_teacher_agreement"] == 1
    assert failed_because(Gate("improves"), measured)


def test_beside_answers_to_learn_and_taken_up_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distillation and plain rows in the same passes, and a resume from a checkpoint: all as alone."""
    plain = TrainSpec(rank=4, alpha=8, learning_rate=3e-3, max_steps=8, epochs=99, batch_size=4, seed=1)
    distill = train_command("taught", replace(SPEC, max_steps=8, dropout=0.1), taught(6), output=str(tmp_path / "t"))
    sft = train_command("plain", plain, tuple(replace(r, teacher=None) for r in taught(6)), output=str(tmp_path / "p"))
    alone = {
        job.job_id: engine.train(replace(job, job_id=f"{job.job_id}-alone", output=f"{job.output}-alone"))
        for job in (distill, sft)
    }
    passes, accumulate = [], job_scheduler.accumulate_gradients

    def watched(base, selection):  # type: ignore[no-untyped-def]
        passes.append(len(selection))
        yield from accumulate(base, selection)

    monkeypatch.setattr(job_scheduler, "accumulate_gradients", watched)
    (tmp_path / "checkpoints").mkdir()
    distill = replace(distill, checkpoint_dir=str(tmp_path / "checkpoints"))
    engine.submit(distill, sft)
    while sum(o.payload is not None and o.payload.type == "step" for o in engine.outputs["taught"]) < 3:  # type: ignore[union-attr]
        engine.loop.turn()
    engine.jobs.remove("taught")
    engine.run(distill)
    engine.finish("plain")
    assert 2 in passes
    for job in (distill, sft):
        events = [o.payload for o in engine.outputs[job.job_id] if isinstance(o.payload, TrainEvent)]
        assert losses(events) == pytest.approx(losses(alone[job.job_id]), rel=1e-4)


def test_a_resumed_job_has_the_same_bytes(engine: Engine, tmp_path: Path) -> None:
    """Stopped after some steps and resumed: the adapter is that of an uninterrupted run to the last bit."""
    data, held_out = taught(5), taught(2, seed=4)
    spec = replace(SPEC, max_steps=6, eval_steps=2, early_stopping_patience=5)
    whole = train_command("whole", spec, data, held_out, output=str(tmp_path / "whole"))
    engine.train(whole)
    (tmp_path / "checkpoints").mkdir()
    broken = replace(
        whole, job_id="broken", output=str(tmp_path / "broken"), checkpoint_dir=str(tmp_path / "checkpoints")
    )
    engine.submit(broken)
    while sum(o.payload is not None and o.payload.type == "step" for o in engine.outputs["broken"]) < 3:  # type: ignore[union-attr]
        engine.loop.turn()
    engine.jobs.remove("broken")
    engine.run(broken)
    uninterrupted, resumed = (
        read_folder(tmp_path / name, engine.base.modules, engine.base.fingerprint)[1] for name in ("whole", "broken")
    )
    for name, pair in uninterrupted.items():
        assert torch.equal(pair.a, resumed[name].a)
        assert torch.equal(pair.b, resumed[name].b)


@pytest.mark.slow
def test_the_teacher_reads_each_row_once_while_memory_allows(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several epochs and evaluations; without memory for its states it reads again, and the losses are the same."""
    read: list[TrainRow] = []
    final_states = teacher.final_states

    def watched(base, job):  # type: ignore[no-untyped-def]
        read.extend(job.rows)
        return final_states(base, job)

    monkeypatch.setattr(teacher, "final_states", watched)
    monkeypatch.setattr(evaluation, "TAUGHT_TOGETHER", 2)
    data, held_out = taught(6), taught(3, seed=1)
    spec = replace(SPEC, max_steps=6, eval_steps=3)
    first = engine.train(train_command("once", spec, data, held_out, output=str(tmp_path / "once")))
    assert sorted(read, key=hash) == sorted((row.teacher for row in data + held_out), key=hash)  # type: ignore[arg-type]
    read.clear()
    monkeypatch.setattr(setup, "CACHE_SHARE", 1 << 62)
    again = engine.train(train_command("often", spec, data, held_out, output=str(tmp_path / "often")))
    assert len(read) > len(data + held_out)
    assert losses(again) == losses(first)
    assert again[-1].metrics["eval_loss"] == first[-1].metrics["eval_loss"]


@pytest.mark.slow
def test_another_context_is_another_run(engine: Engine, tmp_path: Path) -> None:
    """A checkpoint is not taken up where the teacher reads something else, though the rows are the same."""
    (tmp_path / "checkpoints").mkdir()
    data = taught(4)
    command = train_command("first", replace(SPEC, max_steps=2), data, output=str(tmp_path / "first"))
    command = replace(command, checkpoint_dir=str(tmp_path / "checkpoints"))
    engine.train(command)
    others = tuple(
        replace(row, teacher=TrainRow((5, *row.teacher.input_ids), (False, *row.teacher.labels)))  # type: ignore[union-attr]
        for row in data
    )
    again = engine.train(replace(command, job_id="second", rows=rows_file(others), output=str(tmp_path / "second")))
    assert again[0].step == 0


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda row: replace(row, teacher=None), "no text for a teacher"),
        (lambda row: replace(row, teacher=TrainRow((1, 2, 3), (False, True, True))), "other loss tokens"),
        (
            lambda row: replace(row, teacher=replace(row.teacher, labels=(False, *row.teacher.labels[1:-1], False))),
            "other",
        ),
    ],
)
def test_rows_that_no_teacher_can_teach_are_refused(engine: Engine, tmp_path: Path, harm, words: str) -> None:  # type: ignore[no-untyped-def]
    data = tuple(map(harm, taught(3)))
    command = train_command(f"refused-{words}", SPEC, data, output=str(tmp_path / "refused"))
    engine.run(command)
    assert words in str(engine.failure(command.job_id))
