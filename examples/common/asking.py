"""Questions to a stack, asked side by side, so that the server batches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    before = [{"role": "system", "content": system}] if system else []

    def one(question: str) -> str:
        messages = [*before, {"role": "user", "content": question}]
        return client.generate(
            messages=messages, adapters=dict(adapters or {}), max_tokens=max_tokens, temperature=0.0, **options
        ).text

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(one, questions))
