"""The figures behind docs/claims.md: rows, the search for learning rates, the results file, words and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import page
from benchmarks.claims.parameters import TARGETS, count
from benchmarks.claims.results import Results
from benchmarks.claims.said import claims, summaries
from benchmarks.claims.search import LADDERS, Run, best_rate, next_runs, read, summarise
from benchmarks.claims.tasks import PARTS, tasks

LADDER = (1.0, 2.0, 3.0, 4.0, 5.0)


def run(rate: float, loss: float, seed: int = 0, right: int | None = None) -> Run:
    return Run(rate, seed, loss, loss + 1, right, 10)


def test_parts_of_a_task_share_no_question_and_answers_can_be_judged() -> None:
    for task in tasks():
        prompts = {part: {row["prompt"] for row in task.rows[part]} for part in PARTS}
        assert not prompts["train"] & prompts["held_out"]
        assert not prompts["chosen_on"] & (prompts["train"] | prompts["held_out"])
        assert all(row["expect"] in row["completion"] for row in task.rows["held_out"])
        assert tasks()[0].rows == tasks()[0].rows


def test_three_rates_are_tried_for_every_way() -> None:
    assert next_runs([], LADDER, 3) == [(3.0, 0), (2.0, 0), (4.0, 0)]
    assert all(len(ladder) == 5 for ladder in LADDERS.values())


def test_the_search_goes_on_while_the_best_is_at_an_edge() -> None:
    runs = [run(3.0, 0.5), run(2.0, 0.9), run(4.0, 0.4)]
    assert next_runs(runs, LADDER, 3) == [(5.0, 0)]
    assert next_runs([*runs, run(5.0, 0.6)], LADDER, 3) == [(4.0, 0), (4.0, 1), (4.0, 2)][1:]
    assert next_runs([*runs, run(5.0, 0.3)], LADDER, 2) == [(5.0, 1)]  # the ladder ends there


def test_the_best_rate_has_its_other_seeds_and_then_all_is_done() -> None:
    runs = [run(3.0, 0.4), run(2.0, 0.9), run(4.0, 0.5)]
    assert best_rate(runs) == 3.0
    assert next_runs([*runs, run(3.0, 9.0, seed=1)], LADDER, 3) == [(3.0, 2)]
    assert next_runs([*runs, run(3.0, 9.0, seed=1), run(3.0, 9.0, seed=2)], LADDER, 3) == []


def test_a_summary_is_of_the_best_rate_alone() -> None:
    found = summarise([run(3.0, 0.4, right=8), run(2.0, 0.9, right=1), run(3.0, 0.6, seed=1, right=10)])
    assert (found.rate, found.tried, found.seeds, found.of) == (3.0, (2.0, 3.0), 2, 20)
    assert found.right.value == pytest.approx(0.9)
    assert found.right.error == pytest.approx(0.1)
    with pytest.raises(ValueError, match="was asked"):
        summarise([run(3.0, 0.4)])


def test_results_are_taken_up_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "claims.json"
    about = {"machine": {"load": 1}, "facts": 6}
    first = Results(path, about)
    first.put("weights", {"a": 1})
    first.append("memory", {"b": 2})
    again = Results(path, {**about, "machine": {"load": 2}})
    again.append("memory", {"b": 3})
    assert json.loads(path.read_text())["parts"] == {"weights": {"a": 1}, "memory": [{"b": 2}, {"b": 3}]}
    with pytest.raises(ValueError, match="other settings"):
        Results(path, {**about, "facts": 7})


def test_parameters_are_counted_by_shape() -> None:
    linears = {"model.layers.0.self_attn.q_proj": (4, 6), "model.layers.0.mlp.up_proj": (4, 10)}
    assert count(linears, 2, ("q_proj",)) == 2 * 10
    assert count(linears, 2, TARGETS["all linears"]) == 2 * 10 + 2 * 14


def quality(right: dict[str, int]) -> dict[str, Any]:
    runs = {way: [{"rate": 1.0, "seed": 0, "chosen_on_loss": 1, "held_out_loss": 1, "of": 100}] for way in right}
    return {f"quality/facts/{way}": [{**runs[way][0], "right": right[way]}] for way in right}


@pytest.mark.parametrize(("qlora", "verdict"), [(89, "within 2 points"), (80, "10 points less than the best")])
def test_the_verdict_is_that_of_the_answers(qlora: int, verdict: str) -> None:
    parts = quality({"full": 88, "lora": 90, "qlora": qlora})
    said = {claim.name: claim.found for claim in claims(parts)}
    assert said["quality"].endswith(verdict)
    assert said["memory"] == ""  # not measured


def test_a_task_without_all_ways_is_left_out() -> None:
    assert summaries(quality({"full": 88, "lora": 90})) == {}


def test_runs_come_out_of_the_file_as_they_went_in() -> None:
    assert read([{"rate": 1.0, "seed": 2, "chosen_on_loss": 0.5, "held_out_loss": 0.6, "right": None, "of": 3}]) == [
        Run(1.0, 2, 0.5, 0.6, None, 3)
    ]


def test_without_results_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make claims"):
        page.newest(tmp_path)
