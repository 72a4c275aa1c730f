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

    def total(values):  # type: ignore[no-untyped-def]
        """Triton's own is compiled already; the interpreter knows the reduction in it."""
        return language.reduce(values, 0, language.standard._sum_combine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(language, "sum", total)
        kernels = importlib.reload(importlib.import_module(name))
        yield kernels
    importlib.reload(kernels)
