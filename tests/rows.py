"""Rows of training jobs as the engine gets them: in a file in the job's folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loramux_server.core.jobs import RowsFile, TrainCommand, TrainRow, TrainSpec
from loramux_server.core.types import BASE, Stack
from loramux_server.data.rows_file import HELD_OUT, TRAIN, find_rows, read_at_once, write_rows

FILES = Path(tempfile.gettempdir()) / f"loramux-tests-{os.getpid()}"
"""What engines that a test turns by hand read; removed at the end of the session."""
JOBS = FILES / "jobs"
"""The folders of their jobs."""

NO_ROWS = RowsFile("", "")
"""For commands that nobody runs."""


class JobRows(NamedTuple):
    """The rows of a command, those that name a stack or take turns with its index into the command's."""

    train: list[TrainRow]
    held_out: list[TrainRow]


def rows_of(command: TrainCommand) -> JobRows:
    """The rows of a command that a runner made."""
    tables = read_at_once(Path(command.checkpoint_dir).parent, command.rows).tables
    return JobRows(*(list(tables[name].assigned(command)) for name in (TRAIN, HELD_OUT)))


def rows_file(rows: Sequence[TrainRow], held_out: Sequence[TrainRow] = ()) -> RowsFile:
    """A rows file in a folder of its own."""
    JOBS.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=JOBS))
    write_rows(folder, {TRAIN: rows, HELD_OUT: held_out}, b"")
    return find_rows(folder)


def train_command(
    job_id: str,
    spec: TrainSpec,
    rows: Sequence[TrainRow],
    held_out: Sequence[TrainRow] = (),
    stacks: tuple[Stack, ...] = (BASE,),
    **more: Any,
) -> TrainCommand:
    """A command and its rows, whose ``stack`` is an index into ``stacks``."""
    file = rows_file(rows, held_out)
    named = any(row.stack is not None for row in (*rows, *held_out))
    indices = tuple(range(len(stacks))) if named else ()
    return TrainCommand(job_id, spec, file, stacks, own_stacks=len(stacks), row_stacks=indices, **more)
