"""Reads and checks the rows of a stored dataset: small ones here, large ones in a process that can be ended.

A process, because Python computes in one thread at a time: minutes of checks would slow every stream down.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import msgspec

from ...core.errors import Code, Error, FieldViolation, Reason
from ...core.watch import Watch
from ...data.dataset import Dataset, DatasetLimits, DatasetReport, Example, check_dataset
from ...data.problems import Problems
from ...store.blobs.blobs import damaged
from ...telemetry.logs import get_logger
from ...text import TextTokenizer

log = get_logger(__name__)

MODULE = "loramux_server.dataset_process"
LARGE = 256 * 1024
"""Bytes of a dataset from which on it has a process: about a second of work, and several times the process's start."""
HEADER_BYTES = 4
"""A frame is its length, big-endian, and MessagePack."""


class Ask(msgspec.Struct):
    """What the process is told on its standard input."""

    data: str
    """Path of the dataset."""
    tokenizer: str
    """Folder of the tokenizer."""
    max_length: int
    field: str
    limits: DatasetLimits
    held_out: bool
    sha256: str = ""
    """What the dataset must have, if it is stored."""
    chat_template_kwargs: str = ""


class Rows(msgspec.Struct, tag=True):
    """Some of the good rows."""

    rows: list[Example]


class Found(msgspec.Struct, tag=True):
    """Last message: all rows were looked at."""

    report: DatasetReport
    problems: int
    listed: list[tuple[int, str]]
    unit: str


class Refused(msgspec.Struct, tag=True):
    """Last message: the dataset is refused as a whole."""

    code: str
    message: str
    reason: str
    violations: list[tuple[str, str]]


Frame = Rows | Found | Refused


def read_whole(path: Path, sha256: str) -> bytes:
    """All bytes of a file. DATA_LOSS unless they have a given SHA-256."""
    data = path.read_bytes()
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise damaged(sha256)
    return data


def read_rows(
    path: Path,
    text: TextTokenizer,
    max_length: int,
    field: str,
    limits: DatasetLimits,
    watch: Watch,
    *,
    held_out: bool = False,
    sha256: str = "",
    chat_template_kwargs: str = "",
) -> tuple[Dataset, Problems]:
    """As :func:`check_dataset`, of a file; blocking. DATA_LOSS if the bytes that are read have another SHA-256."""
    if text.folder is None or path.stat().st_size <= LARGE:
        return check_dataset(
            read_whole(path, sha256),
            text,
            max_length=max_length,
            field=field,
            limits=limits,
            watch=watch,
            held_out=held_out,
            chat_template_kwargs=chat_template_kwargs,
        )
    ask = msgspec.msgpack.encode(
        Ask(str(path), str(text.folder), max_length, field, limits, held_out, sha256, chat_template_kwargs)
    )
    with subprocess.Popen(
        [sys.executable, "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C in the terminal is the server's to handle
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with watch.ending(child.kill):
                try:
                    child.stdin.write(ask)
                    child.stdin.close()
                    found = _received(child.stdout, field)
                except (BrokenPipeError, EOFError):
                    watch()
                    raise _died(child.wait()) from None
        finally:
            child.kill()
    watch()
    return found


def _received(stream: IO[bytes], field: str) -> tuple[Dataset, Problems]:
    decoder = msgspec.msgpack.Decoder(Frame)
    examples: list[Example] = []
    while True:
        header = stream.read(HEADER_BYTES)
        data = stream.read(int.from_bytes(header, "big"))
        if len(header) < HEADER_BYTES or len(data) < int.from_bytes(header, "big"):
            raise EOFError
        match decoder.decode(data):
            case Rows(rows):
                examples += rows
            case Refused(code, message, reason, violations):
                found_bad = [FieldViolation(*each) for each in violations]
                raise Error(Code(code), message, reason=cast("Reason", reason), violations=found_bad)
            case Found(report, count, listed, unit):
                problems = Problems(field, count, listed, unit)
                return Dataset(tuple(examples), report), problems


def _died(status: int) -> Error:
    log.error("a check of a dataset died", exit_status=status)
    return Error(
        Code.RESOURCE_EXHAUSTED if status == -9 else Code.INTERNAL,
        f"the check of the dataset was ended by the system (exit status {status}), perhaps for lack of memory; "
        "the server's log may say more",
        reason="DATASET_CHECK_DIED",
    )
