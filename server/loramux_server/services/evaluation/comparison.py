"""Fine-tuning against prompting and retrieval.

The same held-out rows are asked of the base, of the base with a prompt or passages before them, and of the new adapter.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from loramux.comparison import Comparison, Side
from loramux.verdict import standard_error

from ...core.jobs import TrainRow
from ...core.types import Stack
from ..datasets.held_out import last_answer
from .questions import Asker, Question, Reply, accuracy, exact_match

PROMPT, RETRIEVAL = "prompt", "retrieval"
"""What may be put before the questions, as metrics call it."""
TIMED = 12
"""Questions that are asked one at a time, the sides in turn, for the latencies."""


def with_rows(asked: Sequence[Question], rows: Sequence[TrainRow], max_context: int) -> list[Question]:
    """The same questions, each with the prompt of one of ``rows``, which have the context before them.

    Their answers have the room that is left with the context: :func:`compare` gives all sides as much.
    """
    prompts = [last_answer(row)[0] for row in rows]
    return [
        replace(question, prompt_ids=ids, room=min(question.room, max_context - len(ids)))
        for question, ids in zip(asked, prompts, strict=True)
    ]


async def compare(
    asker: Asker,
    asked: Sequence[Question],
    contexts: Mapping[str, Sequence[Question]],
    under: Sequence[Stack],
    over: Sequence[Stack],
    init: Sequence[Stack] | None = None,
) -> tuple[Comparison, dict[str, list[Reply]]]:
    """Ask all questions of all sides, each once, greedily and with the same room for the answer; gives the replies too.

    ``contexts`` has the same questions with a ``prompt`` before them, with what ``retrieval`` found, or both.
    ``under`` are the job's frozen stacks, ``over`` the same with the new adapter on top, ``init`` with the version
    that it goes on from, if there is one.
    """
    posed = _same_room({"asked": asked, **contexts})
    sides = {"base": (posed["asked"], under)}
    if init is not None:
        sides["init"] = (posed["asked"], init)
    sides |= {name: (posed[name], under) for name in contexts}
    sides["adapter"] = (posed["asked"], over)
    if RETRIEVAL in contexts:
        sides[f"adapter_{RETRIEVAL}"] = (posed[RETRIEVAL], over)
    replies: dict[str, list[Reply]] = {name: [] for name in sides}
    timed = range(min(TIMED, len(asked)))
    for i in timed:
        for name, (questions, stacks) in sides.items():
            replies[name].append(await asker.ask(questions[i], stacks[questions[i].stack]))
    found: dict[str, Side] = {}
    for name, (questions, stacks) in sides.items():
        alone = list(replies[name])
        replies[name] += await asker.ask_all(questions[len(timed) :], stacks)
        loss, error = mean_loss(await asker.losses(questions, stacks), [len(each.expected_ids) for each in questions])
        found[name] = Side(
            accuracy=accuracy(replies[name]),
            exact_match=exact_match(replies[name]),
            loss=loss,
            prompt_tokens=statistics.fmean(len(question.prompt_ids) for question in questions),
            first_token_seconds=statistics.median(reply.first_token_seconds for reply in alone),
            seconds=statistics.median(reply.seconds for reply in alone),
            answer_tokens=statistics.fmean(reply.tokens for reply in replies[name]),
            accuracy_error=standard_error(accuracy(replies[name]), len(asked)),
            exact_match_error=standard_error(exact_match(replies[name]), len(asked)),
            loss_error=error,
        )
    comparison = Comparison(
        questions=len(asked),
        base=found["base"],
        prompt=found.get(PROMPT),
        adapter=found["adapter"],
        init=found.get("init"),
        retrieval=found.get(RETRIEVAL),
        adapter_retrieval=found.get(f"adapter_{RETRIEVAL}"),
    )
    return comparison, replies


def _same_room(posed: Mapping[str, Sequence[Question]]) -> dict[str, list[Question]]:
    """The same questions, each with the room for an answer that is left where most comes before it."""
    rooms = [min(question.room for question in each) for each in zip(*posed.values(), strict=True)]
    return {
        name: [replace(question, room=room) for question, room in zip(questions, rooms, strict=True)]
        for name, questions in posed.items()
    }


def mean_loss(losses: Sequence[float], tokens: Sequence[int]) -> tuple[float, float]:
    """Loss a token from each row's sum over its tokens, and the standard error of that ratio, over the rows."""
    count, total = len(losses), sum(tokens)
    mean = sum(losses) / total
    if count < 2:
        return mean, 0.0
    spread = sum((loss - mean * length) ** 2 for loss, length in zip(losses, tokens, strict=True))
    return mean, math.sqrt(spread * count / (count - 1)) / total
