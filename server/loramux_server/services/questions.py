"""Held-out rows asked as questions: the engine generates, and the answers are compared with what the rows say."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ..core.backend import Backend, GenerateCommand, ScoreCommand
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
    """A prompt, what is expected after it (as text and as tokens), and the frozen stack that it runs over."""

    row: int
    """Number of the row that it comes from."""
    prompt_ids: tuple[int, ...]
    expected: str
    expected_ids: tuple[int, ...]
    stack: int
    """Index into the job's stacks."""

    def room(self, max_context: int) -> int:
        """Most tokens of the answer."""
        return min(len(self.expected_ids) * 3 // 2 + ROOM, max_context - len(self.prompt_ids))


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question. Times are seconds since it was sent."""

    exact: bool
    """The answer is the expected text."""
    contained: bool
    """The answer holds the expected text."""
    first_token_seconds: float
    seconds: float


def questions(rows: Sequence[TrainRow], stacks: int, text: TextTokenizer) -> list[Question]:
    """The last learned stretch of each row, after what comes before it. Rows that are learned whole ask nothing."""
    found: list[Question] = []
    for number, (row, stack) in enumerate(zip(rows, assign_stacks(rows, stacks), strict=True)):
        prompt, answer = last_answer(row)
        expected = _plain(text.decode_answer(answer))
        if len(prompt) > 1 and expected:  # the first token of a text has nothing before it, and is no prompt
            found.append(Question(number, prompt, expected, answer, stack))
    return evenly(found, MAX_QUESTIONS)


def last_answer(row: TrainRow) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of all that comes before a row's last learned stretch, and of that stretch."""
    end = len(row.labels) - row.labels[::-1].index(True)
    start = end
    while start and row.labels[start - 1]:
        start -= 1
    return row.input_ids[:start], row.input_ids[start:end]


def evenly(items: list[Question], most: int) -> list[Question]:
    """At most so many of them, spread over the whole list."""
    step = max(1, len(items) / most)
    return [items[int(i * step)] for i in range(min(len(items), most))]


class Asker:
    """Asks questions of the engine for one job; request ids begin with ``prefix``."""

    def __init__(self, backend: Backend, text: TextTokenizer, *, prefix: str, tenant: str, max_context: int) -> None:
        self._backend, self._text = backend, text
        self._tenant, self._max_context = tenant, max_context
        self._ids = (f"{prefix}/answer-{i}" for i in itertools.count())
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def ask(self, question: Question, stack: Stack) -> Reply:
        """Have a question answered greedily through a stack. Raises what the engine raised."""
        command = GenerateCommand(
            id=next(self._ids),
            prompt_ids=question.prompt_ids,
            stack=stack,
            sampling=SamplingParams(max_tokens=question.room(self._max_context)),
            tenant=self._tenant,
        )
        tokens: list[int] = []
        async with self._slots:
            started, first = time.monotonic(), 0.0
            async for event in self._backend.generate(command):
                tokens += event.token_ids
                first = first or time.monotonic() - started
                if event.finish_reason is FinishReason.ERROR:
                    raise Error(Code(event.error_code), event.error)
            seconds = time.monotonic() - started
        said = _plain(self._text.decode_answer(tokens))
        return Reply(said == question.expected, question.expected in said, first, seconds)

    async def loss(self, question: Question, stack: Stack) -> float:
        """Natural-log loss of the expected answer, summed over its tokens. Raises what the engine raised."""
        command = ScoreCommand(next(self._ids), question.prompt_ids, question.expected_ids, stack, self._tenant)
        async with self._slots:
            return -sum((await self._backend.score(command)).logprobs)

    async def ask_all(self, asked: Sequence[Question], stacks: Sequence[Stack]) -> list[Reply]:
        """Replies in order, question i over ``stacks[asked[i].stack]``, several at once."""
        async with _together() as group:
            tasks = [group.create_task(self.ask(question, stacks[question.stack])) for question in asked]
        return [task.result() for task in tasks]

    async def losses(self, asked: Sequence[Question], stacks: Sequence[Stack]) -> float:
        """Mean loss a token of the expected answers."""
        async with _together() as group:
            tasks = [group.create_task(self.loss(question, stacks[question.stack])) for question in asked]
        return sum(task.result() for task in tasks) / sum(len(question.expected_ids) for question in asked)


def accuracy(replies: Sequence[Reply]) -> float:
    """Share of the replies that hold the expected text."""
    return statistics.fmean(reply.contained for reply in replies)


def exact_match(replies: Sequence[Reply]) -> float:
    """Share of the replies that are the expected text."""
    return statistics.fmean(reply.exact for reply in replies)


@asynccontextmanager
async def _together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose first failure is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def _plain(text: str) -> str:
    return " ".join(text.split())
