"""Text files as people have them: with byte order marks, and with other delimiters than commas."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MAX_HEADER = 1 << 16
"""Longest header of a table, in characters, that is looked at for its delimiter."""


def encoding_of(head: bytes) -> str:
    """The encoding that the first bytes of a file announce; UTF-8 where they announce none."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "utf-8")


def begins_as_json(head: bytes) -> bool:
    """Whether the first bytes of a file, as text, begin an object or a list."""
    return head.decode(encoding_of(head), errors="ignore").lstrip()[:1] in ("{", "[")


class Layout(NamedTuple):
    """How a table is written."""

    delimiter: str
    skipped: int = 0
    """Lines before the header: empty ones, and a spreadsheet's own."""
    spaced: bool = False
    """A space follows each delimiter, which belongs to no cell."""


def delimiter_of(path: Path, encoding: str, known: Collection[str]) -> Layout:
    """How a table is written, by its header alone.

    The delimiter is the one that makes the most names of ``known`` (in lower case); the file's name decides where
    none does.
    """
    usual, skipped, first = "\t" if path.suffix.lower() in (".tsv", ".tab") else ",", 0, ""
    try:
        with path.open(encoding=encoding, newline="") as file:
            while (first := file.readline(MAX_HEADER)) and not first.strip() and len(first) < MAX_HEADER:
                skipped += 1
    except UnicodeError:
        return Layout(usual)  # told with its line by whoever reads the rows
    words = first.rstrip("\r\n")
    if words.lower().startswith("sep=") and len(words) == 5:  # a spreadsheet's own line
        return Layout(words[4], skipped + 1)

    def names(delimiter: str) -> int:
        return sum(name.strip().lower() in known for name in _cells(first, delimiter))

    found = max((usual, *(d for d in ",;\t|" if d != usual)), key=names)
    rest = _cells(first, found)[1:]
    return Layout(found, skipped, bool(rest) and found != "\t" and all(name.startswith(" ") for name in rest))


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []
