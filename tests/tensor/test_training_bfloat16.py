"""Training with activations in bfloat16 stays beside training in float32, and resumes to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loramux_server.core.errors import Error
from loramux_server.core.jobs import TrainCommand, TrainEvent, TrainSpec
from loramux_server.core.settings import EngineSettings
from loramux_server.model.base.load import resolve_training_dtype
from loramux_server.training import job_scheduler
from loramux_server.training.backprop import layerwise
from tests.engine import Engine, rows, stack_of, version_of
from tests.examples import few
from tests.rows import train_command
from tests.tensor.test_training_dpo import pairs

SPEC = TrainSpec(rank=4, alpha=8, learning_rate=5e-3, max_steps=50, epochs=99, batch_size=4, seed=3)
NEAR = 0.02
"""Largest difference of a step's loss from that of float32, relative: bfloat16 has 8 bits."""


@pytest.fixture(scope="module")
def engines(tiny_base, tmp_path_factory) -> Iterator[dict[str, Engine]]:  # type: ignore[no-untyped-def]
    """Engines on one base: activations in float32 and in bfloat16 over products in bfloat16."""
    base, root = tiny_base("llama"), tmp_path_factory.mktemp("bfloat16")
    made = {
        dtype: Engine(base, root / dtype, dtype="bfloat16", training_dtype=dtype) for dtype in ("float32", "bfloat16")
    }
    yield made
    for engine in made.values():
        engine.close()


def metrics(events: list[TrainEvent], type: str) -> list[dict[str, float]]:
    return [e.metrics for e in events if e.type == type]


def steps(engine: Engine, id: str) -> list[float]:
    assert engine.failure(id) is None, engine.failure(id)
    payloads = [o.payload for o in engine.outputs[id] if isinstance(o.payload, TrainEvent)]
    return [m["loss"] for m in metrics(payloads, "step")]


def of_both(engines: dict[str, Engine], tmp_path: Path, *jobs: TrainCommand) -> None:
    for dtype, engine in engines.items():
        engine.run(*(replace(job, output=str(tmp_path / f"{job.job_id}-{dtype}")) for job in jobs))


@pytest.mark.parametrize(("method", "count"), few([("sft", 10), ("sft", 50), ("dpo", 50)]))
def test_losses_and_the_held_out_loss_are_near_those_of_float32(
    engines, tmp_path: Path, method: str, count: int
) -> None:  # type: ignore[no-untyped-def]
    data = rows(12) if method == "sft" else pairs(12)
    held_out = rows(5, seed=6) if method == "sft" else pairs(5, seed=6)
    spec = replace(SPEC, method=method, max_steps=count, learning_rate=5e-3 if method == "sft" else 2e-3)
    found = {}
    for dtype, engine in engines.items():
        job = train_command(f"{method}-{count}", spec, data, held_out, output=str(tmp_path / dtype))
        found[dtype] = engine.train(job)
    losses, last = (
        {dtype: [m[name] for m in metrics(events, type)] for dtype, events in found.items()}
        for name, type in (("loss", "step"), ("eval_loss", "evaluation"))
    )
    assert len(losses["bfloat16"]) == count
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=NEAR, abs=NEAR)
    assert last["bfloat16"][-1] == pytest.approx(last["float32"][-1], rel=0.01)
    assert losses["bfloat16"][-1] < 0.95 * losses["bfloat16"][0]


@pytest.mark.slow
def test_jobs_that_share_micro_batches_over_stacks_are_near_too(engines, tiny_base, make_adapter, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Two jobs at once, one over frozen stacks by turns, with dropout in neither."""
    base = tiny_base("llama")
    folders = [make_adapter(tmp_path / f"under{i}", base, rank=3, seed=i, scale=0.2) for i in range(2)]
    stacks = (stack_of((version_of(folders[0], 3), 1.3)), stack_of((version_of(folders[1], 3), 0.5)))
    short = replace(SPEC, max_steps=15)
    jobs = [
        train_command("stacked", short, rows(10), output="", stacks=stacks),
        train_command("plain", replace(short, rank=8, rslora=True, seed=5), rows(9, seed=1), output=""),
    ]
    of_both(engines, tmp_path, *jobs)
    for job in jobs:
        got, expected = (steps(engines[dtype], job.job_id) for dtype in ("bfloat16", "float32"))
        assert len(got) == 15
        assert got == pytest.approx(expected, rel=NEAR, abs=NEAR)


def test_a_job_resumes_to_the_bit(engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Stopped after some steps, and resumed from its checkpoint; the rest with all activations computed again."""
    monkeypatch.setattr(job_scheduler, "IDLE_SECONDS", 0.0)  # else a fast machine does all steps in one turn
    engine = engines["bfloat16"]
    spec = replace(SPEC, max_steps=6, dropout=0.1, lr_scheduler="constant")
    whole, half = (train_command(id, spec, rows(8), output=str(tmp_path / id)) for id in ("whole", "half"))
    engine.train(whole)
    half = replace(half, checkpoint_dir=str(tmp_path / "checkpoints"))
    Path(half.checkpoint_dir).mkdir()
    engine.submit(half)
    while not engine.outputs["half"] or len(steps(engine, "half")) < 3:
        engine.loop.turn()
    engine.jobs.remove("half")
    monkeypatch.setattr(engine.jobs, "_activation_memory", 0)
    engine.outputs["half"].clear()
    assert len(metrics(engine.train(half), "step")) == 3
    a, b = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "half"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_activations_are_what_the_setting_says(engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Between layers; parameters, gradients and what is written stay float32."""
    seen = []
    run = layerwise.LayerwisePass._run

    def watched(self, layer, hidden):  # type: ignore[no-untyped-def]
        out = run(self, layer, hidden)
        seen.extend((hidden.dtype, out.dtype))
        return out

    monkeypatch.setattr(layerwise.LayerwisePass, "_run", watched)
    for dtype, engine in engines.items():
        seen.clear()
        job = train_command("types", replace(SPEC, max_steps=2), rows(4), output=str(tmp_path / dtype))
        engine.train(job)
        assert set(seen) == {getattr(torch, dtype)}
        assert {t.dtype for t in load_file(tmp_path / dtype / "adapter_model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_auto_is(device: str) -> None:
    on = torch.device(device)
    expected = torch.bfloat16 if device == "cuda" else torch.float32
    assert resolve_training_dtype("auto", torch.bfloat16, on) == expected
    assert resolve_training_dtype("float32", torch.bfloat16, on) == torch.float32
    assert resolve_training_dtype("bfloat16", torch.bfloat16, on) == torch.bfloat16
    for dtype in (torch.float32, torch.float16):
        assert resolve_training_dtype("auto", dtype, on) == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bfloat16_over_another_type_is_refused(dtype: str) -> None:
    settings = EngineSettings(dtype=dtype, training_dtype="bfloat16")  # type: ignore[arg-type]
    with pytest.raises(Error, match=f"computes in {dtype}; use --dtype bfloat16"):
        resolve_training_dtype(settings.training_dtype, getattr(torch, dtype), torch.device("cuda"))


@pytest.mark.parametrize("arch", few(["gemma2", "qwen3"]))
@pytest.mark.slow
def test_other_architectures_train_in_bfloat16(tiny_base, tmp_path: Path, arch: str) -> None:  # type: ignore[no-untyped-def]
    found = {}
    for dtype in ("float32", "bfloat16"):
        engine = Engine(tiny_base(arch), tmp_path / f"state-{dtype}", dtype="bfloat16", training_dtype=dtype)
        job = train_command("job", replace(SPEC, max_steps=10), rows(8), output=str(tmp_path / dtype))
        found[dtype] = [m["loss"] for m in metrics(engine.train(job), "step")]
        engine.close()
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=NEAR, abs=NEAR)
