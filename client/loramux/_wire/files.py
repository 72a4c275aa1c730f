"""Files on their way in and out: adapter folders and datasets, in pieces and with hashes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

from .._rows import tables
from ..convert import As, rows_of, write_rows
from ..errors import DataLoss, invalid
from ..types import AdapterVersion
from ..v1 import adapters_pb2, common_pb2, training_pb2
from .messages import responses
from .messages.fields import file_of, filled, items, path_of

CHUNK = 1 << 20
"""Bytes per message."""

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"

Data: TypeAlias = "str | os.PathLike[str] | Iterable[Mapping[str, Any]]"
"""Training data: the path of a file (.jsonl, .json, .csv, .tsv, .parquet), or rows of ``messages``, ``prompt`` +
``completion``, ``text``, or ``chosen`` + ``rejected``."""


def upload_adapter(
    name: str, folder: str | os.PathLike[str], *, set_current: bool, metadata: Mapping[str, str] | None
) -> Iterator[adapters_pb2.UploadAdapterRequest]:
    """The messages that upload a PEFT folder. Only config, weights and model card are read from it."""
    header = filled(
        adapters_pb2.UploadAdapterHeader(),
        name=name,
        set_current=set_current,
        metadata={} if metadata is None else metadata,
    )
    paths = _adapter_files(path_of("folder", folder))
    header.files.extend(
        common_pb2.FileInfo(name=path.name, size=path.stat().st_size, sha256=_sha256(path)) for path in paths
    )
    return _adapter_messages(header, paths)


def _adapter_messages(
    header: adapters_pb2.UploadAdapterHeader, paths: list[Path]
) -> Iterator[adapters_pb2.UploadAdapterRequest]:
    yield adapters_pb2.UploadAdapterRequest(header=header)
    for path in paths:
        with path.open("rb") as file:
            for data in _pieces(file):
                yield adapters_pb2.UploadAdapterRequest(chunk=common_pb2.FileChunk(name=path.name, data=data))


def _adapter_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise invalid("folder", f"{str(folder)!r} is no folder")
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise invalid("folder", f"{str(folder)!r} holds pickled weights; save them with safe_serialization=True")
    for required in (CONFIG, WEIGHTS):
        if not (folder / required).is_file():
            raise invalid("folder", f"{str(folder)!r} has no {required}; it must be an adapter saved by PEFT")
    return [folder / name for name in (CONFIG, WEIGHTS, CARD) if (folder / name).is_file()]


class AdapterWriter:
    """Writes a downloaded adapter into a folder.

    Each file is written under a passing name and takes its own when its size and hash are right; leaving the
    ``with`` block early removes what is not finished.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = path_of("folder", folder)
        self._expected: list[common_pb2.FileInfo] = []
        self._version: AdapterVersion | None = None
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> AdapterWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._part(self._expected[0].name).unlink(missing_ok=True)

    def write(self, message: adapters_pb2.DownloadAdapterResponse) -> None:
        """Take the next message. Raises DataLoss when it does not fit what was announced."""
        if message.HasField("header"):
            self._version = responses.adapter_version(message.header.version)
            self._expected = list(message.header.files)
            for name in message.header.lost:
                told = f"{name} of {self._version.ref} is lost on the server; it was not written"
                warnings.warn(told, stacklevel=4)  # 4: the line that called download()
            for info in self._expected:
                # Names from the network become paths here: nothing but a plain file name will do.
                if not info.name or info.name != Path(info.name).name or info.name.startswith(".") or "\\" in info.name:
                    raise DataLoss(f"the server sent a file name that is no plain name: {info.name!r}")
            self._folder.mkdir(parents=True, exist_ok=True)
            self._finish_empty()
            return
        chunk = message.chunk
        if not self._expected or chunk.name != self._expected[0].name:
            raise DataLoss(f"the server sent {chunk.name!r} out of turn")
        if self._file is None:
            self._open()
        assert self._file is not None
        self._file.write(chunk.data)
        self._hash.update(chunk.data)
        self._size += len(chunk.data)
        if self._size >= self._expected[0].size:
            self._finish()
            self._finish_empty()

    def finish(self) -> AdapterVersion:
        """The version that was written. Raises DataLoss when files are missing."""
        if self._version is None or self._expected:
            missing = ", ".join(info.name for info in self._expected) or "everything"
            raise DataLoss(f"the download ended early; missing: {missing}")
        return self._version

    def _part(self, name: str) -> Path:
        return self._folder / f".{name}.part"

    def _open(self) -> None:
        self._file = self._part(self._expected[0].name).open("wb")
        self._hash, self._size = hashlib.sha256(), 0

    def _finish(self) -> None:
        info = self._expected[0]
        assert self._file is not None
        if self._size != info.size or (info.sha256 and self._hash.hexdigest() != info.sha256):
            raise DataLoss(f"{info.name} arrived damaged; try again")
        self._file.close()
        self._file = None
        os.replace(self._part(info.name), self._folder / info.name)
        self._expected.pop(0)

    def _finish_empty(self) -> None:
        """Files of no bytes have no chunk that would end them."""
        while self._expected and self._expected[0].size == 0:
            self._open()
            self._finish()


def upload_dataset(data: Data, as_: As | None = None) -> Iterator[training_pb2.UploadDatasetRequest]:
    """The messages that upload a dataset from a file or from rows; tables are turned into JSON lines here.

    ``as_``: rows are turned into this shape first. Raises InvalidArgument where one of them cannot be.
    """
    if isinstance(data, str | os.PathLike):
        path = file_of("data", data)
        name = path.name
        file: io.BufferedIOBase
        if as_ is not None:
            file = _reshaped(lambda: rows_of(path), as_)
        elif (rows := tables.converter(path)) is not None:
            file = tables.as_json_lines(path, rows(path))
        else:
            file = path.open("rb")
    else:
        name, given = "rows.jsonl", items("data", data, "the path of a file, or rows")
        if as_ is not None:
            file = _reshaped(lambda: ((f"row {i}", row) for i, row in enumerate(given, start=1)), as_)
        else:
            file = io.BytesIO(jsonl(given))
    header = training_pb2.UploadDatasetHeader(name=name, format="jsonl", size=file.seek(0, os.SEEK_END))
    file.seek(0)
    header.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return _dataset_messages(header, file)


def _reshaped(rows: Callable[[], Iterator[tuple[str, Any]]], as_: As) -> io.BufferedIOBase:
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        summary = write_rows(rows, file, as_=as_)
        if summary.left_out:
            why = "; ".join(f"{count} rows: {why}" for why, count in summary.left_out.items())
            raise invalid("data", f"not every row can be written as {as_}: {why}")
        stack.pop_all()
        return file


def _dataset_messages(
    header: training_pb2.UploadDatasetHeader, file: io.BufferedIOBase
) -> Iterator[training_pb2.UploadDatasetRequest]:
    with file:
        yield training_pb2.UploadDatasetRequest(header=header)
        for data in _pieces(file):
            yield training_pb2.UploadDatasetRequest(chunk=data)


def jsonl(rows: list[Any]) -> bytes:
    """Rows as JSONL."""
    lines: list[str] = []
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise invalid(f"data[{i}]", "must be a dict of messages, prompt + completion, text, or chosen + rejected")
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n")
        except (TypeError, ValueError, RecursionError) as error:
            raise invalid(f"data[{i}]", f"cannot be written as JSON: {error}") from None
    if not lines:
        raise invalid("data", "has no rows")
    return "".join(lines).encode("utf-8", errors="surrogatepass")


def _pieces(file: io.BufferedIOBase) -> Iterator[bytes]:
    while data := file.read(CHUNK):
        yield data


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
