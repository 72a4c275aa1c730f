"""llama.cpp's ``llama-server``: ``--llama-server PATH`` starts one, ``--llama-server URL`` asks one that runs.

It reads the base as the GGUF file that ours was made from (so it keeps that file's own 4 bits) and adapters as GGUF,
made here. One that runs already must hold the same adapters in the same order, started with
``--lora-init-without-apply``. It batches only requests whose adapters and scales are equal.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..job import Job
from ..processes import tree
from ..samples import Sample, Stopwatch
from ..workloads import Ask, Cell, closed_loop
from .children import ended, free_port, start, wait_until
from .http import Events

SLOTS = 64
CONTEXT = 512
"""Tokens for each slot."""
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class LlamaSystem:
    """A server and a client of it."""

    def __init__(self, events: Events, tokenizer: Tokenizer, adapters: int, pid: int | None) -> None:
        self.facts = {"weights": "the GGUF file's own", "batches": "only requests with equal adapters"}
        self._events, self._tokenizer, self._adapters, self._pid = events, tokenizer, adapters, pid

    def refuses(self, cell: Cell) -> str:
        return ""

    def pids(self) -> list[int]:
        return [] if self._pid is None else tree(self._pid)

    async def run(self, asks: Sequence[Ask], concurrency: int) -> tuple[list[Sample], float]:
        return await closed_loop(asks, concurrency, self._one)

    async def _one(self, ask: Ask) -> Sample:
        watch = Stopwatch()
        ids = self._tokenizer.encode(ask.prompt).ids
        weights = dict(ask.stack)
        body = {
            "prompt": ids,
            "n_predict": ask.tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "cache_prompt": False,
            "return_tokens": True,
            "lora": [{"id": i, "scale": weights.get(i, 0.0)} for i in range(self._adapters)],
        }
        async for event in self._events.stream("/completion", body):
            watch.tokens(event.get("tokens") or ())
        return watch.sample(len(ids))


@asynccontextmanager
async def open_llama(job: Job) -> AsyncIterator[LlamaSystem]:
    """Convert the adapters and start the server, or find the one at the URL."""
    tokenizer = Tokenizer.from_file(str(Path(job.base.folder) / "tokenizer.json"))
    async with AsyncExitStack() as stack:
        pid, url = None, job.target
        server = None
        if not job.target.startswith(("http://", "https://")):
            if not job.base.gguf:
                raise RuntimeError(f"{job.base.name} is not to be had as a GGUF file")
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            server = start(_command(job, port), {})
            stack.callback(ended, server)
            pid = server.pid
        events = Events(url)
        stack.push_async_callback(events.close)
        await wait_until(lambda: events.answers("/health"), server)
        yield LlamaSystem(events, tokenizer, len(job.base.adapters), pid)


def _command(job: Job, port: int) -> list[str]:
    threads = str(job.threads)
    command = [job.target, "--model", job.base.gguf, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--threads", threads, "--threads-batch", threads, "--parallel", str(SLOTS)]
    command += ["--ctx-size", str(SLOTS * CONTEXT), "--lora-init-without-apply"]
    for folder in job.base.adapters:
        file = Path(job.scratch) / f"{Path(folder).name}.gguf"
        write_gguf_adapter(Path(folder), Path(job.base.folder), file)
        command += ["--lora", str(file)]
    return command


def write_gguf_adapter(folder: Path, base: Path, file: Path) -> None:
    """Write a PEFT folder for a Llama-like base as llama.cpp reads adapters. Raises KeyError for other modules."""
    import gguf
    from safetensors.torch import load_file

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    writer: Any = gguf.GGUFWriter(file, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    alpha = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["lora_alpha"]
    writer.add_float32("adapter.lora.alpha", float(alpha))
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        # base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight
        parts = key.split(".layers.")[1].split(".")
        layer, module, leaf, half = parts[0], ".".join(parts[1:3]), parts[2], parts[3]
        values = tensor.float().numpy()
        if half == "lora_B" and leaf in heads:
            values = interleave(values, heads[leaf])
        writer.add_tensor(f"blk.{layer}.{NAMES[module]}.weight.{half.lower()}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave(rows: Any, heads: int) -> Any:
    """Rows of each head from transformers' order for rotary embeddings (halves) to llama.cpp's (pairs)."""
    width = rows.shape[0] // heads
    return rows.reshape(heads, 2, width // 2, -1).swapaxes(1, 2).reshape(rows.shape)
