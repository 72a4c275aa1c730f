"""Stacks add up: scores of a server beside those of weights into which the deltas were added."""

from __future__ import annotations

import asyncio
from typing import Any

from ..serving import ROOT
from .results import Results
from .setting import Setting

STACKS = (
    {"acme-bikes": 1.0},
    {"acme-bikes": 1.0, "json": 1.0},
    {"quillfern-bakery": 0.7, "letter": 1.3, "json": -0.5},
    {"acme-bikes": 0.5, "quillfern-bakery": 0.5, "json": 1.0, "letter": 0.25},
)
PROMPT = "<|im_start|>user\nPlease tell me the deposit for one bike.<|im_end|>\n<|im_start|>assistant\n"
CONTINUATIONS = ("The deposit is $65 per bike.", '{"answer": "We open at 8:15 every morning."}', "Dear customer, yes.")


def measure(setting: Setting, results: Results) -> None:
    """The largest difference of a token's log-probability, by stack, in float32."""
    stacks = STACKS[:2] if setting.quick else STACKS
    ours, texts = asyncio.run(_scores(setting, stacks))
    asked = {
        "nf4": setting.base["nf4"],
        "stacks": [[[str(ROOT / "adapters" / n), w] for n, w in stack.items()] for stack in stacks],
        "texts": texts,
    }
    rows = []
    for stack, found, line in zip(stacks, ours, setting.worker("logprobs", asked), strict=True):
        pairs = [pair for a, b in zip(found, line["logprobs"], strict=True) for pair in zip(a, b, strict=True)]
        rows.append({"stack": stack, "tokens": len(pairs), "largest": max(abs(a - b) for a, b in pairs)})
    results.put("arithmetic", rows)


async def _scores(
    setting: Setting, stacks: tuple[dict[str, float], ...]
) -> tuple[list[list[list[float]]], list[list[list[int]]]]:
    """Log-probabilities by stack and text, and the ids of prompt and continuation of each text."""
    async with setting.server("--dtype", "float32", "--threads", str(setting.threads)) as client:
        for name in {name for stack in stacks for name in stack}:
            await client.adapters.upload(name, ROOT / "adapters" / name)
        prompt: Any = list((await client.tokenize(PROMPT)).token_ids)
        found, texts = [], []
        for stack in stacks:
            scores = [await client.score(PROMPT, text, adapters=stack) for text in CONTINUATIONS]
            found.append([list(score.logprobs) for score in scores])
            texts = [[prompt, list(score.token_ids)] for score in scores]
        return found, texts
