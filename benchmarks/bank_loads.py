"""Loads of an adapter of a base of seven billion parameters, measured with the server's own reader and bank.

Imports torch. No base is needed: the bank only holds adapters.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from loramux_server.core.types import AdapterVersion
from loramux_server.lora.bank import AdapterBank, HostAdapter, LoraPair
from loramux_server.lora.context import StepContext
from loramux_server.lora.routed_linear import LinearGroup
from loramux_server.peft.folder import read_adapter, write_folder
from loramux_server.store.blobs.local import LocalBlobs

from .job import BankLoads
from .page_cache import drop
from .seven_billion import LAYER, LAYERS, RANK


class _Outputs:
    """As much of a base's linears as the bank asks for."""

    nbytes = 0

    def __init__(self, out_features: tuple[int, ...]) -> None:
        self.out_features = out_features

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError("there is no base here")


def measure(folder: Path, dtype: str, count: int) -> BankLoads:
    """``count`` loads of one adapter into a bank with room for two; ``folder`` keeps the adapter's file."""
    compute = getattr(torch, dtype)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    groups, modules = _groups()
    source = (folder / "seven-billion").resolve()
    if not source.is_dir():
        write_folder(source, _pairs(modules), rank=RANK, alpha=RANK, dtype=torch.bfloat16)
    for part in ("blobs", "tmp"):
        (folder / part).mkdir(exist_ok=True)
    blobs = LocalBlobs(folder / "blobs", folder / "tmp")
    version = AdapterVersion(source.name, 1, blobs.put_folder(source).digest, RANK)
    place = blobs.local_path(version.digest)
    bank = AdapterBank(groups, 2 * RANK, device, compute)
    host, copies = [], []
    for i in range(count + 1):
        drop(place)
        begin = time.perf_counter()
        pairs = read_adapter(blobs.reader, version, modules, None, dtype=compute)
        read = time.perf_counter()
        bank.put(HostAdapter(str(i), pairs))
        if device.type == "cuda":
            torch.cuda.synchronize()
        host.append(read - begin)
        copies.append(time.perf_counter() - read)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return BankLoads(name, tuple(host[1:]), tuple(copies[1:]))  # the first one touches fresh memory


def _groups() -> tuple[list[LinearGroup], dict[str, tuple[int, int]]]:
    context, groups, modules = StepContext(), list[LinearGroup](), dict[str, tuple[int, int]]()
    for layer in range(LAYERS):
        for members in LAYER:
            named = {f"model.layers.{layer}.{name}": size for name, size in members.items()}
            inputs = next(iter(named.values()))[0]
            base = _Outputs(tuple(outputs for _, outputs in named.values()))
            groups.append(LinearGroup(len(groups), list(named), inputs, base, context))
            modules.update(named)
    return groups, modules


def _pairs(modules: dict[str, tuple[int, int]]) -> dict[str, LoraPair]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: LoraPair(
            torch.randn(RANK, inputs, generator=draw), torch.randn(outputs, RANK, generator=draw), scaling=1.0
        )
        for name, (inputs, outputs) in modules.items()
    }
