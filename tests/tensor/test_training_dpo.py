"""Learning from preferences: the loss of a plain PEFT loop, rewards in the events, pairs held out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loramux_server.core.jobs import TrainEvent, TrainRow, TrainSpec
from loramux_server.data.rows_file import assign_stacks
from loramux_server.services.evaluation.gate import Gate, failed_because
from loramux_server.training import evaluation, job_scheduler
from tests.engine import Engine, prompts, stack_of, version_of
from tests.examples import few
from tests.peft_loop import PeftLoop, initial_adapter
from tests.peft_read import read_folder
from tests.rows import rows_file, train_command

SPEC = TrainSpec(
    rank=4, alpha=8, method="dpo", beta=0.2, learning_rate=3e-3, max_steps=30, epochs=99, batch_size=3, seed=3
)


def pairs(count: int, seed: int = 0) -> tuple[TrainRow, ...]:
    """Rows with a common prompt and two answers of other lengths."""
    texts = prompts(3 * count, lengths=(4, 16), seed=seed)
    made = []
    for prompt, chosen, rejected in zip(texts[::3], texts[1::3], texts[2::3], strict=True):
        good, bad = (
            TrainRow(tuple(prompt + answer), (False,) * len(prompt) + (True,) * len(answer))
            for answer in (chosen, rejected)
        )
        made.append(replace(good, rejected=bad))
    return tuple(made)


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
    made = Engine(tiny_base("llama"), tmp_path_factory.mktemp("dpo"))
    yield made
    made.close()


def steps(events: list[TrainEvent]) -> list[TrainEvent]:
    return [e for e in events if e.type == "step"]


@pytest.mark.parametrize("max_steps", few([6, 30]))
def test_losses_and_rewards_equal_a_peft_loop(  # type: ignore[no-untyped-def]
    engine: Engine, tiny_base, make_adapter, tmp_path: Path, max_steps: int
) -> None:
    """Over a frozen stack, another one and the bare base, which are each pair's reference; and on pairs held out."""
    base = tiny_base("llama")
    data, held_out = pairs(7), pairs(4, seed=1)
    folders = [make_adapter(tmp_path / f"under{i}", base, rank=3, seed=i, scale=0.2) for i in range(2)]
    under = [[(folders[0], 1.3)], [(folders[1], 0.5)], []]
    stacks = tuple(stack_of(*((version_of(f, 3), w) for f, w in stack)) for stack in under)
    output = str(tmp_path / "out")
    spec = replace(SPEC, max_steps=max_steps)
    events = engine.train(train_command(f"dpo{max_steps}", spec, data, held_out, stacks=stacks, output=output))
    loop = PeftLoop(base, spec, initial_adapter(engine.base, spec), under)
    losses = loop.run(data, assign_stacks([row.stack for row in data], 3))
    assert [e.metrics["loss"] for e in steps(events)] == pytest.approx(losses, rel=1e-3)
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    last = steps(events)[-1].metrics
    if max_steps == 30:  # enough to have learned the pairs
        assert losses[-1] < 0.5 * losses[0]
        assert last["rewards_accuracy"] == 1
    assert last["rewards_margin"] == pytest.approx(last["rewards_chosen"] - last["rewards_rejected"], rel=1e-4)
    rewards = []
    with torch.no_grad():
        for row, turn in zip(held_out, assign_stacks([row.stack for row in held_out], 3), strict=True):
            assert row.rejected is not None
            rewards.append(
                [
                    SPEC.beta * float(loop.logprobs(t, turn).sum() - loop.logprobs(t, turn, trained=False).sum())
                    for t in (row, row.rejected)
                ]
            )
    measured = events[-1].metrics
    margins = [chosen - rejected for chosen, rejected in rewards]
    assert measured["eval_rewards_margin"] == pytest.approx(sum(margins) / 4, rel=1e-2)
    assert measured["eval_rewards_accuracy"] == sum(margin > 0 for margin in margins) / 4
    assert measured["eval_loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 4, rel=1e-3)
    assert measured["base_loss"] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.slow
def test_field_08_the_reference_is_the_version_that_a_job_goes_on_from(  # type: ignore[no-untyped-def]
    engine: Engine, tiny_base, make_adapter, tmp_path: Path
) -> None:
    """Over a frozen stack and the bare base: TRL's losses with PEFT's copy of the adapter as the reference."""
    base = tiny_base("llama")
    first = train_command("first", replace(SPEC, max_steps=12), pairs(6, seed=5), output=str(tmp_path / "first"))
    engine.train(first)
    init = version_of(tmp_path / "first", SPEC.rank)
    under = [[(make_adapter(tmp_path / "under", base, rank=3, seed=1, scale=0.2), 1.3)], []]
    stacks = tuple(stack_of(*((version_of(f, 3), w) for f, w in stack)) for stack in under)
    data, held_out = pairs(6), pairs(4, seed=1)
    spec = replace(SPEC, max_steps=10)
    command = train_command("on", spec, data, held_out, stacks=stacks, output=str(tmp_path / "on"), init=init)
    events = engine.train(command)

    started = initial_adapter(engine.base, spec)
    started.load(read_folder(tmp_path / "first", engine.base.modules, engine.base.fingerprint)[1])
    loop = PeftLoop(base, spec, started, under)
    loop.keep_initial()
    losses = loop.run(data, assign_stacks([row.stack for row in data], 2))
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert [e.metrics["loss"] for e in steps(events)] == pytest.approx(losses, rel=1e-3)
    begin = steps(events)[0].metrics
    assert begin["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert begin["rewards_margin"] == pytest.approx(0, abs=1e-6)

    # Without the training there is neither gain nor loss; the bare base is another thing than the start.
    measured = events[-1].metrics
    assert measured["init_loss"] == pytest.approx(math.log(2), rel=1e-6)
    margins = []
    with torch.no_grad():
        for row, turn in zip(held_out, assign_stacks([row.stack for row in held_out], 2), strict=True):
            assert row.rejected is not None
            loop.reference = []
            bare = [loop.logprobs(t, turn, trained=False).sum() for t in (row, row.rejected)]
            loop.reference = ["reference"]
            start = [loop.logprobs(t, turn, trained=False).sum() for t in (row, row.rejected)]
            margins.append(SPEC.beta * float((bare[0] - start[0]) - (bare[1] - start[1])))
    assert measured["base_rewards_margin"] == pytest.approx(sum(margins) / 4, rel=1e-2)
    assert measured["base_loss"] != pytest.approx(math.log(2), rel=1e-3)


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.slow
def test_field_08_a_version_that_did_not_change_is_no_better(engine: Engine, tmp_path: Path, method: str) -> None:
    """Held-out figures of what the job started from and of the current version are its own to the last bit."""
    data = pairs(4) if method == "dpo" else tuple(replace(row, rejected=None) for row in pairs(4))
    spec = replace(SPEC, method=method, max_steps=6)
    engine.train(train_command(f"before-{method}", spec, data, output=str(tmp_path / "before")))
    init = version_of(tmp_path / "before", SPEC.rank)
    still = replace(spec, learning_rate=1e-30, max_steps=1)
    command = train_command(f"still-{method}", still, data, data, output=str(tmp_path / "still"))
    measured = engine.train(replace(command, init=init, current=init))[-1].metrics
    assert measured["eval_loss"] == measured["init_loss"] == measured["current_loss"]
    assert failed_because(Gate("improves"), measured)


@pytest.mark.slow
def test_a_reference_is_computed_once(engine: Engine, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Five epochs and two evaluations: each pair goes through the model without the adapter once."""
    seen: list[TrainRow] = []
    row_logprobs = evaluation.row_logprobs

    def watched(base, jobs):  # type: ignore[no-untyped-def]
        seen.extend(row for job in jobs if job.adapter is None for row in job.rows)
        return row_logprobs(base, jobs)

    monkeypatch.setattr(evaluation, "row_logprobs", watched)
    data, held_out = pairs(6), pairs(2, seed=1)
    spec = replace(SPEC, max_steps=10, eval_steps=5)
    engine.train(train_command("once", spec, data, held_out, output=str(tmp_path / "once")))
    texts = [text for row in data + held_out for text in (row, row.rejected)]
    # The last evaluation measures the base beside the adapter.
    assert sorted(seen, key=hash) == sorted([*texts, *held_out, *(r.rejected for r in held_out)], key=hash)


@pytest.mark.slow
def test_beside_a_job_of_the_other_kind(engine: Engine, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Preferences and plain rows in the same passes, a job that is taken up again: all as alone."""
    plain = TrainSpec(rank=4, alpha=8, learning_rate=3e-3, max_steps=8, epochs=99, batch_size=4, seed=1)
    dpo = train_command("pairs", replace(SPEC, max_steps=8, dropout=0.1), pairs(6), output=str(tmp_path / "pairs"))
    sft = train_command(
        "rows", plain, tuple(replace(r, rejected=None) for r in pairs(6)), output=str(tmp_path / "rows")
    )
    alone = {
        job.job_id: engine.train(replace(job, job_id=f"{job.job_id}-alone", output=f"{job.output}-alone"))
        for job in (dpo, sft)
    }
    passes, accumulate = [], job_scheduler.accumulate_gradients

    def watched(base, selection):  # type: ignore[no-untyped-def]
        passes.append(len(selection))
        yield from accumulate(base, selection)

    monkeypatch.setattr(job_scheduler, "accumulate_gradients", watched)
    (tmp_path / "checkpoints").mkdir()
    dpo = replace(dpo, checkpoint_dir=str(tmp_path / "checkpoints"))
    engine.submit(dpo, sft)
    while sum(o.payload is not None and o.payload.type == "step" for o in engine.outputs["pairs"]) < 3:  # type: ignore[union-attr]
        engine.loop.turn()
    engine.jobs.remove("pairs")
    engine.run(dpo)
    engine.finish("rows")
    assert 2 in passes
    for job in (dpo, sft):
        events = [o.payload for o in engine.outputs[job.job_id] if isinstance(o.payload, TrainEvent)]
        got, expected = ([e.metrics["loss"] for e in steps(found)] for found in (events, alone[job.job_id]))
        assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_another_rejected_answer_is_another_run(engine: Engine, tmp_path: Path) -> None:
    """A checkpoint is not taken up for other pairs, though the preferred answers are the same."""
    (tmp_path / "checkpoints").mkdir()
    data = pairs(4)
    command = train_command("first", replace(SPEC, max_steps=2), data, output=str(tmp_path / "first"))
    command = replace(command, checkpoint_dir=str(tmp_path / "checkpoints"))
    engine.train(command)
    others = tuple(replace(row, rejected=other.rejected) for row, other in zip(data, reversed(data), strict=True))
    again = engine.train(replace(command, job_id="second", rows=rows_file(others), output=str(tmp_path / "second")))
    assert again[0].step == 0
