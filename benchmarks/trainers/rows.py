"""Training rows as token ids: the same ones for every system, made by the code that serves."""

from __future__ import annotations

from pathlib import Path

from loramux_server.core.jobs import TrainRow
from loramux_server.data.dataset import check_dataset
from loramux_server.text import TextTokenizer

MAX_LENGTH = 2048


def load_rows(base: str, path: str) -> tuple[TrainRow, ...]:
    """The tokenised rows of a file, for the base in a folder."""
    dataset, problems = check_dataset(Path(path).read_bytes(), TextTokenizer.load(base), max_length=MAX_LENGTH)
    problems.check()
    return dataset.rows
