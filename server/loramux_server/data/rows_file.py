"""The rows of a job in one file: token ids and loss masks as arrays, mapped into memory, and a summary beside them.

A worker writes the file once; the engine maps it and makes a row only when it needs one. The file's name holds the
SHA-256 of its bytes, and nobody reads a row before the bytes were found to have it.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import struct
import uuid
from array import array
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from ..core.errors import ROWS_DAMAGED, Code, Error
from ..core.generators import run_to_end
from ..core.jobs import RowsFile, TrainCommand, TrainRow
from ..host.failpoints import reach
from ..host.files import open_regular, storage_errors, sync_folder

P = TypeVar("P")

TRAIN, HELD_OUT, PROMPTED, RETRIEVED = "train", "held_out", "prompted", "retrieved"
"""Tables of the file: rows that are trained on, rows that are held out, and some of these with a prompt or with
passages before them."""
FORMAT = 1
PIECE = 8 << 20
"""Bytes that are read between two pauses: about ten milliseconds of work."""
NO_STACK = -1
_PREFIX, _SUFFIX = "rows-", ".bin"
_SIZE = struct.Struct("<Q")


class _Shape(msgspec.Struct):
    """Lengths of a table's arrays."""

    rows: int
    tokens: int
    pairs: bool
    teachers: bool = False


class _Header(msgspec.Struct):
    format: int
    summary: int
    """Bytes of the summary, which follows."""
    tables: dict[str, _Shape]


@dataclass(frozen=True, slots=True)
class RowTable(Sequence[TrainRow]):
    """Rows as four arrays; ``table[i]`` makes a row.

    Of ``pairs`` a row is two texts, the preferred one first; with ``teachers`` the text of the teacher follows.
    """

    pairs: bool
    stacks: Sequence[int]
    """For each row the index of the stack that it names, or ``NO_STACK``."""
    ends: Sequence[int]
    """For each text the number of tokens up to its end."""
    ids: Sequence[int]
    labels: Sequence[bool]
    teachers: bool = False

    @property
    def named_stacks(self) -> list[int | None]:
        """For each row the index of the stack that it names; None: it names none."""
        return [None if stack == NO_STACK else stack for stack in self.stacks]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, those of both texts of a pair; what a teacher reads does not count."""
        ends = list(self.ends)[1::2] if self.pairs else list(self.ends)
        lengths = [end - start for start, end in itertools.pairwise([0, *ends])]
        return lengths[::2] if self.teachers else lengths

    def assigned(self, command: TrainCommand) -> RowTable:
        """The same rows, those that name a stack over ``command.stacks``; then the others take turns here."""
        if not command.row_stacks:
            return self
        named = (None if stack is None else command.row_stacks[stack] for stack in self.named_stacks)
        stacks = assign_stacks(named, command.own_stacks)
        return replace(self, stacks=stacks)

    def __len__(self) -> int:
        return len(self.stacks)

    @overload
    def __getitem__(self, index: int) -> TrainRow: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[TrainRow]: ...

    def __getitem__(self, index: int | slice) -> TrainRow | Sequence[TrainRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        named = self.stacks[number]
        stack = None if named == NO_STACK else named
        if not (self.pairs or self.teachers):
            return TrainRow(*self._text(number), stack)
        first, second = self._text(2 * number), TrainRow(*self._text(2 * number + 1))
        return TrainRow(*first, stack, second) if self.pairs else TrainRow(*first, stack, teacher=second)

    def _text(self, number: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        place = slice(self.ends[number - 1] if number else 0, self.ends[number])
        return tuple(self.ids[place]), tuple(self.labels[place])


@dataclass(frozen=True, slots=True)
class RowsContent:
    """What a rows file holds."""

    tables: Mapping[str, RowTable]
    summary: bytes


def assign_stacks(named: Iterable[int | None], stacks: int) -> list[int]:
    """Index of the frozen stack under each row: the one that it names, or else the job's ``stacks`` stacks in turn."""
    turns = itertools.cycle(range(stacks))
    return [next(turns) if stack is None else stack for stack in named]


def write_rows(folder: Path, tables: Mapping[str, Iterable[TrainRow]], summary: bytes) -> None:
    """Write a rows file into ``folder``, durable on return. Raises RESOURCE_EXHAUSTED, UNAVAILABLE."""
    shapes: dict[str, _Shape] = {}
    arrays: list[array[int] | bytearray] = []
    for name, rows in tables.items():
        shapes[name], packed = _packed(rows)
        arrays += packed
    header = msgspec.msgpack.encode(_Header(FORMAT, len(summary), shapes))
    digest = hashlib.sha256()
    staged = folder / f"tmp-{uuid.uuid4().hex}"
    with storage_errors("cannot write the rows of the job"):
        try:
            with staged.open("xb") as stream:
                for part in (_SIZE.pack(len(header)), header, summary, *arrays):
                    digest.update(part)
                    stream.write(part)
                stream.flush()
                os.fsync(stream.fileno())
            reach("rows.written")
            staged.rename(folder / f"{_PREFIX}{digest.hexdigest()}{_SUFFIX}")
            sync_folder(folder)
        finally:
            staged.unlink(missing_ok=True)


def replace_rows(folder: Path, tables: Mapping[str, Iterable[TrainRow]], summary: bytes) -> None:
    """As :func:`write_rows`, in place of the rows files that are in ``folder``."""
    old = list(folder.glob(f"{_PREFIX}*{_SUFFIX}"))
    write_rows(folder, tables, summary)
    new = find_rows(folder).path
    with storage_errors("cannot remove the rows of the job"):
        for place in old:
            if f"{folder.name}/{place.name}" != new:
                place.unlink(missing_ok=True)


def _packed(rows: Iterable[TrainRow]) -> tuple[_Shape, list[array[int] | bytearray]]:
    """A table's shape and arrays. The rows are all pairs or none is, and all have a teacher or none has."""
    stacks, ends, ids, labels = array("i"), array("Q"), array("I"), bytearray()
    pairs = teachers = False
    for row in rows:
        pairs, teachers = row.rejected is not None, row.teacher is not None
        stacks.append(NO_STACK if row.stack is None else row.stack)
        for text in filter(None, (row, row.rejected, row.teacher)):
            ids.extend(text.input_ids)
            labels.extend(text.labels)
            ends.append(len(ids))
    return _Shape(len(stacks), len(ids), pairs, teachers), [stacks, ends, ids, labels]


def find_rows(folder: Path) -> RowsFile:
    """The newest rows file in a job's folder. Raises DATA_LOSS (ROWS_DAMAGED) when there is none."""
    with storage_errors("cannot look for the rows of the job"):
        places = sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}"), key=lambda place: place.stat().st_mtime_ns)
    if places:
        sha256 = places[-1].name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        return RowsFile(f"{folder.name}/{places[-1].name}", sha256)
    raise Error(Code.DATA_LOSS, "the job has no rows file", reason=ROWS_DAMAGED)


def discard_rows(folder: Path) -> None:
    """Remove the rows file of a job, if it has one."""
    with storage_errors("cannot remove the rows of the job"):
        for place in folder.glob(f"{_PREFIX}*"):
            place.unlink(missing_ok=True)


def read_rows(jobs_dir: Path, file: RowsFile, pause: P) -> Generator[P, None, RowsContent]:
    """Check and map a rows file below the folder of jobs; yields ``pause`` after every piece that it has read.

    Raises DATA_LOSS (ROWS_DAMAGED) when the file is missing, is not what was written, or has another format.
    """
    try:
        with os.fdopen(open_regular(jobs_dir / file.path), "rb", buffering=0) as stream:
            digest = hashlib.sha256()
            while piece := stream.read(PIECE):
                digest.update(piece)
                yield pause
            if digest.hexdigest() != file.sha256:
                raise _damaged(file.path, "does not hold what was written")
            return _parsed(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
    except FileNotFoundError:
        raise _damaged(file.path, "is missing") from None
    except OSError as error:
        raise _damaged(file.path, f"cannot be read ({error.strerror})") from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise _damaged(file.path, "has a format that this version does not read") from error


def read_at_once(jobs_dir: Path, file: RowsFile) -> RowsContent:
    """As :func:`read_rows`, without pauses."""
    return run_to_end(read_rows(jobs_dir, file, None))


def _parsed(data: memoryview) -> RowsContent:
    at = _SIZE.size
    (size,) = _SIZE.unpack(data[:at])

    def take(count: int, kind: Any) -> Any:
        nonlocal at
        end = at + count * struct.calcsize(f"={kind}")
        found, at = data[at:end].cast(kind), end
        return found

    header = msgspec.msgpack.decode(take(size, "B"), type=_Header)
    if header.format != FORMAT:
        raise ValueError(header.format)
    summary = bytes(take(header.summary, "B"))
    tables = {}
    for name, shape in header.tables.items():
        texts = 2 * shape.rows if shape.pairs or shape.teachers else shape.rows
        arrays = take(shape.rows, "i"), take(texts, "Q"), take(shape.tokens, "I"), take(shape.tokens, "?")
        tables[name] = RowTable(shape.pairs, *arrays, shape.teachers)
    return RowsContent(tables, summary)


def _damaged(path: str, trouble: str) -> Error:
    return Error(Code.DATA_LOSS, f"the rows file {path} {trouble}", reason=ROWS_DAMAGED)
