"""What the right answer is: plain transformers and PEFT on the same NF4 weights, one sequence at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

StackSpec = Sequence[tuple[Path, float]]
"""Adapters in PEFT's format and the weights of their deltas."""


def load_plain(folder: Path, dtype: torch.dtype, attn_implementation: str = "eager") -> PreTrainedModel:
    """The NF4 folder as transformers loads it on the CPU, wherever the server computes, with nothing of the server's.

    ``eager`` is transformers' reference attention: the only one that knows soft-capping.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attn_implementation, local_files_only=True, device_map="cpu"
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # Else bitsandbytes repacks the weights at the first forward on AVX512-BF16 and computes in bfloat16.
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = dtype, True
    for parameter in model.parameters():
        # transformers leaves what it didn't quantise in the file's type, whatever `dtype` says.
        if not isinstance(parameter, Params4bit) and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model.eval()


class Oracle:
    """Reference logits and greedy text of a base under any stack of PEFT adapters.

    A stack is the sum of deltas: all its adapters active at once, each with its own scaling times its weight. PEFT's
    ``add_weighted_adapter(combination_type="linear")`` is something else (it adds A's and B's apart).
    """

    def __init__(self, base: Path, dtype: torch.dtype = torch.float32, attn_implementation: str = "eager") -> None:
        self.base = base
        self.plain = load_plain(base, dtype, attn_implementation)
        self._peft: Any = None
        self._names: dict[tuple[str, int], str] = {}

    def logits(self, input_ids: Sequence[int], stack: StackSpec = ()) -> Tensor:
        """[len(input_ids), vocab] in float32: row i predicts token i + 1."""
        with self._stacked(stack) as model, torch.no_grad():
            out: Tensor = model(input_ids=torch.tensor([list(input_ids)]), use_cache=False).logits[0]
        return out.float()

    def states(self, input_ids: Sequence[int], stack: StackSpec = ()) -> Tensor:
        """[len(input_ids), hidden] in float32: the hidden states after the final norm."""
        with self._stacked(stack), torch.no_grad():  # PEFT's layers are inside the plain model
            out: Tensor = self.plain.base_model(input_ids=torch.tensor([list(input_ids)]), use_cache=False)[0][0]
        return out.float()

    def greedy(
        self, input_ids: Sequence[int], max_new: int, stack: StackSpec = (), eos: int | Sequence[int] | None = None
    ) -> list[int]:
        """The most likely continuation, token by token, up to and including the first of ``eos``."""
        return [token for token, _ in self._decode(input_ids, max_new, stack, eos)]

    def greedy_gaps(
        self, input_ids: Sequence[int], max_new: int, stack: StackSpec = (), eos: int | Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        """As :meth:`greedy`, with the distance between the two best logits: a tie excuses another choice."""
        return list(self._decode(input_ids, max_new, stack, eos))

    def gaps_along(
        self, input_ids: Sequence[int], tokens: Sequence[int], stack: StackSpec = ()
    ) -> list[tuple[int, float]]:
        """As :meth:`greedy_gaps`, in one pass: the best token after each of ``tokens`` that came before it."""
        logits = self.logits([*input_ids, *tokens], stack)[len(input_ids) - 1 : -1]
        best = logits.topk(2)
        gaps = (best.values[:, 0] - best.values[:, 1]).tolist()
        return list(zip(best.indices[:, 0].tolist(), gaps, strict=True))

    def _decode(
        self, input_ids: Sequence[int], max_new: int, stack: StackSpec, eos: int | Sequence[int] | None
    ) -> Iterator[tuple[int, float]]:
        ends = set() if eos is None else {eos} if isinstance(eos, int) else set(eos)
        ids, past = torch.tensor([list(input_ids)]), None
        with self._stacked(stack) as model, torch.no_grad():
            for _ in range(max_new):
                out = model(input_ids=ids, past_key_values=past, use_cache=True)
                past = out.past_key_values
                best = out.logits[0, -1].float().topk(2)
                token = int(best.indices[0])
                yield token, float(best.values[0] - best.values[1])
                if token in ends:
                    return
                ids = torch.tensor([[token]])

    def _stacked(self, stack: StackSpec) -> Any:
        """Context in which the model acts under ``stack``; gives the model."""
        if not stack:
            # Never wrapped: the plain model. Wrapped once: PEFT's own switch.
            return self._bare() if self._peft is not None else nullcontext(self.plain)
        names = [self._load(Path(folder)) for folder, _ in stack]
        if len(set(names)) != len(names):
            raise ValueError("an adapter appears twice in the stack")
        self._peft.base_model.set_adapter(names, inference_mode=True)
        for name, (_, weight) in zip(names, stack, strict=True):
            for layer in self._layers():
                layer.set_scale(name, weight)  # its own scaling times the weight, whatever was set before
        return nullcontext(self._peft)

    def _bare(self) -> Any:
        @contextmanager
        def bare() -> Iterator[Any]:
            with self._peft.disable_adapter():
                yield self._peft

        return bare()

    def _layers(self) -> Iterator[Any]:
        from peft.tuners.lora import LoraLayer

        return (m for m in self._peft.modules() if isinstance(m, LoraLayer))

    def _load(self, folder: Path) -> str:
        key = (str(folder.resolve()), (folder / "adapter_model.safetensors").stat().st_mtime_ns)
        if key in self._names:
            return self._names[key]
        from peft import PeftModel

        name = f"adapter{len(self._names)}"
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self.plain, str(folder), adapter_name=name)
            self._peft.eval()
        else:
            self._peft.load_adapter(str(folder), adapter_name=name)
        self._names[key] = name
        return name
