"""The settings of one LoRA adapter, and which modules of a base they pick, by PEFT's rules without its patterns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

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

    def rank_of(self, module: str) -> int:
        """Rank of one module: the first pattern that its name ends with, else ``rank``."""
        return next((r for key, r in self.rank_pattern if _names(key, module)), self.rank)

    def alpha_of(self, module: str) -> float:
        """Alpha of one module, found as its rank is."""
        return next((a for key, a in self.alpha_pattern if _names(key, module)), self.alpha)

    def scaling_of(self, module: str) -> float:
        """Factor of the module's delta: alpha/r, with rsLoRA alpha/sqrt(r)."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.rslora else rank)

    def targets(self, modules: Sequence[str]) -> list[str]:
        """The names among ``modules`` that the config adapts, as PEFT would pick them."""
        wanted = set(self.target_modules)
        return [
            m
            for m in modules
            if (self.target_modules == (ALL_LINEAR,) or not wanted.isdisjoint(_ends(m))) and self._in_layers(m)
        ]

    def _in_layers(self, module: str) -> bool:
        # PEFT ignores the layers when the whole name is listed.
        if self.layers is None or module in self.target_modules:
            return True
        index = layer_index(module, self.layers_pattern)
        return index is not None and index in self.layers


def layer_index(module: str, patterns: Sequence[str] = ()) -> int | None:
    """The decoder layer of a module: the first number in its name, after one of ``patterns`` if there are any."""
    parts = module.split(".")
    for pattern in patterns:
        for before, part in pairwise(parts[:-1]):
            if before == pattern and part.isdecimal():
                return int(part)
    if patterns:
        return None
    return next((int(part) for part in parts[2:-1] if part.isdecimal()), None)


def _ends(module: str) -> Iterator[str]:
    """``a.b.c`` -> ``a.b.c``, ``b.c``, ``c``."""
    yield module
    at = module.find(".")
    while at >= 0:
        yield module[at + 1 :]
        at = module.find(".", at + 1)


def _names(key: str, module: str) -> bool:
    if key.startswith("^"):
        return module == key[1:]
    return module == key or module.endswith("." + key)
