"""The kinds of memory make up the process, and what is free goes back to the system."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from loramux_server.core.jobs import TrainSpec
from loramux_server.cpu.heap import give_back, resident_bytes
from loramux_server.engine.gpu import others_bytes
from loramux_server.engine.transport.protocol import AbortCommand
from loramux_server.host.resources import process_memory
from tests.conftest import MakeAdapter, TinyBase
from tests.engine import Engine, command, rows, stack_of, version_of
from tests.rows import train_command

MiB = 1 << 20
KINDS = ("base", "adapters", "kv_cache", "training", "other")


def test_only_what_was_written_to_is_resident() -> None:
    # Fresh from the system: an allocator may hand out pages that somebody else has written to.
    tensor = torch.frombuffer(mmap.mmap(-1, 64 * MiB), dtype=torch.uint8)
    assert resident_bytes(tensor) < 2 * MiB
    tensor[: 32 * MiB] = 1
    assert 32 * MiB - 8192 <= resident_bytes(tensor) <= 36 * MiB
    assert resident_bytes(torch.zeros(10)) == 40


def test_field_c_free_memory_goes_back() -> None:
    """Blocks of the size that training frees: glibc keeps them, once its threshold has grown, until it is told."""
    torch.empty(24 * MiB, dtype=torch.uint8).fill_(1)  # freed: from now on blocks up to this size are kept
    before = process_memory()
    blocks = [torch.empty(16 * MiB, dtype=torch.uint8).fill_(1) for _ in range(16)]
    pin = np.ones(64)  # lies above the blocks, as whatever outlives a job may
    kept = torch.empty(16 * MiB, dtype=torch.uint8).fill_(1)
    blocks.clear()
    give_back()
    after = process_memory()
    assert after - before < 64 * MiB
    assert pin.sum() == 64
    assert kept[0] == 1


def test_field_c_the_kinds_make_up_the_process(tiny_base: TinyBase, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """Of an engine that has loaded an adapter and trains another, by the kernel's own count of the process."""
    engine = Engine(tiny_base(), tmp_path / "state")
    empty = engine.stats().memory
    adapter = version_of(make_adapter(tmp_path / "adapter", tiny_base(), rank=8), 8, "acme")
    engine.run(command("loads", range(3, 20), 4, stack_of((adapter, 1.0))))
    spec = TrainSpec(rank=4, epochs=50, batch_size=2)
    engine.submit(train_command("job", spec, rows(4), output=str(tmp_path / "out")))
    while not engine.stats().memory["training"]:
        engine.loop.turn()
    for memory in (empty, engine.stats().memory):
        assert all(memory[kind] >= 0 for kind in KINDS)
        assert sum(memory[kind] for kind in KINDS) == memory["process"]
        assert memory["process"] == pytest.approx(process_memory(), rel=0.1)
        assert memory["kv_cache"] < memory["process"]
        assert memory["other"] > 0
    # Of buffers as small as this base's, the allocator may have given all the memory before.
    assert memory["adapters"] >= empty["adapters"]
    assert memory["adapters"] >= engine.stats().resident_bytes["device"] > 0
    # All weights of the base, quantisation states and the values that are unpacked from them included.
    assert memory["base"] >= sum(file.stat().st_size for file in tiny_base().glob("*.safetensors"))
    engine.submit(AbortCommand("job"))
    engine.loop.turn()
    engine.close()


def test_stats_tell_whose_adapters_run_and_wait(tiny_base: TinyBase, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    engine = Engine(tiny_base(), tmp_path / "state", max_running=2)
    one, other = (
        version_of(make_adapter(tmp_path / name, tiny_base(), rank=rank, seed=rank), rank, name)
        for name, rank in (("one", 8), ("other", 4))
    )
    both = stack_of((one, 1.0), (other, 0.5))
    engine.run(command("loads", range(3, 9), 1, both))
    engine.submit(
        *(command(f"r{i}", range(3, 9), 20, stack) for i, stack in enumerate([both, stack_of((one, 1.0)), both]))
    )
    engine.loop.turn()
    engine.loop.turn()
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (2, 1)
    assert stats.adapters_running == {one.digest: 2, other.digest: 1}
    assert stats.adapters_waiting == {one.digest: 1, other.digest: 1}
    assert (stats.adapter_rows_used, stats.adapter_rows_total) == (12, engine.runner.bank.rows)
    assert stats.gpu is None or stats.gpu.allocated > 0
    engine.finish("r0", "r1", "r2")
    stats = engine.stats()
    assert (stats.adapters_running, stats.adapters_waiting) == ({}, {})
    engine.close()


def test_what_other_processes_hold_is_told_only_where_it_can_be_told_apart() -> None:
    assert others_bytes({10: 500, 11: 70, 12: 30}, own=10) == 100
    assert others_bytes({10: 500}, own=10) == 0
    assert others_bytes({}, own=10) is None  # a container sees no process
    assert others_bytes({7: 500, 8: 70}, own=10) is None  # or numbers of another namespace
    assert others_bytes({10: None, 11: 70}, own=10) is None  # or the driver does not tell
