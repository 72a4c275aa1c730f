"""Which tokens of a conversation are learned.

The border before an answer is found by rendering the turns before it with the generation prompt and comparing with
the turns up to and with it. Most templates write turn after turn: then one rendering shows all borders, and the work
grows with the conversation. Where a template writes earlier turns differently as a conversation goes on, each answer
has renderings of its own, and a bound on how many characters these write.
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
"""Most renderings of a conversation that its template does not write turn after turn, in times its length."""
SMALL = 1 << 20
"""Characters that may be rendered of any conversation, however often that is its length."""

Labelled = tuple[list[int], list[bool]]
"""Token ids, and whether each is learned."""


def chat_rows(row: ChatRow, tokenizer: TextTokenizer, max_length: int | None, watch: Watch) -> Iterator[Labelled]:
    """One row, or one for each answer where the template rewrites earlier turns. Raises :class:`BadRow`.

    Longer ones than ``max_length`` tokens are refused before more than one rendering is made of them.
    """
    if max_length is not None and len(row.messages) > max_length:  # each has a token at least
        raise TooLong(f"has {len(row.messages)} messages, so as many tokens or more", max_length)
    last = max(index for index, trained in enumerate(row.trained) if trained)
    if row.tools:
        _check_tools(row, tokenizer)
    turns = tokenizer.render_turns(row.messages[: last + 1], **row.given)
    found = _Each(row, tokenizer, max_length, watch).answers() if turns is None else _together(row, turns, tokenizer)
    for number, each in enumerate(found):
        if number == MAX_ROWS:
            raise BadRow(
                [
                    "the chat template rewrites earlier answers, so each answer would be a row of its own: a "
                    f"conversation may become {MAX_ROWS} rows at most; split it, or give weight 0 to all but some"
                ]
            )
        yield each


def _together(row: ChatRow, turns: RenderedTurns, tokenizer: TextTokenizer) -> Iterator[Labelled]:
    """The rows of a conversation whose turns follow each other unchanged."""
    _check_turns(row, turns, tokenizer)
    asked = tokenizer.encode_turn(turns.ask)
    ids: list[int] = []
    labels: list[bool] = []
    answer: list[int] = []
    start = 0
    """Of the latest answer with what asks for it, in ``ids``."""
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
    """Refuse a template that begins an answer in another way than it asks for it, or that leaves out what it says."""

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
            raise _asked_otherwise(index, before(index), before(index).removesuffix(turns.ask) + tokenizer.plain(after))
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
    if hidden:  # results of tools may be written in another way, but they must make a difference
        gone = {at for at, _ in hidden}
        emptied = [{**m, "content": ""} if at in gone else m for at, m in enumerate(row.messages[: len(plain)])]
        without = tokenizer.render_turns(emptied, **row.given)
        for at, index in hidden:
            if without is not None and without.turns[at : index + 1] == turns.turns[at : index + 1]:
                raise _dropped(row, at, before(index))


class _Each:
    """The rows of a conversation where every beginning has to be rendered."""

    def __init__(self, row: ChatRow, tokenizer: TextTokenizer, max_length: int | None, watch: Watch) -> None:
        self._row, self._tokenizer, self._max_length, self._watch = row, tokenizer, max_length, watch
        self._indices = [index for index, trained in enumerate(row.trained) if trained]
        self._room = 0
        """Characters that may still be rendered."""
        self._matter: set[int] = set()
        """Results of tools that were found to matter."""

    def answers(self) -> Iterator[Labelled]:
        """The rows, in order."""
        whole = self._tokenizer.render_chat(self._row.messages[: self._indices[-1] + 1], **self._row.given)
        self._room = max(SMALL, MAX_RENDERINGS * len(whole))
        if len(self._indices) * len(whole) > self._room:  # an answer takes two renderings of about half
            raise self._too_many()
        prompt, answer = self._turn(self._indices[-1])
        if self._max_length is not None and (longest := len(prompt) + len(answer)) > self._max_length:
            raise TooLong(f"has {longest} tokens", self._max_length)
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
            raise _asked_otherwise(index, tokenizer.plain(before), tokenizer.plain(after))
        self._check_kept(index, tokenizer.plain(before))
        _check_answer(row, index, tokenizer.plain(after[len(before) :]))
        prompt = tokenizer.encode_rendered(before)
        return prompt, _answer(prompt, tokenizer.encode_rendered(after), after[len(before) :], tokenizer)

    def _check_kept(self, index: int, before: str) -> None:
        """Refuse a template that leaves out what the row says before answer ``index``."""
        prompt = _squashed(before)
        for at, message in enumerate(self._row.messages[:index]):
            # Earlier answers may lose their reasoning: they are served the same way.
            if message["role"] == "assistant" or at in self._matter or _squashed(message["content"]) in prompt:
                continue
            # Results of tools may be written in another way, but they must make a difference.
            if message["role"] not in ("tool", "function") or not self._matters(at, index, before):
                raise _dropped(self._row, at, before)
            self._matter.add(at)

    def _matters(self, at: int, index: int, before: str) -> bool:
        """Whether the prompt of answer ``index`` would be another one without the content of message ``at``."""
        emptied = [{**m, "content": ""} if i == at else m for i, m in enumerate(self._row.messages[:index])]
        return self._tokenizer.plain(self._render(emptied, ask=True)) != before

    def _render(self, messages: Sequence[Mapping[str, Any]], *, ask: bool) -> str:
        """Render and take it from the room that is left."""
        self._watch()
        text = self._tokenizer.render_chat(messages, add_generation_prompt=ask, **self._row.given)
        self._room -= len(text)
        if self._room < 0:
            raise self._too_many()
        return text

    def _too_many(self) -> BadRow:
        return BadRow(
            [
                f"has too many answers ({len(self._indices)} that are learned) for a chat template that writes earlier "
                "turns differently as a conversation goes on; split it, or give weight 0 to some"
            ]
        )


def _answer(prompt: list[int], whole: list[int], said: str, tokenizer: TextTokenizer) -> list[int]:
    """The tokens of the text ``said`` after ``prompt``, up to the end token; ``whole`` are those of both together."""
    if whole[: len(prompt)] == prompt:
        answer = whole[len(prompt) :]
    else:  # a token would span the border
        answer = tokenizer.encode_rendered_continuation(said)
    ends = [position for position, id in enumerate(answer) if id in tokenizer.eos_token_ids]
    # Generation stops at the end token: what a template writes after it (a line break) is never the model's to say.
    return answer[: ends[0] + 1] if ends else answer


def _check_tools(row: ChatRow, tokenizer: TextTokenizer) -> None:
    """Refuse a template that does not show the model its tools: it would be served without them too."""
    with_tools = tokenizer.render_chat(row.messages, add_generation_prompt=False, **row.given)
    without = replace(row, tools=None)
    if with_tools == tokenizer.render_chat(row.messages, add_generation_prompt=False, **without.given):
        raise BadRow(
            [
                "the chat template ignores tools: with them and without it renders "
                f"{excerpt(tokenizer.plain(with_tools))}; leave tools out, or write them into a system turn"
            ]
        )


def _check_answer(row: ChatRow, index: int, answer: str) -> None:
    """Refuse a template that leaves out what an answer says. White space is the template's own affair."""
    message = row.messages[index]
    said = _squashed(answer)
    if _squashed(message["content"]) not in said:
        raise _dropped(row, index, answer)
    for call in message.get("tool_calls") or ():
        name = str((call.get("function") or call).get("name") or "")
        if name and _squashed(name) not in said:
            raise _dropped(row, index, answer, "tool call", name)


def _asked_otherwise(index: int, before: str, after: str) -> BadRow:
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
