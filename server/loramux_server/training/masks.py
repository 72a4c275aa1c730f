"""Which tokens of a row are learned.

One rule for all shapes: what comes before an answer is exactly what ``generate`` would have fed the model there, and
each answer ends with one end token, learned too. So no token ever spans the border between them, and for
conversations the border is found by rendering the turns before an answer with the generation prompt and comparing
with the turns up to and with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from ..core.errors import Error
from ..core.jobs import TrainRow
from ..text.tokenizer import TextTokenizer
from .dataset_pairs import PairRow
from .dataset_parts import BadRow, ChatRow, CompletionRow, TextRow
from .dataset_rows import Content


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring tokens that are all learned or all not, as text."""

    text: str
    trained: bool


def train_rows(content: Content, tokenizer: TextTokenizer) -> tuple[TrainRow, ...]:
    """Token ids and labels of one dataset row.

    A preference pair gives one row, with the other answer in ``rejected``. A conversation gives one row, or one for
    each answer where the template rewrites earlier turns (leaves out their reasoning, say), so that every answer is
    learned after the very prompt it would be asked for with.
    Raises :class:`BadRow`.
    """
    try:
        match content:
            case PairRow():
                return (_pair(content, tokenizer),)
            case CompletionRow():
                rows = [_completion(content, tokenizer)]
            case TextRow():
                rows = [_text(content, tokenizer)]
            case ChatRow():
                rows = list(_chat(content, tokenizer))
    except Error as error:
        raise BadRow([violation.description for violation in error.violations] or [error.message]) from error
    for ids, labels in rows:
        _check(ids, labels, tokenizer)
    return tuple(TrainRow(tuple(ids), tuple(labels)) for ids, labels in rows)


def _pair(pair: PairRow, tokenizer: TextTokenizer) -> TrainRow:
    found = [train_rows(side, tokenizer) for side in (pair.chosen, pair.rejected)]
    if any(len(rows) > 1 for rows in found):
        raise BadRow(["the chat template rewrites earlier answers of this conversation: give a pair for each answer"])
    (chosen,), (rejected,) = found
    if chosen == rejected:
        raise BadRow(["both answers of the pair have the same tokens"])
    if _prompt(chosen) != _prompt(rejected):
        raise BadRow(["the two answers of the pair do not follow the same prompt"])
    return replace(chosen, rejected=rejected)


def _prompt(row: TrainRow) -> tuple[int, ...]:
    return row.input_ids[: row.labels.index(True)]


def render_marked(row: TrainRow, tokenizer: TextTokenizer) -> tuple[Segment, ...]:
    """A tokenised row as text again, special tokens shown, cut where learning begins and ends."""
    segments: list[Segment] = []
    end, shown = 0, ""
    for trained, group in groupby(row.labels):
        end += len(list(group))
        text = tokenizer.decode(row.input_ids[:end], skip_special_tokens=False)
        segments.append(Segment(text[len(shown) :], trained))
        shown = text
    return tuple(segments)


_Labelled = tuple[list[int], list[bool]]


def _completion(row: CompletionRow, tokenizer: TextTokenizer) -> _Labelled:
    prompt = tokenizer.encode(row.prompt)
    answer = _ended(tokenizer.encode_continuation(row.completion), tokenizer)
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def _text(row: TextRow, tokenizer: TextTokenizer) -> _Labelled:
    ids = _ended(tokenizer.encode(row.text, field="text"), tokenizer)
    # Nothing comes before the first token that it could be predicted from.
    return ids, [False] + [True] * (len(ids) - 1)


def _ended(ids: list[int], tokenizer: TextTokenizer) -> list[int]:
    """``ids`` with one end token, unless they bring their own."""
    if tokenizer.eos_token_id is None:
        raise BadRow(["the base's tokenizer names no end-of-sequence token, so an answer cannot be ended"])
    return ids if ids and ids[-1] in tokenizer.eos_token_ids else [*ids, tokenizer.eos_token_id]


def _chat(row: ChatRow, tokenizer: TextTokenizer) -> Iterator[_Labelled]:
    if row.tools:
        _check_tools(row, tokenizer)
    ids: list[int] = []
    labels: list[bool] = []
    for index, trained in enumerate(row.trained):
        if not trained:
            continue
        prompt, answer = _turn(row, index, tokenizer)
        if ids and prompt[: len(ids)] != ids:
            yield ids, labels
            ids, labels = [], []
        labels = labels + [False] * (len(prompt) - len(labels)) + [True] * len(answer)
        ids = prompt + answer
    yield ids, labels


def _turn(row: ChatRow, index: int, tokenizer: TextTokenizer) -> tuple[list[int], list[int]]:
    """The prompt that an assistant turn answers, as it is served, and the tokens of the answer with its end token."""
    before = tokenizer.render_chat(row.messages[:index], add_generation_prompt=True, tools=row.tools)
    after = tokenizer.render_chat(row.messages[: index + 1], add_generation_prompt=False, tools=row.tools)
    if not after.startswith(before):
        raise BadRow(
            [
                f"the chat template does not begin messages[{index}] the way it asks for an answer: it asks with "
                f"{_excerpt(tokenizer.plain(before))} and renders {_excerpt(tokenizer.plain(after))}; "
                "give prompt and completion instead"
            ]
        )
    _check_kept(row, index, tokenizer.plain(before), tokenizer.plain(after[len(before) :]), tokenizer)
    prompt, whole = tokenizer.encode_rendered(before), tokenizer.encode_rendered(after)
    if whole[: len(prompt)] == prompt:
        answer = whole[len(prompt) :]
    else:  # a token would span the border
        answer = tokenizer.encode_rendered_continuation(after[len(before) :])
    ends = [position for position, id in enumerate(answer) if id in tokenizer.eos_token_ids]
    # Generation stops at the end token: what a template writes after it (a line break) is never the model's to say.
    return prompt, answer[: ends[0] + 1] if ends else answer


def _check_tools(row: ChatRow, tokenizer: TextTokenizer) -> None:
    """Refuse a template that does not show the model its tools: it would be served without them too."""
    with_tools = tokenizer.render_chat(row.messages, add_generation_prompt=False, tools=row.tools)
    if with_tools == tokenizer.render_chat(row.messages, add_generation_prompt=False):
        raise BadRow(
            [
                "the chat template ignores tools: with them and without it renders "
                f"{_excerpt(tokenizer.plain(with_tools))}; leave tools out, or write them into a system turn"
            ]
        )


def _check_kept(row: ChatRow, index: int, before: str, answer: str, tokenizer: TextTokenizer) -> None:
    """Refuse a template that leaves out what the row says. White space is the template's own affair."""
    prompt = _squashed(before)
    for at, message in enumerate(row.messages[:index]):
        # Earlier answers may lose their reasoning: they are served the same way.
        if message["role"] == "assistant" or _squashed(message["content"]) in prompt:
            continue
        # Results of tools may be re-coded, but they must make a difference.
        if message["role"] in ("tool", "function") and _matters(row, at, index, before, tokenizer):
            continue
        raise _dropped(at, message, "content", message["content"], f"is not in {_excerpt(before)}")
    message = row.messages[index]
    said = _squashed(answer)
    if _squashed(message["content"]) not in said:
        raise _dropped(index, message, "content", message["content"], f"is not in {_excerpt(answer)}")
    for call in message.get("tool_calls") or ():
        name = str((call.get("function") or call).get("name", ""))
        if name and _squashed(name) not in said:
            raise _dropped(index, message, "tool call", name, f"is not in {_excerpt(answer)}")


def _matters(row: ChatRow, at: int, index: int, before: str, tokenizer: TextTokenizer) -> bool:
    """Whether the prompt of answer ``index`` would be another one without the content of message ``at``."""
    emptied = [{**m, "content": ""} if i == at else m for i, m in enumerate(row.messages[:index])]
    return tokenizer.plain(tokenizer.render_chat(emptied, add_generation_prompt=True, tools=row.tools)) != before


def _dropped(at: int, message: Mapping[str, Any], what: str, said: str, where: str) -> BadRow:
    return BadRow(
        [f"the chat template drops the {what} of messages[{at}] ({message['role']}): {_excerpt(said)} {where}"]
    )


def _check(ids: list[int], labels: list[bool], tokenizer: TextTokenizer) -> None:
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        start = tokenizer.token_text(ids[0])
        raise BadRow(
            [
                f"begins with {start} twice ({_excerpt(tokenizer.decode(ids[:12], skip_special_tokens=False))}): "
                "the tokenizer adds it by itself, so leave it out of the text"
            ]
        )
    if not any(labels):
        shown = tokenizer.decode(ids, skip_special_tokens=False)
        raise BadRow([f"has no token to learn; it is rendered as {_excerpt(shown)}"])


def _squashed(text: str) -> str:
    return "".join(text.split())


def _excerpt(text: str) -> str:
    """The end of a text, short enough for an error message."""
    return repr(text if len(text) <= 60 else "..." + text[-57:])
