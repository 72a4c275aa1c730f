"""The kinds of memory make up the process, and what is free goes back to the system."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import torch

from loramux_server.cpu.heap import give_back, resident_bytes
from loramux_server.host.resources import process_memory
from tests.conftest import TinyBase
from tests.engine import Engine

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


def test_field_c_the_kinds_make_up_the_process(tiny_base: TinyBase, tmp_path: Path) -> None:
    engine = Engine(tiny_base(), tmp_path)
    memory = engine.stats().memory
    engine.close()
    assert all(memory[kind] >= 0 for kind in KINDS)
    assert memory["kv_cache"] < memory["process"]
    assert sum(memory[kind] for kind in KINDS) == memory["process"]
    assert memory["other"] > 0
