"""How free memory is shared out."""

from __future__ import annotations

import torch

from loramux_server.config import load
from loramux_server.core.settings import EngineSettings
from loramux_server.engine.memory import MemoryPlan, plan_memory
from loramux_server.host.resources import host_available

CPU = torch.device("cpu")


def test_what_the_operator_grants_is_what_there_is() -> None:
    granted = {"kv_cache_memory": "10kB", "adapter_memory": "3kB", "adapter_host_memory": "5kB"}
    settings = load(granted).settings.engine()
    assert plan_memory(settings, CPU, page_bytes=1000, row_bytes=100) == MemoryPlan(10, 30, 5000)


def test_the_host_keeps_a_part_of_what_is_free() -> None:
    plan = plan_memory(EngineSettings(), CPU, page_bytes=1000, row_bytes=100)
    assert 0 < plan.host_bytes <= min(2 << 30, host_available() // 4)
