"""Bounds of every training setting, and targets and layers against the base."""

from __future__ import annotations

import dataclasses
import math

import pytest

from loramux_server.core.jobs import JobRequest, TrainSpec
from loramux_server.core.types import StackItem
from loramux_server.services.common.limits import Limits
from loramux_server.services.jobs.checking.settings import job_violations, selected_modules, spec_violations

from .fakes import engine_info

NAN, INF = math.nan, math.inf
INFO = engine_info(100)
GOOD = JobRequest(name="acme", dataset_id="d", tenant="default")


def fields_of(**settings: object) -> list[str]:
    return [v.field for v in spec_violations(TrainSpec(**settings), INFO, Limits())]  # type: ignore[arg-type]


def test_the_defaults_are_fine() -> None:
    assert job_violations(GOOD, INFO, Limits()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("rank", v) for v in (0, -1, 257)),
        *(("alpha", v) for v in (0.0, -1.0, NAN, INF, 1e30)),
        *(("dropout", v) for v in (-0.1, 1.0, NAN)),
        *(("learning_rate", v) for v in (0.0, -1.0, NAN, INF, 1e9)),
        *(("lr_scheduler", v) for v in ("", "polynomial")),
        *(("warmup_ratio", v) for v in (-0.1, 1.1, NAN)),
        *(("warmup_steps", v) for v in (-1, 2_000_000)),
        *(("beta1", v) for v in (-0.1, 1.0, NAN)),
        *(("beta2", v) for v in (-0.1, 1.0, NAN)),
        *(("weight_decay", v) for v in (-0.1, 11.0, NAN)),
        *(("max_grad_norm", v) for v in (0.0, -1.0, NAN, INF)),
        *(("epochs", v) for v in (0.0, -1.0, 1e6, NAN, INF)),
        *(("max_steps", v) for v in (0, -1, 10**9)),
        *(("batch_size", v) for v in (0, -1, 1025)),
        *(("max_length", v) for v in (0, 1, 257)),
        *(("seed", v) for v in (-1, 2**63)),
        *(("method", v) for v in ("", "ppo")),
        *(("beta", v) for v in (0.0, -1.0, NAN, INF)),
        *(("replay_rows", v) for v in (-1, 1, 10**6)),
        *(("layers", v) for v in ((), (4,), (-1,), (0, 9))),
        *(("chat_template_kwargs", v) for v in ("x", "[]", '{"a": NaN}', '{"a b": 1}')),
        ("target_modules", ()),
        ("target_modules", ("all-linear", "q_proj")),
    ],
)
def test_values_beyond_the_bounds_are_named(field: str, value: object) -> None:
    assert fields_of(**{field: value}) == [field]


def test_an_unknown_target_gets_a_suggestion() -> None:
    spec = TrainSpec(target_modules=("q_proj", "q_porj", "lm_head", "(a+)+$"))
    violations = list(spec_violations(spec, INFO, Limits()))
    assert [v.field for v in violations] == ["target_modules[1]", "target_modules[2]", "target_modules[3]"]
    assert "did you mean 'q_proj'?" in violations[0].description
    assert "down_proj, gate_proj" in violations[1].description


def test_targets_are_ends_of_names_within_the_layers() -> None:
    assert len(selected_modules(TrainSpec(), INFO)) == 28
    assert selected_modules(TrainSpec(target_modules=("self_attn.q_proj",), layers=(1, 3)), INFO) == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.3.self_attn.q_proj",
    ]
    whole = ("model.layers.2.mlp.up_proj",)
    assert selected_modules(TrainSpec(target_modules=whole), INFO) == list(whole)


def test_stacks_underneath_follow_the_rules_of_stacks() -> None:
    request = dataclasses.replace(
        GOOD,
        on_top_of=((), (StackItem("a", NAN),), (StackItem("b"), StackItem("b@2"))),
        dataset_id="",
        metadata={"k": "\ud800"},
    )
    assert [v.field for v in job_violations(request, INFO, Limits())] == [
        "on_top_of[1][0].weight",
        "on_top_of[2][1].adapter",
        "dataset_id",
        "metadata['k']",
    ]
