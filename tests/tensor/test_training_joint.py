"""Several jobs in one pass: each has the losses and the adapter of a run of its own, whatever befalls the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loramux_server.core.jobs import TrainCommand, TrainEvent, TrainRow, TrainSpec
from loramux_server.data.rows_file import assign_stacks
from loramux_server.engine.transport.protocol import AbortCommand
from loramux_server.training import job_scheduler
from loramux_server.training.backprop import layerwise, micro_batch_size
from tests.engine import BLOBS, Engine, command, prompts, rows, stack_of, version_of
from tests.examples import few
from tests.peft_loop import initial_adapter, peft_losses
from tests.rows import JOBS, train_command

WIDE = TrainSpec(rank=4, alpha=8, learning_rate=5e-3, max_steps=30, epochs=99, batch_size=4, seed=3)
NARROW = replace(
    WIDE, rank=8, rslora=True, target_modules=("q_proj", "down_proj"), lr_scheduler="cosine", batch_size=3, seed=5
)
STACKED = replace(
    WIDE, rank=2, alpha=3.0, layers=(0, 2), lr_scheduler="constant", beta2=0.95, weight_decay=0.1, max_grad_norm=0.3
)


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
    made = Engine(tiny_base("llama"), tmp_path_factory.mktemp("joint"))
    yield made
    made.close()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The jobs in each pass, in order."""
    seen: list[tuple[str, ...]] = []
    accumulate = job_scheduler.accumulate_gradients

    def watched(base, selection):  # type: ignore[no-untyped-def]
        seen.append(tuple(sorted(batch.run.command.job_id for batch, _ in selection)))
        yield from accumulate(base, selection)

    monkeypatch.setattr(job_scheduler, "accumulate_gradients", watched)
    return seen


def events_of(engine: Engine, id: str) -> list[TrainEvent]:
    return [o.payload for o in engine.outputs[id] if isinstance(o.payload, TrainEvent)]


def losses(engine: Engine, id: str) -> list[float]:
    return [e.metrics["loss"] for e in events_of(engine, id) if e.type == "step"]


def together(engine: Engine, *jobs: TrainCommand) -> None:
    engine.run(*jobs)
    for job in jobs:
        assert engine.failure(job.job_id) is None, engine.failure(job.job_id)


@pytest.mark.parametrize("max_steps", few([8, 30]))
@pytest.mark.slow
def test_three_jobs_in_one_pass_equal_three_peft_loops(  # type: ignore[no-untyped-def]
    engine: Engine, tiny_base, make_adapter, tmp_path, passes, max_steps: int
) -> None:
    """Of other ranks, modules, layers, stacks underneath, batch sizes, schedules, optimisers, clips and seeds."""
    base = tiny_base("llama")
    folders = [make_adapter(tmp_path / f"under{i}", base, rank=3, seed=i, scale=0.2) for i in range(2)]
    under = [[(folders[0], 1.3)], [(folders[1], 0.5)], []]
    stacks = tuple(stack_of(*((version_of(f, 3), w) for f, w in stack)) for stack in under)
    data = {"wide": rows(12), "narrow": rows(9, seed=1), "stacked": rows(10, seed=2)}
    wanted = {"wide": WIDE, "narrow": NARROW, "stacked": STACKED}
    specs = {id: replace(spec, max_steps=max_steps) for id, spec in wanted.items()}
    engine.outputs.clear()  # of the same jobs with other numbers of steps
    jobs = [train_command(id, specs[id], data[id], output=str(tmp_path / id)) for id in data]
    jobs[2] = replace(jobs[2], stacks=stacks)
    together(engine, *jobs)
    # They start and end within some steps of each other.
    assert passes.count(("narrow", "stacked", "wide")) >= max_steps - 5
    for id in data:
        turns = assign_stacks([row.stack for row in data[id]], len(stacks)) if id == "stacked" else None
        expected = peft_losses(
            base, specs[id], data[id], initial_adapter(engine.base, specs[id]), under if turns else ((),), turns
        )
        assert losses(engine, id) == pytest.approx(expected, rel=1e-3)
        assert max_steps < 30 or losses(engine, id)[-1] < losses(engine, id)[0]


@pytest.mark.slow
def test_a_job_gets_the_same_alone_and_among_others(engine: Engine, tmp_path: Path, passes, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """With dropout, evaluations, other numbers of steps, and batches cut into passes anyhow."""
    specs = {
        "a": replace(WIDE, dropout=0.1, max_steps=9, eval_steps=4),
        "b": replace(NARROW, dropout=0.2, max_steps=6),
        "c": replace(STACKED, max_steps=12, eval_steps=5),
    }
    jobs = [
        train_command(id, spec, rows(10, seed=k), rows(3, seed=9), output=str(tmp_path / id))
        for k, (id, spec) in enumerate(specs.items())
    ]
    for job in jobs:
        together(engine, replace(job, job_id=f"{job.job_id}-alone", output=f"{job.output}-alone"))
    passes.clear()
    monkeypatch.setattr(micro_batch_size, "MAX_TOKENS", 150)
    together(engine, *jobs)
    assert ("a", "b", "c") in passes
    assert len(passes) > 12
    for job in jobs:
        id = job.job_id
        assert losses(engine, id) == pytest.approx(losses(engine, f"{id}-alone"), rel=1e-4)
        metrics = [events_of(engine, name)[-1].metrics for name in (id, f"{id}-alone")]
        assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
        mine, alone = (adapter(Path(folder)) for folder in (job.output, f"{job.output}-alone"))
        assert all(torch.allclose(mine[name], alone[name], rtol=1e-3, atol=1e-5) for name in alone)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.slow
def test_activations_computed_again_are_those_of_the_pass(engine: Engine, tmp_path: Path, passes, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Two jobs over stacks and with dropout, with activation checkpoints in every layer and without."""
    specs = {"p": replace(WIDE, max_steps=5, dropout=0.1), "q": replace(NARROW, max_steps=5)}
    jobs = [
        train_command(id, spec, rows(8, seed=k), output=str(tmp_path / id))
        for k, (id, spec) in enumerate(specs.items())
    ]
    together(engine, *(replace(job, job_id=f"{job.job_id}-dense", output=f"{job.output}-dense") for job in jobs))
    again = 0
    run = layerwise.LayerwisePass._run

    def counted(self, layer, hidden):  # type: ignore[no-untyped-def]
        nonlocal again
        again += torch.is_grad_enabled()
        return run(self, layer, hidden)

    monkeypatch.setattr(layerwise.LayerwisePass, "_run", counted)
    monkeypatch.setattr(engine.jobs, "_activation_memory", 0)
    together(engine, *jobs)
    assert ("p", "q") in passes
    assert again >= 3 * 5
    for id in specs:
        assert losses(engine, id) == pytest.approx(losses(engine, f"{id}-dense"), rel=1e-5)


@pytest.mark.slow
def test_jobs_that_start_at_another_layer_have_passes_of_their_own(engine: Engine, tmp_path: Path, passes) -> None:  # type: ignore[no-untyped-def]
    high = replace(WIDE, layers=(1, 2), max_steps=4)
    jobs = [
        train_command("low1", replace(WIDE, max_steps=4), rows(8), output=str(tmp_path / "low1")),
        train_command("high1", high, rows(8, seed=1), output=str(tmp_path / "high1")),
        train_command("low2", replace(NARROW, max_steps=4), rows(8, seed=2), output=str(tmp_path / "low2")),
        train_command("high2", replace(high, rank=2), rows(8, seed=3), output=str(tmp_path / "high2")),
    ]
    together(engine, *jobs)
    assert {("high1", "high2"), ("low1", "low2")} <= set(passes)
    assert all(len({id[:-1] for id in ids}) == 1 for ids in passes)
    turns = [ids[0][:-1] for ids in passes]
    assert all(turns[i : i + 3] != [turns[i]] * 3 for i in range(len(turns) - 4))


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
@pytest.mark.slow
def test_a_job_of_numbers_that_are_none_poisons_no_other(  # type: ignore[no-untyped-def]
    tiny_base, tmp_path: Path, passes, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job's values overflow at once; the other, in the same passes, goes on as if it was alone."""
    # No rate within the bounds does that as soon.
    monkeypatch.setattr("loramux_server.engine.commands.train_violations", lambda *_, **__: ())
    engine = Engine(tiny_base(arch), tmp_path / "state")
    good = train_command("good", replace(WIDE, max_steps=12), rows(8), output=str(tmp_path / "good"))
    together(engine, replace(good, job_id="alone", output=str(tmp_path / "alone")))
    passes.clear()
    wild = replace(WIDE, learning_rate=1e30, warmup_ratio=0.0)
    # First in the pass, with the longest row and the shortest.
    bad = train_command("bad", wild, rows(8, seed=1), output=str(tmp_path / "bad"))
    engine.run(bad, good)
    failure = engine.failure("bad")
    assert failure is not None
    assert failure.reason == "LOSS_NOT_FINITE"
    assert ("bad", "good") in passes[1:]
    assert engine.failure("good") is None
    assert losses(engine, "good") == pytest.approx(losses(engine, "alone"), rel=1e-5)
    engine.close()


@pytest.mark.slow
def test_jobs_come_and_go_between_passes(engine: Engine, tmp_path: Path, passes) -> None:  # type: ignore[no-untyped-def]
    """One joins late, one is paused and resumed, requests are served: all losses are those of undisturbed runs."""
    jobs = {
        id: train_command(id, replace(spec, max_steps=8), rows(8, seed=k), output=str(tmp_path / id))
        for k, (id, spec) in enumerate({"early": WIDE, "late": NARROW, "paused": STACKED}.items())
    }
    for id, job in jobs.items():
        together(engine, replace(job, job_id=f"{id}-quiet", output=f"{job.output}-quiet"))
    prompt = prompts(1, seed=8)[0]
    alone = engine.generate(prompt, 20)
    passes.clear()
    (tmp_path / "checkpoints").mkdir()
    jobs["paused"] = replace(jobs["paused"], checkpoint_dir=str(tmp_path / "checkpoints"))
    engine.submit(jobs["early"], jobs["paused"])
    while len(losses(engine, "paused")) < 3:
        engine.loop.turn()
    told = losses(engine, "paused")
    engine.submit(AbortCommand("paused"), jobs["late"], command("beside", prompt, 20))
    engine.loop.turn()
    assert sorted(engine.stats().training_jobs) == ["early", "late"]
    while len(losses(engine, "late")) < 2:
        engine.loop.turn()
    engine.outputs["paused"].clear()
    engine.run(jobs["paused"])
    engine.finish("early", "late", "beside")
    assert engine.tokens("beside") == alone
    assert {("early", "paused"), ("early", "late"), ("late", "paused")} <= set(passes)
    for id in ("early", "late"):
        assert losses(engine, id) == pytest.approx(losses(engine, f"{id}-quiet"), rel=1e-4)
    assert told + losses(engine, "paused") == pytest.approx(losses(engine, "paused-quiet"), rel=1e-4)


@pytest.mark.slow
def test_a_pass_is_put_down_after_any_layer(engine: Engine, tmp_path: Path, passes) -> None:  # type: ignore[no-untyped-def]
    """Rows of 200 tokens, a unit at a time, requests in between: the losses and the answers are those of quiet runs."""
    text = prompts(4, lengths=(200, 201), seed=4)
    data = tuple(TrainRow(tuple(t), (False,) * 8 + (True,) * (len(t) - 8)) for t in text)
    spec = replace(WIDE, max_steps=2, batch_size=4)
    quiet = train_command("whole", spec, data, output=str(tmp_path / "whole"))
    together(engine, quiet)
    prompt = prompts(1, seed=8)[0]
    alone = engine.generate(prompt, 6)
    passes.clear()
    share = engine.loop._training
    engine.submit(replace(quiet, job_id="cut", output=str(tmp_path / "cut")))
    engine.loop._take_commands()
    units = 0
    while share.busy:
        for job, error in share._background.advance(0.0):
            share._done(job, error)
        units += 1
        if units % 7 == 0 and share.busy:
            busy, share._background = share._background, job_scheduler.JobScheduler(engine.base, JOBS, BLOBS.reader)
            assert engine.generate(prompt, 6) == alone
            share._background = busy
    engine.loop._outbox.flush()
    layers_ = len(engine.base.layers)
    assert units >= len(passes) * 2 * layers_
    assert losses(engine, "cut") == pytest.approx(losses(engine, "whole"), rel=1e-5)


def test_one_that_leaves_in_the_middle_of_a_pass_leaves_the_others_as_they_were(  # type: ignore[no-untyped-def]
    engine: Engine, tmp_path: Path, passes, monkeypatch
) -> None:
    """Wherever that is: half of the layers' gradients may be in."""
    # On a busy machine micro-batches shrink until the rows of two jobs never fit into one.
    monkeypatch.setattr(micro_batch_size, "WORK_ITEM_SECONDS", 1e9)
    stays = train_command("stays", replace(WIDE, max_steps=4), rows(8), output=str(tmp_path / "stays"))
    together(engine, stays)
    work = engine.jobs
    for units in range(1, 12, 2):
        ended: list[tuple[str, object]] = []
        seen: list[float] = []

        def note(event: TrainEvent, seen: list[float] = seen) -> None:
            if event.type == "step":
                seen.append(event.metrics["loss"])

        work.add(replace(stays, job_id="again", output=str(tmp_path / f"again{units}")), note)
        endless = replace(stays.spec, max_steps=99)
        work.add(replace(stays, job_id="leaves", spec=endless, output=str(tmp_path / "leaves")), lambda event: None)
        while len(seen) < 2:
            ended += work.advance(0.0)
        passes.clear()
        while not passes or len(passes[-1]) < 2:  # a pass that both are in has begun
            ended += work.advance(0.0)
        for _ in range(units):
            ended += work.advance(0.0)
        work.remove("leaves")
        while work.jobs:
            ended += work.advance(0.0)
        assert ended == [("again", None)]
        assert seen == pytest.approx(losses(engine, "stays"), rel=1e-5)


@pytest.mark.slow
def test_memory_that_runs_out_ends_the_job_that_needs_it(engine: Engine, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """In a shared pass nobody knows whose it was: each job tries once more alone, in smaller parts."""
    good = train_command("lean", replace(WIDE, max_steps=5), rows(8), output=str(tmp_path / "lean"))
    together(engine, replace(good, job_id="lean-quiet", output=str(tmp_path / "quiet")))
    accumulate = job_scheduler.accumulate_gradients
    failed: list[tuple[int, int]] = []  # jobs and tokens of passes that failed

    def tight(base, selection):  # type: ignore[no-untyped-def]
        yield from accumulate(base, selection)  # gradients are in by then
        if any(batch.run.command.job_id == "greedy" and batch.run.step >= 2 for batch, _ in selection):
            failed.append((len(selection), sum(sum(batch.job_rows(indices).lengths) for batch, indices in selection)))
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(job_scheduler, "accumulate_gradients", tight)
    greedy = train_command("greedy", replace(NARROW, max_steps=5), rows(8, seed=1), output=str(tmp_path / "greedy"))
    engine.run(good, greedy)
    failure = engine.failure("greedy")
    assert failure is not None
    assert (failure.code, failure.reason) == ("resource_exhausted", "OUT_OF_MEMORY")
    assert len(losses(engine, "greedy")) == 2
    assert engine.failure("lean") is None
    assert losses(engine, "lean") == pytest.approx(losses(engine, "lean-quiet"), rel=1e-4)
    (many, tokens), (one, fewer) = failed
    assert (many, one) == (2, 1)
    assert fewer <= tokens // 2


def test_a_defect_in_one_job_spares_the_others(engine: Engine, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    accumulate = job_scheduler.accumulate_gradients

    def defective(base, selection):  # type: ignore[no-untyped-def]
        if any(batch.run.command.job_id == "broken" for batch, _ in selection):
            raise RuntimeError("shapes")
        yield from accumulate(base, selection)

    monkeypatch.setattr(job_scheduler, "accumulate_gradients", defective)
    jobs = [
        train_command(id, replace(WIDE, max_steps=3), rows(8, seed=k), output=str(tmp_path / id))
        for k, id in enumerate(("fine", "broken"))
    ]
    engine.run(*jobs)
    failure = engine.failure("broken")
    assert failure is not None
    assert failure.code == "internal"
    assert engine.failure("fine") is None
    assert len(losses(engine, "fine")) == 3
    assert engine.stats().memory["training"] == 0


def test_a_lost_device_is_no_jobs_error(engine: Engine, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The engine ends with it, so that it is started anew."""
    error = torch.AcceleratorError("CUDA error: an illegal memory access", 700)
    monkeypatch.setattr(job_scheduler, "accumulate_gradients", raising(error))
    engine.submit(train_command("device", WIDE, rows(4), output=str(tmp_path / "device")))
    with pytest.raises(torch.AcceleratorError):
        engine.finish("device")
    engine.jobs.remove("device")


def raising(error: Exception):  # type: ignore[no-untyped-def]
    def call(*_: object) -> None:
        raise error

    return call
