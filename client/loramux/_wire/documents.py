"""Documents that an adapter is compared with: files of text, Markdown and JSON lines as rows of an upload."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from ..comparison import MAX_DOCUMENT_BYTES
from ..errors import invalid
from .messages.fields import path_of, strings

FIELD = "compare_documents"
TEXT, LINES = frozenset({".txt", ".text", ".md", ".markdown"}), frozenset({".jsonl"})
MAX_FILES = 10_000

Documents: TypeAlias = "str | os.PathLike[str] | Iterable[str]"
"""The path of a file or folder, or texts."""


def read_documents(documents: Documents) -> list[dict[str, Any]]:
    """The documents as rows: ``{"text": ..., "name": ...}``.

    Of a folder, all files of text, Markdown and JSON lines in it and in folders of it are read, without hidden ones.
    Raises InvalidArgument for what cannot be read, is no text, or leads out of the folder, and for too many bytes.
    """
    if not isinstance(documents, str | os.PathLike):
        return [{"text": text} for text in strings(FIELD, documents)] or _refuse("has no texts")
    path = path_of(FIELD, documents)
    if path.is_dir():
        files = sorted(_files(path)) or _refuse(
            f"{str(path)!r} has no documents; they are files that end in {', '.join(sorted(TEXT | LINES))}"
        )
    else:
        files = [path] if path.is_file() else _refuse(f"{str(path)!r} is no file or folder")
    top = path if path.is_dir() else path.parent
    _check_size(files)
    return [row for file in files for row in _rows(file, file.relative_to(top).as_posix())]


def _files(folder: Path) -> Iterator[Path]:
    """The files to read. Links to folders are not followed, and those to files only within the folder."""
    inside, count = folder.resolve(), 0
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if name.startswith(".") or path.suffix.lower() not in TEXT | LINES:
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                _refuse(f"{str(path)!r} is a link that leads out of the folder; put the file itself there")
            if not path.is_file():
                _refuse(f"{str(path)!r} is no file")
            if (count := count + 1) > MAX_FILES:
                _refuse(f"{str(folder)!r} has more than {MAX_FILES} documents; compare with those that matter")
            yield path


def _check_size(files: list[Path]) -> None:
    size = 0
    for file in files:
        try:
            size += file.stat().st_size
        except OSError as error:
            _unreadable(error)
        if size > MAX_DOCUMENT_BYTES:
            _refuse(
                f"has {size} bytes up to {str(file)!r}; at most {MAX_DOCUMENT_BYTES} are taken: "
                "compare with those that matter"
            )


def _rows(file: Path, name: str) -> Iterator[dict[str, Any]]:
    text = _text(file)
    if file.suffix.lower() not in LINES:
        yield {"text": text, "name": name}
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            _refuse(f"{str(file)!r} line {number} is no JSON: {error}")
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            _refuse(f'{str(file)!r} line {number} is no document; each line is {{"text": "..."}}')
        yield {"text": row["text"], "name": f"{name}:{number}"}


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        _unreadable(error)
    if len(data) > MAX_DOCUMENT_BYTES:  # it grows
        _refuse(f"{str(file)!r} has more than {MAX_DOCUMENT_BYTES} bytes")
    if b"\0" in data:
        _refuse(f"{str(file)!r} is no text; give text, Markdown or JSON lines")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse(f"{str(file)!r} is not valid UTF-8 at byte {error.start + 1}; save it as UTF-8")


def _unreadable(error: OSError) -> NoReturn:
    _refuse(f"{str(error.filename)!r} cannot be read: {error.strerror}")


def _refuse(why: str) -> NoReturn:
    raise invalid(FIELD, why)
