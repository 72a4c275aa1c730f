"""Datasets of which every row must be good."""

from __future__ import annotations

from typing import Any

from loramux_server.data.dataset import Dataset, check_dataset
from loramux_server.text import TextTokenizer


def load_dataset(data: bytes, tokenizer: TextTokenizer, **options: Any) -> Dataset:
    """As ``check_dataset``; raises INVALID_ARGUMENT with every problem counted and the first 20 listed."""
    dataset, problems = check_dataset(data, tokenizer, **options)
    problems.check()
    return dataset
