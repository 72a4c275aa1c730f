"""The verdict of a comparison: which way to answer it chooses, why, and when to look again."""

from __future__ import annotations

import pytest

from loramux.comparison import Comparison, Side, read_comparison
from loramux.verdict import chosen, standard_error

TOKENS = {"base": 20, "init": 20, "prompt": 400, "retrieval": 120, "adapter": 20, "adapter_retrieval": 120}


def comparison(count: int, by_heart: bool = False, **shares: float) -> Comparison:
    sides = {name: Side(share, share, 1.0, TOKENS[name], 0.1, 0.5, 10.0) for name, share in shares.items()}
    return Comparison(count, by_heart=by_heart, **{"prompt": None, **sides})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shares", "begins", "look"),
    [
        (
            {"base": 0.0, "retrieval": 0.5, "adapter": 0.95, "adapter_retrieval": 0.6},
            "Choose the adapter, because it is clearly better than all others",
            "the facts change: if they change monthly or more often choose retrieval",
        ),
        (
            {"base": 0.0, "retrieval": 0.92, "adapter": 0.95, "adapter_retrieval": 0.95},
            "Choose the adapter, because it costs the fewest tokens and is not clearly worse than retrieval or the "
            "adapter with retrieval",
            "the facts change",
        ),
        (
            {"base": 0.0, "prompt": 0.9, "retrieval": 0.92, "adapter": 0.3, "adapter_retrieval": 0.9},
            "Choose retrieval, because it costs the fewest tokens and is not clearly worse than the prompt or the "
            "adapter with retrieval",
            "requests become many",
        ),
        (
            {"base": 0.0, "prompt": 0.9, "retrieval": 0.2, "adapter": 0.3, "adapter_retrieval": 0.3},
            "Choose the prompt, because it is clearly better than all others",
            "the prompt grows",
        ),
        (
            {"base": 0.0, "retrieval": 0.2, "adapter": 0.3, "adapter_retrieval": 0.9},
            "Choose the adapter with retrieval, because it is clearly better than all others",
            "the adapter alone comes as far",
        ),
        (
            {"base": 0.9, "retrieval": 0.95, "adapter": 0.95, "adapter_retrieval": 0.95},
            "Choose the base alone, because nothing is clearly better",
            "the held-out rows are more, or harder",
        ),
    ],
)
def test_the_choice_with_retrieval(shares: dict[str, float], begins: str, look: str) -> None:
    found = comparison(60, **shares)
    assert found.verdict.startswith(f"{begins}: of 60 held-out rows the adapter answers {shares['adapter']:.0%} right")
    assert f"Look again when {look}" in found.verdict
    assert "retrieval costs 100 tokens a request" in found.verdict
    assert ("the prompt costs 380 tokens a request" in found.verdict) is ("prompt" in shares)
    assert read_comparison(found.to_metrics()) == found


def test_few_rows_decide_nothing() -> None:
    shares = {"base": 0.0, "retrieval": 0.5, "adapter": 1.0, "adapter_retrieval": 1.0}
    assert chosen(2, comparison(2, **shares).by_name) == "base"
    assert chosen(40, comparison(40, **shares).by_name) == "adapter"


def test_an_adapter_has_to_beat_what_it_went_on_from() -> None:
    ways = {
        name: Side(share, share, 1.0, TOKENS[name], 0.1, 0.5, 10.0)
        for name, share in (("base", 0.0), ("init", 0.9), ("retrieval", 0.5), ("adapter", 0.93))
    }
    found = Comparison(40, ways["base"], None, ways["adapter"], ways["init"], retrieval=ways["retrieval"])
    assert found.verdict.startswith(
        "Choose the version that it started from, because the adapter is not clearly better"
    )
    assert list(found.sides) == ["base", "started from", "base and retrieval", "adapter"]


def test_training_rows_allow_no_choice() -> None:
    found = comparison(40, True, base=0.0, retrieval=0.5, adapter=1.0, adapter_retrieval=1.0)
    assert found.verdict.startswith("No verdict, because all held-out rows are training rows: of 40")
    assert "Look again" not in found.verdict


def test_ways_that_cost_the_same_are_chosen_by_effort() -> None:
    ways = {
        "base": Side(0.0, 0.0, 1.0, 20, 0.1, 0.5, 10.0),
        "retrieval": Side(0.9, 0.9, 1.0, 120, 0.1, 0.5, 12.0),
        "adapter": Side(0.1, 0.1, 1.0, 20, 0.1, 0.5, 10.0),
        "adapter_retrieval": Side(0.9, 0.9, 1.0, 120, 0.1, 0.5, 9.0),
    }
    assert chosen(60, ways) == "retrieval"
    ways["adapter_retrieval"] = Side(0.9, 0.9, 1.0, 60, 0.1, 0.5, 9.0)
    assert chosen(60, ways) == "adapter_retrieval"


def test_standard_errors_by_hand() -> None:
    """Two of either kind are added: nothing is certain."""
    assert standard_error(0.5, 96) == pytest.approx(0.05)
    assert standard_error(0.0, 16) == pytest.approx((0.1 * 0.9 / 20) ** 0.5)
    assert standard_error(1.0, 16) == pytest.approx(standard_error(0.0, 16))


def test_a_table_has_errors_and_costs_unless_they_were_not_measured() -> None:
    side = Side(0.5, 0.25, 1.5, 100, 0.1, 0.5, 20.0, 0.05, 0.04, 0.3)
    rows = Comparison(96, side, None, side, retrieval=side, adapter_retrieval=side).rows()
    assert rows[:2] == [("answers that are right", *["50.0%"] * 4), ("± standard error", *["5.0%"] * 4)]
    assert ("tokens of a thousand requests", *["120000"] * 4) in rows
    metrics = Comparison(96, side, side, side).to_metrics()
    new = ("answer_tokens", "_error")
    old = read_comparison({name: value for name, value in metrics.items() if not name.endswith(new)})
    assert old is not None
    titles = [title for title, *_ in old.rows()]
    assert "tokens of a thousand requests" not in titles
    assert "± standard error" not in titles
