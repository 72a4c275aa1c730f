"""The time that a workload must take on a machine, whoever computes it: bytes over bandwidth, operations over rate."""

from __future__ import annotations

from dataclasses import dataclass

FORMULA = """\
Roofline of a decode step with B rows, context c, D different adapters of rank r among them, k in each row's stack:
  bytes      = w * (W + D * L) + w * B * c * KV
  operations = 2 * B * (W + k * L) + 4 * B * c * Q
  seconds    = max(bytes / bandwidth, operations / rate)
W: weights of all linears and the head; L = r * sum(in + out) over the linears; KV: keys and values of one token;
Q: query width over all layers; w: bytes of one weight (2 in 16 bits, 4 in float32; 0.52 for the linears' NF4 in the
column "packed"). A wave of B requests takes one prefill, max(bytes, 2 * tokens * (linears + k * L) + heads), and
T - 1 steps. Share = that over the measured time. Who reads 4-bit weights may exceed 100 % of the unpacked bound."""

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4: four bits, one byte of scale for 64, four more for 256 of those."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a base is made of, as far as time goes."""

    linears: tuple[tuple[int, int], ...]
    """(in, out) of every linear but the head."""
    hidden: int
    vocab: int
    layers: int
    query_width: int
    kv_width: int

    @property
    def linear_weights(self) -> int:
        return sum(i * o for i, o in self.linears)

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocab

    def adapter_weights(self, rank: int) -> int:
        return sum(rank * (i + o) for i, o in self.linears)


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine does: bytes read per second, operations per second in matrix products."""

    bandwidth: float
    operations: float

    def best(self, other: Rates) -> Rates:
        """The better of two trials in each: whatever disturbs a trial makes it slower."""
        return Rates(max(self.bandwidth, other.bandwidth), max(self.operations, other.operations))


@dataclass(frozen=True, slots=True)
class Load:
    """One workload, as far as time goes. Lengths in tokens, per request."""

    requests: int
    concurrency: int
    prompt_tokens: float
    new_tokens: int
    distinct: int
    """Different adapters among requests that run at once."""
    depth: int
    """Adapters in each stack."""
    rank: int


def step_seconds(
    shape: Shape, load: Load, rates: Rates, weight_bytes: float, linear_bytes: float | None = None
) -> float:
    """Least time of one decode step. ``linear_bytes`` per weight of the linears, if other than ``weight_bytes``."""
    rows, context = load.concurrency, load.prompt_tokens + load.new_tokens / 2
    adapter = shape.adapter_weights(load.rank)
    kv = 2 * shape.layers * shape.kv_width
    read = _weight_bytes(shape, load, weight_bytes, linear_bytes) + weight_bytes * rows * context * kv
    done = 2 * rows * (shape.linear_weights + shape.head_weights + load.depth * adapter)
    done += int(4 * rows * context * shape.layers * shape.query_width)
    return max(read / rates.bandwidth, done / rates.operations)


def least_seconds(
    shape: Shape, load: Load, rates: Rates, weight_bytes: float, linear_bytes: float | None = None
) -> float:
    """Least time of the whole workload: for each wave of concurrent requests one prefill and the steps after it."""
    rows, adapter = load.concurrency, shape.adapter_weights(load.rank)
    done = 2 * rows * load.prompt_tokens * (shape.linear_weights + load.depth * adapter)
    done += 2 * rows * shape.head_weights
    read = _weight_bytes(shape, load, weight_bytes, linear_bytes)
    prefill = max(read / rates.bandwidth, done / rates.operations)
    steps = (load.new_tokens - 1) * step_seconds(shape, load, rates, weight_bytes, linear_bytes)
    return load.requests / rows * (prefill + steps)


def _weight_bytes(shape: Shape, load: Load, weight_bytes: float, linear_bytes: float | None) -> float:
    linear = weight_bytes if linear_bytes is None else linear_bytes
    rest = shape.head_weights + load.distinct * shape.adapter_weights(load.rank)
    return linear * shape.linear_weights + weight_bytes * rest
