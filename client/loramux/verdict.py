"""Which way to answer a comparison says to choose, why, and when to look again. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

CLEAR = 2.0
"""Standard errors that a difference must have before it is said to be one."""
NEARLY = 1.1
"""Ways whose tokens differ by less than this factor cost the same: then the one with less effort is chosen."""

_CALLED = {
    "base": "the base alone",
    "init": "the version that it started from",
    "prompt": "the prompt",
    "retrieval": "retrieval",
    "adapter": "the adapter",
    "adapter_retrieval": "the adapter with retrieval",
}
"""All ways to answer, those of less effort first."""
_LOOK_AGAIN = {
    "base": "the held-out rows are more, or harder",
    "init": "there are more rows to train on",
    "prompt": "the prompt grows, because every request pays for it: an adapter answers without it",
    "retrieval": "requests become many, because each pays for its passages: an adapter answers without them",
    "adapter": "the facts change: if they change monthly or more often choose retrieval, which takes new documents "
    "without training",
    "adapter_retrieval": "the adapter alone comes as far, which saves the passages of each request",
}


class Way(Protocol):
    """How one way to answer did."""

    @property
    def accuracy(self) -> float: ...
    @property
    def prompt_tokens(self) -> float: ...
    @property
    def tokens(self) -> float: ...


Ways = Mapping[str, Way]
"""The ways to answer by their names."""


def standard_error(share: float, questions: int) -> float:
    """Of a share of right answers. Two of either kind are added (Agresti and Coull): 0 of 20 are no certainty."""
    count = questions + 4
    share = (share * questions + 2) / count
    return math.sqrt(share * (1 - share) / count)


def clearly(better: float, worse: float, questions: int) -> bool:
    """Whether a share of right answers is higher than another by more than chance."""
    mean = (better + worse) / 2
    return better - worse > CLEAR * math.sqrt(2 * mean * (1 - mean) / max(questions, 1))


def verdict(questions: int, ways: Ways, by_heart: bool = False) -> str:
    """What to choose among the ways (``base``, ``prompt``, ``retrieval``, ``adapter``, ...), in a few sentences."""
    others = ("adapter_retrieval", "prompt", "retrieval", "base", "init")
    told = ", ".join(f"{_CALLED[name]} {ways[name].accuracy:.0%}" for name in others if name in ways)
    right = f"{ways['adapter'].accuracy:.0%} right"
    found = f"of {questions} held-out rows the adapter answers {right}, {told}; {_costs(ways)}."
    if by_heart:
        return f"No verdict, because all held-out rows are training rows: {found}"
    best = chosen(questions, ways)
    return f"{_begin(questions, ways, best)}: {found} Look again when {_LOOK_AGAIN[best]}."


def chosen(questions: int, ways: Ways) -> str:
    """The cheapest in tokens of the ways that no other is clearly better than; the base alone if it is among them."""
    alike = _alike(questions, ways)
    for without in ("base", "init"):  # an adapter has to be clearly better than what it was made from
        if without in alike:
            return without
    least = min(ways[name].tokens for name in alike)
    return next(name for name in alike if not ways[name].tokens > NEARLY * least)


def _alike(questions: int, ways: Ways) -> list[str]:
    """The ways that no other is clearly better than, those of less effort first."""
    best = max(way.accuracy for way in ways.values())
    return [name for name in _CALLED if name in ways and not clearly(best, ways[name].accuracy, questions)]


def _begin(questions: int, ways: Ways, best: str) -> str:
    if "retrieval" not in ways:
        return _against_a_prompt(questions, ways)
    alike = _alike(questions, ways)
    if best == "base":
        return "Choose the base alone, because nothing is clearly better"
    others = [_CALLED[name] for name in alike if name != best]
    if best == "init":
        return f"Choose {_CALLED[best]}, because the adapter is not clearly better"
    if not others:
        return f"Choose {_CALLED[best]}, because it is clearly better than all others"
    cheapest = all(ways[best].tokens <= ways[name].tokens for name in alike)
    why = "costs the fewest tokens" if cheapest else "takes the least effort for about as many tokens"
    return f"Choose {_CALLED[best]}, because it {why} and is not clearly worse than {' or '.join(others)}"


def _against_a_prompt(questions: int, ways: Ways) -> str:
    adapter, prompt = ways["adapter"].accuracy, ways["prompt"].accuracy
    if clearly(prompt, adapter, questions):
        return "The prompt does better than the adapter"
    if not clearly(adapter, prompt, questions):
        return "No clear difference between prompt and adapter"
    if "init" in ways and not clearly(adapter, ways["init"].accuracy, questions):
        return "The adapter is not clearly better than the version that it started from"
    return "Training was worth it"


def _costs(ways: Ways) -> str:
    """The tokens of a prompt and of passages: what a request has more than one to the adapter alone."""
    least = ways["adapter"].prompt_tokens
    costs = [(_CALLED[name], ways[name].prompt_tokens - least) for name in ("prompt", "retrieval") if name in ways]
    return " and ".join(f"{called} costs {tokens:.0f} tokens a request" for called, tokens in costs)
