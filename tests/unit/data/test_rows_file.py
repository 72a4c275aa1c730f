"""The file with a job's rows: what was written is read, and nothing else is."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_server.core.errors import ROWS_DAMAGED, Code, Error
from loramux_server.core.jobs import RowsFile, TrainCommand, TrainRow, TrainSpec
from loramux_server.data.rows_file import (
    PIECE,
    TRAIN,
    RowsContent,
    discard_rows,
    find_rows,
    read_at_once,
    read_rows,
    write_rows,
)
from loramux_server.host.failpoints import VARIABLE
from tests.examples import examples

TEXTS = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans()), min_size=1, max_size=9)
STACKS = st.none() | st.integers(0, 3)


def text(tokens: list[tuple[int, bool]], stack: int | None = None, rejected: TrainRow | None = None) -> TrainRow:
    return TrainRow(tuple(id for id, _ in tokens), tuple(label for _, label in tokens), stack, rejected)


def taught(tokens: list[tuple[int, bool]], stack: int | None, teacher: TrainRow) -> TrainRow:
    return replace(text(tokens, stack), teacher=teacher)


ROWS = st.lists(st.builds(text, TEXTS, STACKS))
PAIRS = st.lists(st.builds(text, TEXTS, STACKS, st.builds(text, TEXTS)), min_size=1)


TAUGHT = st.lists(st.builds(taught, TEXTS, STACKS, st.builds(text, TEXTS)), min_size=1)


def written(folder: Path, *tables: list[TrainRow], summary: bytes = b"") -> RowsFile:
    discard_rows(folder)
    write_rows(folder, {str(number): rows for number, rows in enumerate(tables)}, summary)
    return find_rows(folder)


@given(rows=ROWS, pairs=PAIRS, distilled=TAUGHT, summary=st.binary())
@examples(100)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[TrainRow],
    pairs: list[TrainRow],
    distilled: list[TrainRow],
    summary: bytes,
) -> None:
    folder = tmp_path_factory.mktemp("job")
    found = read_at_once(folder.parent, written(folder, rows, pairs, distilled, summary=summary))
    assert found.summary == summary
    for name, made in (("0", rows), ("1", pairs), ("2", distilled)):
        table = found.tables[name]
        assert list(table) == made
        assert table.named_stacks == [row.stack for row in made]
        assert table.lengths == [
            len(row.input_ids) + (len(row.rejected.input_ids) if row.rejected else 0) for row in made
        ]
    assert found.tables["0"][1:] == rows[1:]
    assert found.tables["1"][-1] == pairs[-1]
    with pytest.raises(IndexError):
        found.tables["0"][len(rows)]


def test_rows_that_name_no_stack_take_turns_over_the_jobs_own(tmp_path: Path) -> None:
    rows = [TrainRow((1, 2), (False, True), stack) for stack in (None, 1, None, 0, None)]
    file = written(tmp_path, rows)
    table = read_at_once(tmp_path.parent, file).tables["0"]
    command = TrainCommand("job", TrainSpec(), file, own_stacks=2, row_stacks=(7, 0))
    assert [row.stack for row in table.assigned(command)] == [0, 0, 1, 7, 0]
    plain = TrainCommand("job", TrainSpec(), file, own_stacks=2)
    assert [row.stack for row in table.assigned(plain)] == table.named_stacks


def raised(folder: Path, file: RowsFile) -> str:
    with pytest.raises(Error) as caught:
        read_at_once(folder.parent, file)
    assert (caught.value.code, caught.value.reason) == (Code.DATA_LOSS, ROWS_DAMAGED)
    assert file.path in caught.value.message
    return caught.value.message


def test_any_damage_is_found(tmp_path: Path) -> None:
    file = written(tmp_path, [TrainRow((5, 6, 7), (False, True, True))], summary=b"told")
    place = tmp_path.parent / file.path
    whole = place.read_bytes()
    for spoilt in (b"", whole[:-1], whole + b"\0", *(flipped(whole, at) for at in range(len(whole)))):
        place.write_bytes(spoilt)
        assert "does not hold what was written" in raised(tmp_path, file)
    place.unlink()
    assert "is missing" in raised(tmp_path, file)
    place.mkdir()
    with pytest.raises(Error, match="not a regular file"):
        read_at_once(tmp_path.parent, file)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_another_format_is_told(tmp_path: Path) -> None:
    header = msgspec.msgpack.encode({"format": 2, "summary": 0, "tables": {}})
    for content in (struct.pack("<Q", len(header)) + header, b"another file altogether"):
        file = RowsFile(f"{tmp_path.name}/rows.bin", hashlib.sha256(content).hexdigest())
        (tmp_path / "rows.bin").write_bytes(content)
        assert "has a format that this version does not read" in raised(tmp_path, file)


def test_a_large_file_is_checked_in_pieces(tmp_path: Path) -> None:
    row = TrainRow((1,) * 1_000_000, (True,) * 1_000_000)
    file = written(tmp_path, [row] * 4)
    reading, pauses = read_rows(tmp_path.parent, file, None), 0
    while True:
        try:
            next(reading)
        except StopIteration as done:
            content: RowsContent = done.value
            break
        pauses += 1
    assert pauses == -(-(tmp_path.parent / file.path).stat().st_size // PIECE) == 3
    assert content.tables["0"][3] == row


def test_a_file_that_is_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "rows.written:raise")
    with pytest.raises(Error, match="cannot write the rows of the job"):
        write_rows(tmp_path, {TRAIN: []}, b"")
    assert not any(tmp_path.iterdir())
    with pytest.raises(Error, match="the job has no rows file"):
        find_rows(tmp_path)
