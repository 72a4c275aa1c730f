"""Selecting the tokens of a step: milliseconds by rows, vocabulary and kind of request, the host's share included."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import torch

from loramux_server.core.types import SamplingParams, Stack
from loramux_server.engine.execution.sampler import sample
from loramux_server.engine.scheduling.sequence import Sequence

from .timing import seconds

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top_p": {"temperature": 0.8, "top_p": 0.9},
    "penalties": {"repetition_penalty": 1.2, "frequency_penalty": 0.3},
    "logprobs": {"logprobs": 5},
    "grammar": {},
}
VOCABULARIES = (49_152, 151_936)
OUTPUT = 200
"""Tokens that each sequence has given already."""


def measure(device: torch.device, quick: bool) -> Iterator[dict[str, dict[str, float]]]:
    """Milliseconds by "rows x vocabulary" and kind, so far."""
    draw = Random(0)
    found: dict[str, dict[str, float]] = {}
    for rows in (4,) if quick else (16, 64):
        for vocabulary in VOCABULARIES[:1] if quick else VOCABULARIES:
            logits = 3 * torch.randn(rows, vocabulary, device=device)
            times = found[f"{rows} x {vocabulary}"] = {}
            for kind, settings in KINDS.items():
                tokens = [[draw.randrange(vocabulary) for _ in range(OUTPUT)] for _ in range(rows)]
                seqs = [
                    Sequence(str(i), given, 100, Stack(), SamplingParams(**settings), i, "default")
                    for i, given in enumerate(tokens)
                ]
                bits = np.random.default_rng(0).random((rows, vocabulary)) < 0.5
                packed = np.packbits(bits, axis=1, bitorder="little")
                masks = {i: row.tobytes() for i, row in enumerate(packed)} if kind == "grammar" else {}
                times[kind] = 1e3 * seconds(lambda: sample(logits, seqs, (2,), masks), device, captured=False)  # noqa: B023
            yield found
