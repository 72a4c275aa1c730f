"""Text files as people have them: with byte order marks, and with other delimiters than commas."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Collection
from pathlib import Path

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


def delimiter_of(path: Path, encoding: str, known: Collection[str]) -> tuple[str, int]:
    """The delimiter of a table and the lines before its header, by the header alone.

    It is the one that makes the most names of ``known`` (in lower case); the file's name decides where none does.
    """
    usual = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    try:
        with path.open(encoding=encoding, newline="") as file:
            first = file.readline(MAX_HEADER)
    except UnicodeError:
        return usual, 0  # told with its line by whoever reads the rows
    words = first.rstrip("\r\n")
    if words.lower().startswith("sep=") and len(words) == 5:  # a spreadsheet's own line
        return words[4], 1

    def names(delimiter: str) -> int:
        try:
            return sum(name.strip().lower() in known for name in next(csv.reader([first], delimiter=delimiter), []))
        except csv.Error:
            return 0

    return max((usual, *(d for d in ",;\t|" if d != usual)), key=names), 0
