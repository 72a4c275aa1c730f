"""Requests that find no memory get what training holds, and training loses time but no step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loramux_server.core.jobs import TrainEvent, TrainSpec
from loramux_server.engine.transport.protocol import AbortCommand
from loramux_server.training import job_scheduler
from tests.engine import Engine, prompts, rows
from tests.rows import train_command
from tests.tensor.scarce import on_device

SPEC = TrainSpec(rank=4, alpha=8, learning_rate=5e-3, max_steps=4, epochs=99, batch_size=4, seed=3, dropout=0.1)
PROMPT = prompts(1, seed=8)[0]


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
    made = Engine(tiny_base("llama"), tmp_path_factory.mktemp("gives-way"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def alone(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[int], list[float]]:
    """The request's tokens and the job's losses without each other."""
    made = train_command("alone", SPEC, rows(8), rows(2, seed=9), output=str(tmp_path_factory.mktemp("alone") / "out"))
    engine.run(made)
    return engine.generate(PROMPT, 10), losses(engine, "alone")


@pytest.fixture(autouse=True)
def one_work_item_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_scheduler, "IDLE_SECONDS", 0.0)


def losses(engine: Engine, id: str) -> list[float]:
    """Of all steps that were reported, each once and in order."""
    steps = [o.payload for o in engine.outputs[id] if isinstance(o.payload, TrainEvent) and o.payload.type == "step"]
    assert [e.step for e in steps] == list(range(1, len(steps) + 1))
    return [e.metrics["loss"] for e in steps]


def under_way(engine: Engine, id: str, tmp_path: Path, *, checkpoints: bool = True) -> None:
    """Start a job and stop in the middle of the micro-batch after its second step."""
    folder = tmp_path / f"{id}-checkpoints"
    folder.mkdir()
    made = train_command(id, SPEC, rows(8), rows(2, seed=9), output=str(tmp_path / id))
    engine.submit(replace(made, checkpoint_dir=str(folder)) if checkpoints else made)
    while len(losses(engine, id)) < 2 or not holds_activations(engine):
        engine.loop.turn()


def holds_activations(engine: Engine) -> bool:
    jobs = engine.jobs
    return jobs._task is not None and all(job.batch is not None for job in jobs._participants)


def short_while(engine: Engine, monkeypatch: pytest.MonkeyPatch, condition: Callable[[int], bool]) -> None:
    """Steps, of so many tokens, find no memory while ``condition`` holds."""
    run = engine.runner.run

    def limited(plan, *chosen):  # type: ignore[no-untyped-def]
        if condition(plan.tokens):
            on_device()
        return run(plan, *chosen)

    monkeypatch.setattr(engine.runner, "run", limited)


def given_up(engine: Engine, before: dict[str, int]) -> dict[str, int]:
    """What was given up since ``before``."""
    now = engine.stats().out_of_memory
    return {kind: now[kind] - before[kind] for kind in ("micro_batches", "jobs", "steps") if now[kind] > before[kind]}


def test_activations_are_dropped_first_and_computed_again(
    engine: Engine, alone: tuple[list[int], list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, expected = alone
    before = engine.stats().out_of_memory
    under_way(engine, "drops", tmp_path)
    short_while(engine, monkeypatch, lambda _: holds_activations(engine))
    assert engine.generate(PROMPT, 10) == tokens
    assert given_up(engine, before).keys() == {"micro_batches"}
    monkeypatch.undo()
    engine.finish("drops")
    assert engine.failure("drops") is None
    assert losses(engine, "drops") == pytest.approx(expected, rel=1e-5)


def test_a_job_is_suspended_to_its_checkpoint_and_goes_on_later(
    engine: Engine, alone: tuple[list[int], list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, expected = alone
    before = engine.stats().out_of_memory
    pressure, now = engine.loop.pressure, [1e6]
    monkeypatch.setattr(pressure, "_clock", lambda: now[0])
    under_way(engine, "waits", tmp_path)
    with monkeypatch.context() as patch:
        short_while(engine, patch, lambda _: engine.jobs.nbytes > 0)
        assert engine.generate(PROMPT, 10) == tokens
    assert given_up(engine, before) == {"micro_batches": 1, "jobs": 1}
    stats = engine.stats()
    assert stats.training_jobs == stats.suspended_jobs == ("waits",)
    assert stats.memory["training"] == 0
    assert [p.name for p in (tmp_path / "waits-checkpoints").iterdir()] == ["step-00000002"]
    told = [o.payload.message for o in engine.outputs["waits"] if isinstance(o.payload, TrainEvent)]
    assert any("requests need its memory" in message for message in told)
    now[0] += 3600
    engine.finish("waits")
    assert engine.failure("waits") is None
    assert losses(engine, "waits") == pytest.approx(expected, rel=1e-6)
    assert engine.stats().suspended_jobs == ()


def test_a_suspended_job_can_be_stopped(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: object
) -> None:
    under_way(engine, "stops", tmp_path)
    with monkeypatch.context() as patch:
        short_while(engine, patch, lambda _: engine.jobs.nbytes > 0)
        engine.generate(PROMPT, 3)
    engine.submit(AbortCommand("stops"))
    assert engine.stats().training_jobs == ()
    assert not any(o.done for o in engine.outputs["stops"])
    assert not (tmp_path / "stops").exists()


def test_a_job_without_checkpoints_is_never_suspended(
    engine: Engine, alone: tuple[list[int], list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would lose all that it did: steps are halved instead."""
    tokens, expected = alone
    before = engine.stats().out_of_memory
    under_way(engine, "stays", tmp_path, checkpoints=False)
    engine.scheduler.pages.clear_cached()  # else the step has little left to compute
    with monkeypatch.context() as patch:
        short_while(engine, patch, lambda tokens: engine.jobs.nbytes > 0 and tokens > 2)
        assert engine.generate(PROMPT, 10) == tokens
    assert given_up(engine, before).keys() == {"micro_batches", "steps"}
    engine.finish("stays")
    assert losses(engine, "stays") == pytest.approx(expected, rel=1e-5)
