"""A run that is killed or stopped goes on from its last complete checkpoint, as one that nothing interrupted."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from loramux_server.core.jobs import Stored, TrainCommand, TrainEvent, TrainRow, TrainSpec
from loramux_server.core.types import BASE
from loramux_server.data.rows_file import HELD_OUT, TRAIN, read_at_once
from loramux_server.engine.transport.protocol import AbortCommand
from loramux_server.host.failpoints import VARIABLE
from loramux_server.training import job_scheduler, run
from loramux_server.training.backprop import micro_batch_size
from loramux_server.training.checkpoints import checkpoint, host_copy
from loramux_server.training.checkpoints.host_copy import copy_to_host
from tests.damage import HARMS, flip_bit
from tests.engine import DEVICE, Engine, command, prompts, rows
from tests.examples import few
from tests.rows import JOBS, rows_file, train_command

SPEC = TrainSpec(rank=4, alpha=8, learning_rate=5e-3, epochs=2, batch_size=4, seed=3, layers=(1, 2), dropout=0.1)
"""Six steps over twelve rows."""


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory) -> Iterator[Engine]:  # type: ignore[no-untyped-def]
    made = Engine(tiny_base("llama"), tmp_path_factory.mktemp("resume"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[TrainEvent], Path]:
    """The events and the adapter of the run that nothing interrupts."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return engine.train(train_command("whole", SPEC, rows(12), rows(3, seed=9), output=str(output))), output


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., TrainCommand]:
    """``job(id, ...)``: a command with a folder for its checkpoints, one every two steps."""

    def make(id: str, **changes: object) -> TrainCommand:
        folder = tmp_path / id
        folder.mkdir(exist_ok=True)
        made = train_command(id, SPEC, rows(12), rows(3, seed=9), output=str(tmp_path / f"{id}-out"))
        made = replace(made, checkpoint_dir=str(folder), checkpoint_every=2, checkpoint_seconds=1e9)
        return replace(made, **changes)  # type: ignore[arg-type]

    return make


def losses(events: list[TrainEvent]) -> dict[int, float]:
    return {e.step: e.metrics["loss"] for e in events if e.type == "step"}


def events_of(engine: Engine, id: str) -> list[TrainEvent]:
    return [o.payload for o in engine.outputs[id] if isinstance(o.payload, TrainEvent)]


def train_in_child(engine: Engine, job: TrainCommand, failpoint: str) -> int | None:
    """Run a job in a copy of this process that dies at a failpoint; gives its exit code."""

    def run() -> None:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        os.environ[VARIABLE] = failpoint
        engine.train(job)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
    return child.exitcode


@pytest.mark.skipif(DEVICE != "cpu", reason="CUDA does not survive a fork")
@pytest.mark.parametrize(
    ("point", "resumes_after"), few([("checkpoint.renamed", 2), ("checkpoint.written", 0), ("train.evaluated", 6)])
)
def test_killed_and_resumed_equals_uninterrupted(engine: Engine, whole, job, point: str, resumes_after: int) -> None:  # type: ignore[no-untyped-def]
    events, output = whole
    interrupted = job(point)
    assert train_in_child(engine, interrupted, f"{point}:kill") == -signal.SIGKILL
    rest = engine.train(interrupted)
    assert rest[0].step == resumes_after
    expected = {step: loss for step, loss in losses(events).items() if step > resumes_after}
    assert losses(rest) == pytest.approx(expected, rel=1e-6)
    assert rest[-1].metrics == pytest.approx(events[-1].metrics, rel=1e-6)
    a, b = (torch.frombuffer(weights(folder), dtype=torch.float32) for folder in (output, Path(interrupted.output)))
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert not list(Path(interrupted.checkpoint_dir).glob("tmp-*"))


def weights(folder: Path) -> bytearray:
    data = (folder / "adapter_model.safetensors").read_bytes()
    return bytearray(data[8 + int.from_bytes(data[:8], "little") :])


def test_an_aborted_job_loses_no_step(engine: Engine, whole, job, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Pause and a server that stops abort the run: the steps that were told are safe, whatever was due."""
    monkeypatch.setattr(job_scheduler, "IDLE_SECONDS", 0.0)  # else a fast machine does all six steps in one turn
    paused = job("paused", checkpoint_every=0)
    engine.submit(paused)
    while len(losses(events_of(engine, "paused"))) < 3:
        engine.loop.turn()
    told = losses(events_of(engine, "paused"))
    engine.submit(AbortCommand("paused"))
    engine.loop.submit(command("wakes-the-loop", prompts(1)[0], 1))
    engine.loop.turn()
    assert engine.stats().training_jobs == ()
    assert len(told) < len(losses(whole[0]))
    engine.outputs["paused"].clear()
    rest = engine.train(paused)
    assert rest[0].step == len(told)
    assert {**told, **losses(rest)} == pytest.approx(losses(whole[0]), rel=1e-6)


@pytest.mark.slow
def test_two_checkpoints_are_kept_and_told(engine: Engine, job) -> None:  # type: ignore[no-untyped-def]
    done = job("kept")
    events = engine.train(done)
    kept = sorted(p.name for p in Path(done.checkpoint_dir).iterdir())
    assert len(kept) == 2
    assert kept[-1] == "step-00000006"
    # One is written at a time; what comes due meanwhile waits for the next step.
    told = [e.step for e in events if e.type == "checkpoint"]
    assert told
    assert told[0] == 2
    for file in Path(done.checkpoint_dir).glob("*/*"):
        assert file.name in ("state.safetensors", "state.json")


def trap(path: Path) -> bytes:
    """A pickle that makes a folder when it is loaded."""
    return f"cos\nmkdir\n(V{path}\ntR.".encode()


def test_damaged_foreign_and_planted_files_are_passed_over(engine: Engine, whole, job, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made = job("damaged")
    engine.train(made)
    folder = Path(made.checkpoint_dir)
    bad = trap(tmp_path / "sprung")
    newest, older = sorted(folder.iterdir(), reverse=True)
    before = json.loads((older / "state.json").read_text())["step"]
    for name in ("rng_state.pth", "optimizer.pt", "training_args.bin", "step-99999999"):
        (folder / name).write_bytes(bad)
        (older / name).write_bytes(bad)
    # The tensors are a pickle, and the record vouches for it.
    (newest / "state.safetensors").write_bytes(bad)
    record = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps({**record, "sha256": hashlib.sha256(bad).hexdigest()}))
    (folder / "step-00000010").symlink_to(older)  # a record that lies about its step
    (folder / "step-00000011").mkdir()
    (folder / "step-00000011" / "state.json").symlink_to(older / "state.json")
    (Path(made.output) / "adapter_model.safetensors").unlink()
    engine.outputs["damaged"].clear()
    rest = engine.train(replace(made, output=made.output + "-again"))
    assert rest[0].step == before
    expected = {step: loss for step, loss in losses(whole[0]).items() if step > before}
    assert losses(rest) == pytest.approx(expected, rel=1e-6)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "change",
    few([{"rows": rows_file(rows(12, seed=5))}, {"spec": replace(SPEC, learning_rate=1e-3)}]),
    ids=["rows", "settings"],
)
@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_not_taken_up(engine: Engine, job, change: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    made = job("mine")
    engine.train(made)
    engine.outputs["mine"].clear()
    again = engine.train(replace(made, output=made.output + "-again", **change))
    assert again[0].step == 0
    assert len(losses(again)) == 6


@pytest.mark.slow
def test_a_full_disk_fails_the_job_and_nothing_else(engine: Engine, job, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The reason is told, no half checkpoint is left, the one before is kept, and requests go on."""

    def full(path: Path, data: bytes) -> None:
        if "step-00000002" in [p.name for p in Path(made.checkpoint_dir).iterdir()]:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    write = checkpoint.write_durable
    monkeypatch.setattr(checkpoint, "write_durable", full)
    made = job("full")
    prompt = prompts(1, seed=8)[0]
    alone = engine.generate(prompt, 30)
    engine.submit(made, command("beside-full", prompt, 30))
    engine.finish("full", "beside-full")
    failure = engine.failure("full")
    assert failure is not None
    assert (failure.code, failure.reason) == ("resource_exhausted", "STORAGE_FULL")
    assert "checkpoint" in failure.message
    assert [p.name for p in Path(made.checkpoint_dir).iterdir()] == ["step-00000002"]
    assert engine.tokens("beside-full") == alone
    monkeypatch.undo()
    engine.outputs["full"].clear()
    assert engine.train(made)[0].step == 2


@pytest.mark.slow
def test_dropout_does_not_depend_on_how_a_batch_is_split(engine: Engine, whole, job, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(micro_batch_size, "MAX_TOKENS", 1)
    assert losses(engine.train(job("row-by-row"))) == pytest.approx(losses(whole[0]), rel=1e-5)
    no_dropout = losses(engine.train(job("none", spec=replace(SPEC, dropout=0.0))))
    assert no_dropout != pytest.approx(losses(whole[0]), rel=1e-3)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("harm", few(HARMS.values()), ids=HARMS)
@pytest.mark.slow
def test_field_09_checkpoint_that_is_passed_over_is_an_event_with_its_reason(  # type: ignore[no-untyped-def]
    engine: Engine, whole, job, harm: Callable[[Path], None], name: str
) -> None:
    id = f"{harm.__name__}-{name}"
    made = job(id)
    engine.train(made)
    newest, older = sorted(Path(made.checkpoint_dir).iterdir(), reverse=True)
    step = json.loads((older / "state.json").read_text())["step"]
    harm(newest / name)
    engine.outputs[id].clear()
    rest = engine.train(replace(made, output=made.output + "-again"))
    assert rest[0].step == step
    (lost,) = [e for e in rest if e.type == "checkpoint_lost"]
    assert lost.step == step
    assert "step 6" in lost.message
    assert name in lost.message
    expected = {step: loss for step, loss in losses(whole[0]).items() if step > rest[0].step}
    assert losses(rest) == pytest.approx(expected, rel=1e-6)
    kept = sorted(p.name for p in Path(made.checkpoint_dir).iterdir())
    assert kept[-1] == newest.name  # made anew
    assert len(kept) == 2


@pytest.mark.slow
def test_field_09_checkpoint_with_no_older_one_begins_anew_and_says_so(engine: Engine, job) -> None:  # type: ignore[no-untyped-def]
    made = job("no-older")
    engine.train(made)
    kept = list(Path(made.checkpoint_dir).iterdir())  # two, or one where the disk was slower than the steps
    for place in kept:
        flip_bit(place / "state.safetensors")
    engine.outputs["no-older"].clear()
    rest = engine.train(replace(made, output=made.output + "-again"))
    assert rest[0].step == 0
    lost = [e.message for e in rest if e.type == "checkpoint_lost"]
    assert len(lost) == len(kept) >= 1, (lost, kept)


@pytest.mark.slow
def test_field_09_checkpoint_of_another_run_is_told_with_its_reason(engine: Engine, job) -> None:  # type: ignore[no-untyped-def]
    made = job("another")
    engine.train(made)
    engine.outputs["another"].clear()
    rest = engine.train(
        replace(made, output=made.output + "-again", rows=rows_file(rows(12, seed=5)), stored=Stored(6, 0))
    )
    assert any("other data, settings or another base" in e.message for e in rest if e.type == "message")
    assert not [e for e in rest if e.type == "checkpoint_lost"]
    assert sorted(losses(rest)) == [1, 2, 3, 4, 5, 6]  # it is another curve


def steps(events: list[TrainEvent]) -> list[int]:
    return [e.step for e in events if e.type == "step"]


@pytest.mark.skipif(DEVICE != "cpu", reason="CUDA does not survive a fork")
@pytest.mark.parametrize("stored", few([1, 0, 2, 3, 4, 6]))
@pytest.mark.slow
def test_field_19_steps_are_told_once_whatever_was_stored(engine: Engine, whole, job, stored: int) -> None:  # type: ignore[no-untyped-def]
    """The process dies with a checkpoint after step 2, and the front has stored more, or less, of what it reported."""
    interrupted = job(f"stored-{stored}")
    assert train_in_child(engine, interrupted, "checkpoint.renamed:kill") == -signal.SIGKILL
    rest = engine.train(replace(interrupted, stored=Stored(stored)))
    assert rest[0].step == 2
    assert steps(rest) == list(range(stored + 1, 7))
    expected = {step: loss for step, loss in losses(whole[0]).items() if step > stored}
    assert losses(rest) == pytest.approx(expected, rel=1e-6)
    assert max(e.step for e in rest) == 6  # also where all steps were told


@pytest.mark.slow
def test_field_19_evaluations_are_told_once_too(engine: Engine, job) -> None:  # type: ignore[no-untyped-def]
    made = job("evaluated", spec=replace(SPEC, eval_steps=2))
    engine.train(made)
    engine.outputs["evaluated"].clear()
    rest = engine.train(replace(made, output=made.output + "-again", stored=Stored(5, 2)))
    assert steps(rest) == [6]
    told = [e.step for e in rest if e.type == "evaluation"]
    assert told == [4, 6, 6]  # the last is the measurement at the end, which is done again


@pytest.mark.slow
def test_a_damaged_rows_file_is_not_trained_on(engine: Engine, job, whole) -> None:  # type: ignore[no-untyped-def]
    """The job fails before its first step with the file's name, and trains once the file is whole."""
    made = job("spoilt")
    place = JOBS / made.rows.path
    content = place.read_bytes()
    flip_bit(place)
    engine.run(made)
    failure = engine.failure("spoilt")
    assert failure is not None
    assert (failure.code, failure.reason) == ("data_loss", "ROWS_DAMAGED")
    assert made.rows.path in failure.message
    assert events_of(engine, "spoilt") == []
    assert engine.generate(prompts(1)[0], 2)
    place.write_bytes(content)
    engine.outputs["spoilt"].clear()
    assert losses(engine.train(made)) == losses(whole[0])


def test_rows_in_a_file_are_the_run_that_rows_by_value_were(job) -> None:  # type: ignore[no-untyped-def]
    """Checkpoints of versions that sent the rows themselves are taken up."""

    def key(*tables: Sequence[TrainRow]) -> str:
        work = checkpoint.run_identity(job("key"), tables, "base", 0)
        while True:
            try:
                next(work)
            except StopIteration as done:
                return str(done.value)

    stacked = [replace(row, stack=i % 2) for i, row in enumerate(rows(12))]
    command = train_command("key", SPEC, stacked, rows(3, seed=9), stacks=(BASE, BASE))
    tables = read_at_once(JOBS, command.rows).tables
    # Rows that named none were dealt over the job's stacks by the front.
    assert key(*(tables[name].assigned(command) for name in (TRAIN, HELD_OUT))) == key(
        stacked, [replace(row, stack=i % 2) for i, row in enumerate(rows(3, seed=9))]
    )
    tables = read_at_once(JOBS, job("plain").rows).tables
    assert key(tables[TRAIN], tables[HELD_OUT]) == key(rows(12), rows(3, seed=9))
    assert key(tables[HELD_OUT], tables[TRAIN]) != key(rows(12), rows(3, seed=9))


# -- copies and memory ------------------------------------------------------------------------------------------------


def test_copies_are_views_of_one_buffer_to_the_bit() -> None:
    draw = torch.Generator().manual_seed(1)
    tensors = {
        "a": torch.randn(3, 5, generator=draw),
        "step": torch.tensor(7.0),
        "half": torch.randn(7, generator=draw).to(torch.bfloat16).requires_grad_(),
        "turned": torch.randn(4, 6, generator=draw).T,
        "bytes": torch.arange(5, dtype=torch.uint8),
        "none": torch.empty(0, 3),
    }
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    copies, copied = copy_to_host(tensors)
    assert copied is None
    for tensor in tensors.values():
        tensor.detach().zero_()
    assert len({copy.untyped_storage().data_ptr() for copy in copies.values()}) == 1
    assert copies.keys() == before.keys()
    for name, copy in copies.items():
        assert (copy.dtype, copy.shape, copy.requires_grad) == (before[name].dtype, before[name].shape, False)
        assert torch.equal(copy, before[name])
    read = load(save(copies))
    assert all(torch.equal(read[name], before[name]) for name in before)


def test_what_cannot_be_pinned_is_copied_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def scarce(*size: int, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", scarce)
    assert host_copy._buffer(100, pinned=True).nbytes == 100


def test_the_thread_that_writes_waits_for_the_copies_and_no_other(job) -> None:  # type: ignore[no-untyped-def]
    """As on a GPU: the values are there only once the event is."""
    made, threads = job("copies"), []
    values = torch.zeros(4)

    class Copied:
        def synchronize(self) -> None:
            threads.append(threading.current_thread().name)
            values.fill_(3.0)

    checkpoints = checkpoint.Checkpoints(made, "identity")
    checkpoints.begin(checkpoint.Snapshot(2, {"a": values}, {}, copied=Copied()))  # type: ignore[arg-type]
    assert checkpoints.finished(wait=True) == 2
    assert [name.startswith("checkpoint") for name in threads] == [True]
    found = checkpoint.Checkpoints(made, "identity").latest()
    assert found is not None
    assert torch.equal(found.tensors["a"], torch.full((4,), 3.0))


@pytest.mark.parametrize("where", ["copy", "write"])
def test_a_checkpoint_without_memory_is_missed_and_the_job_goes_on(
    engine: Engine, whole, job, where: str, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    calls = 0
    module, name = (run, "copy_to_host") if where == "copy" else (checkpoint, "save_safetensors")
    real = getattr(module, name)

    def short(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            torch.empty(1 << 50, dtype=torch.uint8)
        return real(*given)

    monkeypatch.setattr(module, name, short)
    events = engine.train(made := job(where, checkpoint_every=3))
    assert losses(events) == pytest.approx(losses(whole[0]), rel=1e-6)
    assert [e.step for e in events if e.type == "checkpoint"] in ([], [6])
    assert [p.name for p in Path(made.checkpoint_dir).iterdir()] == ["step-00000006"]
