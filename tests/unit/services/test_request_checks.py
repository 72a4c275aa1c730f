"""Bounds of every field of a generation request, and that all bad fields are named at once."""

from __future__ import annotations

import dataclasses
import math

import pytest

from loramux_server.app.app import limits_from
from loramux_server.config import load
from loramux_server.core.callers.principal import LOCAL
from loramux_server.core.errors import Error, FieldViolation
from loramux_server.core.types import Message, SamplingParams, StackItem
from loramux_server.services.common.checks import context_violation
from loramux_server.services.common.limits import Limits
from loramux_server.services.inference.checks import check_generation
from loramux_server.services.inference.types import GenerateRequest

NAN, INF = math.nan, math.inf
VOCAB = 100
GOOD = GenerateRequest(prompt="hello", principal=LOCAL)


def fields_of(request: GenerateRequest) -> list[str]:
    return [violation.field for violation in violations_of(request)]


def violations_of(request: GenerateRequest) -> tuple[FieldViolation, ...]:
    try:
        check_generation(request, Limits(), VOCAB)
    except Error as error:
        return error.violations
    return ()


def sampled(**settings: object) -> GenerateRequest:
    return dataclasses.replace(GOOD, sampling=SamplingParams(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
        {"temperature": 10.0, "top_p": 1e-6, "top_k": 2**31 - 1, "min_p": 1.0},
        {"presence_penalty": -2.0, "frequency_penalty": 2.0, "repetition_penalty": 10.0},
        {"max_tokens": 1, "min_tokens": 1},
        {"max_tokens": Limits().max_new_tokens},
        {"logit_bias": ((0, -100.0), (99, 100.0))},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"logprobs": 0},
        {"logprobs": 20},
        {"stop_token_ids": (0, 99)},
    ],
)
def test_values_on_the_bounds_are_taken(settings: dict[str, object]) -> None:
    assert fields_of(sampled(**settings)) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", v) for v in (-1.0, -1e-9, 10.5, 1e9, NAN, INF, -INF)),
        *(("top_p", v) for v in (0.0, -0.1, 1.01, NAN, INF)),
        *(("top_k", v) for v in (-1, -5, 2**31)),
        *(("min_p", v) for v in (-0.1, 1.1, 2.0, NAN)),
        *(("repetition_penalty", v) for v in (0.0, -1.0, 11.0, 1e30, NAN, INF)),
        *(("presence_penalty", v) for v in (-2.1, 2.1, 1e30, -1e30, NAN)),
        *(("frequency_penalty", v) for v in (-2.1, 2.1, 1e30, NAN, INF)),
        *(("max_tokens", v) for v in (0, -1, 32_769, 2**31 - 1)),
        *(("min_tokens", v) for v in (-1, 129)),
        *(("seed", v) for v in (2**63, -(2**63) - 1)),
        *(("logprobs", v) for v in (-1, 21)),
    ],
)
def test_values_beyond_the_bounds_are_named(field: str, value: float) -> None:
    assert fields_of(sampled(**{field: value})) == [field]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"logit_bias": ((100, 1.0),)}, "logit_bias[100]"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias[-1]"),
        ({"logit_bias": ((5, NAN),)}, "logit_bias[5]"),
        ({"logit_bias": ((5, 100.5),)}, "logit_bias[5]"),
        ({"logit_bias": ((5, 1.0), (5, 2.0))}, "logit_bias[5]"),
        ({"logit_bias": tuple((i, 0.0) for i in range(1025))}, "logit_bias"),
        ({"stop_token_ids": (1, 100)}, "stop_token_ids[1]"),
        ({"stop_token_ids": tuple(range(65))}, "stop_token_ids"),
    ],
)
def test_token_tables_are_checked_entry_by_entry(settings: dict[str, object], field: str) -> None:
    assert fields_of(sampled(**settings)) == [field]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (GenerateRequest(principal=LOCAL), "prompt"),
        (GenerateRequest(prompt="", principal=LOCAL), "prompt"),
        (GenerateRequest(prompt="a", messages=(Message("user", "b"),), principal=LOCAL), "prompt"),
        (GenerateRequest(prompt="lone \ud800 surrogate", principal=LOCAL), "prompt"),
        (GenerateRequest(prompt="ä" * (1 << 19) + "x", principal=LOCAL), "prompt"),
        (GenerateRequest(messages=(Message("user", "a"), Message("wizard", "b")), principal=LOCAL), "messages[1].role"),
        (GenerateRequest(messages=(Message("<|im_end|>", "b"),), principal=LOCAL), "messages[0].role"),
        (GenerateRequest(messages=(Message("user", "\udfff"),), principal=LOCAL), "messages[0].content"),
        (
            GenerateRequest(messages=(Message("user", "x" * (1 << 20)), Message("user", "y")), principal=LOCAL),
            "messages",
        ),
        (GenerateRequest(messages=(Message("user", "x"),) * 1025, principal=LOCAL), "messages"),
        (dataclasses.replace(GOOD, n=0), "n"),
        (dataclasses.replace(GOOD, n=-1), "n"),
        (dataclasses.replace(GOOD, n=17), "n"),
        (dataclasses.replace(GOOD, stop=("a",) * 17), "stop"),
        (dataclasses.replace(GOOD, stop=("a", "")), "stop[1]"),
        (dataclasses.replace(GOOD, stop=("x" * 513,)), "stop[0]"),
        (dataclasses.replace(GOOD, stop=("\ud800",)), "stop[0]"),
    ],
)
def test_texts_and_counts(request_: GenerateRequest, field: str) -> None:
    assert fields_of(request_) == [field]


@pytest.mark.parametrize(
    ("items", "field"),
    [
        ([StackItem("a", NAN)], "adapters[0].weight"),
        ([StackItem("a"), StackItem("b", INF)], "adapters[1].weight"),
        ([StackItem("a", 1e30)], "adapters[0].weight"),
        ([StackItem("a", -100.1)], "adapters[0].weight"),
        ([StackItem("a"), StackItem("a")], "adapters[1].adapter"),
        ([StackItem("a@1"), StackItem("b"), StackItem("a@2")], "adapters[2].adapter"),
        ([StackItem("")], "adapters[0].adapter"),
        *(
            ([StackItem("ok"), StackItem(bad)], "adapters[1].adapter")
            for bad in (
                "@3",
                "../x",
                "..%2f",
                "/abs",
                "C:\\",
                "a\0b",
                ".",
                "a@",
                "a@0",
                "a@1@2",
                "x" * 10_000,
                "a\ud800",
            )
        ),
        ([StackItem(f"a{i}") for i in range(9)], "adapters"),
        ([StackItem(f"a{i}") for i in range(1000)], "adapters"),
    ],
)
def test_stacks(items: list[StackItem], field: str) -> None:
    assert fields_of(dataclasses.replace(GOOD, adapters=tuple(items))) == [field]


def test_eight_entries_and_weight_zero_are_fine() -> None:
    items = tuple(StackItem(f"a{i}", weight) for i, weight in enumerate([0.0, -0.0, 1.0, -100.0, 100.0, 0.5, 1.3, 2.0]))
    assert fields_of(dataclasses.replace(GOOD, adapters=items)) == []


def test_every_bad_field_is_named_at_once() -> None:
    request = GenerateRequest(
        prompt="",
        adapters=(StackItem("a", NAN), StackItem("a")),
        sampling=SamplingParams(temperature=-1, top_p=0, max_tokens=0),
        stop=("",),
        n=0,
        principal=LOCAL,
    )
    assert fields_of(request) == [
        "prompt",
        "adapters[0].weight",
        "adapters[1].adapter",
        "max_tokens",
        "temperature",
        "top_p",
        "stop[0]",
        "n",
    ]


def test_a_long_name_is_cut_in_the_message() -> None:
    request = dataclasses.replace(GOOD, adapters=(StackItem("x" * 10_000),))
    violations = violations_of(request)
    assert len(violations[0].description) < 300


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    assert context_violation("prompt", 255, 256) is None
    violation = context_violation("prompt", 256, 256)
    assert violation is not None
    violation = context_violation("messages", 300, 256)
    assert violation is not None
    assert violation.field == "messages"
    assert "300" in violation.description
    assert "256" in violation.description


def format_fields(**shape: object) -> list[str]:
    return fields_of(dataclasses.replace(GOOD, response_format=shape))


@pytest.mark.parametrize(
    "shape",
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": "{}"},
        {"type": "regex", "regex": "a" * (64 << 10)},
        {"type": "choice", "choice": ["x"] * 256},
        {"type": "grammar", "grammar": "start: x"},
    ],
)
def test_shapes_of_an_answer(shape: dict[str, object]) -> None:
    assert format_fields(**shape) == []


@pytest.mark.parametrize(
    ("shape", "field"),
    [
        ({}, "response_format"),
        ({"type": "yaml"}, "response_format"),
        ({"type": "regex"}, "response_format.regex"),
        ({"type": "regex", "regex": ""}, "response_format.regex"),
        ({"type": "regex", "regex": "\ud800"}, "response_format.regex"),
        ({"type": "json_schema", "json_schema": " " * ((64 << 10) + 1)}, "response_format.json_schema"),
        ({"type": "grammar", "grammar": "é" * (33 << 10)}, "response_format.grammar"),
        ({"type": "choice", "choice": []}, "response_format.choice"),
        ({"type": "choice", "choice": ["a", ""]}, "response_format.choice[1]"),
        ({"type": "choice", "choice": ["x"] * 257}, "response_format.choice"),
        ({"type": "choice", "choice": ["x" * 40_000, "y" * 40_000]}, "response_format.choice"),
    ],
)
def test_shapes_that_no_answer_can_have(shape: dict[str, object], field: str) -> None:
    assert format_fields(**shape) == [field]


def test_limits_of_the_operator_hold() -> None:
    settings = {"max_choices": "2", "max_tools_size": "10", "max_prompt_size": "20", "max_grammar_size": "8"}
    limits = limits_from(load(settings).settings)
    wanted = GenerateRequest(
        messages=(Message("user", "x" * 30),),
        n=3,
        response_format={"type": "regex", "regex": "a{1,1000}"},
        principal=LOCAL,
    )
    with pytest.raises(Error) as refused:
        check_generation(wanted, limits, VOCAB)
    assert {v.field for v in refused.value.violations} == {"messages", "n", "response_format.regex"}
    with pytest.raises(Error, match="tools: has 22 bytes, at most 10"):
        check_generation(dataclasses.replace(wanted, tools="[" + " " * 20 + "]"), limits, VOCAB)
    assert limits_from(load({}).settings) == Limits()
