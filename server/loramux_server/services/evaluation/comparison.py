"""Fine-tuning against prompting.

The same held-out rows are asked of the base, of the base with a prompt before them, and of the new adapter.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loramux.comparison import Comparison, Side

from ...core.backend import EngineInfo
from ...core.errors import invalid_field
from ...core.jobs import TrainRow
from ...core.types import Stack
from ...core.watch import UNWATCHED, Watch
from ...data.dataset import DatasetLimits, Example, parse_dataset
from ...data.fields import BadRow, ChatRow, CompletionRow
from ...data.label_masks import train_rows
from ...data.preference_pairs import PairRow
from ...data.problems import Problems
from ...data.rows import Content
from ...store.store import Store
from ...text import TextTokenizer
from .questions import Asker, Question, Reply, accuracy, exact_match, last_answer

TIMED = 12
"""Questions that are asked one at a time, the sides in turn, for the latencies."""

FIELD = "compare_prompt"


def prompted(
    asked: Sequence[Question],
    held_out: Sequence[Example],
    digest: str,
    context: str,
    chat_template_kwargs: str,
    store: Store,
    text: TextTokenizer,
    info: EngineInfo,
    *,
    watch: Watch = UNWATCHED,
) -> list[Question]:
    """The same questions with a context before each; blocking.

    ``held_out`` are the rows that ``asked`` came from, ``digest`` names the file that these came from,
    ``chat_template_kwargs`` are the job's. Their answers have the room that is left with the context:
    :func:`compare` gives all sides as much. Raises INVALID_ARGUMENT (``compare_prompt``) when the context cannot be
    put before them, or leaves no room for the expected answer.
    """
    lines = {held_out[question.row].line for question in asked}
    data = store.datasets.read(digest)
    # The file was found to be good before.
    rows = parse_dataset(data, Problems("validation"), DatasetLimits(len(data), len(data)), watch)
    wanted = {row.line: row.content for row in rows if row.line in lines}
    kwargs = json.loads(chat_template_kwargs or "{}")
    made = {line: _rendered(with_context(row, context), kwargs, line, text, watch) for line, row in wanted.items()}
    first = {example.line: i for i, example in reversed(list(enumerate(held_out)))}
    found: list[Question] = []
    for question in asked:
        line = held_out[question.row].line
        ids, _ = last_answer(made[line][question.row - first[line]])
        room = min(question.room, info.max_context - len(ids))
        if room < len(question.expected_ids):
            raise invalid_field(
                FIELD,
                f"leaves no room: line {line} of the held-out rows has {len(ids)} tokens with it, before an answer of "
                f"{len(question.expected_ids)}, and the model's context is {info.max_context}; shorten it",
            )
        found.append(replace(question, prompt_ids=ids, room=room))
    return found


def with_context(content: Content, context: str) -> Content:
    """A row as it would be asked with a context: as the system turn (before what is there), or before the prompt."""
    match content:
        case ChatRow(messages, trained):
            first = messages[0]
            if first["role"] == "system":
                system = {**first, "content": f"{context}\n\n{first['content']}"}
                return replace(content, messages=(system, *messages[1:]))
            system = {"role": "system", "content": context}
            return replace(content, messages=(system, *messages), trained=(False, *trained))
        case CompletionRow(prompt):
            return replace(content, prompt=f"{context}\n\n{prompt}")
        case PairRow(chosen):
            return with_context(chosen, context)
    return content


def _rendered(
    content: Content, kwargs: Mapping[str, Any], line: int, text: TextTokenizer, watch: Watch
) -> tuple[TrainRow, ...]:
    try:
        return train_rows(content, text, chat_template_kwargs=kwargs, watch=watch)
    except BadRow as bad:
        raise invalid_field(FIELD, f"cannot be put before line {line} of the held-out rows: {bad.problems[0]}") from bad


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
