"""transformers' ``generate``, bare or with PEFT's adapters: batches with left padding on the same NF4 folder.

Requests that run at once are one batch. PEFT takes one adapter per row (``adapter_names``); it has no stacks per row,
so requests of one stack make a batch, with its adapters active and scaled, and the stacks run one after another.
A request's time counts from when its batch's turn in the queue began, as if all had come then.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..job import Job
from ..samples import Sample, Stopwatch
from ..workloads import Ask, Cell, Stack

PLAIN = "__base__"
"""PEFT's name for no adapter."""


class Clock:
    """A streamer: told of every token of every row, the prompt first."""

    def __init__(self, watches: Sequence[Stopwatch]) -> None:
        self._watches = watches
        self._prompt = True

    def put(self, value: Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        for watch, token in zip(self._watches, value.tolist(), strict=True):
            watch.tokens((token,))

    def end(self) -> None: ...


class GenerateSystem:
    """A model in this process."""

    def __init__(self, job: Job) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(job.threads)
        dtype = getattr(torch, job.dtype)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(
            job.base.folder, padding_side="left", local_files_only=True
        )
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            job.base.folder, dtype=dtype, device_map=job.device, local_files_only=True
        )
        settle(self._model, dtype)
        self._peft = job.system == "peft"
        if self._peft:
            self._add_adapters(job.base.adapters)
        self._model.eval()
        self.facts = {"dtype": job.dtype, "attention": str(self._model.config._attn_implementation)}

    def refuses(self, cell: Cell) -> str:
        return "" if self._peft or cell.kind == "base" else "no adapters"

    def pids(self) -> list[int]:
        return [os.getpid()]

    async def run(self, asks: Sequence[Ask], concurrency: int) -> tuple[list[Sample], float]:
        begin = time.perf_counter()
        samples: dict[int, Sample] = {}
        for start in range(0, len(asks), concurrency):
            rows = list(range(start, min(start + concurrency, len(asks))))
            watches = {i: Stopwatch() for i in rows}
            for part in self._batches(asks, rows):
                counts = self._generate([asks[i] for i in part], [watches[i] for i in part])
                samples |= {i: watches[i].sample(n) for i, n in zip(part, counts, strict=True)}
        seconds = time.perf_counter() - begin
        self.facts["4-bit linears"] = _kernel(self._model)
        return [samples[i] for i in range(len(asks))], seconds

    def _batches(self, asks: Sequence[Ask], rows: Sequence[int]) -> list[list[int]]:
        if all(len(asks[i].stack) <= 1 for i in rows):
            return [list(rows)]
        groups: dict[Stack, list[int]] = {}
        for i in rows:
            groups.setdefault(asks[i].stack, []).append(i)
        return list(groups.values())

    def _generate(self, asks: Sequence[Ask], watches: Sequence[Stopwatch]) -> list[int]:
        """Answer one batch; gives the prompts' lengths."""
        batch = self._tokenizer([ask.prompt for ask in asks], return_tensors="pt", padding=True).to(self._model.device)
        stacks = [ask.stack for ask in asks]
        options: dict[str, Any] = {}
        scope: Any = nullcontext()
        if self._peft:
            if not any(stacks):
                scope = self._model.disable_adapter()
            elif max(map(len, stacks)) == 1:
                options["adapter_names"] = [f"a{s[0][0]}" if s else PLAIN for s in stacks]
            else:
                self._activate(stacks[0])
        with scope, torch.inference_mode():
            self._model.generate(
                **batch,
                **options,
                max_new_tokens=asks[0].tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=self._tokenizer.pad_token_id,
                streamer=Clock(watches),
            )
        return [int(n) for n in batch["attention_mask"].sum(-1)]

    def _activate(self, stack: Stack) -> None:
        """All adapters of a stack at once, each with its own scaling times its weight."""
        names = [f"a{number}" for number, _ in stack]
        self._model.base_model.set_adapter(names, inference_mode=True)
        for layer in self._lora_layers:
            for name, (_, weight) in zip(names, stack, strict=True):
                layer.set_scale(name, weight)

    def _add_adapters(self, folders: Sequence[str]) -> None:
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer

        self._model = PeftModel.from_pretrained(self._model, folders[0], adapter_name="a0")
        for number, folder in enumerate(folders[1:], 1):
            self._model.load_adapter(folder, adapter_name=f"a{number}")
        # PEFT keeps adapters in float32 unless told otherwise; the base's type is quicker here, so that it is given.
        for name, parameter in self._model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(self._model.dtype)
        self._lora_layers = [m for m in self._model.modules() if isinstance(m, LoraLayer)]


@asynccontextmanager
async def open_generate(job: Job) -> AsyncIterator[GenerateSystem]:
    """Load the model, and all adapters for PEFT."""
    yield GenerateSystem(job)


def settle(model: Any, dtype: torch.dtype) -> None:
    """Bring everything to the asked precision; which kernel multiplies stays bitsandbytes' own choice.

    transformers leaves what is not 4-bit in the file's type, and the file names one for the products.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parameter in model.parameters():
        if not isinstance(parameter, Params4bit) and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype, module.compute_type_is_set = dtype, True


def _kernel(model: Any) -> str:
    """What bitsandbytes multiplied with, as seen after a forward."""
    from bitsandbytes.nn import Linear4bit

    version = importlib.metadata.version("bitsandbytes")
    if model.device.type != "cpu":
        return f"bitsandbytes {version}"
    packed = {
        bool(getattr(m.weight.quant_state, "packing_format_for_cpu", False))
        for m in model.modules()
        if isinstance(m, Linear4bit)
    }
    if not packed:
        return "none"
    kernel = (
        "AVX512-BF16 kernel on repacked weights (bfloat16 products)" if all(packed) else "dequantise, then multiply"
    )
    return f"bitsandbytes {version}, {kernel}"
