"""The settings of one LoRA adapter, and which modules of a base they pick, by PEFT's rules without its patterns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import TypeVar

N = TypeVar("N", int, float)

ALL_LINEAR = "all-linear"
BY_PATTERN = "(by pattern)"
"""In place of names: the config holds a regular expression. It is never run; the tensors say what is adapted."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What an ``adapter_config.json`` says about a LoRA adapter, checked."""

    rank: int
    alpha: float
    rslora: bool = False
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    """Ends of module names, ``("all-linear",)`` or ``("(by pattern)",)``."""
    layers: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    base_name: str = ""
    """``base_model_name_or_path``, for people only."""
    ranks_by_pattern: bool = False
    """Whether ``rank_pattern`` holds regular expressions: the tensors say the ranks then."""

    def as_found(self, ranks: Mapping[str, int]) -> LoraConfig:
        """The config with names and ranks of modules, as the tensors have them, in place of regular expressions."""
        found = self
        if self.target_modules == (BY_PATTERN,):
            found = replace(found, target_modules=tuple(sorted(ranks)), layers=None, layers_pattern=())
        if self.ranks_by_pattern:
            own = tuple((f"^{name}", rank) for name, rank in sorted(ranks.items()) if rank != self.rank)
            found = replace(found, rank_pattern=own, ranks_by_pattern=False)
        return found

    def scales(self, modules: Iterable[str]) -> Iterator[tuple[int, float]]:
        """Rank of each module, and the factor of its delta: alpha/r, with rsLoRA alpha/sqrt(r).

        Rank and alpha are those of the first pattern that the module's name ends with, else the config's own.
        """
        ranks, alphas = _first(self.rank_pattern), _first(self.alpha_pattern)
        for module in modules:
            rank = _of(module, ranks, self.rank)
            yield rank, _of(module, alphas, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def targets(self, modules: Iterable[str]) -> list[str]:
        """The names among ``modules`` that the config adapts, as PEFT would pick them."""
        wanted = set(self.target_modules)
        found = [m for m in modules if self.target_modules == (ALL_LINEAR,) or not wanted.isdisjoint(_ends(m))]
        if self.layers is None:
            return found
        layers, after = set(self.layers), {name: at for at, name in reversed(list(enumerate(self.layers_pattern)))}
        # PEFT ignores the layers when the whole name is listed.
        return [m for m in found if m in wanted or layer_index(m, after) in layers]


def layer_index(module: str, patterns: Mapping[str, int] = MappingProxyType({})) -> int | None:
    """The decoder layer of a module: the first number in its name; with ``patterns`` that after one of them.

    ``patterns``: name -> its place in the list of them; the earliest one counts.
    """
    parts = module.split(".")
    if not patterns:
        return next((int(part) for part in parts[2:-1] if part.isdecimal()), None)
    numbers = [(patterns[a], int(b)) for a, b in pairwise(parts[:-1]) if a in patterns and b.isdecimal()]
    return min(numbers, key=lambda each: each[0])[1] if numbers else None


def _first(pattern: Iterable[tuple[str, N]]) -> dict[str, tuple[int, N]]:
    """Key -> its place among the keys, and its number."""
    found: dict[str, tuple[int, N]] = {}
    for place, (key, number) in enumerate(pattern):
        found.setdefault(key, (place, number))
    return found


def _of(module: str, pattern: Mapping[str, tuple[int, N]], default: N) -> N:
    """The number of the first key that names a module: ``^`` and its whole name, or an end of it."""
    if not pattern:
        return default
    keys = (f"^{module}", *_ends(module))
    found = [pattern[key] for key in keys if key in pattern]
    return min(found, key=lambda each: each[0])[1] if found else default


def _ends(module: str) -> Iterator[str]:
    """``a.b.c`` -> ``a.b.c``, ``b.c``, ``c``."""
    yield module
    at = module.find(".")
    while at >= 0:
        yield module[at + 1 :]
        at = module.find(".", at + 1)
