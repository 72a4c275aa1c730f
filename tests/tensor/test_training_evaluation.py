"""Evaluation while training, stopping early, starting from a version, memory that runs out, gradients that vanish."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loramux_server.core.jobs import TrainEvent, TrainSpec
from loramux_server.lora.routed_linear import LinearGroup
from loramux_server.training import evaluation, job_scheduler
from loramux_server.training.gradient_check import gradient_fault
from tests.engine import Engine, prompts, rows, version_of
from tests.rows import train_command
from tests.tensor.scarce import on_device

SPEC = TrainSpec(rank=4, alpha=8, learning_rate=5e-3, epochs=3, batch_size=4, seed=3, layers=(1, 2))


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
    made = Engine(tiny_base("llama"), tmp_path_factory.mktemp("evaluation"))
    yield made
    made.close()


def of(events: list[TrainEvent], kind: str) -> list[TrainEvent]:
    return [e for e in events if e.type == kind]


def test_the_best_evaluation_is_what_is_kept(engine: Engine, tmp_path: Path) -> None:
    """Held-out rows of other random text get worse as training goes on: it stops early, and the best is written."""
    spec = replace(SPEC, learning_rate=5e-2, epochs=20, eval_steps=2, early_stopping_patience=2)
    data, held_out = rows(8), rows(4, seed=6)
    command = train_command("early", spec, data, held_out, output=str(tmp_path / "early"))
    events = engine.train(command)
    evaluations = of(events, "evaluation")
    during, final = evaluations[:-1], evaluations[-1]
    losses = [e.metrics["eval_loss"] for e in during]
    assert [e.step for e in during] == [2 * (i + 1) for i in range(len(during))]
    best = losses.index(min(losses))
    assert len(during) == best + 1 + 2
    assert of(events, "step")[-1].step == during[-1].step < 40
    assert final.metrics["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert "base_loss" in final.metrics
    assert any(f"step {during[best].step}" in e.message for e in of(events, "message"))
    # What was written is that state, not the last one.
    again = replace(command, job_id="again", output=str(tmp_path / "again"), current=version_of(tmp_path / "early", 4))
    measured = engine.train(replace(again, spec=replace(SPEC, max_steps=1)))[-1].metrics
    assert measured["current_loss"] == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.slow
def test_the_best_survives_an_interruption(engine: Engine, tmp_path: Path) -> None:
    spec = replace(SPEC, learning_rate=5e-2, epochs=20, eval_steps=2, early_stopping_patience=2)
    command = train_command("cut", spec, rows(8), rows(4, seed=6), output=str(tmp_path / "out"))
    whole = engine.train(replace(command, job_id="uncut", output=str(tmp_path / "whole")))
    (tmp_path / "checkpoints").mkdir()
    command = replace(command, checkpoint_dir=str(tmp_path / "checkpoints"), checkpoint_every=1)
    engine.submit(command)
    while len([o for o in engine.outputs["cut"] if o.payload and o.payload.type == "evaluation"]) < 2:  # type: ignore[union-attr]
        engine.loop.turn()
    engine.jobs.remove("cut")
    engine.outputs["cut"].clear()
    rest = engine.train(command)
    assert of(rest, "step")[-1].step == of(whole, "step")[-1].step
    assert rest[-1].metrics == pytest.approx(whole[-1].metrics, rel=1e-5)


@pytest.mark.slow
def test_patience_alone_evaluates_once_an_epoch(engine: Engine, tmp_path: Path) -> None:
    spec = replace(SPEC, early_stopping_patience=5)
    events = engine.train(train_command("epochs", spec, rows(8), rows(2, seed=6), output=str(tmp_path / "out")))
    assert [e.step for e in of(events, "evaluation")] == [2, 4, 6, 6]


@pytest.mark.slow
def test_a_version_to_start_from(engine: Engine, tmp_path: Path) -> None:
    """The first loss is the last version's, and what does not fit is refused by name."""
    data = rows(4)
    spec = replace(SPEC, epochs=12, warmup_ratio=0.0)
    first = of(engine.train(train_command("first", spec, data, output=str(tmp_path / "first"))), "step")
    version = version_of(tmp_path / "first", 4)
    command = train_command("second", spec, data, output=str(tmp_path / "second"), init=version)
    second = of(engine.train(command), "step")
    assert second[0].metrics["loss"] <= first[-1].metrics["loss"] < 0.9 * first[0].metrics["loss"]
    for name, bad in (("rank", {"rank": 2}), ("alpha", {"alpha": 4.0}), ("modules", {"layers": (0, 1)})):
        id = f"bad-{name}"
        engine.run(replace(command, job_id=id, spec=replace(spec, **bad), output=str(tmp_path / id)))
        failure = engine.failure(id)
        assert failure is not None
        assert failure.code == "invalid_argument"
        assert "init_from" in failure.message
        assert not (tmp_path / id).exists()


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 TB")],
    ids=["device", "host"],
)
@pytest.mark.slow
def test_out_of_memory_is_tried_again_in_smaller_parts(engine: Engine, tmp_path: Path, monkeypatch, error) -> None:  # type: ignore[no-untyped-def]
    data = rows(8)
    name = type(error).__name__
    quiet = of(engine.train(train_command(f"quiet{name}", SPEC, data, output=str(tmp_path / "quiet"))), "step")
    accumulate, sizes = job_scheduler.accumulate_gradients, []

    def tight(base, selection):  # type: ignore[no-untyped-def]
        sizes.append(sum(sum(batch.job_rows(indices).lengths) for batch, indices in selection))
        if sizes[-1] > 50:
            raise error
        yield from accumulate(base, selection)

    monkeypatch.setattr(job_scheduler, "accumulate_gradients", tight)
    events = engine.train(train_command(f"tight{name}", SPEC, data, output=str(tmp_path / "tight")))
    assert [e.metrics["loss"] for e in of(events, "step")] == pytest.approx(
        [e.metrics["loss"] for e in quiet], rel=1e-5
    )
    assert sum("out of memory" in e.message for e in of(events, "message")) == 1
    assert sum(size > 50 for size in sizes) == 1


def test_an_evaluation_without_memory_is_done_in_smaller_parts(engine: Engine, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    spec = replace(SPEC, epochs=1)
    command = train_command("calm", spec, rows(4), rows(6, seed=6), output=str(tmp_path / "calm"))
    calm = engine.train(command)[-1]
    measured, sizes = evaluation.row_logprobs, []

    def tight(base, jobs):  # type: ignore[no-untyped-def]
        sizes.append(sum(sum(job.lengths) for job in jobs))
        found = yield from measured(base, jobs)
        if sizes[-1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(evaluation, "row_logprobs", tight)
    scarce = engine.train(replace(command, job_id="scarce", output=str(tmp_path / "scarce")))[-1]
    assert scarce.metrics == pytest.approx(calm.metrics, rel=1e-5)
    assert max(sizes) > 40
    engine.outputs.clear()
    monkeypatch.setattr(evaluation, "row_logprobs", lambda *_: on_device())
    engine.run(replace(command, job_id="none", output=str(tmp_path / "none")))
    failure = engine.failure("none")
    assert failure is not None
    assert (failure.code, failure.reason) == ("resource_exhausted", "OUT_OF_MEMORY")


@pytest.mark.slow
def test_out_of_memory_again_fails_the_job_and_nothing_else(engine: Engine, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    prompt = prompts(1, seed=8)[0]
    alone = engine.generate(prompt, 10)

    def out(*args, **kwargs):  # type: ignore[no-untyped-def]
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(job_scheduler, "accumulate_gradients", out)
    engine.run(train_command("out", SPEC, rows(8), output=str(tmp_path / "out")))
    failure = engine.failure("out")
    assert failure is not None
    assert (failure.code, failure.reason) == ("resource_exhausted", "OUT_OF_MEMORY")
    assert not (tmp_path / "out").exists()
    assert engine.stats().memory["training"] == 0
    assert engine.generate(prompt, 10) == alone


def test_a_loss_that_is_no_number_keeps_the_state_before(engine: Engine, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "checkpoints").mkdir()
    real, calls = job_scheduler.accumulate_gradients, 0

    def broken(base, selection):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        yield from real(base, selection)
        if calls == 4:
            ((batch, _),) = selection
            batch.run.adapter.flat()[0].grad[0, 0] = float("nan")

    monkeypatch.setattr(job_scheduler, "accumulate_gradients", broken)
    command = train_command("nan", SPEC, rows(8), output=str(tmp_path / "out"))
    command = replace(command, checkpoint_dir=str(tmp_path / "checkpoints"))
    engine.run(command)
    failure = engine.failure("nan")
    assert failure is not None
    assert (failure.code, failure.reason) == ("failed_precondition", "LOSS_NOT_FINITE")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert not (tmp_path / "out").exists()


def test_gradients_that_are_lost_are_seen(engine: Engine, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A product that drops its input's gradient in one layer, past which the residual stream carries the rest."""
    assert gradient_fault(engine.base) is None
    lossy = next(g for g in engine.base.groups if g.layer == 1 and any("gate_proj" in n for n in g.names))
    real = LinearGroup.forward

    def forward(self, x):  # type: ignore[no-untyped-def]
        return real(self, x.detach() if self is lossy else x)

    monkeypatch.setattr(LinearGroup, "forward", forward)
    fault = gradient_fault(engine.base)
    assert fault is not None
    assert fault.reason == "GRADIENTS_VANISH"
    monkeypatch.setattr(LinearGroup, "forward", lambda self, x: real(self, x).detach())
    fault = gradient_fault(engine.base)
    assert fault is not None
    assert "serving works" in fault.message


def test_an_engine_without_gradients_serves_and_refuses_jobs(tiny_base, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    real = LinearGroup.forward
    monkeypatch.setattr(LinearGroup, "forward", lambda self, x: real(self, x).detach())
    engine = Engine(tiny_base("llama"), tmp_path / "state")
    engine.run(train_command("refused", SPEC, rows(4), output=str(tmp_path / "out")))
    failure = engine.failure("refused")
    assert failure is not None
    assert (failure.code, failure.reason) == ("failed_precondition", "GRADIENTS_VANISH")
    assert len(engine.generate(prompts(1)[0], 5)) == 5
    engine.close()
