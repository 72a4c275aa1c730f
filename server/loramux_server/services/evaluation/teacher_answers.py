"""Answers to the rows of a distillation that are prompts alone: the teacher gives them, before training begins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from ...core.jobs import TrainCommand, TrainRow
from ...core.types import SamplingParams, Stack
from ...data.rows_file import HELD_OUT, TRAIN, assign_stacks, replace_rows
from ..datasets.stored_rows import StoredRows
from .questions import Asker, together

MAX_ANSWER = 512
"""Most tokens of an answer. A longer one is cut there and teaches all the same: each token has a distribution."""


async def answer_rows(asker: Asker, rows: StoredRows, command: TrainCommand, folder: Path, longest: int) -> None:
    """Have rows without an answer answered, and write the job's rows file in ``folder`` anew; durable on return.

    With ``on_policy`` these are the held-out rows alone: the others are answered by the student while it trains.

    The teacher is asked greedily: each prompt with its context, over the frozen stack under its row. With its answer
    neither text of a row has more than ``longest`` tokens. Raises what the engine raised, and as
    :func:`~...data.rows_file.write_rows`.
    """
    tables: dict[str, Sequence[TrainRow]] = dict(rows.content.tables)
    for name in (HELD_OUT,) if command.spec.on_policy else (TRAIN, HELD_OUT):
        table = rows.content.tables[name]
        under = assign_stacks(table.assigned(command).named_stacks, len(command.stacks))
        async with together() as group:
            tasks = [
                group.create_task(_answered(asker, row, command.stacks[stack], longest))
                for row, stack in zip(table, under, strict=True)
            ]
        tables[name] = [task.result() for task in tasks]
    trained, held_out = (_tokens(tables[name]) for name in (TRAIN, HELD_OUT))
    summary = rows.summary
    unanswered = summary.train.unanswered if command.spec.on_policy else 0
    train = replace(summary.train, unanswered=unanswered, trained_tokens=trained)
    measured = summary.held_out and replace(summary.held_out, unanswered=0, trained_tokens=held_out)
    summary = msgspec.structs.replace(summary, train=train, held_out=measured, unanswered=0)
    await asyncio.to_thread(replace_rows, folder, tables, msgspec.msgpack.encode(summary))


async def _answered(asker: Asker, row: TrainRow, stack: Stack, longest: int) -> TrainRow:
    """The row with an answer in both of its texts; one that has an answer stays as it is."""
    if any(row.labels):
        return row
    assert row.teacher is not None
    room = min(MAX_ANSWER, longest - max(len(row.input_ids), len(row.teacher.input_ids)))
    said = await asker.generate(row.teacher.input_ids, stack, SamplingParams(max_tokens=room))
    return replace(_with(row, said.token_ids), teacher=_with(row.teacher, said.token_ids))


def _with(prompt: TrainRow, answer: Sequence[int]) -> TrainRow:
    return replace(
        prompt,
        input_ids=(*prompt.input_ids, *answer),
        labels=(*prompt.labels, *(True for _ in answer)),
    )


def _tokens(rows: Sequence[TrainRow]) -> int:
    """Loss tokens of rows."""
    return sum(sum(row.labels) for row in rows)
