"""Fine-tuning against prompting: what an evaluation measured of both on the same held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

PREFIX = "compare_"
"""How the names of all metrics of a comparison begin."""
JUDGED = "judged_"
"""How the names of the metrics begin that tell how many answers were judged in which way."""
_RULES = {
    f"{JUDGED}expect_contained": "by expect, contained",
    f"{JUDGED}expect_exact": "by expect, exact",
    f"{JUDGED}answer_contained": "by the whole answer",
}
CLEAR = 2.0
"""Standard errors that a difference must have before it is said to be one."""


@dataclass(frozen=True, slots=True)
class Side:
    """How one way to answer did. Times are medians of requests that were sent one at a time."""

    accuracy: float
    """Share of the rows whose answer is right: each by its own rule, the same for all sides."""
    exact_match: float
    """Share of the rows whose answer is what is expected and nothing else."""
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
    init: Side | None = None
    """The version that the adapter goes on from, where there is one."""
    by_heart: bool = False
    """Whether all rows are training rows, which allows no verdict."""

    @property
    def verdict(self) -> str:
        """A sentence: whether training was worth it."""
        adapter, prompt = self.adapter.accuracy, self.prompt.accuracy
        saved = self.prompt.prompt_tokens - self.adapter.prompt_tokens
        if self.by_heart:
            begin = "No verdict, because all held-out rows are training rows"
        elif self._clearly(prompt, adapter):
            begin = "The prompt does better than the adapter"
        elif not self._clearly(adapter, prompt):
            begin = "No clear difference between prompt and adapter"
        elif self.init is not None and not self._clearly(adapter, self.init.accuracy):
            begin = "The adapter is not clearly better than the version that it started from"
        else:
            begin = "Training was worth it"
        start = "" if self.init is None else f", the version that it started from {self.init.accuracy:.0%}"
        return (
            f"{begin}: of {self.questions} held-out rows the adapter answers {adapter:.0%} right, the prompt "
            f"{prompt:.0%}, the base alone {self.base.accuracy:.0%}{start}; the prompt costs {saved:.0f} tokens a"
            " request."
        )

    def _clearly(self, better: float, worse: float) -> bool:
        """Whether a share of right answers is higher than another by more than chance."""
        mean = (better + worse) / 2
        return better - worse > CLEAR * math.sqrt(2 * mean * (1 - mean) / max(self.questions, 1))

    @property
    def sides(self) -> dict[str, Side]:
        """The sides by their titles in a table."""
        found = {"base": self.base, "base and prompt": self.prompt, "adapter": self.adapter}
        return found if self.init is None else {"base": self.base, "started from": self.init} | found

    def rows(self) -> list[tuple[str, ...]]:
        """A table: what was measured, then the value of each of the ``sides``."""

        def row(title: str, name: str, form: str, scale: float = 1.0) -> tuple[str, ...]:
            return (title, *(format(scale * getattr(side, name), form) for side in self.sides.values()))

        return [
            row("answers that are right", "accuracy", ".1%"),
            row("answers that are the expected text", "exact_match", ".1%"),
            row("loss a token", "loss", ".4g"),
            row("prompt tokens a request", "prompt_tokens", ".0f"),
            row("milliseconds to the first token", "first_token_seconds", ".0f", 1000),
            row("milliseconds to the end", "seconds", ".0f", 1000),
        ]

    def to_metrics(self) -> dict[str, float]:
        """As metrics by name: ``compare_questions``, ``compare_base_accuracy``, ``compare_prompt_loss`` and so on."""
        found = {f"{PREFIX}questions": float(self.questions)}
        for name in ("base", "prompt", "adapter", "init"):
            side = getattr(self, name)
            if side is not None:
                found |= {f"{PREFIX}{name}_{field.name}": getattr(side, field.name) for field in fields(Side)}
        return found | ({f"{PREFIX}by_heart": 1.0} if self.by_heart else {})


def read_comparison(metrics: Mapping[str, float]) -> Comparison | None:
    """The comparison among a job's or a version's metrics; None when there was none."""
    if f"{PREFIX}questions" not in metrics:
        return None

    def side(name: str) -> Side:
        return Side(*(metrics.get(f"{PREFIX}{name}_{field.name}", math.nan) for field in fields(Side)))

    init = side("init") if f"{PREFIX}init_accuracy" in metrics else None
    by_heart = bool(metrics.get(f"{PREFIX}by_heart"))
    return Comparison(int(metrics[f"{PREFIX}questions"]), side("base"), side("prompt"), side("adapter"), init, by_heart)


def judged(metrics: Mapping[str, float]) -> str:
    """How answers were judged, such as ``by expect, contained: 24 rows``; empty where none were."""
    found = ((words, int(metrics.get(name, 0))) for name, words in _RULES.items())
    return "; ".join(f"{words}: {count} row{'s' * (count != 1)}" for words, count in found if count)


def without_comparison(metrics: Mapping[str, float]) -> dict[str, float]:
    """The other metrics, without those that tell how answers were judged."""
    return {name: value for name, value in metrics.items() if not name.startswith((PREFIX, JUDGED))}
