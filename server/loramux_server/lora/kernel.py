"""The compiled form of the routed sum on a CPU (``routed.cpp``): built when an engine starts, called by pointers."""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .linear import LinearGroup

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("routed.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
ENTRY = np.dtype([("lo", "i8"), ("rank", "i8"), ("scale", "f4"), ("unused", "i4")])
RUN = np.dtype([("start", "i8"), ("stop", "i8"), ("first", "i8"), ("last", "i8")])
CHUNK = 16
"""Rows of a run that one thread takes at a time: few enough to share a long run, and four readings of the weights."""


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

    def __init__(self, group: LinearGroup, a: Tensor, bs: Sequence[Tensor]) -> None:
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


@lru_cache(maxsize=1)
def load_kernel() -> RoutedKernel | None:
    """Build and load the kernel, or None where there is no C++ compiler: all goes through torch's products then."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        log.info("no C++ compiler found: adapters on the CPU take torch's products, which are slower for few rows")
        return None
    # torch's OpenMP library is loaded already and has the same name, so the kernel shares its threads.
    with tempfile.TemporaryDirectory(prefix="loramux-") as folder:
        target = Path(folder) / "routed.so"
        built = subprocess.run(
            [compiler, *FLAGS, str(SOURCE), "-o", str(target)], capture_output=True, text=True, check=False
        )
        if built.returncode == 0:
            try:
                return RoutedKernel(ctypes.CDLL(str(target)))
            except OSError as error:
                log.warning("the compiled CPU kernel does not load: %s", error)
                return None
    log.warning("the CPU kernel does not compile, torch's products are used: %s", built.stderr[-500:])
    return None
