"""Marks in a text that comes in pieces."""

from __future__ import annotations


def begun(text: str, mark: str) -> int:
    """Characters at the end of the text that may be the beginning of the mark."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
