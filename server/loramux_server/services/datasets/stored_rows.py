"""A job's rows file as the front uses it, and the command that names it to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...core.backend import EngineInfo
from ...core.errors import ROWS_DAMAGED, Code, Error
from ...core.jobs import RowsFile, TrainCommand
from ...core.types import BASE, Stack
from ...data.rows_file import RowsContent, find_rows, read_at_once
from ...store.records import JobRecord
from ..common.stacks import active
from .orders import RowsSummary


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The rows of a job: the file, what is known of them, and the rows themselves, mapped into memory."""

    file: RowsFile
    summary: RowsSummary
    content: RowsContent


def stored_rows(folder: Path, base: str) -> StoredRows:
    """The rows in a job's folder; blocking. DATA_LOSS (ROWS_DAMAGED) unless they are whole and made for ``base``."""
    file = find_rows(folder)
    content = read_at_once(folder.parent, file)
    try:
        summary = msgspec.msgpack.decode(content.summary, type=RowsSummary)
    except msgspec.MsgspecError as error:
        raise Error(Code.DATA_LOSS, "the job's rows file is of another version", reason=ROWS_DAMAGED) from error
    if summary.base != base:
        raise Error(Code.DATA_LOSS, "the job's rows file was made for another base", reason=ROWS_DAMAGED)
    return StoredRows(file, summary, content)


def build_command(
    job: JobRecord,
    file: RowsFile,
    stacks: Sequence[Stack],
    row_stacks: Sequence[Stack],
    info: EngineInfo,
    output: Path,
) -> TrainCommand:
    """What the engine is told: ``stacks`` are the job's own (empty: the bare base), ``row_stacks`` those of the file.

    Rows that name no stack take turns over the job's own.
    """
    every = [active(stack) for stack in stacks] or [BASE]
    own = len(every)
    table = {stack.key: i for i, stack in reversed(list(enumerate(every)))}
    for stack in map(active, row_stacks):
        if stack.key not in table:
            table[stack.key] = len(every)
            every.append(stack)
    return TrainCommand(
        job_id=job.id,
        spec=job.request.spec,
        rows=file,
        stacks=tuple(every),
        own_stacks=own,
        row_stacks=tuple(table[active(stack).key] for stack in row_stacks),
        output=str(output),
        base_name=info.base_name,
        end_ids=info.eos_token_ids,
    )
