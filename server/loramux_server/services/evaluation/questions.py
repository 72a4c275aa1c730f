"""Held-out rows asked as questions: the engine generates, and the answers are compared with what the rows say."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from loramux.comparison import JUDGED

from ...core.backend import Backend, GenerateCommand, ScoreCommand
from ...core.errors import Code, Error
from ...core.jobs import CONTAINED, EXACT, JudgedAnswer, JudgedRow, TrainRow
from ...core.types import FinishReason, SamplingParams, Stack
from ...data.expect import Expected
from ...text import TextTokenizer
from ..datasets.held_out import last_answer

AT_ONCE = 16
SHOWN, MAX_SHOWN_CHARS = 5, 300
"""Questions that are told with their answers, and characters of each text."""
ROOM = 32
"""Tokens that an answer may be longer than expected, beside as long again: not all that is right is brief."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, what is expected after it (as text and as tokens), and the frozen stack that it runs over."""

    prompt_ids: tuple[int, ...]
    expected: str
    expected_ids: tuple[int, ...]
    stack: int
    """Index into the job's stacks."""
    judge: Expected
    """What counts."""
    by_expect: bool
    """Whether the row says so itself; otherwise it is the whole expected text."""
    room: int
    """Most tokens of the answer."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the engine answered. Times are seconds since it was asked."""

    token_ids: tuple[int, ...]
    """With the end token, where there is one."""
    first_token_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question. Times are seconds since it was sent."""

    text: str
    tokens: int
    right: bool
    """The answer counts, by the question's own rule."""
    exact: bool
    """The answer is what is expected and nothing else."""
    first_token_seconds: float
    seconds: float


def questions(
    rows: Sequence[TrainRow],
    under: Sequence[int],
    text: TextTokenizer,
    max_context: int,
    expects: Sequence[Expected | None],
) -> list[Question]:
    """The last learned stretch of each row as a question, after what comes before it, over the stack ``under`` it.

    ``expects`` has what the rows say that counts, where they say it. The rows are those of
    :func:`~..datasets.held_out.rows_to_ask`.
    """
    found: list[Question] = []
    for row, stack, own in zip(rows, under, expects, strict=True):
        prompt, answer = last_answer(row)
        expected = text.decode_answer(answer)
        room = min(2 * len(answer) + ROOM, max_context - len(prompt))
        judge = own or Expected((expected,), case=True)
        found.append(Question(prompt, expected.strip(), answer, stack, judge, own is not None, room))
    return found


class Asker:
    """Asks questions of the engine for one job; request ids begin with ``prefix``."""

    def __init__(self, backend: Backend, text: TextTokenizer, *, prefix: str, tenant: str) -> None:
        self._backend, self._text, self._tenant = backend, text, tenant
        self._ids = (f"{prefix}/answer-{i}" for i in itertools.count())
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def ask(self, question: Question, stack: Stack) -> Reply:
        """Have a question answered greedily through a stack. Raises what the engine raised."""
        answer = await self.generate(question.prompt_ids, stack, SamplingParams(max_tokens=question.room))
        said = self._text.decode_answer(answer.token_ids)
        judge, tokens = question.judge, len(answer.token_ids)
        return Reply(said, tokens, judge.right(said), judge.equals(said), answer.first_token_seconds, answer.seconds)

    async def generate(self, prompt_ids: tuple[int, ...], stack: Stack, sampling: SamplingParams) -> Said:
        """The answer to a prompt through a stack. Raises what the engine raised."""
        command = GenerateCommand(
            id=next(self._ids), prompt_ids=prompt_ids, stack=stack, sampling=sampling, tenant=self._tenant
        )
        tokens: list[int] = []
        async with self._slots:
            started, first = time.monotonic(), 0.0
            async for event in self._backend.generate(command):
                tokens += event.token_ids
                first = first or time.monotonic() - started
                if event.finish_reason is FinishReason.ERROR:
                    raise Error(Code(event.error_code), event.error)
            return Said(tuple(tokens), first, time.monotonic() - started)

    async def loss(self, question: Question, stack: Stack) -> float:
        """Natural-log loss of the expected answer, summed over its tokens. Raises what the engine raised."""
        command = ScoreCommand(next(self._ids), question.prompt_ids, question.expected_ids, stack, tenant=self._tenant)
        async with self._slots:
            return -sum((await self._backend.score(command)).logprobs)

    async def ask_all(self, asked: Sequence[Question], stacks: Sequence[Stack]) -> list[Reply]:
        """Replies in order, question i over ``stacks[asked[i].stack]``, several at once."""
        async with together() as group:
            tasks = [group.create_task(self.ask(question, stacks[question.stack])) for question in asked]
        return [task.result() for task in tasks]

    async def losses(self, asked: Sequence[Question], stacks: Sequence[Stack]) -> list[float]:
        """Losses of the expected answers in order, each summed over its tokens."""
        async with together() as group:
            tasks = [group.create_task(self.loss(question, stacks[question.stack])) for question in asked]
        return [task.result() for task in tasks]


def accuracy(replies: Sequence[Reply]) -> float:
    """Share of the replies that are right."""
    return statistics.fmean(reply.right for reply in replies)


def exact_match(replies: Sequence[Reply]) -> float:
    """Share of the replies that are what is expected and nothing else."""
    return statistics.fmean(reply.exact for reply in replies)


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose first failure is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def rules(asked: Sequence[Question]) -> dict[str, float]:
    """How many questions are judged in which way, as figures: see :func:`loramux.comparison.judged`."""
    found: dict[str, float] = {}
    for question in asked:
        source = "expect" if question.by_expect else "answer"
        name = f"{JUDGED}{source}_{EXACT if question.judge.exact else CONTAINED}"
        found[name] = found.get(name, 0.0) + 1
    return found


def side_by_side(
    asked: Sequence[Question],
    sides: Mapping[str, Sequence[Reply]],
    text: TextTokenizer,
    passages: Sequence[tuple[str, ...]] = (),
) -> tuple[JudgedRow, ...]:
    """A few of the questions with what each side answered: those first on which the sides differ.

    ``passages`` has what was found for each question, where that was looked for.
    """
    same = [len({replies[i].right for replies in sides.values()}) == 1 for i in range(len(asked))]
    shown = sorted(sorted(range(len(asked)), key=lambda i: same[i])[:SHOWN])
    return tuple(
        JudgedRow(
            question=_cut(text.decode(asked[i].prompt_ids, skip_special_tokens=True), from_end=True),
            expected=tuple(map(_cut, asked[i].judge.texts)),
            answers={name: JudgedAnswer(_cut(replies[i].text), replies[i].right) for name, replies in sides.items()},
            passages=tuple(map(_cut, passages[i])) if passages else (),
        )
        for i in shown
    )


def _cut(text: str, *, from_end: bool = False) -> str:
    text = text.strip()
    if len(text) <= MAX_SHOWN_CHARS:
        return text
    return "..." + text[-MAX_SHOWN_CHARS:] if from_end else text[:MAX_SHOWN_CHARS] + "..."
