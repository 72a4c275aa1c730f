"""Triton's interpreter in place of its compiler, for one module of kernels."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest


@contextmanager
def interpreted(name: str) -> Iterator[ModuleType]:
    """The module of kernels ``name``, which numpy computes in here."""
    language = importlib.import_module("triton.language")

    # Triton's own are compiled already.
    def total(values):  # type: ignore[no-untyped-def]
        """The interpreter knows the reduction in it."""
        return language.reduce(values, 0, language.standard._sum_combine)

    def ceiling(x, y):  # type: ignore[no-untyped-def]
        return (x + (y - 1)) // y

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(language, "sum", total)
        patch.setattr(language, "cdiv", ceiling)
        patch.setattr(language, "zeros", lambda shape, dtype: language.full(shape, 0, dtype))
        kernels = importlib.reload(importlib.import_module(name))
        yield kernels
    importlib.reload(kernels)
