"""Rows of training data in tables: CSV and Parquet files become JSON lines on this side of the wire.

So the server reads one format, and a file that was made to hurt its reader hurts nobody else. Only columns that a row
may have are read. Line numbers stay true: a row of a CSV file keeps its line, one of a Parquet file its number.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument, invalid
from ..formats import CONVERSATIONS, FIELDS, OTHER_SPELLING, OWN, format_of, told
from ..verdicts import judges
from .encodings import begins_as_json, delimiter_of, encoding_of

COLUMNS = (
    *("messages", "tools", "prompt", "completion", "text", "chosen", "rejected"),
    *("input", "preferred_output", "non_preferred_output", "on_top_of"),
    *("expect", "expect_match", "expect_mode", "expect_case"),
)
MAX_BYTES = 1 << 30
"""Most bytes of JSON lines that a table may become."""
MAX_CELL = 64 << 20
"""Longest cell of a CSV file, in characters."""
ROWS_AT_ONCE = 64
MAX_DEPTH = 32
_TEXT_OR_TURNS = {"prompt", "completion", "chosen", "rejected", "text"}
"""Columns in which text that looks like JSON may be just that."""
_MAGIC = {
    b"PAR1": "parquet",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"BZh": "compressed by bzip2; unpack it",
    b"PK\x03\x04": "a zip file or a spreadsheet; unpack it, or save it as CSV",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"ORC": "an ORC file; save it as Parquet",
}


Numbered = Iterator[tuple[int, dict[str, Any]]]
"""Rows with their lines."""


def converter(path: Path, *, every: bool = False) -> Callable[[Path], Numbered] | None:
    """What reads the rows of a table with the lines that they shall have; None for a file of JSON.

    The content decides, then the name. ``every``: with all columns, not only those that mean something in a row.
    Raises InvalidArgument for a kind of file that holds no rows.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    if kind == "parquet":
        return lambda path: _parquet_rows(path, every)
    if kind:
        raise invalid("data", f"{path.name} is {kind}")
    if begins_as_json(head):
        return None
    if path.suffix.lower() == ".parquet":
        raise invalid("data", f"{path.name} is no Parquet file: it does not begin with PAR1")
    if path.suffix.lower() not in (".csv", ".tsv", ".tab"):
        return None
    return lambda path: _csv_rows(path, encoding_of(head), every)


def as_json_lines(path: Path, rows: Numbered) -> io.BufferedIOBase:
    """A temporary file of JSON lines, gone once it is closed."""
    size, line = 0, 1
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        for at, row in rows:
            text = json.dumps(row, ensure_ascii=False).encode("utf-8", errors="surrogatepass")
            data = b"\n" * (at - line) + text + b"\n"
            line, size = max(at, line) + 1, size + len(data)
            if size > MAX_BYTES:
                raise invalid("data", f"{path.name} holds more than {MAX_BYTES >> 20} MiB of rows; split it")
            file.write(data)
        if not size:
            raise invalid("data", f"{path.name} has no rows")
        stack.pop_all()
        return file


def _csv_rows(path: Path, encoding: str, every: bool) -> Numbered:
    before = csv.field_size_limit(MAX_CELL)
    delimiter, skipped, spaced = delimiter_of(path, encoding, FIELDS)
    line = 1
    try:
        with path.open(encoding=encoding, newline="") as file:
            for _ in range(skipped):
                file.readline()
            reader = csv.reader(file, strict=True, delimiter=delimiter, skipinitialspace=spaced)
            header = [_name(name) for name in next(reader, [])]
            if not every:
                _check_columns(path, header)
            line = skipped + reader.line_num + 1
            for cells in reader:
                if len(cells) > len(header):
                    raise invalid("data", f"line {line} has {len(cells)} cells, and the header {len(header)}")
                if any(cells):
                    row = zip(header, cells, strict=False)
                    yield line, {n: _cell(n, text) for n, text in row if text != "" and (every or _matters(n))}
                line = skipped + reader.line_num + 1
    except UnicodeError:
        raise invalid("data", f"{path.name} is not UTF-8 after line {line}; save it as UTF-8") from None
    except csv.Error as error:
        raise invalid("data", f"{path.name} is no CSV: {error} at line {line}") from None
    finally:
        csv.field_size_limit(before)


def _cell(name: str, text: str) -> Any:
    """A cell: lists and objects are JSON in it, and so is ``expect_case``; anything else is text."""
    if name == "expect_case":
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text  # the server tells what is wrong, if anything is
    if name not in _TEXT_OR_TURNS:
        return value
    turns = isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value)
    return value if turns else text


def _name(text: str) -> str:
    """A column's name; one that is known is in lower case."""
    name = text.strip()
    return name.lower() if name.lower() in FIELDS else name


def _matters(name: str) -> bool:
    """Whether a column means something in a row: it makes it, or says that its answer is bad."""
    return name in COLUMNS or judges(name)


def _parquet_rows(path: Path, every: bool) -> Numbered:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise invalid(
            "data", f"{path.name} is a Parquet file, which takes pyarrow to read: pip install pyarrow"
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if not every:
                _check_columns(path, schema.names)
            names = [n for n in schema.names if n in COLUMNS or ((every or judges(n)) and _is_json(schema.field(n)))]
            for name in names:
                _check_type(name, schema.field(name).type, MAX_DEPTH)
            number = 1
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=names):
                for row in batch.to_pylist():
                    yield number, _without_nulls(row)
                    number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        raise invalid("data", f"{path.name} cannot be read as Parquet: {str(error)[:200]}") from None


def _is_json(field: Any) -> bool:
    """Whether a column holds what JSON has words for; what only accompanies the rows is left out otherwise."""
    try:
        _check_type(field.name, field.type, MAX_DEPTH)
    except InvalidArgument:
        return False
    return True


def _check_columns(path: Path, names: list[str]) -> None:
    format = format_of({name: [] if name in CONVERSATIONS else "" for name in map(_name, names)})
    if format not in (OWN, "") and "text" not in names:
        raise invalid("data", f"{path.name}: {told(format, path.name)}")
    if not set(names) & set(COLUMNS):
        if set(map(_name, names)) & set(COLUMNS):
            raise invalid("data", f"{path.name}: {told(OTHER_SPELLING, path.name)}")
        found = ", ".join(repr(name[:40]) for name in names[:6]) or "none"
        raise invalid("data", f"{path.name} has no column that a row may have (columns: {found}); {', '.join(COLUMNS)}")
    if twice := {name for name, count in Counter(names).items() if name in COLUMNS and count > 1}:
        raise invalid("data", f"{path.name} has the column {min(twice)!r} twice")


def _check_type(name: str, type: Any, depth: int) -> None:
    """Refuse what JSON has no words for, before anything of it is read."""
    if depth == 0:
        raise invalid("data", f"the column {name!r} is nested too deeply")
    if any(_is(type, "struct")):
        for i in range(type.num_fields):
            _check_type(name, type.field(i).type, depth - 1)
    elif any(_is(type, "list", "large_list", "fixed_size_list", "dictionary")):
        _check_type(name, type.value_type, depth - 1)
    elif not any(_is(type, "string", "large_string", "string_view", "boolean", "integer", "floating", "null")):
        raise invalid("data", f"the column {name!r} holds {type}; rows are made of text, numbers, lists and structs")


def _is(type: Any, *kinds: str) -> Iterator[bool]:
    from pyarrow import types

    return (getattr(types, f"is_{kind}")(type) for kind in kinds)


def _without_nulls(value: Any) -> Any:
    """A value without the fields that a struct has only because another row has them."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
