"""Engines on the default base that a part turns by hand, one after another in one process."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..job import Base, Job
from ..material import BASES, prepare
from ..systems.engine import InlineSystem, settings_of, versions_of
from ..workloads import Cell

KV_BYTES = 2 << 30
"""For 64 streams. By default an engine takes what is free, and the one before it may not be gone yet."""


@cache
def default_base() -> Base:
    """The default base with its adapters."""
    return prepare(BASES[0], Path(__file__).parents[2] / "build" / "bench")


@contextmanager
def engine(device: torch.device, cells: Sequence[Cell], changes: dict[str, Any]) -> Iterator[tuple[InlineSystem, Path]]:
    """An engine with ``changes`` to its settings, and its state directory. All of ``cells`` may run on it."""
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as scratch:
        job = Job(
            "inline",
            default_base(),
            tuple(cells),
            "auto",
            torch.get_num_threads(),
            scratch,
            device.type,  # type: ignore[arg-type]
        )
        room = {"kv_cache_memory": KV_BYTES} if device.type == "cuda" else {}
        system = InlineSystem(replace(settings_of(job), **{**room, **changes}), versions_of(job))
        try:
            yield system, Path(scratch)
        finally:
            system.close()
            del system
            gc.collect()
            torch.cuda.empty_cache()
