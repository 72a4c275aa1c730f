"""The compiled form of the routed sum on a CPU (``routed.cpp``), called by pointers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .native import NAMES, build

SOURCE = Path(__file__).with_name("routed.cpp")
ENTRY = np.dtype([("lo", "i8"), ("rank", "i8"), ("scale", "f4"), ("unused", "i4")])
RUN = np.dtype([("start", "i8"), ("stop", "i8"), ("first", "i8"), ("last", "i8")])
CHUNK = 16
"""Rows of a run that one thread takes at a time: few enough to share a long run, and four readings of the weights."""


class Group(Protocol):
    """Linears over one input, as wide as these."""

    in_features: int
    out_features: tuple[int, ...]


class RoutedKernel:
    """The functions of the built library, by types of activations and of adapters."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._functions = {}
        for x, w in ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)):
            function = getattr(library, f"routed_{NAMES[x]}_{NAMES[w]}")
            function.argtypes = (
                *(pointer, number, pointer, number),  # x, y and their row strides
                *(pointer, pointer, pointer, number, number, number),  # the group
                *(pointer, pointer, number),  # entries and runs
            )
            function.restype = None
            self._functions[x, w] = function

    def takes(self, x: torch.dtype, weights: torch.dtype) -> bool:
        """Whether there is a function for activations and adapters of these types."""
        return (x, weights) in self._functions

    def add(self, group: GroupWeights, x: Tensor, y: Tensor, routes: Routes) -> None:
        """Add the routed sums of x [T, in] to y [T, sum of out] in place; both lie in rows without gaps inside."""
        if x.stride(1) != 1:
            x = x.contiguous()
        if y.stride(1) != 1 or y.dtype != x.dtype:
            raise ValueError("the output must be of the input's type, in rows without gaps")
        self._functions[x.dtype, group.dtype](
            *(x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0)), *group.arguments, *routes.arguments
        )


class GroupWeights:
    """Where a bank's adapters lie for one group: A [rows, members, in], and B [rows, out] of each member."""

    def __init__(self, group: Group, a: Tensor, bs: Sequence[Tensor]) -> None:
        self.dtype = a.dtype
        members = len(bs)
        self._keep = (a, *bs)
        self._b = (ctypes.c_void_p * members)(*(b.data_ptr() for b in bs))
        self._widths = (ctypes.c_int64 * members)(*group.out_features)
        self.arguments = (
            a.data_ptr(),
            ctypes.addressof(self._b),
            ctypes.addressof(self._widths),
            members,
            group.in_features,
            sum(group.out_features),
        )


class Routes:
    """Which rank rows act on which rows of a step."""

    def __init__(self, runs: Sequence[tuple[int, int, Sequence[tuple[int, int, float]]]]) -> None:
        """``runs`` are (first row, rows, [(first rank row, rank, scale), ...])."""
        entries: list[tuple[int, int, float, int]] = []
        pieces: list[tuple[int, int, int, int]] = []
        for start, length, routed in runs:
            first = len(entries)
            entries += [(lo, rank, scale, 0) for lo, rank, scale in routed]
            pieces += [
                (at, min(at + CHUNK, start + length), first, len(entries)) for at in range(start, start + length, CHUNK)
            ]
        self._entries, self._runs = np.array(entries, ENTRY), np.array(pieces, RUN)
        self.arguments = (self._entries.ctypes.data, self._runs.ctypes.data, len(pieces))


def load_kernel() -> RoutedKernel | None:
    """The kernel, or None where it cannot be built."""
    library = build(SOURCE)
    return None if library is None else RoutedKernel(library)
