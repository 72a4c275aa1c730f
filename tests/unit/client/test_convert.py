"""Other tools' training data become rows that the server takes, and what is left out is said."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loramux import InvalidArgument
from loramux.cli import main
from loramux.convert import Summary, convert, rows_of, write_rows

USER = {"role": "user", "content": "When does the mill open?"}
ANSWER = {"role": "assistant", "content": "At 6:40."}
SYSTEM = {"role": "system", "content": "You are the mill's clerk."}
HUMAN = {"from": "human", "value": "When does the mill open?"}
GPT = {"from": "gpt", "value": "At 6:40."}

FORMATS: dict[str, tuple[Any, Any]] = {
    "ShareGPT": ({"id": "x_0", "conversations": [HUMAN, GPT]}, {"messages": [USER, ANSWER]}),
    "ShareGPT with a system turn": (
        {"conversations": [{"from": "system", "value": SYSTEM["content"]}, HUMAN, GPT]},
        {"messages": [SYSTEM, USER, ANSWER]},
    ),
    "ShareGPT with a system field, begun by the model": (
        {"system": SYSTEM["content"], "conversations": [GPT, HUMAN, GPT, HUMAN]},
        {"messages": [SYSTEM, USER, ANSWER]},
    ),
    "ShareGPT under messages": ({"messages": [HUMAN, GPT]}, {"messages": [USER, ANSWER]}),
    "OpenAI's words under conversations": ({"conversations": [USER, ANSWER]}, {"messages": [USER, ANSWER]}),
    "Axolotl's turns that are not trained": (
        {"conversations": [HUMAN, {**GPT, "train": False}, HUMAN, {**GPT, "weight": 1}]},
        {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]},
    ),
    "ShareGPT preferences": (
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "Never."}},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "Never."}]},
    ),
    "ShareGPT preferences as texts": (
        {"conversations": [HUMAN], "chosen": "At 6:40.", "rejected": "Never."},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "Never."}]},
    ),
    "Alpaca": (
        {"instruction": "Translate.", "input": "Mühle", "output": "mill", "text": "Below is an instruction ..."},
        {"messages": [{"role": "user", "content": "Translate.\n\nMühle"}, {"role": "assistant", "content": "mill"}]},
    ),
    "Alpaca without input": (
        {"instruction": USER["content"], "input": "", "output": "At 6:40.", "history": [["Hi", "Hello"]]},
        {
            "messages": [
                *({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}),
                *(USER, ANSWER),
            ]
        },
    ),
    "Dolly": (
        {"instruction": "Who runs it?", "context": "Odo runs it.", "response": "Odo.", "category": "qa"},
        {
            "messages": [
                {"role": "user", "content": "Who runs it?\n\nOdo runs it."},
                {"role": "assistant", "content": "Odo."},
            ]
        },
    ),
    "questions": ({"question": USER["content"], "answer": "At 6:40."}, {"messages": [USER, ANSWER]}),
    "questions about a text": (
        {"context": "Odo runs it.", "question": "Who runs it?", "answer": "Odo.", "system_prompt": "Be brief."},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Who runs it?\n\nOdo runs it."},
                {"role": "assistant", "content": "Odo."},
            ]
        },
    ),
    "queries": ({"query": USER["content"], "response": "At 6:40."}, {"messages": [USER, ANSWER]}),
    "inputs": ({"input": USER["content"], "output": "At 6:40."}, {"messages": [USER, ANSWER]}),
    "prompts": ({"prompt": USER["content"], "response": "At 6:40."}, {"messages": [USER, ANSWER]}),
    "Orca's pairs": (
        {"system": SYSTEM["content"], "question": USER["content"], "chosen": "At 6:40.", "rejected": "Never."},
        {"prompt": [SYSTEM, USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "Never."}]},
    ),
    "Alpaca's pairs": (
        {"instruction": "When", "input": "does it open?", "chosen": "At 6:40.", "rejected": "Never."},
        {
            "prompt": [{"role": "user", "content": "When\n\ndoes it open?"}],
            "chosen": [ANSWER],
            "rejected": [{**ANSWER, "content": "Never."}],
        },
    ),
    "Gemini": (
        {
            "systemInstruction": {"role": "system", "parts": [{"text": SYSTEM["content"]}]},
            "contents": [
                {"role": "user", "parts": [{"text": USER["content"]}]},
                {"role": "model", "parts": [{"text": "At 6:40."}]},
            ],
        },
        {"messages": [SYSTEM, USER, ANSWER]},
    ),
    "OpenAI": (
        {"messages": [SYSTEM, USER, {**ANSWER, "weight": 1}]},
        {"messages": [SYSTEM, USER, {**ANSWER, "weight": 1}]},
    ),
    "OpenAI's pairs": (
        {
            "input": {"messages": [USER], "tools": []},
            "preferred_output": [ANSWER],
            "non_preferred_output": [{**ANSWER, "content": "No."}],
        },
        {
            "input": {"messages": [USER], "tools": []},
            "preferred_output": [ANSWER],
            "non_preferred_output": [{**ANSWER, "content": "No."}],
        },
    ),
    "binarized UltraFeedback": (
        {
            "prompt": USER["content"],
            "chosen": [USER, ANSWER],
            "rejected": [USER, {**ANSWER, "content": "No."}],
            "messages": [USER, ANSWER],
            "score_chosen": 9.0,
        },
        {"prompt": USER["content"], "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "No."}]},
    ),
    "fields in capitals": ({"Question": USER["content"], "Answer": "At 6:40."}, {"messages": [USER, ANSWER]}),
    "own fields in capitals": ({"Prompt": "a", "Completion": " b"}, {"prompt": "a", "completion": " b"}),
    "conversations as JSON text": ({"conversations": json.dumps([HUMAN, GPT])}, {"messages": [USER, ANSWER]}),
    "messages as JSON text": ({"messages": json.dumps([USER, ANSWER])}, {"messages": [USER, ANSWER]}),
    "roles of other tools": (
        {"messages": [{**USER, "role": "Human"}, {**ANSWER, "role": "ai"}]},
        {"messages": [USER, ANSWER]},
    ),
    "ShareGPT under loramux's pairs": (
        {"prompt": [HUMAN], "chosen": [GPT], "rejected": [{**GPT, "value": "Never."}], "messages": [HUMAN, GPT]},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "Never."}]},
    ),
    "plain": (
        {"prompt": "a", "completion": " b", "on_top_of": ["x"]},
        {"prompt": "a", "completion": " b", "on_top_of": ["x"]},
    ),
}


def written(rows: Iterable[Any], as_: Any = None) -> tuple[list[Any], Summary]:
    out, made = io.BytesIO(), list(rows)
    summary = write_rows(lambda: ((f"line {i}", row) for i, row in enumerate(made, 1)), out, as_=as_)
    return [json.loads(line) for line in out.getvalue().splitlines()], summary


@pytest.mark.parametrize("name", FORMATS)
def test_field_29_every_format_becomes_rows(name: str, tmp_path: Path) -> None:
    row, wanted = FORMATS[name]
    source, out = tmp_path / "theirs.json", tmp_path / "ours.jsonl"
    source.write_text(json.dumps([row, row], indent=1, ensure_ascii=False), encoding="utf-8-sig")
    summary = convert(source, out)
    assert [json.loads(line) for line in out.read_text().splitlines()] == [wanted] * 2
    assert (summary.read, summary.written, summary.left_out) == (2, 2, {})
    assert list(tmp_path.iterdir()) in ([source, out], [out, source])


def test_field_29_what_is_not_used_and_left_out_is_told() -> None:
    rows = [
        *({"conversations": [HUMAN, GPT], "id": i} for i in range(3)),
        {"conversations": [HUMAN]},
        {"conversations": [HUMAN, {"from": "alien", "value": "x"}]},
        {"conversations": [{"from": "human", "value": " "}, GPT]},
        {"input_ids": [1, 2], "labels": [1, 2]},
        {"segments": [{"label": True, "text": "x"}]},
        {"what": 1, "ever": 2},
        *({"what": 1, "ever": 2}, "x"),
    ]
    made, summary = written(rows)
    assert len(made) == summary.written == 3
    assert summary.formats == {"ShareGPT": 3}
    assert summary.unused == {"id": 3}
    told = "\n".join(summary.lines())
    for part in (
        "3 of 11 rows written: 3 of the format ShareGPT",
        "not used: id (3)",
        "left out 1: has no answer after a question (line 4 first)",
        "left out 1: has a turn of the unknown role 'alien' (line 5 first)",
        "left out 1: has an empty user turn (line 6 first)",
        "left out 1: is in the format tokenised rows: token ids belong to another tokenizer",
        "left out 1: is in the format Axolotl segments",
        "left out 2: has no known shape (fields: ever, what) (line 9 first)",
        "left out 1: is no JSON object (line 11 first)",
    ):
        assert part in told
    with pytest.raises(InvalidArgument, match="no row can be used: left out 2: has no known shape"):
        written(rows[-3:-1])


def test_field_28_answers_called_bad_are_left_out() -> None:
    kto = [{"prompt": "a", "completion": f" {i}", "label": i % 2 == 0} for i in range(10)]
    made, summary = written(kto)
    assert [row["completion"] for row in made] == [f" {i}" for i in range(0, 10, 2)]
    assert summary.left_out == {"label says that the answer is bad (line 2 first)": 5}
    assert summary.unused == {"label": 5}
    rated = [{"instruction": "a", "output": str(i), "rating": i} for i in range(1, 6)]
    assert [row["messages"][-1]["content"] for row in written(rated)[0]] == ["3", "4", "5"]
    tagged = {"conversations": [HUMAN, GPT], "kto_tag": False}
    with pytest.raises(InvalidArgument, match="kto_tag says that the answer is bad"):
        written([tagged])


@pytest.mark.parametrize("shape", [None, "messages", "prompt"])
@pytest.mark.parametrize("odd", [3.5, True, "", "a", [], [None], ["x"], {}, [{}], [{"from": None, "value": 5}], [[]]])
def test_values_of_any_kind_are_left_out_or_written(odd: Any, shape: Any) -> None:
    for row, _ in FORMATS.values():
        for name in row:
            made, summary = written([{"question": "a", "answer": "b"}, {**row, name: odd}], shape)
            assert summary.read == 2 == len(made) + sum(summary.left_out.values())


def test_field_27_pairs_that_prefer_nothing_are_left_out() -> None:
    pairs = [{"prompt": "a", "chosen": " b", "rejected": rejected} for rejected in (" c", " b")]
    assert written(pairs)[1].left_out == {"has two answers that are the same (line 2 first)": 1}


def test_field_29_calls_and_tools() -> None:
    row = {
        "conversations": [
            HUMAN,
            {"from": "function_call", "value": '{"name": "hours", "arguments": {"of": "mill"}}'},
            {"from": "observation", "value": "6:40"},
            GPT,
        ],
        "tools": '[{"name": "hours", "description": "d", "parameters": {}}]',
    }
    ((made,), _) = written([row])
    assert [turn["role"] for turn in made["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert made["messages"][1]["tool_calls"] == [
        {"type": "function", "function": {"name": "hours", "arguments": {"of": "mill"}}}
    ]
    assert made["tools"] == [{"type": "function", "function": {"name": "hours", "description": "d", "parameters": {}}}]


def test_field_30_plain_rows_become_chats_and_back() -> None:
    plain = {"prompt": "When does the mill open?", "completion": " At 6:40."}
    pair = {"prompt": "Open?", "chosen": " Yes.", "rejected": " No."}
    ((chat,), summary) = written([plain], "messages")
    assert chat == {"messages": [USER, ANSWER]}
    assert summary.changes == {"written as messages": 1}
    assert written([chat], "prompt")[0] == [plain]
    ((made,), _) = written([pair], "messages")
    assert made == {
        "prompt": [{"role": "user", "content": "Open?"}],
        "chosen": [{"role": "assistant", "content": "Yes."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    assert written([chat], "messages")[0] == [chat]
    for row, as_, why in (
        ({"text": "a"}, "messages", "is a text"),
        ({"messages": [SYSTEM, USER, ANSWER]}, "prompt", "more than one question and answer"),
        ({**plain, "completion": " "}, "messages", "completion is empty"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            written([row], as_)


def test_tables_are_converted_too(tmp_path: Path) -> None:
    table = tmp_path / "faq.tsv"
    table.write_text("Question\tAnswer\tTopic\nWhen does the mill open?\tAt 6:40.\thours\n", encoding="utf-16")
    summary = convert(table, out := tmp_path / "rows.jsonl")
    assert json.loads(out.read_text()) == {"messages": [USER, ANSWER]}
    assert summary.unused == {"Topic": 1}
    columns = {"conversations": [[HUMAN, GPT]], "image": [b"\x00"]}
    pq.write_table(pa.table(columns), tmp_path / "chat.parquet")
    convert(tmp_path / "chat.parquet", out)
    assert json.loads(out.read_text()) == {"messages": [USER, ANSWER]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"question": "a", "answer": "b"}\n{broken\n', "line 2: not JSON"),
        (b'[{"question": "a", "answer": "b"}, {"question": }]', "row 2: not JSON"),
        (b'[{"question": "a", "answer": "b"}, 7]', "after row 1: ', 7' is no JSON object"),
        (b'[{"question": "a", "answer": "b"}', "ends within its list, after row 1"),
        (b'[{"question": "a", "answer": "b"}]\n[{"question": "c", "answer": "d"}]', "goes on after its list"),
        (b'{"question": "\xff"}\n', "is not UTF-8 text"),
        (b"\x1f\x8b\x08\x00rest", "compressed by gzip; unpack it"),
        (b"", "no row can be used: it has none"),
    ],
)
def test_what_cannot_be_read_leaves_the_target_alone(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_bytes(content)
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    with pytest.raises(InvalidArgument) as caught:
        convert(tmp_path / "in.json", out)
    assert why in str(caught.value)
    assert out.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_list_is_read_a_row_at_a_time(tmp_path: Path) -> None:
    """Whatever the texts hold: quotes, brackets and escapes, also where a chunk ends."""
    texts = ['"', "\\", '\\"', "[{]}", "}{", "\u2028\n", "ü\U0001f600"] * 40
    rows = [{"question": f"{i} {text}", "answer": text * 4000 + "x"} for i, text in enumerate(texts)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"data": rows, "version": [1]}), encoding="utf-8")
    assert path.stat().st_size > 4 << 20
    tracemalloc.start()
    try:
        for number, (place, row) in enumerate(rows_of(path), 1):
            assert (place, row) == (f"row {number}", rows[number - 1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert number == len(rows)
    assert peak < 4 << 20


def test_field_29_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "alpaca.json"
    source.write_text(json.dumps([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": ""}]))
    assert main(["datasets", "convert", str(source)]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["messages"][1]["content"] for line in out.splitlines()] == ["b"]
    assert "1 of 2 rows written: 1 of the format Alpaca" in err
    assert "left out 1: has an empty assistant turn (row 2 first)" in err
    assert main(["datasets", "convert", str(source), "-o", str(tmp_path / "o.jsonl"), "--as", "prompt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 1
    assert json.loads((tmp_path / "o.jsonl").read_text()) == {"prompt": "a", "completion": " b"}
    assert main(["datasets", "convert", str(tmp_path / "none.json")]) == 1
    assert "is no file" in capsys.readouterr().err
