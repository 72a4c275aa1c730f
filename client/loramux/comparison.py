"""Fine-tuning against prompting: what an evaluation measured of both on the same held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

PREFIX = "compare_"
"""How the names of all figures of a comparison begin."""
CLEAR = 2.0
"""Standard errors that a difference must have before it is said to be one."""


@dataclass(frozen=True, slots=True)
class Side:
    """How one way to answer did. Times are medians of requests that were sent one at a time."""

    accuracy: float
    """Share of the rows whose answer holds the expected text."""
    exact_match: float
    """Share of the rows whose answer is the expected text."""
    loss: float
    """Natural log, a token of the expected answers."""
    prompt_tokens: float
    """Of a request, mean."""
    first_token_seconds: float
    seconds: float
    """Of a whole answer."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The base, the base with a prompt, and the adapter, on the same rows (and over the same frozen stacks)."""

    questions: int
    base: Side
    prompt: Side
    adapter: Side

    @property
    def verdict(self) -> str:
        """A sentence: whether training was worth it."""
        adapter, prompt = self.adapter.accuracy, self.prompt.accuracy
        saved = self.prompt.prompt_tokens - self.adapter.prompt_tokens
        mean = (adapter + prompt) / 2
        clear = CLEAR * math.sqrt(2 * mean * (1 - mean) / max(self.questions, 1))
        if adapter - prompt > clear:
            begin = "Training was worth it"
        elif prompt - adapter > clear:
            begin = "The prompt does better than the adapter"
        else:
            begin = "No clear difference between prompt and adapter"
        return (
            f"{begin}: of {self.questions} held-out rows the adapter answers {adapter:.0%} right, the prompt "
            f"{prompt:.0%}, the base alone {self.base.accuracy:.0%}; the prompt costs {saved:.0f} tokens a request."
        )

    def rows(self) -> list[tuple[str, str, str, str]]:
        """A table: what was measured, then the base's, the prompt's and the adapter's figure."""
        sides = (self.base, self.prompt, self.adapter)

        def row(title: str, name: str, form: str, scale: float = 1.0) -> tuple[str, str, str, str]:
            a, b, c = (format(scale * getattr(side, name), form) for side in sides)
            return title, a, b, c

        return [
            row("answers that hold the expected text", "accuracy", ".1%"),
            row("answers that are the expected text", "exact_match", ".1%"),
            row("loss a token", "loss", ".4g"),
            row("prompt tokens a request", "prompt_tokens", ".0f"),
            row("milliseconds to the first token", "first_token_seconds", ".0f", 1000),
            row("milliseconds to the end", "seconds", ".0f", 1000),
        ]

    def to_metrics(self) -> dict[str, float]:
        """As figures by name: ``compare_questions``, ``compare_base_accuracy``, ``compare_prompt_loss`` and so on."""
        found = {f"{PREFIX}questions": float(self.questions)}
        for name in ("base", "prompt", "adapter"):
            side = getattr(self, name)
            found |= {f"{PREFIX}{name}_{field.name}": getattr(side, field.name) for field in fields(Side)}
        return found


def read_comparison(metrics: Mapping[str, float]) -> Comparison | None:
    """The comparison among a job's or a version's figures; None when there was none."""
    if f"{PREFIX}questions" not in metrics:
        return None

    def side(name: str) -> Side:
        return Side(*(metrics.get(f"{PREFIX}{name}_{field.name}", math.nan) for field in fields(Side)))

    return Comparison(int(metrics[f"{PREFIX}questions"]), side("base"), side("prompt"), side("adapter"))


def without_comparison(metrics: Mapping[str, float]) -> dict[str, float]:
    """The other figures."""
    return {name: value for name, value in metrics.items() if not name.startswith(PREFIX)}
