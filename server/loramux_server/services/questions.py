"""Held-out rows asked as questions: the engine generates, and the answers are compared with what the rows say."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..core.backend import Backend, GenerateCommand
from ..core.errors import Code, Error
from ..core.jobs import TrainRow
from ..core.types import FinishReason, SamplingParams, Stack
from ..text import TextTokenizer
from ..training.order import assign_stacks

MAX_QUESTIONS = 256
"""More rows are sampled evenly."""
AT_ONCE = 16
ROOM = 16
"""Tokens that an answer may be longer than expected, beside half as long again."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, the text that is expected after it, and the frozen stack that it runs over (by number)."""

    prompt_ids: tuple[int, ...]
    expected: str
    expected_tokens: int
    stack: int


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of the questions, 0 to 1: answered word for word, and with the expected text in the answer."""

    asked: int
    exact: float
    contained: float


def questions(rows: Sequence[TrainRow], stacks: int, text: TextTokenizer) -> list[Question]:
    """The last learned stretch of each row, after what comes before it. Rows that are learned whole ask nothing."""
    found: list[Question] = []
    for row, stack in zip(rows, assign_stacks(rows, stacks), strict=True):
        end = len(row.labels) - row.labels[::-1].index(True)
        start = end
        while start and row.labels[start - 1]:
            start -= 1
        expected = _plain(text.decode(row.input_ids[start:end]))
        if start > 1 and expected:  # the first token of a text has nothing before it, and is no prompt
            found.append(Question(row.input_ids[:start], expected, end - start, stack))
    step = max(1, len(found) / MAX_QUESTIONS)
    return [found[int(i * step)] for i in range(min(len(found), MAX_QUESTIONS))]


async def ask(
    backend: Backend,
    asked: Sequence[Question],
    stacks: Sequence[Stack],
    text: TextTokenizer,
    *,
    prefix: str,
    tenant: str,
    max_context: int,
) -> Score:
    """Answer all questions greedily, question i over ``stacks[i.stack]``; ``prefix`` starts the request ids.

    Raises what the engine raised for any of them.
    """
    slots, ids = asyncio.Semaphore(AT_ONCE), itertools.count()

    async def answer(question: Question) -> tuple[bool, bool]:
        room = min(question.expected_tokens * 3 // 2 + ROOM, max_context - len(question.prompt_ids))
        command = GenerateCommand(
            id=f"{prefix}/answer-{next(ids)}",
            prompt_ids=question.prompt_ids,
            stack=stacks[question.stack],
            sampling=SamplingParams(max_tokens=room),
            tenant=tenant,
        )
        tokens: list[int] = []
        async with slots:
            async for event in backend.generate(command):
                tokens += event.token_ids
                if event.finish_reason is FinishReason.ERROR:
                    raise Error(Code(event.error_code), event.error)
        said = _plain(text.decode(tokens))
        return said == question.expected, question.expected in said

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(question)) for question in asked]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return Score(len(asked), *(_share(task.result()[i] for task in tasks) for i in range(2)))


def _plain(text: str) -> str:
    return " ".join(text.split())


def _share(right: Iterable[bool]) -> float:
    found = list(right)
    return sum(found) / len(found) if found else 0.0
