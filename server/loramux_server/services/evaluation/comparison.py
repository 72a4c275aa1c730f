"""Fine-tuning against prompting.

The same held-out rows are asked of the base, of the base with a prompt before them, and of the new adapter.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from loramux.comparison import Comparison, Side

from ...core.jobs import TrainRow
from ...core.types import Stack
from ..datasets.held_out import last_answer
from .questions import Asker, Question, Reply, accuracy, exact_match

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
    with_prompt: Sequence[Question],
    under: Sequence[Stack],
    over: Sequence[Stack],
    init: Sequence[Stack] | None = None,
) -> tuple[Comparison, dict[str, list[Reply]]]:
    """Ask all questions of all sides, each once, greedily and with the same room for the answer; gives the replies too.

    ``under`` are the job's frozen stacks, ``over`` the same with the new adapter on top, ``init`` with the version
    that it goes on from, if there is one.
    """
    asked = [replace(question, room=other.room) for question, other in zip(asked, with_prompt, strict=True)]
    sides: dict[str, tuple[Sequence[Question], Sequence[Stack]]] = {
        "base": (asked, under),
        "prompt": (with_prompt, under),
        **({"init": (asked, init)} if init is not None else {}),
        "adapter": (asked, over),
    }
    replies: dict[str, list[Reply]] = {name: [] for name in sides}
    timed = range(min(TIMED, len(asked)))
    for i in timed:
        for name, (posed, stacks) in sides.items():
            replies[name].append(await asker.ask(posed[i], stacks[posed[i].stack]))
    found: dict[str, Side] = {}
    for name, (posed, stacks) in sides.items():
        alone = list(replies[name])
        replies[name] += await asker.ask_all(posed[len(timed) :], stacks)
        found[name] = Side(
            accuracy=accuracy(replies[name]),
            exact_match=exact_match(replies[name]),
            loss=await asker.losses(posed, stacks),
            prompt_tokens=statistics.fmean(len(question.prompt_ids) for question in posed),
            first_token_seconds=statistics.median(reply.first_token_seconds for reply in alone),
            seconds=statistics.median(reply.seconds for reply in alone),
        )
    comparison = Comparison(len(asked), found["base"], found["prompt"], found["adapter"], found.get("init"))
    return comparison, replies
