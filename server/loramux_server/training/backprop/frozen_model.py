"""The part of a job's model that does not train: the base, the frozen stacks, and their activations kept for reuse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.jobs import TrainRow
from ...lora.bank import AdapterBank
from ...lora.buffers import on_device
from ...lora.slots import Entries
from ...model.resident import ResidentBase
from ..work import SETTLE, Interruptible
from .layerwise import ActivationPolicy, LayerwisePass


class FrozenModel:
    """The resident base with a job's frozen adapter stacks.

    Nothing below ``policy.first_layer`` is adapted, so the input of that layer depends on a row's tokens alone. It is
    computed once a row and kept in the host's memory, up to ``cache_bytes``.
    """

    def __init__(
        self,
        base: ResidentBase,
        bank: AdapterBank,
        stacks: Sequence[Entries],
        policy: ActivationPolicy,
        cache_bytes: int,
    ) -> None:
        self.bank, self.stacks, self.policy = bank, stacks, policy
        self.base = base
        self._cache: dict[tuple[int, ...], Tensor] = {}  # token ids -> [tokens, hidden]
        self._cache_bytes = cache_bytes
        self.nbytes = 0
        """Bytes of the activations that are kept."""

    def first_layer_input(self, rows: Sequence[TrainRow]) -> Interruptible[Tensor]:
        """Input of the first adapted layer for packed rows, [T, hidden] in the training dtype.

        For layer 0 that is the embeddings.
        """
        ids = [row.input_ids for row in rows]
        missing = list(dict.fromkeys(key for key in ids if key not in self._cache))
        computed = dict(zip(missing, (yield from self._compute(missing)), strict=True)) if missing else {}
        device = self.base.device
        packed = torch.cat([self._cache[key].to(device) if key in self._cache else computed[key] for key in ids])
        for key, hidden in computed.items():
            if self.policy.first_layer and self.nbytes + hidden.nbytes <= self._cache_bytes:
                self._cache[key] = hidden.to("cpu", copy=True)  # a view would keep the whole of it in memory
                self.nbytes += hidden.nbytes
        return packed

    def _compute(self, ids: Sequence[tuple[int, ...]]) -> Interruptible[Sequence[Tensor]]:
        lengths = [len(key) for key in ids]
        tokens = on_device([token for key in ids for token in key], self.base.device, torch.long)
        with torch.no_grad():
            hidden = self.base.embed(tokens).to(self.base.training_dtype)
        if self.policy.first_layer:
            lower = LayerwisePass(self.base, lengths, None, hidden)
            hidden = (yield from lower.forward(lower.input, 0, self.policy.first_layer))[0]
            yield SETTLE  # it is copied to the host
        return hidden.split(lengths)
