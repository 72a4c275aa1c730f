"""What a real server's metrics say, compared with the table of the documentation and with the server's real state."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

import loramux
from loramux import Client
from loramux_server.telemetry.metrics import catalog, vllm
from loramux_server.telemetry.metrics.declarations import Declared
from tests.e2e.server_process import ServerProcess
from tests.metrics_page import Page, read, value
from tools.measure_adapters import shipped

pytestmark = pytest.mark.e2e

MiB = 1 << 20
ADD_UP = ("base", "adapters", "kv_cache", "training", "other")
ELSEWHERE = {
    catalog.CUDA_GRAPHS.name,
    catalog.CUDA_GRAPH_FAILURES.name,
    catalog.GPU_ALLOCATOR.name,
    catalog.GPU_OTHERS.name,
    catalog.GPU_UTILIZATION.name,
    catalog.CERTIFICATE_EXPIRY.name,
    catalog.TLS_RELOADS.name,
}
"""What needs a GPU or TLS."""


def routed_page(server: ServerProcess) -> str:
    """What routers read."""
    return httpx2.get(f"{server.metrics_url}/vllm", timeout=10).raise_for_status().text


def adapters_in(page: Page) -> dict[str, set[str]]:
    """Values of ``adapter`` by the metric that has them."""
    return {
        name: adapters
        for name, series in page.items()
        if (adapters := {dict(labels)["adapter"] for labels in series if "adapter" in dict(labels)})
    }


def check_declared(text: str, declared: tuple[Declared, ...], absent: set[str]) -> None:
    """A page shows what is declared, with these types and labels, and nothing else."""
    by_name = {metric.name: metric for metric in declared}
    shown: set[str] = set()
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name in by_name, f"{name} is not in the table"
        shown.add(name)
        metric = by_name[name]
        assert family.type == metric.kind
        assert family.documentation == metric.meaning or metric in catalog.PROCESS  # which have words of their own
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), sample
    assert shown == by_name.keys() - absent


def test_a_server_shows_what_the_table_lists_and_nothing_else(server: ServerProcess, client: Client) -> None:
    client.generate("Hello", max_tokens=2)
    check_declared(server.metrics(), catalog.CATALOG, ELSEWHERE)
    check_declared(routed_page(server), vllm.CATALOG, set())


def test_latency_by_adapter_over_both_doors(server: ServerProcess, client: Client) -> None:
    one, other = (folder.name for folder in shipped()[:2])
    ours = {"tenant": "default", "adapter": "+".join(sorted((one, other)))}
    client.generate("Hello", adapters={other: 1.0, one: 0.5}, max_tokens=2)
    before = read(server.metrics())
    for stack in ({one: 1.0, other: 0.5}, {other: 1.0, one: 0.5}):
        client.generate("Hello", adapters=stack, max_tokens=3, ignore_eos=True)
    asked = {"model": f"{other}+{one}", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    httpx2.post(f"http://{server.http_address}/v1/chat/completions", json=asked, timeout=60).raise_for_status()
    client.adapters.list()
    with pytest.raises(loramux.NotFound):
        client.generate("Hello", adapters=["nobody"], max_tokens=2)
    after = read(server.metrics())

    def rise(name: str, **labels: str) -> float:
        return value(after, name, **labels) - before[name].get(tuple(sorted(labels.items())), 0)

    assert rise("loramux_time_to_first_token_seconds_count", **ours) == 3
    assert rise("loramux_request_duration_seconds_count", method="GenerateOnce", **ours) == 2
    assert rise("loramux_request_duration_seconds_count", method="createChatCompletion", **ours) == 1
    assert rise("loramux_generated_tokens_total", **ours) == pytest.approx(8, abs=1)
    none = {"tenant": "_none", "adapter": "_none"}
    assert rise("loramux_request_duration_seconds_count", method="ListAdapters", **none) == 1
    assert rise("loramux_request_duration_seconds_count", method="GenerateOnce", **none) == 1
    assert not any("nobody" in adapter for adapters in adapters_in(after).values() for adapter in adapters)


def test_residency_is_the_servers_real_state(
    server: ServerProcess,
    client: Client,
    default_base: Path,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    for number in (1, 2):
        folder = make_adapter(tmp_path / str(number), default_base, rank=4 * number, targets=["q_proj"], seed=number)
        client.adapters.upload("seen", folder)
    client.adapters.pin("seen")
    stream = client.stream("Count:", adapters=["seen", shipped()[0].name], max_tokens=200, ignore_eos=True)
    next(stream)
    page, routed = read(server.metrics()), read(routed_page(server))
    [info] = routed["vllm:lora_requests_info"]
    assert {"seen", shipped()[0].name} <= set(dict(info)["running_lora_adapters"].split(","))
    assert routed["vllm:lora_requests_info"][info] == pytest.approx(time.time(), abs=60)
    stream.close()
    tiers = {version.version: version.tier for version in client.adapters.get("seen").versions}
    assert tiers == {1: "device", 2: "device"}
    assert value(page, "loramux_adapter_resident", adapter="seen", tier="device") == 1
    loaded = {
        tuple(dict(labels)[name] for name in ("adapter_name", "level", "pinned", "rank"))
        for labels in routed["vllm:lora_adapter_loaded"]
    }
    assert {("seen", "gpu", "true", "8"), ("seen@1", "gpu", "false", "4")} <= loaded
    served = {"model_name": "base", "engine": "0"}
    resident = client.info().adapters_resident["device"]
    assert value(routed, "vllm:num_gpu_loaded_lora_adapters", **served) == resident
    assert resident <= value(routed, "vllm:max_gpu_lora_adapters", **served) == float(dict(info)["max_lora"])
    assert value(routed, "vllm:num_requests_running", **served) >= 1
    client.adapters.unpin("seen")
    client.adapters.delete("seen")
    assert not any(
        "seen" in adapter.split("+")
        for adapters in adapters_in(read(server.metrics())).values()
        for adapter in adapters
    )
    assert "seen" not in routed_page(server)


@pytest.mark.slow
def test_the_kinds_of_memory_make_up_the_engine(
    server: ServerProcess,
    client: Client,
    default_base: Path,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """By the kernel's own count of the engine's process, with adapters loaded and a job at work."""
    engine = engine_of(server)
    before = kinds(read(server.metrics()))
    rank, versions = 64, 3
    for seed in range(versions):
        folder = make_adapter(tmp_path / str(seed), default_base, rank=rank, seed=seed)
        client.adapters.upload("large", folder)
        client.generate("Hello", adapters=["large"], max_tokens=1)
    weights = sum(file.stat().st_size for file in tmp_path.rglob("adapter_model.safetensors"))
    held = kinds(read(server.metrics()))["adapters"]
    # All are in memory, each once; they may have taken rows that others left, or sent others from the bank to the host.
    assert weights <= held <= weights + 2 * before["adapters"] + 8 * MiB
    rows = [{"prompt": "The mill opens at", "completion": f" {hour}."} for hour in range(8)]
    job = client.train("weighed", data=rows, rank=8, max_steps=400, batch_size=4, gate="none")
    try:
        deadline = time.monotonic() + 120
        while not (now := kinds(page := read(server.metrics())))["training"]:
            assert time.monotonic() < deadline, "the job never held memory"
            time.sleep(0.1)  # until the engine has begun; nothing tells of it but these numbers
        # Between the engine's reading and ours its process may take or return what a training step computes with.
        told, counted = sum(now[kind] for kind in ADD_UP), resident(engine)
        assert told == value(page, "loramux_engine_resident_memory_bytes")
        assert told == pytest.approx(counted, rel=0.05, abs=64 * MiB)
        assert 0 < now["other"] < 0.8 * counted
    finally:
        job.cancel()
        client.adapters.delete("large")


def kinds(page: Page) -> dict[str, float]:
    """Bytes by kind of memory."""
    return {dict(labels)["kind"]: size for labels, size in page["loramux_vram_bytes"].items()}


def engine_of(server: ServerProcess) -> int:
    """Process id of the engine: the child that has the model is by far the largest."""
    own = server.process.pid
    children = [file.read_text().split() for file in Path(f"/proc/{own}/task").glob("*/children")]
    return max((int(pid) for pids in children for pid in pids), key=resident)


def resident(pid: int) -> int:
    """Resident bytes of a process, as the kernel counts them."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
