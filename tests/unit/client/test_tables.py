"""Tables become JSON lines: true line numbers, nested columns, and files that lie."""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loramux import Client, InvalidArgument
from loramux._rows import tables
from loramux._rows.encodings import delimiter_of
from loramux._wire.files import upload_dataset

from .fake import Fake

CHAT = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]


def sent(path: Path) -> list[str]:
    """The lines that an upload of the file carries."""
    return b"".join(message.chunk for message in upload_dataset(path)).decode().split("\n")[:-1]


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_rows_of_a_csv_file_keep_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "\ufeffprompt,id,completion\r\nWhere?,007,Here\r\n\r\n"
        '"Two\nlines, one cell",8,"[1, 2]"\r\nWho?,9,"She ""said"""\r\n'
    )
    lines = sent(path)
    assert lines[0] == lines[2] == lines[4] == ""
    assert json.loads(lines[1]) == {"prompt": "Where?", "completion": "Here"}
    assert json.loads(lines[3]) == {"prompt": "Two\nlines, one cell", "completion": "[1, 2]"}
    assert json.loads(lines[5]) == {"prompt": "Who?", "completion": 'She "said"'}


def test_lists_and_objects_in_cells_are_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.CSV"
    cells = [json.dumps(CHAT), json.dumps({"pine": 1.3}), '{"a": 1}', json.dumps(CHAT[1:]), "{broken"]
    quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    path.write_text(f"messages,on_top_of,completion,chosen,tools\n{quoted}\n")
    (_, line) = sent(path)
    assert (
        json.loads(line)
        == {
            "messages": CHAT,
            "on_top_of": {"pine": 1.3},
            "completion": '{"a": 1}',  # an answer in JSON stays the text that it is
            "chosen": CHAT[1:],
            "tools": "{broken",
        }
    )


def test_rows_of_a_parquet_file(tmp_path: Path) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    rows = [
        {"messages": [*CHAT, {"role": "assistant", "tool_calls": [call], "weight": 1}], "id": 1, "on_top_of": None},
        {"messages": CHAT, "id": 2, "on_top_of": {"pine": 1.3, "summit": None}},
    ]
    path = tmp_path / "rows.data"  # the content tells what it is
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = [json.loads(line) for line in sent(path)]
    assert found == [
        {"messages": rows[0]["messages"]},  # without the fields that only other structs have, and without the id
        {"messages": CHAT, "on_top_of": {"pine": 1.3}},
    ]


def test_kinds_of_text_columns(tmp_path: Path) -> None:
    text = pa.array(["a", "b"])
    path = parquet(
        tmp_path / "t.parquet", {"prompt": text.dictionary_encode(), "completion": text.cast("large_string")}
    )
    assert [json.loads(line) for line in sent(path)] == [{"prompt": x, "completion": x} for x in "ab"]


def test_json_goes_as_it_is_whatever_it_is_called(tmp_path: Path) -> None:
    content = '{"text": "a"}\n{"text": "b"}\n'
    for name in ("rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows"):
        (tmp_path / name).write_text(content)
        assert "\n".join(sent(tmp_path / name)) + "\n" == content


def deep() -> pa.DataType:
    kind = pa.string()
    for _ in range(40):
        kind = pa.list_(kind)
    return kind


REFUSED: list[tuple[str, bytes | dict[str, Any], str]] = [
    ("x.parquet", b"no table", "no Parquet file: it does not begin with PAR1"),
    ("x.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1", "cannot be read as Parquet"),
    ("x.jsonl", b"PAR1", "cannot be read as Parquet"),
    ("x.csv", b"\x1f\x8b\x08\x00", "compressed by gzip; unpack it"),
    ("x.csv", b"PK\x03\x04", "a spreadsheet; unpack it, or save it as CSV"),
    ("x.csv", b"", "no column that a row may have (columns: none)"),
    ("x.csv", b"frage;antwort\na;b\n", "(columns: 'frage;antwort')"),
    ("x.csv", b"prompt,completion\n", "has no rows"),
    ("x.csv", b"prompt,prompt\na,b\n", "has the column 'prompt' twice"),
    ("x.csv", b"text\na\nb,c\n", "line 3 has 2 cells, and the header 1"),
    ("x.csv", b'text\na\n"b', "is no CSV: unexpected end of data at line 3"),
    ("x.csv", b"text\na\n\xff\n", "is not UTF-8 after line"),
    ("x.csv", b"text\n" + b"a" * 1000, "field larger than field limit (100)"),
    ("x.parquet", {"question": ["a"]}, "no column that a row may have (columns: 'question')"),
    ("x.parquet", {"text": []}, "has no rows"),
    ("x.parquet", {"text": [b"\xff"]}, "the column 'text' holds binary"),
    ("x.parquet", {"messages": pa.array([None], deep())}, "nested too deeply"),
    ("x.parquet", {"messages": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))}, "holds map<string, int64"),
]


@pytest.mark.parametrize(("name", "content", "complaint"), REFUSED)
def test_files_that_lie_are_refused(
    name: str, content: bytes | dict[str, Any], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_CELL", 100)
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        parquet(path, content)
    with pytest.raises(InvalidArgument) as caught:
        list(upload_dataset(path))
    assert complaint in caught.value.message
    assert [v.field for v in caught.value.violations] == ["data"]


def test_a_small_file_of_giant_rows_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value of 100 kB, 20,000 times: 2 GB of rows from a file of a few kB."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 100_000]))
    path = parquet(tmp_path / "bomb.parquet", {"text": column}, compression="zstd")
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(tables, "MAX_BYTES", 32 << 20)
    tracemalloc.start()
    with pytest.raises(InvalidArgument, match="holds more than 32 MiB of rows; split it"):
        upload_dataset(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20
    assert pa.total_allocated_bytes() < 64 << 20


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "x.parquet", {"text": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidArgument, match=r"pip install pyarrow"):
        upload_dataset(path)


def test_a_table_is_uploaded_with_size_and_hash(fake: Fake, client: Client, tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"text": ["a", "b"]})
    client.datasets.upload(path)  # the fake checks both
    assert fake.uploaded["x.parquet"] == b'{"text": "a"}\n{"text": "b"}\n'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.tsv", "prompt\tcompletion\nWhere, please?\tHere; now\n"),
        ("rows.csv", "prompt\tcompletion\nWhere, please?\tHere; now\n"),
        ("rows.csv", 'prompt;completion\n"Where, please?";"Here; now"\n'),
        ("rows.tsv", 'prompt,completion\n"Where, please?",Here; now\n'),
        ("rows.csv", 'Prompt , COMPLETION\n"Where, please?",Here; now\n'),
        ("rows.csv", 'prompt, completion\n"Where, please?", "Here; now"\n'),
        ("rows.csv", '\n\r\nprompt,completion\n"Where, please?",Here; now\n'),
        ("rows.csv", 'sep=;\r\nprompt;completion\r\n"Where, please?";"Here; now"\r\n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_field_29_delimiters_and_marks(name: str, text: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    found = sent(path)
    assert json.loads(found[-1]) == {"prompt": "Where, please?", "completion": "Here; now"}
    assert len(found) == text.count("\n")  # the row keeps its line


def test_field_28_columns_that_judge_are_sent_along(tmp_path: Path) -> None:
    path = tmp_path / "kto.csv"
    path.write_text("prompt,completion,label,id\nWhere?,Here,False,7\nWho?,Nobody,,8\n")
    assert json.loads(sent(path)[1]) == {"prompt": "Where?", "completion": "Here", "label": "False"}
    columns = {"prompt": ["Where?"], "completion": ["Here"], "label": [False], "id": [7], "score": pa.array([b"x"])}
    found = sent(parquet(tmp_path / "kto.parquet", columns))
    assert [json.loads(line) for line in found] == [{"prompt": "Where?", "completion": "Here", "label": False}]


@pytest.mark.parametrize(
    ("header", "format"),
    [
        ("question,answer", "question and answer"),
        ("Instruction;Input;Output", "Alpaca"),
        ("input,output", "question and answer"),
        ("conversations,id", "ShareGPT"),
    ],
)
def test_field_29_tables_of_other_tools_are_named(header: str, format: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(header + "\n" + "a;b;c\n"[: 2 * header.count(";") + 2])
    with pytest.raises(InvalidArgument) as caught:
        sent(path)
    assert f"in the format '{format}'" in str(caught.value)
    assert "loramux datasets convert rows.csv" in str(caught.value)


def test_a_header_without_end_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt;completion;" + "x" * (1 << 20) + "\na;b;c\n")
    tracemalloc.start()
    try:
        assert delimiter_of(path, "utf-8", {"prompt", "completion"}) == (";", 0, False)
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
    finally:
        tracemalloc.stop()
