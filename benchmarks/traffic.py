"""Who is asked how often: requests over many adapters."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .workloads import Ask, prompt


def zipf(adapters: int, requests: int, seed: int, s: float = 1.0) -> list[int]:
    """For each request an adapter from 0 to ``adapters - 1``: number ``k`` with a chance proportional to 1/(k+1)^s."""
    weights = [1 / (k + 1) ** s for k in range(adapters)]
    return random.Random(seed).choices(range(adapters), weights, k=requests)


def turns(adapters: int, requests: int) -> list[int]:
    """The adapters one after the other, again and again: each comes back only after all others have been used."""
    return [i % adapters for i in range(requests)]


def asks(adapters: Sequence[int], tokens: int, mark: str) -> list[Ask]:
    """One request for each entry. Prompts that differ in ``mark`` begin unlike, so that no prefix is known already."""
    return [Ask(prompt(i, mark), ((adapter, 1.0),), tokens) for i, adapter in enumerate(adapters)]
