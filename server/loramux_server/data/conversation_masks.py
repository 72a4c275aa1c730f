"""Label masks of conversations: which tokens are loss tokens.

An answer begins where the rendering of the turns before it, with the generation prompt, ends. Most templates render
turn after turn: then one rendering shows where all answers begin. Some templates render earlier turns differently once
more turns follow: then each answer takes renderings of its own, and their total length is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.watch import Watch
from ..text.tokenizer import RenderedTurns, TextTokenizer
from .fields import BadRow, ChatRow, TooLong

MAX_ROWS = 64
"""Most rows that one conversation may become."""
MAX_RENDERINGS = 128
"""Where a template rewrites earlier turns: most characters to render, in times the length of the conversation."""
MIN_RENDERED = 1 << 20
"""Characters that may be rendered for any conversation, whatever its length."""

Labelled = tuple[list[int], list[bool]]
"""Token ids, and for each whether it is a loss token."""


def chat_rows(row: ChatRow, tokenizer: TextTokenizer, max_length: int | None, watch: Watch) -> Iterator[Labelled]:
    """One row, or one for each answer where the template rewrites earlier turns. Raises :class:`BadRow`.

    A conversation of more than ``max_length`` tokens is refused after one rendering.
    """
    if max_length is not None and len(row.messages) > max_length:  # each has a token at least
        raise TooLong(f"the row has {len(row.messages)} messages, so as many tokens or more", max_length)
    last = max(index for index, trained in enumerate(row.trained) if trained)
    if row.tools:
        _check_tools(row, tokenizer)
    turns = tokenizer.render_turns(row.messages[: last + 1], **row.template_inputs)
    if turns is None:
        found = _EachAnswer(row, tokenizer, max_length, watch).rows()
    else:
        found = _turn_after_turn(row, turns, tokenizer)
    for number, each in enumerate(found):
        if number == MAX_ROWS:
            raise BadRow(
                [
                    "the chat template rewrites earlier answers, so each answer would be a row of its own: a "
                    f"conversation may become {MAX_ROWS} rows at most; split it, or give weight 0 to all but some"
                ]
            )
        yield each


def _turn_after_turn(row: ChatRow, turns: RenderedTurns, tokenizer: TextTokenizer) -> Iterator[Labelled]:
    """The rows of a conversation whose template renders turn after turn."""
    _check_turns(row, turns, tokenizer)
    asked = tokenizer.encode_turn(turns.ask)
    ids: list[int] = []
    labels: list[bool] = []
    answer: list[int] = []
    start = 0  # in ``ids``, of the generation prompt before the latest answer
    for index, (text, own) in enumerate(zip(turns.turns, turns.ids, strict=True)):
        if row.trained[index]:
            latest = asked + answer
            if answer:
                learned = [False] * len(asked) + [True] * len(answer)
                if (ids[start : start + len(latest)] + asked)[: len(latest)] == latest:
                    labels += [False] * (start - len(labels)) + learned
                else:
                    yield ids[:start] + latest, labels + [False] * (start - len(labels)) + learned
                    labels = []
            start = len(ids)
            whole = tokenizer.encode_turn(text + turns.end) if turns.end else own
            answer = _answer(asked, whole, (text + turns.end)[len(turns.ask) :], tokenizer)
        ids += own
    learned = [False] * len(asked) + [True] * len(answer)
    yield ids[:start] + asked + answer, labels + [False] * (start - len(labels)) + learned


def _check_turns(row: ChatRow, turns: RenderedTurns, tokenizer: TextTokenizer) -> None:
    """Refuse a template that begins answers unlike its generation prompt, or that leaves out what a message says."""

    def before(index: int) -> str:
        return tokenizer.plain("".join(turns.turns[:index]) + turns.ask)

    plain = [tokenizer.plain(text) for text in turns.turns]
    hidden: list[tuple[int, int]] = []
    since = 0
    for index in range(len(plain)):
        if not row.trained[index]:
            continue
        after = turns.turns[index] + turns.end
        if not after.startswith(turns.ask):
            raise _begins_differently(
                index, before(index), before(index).removesuffix(turns.ask) + tokenizer.plain(after)
            )
        between = ""
        for at in range(since, index):
            said = _squashed(row.messages[at]["content"])
            if row.messages[at]["role"] == "assistant" or said in _squashed(plain[at]):
                continue
            between = between or _squashed("".join(plain[since:index]))
            if said in between:
                continue
            if row.messages[at]["role"] not in ("tool", "function"):
                raise _dropped(row, at, before(index))
            hidden.append((at, index))
        _check_answer(row, index, tokenizer.plain(after[len(turns.ask) :]))
        since = index
    if hidden:  # a template may reformat tool results, but they must change the prompt
        gone = {at for at, _ in hidden}
        emptied = [{**m, "content": ""} if at in gone else m for at, m in enumerate(row.messages[: len(plain)])]
        without = tokenizer.render_turns(emptied, **row.template_inputs)
        for at, index in hidden:
            if without is not None and without.turns[at : index + 1] == turns.turns[at : index + 1]:
                raise _dropped(row, at, before(index))


class _EachAnswer:
    """The rows of a conversation whose template rewrites earlier turns: renders the prompt of each answer."""

    def __init__(self, row: ChatRow, tokenizer: TextTokenizer, max_length: int | None, watch: Watch) -> None:
        self._row, self._tokenizer, self._max_length, self._watch = row, tokenizer, max_length, watch
        self._indices = [index for index, trained in enumerate(row.trained) if trained]
        self._characters_left = 0  # to render
        self._shown: set[int] = set()  # tool results that the prompt was found to depend on

    def rows(self) -> Iterator[Labelled]:
        """The rows, in order."""
        whole = self._tokenizer.render_chat(self._row.messages[: self._indices[-1] + 1], **self._row.template_inputs)
        self._characters_left = max(MIN_RENDERED, MAX_RENDERINGS * len(whole))
        if len(self._indices) * len(whole) > self._characters_left:  # an answer takes two renderings of about half
            raise self._too_many()
        prompt, answer = self._turn(self._indices[-1])
        if self._max_length is not None and (longest := len(prompt) + len(answer)) > self._max_length:
            raise TooLong(f"the row has {longest} tokens", self._max_length)
        ids: list[int] = []
        labels: list[bool] = []
        for index in self._indices:
            self._watch()
            prompt, answer = self._turn(index)
            if ids and prompt[: len(ids)] != ids:
                yield ids, labels
                ids, labels = [], []
            labels = labels + [False] * (len(prompt) - len(labels)) + [True] * len(answer)
            ids = prompt + answer
        yield ids, labels

    def _turn(self, index: int) -> tuple[list[int], list[int]]:
        """The prompt that an assistant turn answers, as it is served, and the answer's tokens with its end token."""
        row, tokenizer = self._row, self._tokenizer
        before = self._render(row.messages[:index], ask=True)
        after = self._render(row.messages[: index + 1], ask=False)
        if not after.startswith(before):
            raise _begins_differently(index, tokenizer.plain(before), tokenizer.plain(after))
        self._check_kept(index, tokenizer.plain(before))
        _check_answer(row, index, tokenizer.plain(after[len(before) :]))
        prompt = tokenizer.encode_rendered(before)
        return prompt, _answer(prompt, tokenizer.encode_rendered(after), after[len(before) :], tokenizer)

    def _check_kept(self, index: int, before: str) -> None:
        """Refuse a template that leaves out what the row says before answer ``index``."""
        prompt = _squashed(before)
        for at, message in enumerate(self._row.messages[:index]):
            # Earlier answers may lose their reasoning: requests are rendered the same way.
            if message["role"] == "assistant" or at in self._shown or _squashed(message["content"]) in prompt:
                continue
            # A template may reformat tool results, but they must change the prompt.
            if message["role"] not in ("tool", "function") or not self._changes_prompt(at, index, before):
                raise _dropped(self._row, at, before)
            self._shown.add(at)

    def _changes_prompt(self, at: int, index: int, before: str) -> bool:
        """Whether the prompt of answer ``index`` depends on the content of message ``at``."""
        emptied = [{**m, "content": ""} if i == at else m for i, m in enumerate(self._row.messages[:index])]
        return self._tokenizer.plain(self._render(emptied, ask=True)) != before

    def _render(self, messages: Sequence[Mapping[str, Any]], *, ask: bool) -> str:
        """Render messages, within the characters that are left."""
        self._watch()
        text = self._tokenizer.render_chat(messages, add_generation_prompt=ask, **self._row.template_inputs)
        self._characters_left -= len(text)
        if self._characters_left < 0:
            raise self._too_many()
        return text

    def _too_many(self) -> BadRow:
        return BadRow(
            [
                f"the row has too many answers ({len(self._indices)} are trained on) for a chat template that renders "
                "earlier turns differently once more turns follow; split it, or give weight 0 to some"
            ]
        )


def _answer(prompt: list[int], whole: list[int], said: str, tokenizer: TextTokenizer) -> list[int]:
    """The tokens of the text ``said`` after ``prompt``, up to the end token; ``whole`` are those of both together."""
    if whole[: len(prompt)] == prompt:
        answer = whole[len(prompt) :]
    else:  # a token would span the border
        answer = tokenizer.encode_rendered_continuation(said)
    ends = [position for position, id in enumerate(answer) if id in tokenizer.eos_token_ids]
    # Generation stops at the end token: the model never has to predict what a template writes after it.
    return answer[: ends[0] + 1] if ends else answer


def _check_tools(row: ChatRow, tokenizer: TextTokenizer) -> None:
    """Refuse a template that ignores tools: requests would not show them to the model either."""
    with_tools = tokenizer.render_chat(row.messages, add_generation_prompt=False, **row.template_inputs)
    without = replace(row, tools=None)
    if with_tools == tokenizer.render_chat(row.messages, add_generation_prompt=False, **without.template_inputs):
        raise BadRow(
            [
                "the chat template ignores tools: with them and without it renders "
                f"{excerpt(tokenizer.plain(with_tools))}; leave tools out, or write them into a system turn"
            ]
        )


def _check_answer(row: ChatRow, index: int, answer: str) -> None:
    """Refuse a template that leaves out what an answer says; white space may differ."""
    message = row.messages[index]
    said = _squashed(answer)
    if _squashed(message["content"]) not in said:
        raise _dropped(row, index, answer)
    for call in message.get("tool_calls") or ():
        name = str((call.get("function") or call).get("name") or "")
        if name and _squashed(name) not in said:
            raise _dropped(row, index, answer, "tool call", name)


def _begins_differently(index: int, before: str, after: str) -> BadRow:
    return BadRow(
        [
            f"the chat template does not begin messages[{index}] the way it asks for an answer: it asks with "
            f"{excerpt(before)} and renders {excerpt(after)}; give prompt and completion instead"
        ]
    )


def _dropped(row: ChatRow, at: int, where: str, what: str = "content", said: str | None = None) -> BadRow:
    message = row.messages[at]
    said = message["content"] if said is None else said
    return BadRow(
        [
            f"the chat template drops the {what} of messages[{at}] ({message['role']}): {excerpt(said)} is not in "
            f"{excerpt(where)}"
        ]
    )


def _squashed(text: str) -> str:
    return "".join(text.split())


def excerpt(text: str) -> str:
    """The end of a text, short enough for an error message."""
    return repr(text if len(text) <= 60 else "..." + text[-57:])
