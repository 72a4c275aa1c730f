"""The student of an on-policy distillation: it answers the rows of a step before it is trained on these answers.

The model is that of the step, the frozen stack of a row and the adapter as it is, without the context. Answers are
sampled at temperature 1 from random numbers of (seed, step, row), so an attempt that resumes samples them again.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.jobs import TrainRow
from ..model.base.context_length import max_context
from ..model.kv import KVPool, PagedAttention, Span
from ..model.out_of_memory import out_of_memory, release_cached
from .backprop.micro_batch import JobRows, routing_of
from .objectives.teacher import text_of
from .run import TrainingRun
from .work import PAUSE, SETTLE, Held, Tasks

MAX_ANSWER = 128
"""Most tokens of an answer. A longer one is cut there and teaches all the same: each token has a distribution."""
PREFILL_TOKENS = 512
"""Tokens of a prompt that one work item computes."""
TURN_TOKENS = 16
"""Tokens of each answer after which other jobs have their turn."""


@dataclass(slots=True)
class _Answer:
    """An answer on its way: its prompt, the frozen stack under it, and what there is of it."""

    prompt: tuple[int, ...]
    stack: int
    longest: int
    pages: tuple[int, ...]
    draws: random.Random
    tokens: list[int] = field(default_factory=list)


def answer_rows(run: TrainingRun, indices: Sequence[int]) -> Tasks[dict[int, TrainRow]]:
    """Training rows with an answer of the student's, in both texts, in place of the last one that they had, if any.

    All are sampled together; where memory does not suffice, in halves. Raises the error of a single row then.
    """
    # Routing wants rows with a frozen stack first.
    left = sorted(indices, key=lambda i: not run.frozen.stacks[run.stacks[i]])
    together, found = len(left), dict[int, TrainRow]()
    while left:
        part, short = left[:together], False
        try:
            answers = yield from _sample(run, part)
        except (RuntimeError, MemoryError) as error:
            short = out_of_memory(error) and len(part) > 1
            if not short:
                raise
        # Outside of the handler, so that what the failed attempt held is free.
        if short:
            release_cached()
            together = len(part) // 2
        else:
            found |= {i: _answered(run.rows[i], answer) for i, answer in zip(part, answers, strict=True)}
            del left[: len(part)]
        yield Held(run.nbytes)
    return {i: found[i] for i in indices}


def _answered(row: TrainRow, answer: Sequence[int]) -> TrainRow:
    return replace(_with(row, answer), teacher=_with(text_of(row), answer))


def _with(text: TrainRow, answer: Sequence[int]) -> TrainRow:
    prompt = prompt_of(text)
    return replace(text, input_ids=(*prompt, *answer), labels=(False,) * len(prompt) + (True,) * len(answer))


def prompt_of(text: TrainRow) -> tuple[int, ...]:
    """What comes before the last answer of a text, or all of it where there is none; at least one token."""
    if not any(text.labels):
        return text.input_ids
    end = len(text.labels) - text.labels[::-1].index(True)
    while end > 1 and text.labels[end - 1]:
        end -= 1
    return text.input_ids[:end]


def _sample(run: TrainingRun, indices: Sequence[int]) -> Tasks[list[list[int]]]:
    """The answer to each row, with its end token unless it was cut: the rows with a frozen stack come first."""
    base, command, shape = run.base, run.command, run.base.kv_shape
    longest = command.spec.max_length or max_context(base.model)
    numbers, answers = itertools.count(), []
    for i in indices:
        row = run.rows[i]
        prompt = prompt_of(row)
        room = min(MAX_ANSWER, longest - max(len(prompt), len(prompt_of(text_of(row)))))
        pages = tuple(itertools.islice(numbers, -(-(len(prompt) + room) // shape.page_size)))
        draws = run.schedule.answer_draws(run.step, i)
        answers.append(_Answer(prompt, run.stacks[i], len(prompt) + room, pages, draws))
    pool = KVPool(shape, next(numbers), base.device, base.dtype)
    ends = frozenset(command.end_ids)
    for answer in answers:
        for start in range(0, len(answer.prompt), PREFILL_TOKENS):
            logits = _logits(run, pool, [(answer, answer.prompt[start : start + PREFILL_TOKENS], start)])
            yield PAUSE
        drawn = _draw(logits, [answer])
        yield SETTLE
        answer.tokens += drawn.tolist()
    for count in itertools.count(1):
        going = [a for a in answers if a.tokens[-1] not in ends and len(a.prompt) + len(a.tokens) < a.longest]
        if not going:
            return [answer.tokens for answer in answers]
        works = [(a, tuple(a.tokens[-1:]), len(a.prompt) + len(a.tokens) - 1) for a in going]
        drawn = _draw(_logits(run, pool, works), going)
        yield SETTLE
        for answer, token in zip(going, drawn.tolist(), strict=True):
            answer.tokens.append(token)
        if count % TURN_TOKENS == 0:
            yield Held(run.nbytes + pool.nbytes)
    raise AssertionError


def _logits(run: TrainingRun, pool: KVPool, works: Sequence[tuple[_Answer, tuple[int, ...], int]]) -> Tensor:
    """Logits [works, vocabulary] after tokens that stand at a position of an answer's text."""
    base = run.base
    spans = [Span(start, len(tokens), answer.pages) for answer, tokens, start in works]
    rows = [TrainRow(tokens, ()) for _, tokens, _ in works]
    ids = torch.tensor([id for row in rows for id in row.input_ids], device=base.device)
    positions = torch.tensor([place for span in spans for place in span.positions], device=base.device)
    last = torch.tensor(list(itertools.accumulate(span.length for span in spans)), device=base.device) - 1
    with torch.no_grad():
        routing = routing_of([JobRows(run.frozen, rows, [answer.stack for answer, _, _ in works], run.adapter)])
        return base.forward(positions, PagedAttention(pool, spans), routing, last, ids=ids)


def _draw(logits: Tensor, answers: Sequence[_Answer]) -> Tensor:
    """A token id for each row of ``logits``, [answers], by the answer's own random numbers (inverse transform)."""
    mass = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    points = torch.tensor([[answer.draws.random()] for answer in answers], dtype=torch.float64, device=logits.device)
    found = torch.searchsorted(mass, points * mass[:, -1:], right=True)[:, 0]
    return found.clamp(max=logits.shape[-1] - 1)  # of logits that are not finite; the loss will say so
