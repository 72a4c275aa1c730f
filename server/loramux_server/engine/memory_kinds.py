"""By what the memory is taken: the same kinds on the host and on a GPU, and they add up."""

from __future__ import annotations

import torch

from ..cpu.heap import resident_bytes
from ..host.resources import process_memory
from ..lora.bank import AdapterBank
from ..model.kv import KVPool
from ..model.resident import ResidentBase
from .execution.graph_families import StepGraphs
from .memory import device_memory
from .residency.cache import HostCache


class MemoryKinds:
    """Reads the memory of one engine, see ``EngineStats.memory``. For the thread that owns the model."""

    def __init__(
        self, base: ResidentBase, bank: AdapterBank, cache: HostCache, kv: KVPool, graphs: StepGraphs | None
    ) -> None:
        self._base, self._bank, self._cache, self._kv, self._graphs = base, bank, cache, kv, graphs

    def read(self, training: int) -> dict[str, int]:
        """Bytes by kind; ``training``: what the jobs at work hold."""
        device = self._base.device
        on_host = device.type == "cpu"
        free, total = device_memory(device)
        process = process_memory()
        kinds = {
            "base": self._base.nbytes,
            "adapters": self._allocated(self._bank.buffers) + (self._cache.nbytes if on_host else 0),
            "kv_cache": self._allocated([self._kv.keys, self._kv.values]),
            "training": training,
        }
        if self._graphs is not None:
            kinds["graphs"] = self._graphs.nbytes
        taken = process if on_host else total - free
        other = max(0, taken - sum(kinds.values()))
        return {**kinds, "other": other, "free": free, "total": total, "process": process}

    @staticmethod
    def _allocated(tensors: list[torch.Tensor]) -> int:
        """On the host, tensors of zeros take no memory until they are written to."""
        return sum(t.nbytes if t.is_cuda else resident_bytes(t) for t in tensors)
