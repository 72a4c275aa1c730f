"""Questions to a stack, asked side by side, so that the server batches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from typing import Any

from loramux import Client

IN_FLIGHT = 64


def ask(
    client: Client,
    questions: Sequence[str],
    adapters: Mapping[str, float] | None = None,
    *,
    system: str = "",
    max_tokens: int = 64,
    **options: Any,
) -> list[str]:
    """Greedy answers of a stack (none: the base), in the order of the questions.

    ``system`` is the system turn before every question; ``options`` are those of ``client.generate``.
    """

    def one(question: str) -> str:
        return client.generate(
            messages=_messages(question, system),
            adapters=dict(adapters or {}),
            max_tokens=max_tokens,
            temperature=0.0,
            **options,
        ).text

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(one, questions))


def prompt_tokens(client: Client, questions: Sequence[str], system: str = "") -> float:
    """Mean tokens of a prompt, ``system`` included."""
    return fmean(len(client.tokenize(messages=_messages(question, system))) for question in questions)


def _messages(question: str, system: str) -> list[dict[str, str]]:
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": question}]
