"""NF4 with double quantisation: bitsandbytes' format and values, the same whichever device does the work.

bitsandbytes' own CUDA kernels take approximate reciprocals, and the mean of the blocks' largest values depends on the
order in which it is summed: on the device, and for large weights on the number of threads. Here everything that rounds
is one IEEE operation in float32, and what is summed is summed on the host in a fixed order.
"""

from __future__ import annotations

import math

import torch
from bitsandbytes.functional import QuantState, get_4bit_type, quantize_blockwise
from bitsandbytes.nn import Params4bit
from torch import Tensor

from .source import BLOCK

ROWS_OF_BLOCKS = 1 << 18
"""Blocks that are quantised at a time: 64 MiB of float32 at 64 values each."""
SUMMED_AT_ONCE = 32_767
"""Values that torch sums on one thread, whatever the number of threads."""
NESTED_BLOCK = 256
BYTES = 0.5 + 1 / BLOCK + 4 / (BLOCK * NESTED_BLOCK)
"""Of a weight, with its share of the scales of blocks."""


def quantise(weight: Tensor, block: int, device: torch.device) -> Params4bit:
    """``weight`` [out, in] as NF4 on the host, computed on ``device``; ``block`` divides its number of values."""
    packed, largest = [], []
    for blocks in weight.reshape(-1, block).split(ROWS_OF_BLOCKS):
        codes, absmax = _quantise_blocks(blocks.to(device=device).float())
        packed.append(codes.cpu())
        largest.append(absmax.cpu())
    absmax = torch.cat(largest)
    offset = _mean(absmax)
    nested, nested_state = quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
    state = QuantState(
        absmax=nested,
        shape=weight.shape,
        dtype=torch.float32,
        blocksize=block,
        code=get_4bit_type("nf4", device="cpu"),
        quant_type="nf4",
        offset=offset,
        state2=nested_state,
    )
    return Params4bit(
        torch.cat(packed)[:, None],
        requires_grad=False,
        quant_state=state,
        blocksize=block,
        quant_type="nf4",
        bnb_quantized=True,
    )


def _quantise_blocks(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Two codes a byte [blocks * block / 2], and the largest absolute value of each block [blocks]."""
    code = get_4bit_type("nf4", device=blocks.device)
    bounds = (code[:-1] + code[1:]) / 2
    absmax = blocks.abs().amax(dim=-1)
    scaled = (blocks * absmax.clamp(min=1e-38).reciprocal()[:, None]).clamp_(-1, 1)
    codes = torch.bucketize(scaled.flatten(), bounds, out_int32=True).to(torch.uint8)
    return (codes[::2] << 4) | codes[1::2], absmax


def _mean(values: Tensor) -> Tensor:
    """The mean of values on the host, as one float32: that of torch where it sums on one thread."""
    total = math.fsum(float(part.sum()) for part in values.split(SUMMED_AT_ONCE))
    return torch.tensor(total / len(values), dtype=torch.float32)
