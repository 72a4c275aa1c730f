"""The kernels as one operator of torch, and whether they may be used on a device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from ..slots import RowSegment, Slot
from .plan import RANKS, SHORT, TALL, make_plan

log = logging.getLogger(__name__)

PROGRAMS = 4
"""Programs for each multiprocessor: as many blocks of 4 warps as hide each other's waits for memory."""
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of the trial, as a share of the largest value: sums have another order, and 16-bit results one rounding less."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """What a kernel is compiled for."""

    splits: int
    """Parts of the inner dimension at most: every column tile reads them all."""
    block: int
    """Of the inner dimension."""
    columns: int
    warps: int
    stages: int


TILINGS = {SHORT: Tiling(8, 128, 64, 4, 4), TALL: Tiling(2, 64, 128, 4, 3)}
"""By rows of an item."""


def programs_of(device: torch.device) -> int:
    """How many programs a kernel is launched with."""
    return PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 5


def planes_size(tiles: int, members: int, height: int, programs: int) -> int:
    """Floats that partial sums take, see :func:`add_indexed`."""
    return max(tiles * members, programs) * height * RANKS


@torch.library.custom_op("loramux::add_indexed", mutates_args=("y", "planes"))
def add_indexed(
    y: Tensor, planes: Tensor, x: Tensor, a: Tensor, b: Tensor, plan: Tensor, widths: Sequence[int], height: int
) -> None:
    """Add to y [T, sum of widths] what ``plan`` routes of x [T, in] through A [r, members, in] and B.

    ``b`` holds the members' B [r, width], flat and one after another. ``planes``: float32, of :func:`planes_size` at
    least; its content is of no use afterwards. ``plan``: see :mod:`.plan`, in items of up to ``height`` rows.
    """
    kernels, tiling = _kernels(), TILINGS[height]
    bank_rows, members, width = a.shape
    programs = programs_of(x.device)
    options = {"num_warps": tiling.warps, "num_stages": tiling.stages}
    if x.stride(1) != 1:
        x = x.contiguous()
    n0, n1, n2 = [*widths, 0, 0][:3]
    kernels.shrink[(programs,)](
        x, a, planes, plan, x.stride(0), width, members, programs, height, tiling.splits, tiling.block, **options
    )
    kernels.expand[(programs,)](
        *(y, b, planes, plan, y.stride(0), width, bank_rows, n0, n1, n2, members, programs),
        *(height, tiling.splits, tiling.block, tiling.columns),
        **options,
    )


@add_indexed.register_fake
def _(y: Tensor, planes: Tensor, x: Tensor, a: Tensor, b: Tensor, plan: Tensor, widths: list[int], height: int) -> None:
    return None


@cache
def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels give here what torch gives, tried once; a line is logged where they do not."""
    try:
        for height in TILINGS:
            _try_one(device, dtype, height)
    except Exception as error:  # whatever a compiler, a driver or a version of Triton may raise
        if isinstance(error, torch.OutOfMemoryError):
            raise
        log.warning("adapters run by torch's products, because the kernels by index cannot be used here: %s", error)
        return False
    return True


def _kernels() -> ModuleType:
    from . import kernels  # needs Triton, which torch brings where it has CUDA

    return kernels


def _try_one(device: torch.device, dtype: torch.dtype, height: int) -> None:
    """Raise RuntimeError where a small step of every kind of row differs from torch's products."""
    draw = torch.Generator().manual_seed(0)
    rows, width, widths = 48, 320, (192, 96, 64)
    slots = [Slot("a", 0, 8, 2.0), Slot("b", 8, 40, 0.5), Slot("broken", 40, 44)]
    segments = [RowSegment(1, ((slots[0], 1.0), (slots[1], -0.5))), RowSegment(1, ((slots[2], 1.0),)), RowSegment(2)]
    segments += [RowSegment(5, ((slots[1], 1.0),)), RowSegment(height + 9, ((slots[0], 0.5),))]
    length = sum(s.length for s in segments)
    x, a, y, *bs = (
        torch.randn(shape, generator=draw).to(device, dtype)
        for shape in ((length, width), (rows, 3, width), (length, sum(widths)), *((rows, n) for n in widths))
    )
    a[40:44] = torch.inf
    wanted = y.float()
    row = 0
    for segment in segments:
        part = slice(row, row := row + segment.length)
        for slot, weight in segment.entries:
            shrunk = [x[part].float() @ a[slot.lo : slot.hi, j].float().T for j in range(3)]
            adds = [h @ b[slot.lo : slot.hi].float() for h, b in zip(shrunk, bs, strict=True)]
            wanted[part] += weight * slot.scaling * torch.cat(adds, 1)
    plan = make_plan(segments, height)
    planes = torch.empty(planes_size(int(plan[1]), 3, height, programs_of(device)), device=device)
    b = torch.cat([b.flatten() for b in bs])
    add_indexed(y, planes, x, a, b, torch.from_numpy(plan).to(device), widths, height)
    sound = torch.arange(length) != 1  # the row of the broken adapter
    got, wanted = y.float().cpu(), wanted.cpu()
    difference = float((got[sound] - wanted[sound]).abs().max() / wanted[sound].abs().max())
    if not difference <= TOLERANCE[dtype]:
        raise RuntimeError(f"results differ by {difference:.1e} of the largest, and {TOLERANCE[dtype]:.0e} is allowed")
