"""Adapters of a base of seven billion parameters: bytes and least times, by calculation. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from .roofline import NF4_BYTES, Shape

HIDDEN, INNER, KV, LAYERS, VOCAB = 4096, 14336, 1024, 32, 32000
LAYER: tuple[dict[str, tuple[int, int]], ...] = (
    {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, KV), "self_attn.v_proj": (HIDDEN, KV)},
    {"self_attn.o_proj": (HIDDEN, HIDDEN)},
    {"mlp.gate_proj": (HIDDEN, INNER), "mlp.up_proj": (HIDDEN, INNER)},
    {"mlp.down_proj": (INNER, HIDDEN)},
)
"""Linears of a layer of Mistral 7B, name -> (in, out); those of one dictionary share their input."""
SHAPE = Shape(
    linears=tuple(size for group in LAYER for size in group.values()) * LAYERS,
    hidden=HIDDEN,
    vocab=VOCAB,
    layers=LAYERS,
    query_width=HIDDEN,
    kv_width=KV,
)
RANK = 16
CARD_BYTES = 24e9
FORMULA = """\
An adapter of rank r on all linears (in, out), in 16 bits:  bytes = 2 * r * sum(in + out)
From disk to the host: bytes / disk. From the host to the device: 2 * bytes / memory on a CPU (read and written once).
NF4 base: 0.516 * sum(in * out) + 2 * 2 * vocabulary * hidden. Adapters on a card: (card - base) / bytes, without room
for keys and values."""


@dataclass(frozen=True, slots=True)
class Computed:
    """What the formula gives. Bytes and seconds."""

    adapter_bytes: int
    base_bytes: float
    disk_seconds: float
    memory_seconds: float
    adapters_on_card: int


def compute(disk: float, memory: float, shape: Shape = SHAPE, rank: int = RANK, card: float = CARD_BYTES) -> Computed:
    """``disk`` and ``memory`` are bytes per second."""
    adapter = 2 * shape.adapter_weights(rank)
    base = NF4_BYTES * shape.linear_weights + 2 * 2 * shape.head_weights
    return Computed(adapter, base, adapter / disk, 2 * adapter / memory, int((card - base) // adapter))
