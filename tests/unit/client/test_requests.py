"""Spellings of arguments and the messages they become."""

from __future__ import annotations

import json

import pytest

from loramux import InvalidArgument, StackItem
from loramux._wire.messages import requests, stacks, train_requests
from loramux.v1 import inference_pb2, training_pb2


def spelled(adapters: object) -> list[tuple[str, float | None]]:
    found = stacks.stack(adapters)  # type: ignore[arg-type]
    return [(e.adapter, e.weight if e.HasField("weight") else None) for e in found]


@pytest.mark.parametrize(
    ("adapters", "expected"),
    [
        (None, []),
        ([], []),
        ({}, []),
        ("acme", [("acme", None)]),
        (["acme", "formal@3"], [("acme", None), ("formal@3", None)]),
        ({"acme": 1.0, "formal": 0.5}, [("acme", 1.0), ("formal", 0.5)]),
        ([("acme", 1), "formal", StackItem("pine", -0.5)], [("acme", 1.0), ("formal", None), ("pine", -0.5)]),
        ([["acme", 0]], [("acme", 0.0)]),
    ],
)
def test_a_stack_may_be_written_in_many_ways(adapters: object, expected: object) -> None:
    assert spelled(adapters) == expected


@pytest.mark.parametrize(
    ("adapters", "field"),
    [
        (5, "adapters"),
        ([5], "adapters[0]"),
        (["acme", ("formal", 1, 2)], "adapters[1]"),
        ([("acme", "heavy")], "adapters[0].weight"),
        ([(5, 1.0)], "adapters[0].adapter"),
    ],
)
def test_a_stack_that_is_none_is_refused_by_its_place(adapters: object, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        spelled(adapters)
    assert [v.field for v in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("on_top_of", "expected"),
    [
        (None, []),
        ([], []),
        ("acme", [["acme"]]),
        (["acme"], [["acme"]]),
        (["acme", "formal"], [["acme", "formal"]]),
        ([("pine", 1.3)], [["pine"]]),
        ({"pine": 1.3, "oak": 1}, [["pine", "oak"]]),
        ([{"pine": 1.3}, ["summit"], []], [["pine"], ["summit"], []]),
        ([["a", ("b", 2)], ("c", "d")], [["a", "b"], ["c", "d"]]),
    ],
)
def test_one_stack_underneath_or_several(on_top_of: object, expected: list[list[str]]) -> None:
    assert [[e.adapter for e in entries] for entries in stacks.stacks(on_top_of)] == expected  # type: ignore[arg-type]


def test_a_mix_of_names_and_stacks_underneath_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="on_top_of"):
        stacks.stacks(["acme", ["formal"]])


def test_what_is_left_out_is_not_sent() -> None:
    request = requests.generate("hi", None, None, {"temperature": 0.0, "seed": None, "logprobs": 0})
    assert {f.name for f, _ in request.ListFields()} == {"prompt", "temperature", "logprobs"}


def test_a_chat_and_all_options_become_a_request() -> None:
    request = requests.generate(
        None,
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x", "weight": 0}],
        {"acme": 0.5},
        {
            "max_tokens": 5,
            "stop": "\n",
            "stop_token_ids": [7],
            "logit_bias": {3: -1.5},
            "n": 2,
            "response_format": {"json_schema": {"type": "object"}},
        },
    )
    assert [m.role for m in request.messages] == ["user", "assistant"]
    assert request.messages[1].HasField("weight")
    assert request.stop == ["\n"]
    assert dict(request.logit_bias) == {3: -1.5}
    assert json.loads(request.response_format.json_schema) == {"type": "object"}


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ({"regex": "a+"}, "regex"),
        ({"choice": ["yes", "no"]}, "choice"),
        ({"grammar": "start: x"}, "grammar"),
        ({"json_object": True}, "json_object"),
        ({"type": "regex", "regex": "a+"}, "regex"),
        ({"type": "choice", "choice": ["yes", "no"]}, "choice"),
        ({"type": "grammar", "grammar": "start: x"}, "grammar"),
        ({"type": "json_object"}, "json_object"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": True}}, "json_schema"),
    ],
)
def test_each_shape_of_answer(shape: dict[str, object], kind: str) -> None:
    message = requests.response_format(shape)
    assert message is not None
    assert message.WhichOneof("format") == kind


def test_a_schema_is_written_in_either_way() -> None:
    schema = {"type": "object", "properties": {"type": {"const": "a"}}}
    short = requests.response_format({"json_schema": schema})
    assert short == requests.response_format({"type": "json_schema", "json_schema": {"schema": schema}})
    assert short is not None
    assert json.loads(short.json_schema) == schema


def test_text_is_no_shape() -> None:
    request = requests.generate("hi", None, None, {"response_format": {"type": "text"}})
    assert not request.HasField("response_format")


@pytest.mark.parametrize(
    ("prompt", "messages", "options", "field"),
    [
        (None, None, {}, "prompt"),
        ("hi", [{"role": "user", "content": "hi"}], {}, "prompt"),
        (None, ["hi"], {}, "messages[0]"),
        (None, [{"role": "user"}], {}, "messages[0]"),
        (None, [{"role": "user", "content": "a", "nick": "b"}], {}, "messages[0]"),
        (None, [{"role": "user", "content": "a", "name": 5}], {}, "messages[0].name"),
        (None, [{"role": "user", "content": None, "tool_calls": []}], {}, "messages[0].content"),
        (None, [{"role": "assistant", "tool_calls": [5]}], {}, "messages[0].tool_calls"),
        (None, [{"role": "assistant", "tool_calls": [{"a": float("nan")}]}], {}, "messages[0].tool_calls"),
        ("a", None, {"tools": {"type": "function"}}, "tools"),
        ("a", None, {"tools": [object()]}, "tools"),
        ("a", None, {"tools": [{"a": object()}]}, "tools"),
        (None, [{"role": "user", "content": 5}], {}, "messages[0].content"),
        ("hi", None, {"temprature": 1}, "temprature"),
        ("hi", None, {"temperature": "hot"}, "temperature"),
        ("hi", None, {"max_tokens": 1 << 40}, "max_tokens"),
        ("hi", None, {"stop": ["a", 5]}, "stop[1]"),
        ("hi", None, {"logit_bias": {"a": 1}}, "logit_bias"),
        ("hi", None, {"response_format": {}}, "response_format"),
        ("hi", None, {"response_format": {"yaml": 1}}, "response_format.yaml"),
        ("hi", None, {"response_format": {"type": "regex"}}, "response_format"),
        ("hi", None, {"response_format": {"type": "regex", "regex": "a", "choice": ["a"]}}, "response_format"),
        ("hi", None, {"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema"),
    ],
)
def test_what_no_message_can_say_is_refused_by_name(
    prompt: str | None, messages: list[dict[str, object]] | None, options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        requests.generate(prompt, messages, None, options)
    assert [v.field for v in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("15-17", [15, 16, 17]), ("4, 0,2-3", [0, 2, 3, 4]), ("7", [7]), ([3, 1], [3, 1])],
)
def test_layers(layers: str | list[int], expected: list[int]) -> None:
    assert list(train_requests.train_settings({"layers": layers}).layers) == expected


@pytest.mark.parametrize("layers", ["", "a", "3-1", "1-", "-1", "0-999999999", [], [-(1 << 40)]])
def test_layers_that_are_none(layers: object) -> None:
    with pytest.raises(InvalidArgument, match="layers"):
        train_requests.train_settings({"layers": layers})


def test_tools_go_as_openai_has_them() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "ü"}'}}
    chat = [
        {"role": "user", "content": "q", "name": "Ann", "refusal": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": [{"type": "text", "text": "1"}], "tool_call_id": "1", "name": "f"},
    ]
    tools, kwargs = [{"type": "function", "function": {"name": "f"}}], {"enable_thinking": False}
    given = {"tools": tools, "chat_template_kwargs": kwargs}
    made = (
        requests.generate(None, chat, None, given),
        requests.score(None, chat, " x", None, False, tools, kwargs),
        requests.tokenize(None, chat, False, tools, kwargs),
    )
    for request in made:
        asked, called, result = request.messages
        assert (asked.content, asked.name, asked.tool_calls) == ("q", "Ann", "")
        assert (called.content, json.loads(called.tool_calls)) == ("", [call])
        assert (result.content, result.tool_call_id, result.name) == ("1", "1", "f")
        assert json.loads(request.tools) == tools
        assert json.loads(request.chat_template_kwargs) == kwargs
    plain = requests.generate(None, chat[:1], None, {"tools": None, "chat_template_kwargs": None})
    assert (plain.tools, plain.chat_template_kwargs) == ("", "")


def test_which_tools_are_called() -> None:
    def sent(**options: object) -> inference_pb2.ToolChoice:
        return requests.generate("a", None, None, options).tool_choice

    named = {"type": "function", "function": {"name": "f"}}
    assert sent(tool_choice="none").mode == inference_pb2.TOOL_MODE_NONE
    assert sent(tool_choice="required", parallel_tool_calls=False) == inference_pb2.ToolChoice(
        mode=inference_pb2.TOOL_MODE_REQUIRED, single=True
    )
    assert sent(tool_choice=named) == inference_pb2.ToolChoice(mode=inference_pb2.TOOL_MODE_REQUIRED, name="f")
    assert not requests.generate("a", None, None, {"tool_choice": None}).HasField("tool_choice")
    for bad in ("any", {"type": "function"}, {"function": {"name": ""}}, 1):
        with pytest.raises(InvalidArgument, match="tool_choice"):
            sent(tool_choice=bad)
    with pytest.raises(InvalidArgument, match="parallel_tool_calls"):
        sent(parallel_tool_calls="no")


def test_arguments_of_the_chat_template_are_sent_as_json() -> None:
    def sent(value: object) -> str:
        return train_requests.train_settings({"chat_template_kwargs": value}).chat_template_kwargs

    assert sent({"enable_thinking": False, "x": ["ü"]}) == '{"enable_thinking": false, "x": ["ü"]}'
    assert sent('{"a": 1}') == '{"a": 1}'
    assert not train_requests.train_settings({"chat_template_kwargs": None}).HasField("chat_template_kwargs")
    for wrong in (5, [1], {1: 2}, {"a": float("nan")}, {"a": object()}, {"a": "\ud800"}, deep(100_000)):
        with pytest.raises(InvalidArgument, match="chat_template_kwargs"):
            sent(wrong)


def deep(levels: int) -> object:
    """Lists in lists."""
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return {"a": value}


def test_gates() -> None:
    def gate(value: object) -> training_pb2.Gate:
        request = train_requests.create_job(
            "acme",
            on_top_of=None,
            init_from=None,
            gate=value,  # type: ignore[arg-type]
            compare_prompt=None,
            recipe=None,
            metadata=None,
            idempotency_key="k",
            options={},
        )
        return request.gate

    assert gate(None) == training_pb2.Gate()
    assert gate("improves").kind == training_pb2.Gate.KIND_IMPROVES
    assert gate({"min_accuracy": 0.9}).min_accuracy == 0.9
    assert gate({"min_accuracy": 0.9}).match == training_pb2.Gate.MATCH_CONTAINED
    assert gate({"min_accuracy": 0.9, "match": "exact"}).match == training_pb2.Gate.MATCH_EXACT
    for wrong in ("perfect", {"max_loss": 1}, {}, {"match": "exact"}, {"min_accuracy": 0.9, "match": "close"}):
        with pytest.raises(InvalidArgument, match="gate"):
            gate(wrong)


def test_states_by_their_words() -> None:
    assert train_requests.job_states(["running"]) == [training_pb2.JOB_STATE_RUNNING]
    with pytest.raises(InvalidArgument, match="succeeded"):
        train_requests.job_states(["done"])


def test_field_37_continue_final_message_reaches_every_request() -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "It is"}]
    assert requests.generate(None, chat, None, {"continue_final_message": True}).continue_final_message
    assert requests.score(None, chat, " open", None, True).continue_final_message
    assert requests.tokenize(None, chat, True).continue_final_message
    assert not requests.tokenize(None, chat).continue_final_message
