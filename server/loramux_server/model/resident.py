"""The resident base: one model in memory, its linears routed, shared by serving and training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.modeling_outputs import MoeModelOutputWithPast

from ..core.errors import Code, Error
from ..core.settings import EngineSettings
from ..cpu.prepack import prepack
from ..host.resources import host_available
from ..lora.context import Attention, StepContext
from ..lora.routed_linear import install
from ..lora.routing import Routing
from .attention import NAME, attach
from .base.load import (
    LoadedBase,
    linear_modules,
    load_base,
    resolve_device,
    resolve_dtype,
    resolve_training_dtype,
    weight_bytes,
)
from .base_linear import make_linear
from .fused_forward import make_fused
from .kv import KVShape
from .page_size import find_page_size
from .varlen import Kernel, find_kernel

Progress = Callable[[str, float | None], None]
UNPACKED_SHARE = {"cpu": 0.5, "cuda": 0.35}
"""Most of the free memory that unpacked weights may take unless the settings ask for them."""


class ResidentBase:
    """A loaded NF4 base with routed linears. It belongs to one thread; nothing in it is ever trained or copied."""

    def __init__(self, base: LoadedBase, packed: bool, training_dtype: torch.dtype = torch.float32) -> None:
        self.model, self.name, self.folder = base.model, base.name, base.folder
        self.revision, self.fingerprint = base.revision, base.fingerprint
        self.device, self.dtype, self.packed = torch.device(base.device), base.dtype, packed
        self.training_dtype = training_dtype
        """Type of activations and of their gradients in training; adapters and their gradients are float32 always."""
        self.weight_bytes, self.weight_bytes_16bit = weight_bytes(self.model)
        """Of the weights as they are stored, and without quantisation, whatever memory holds."""
        self.context = StepContext()
        attach(self.model, self.context)
        self.modules = linear_modules(self.model)
        """Every linear that an adapter may target: name -> (in, out)."""
        self.groups = install(
            self.model,
            list(self.modules),
            self.context,
            lambda members: make_linear(members, self.dtype, self.device, packed),
        )
        head = self.model.get_output_embeddings()
        extra = 0
        if isinstance(head, nn.Linear):
            wrapped = _Head(head)
            self.model.set_output_embeddings(wrapped)
            extra = wrapped.nbytes
        self.fused = make_fused(self.model, self.layers, self.groups, self.context)
        self.nbytes = (
            extra
            + sum(g.base.nbytes for g in self.groups)
            + sum(
                t.nbytes for t in {t.data_ptr(): t for t in [*self.model.parameters(), *self.model.buffers()]}.values()
            )
        )

    @classmethod
    def load(cls, settings: EngineSettings, folder: Path) -> ResidentBase:
        """Load the NF4 folder, and unpack its weights where the settings say so or the memory allows it."""
        device = resolve_device(settings.device)
        dtype = resolve_dtype(settings.dtype, device)
        base = load_base(folder, device, dtype, attn_implementation=NAME)
        unpacked = sum(i * o for i, o in linear_modules(base.model).values()) * dtype.itemsize
        training_dtype = resolve_training_dtype(settings.training_dtype, dtype, device)
        return cls(base, keeps_packed(settings, torch.device(device), unpacked), training_dtype)

    def forward(
        self,
        positions: Tensor,  # [T]
        attention: Attention,
        routing: Routing | None,
        wanted: Tensor,  # [n] rows whose logits are wanted
        *,
        ids: Tensor,  # [T]
    ) -> Tensor:
        """Logits [n, vocabulary] of packed tokens. ``context`` stays set until the next call."""
        self.context.attention, self.context.routing = attention, routing
        if self.fused is not None and not torch.is_grad_enabled():
            return self.fused.forward(ids, positions, attention, wanted)
        out = self.model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=wanted,
        )
        return out.logits[0]

    def states(
        self,
        positions: Tensor,  # [T]
        attention: Attention,
        routing: Routing | None,
        *,
        ids: Tensor,  # [T]
    ) -> Tensor:
        """Hidden states [T, hidden] of packed tokens after the final norm: :meth:`forward` without the head."""
        self.context.attention, self.context.routing = attention, routing
        if self.fused is not None and not torch.is_grad_enabled():
            return self.fused.states(ids, positions, attention)
        out = self.model.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        states: Tensor = out.last_hidden_state[0]
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocabulary] of final hidden states [n, hidden], by the model's own code.

        Architectures differ in what they do around the head (soft caps, scales), so their forward runs as it is, over
        a body that gives ``hidden``.
        """
        body = self.model.base_model
        done = MoeModelOutputWithPast(last_hidden_state=hidden[None])
        object.__setattr__(body, "forward", lambda *_, **__: done)
        try:
            logits: Tensor = self.model(inputs_embeds=hidden[None], use_cache=False).logits[0]
        finally:
            object.__delattr__(body, "forward")
        return logits

    def release(self) -> None:
        """Let go of the last step's attention and routing, and of what they hold."""
        self.context.attention = self.context.routing = None

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [T, hidden] in the base's dtype."""
        return self.model.get_input_embeddings()(ids)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        count = int(self.model.config.num_hidden_layers)
        for module in self.model.base_model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count and hasattr(module[0], "forward"):
                return module
        raise RuntimeError("the model has no list of decoder layers")

    @cached_property
    def probe(self) -> AttentionProbe:
        """What attention is given in a forward of one token: configurations name it in too many ways."""
        probe = AttentionProbe()
        start = torch.zeros(1, dtype=torch.long, device=self.device)
        with torch.no_grad():
            self.forward(start, probe, None, start, ids=start)
        self.release()
        return probe

    @cached_property
    def varlen_kernel(self) -> Kernel | None:
        """The kernel for training's attention, where this device has one for its types and heads."""
        probe = self.probe
        if self.device.type != "cuda" or self.training_dtype == torch.float32 or probe.softcapped:
            return None
        if len(probe.shapes) != 1:
            return None
        ((kv_heads, head_dim, _),) = probe.shapes
        return find_kernel(probe.heads, kv_heads, head_dim, self.device, self.training_dtype)

    @cached_property
    def kv_shape(self) -> KVShape:
        """Shape of the KV cache.

        Raises FAILED_PRECONDITION for a model whose layers differ or whose keys and values do.
        """
        probe = self.probe
        if len(probe.shapes) != 1 or probe.layers != set(range(len(probe.layers))):
            raise Error(
                Code.FAILED_PRECONDITION,
                f"{self.name}: attention layers of unlike shapes are not supported: {sorted(probe.shapes)}",
                reason="MODEL_NOT_SUPPORTED",
            )
        ((kv_heads, head_dim, value_dim),) = probe.shapes
        if head_dim != value_dim:
            raise Error(
                Code.FAILED_PRECONDITION,
                f"{self.name}: keys of {head_dim} and values of {value_dim} per head are not supported",
                reason="MODEL_NOT_SUPPORTED",
            )
        page_size = None
        if self.device.type == "cuda" and not probe.softcapped:  # which no kernel knows
            page_size = find_page_size(probe.heads, kv_heads, head_dim, self.device, self.dtype)
        if page_size is None:
            return KVShape(len(probe.layers), kv_heads, head_dim)
        return KVShape(len(probe.layers), kv_heads, head_dim, page_size, kernel=True)


def keeps_packed(settings: EngineSettings, device: torch.device, unpacked: int) -> bool:
    """Whether weights stay packed that would take ``unpacked`` bytes: what the settings say, or as memory allows."""
    on_host = device.type == "cpu"
    choice = settings.cpu_weights if on_host else settings.gpu_weights
    if choice != "auto":
        return choice == "packed"
    free = host_available() if on_host else torch.cuda.mem_get_info(device)[0]
    return unpacked > UNPACKED_SHARE[device.type] * free


class AttentionProbe:
    """Attention of a single token, which notes what passes through."""

    def __init__(self) -> None:
        self.shapes: set[tuple[int, int, int]] = set()
        self.layers: set[int] = set()
        self.heads = 0
        self.softcapped = False

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        self.layers.add(layer)
        self.softcapped |= softcap is not None
        self.heads = q.shape[1]
        self.shapes.add((k.shape[1], k.shape[2], v.shape[2]))
        return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


class _Head(nn.Module):
    """The output projection: takes activations of any float type, gives float32 logits."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self._prepacked = prepack(head.weight.data)
        self.nbytes = self._prepacked.nbytes if self._prepacked else 0
        """Beside the weight itself, which may be the embedding's."""

    def forward(self, x: Tensor) -> Tensor:
        cast = x.to(self.weight.dtype)
        rows = cast.reshape(-1, cast.shape[-1])
        if self._prepacked is not None and not torch.is_grad_enabled():
            return self._prepacked(rows, self.bias).view(*x.shape[:-1], -1).float()
        return linear(cast, self.weight, self.bias).float()
