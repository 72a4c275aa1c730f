"""A state directory with thousands of adapters, published one by one through the store, and kept for later runs.

Imports torch. Some adapters are whole: rank 8 on all linears. The others adapt one layer, because what a registry
costs does not depend on the size of what it names.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import msgspec
import torch

from loramux_server.app.maintenance import check
from loramux_server.lora.bank import LoraPair
from loramux_server.model.base.fingerprint import fingerprint
from loramux_server.peft.folder import write_folder
from loramux_server.peft.schema import CARD_FILE
from loramux_server.store.records import AdapterMeta
from loramux_server.store.store import Store

from .job import Registry, adapter_name
from .material import DELTA, linears

RANK = 8
ALPHA = 16.0
TENANT = "default"


def make(base: Path, folder: Path, registered: int, whole: int) -> Registry:
    """``registered`` adapters for the NF4 base ``base``, the first ``whole`` on all linears; ``folder`` keeps them.

    Takes a minute or two the first time. Raises RuntimeError unless the doctor finds the result sound.
    """
    folder = folder.resolve()
    made = folder / "registry.json"
    if made.is_file():  # written last
        return msgspec.json.decode(made.read_bytes(), type=Registry)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    state_dir = folder / "state"
    folders = fill(state_dir, linears(base), fingerprint(base), registered, whole)
    found, _ = check(state_dir)
    if found:
        raise RuntimeError(f"the prepared registry is not sound: {found[0]}")
    registry = Registry(str(state_dir), registered, folders)
    made.write_bytes(msgspec.json.encode(registry))
    return registry


def fill(
    state_dir: Path, modules: Mapping[str, tuple[int, int]], base_fingerprint: str, registered: int, whole: int
) -> tuple[str, ...]:
    """Publish the adapters; gives the folders of the whole ones."""
    last = max(map(layer_of, modules))
    few = dict([(name, size) for name, size in modules.items() if layer_of(name) == last][-2:])
    folders = []
    with closing(Store.open(state_dir)) as store:
        for i in range(whole):
            source = store.state.new_tmp("bench") / "adapter"
            meta = _write(source, modules, None, base_fingerprint, seed=i)
            record = store.adapters.publish(adapter_name(i), TENANT, source, meta)
            folders.append(str(store.blobs.local_path(record.digest)))
            shutil.rmtree(source.parent)
        # The others have the same weights; the card makes each one's content its own.
        source = store.state.new_tmp("bench") / "adapter"
        meta = _write(source, few, (last,), base_fingerprint, seed=whole)
        for i in range(whole, registered):
            (source / CARD_FILE).write_text(f"# {adapter_name(i)}\n")
            store.adapters.publish(adapter_name(i), TENANT, source, meta)
        shutil.rmtree(source.parent)
    return tuple(folders)


def _write(
    folder: Path,
    modules: Mapping[str, tuple[int, int]],
    layers: tuple[int, ...] | None,
    base_fingerprint: str,
    seed: int,
) -> AdapterMeta:
    """Write a random adapter in PEFT's format; gives what a publisher says about it."""
    write_folder(
        folder,
        _pairs(modules, seed),
        rank=RANK,
        alpha=ALPHA,
        layers=layers,
        base_fingerprint=base_fingerprint,
        dtype=torch.bfloat16,
    )
    targets = tuple(sorted({module.rpartition(".")[2] for module in modules}))
    return AdapterMeta(RANK, ALPHA, base_fingerprint, targets, layers)


def layer_of(module: str) -> int:
    """``model.layers.12.mlp.up_proj`` -> 12."""
    found = re.search(r"\.(\d+)\.", module)
    assert found is not None, module
    return int(found[1])


def _pairs(modules: Mapping[str, tuple[int, int]], seed: int) -> dict[str, LoraPair]:
    """Random A [r, in] and B [out, r] for each module, by name."""
    draw = torch.Generator().manual_seed(seed)
    return {
        module: LoraPair(
            torch.randn(RANK, inputs, generator=draw) / inputs**0.5,
            torch.randn(outputs, RANK, generator=draw) * DELTA,
            ALPHA / RANK,
        )
        for module, (inputs, outputs) in modules.items()
    }
