"""The benchmark of streams beside work on a dataset."""

from __future__ import annotations

import json

import pytest

from benchmarks.validation import parse, rows


def test_rows_differ() -> None:
    made = [json.loads(line) for line in rows(2000).splitlines()]
    assert len({row["prompt"] for row in made}) == len({row["completion"] for row in made}) == 2000


def test_quick_is_small() -> None:
    quick, whole = parse(["--quick"]), parse([])
    assert (quick.rows, quick.seconds) < (whole.rows, whole.seconds)
    assert whole.rows == 200_000
    with pytest.raises(SystemExit):
        parse(["--streams", "0"])
