"""What the converter writes is what the server takes."""

from __future__ import annotations

import io

import pytest

from loramux.convert import write_rows
from loramux_server.data.dataset import check_dataset
from loramux_server.text import TextTokenizer
from tests.unit.client.test_convert import FORMATS

PLAIN = ("plain", "own fields in capitals")


@pytest.mark.parametrize("shape", [None, "messages"])
def test_field_29_converted_rows_are_taken(shape: str | None, smollm: TextTokenizer) -> None:
    for name, (row, _) in FORMATS.items():
        file = io.BytesIO()
        write_rows(lambda row=row: iter([("line 1", row), ("line 2", row)]), file, as_=shape)  # type: ignore[misc, arg-type]
        dataset, problems = check_dataset(file.getvalue(), smollm, max_length=400)
        assert (problems.listed(), dataset.report.rows) == ([], 2), name
        assert not any(note.code == "UNUSED_FIELDS" for note in dataset.report.notes), name
        assert dataset.report.asked_with == ("prompt" if shape is None and name in PLAIN else "messages"), name
