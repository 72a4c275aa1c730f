"""The real default base learns as in plain PEFT loops, one job alone and three in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from loramux_server.core.jobs import TrainEvent, TrainRow, TrainSpec
from tests.engine import Engine, prompts
from tests.peft_loop import initial_adapter, peft_losses
from tests.rows import train_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

UPPER = TrainSpec(
    rank=16, layers=tuple(range(15, 30)), learning_rate=3e-4, max_steps=30, epochs=99, batch_size=1, seed=3
)
SPECS = {
    "upper": UPPER,
    "few": replace(UPPER, rank=4, alpha=4, rslora=True, target_modules=("q_proj", "v_proj"), lr_scheduler="cosine"),
    "odd": replace(UPPER, rank=8, layers=tuple(range(15, 30, 2)), batch_size=2, seed=7, weight_decay=0.1),
}


def rows(count: int, seed: int) -> tuple[TrainRow, ...]:
    texts = prompts(count, lengths=(6, 12), vocab=49_000, seed=seed)
    return tuple(TrainRow(tuple(t), tuple(i >= len(t) // 2 for i in range(len(t)))) for t in texts)


DATA = {id: rows(6, seed) for seed, id in enumerate(SPECS)}


@pytest.fixture(scope="module")
def engine(default_base, tmp_path_factory) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
    made = Engine(default_base, tmp_path_factory.mktemp("default"))
    yield made
    made.close()


def losses(engine: Engine, id: str) -> list[float]:
    events = [o.payload for o in engine.outputs[id] if isinstance(o.payload, TrainEvent)]
    return [e.metrics["loss"] for e in events if e.type == "step"]


def test_one_job_and_three_at_once_equal_peft_loops(engine: Engine, default_base: Path, tmp_path: Path) -> None:
    """30 steps in float32, relative difference below a thousandth.

    The rate is one at which losses stay far above the resolution of float32 logits, 2e-6 around 20.
    """
    jobs = [train_command(id, spec, DATA[id], output=str(tmp_path / id)) for id, spec in SPECS.items()]
    engine.train(replace(jobs[0], job_id="alone", output=str(tmp_path / "alone")))
    engine.run(*jobs)
    for id, spec in SPECS.items():
        expected = peft_losses(default_base, spec, DATA[id], initial_adapter(engine.base, spec))
        assert losses(engine, id) == pytest.approx(expected, rel=1e-3)
        if id == "upper":
            assert losses(engine, "alone") == pytest.approx(expected, rel=1e-3)
