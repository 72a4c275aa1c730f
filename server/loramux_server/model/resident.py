"""The resident base: one model in memory, its linears routed, shared by serving and training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..core.settings import EngineSettings
from ..lora.context import Attention, StepContext
from ..lora.linear import install
from ..lora.routing import Routing
from .attention import NAME, attach
from .kv import KVShape
from .linear import make_linear
from .host import host_available
from .load import LoadedBase, linear_modules, load_base, resolve_device, resolve_dtype

Progress = Callable[[str, float | None], None]


class ResidentBase:
    """A loaded NF4 base with routed linears. It belongs to one thread; nothing in it is ever trained or copied."""

    def __init__(self, base: LoadedBase, packed: bool) -> None:
        self.model, self.name, self.fingerprint, self.folder = base.model, base.name, base.fingerprint, base.folder
        self.device, self.dtype, self.packed = torch.device(base.device), base.dtype, packed
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
        if isinstance(head, nn.Linear):
            self.model.set_output_embeddings(_Head(head))
        self.nbytes = sum(g.base.nbytes for g in self.groups) + sum(
            t.nbytes for t in {t.data_ptr(): t for t in [*self.model.parameters(), *self.model.buffers()]}.values()
        )

    @classmethod
    def load(cls, settings: EngineSettings, folder: Path) -> ResidentBase:
        """Load the NF4 folder. With ``cpu_weights="auto"`` unpack if that takes under half of the free memory."""
        device = resolve_device(settings.device)
        dtype = resolve_dtype(settings.dtype, device)
        base = load_base(folder, device, dtype, attn_implementation=NAME)
        packed = settings.cpu_weights == "packed"
        if settings.cpu_weights == "auto":
            unpacked = sum(i * o for i, o in linear_modules(base.model).values()) * dtype.itemsize
            packed = unpacked > host_available() // 2
        return cls(base, packed)

    def forward(
        self,
        positions: Tensor,  # [T]
        attention: Attention,
        routing: Routing | None,
        wanted: Tensor,  # [n] rows whose logits are wanted
        *,
        ids: Tensor | None = None,  # [T]
        embeddings: Tensor | None = None,  # [T, hidden], instead of ids
    ) -> Tensor:
        """Logits [n, vocabulary] of packed tokens. ``context`` stays set until the next call: a backward needs it."""
        self.context.attention, self.context.routing = attention, routing
        out = self.model(
            input_ids=None if ids is None else ids[None],
            inputs_embeds=None if embeddings is None else embeddings[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=wanted,
        )
        return out.logits[0]  # type: ignore[no-any-return]

    def release(self) -> None:
        """Let go of the last step's attention and routing, and of what they hold."""
        self.context.attention = self.context.routing = None

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [T, hidden] in the base's dtype."""
        return self.model.get_input_embeddings()(ids)  # type: ignore[no-any-return]

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        count = int(self.model.config.num_hidden_layers)  # type: ignore[arg-type]
        for module in self.model.base_model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count and hasattr(module[0], "forward"):
                return module
        raise RuntimeError("the model has no list of decoder layers")

    @property
    def kv_shape(self) -> KVShape:
        """Shape of the KV cache that the model needs, read off its configuration."""
        config = self.model.config
        heads = int(config.num_attention_heads)  # type: ignore[arg-type]
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)  # type: ignore[operator]
        return KVShape(int(config.num_hidden_layers), kv_heads, head_dim)  # type: ignore[arg-type]


class _Head(nn.Module):
    """The output projection: takes activations of any float type, gives float32 logits."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.to(self.weight.dtype), self.weight, self.bias).float()
