"""Fine-tuning against prompting and retrieval: what an evaluation measured of each on the same held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields

from .verdict import verdict

PREFIX = "compare_"
"""How the names of all metrics of a comparison begin."""
JUDGED = "judged_"
"""How the names of the metrics begin that tell how many answers were judged in which way."""
_RULES = {
    f"{JUDGED}expect_contained": "by expect, contained",
    f"{JUDGED}expect_exact": "by expect, exact",
    f"{JUDGED}answer_contained": "by the whole answer",
}
MAX_DOCUMENT_BYTES = 32 << 20
"""Most bytes of the documents that passages are found in."""


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
    answer_tokens: float = 0.0
    """Of a request, mean."""
    accuracy_error: float = 0.0
    """Standard error of ``accuracy``, over the rows."""
    exact_match_error: float = 0.0
    loss_error: float = 0.0

    @property
    def tokens(self) -> float:
        """Of a request and its answer, mean."""
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True, slots=True)
class Comparison:
    """The base, the base with a prompt or with passages, and the adapter, on the same rows and frozen stacks."""

    questions: int
    base: Side
    prompt: Side | None
    """The base with the prompt; None: no prompt was compared."""
    adapter: Side
    init: Side | None = None
    """The version that the adapter goes on from, where there is one."""
    by_heart: bool = False
    """Whether all rows are training rows, which allows no verdict."""
    retrieval: Side | None = None
    """The base with passages from documents; None: no documents were compared."""
    adapter_retrieval: Side | None = None
    """The adapter with the same passages."""

    @property
    def verdict(self) -> str:
        """What to choose, why, and when to look again, in a few sentences."""
        return verdict(self.questions, self.by_name, self.by_heart)

    @property
    def by_name(self) -> dict[str, Side]:
        """The sides by the names that metrics and answers have."""
        found = {
            "base": self.base,
            "init": self.init,
            "prompt": self.prompt,
            "retrieval": self.retrieval,
            "adapter": self.adapter,
            "adapter_retrieval": self.adapter_retrieval,
        }
        return {name: side for name, side in found.items() if side is not None}

    @property
    def sides(self) -> dict[str, Side]:
        """The sides by their titles in a table."""
        return {TITLES[name]: side for name, side in self.by_name.items()}

    def rows(self) -> list[tuple[str, ...]]:
        """A table: what was measured, then the value of each of the ``sides``."""

        def row(title: str, cell: Callable[[Side], str]) -> tuple[str, ...]:
            return (title, *map(cell, self.by_name.values()))

        found = [
            row("answers that are right", lambda side: f"{side.accuracy:.1%}"),
            row("± standard error", lambda side: f"{side.accuracy_error:.1%}"),
            row("answers that are the expected text", lambda side: f"{side.exact_match:.1%}"),
            row("± standard error", lambda side: f"{side.exact_match_error:.1%}"),
            row("loss a token", lambda side: f"{side.loss:.4g}"),
            row("± standard error", lambda side: f"{side.loss_error:.2g}"),
            row("prompt tokens a request", lambda side: f"{side.prompt_tokens:.0f}"),
            row("tokens of a thousand requests", lambda side: f"{1000 * side.tokens:.0f}"),
            row("milliseconds to the first token", lambda side: f"{1000 * side.first_token_seconds:.0f}"),
            row("milliseconds to the end", lambda side: f"{1000 * side.seconds:.0f}"),
        ]
        # Versions that were compared before answers were counted have neither errors nor tokens of answers.
        counted = any(side.answer_tokens for side in self.by_name.values())
        return [cells for cells in found if counted or not cells[0].startswith(("±", "tokens"))]

    def to_metrics(self) -> dict[str, float]:
        """As metrics by name: ``compare_questions``, ``compare_base_accuracy``, ``compare_prompt_loss`` and so on."""
        found = {f"{PREFIX}questions": float(self.questions)}
        for name, side in self.by_name.items():
            found |= {f"{PREFIX}{name}_{field.name}": getattr(side, field.name) for field in fields(Side)}
        return found | ({f"{PREFIX}by_heart": 1.0} if self.by_heart else {})


TITLES = {
    "base": "base",
    "init": "started from",
    "prompt": "base and prompt",
    "retrieval": "base and retrieval",
    "adapter": "adapter",
    "adapter_retrieval": "adapter and retrieval",
}
"""What tables call the sides."""


_UNKNOWN = {field.name: math.nan for field in fields(Side) if field.default is MISSING}


def read_comparison(metrics: Mapping[str, float]) -> Comparison | None:
    """The comparison among a job's or a version's metrics; None when there was none."""
    if f"{PREFIX}questions" not in metrics:
        return None

    def side(name: str) -> Side:
        names = (field.name for field in fields(Side))
        found = {field: metrics[key] for field in names if (key := f"{PREFIX}{name}_{field}") in metrics}
        return Side(**{**_UNKNOWN, **found})

    given = {name: side(name) for name in TITLES if f"{PREFIX}{name}_accuracy" in metrics}
    return Comparison(
        questions=int(metrics[f"{PREFIX}questions"]),
        base=given.pop("base", side("base")),
        prompt=given.pop("prompt", None),
        adapter=given.pop("adapter", side("adapter")),
        by_heart=bool(metrics.get(f"{PREFIX}by_heart")),
        **given,
    )


def judged(metrics: Mapping[str, float]) -> str:
    """How answers were judged, such as ``by expect, contained: 24 rows``; empty where none were."""
    found = ((words, int(metrics.get(name, 0))) for name, words in _RULES.items())
    return "; ".join(f"{words}: {count} row{'s' * (count != 1)}" for words, count in found if count)


def without_comparison(metrics: Mapping[str, float]) -> dict[str, float]:
    """The other metrics, without those that tell how answers were judged."""
    return {name: value for name, value in metrics.items() if not name.startswith((PREFIX, JUDGED))}
