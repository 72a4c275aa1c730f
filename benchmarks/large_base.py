"""A base of 70 billion weights on one 80 GB card: what memory it takes, and on a GPU that it is served and trained.

    make bench-70b                                      # the table; with a GPU also a server with random weights
    make bench-70b BENCH_ARGS="--shape 3b --convert"    # a conversion: its time, and the most memory that it took
    make bench-70b BENCH_ARGS="--shape tiny --serve"    # to see that it runs

The table is made by the planner that the server uses (``engine/memory.py``), from shapes on the meta device.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rich.table import Table

from .machine import describe, sentence
from .processes import peak_bytes
from .random_base import SHAPES, on_meta, write_16_bit, write_nf4
from .serving import RESULTS, ROOT, console, prepare
from .turns import servers

CARD_BYTES = int(79.1 * 2**30)
"""What torch tells of an H100 with 80 GB."""
CONTEXT_BYTES = 700 << 20
"""What CUDA itself takes of a card, and the workspaces of its libraries."""
KV_PAGE_TOKENS = 256
"""Of FlashAttention's pages."""
RANK = 16
PREDICTED = {"weights": 39.6e9, "kv_tokens": 70_000}
"""What was expected before the table was made for the first time."""
MOST_CONVERSION_BYTES = 6 << 30
STEPS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes on the card, and what they buy."""

    card: int
    cuda: int
    weights: int
    weights_16_bit: int
    scales: int
    """Of blocks, in float32, as products on a GPU want them."""
    graphs: int
    adapters: int
    adapters_of_rank_16: int
    kv_cache: int
    kv_tokens: int
    left: int
    """For activations and training."""
    job: int
    """Of a training job of rank 16 on all linear layers, without its activations."""
    kept_layer_inputs: int
    """Activations of a micro-batch of 512 tokens with gradient checkpointing: the input of each layer."""


def plan(shape: str, card: int = CARD_BYTES) -> Plan:
    """What the server would do with a base of that shape on an empty card of ``card`` bytes."""
    import torch

    from loramux_server.core.settings import EngineSettings
    from loramux_server.engine.execution.graph_families import graph_bytes
    from loramux_server.engine.memory import plan_memory
    from loramux_server.model.base.load import SCALE_BYTES, linear_modules
    from loramux_server.model.base.nf4_copy import copy_bytes
    from loramux_server.model.kv import KVShape
    from loramux_server.training.backprop.micro_batch_size import IDLE_TOKENS

    model, settings, device = on_meta(shape), EngineSettings(), torch.device("cuda")
    config, modules = model.config, linear_modules(model)
    size = settings.step_size("cuda")
    scales = int(sum(width * height for width, height in modules.values()) * SCALE_BYTES)
    weights = copy_bytes(model, {f"{name}.weight" for name in modules}, None)
    dense = sum(parameter.nbytes for parameter in model.parameters())
    pages = KVShape(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, KV_PAGE_TOKENS, kernel=True)
    base: Any = SimpleNamespace(model=model, modules=modules, dtype=torch.bfloat16, layers=model.model.layers)
    graphs = graph_bytes(base, min(size.sequences, size.tokens), size.tokens)
    row = sum(width + height for width, height in modules.values())
    free = card - CONTEXT_BYTES - weights - scales
    bought = plan_memory(settings, device, pages.page_bytes(torch.bfloat16), 2 * row, graphs, free=free)
    kv, adapters = bought.kv_pages * pages.page_bytes(torch.bfloat16), bought.adapter_rows * 2 * row
    return Plan(
        card=card,
        cuda=CONTEXT_BYTES,
        weights=weights,
        weights_16_bit=dense,
        scales=scales,
        graphs=graphs,
        adapters=adapters,
        adapters_of_rank_16=bought.adapter_rows // RANK,
        kv_cache=kv,
        kv_tokens=bought.kv_pages * KV_PAGE_TOKENS,
        left=free - kv - adapters - graphs,
        job=4 * 4 * RANK * row,
        kept_layer_inputs=IDLE_TOKENS * config.hidden_size * config.num_hidden_layers * 2,
    )


def table(shape: str, found: Plan) -> Table:
    """The plan for people."""
    rows = (
        ("CUDA itself", found.cuda, "assumed"),
        ("weights in NF4", found.weights, f"{found.weights_16_bit / 1e9:.1f} GB in 16 bits"),
        ("their scales in float32", found.scales, "worked out once, for speed"),
        ("CUDA graphs", found.graphs, "at most"),
        ("adapters", found.adapters, f"{found.adapters_of_rank_16} of rank {RANK}"),
        ("keys and values", found.kv_cache, f"{found.kv_tokens:,} tokens"),
        ("left for activations and training", found.left, ""),
        ("  of that a job", found.job, f"rank {RANK}: weights, gradients, moments"),
        ("  of that its kept layer inputs", found.kept_layer_inputs, "512 tokens, gradient checkpointing"),
        ("card", found.card, ""),
    )
    made = Table(title=f"A base of the shape {shape} on one card", title_justify="left")
    made.add_column("")
    made.add_column("GB", justify="right")
    made.add_column("")
    for name, count, note in rows:
        made.add_row(name, f"{count / 1e9:.2f}", note)
    return made


def convert(shape: str, folder: Path, tokenizer: Path) -> dict[str, Any]:
    """Convert random weights in a process of its own; the most memory that it took, and its time."""
    source, state = folder / "source", folder / "state"
    size = write_16_bit(shape, source, tokenizer)
    parent, child = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_convert, args=(source, state, child))
    started = time.monotonic()
    process.start()
    child.close()
    try:
        peak, copy = cast("tuple[int, str]", parent.recv())
    except EOFError:
        raise SystemExit("the conversion failed") from None
    process.join()
    shutil.rmtree(source)
    return {"source_bytes": size, "peak_bytes": peak, "seconds": time.monotonic() - started, "folder": copy}


def _convert(source: Path, state: Path, answer: Any) -> None:
    import os

    from loramux_server.model.base.quantize import prepare_base

    copy = prepare_base(str(source), state)
    answer.send((peak_bytes([os.getpid()]), str(copy)))


async def serve(base: Path, log: Path, device: str) -> dict[str, Any]:
    """Answer and train on the base; memory by kind before, while and after."""
    rows = [{"prompt": f"Item {i}?", "completion": f" It is number {i}, and no other."} for i in range(8)]
    with log.open("wb") as output:
        started = time.monotonic()
        async with servers({"only": ("--model", str(base), "--device", device)}, output) as clients:
            client, ready = clients["only"], time.monotonic() - started
            idle = await client.info()
            first = time.monotonic()
            asked: dict[str, Any] = {"prompt": "The number of items is", "max_tokens": 8, "ignore_eos": True}
            answer = await client.generate(**asked)
            answered = time.monotonic() - first
            job = await client.train("large", rows, max_steps=STEPS, batch_size=2, rank=RANK, gate="none")
            most: dict[str, int] = {}
            async for event in job.events():
                seen = (await client.info()).memory_bytes
                most = {kind: max(count, most.get(kind, 0)) for kind, count in seen.items()}
                del event
            trained = await client.generate(**asked, adapters=["large"])
            return {
                "ready_seconds": ready,
                "answer_seconds": answered,
                "tokens": [answer.usage.completion_tokens, trained.usage.completion_tokens],
                "memory_idle": idle.memory_bytes,
                "memory_most_in_training": most,
                "weight_bytes": idle.weight_bytes,
                "limits": idle.limits,
            }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_base", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), default="70b", help="of the random base (default: 70b)")
    add("--card", type=float, default=CARD_BYTES / 1e9, metavar="GB", help="of the table (default: an H100's 80 GB)")
    add("--convert", action="store_true", help="write random 16-bit weights, convert them and serve the copy")
    add("--serve", action="store_true", help="serve and train on random NF4 weights (the default where there is a GPU)")
    add("--material", type=Path, default=ROOT / "build" / "bench", help="where bases are written, and removed again")
    add("--json", type=Path, metavar="FILE", help="(default: a new one in results)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    machine = describe()
    console.print(sentence(machine), highlight=False, soft_wrap=True)
    found = plan(options.shape, int(options.card * 1e9))
    console.print(table(options.shape, found))
    report: dict[str, Any] = {"machine": machine, "shape": options.shape, "predicted": PREDICTED, "plan": asdict(found)}
    path = options.json or RESULTS / f"large-{options.shape}-{time.strftime('%Y%m%d-%H%M%S')}.json"

    def write() -> None:
        path.write_text(json.dumps(report, indent=2) + "\n")

    write()
    on_gpu = bool(machine["gpus"])
    if options.convert or options.serve or on_gpu:
        options.material.mkdir(parents=True, exist_ok=True)
        log = options.material / "large.log"
        tokenizer = Path(prepare("default", options.material, 2, log).folder)
        folder = options.material / f"large-{options.shape}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            if options.convert:
                report["conversion"] = made = convert(options.shape, folder, tokenizer)
                base = Path(made.pop("folder"))
                console.print(f"converted {made['source_bytes'] / 1e9:.1f} GB with {made['peak_bytes'] / 1e9:.2f} GB")
                write()
            else:
                base = folder / "nf4"
                write_nf4(options.shape, base, tokenizer)
            report["server"] = asyncio.run(serve(base, log, "cuda" if on_gpu else "cpu"))
            console.print_json(data=report["server"])
            write()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    console.print(f"written: {path}")
    peak = report.get("conversion", {}).get("peak_bytes", 0)
    if peak > MOST_CONVERSION_BYTES:
        raise SystemExit(f"the conversion took {peak / 2**30:.1f} GiB, more than {MOST_CONVERSION_BYTES >> 30}")


if __name__ == "__main__":
    main()
