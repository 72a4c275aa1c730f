"""What may not be meant: it keeps nothing from being done, and is said where people look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """One remark about data, for programs and for people."""

    code: str
    """Stable upper-case word, such as ``REPEATED_ROWS``."""
    text: str
    """A sentence for people; it holds the count and the line where they help."""
    count: int = 0
    """Rows that it is about; 0: the data as a whole."""
    line: int = 0
    """The first of them, counted from 1; 0: none in particular."""
