"""Datasets from bytes: every shape people write, and every problem with its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.core.errors import Code, Error
from loramux_server.core.types import StackItem
from loramux_server.data.dataset import Dataset, DatasetLimits, check_dataset
from loramux_server.data.label_masks import render_marked
from loramux_server.data.problems import SHOWN
from loramux_server.text import TextTokenizer
from tests.datasets import load_dataset
from tests.examples import examples

GOOD = {"prompt": "Where?", "completion": " Here."}
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def load(smollm: TextTokenizer) -> Any:
    def call(data: bytes, **options: Any) -> Dataset:
        return load_dataset(data, smollm, **{"max_length": 512, **options})

    return call


@pytest.fixture
def refused(load: Any) -> Any:
    """Load bad data; gives (field, description) of each violation."""

    def call(data: bytes, **options: Any) -> list[tuple[str, str]]:
        with pytest.raises(Error) as caught:
            load(data, **options)
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.reason == "DATASET_INVALID"
        return [(violation.field, violation.description) for violation in caught.value.violations]

    return call


def learned(dataset: Dataset, tokenizer: TextTokenizer) -> list[str]:
    return [
        segment.text
        for example in dataset.examples
        for segment in render_marked(example.row, tokenizer)
        if segment.trained
    ]


def test_shapes_may_be_mixed(load: Any, smollm: TextTokenizer) -> None:
    dataset = load(
        lines(
            GOOD,
            {"text": "x raw"},
            {"messages": [USER, ANSWER]},
            {"prompt": [USER, ANSWER, USER], "completion": [{"role": "assistant", "content": "second"}]},
            {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "content": "kept", "weight": 1}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "in "}, {"text": "parts"}]}, ANSWER]},
        )
    )
    assert learned(dataset, smollm) == [
        " Here.<|im_end|>", " raw<|im_end|>", "a<|im_end|>", "second<|im_end|>", "kept<|im_end|>", "a<|im_end|>"
    ]  # fmt: skip
    assert [example.line for example in dataset.examples] == [1, 2, 3, 4, 5, 6]
    assert "in parts" in smollm.decode(dataset.rows[5].input_ids)
    report = dataset.report
    lengths = [len(row.input_ids) for row in dataset.rows]
    assert (report.rows, report.examples, report.too_long, report.duplicates) == (6, 6, 0, 0)
    assert (report.tokens, report.longest) == (sum(lengths), max(lengths))
    assert report.trained_tokens == sum(sum(row.labels) for row in dataset.rows)


def test_line_ends_blank_lines_and_json_lists(load: Any) -> None:
    one, two = json.dumps(GOOD).encode(), json.dumps({"text": "more text"}).encode()
    for data, where in [
        (one + b"\r\n\r\n  \n" + two, [1, 4]),
        (b"[" + one + b",\n\n" + two + b"]\n", [1, 3]),
        (b'{"data": [' + one + b",\n" + two + b"]}", [1, 2]),
        (b'\n{\n "data" : [\n' + one + b"\n,\n" + two + b'\n], "version": 3\n}\n', [4, 6]),
        (b"\n [\n" + one + b"\n,\n" + two + b"\n]", [3, 5]),
    ]:
        assert [example.line for example in load(data).examples] == where


def test_stacks_of_rows_are_kept(load: Any) -> None:
    stacks = ["acme", ["acme", "summit@3"], {"acme": 1.3, "summit": 1}, [], None]
    dataset = load(lines(*({**GOOD, "on_top_of": stack} for stack in stacks)))
    assert [example.on_top_of for example in dataset.examples] == [
        (StackItem("acme"),),
        (StackItem("acme"), StackItem("summit@3")),
        (StackItem("acme", 1.3), StackItem("summit", 1.0)),
        (),
        None,
    ]
    assert dataset.report.duplicates == 0  # the same words on another stack are another row


PROBLEMS: list[tuple[Any, str]] = [
    (b"\xff", "is not valid UTF-8 at byte 1"),
    (b'{"text": "caf\xe9"}', "is not valid UTF-8 at byte 14"),
    (b"{", "is not JSON"),
    (b'{"text": "a"} {"text": "b"}', "is not JSON: Extra data"),
    (b'{"text": "a", "x": NaN}', "NaN is no JSON value"),
    (b'{"text": "a", "x": -Infinity}', "-Infinity is no JSON value"),
    (b'{"x": ' + b"1" * 5000 + b"}", "is not JSON: Exceeds the limit"),
    (b"[" * 100_000, "is nested too deeply"),
    (b'{"text": "a", "x": ' + b"[" * 900 + b"]" * 900 + b"}", None),
    (b'{"text": "\\ud83d"}', "text holds a lone surrogate"),
    (3, "is a number, not a JSON object"),
    (None, "is null, not a JSON object"),
    ("x", "is a string, not a JSON object"),
    ({}, "has no known shape (fields: none)"),
    ({"instruction": "a", "output": "b"}, "has no known shape (fields: instruction, output)"),
    ({"prompt": "a"}, "has no completion"),
    ({"completion": "a"}, "has no prompt"),
    ({"prompt": "a", "completion": 3}, "completion must be a string"),
    ({"prompt": "a", "completion": " \n"}, "completion is empty"),
    ({"prompt": "", "completion": "a"}, "prompt is empty; use text"),
    ({"prompt": [USER], "completion": "a"}, "must both be strings or both be lists"),
    ({"prompt": [USER], "completion": []}, "completion is empty"),
    ({"prompt": [USER, ANSWER], "completion": [USER]}, "no assistant turn in completion"),
    ({"text": None}, "text must be a string"),
    ({"text": "  "}, "text is empty"),
    ({"text": "a", "prompt": "b", "chosen": "c"}, "has no rejected"),
    ({"messages": []}, "messages must be a list with at least one message"),
    ({"messages": "hi"}, "messages must be a list"),
    ({"messages": ["hi"]}, "messages[0] is not an object"),
    ({"messages": [USER]}, "no assistant turn in messages"),
    ({"messages": [ANSWER]}, "messages[0] is an assistant turn that answers nothing"),
    ({"messages": [USER, {**ANSWER, "weight": 0}]}, "every assistant turn has weight 0"),
    ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "messages[1].weight is 0.5; it must be 0 or 1"),
    ({"messages": [{"role": "human", "content": "q"}, ANSWER]}, "messages[0] has role 'human'; roles are assistant"),
    ({"messages": [{"content": "q"}, ANSWER]}, "messages[0] has no role"),
    ({"messages": [{"role": ["user"], "content": "q"}, ANSWER]}, "messages[0] has role"),
    ({"messages": [{"role": "user"}, ANSWER]}, "messages[0] has no content"),
    ({"messages": [{"role": "user", "content": ""}, ANSWER]}, "messages[0].content is empty"),
    ({"messages": [{"role": "user", "content": 3}, ANSWER]}, "messages[0].content must be a string"),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[1].content is empty"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "parts that are not text"),
    ({"messages": [USER, {**ANSWER, "tool_calls": "x"}]}, "messages[1].tool_calls must be a list"),
    (
        {"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "arguments of 'f' are not JSON",
    ),
    ({"messages": [USER, ANSWER], "tools": {}}, "tools must be a list of objects"),
    ({"messages": [USER, ANSWER], "functions": []}, '"functions" is the old spelling; use "tools"'),
    ({**GOOD, "on_top_of": 3}, "on_top_of must be a list of adapter names"),
    ({**GOOD, "on_top_of": [""]}, "on_top_of must be a list of adapter names"),
    ({**GOOD, "on_top_of": ["a", "a"]}, "on_top_of names an adapter twice"),
    ({**GOOD, "on_top_of": list("abcdefghi")}, "on_top_of has 9 adapters, at most 8"),
    ({**GOOD, "on_top_of": {"a": "1"}}, "the weight of 'a' must be a number between -100 and 100"),
    ({**GOOD, "on_top_of": {"a": True}}, "the weight of 'a' must be a number between -100 and 100"),
    (b'{"prompt": "a", "completion": "b", "on_top_of": {"a": 1e999}}', "the weight of 'a' must be a number"),
    ({**GOOD, "on_top_of": {"a": 10**400}}, "the weight of 'a' must be a number"),
    ({**GOOD, "on_top_of": {"a": -100.5}}, "the weight of 'a' must be a number between -100 and 100"),
    ({"text": "word " * 600}, "at most 512 are allowed"),
]


@pytest.mark.parametrize(("row", "complaint"), PROBLEMS)
def test_each_problem_is_named_with_its_line(row: Any, complaint: str | None, load: Any, refused: Any) -> None:
    raw = row if isinstance(row, bytes) else json.dumps(row).encode()
    data = lines(GOOD) + raw + b"\n" + lines(GOOD)
    if complaint is None:
        assert load(data).report.rows == 3
        return
    ((field, description),) = refused(data)
    assert field == "data[line 2]"
    assert complaint in description


def test_all_problems_are_told_together_in_order(refused: Any) -> None:
    data = lines({"text": "word " * 600}, GOOD, [1], {"messages": [{"role": "x", "content": ""}, ANSWER]}) + b"{\n"
    found = refused(data, field="validation")
    assert [field for field, _ in found] == [f"validation[line {line}]" for line in (1, 3, 4, 4, 5)]


def test_twenty_are_shown_and_all_are_counted(load: Any) -> None:
    with pytest.raises(Error) as caught:
        load(lines(*[{}] * 2500, {"text": "word " * 600}))
    error = caught.value
    assert error.message.startswith("2501 problems in the dataset: line 1: ")
    assert "line 20: " in error.message
    assert "line 21: " not in error.message
    assert [violation.field for violation in error.violations] == [f"data[line {n}]" for n in range(1, SHOWN + 1)] + [
        "data"
    ]
    assert "2481 more" in error.violations[-1].description


def test_descriptions_are_short_enough_for_a_header(refused: Any) -> None:
    found = refused(lines(*[{"x" * 10_000: 1}] * 20))
    assert sum(len(field) + len(description) for field, description in found) < 8000


@pytest.mark.parametrize("data", [b"", b"\n \n", b"[]", b"[\n]\n"])
def test_no_rows_are_refused(data: bytes, refused: Any) -> None:
    assert refused(data) == [("data", "the dataset has no rows; give at least one JSON object per line")]


def test_field_29_byte_order_marks_are_skipped(load: Any, refused: Any) -> None:
    text = (json.dumps(GOOD) + "\n" + json.dumps({"text": "über"}, ensure_ascii=False)).replace("Where", "Wo")
    plain = load(text.encode()).rows
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be", "utf-32"):
        data = ("\ufeff" * (encoding == "utf-16-be") + text).encode(encoding)
        assert load(data).rows == plain, encoding
    assert refused(b"\xff\xfe{}\x00") == [
        ("data[line 1]", "the file begins as UTF-16-LE and is not valid UTF-16-LE; save it as UTF-8")
    ]


@pytest.mark.parametrize(
    ("data", "line", "complaint"),
    [
        (b'[{"text": "a b"},\n{"text": "b c"}\n{"text": "c d"}]', 3, "expected ',' or ']'"),
        (b'[{"text": "a b"},\n\n', 3, "is not JSON"),
        (b'[{"text": "a b"},\nNaN]', 2, "NaN is no JSON value"),
        (b'[{"text": "a b"},\n{"text": "\xff"}]', 2, "is not valid UTF-8"),
        (b'[{"text": "a b"},\n"x"]', 2, "is a string, not a JSON object"),
        (b'[1]\n{"text": "a b"}', 1, "is a list, not a JSON object"),
        (b'{"data": [\n{"text": "a b"}\n], 3}', 3, "does not end the object"),
        (b'{"data": [\n{"text": "a b"},\n3]}', 3, "is a number, not a JSON object"),
        (b"PAR1\x00", 1, "the file is a Parquet file; send JSON lines"),
        (b"\x1f\x8b\x08", 1, "compressed by gzip"),
    ],
)
def test_problems_in_a_list_have_lines_too(data: bytes, line: int, complaint: str, refused: Any) -> None:
    ((field, description),) = refused(data)
    assert field == f"data[line {line}]"
    assert complaint in description


def test_limits_are_settings(refused: Any) -> None:
    ((field, description),) = refused(lines(GOOD), limits=DatasetLimits(max_bytes=10))
    assert (field, "at most 10 are taken" in description) == ("data", True)
    ((_, description),) = refused(lines(GOOD, GOOD, GOOD), limits=DatasetLimits(max_rows=2))
    assert "more than 2 rows" in description


def test_a_row_may_be_as_long_as_allowed(load: Any, refused: Any) -> None:
    longest = load(lines(GOOD)).report.longest
    assert load(lines(GOOD), max_length=longest).report.rows == 1
    ((_, description),) = refused(lines(GOOD), max_length=longest - 1)
    assert description == f"the row has {longest} tokens; at most {longest - 1} are allowed: shorten or split it"


def test_warnings_do_not_refuse(load: Any) -> None:
    rows = [{**GOOD, "id": number} for number in range(3)] + [{"messages": [USER, ANSWER, USER]}]
    report = load(lines(*rows)).report
    assert report.duplicates == 2
    told = "\n".join(report.warnings)
    assert "only 4 rows" in told
    assert "2 rows repeat an earlier one" in told
    assert "fields that are not used: id (3 rows)" in told
    assert "1 conversation does not end with an assistant turn that is trained on (line 4 first)" in told
    assert load(lines(*({"text": f"number {number}"} for number in range(10)))).report.warnings == ()


def test_a_template_without_end_token_is_told(with_template: Any) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer = with_template(template + "{% if add_generation_prompt %}assistant: {% endif %}")
    report = load_dataset(lines({"messages": [USER, ANSWER]}), tokenizer, max_length=100).report
    assert "the adapter does not learn to stop" in "\n".join(report.warnings)


def test_a_conversation_may_give_several_examples(family: Any) -> None:
    messages = [USER, {"role": "assistant", "content": "<think>\nw\n</think>\n\na"}, USER, ANSWER]
    dataset = load_dataset(lines({"messages": messages, "on_top_of": ["acme"]}), family("qwen"), max_length=200)
    assert (dataset.report.rows, dataset.report.examples) == (1, 2)
    assert [(example.line, example.on_top_of) for example in dataset.examples] == [(1, (StackItem("acme"),))] * 2


def test_tool_calls_in_openais_spelling(family: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Bonn"}'}}
    row = {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": ""},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    dataset = load_dataset(lines(row), family("qwen"), max_length=300)
    (example,) = dataset.examples
    text = family("qwen").decode(example.row.input_ids, skip_special_tokens=False)
    assert '{"name": "f", "arguments": {"city": "Bonn"}}' in text
    assert "# Tools" in text


FIELDS = ["messages", "prompt", "completion", "text", "role", "content", "tools", "weight", "on_top_of", "tool_calls"]
FIELDS += ["chosen", "rejected", "input", "preferred_output", "non_preferred_output", "content", "function", "name"]
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats()
    | st.sampled_from(["", "x", "user", "assistant", "\ud800"])
)
json_values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


def test_no_input_makes_it_crash(smollm: TextTokenizer) -> None:
    refusals: list[Error] = []

    @examples(300)
    @given(st.one_of(st.binary(max_size=60), st.lists(json_values, max_size=3).map(lambda rows: lines(*rows))))
    def refused_or_loaded(data: bytes) -> None:
        try:
            dataset = load_dataset(data, smollm, max_length=100)
        except Error as error:
            refusals.append(error)
        else:
            assert dataset.report.trained_tokens > 0

    refused_or_loaded()
    assert {error.code for error in refusals} == {Code.INVALID_ARGUMENT}
    assert all(error.violations for error in refusals)


def nested(depth: int, leaf: Any = 1) -> Any:
    for level in range(depth):
        leaf = [leaf] if level % 2 else {"x": leaf}
    return leaf


HUGE = 10**400
FIELDS: list[Callable[[Any], dict[str, Any]]] = [
    lambda v: {"messages": v},
    lambda v: {"messages": [v]},
    lambda v: {"messages": [USER, v]},
    lambda v: {"messages": [{**USER, "content": v}, ANSWER]},
    lambda v: {"messages": [{**USER, "role": v}, ANSWER]},
    lambda v: {"messages": [{**USER, "name": v}, ANSWER]},
    lambda v: {"messages": [USER, {**ANSWER, "weight": v}]},
    lambda v: {"messages": [USER, {**ANSWER, "reasoning_content": v}]},
    lambda v: {"messages": [USER, {**ANSWER, "tool_calls": v}]},
    lambda v: {"messages": [USER, {**ANSWER, "tool_calls": [v]}]},
    lambda v: {"messages": [USER, {**ANSWER, "tool_calls": [{"function": v}]}]},
    lambda v: {"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": v}}]}]},
    lambda v: {"messages": [USER, {**ANSWER, "tool_calls": [{"name": v}]}]},
    lambda v: {"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": v}}]}]},
    lambda v: {"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"arguments": json.dumps(v)}}]}]},
    lambda v: {"messages": [USER, {"role": "tool", "content": v}, ANSWER]},
    lambda v: {"messages": [USER, ANSWER], "tools": v},
    lambda v: {"messages": [USER, ANSWER], "tools": [v]},
    lambda v: {"messages": [USER, ANSWER], "tools": [{"function": v}]},
    lambda v: {"messages": [USER, ANSWER], "tools": [{"function": {"name": "f", "parameters": v}}]},
    lambda v: {**GOOD, "on_top_of": v},
    lambda v: {**GOOD, "on_top_of": [v]},
    lambda v: {**GOOD, "on_top_of": {"a": v}},
    lambda v: {**GOOD, "prompt": v},
    lambda v: {**GOOD, "completion": v},
    lambda v: {"prompt": [USER], "completion": v},
    lambda v: {"text": v},
    lambda v: {"prompt": v, "chosen": "a", "rejected": "b"},
    lambda v: {"chosen": v, "rejected": [USER, ANSWER]},
    lambda v: {"prompt": [USER], "chosen": [ANSWER], "rejected": v},
    lambda v: {"input": v, "preferred_output": [ANSWER], "non_preferred_output": [USER]},
    lambda v: {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": v},
    lambda v: {**GOOD, "unknown": v},
    lambda v: v,
    lambda v: {"data": v},
]
VALUES = [nested(600), nested(90), nested(101), HUGE, -HUGE, [HUGE], {"a": HUGE}, 1e400, float("nan"), "\ud800"]
VALUES += [{"\ud800": 1}, {"a": "\udfff"}, 5, 0, "", " ", [], {}, None, True, -1.5, [[]], {"function": 5}, "\0", [None]]
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(VALUES) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("name", ["smollm", "qwen"])
def test_field_15_any_value_in_any_field_is_taken_or_refused_with_its_line(
    name: str, family: Callable[[str], TextTokenizer], smollm: TextTokenizer
) -> None:
    tokenizer = smollm if name == "smollm" else family(name)

    def check(made: Any, values: list[Any]) -> None:
        data = lines(GOOD) + b"".join(json.dumps(made(value)).encode() + b"\n" for value in values)
        dataset, problems = check_dataset(data, tokenizer, max_length=512)
        found = {line for line, _ in problems.listed()} | {example.line for example in dataset.examples}
        if problems.count <= SHOWN:
            assert found == set(range(1, len(values) + 2))
        for _, description in problems.listed():
            description.encode()  # can be told
        for row in dataset.examples:
            assert row.row.input_ids

    for made in FIELDS:
        for start in range(0, len(VALUES), 10):
            check(made, VALUES[start : start + 10])

    @examples(150)
    @given(st.sampled_from(FIELDS), any_json)
    def anything(made: Any, value: Any) -> None:
        check(made, [value])

    anything()


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (b'{"prompt": "a", "completion": "b", "on_top_of": {"a": 1' + b"0" * 400 + b"}}", "the weight of 'a' must be"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"function": 5}]}]}, "tool_calls[0].function must be an object"),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": 5}}]}]},
            "tool_calls[0].function.name must be a string",
        ),
        ({"messages": [USER, {**ANSWER, "name": nested(600)}]}, "messages is nested too deeply: at most 100"),
        ({"messages": [USER, ANSWER], "tools": [nested(600)]}, "tools is nested too deeply: at most 100"),
        ({"messages": [USER, {**ANSWER, "x": 1e400}]}, "messages[1].x is a number that is too large"),
        (b'{"text": "a", "text": "b"}', "has the field 'text' twice in one object"),
        ({"\ud800": 1}, "a field name holds a lone surrogate"),
    ],
)
def test_field_15_the_refusal_says_what_is_wrong(row: Any, complaint: str, refused: Any) -> None:
    raw = row if isinstance(row, bytes) else json.dumps(row).replace("Infinity", "1e400").encode()
    found = refused(lines(GOOD) + raw)
    assert {field for field, _ in found} == {"data[line 2]"}
    assert any(complaint in description for _, description in found)
